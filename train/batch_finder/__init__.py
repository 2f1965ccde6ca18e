"""Finds the micro-batch: the rows of a pass that fit on every rank and train fastest. It never changes the recipe.

search, choice          decide on the next size and on the fastest; pure functions of trials
variants, setting       which ways to train are tried, and what a probe is told about the run
typical                 the passes that a run makes, for timings
variant_search, finder  the whole search, over any probe group
decision, worth         whether a run can earn back a search, or takes the plan's rows
cache, report           what earlier searches found; what a person reads
local                   the search of `python -m train`
probes/                 processes that measure one setting and are thrown away
"""
