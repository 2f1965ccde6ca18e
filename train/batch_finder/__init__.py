"""Finds the micro-batch: the rows of one pass that fit on every rank and train fastest. Never touches the recipe.

trial, search, choice   the decisions, pure functions of what was measured
memory, probe, child    one probe process: measures one setting, and is thrown away
process, group          its parent's side: bounded in time, whatever a rank does
variants                which ways to train are tried
variant_search, finder  the whole search over any `ProbeGroup`
worth, decision         whether a run can earn back a search, or takes what the plan says
cache, local            what was found before; probes beside `python -m train`
"""
