"""Says the description of a run's data in sentences."""

from __future__ import annotations

from collections.abc import Iterator

from .view import DataView, Epoch, SetView


def in_short(view: DataView) -> str:
    """`of the first 100 rows 97 are used and 3 left out (…); 66% of their tokens are supervised`."""
    trained = [found for found in view.sets if found.use == "train"]
    rows, used = sum(found.rows for found in trained), sum(found.examples + found.held_out for found in trained)
    reasons = "; ".join(line for found in trained for line in left_out_lines(found))
    left = f"{rows - used:,} left out ({reasons})" if reasons else "none left out"
    tokens, supervised = sum(found.tokens for found in trained), sum(found.supervised_tokens for found in trained)
    of = "all" if rows < (view.limit or 0) * len(trained) else "the first"
    return (
        f"of {of} {rows:,} rows {used:,} are used and {left}; {share(supervised, tokens)} of the tokens are supervised"
    )


def left_out_lines(found: SetView) -> Iterator[str]:
    """A line for each reason: `39 longer than max_length 1024: rows.jsonl line 17 (1503 tokens), …`."""
    for reason in found.left_out:
        more = ", …" if reason.count > len(reason.first) else ""
        yield f"{reason.count:,} {reason.reason}: {', '.join(reason.first)}{more}"


def share(part: int, whole: int) -> str:
    """`41%`, or `0.3%` where that says more."""
    percent = 100 * part / whole if whole else 0.0
    return f"{percent:.1f}%" if 0 < percent < 1 or 99 < percent < 100 else f"{percent:.0f}%"


def facts_of(view: DataView) -> dict[str, str]:
    """A sentence for each topic, in the order in which a person reads them."""
    trained = [found for found in view.sets if found.use == "train"]
    rows, used = sum(found.rows for found in trained), sum(found.examples + found.held_out for found in trained)
    limited = f"; only the first {view.limit:,} rows of each set were read" if view.limit else ""
    facts = {
        "data": ", ".join(f"{found.path} ({found.format or 'no readable row'})" for found in trained),
        "rows": f"{rows:,} read, {used:,} used, {rows - used:,} left out{limited}",
    }
    if truncated := sum(found.truncated for found in trained):
        facts["cut off"] = f"{truncated:,} at train.data.max_length"
    facts |= {"refused": view.refused} if view.refused else {}
    facts |= _epoch_facts(view.epoch) if view.epoch else {}
    if held := sum(found.held_out for found in trained):
        facts["evaluation"] = f"{held:,} of the rows used are held out"
    if unused := sorted({name for found in trained for name in found.unused}):
        facts["not used"] = f"{', '.join(unused)} (columns, or keys of messages)"
    facts |= {"time": view.time} if view.time else {}
    return facts | ({"note": " ".join(view.notes)} if view.notes else {})


def _epoch_facts(epoch: Epoch) -> dict[str, str]:
    run = "" if epoch.steps_of_run == epoch.steps else f"; {epoch.steps_of_run:,} in the whole run"
    ranks = "1 rank" if epoch.ranks == 1 else f"{epoch.ranks} ranks"
    seen = {"pictures": f"{epoch.pictures:,} in the examples of an epoch"} if epoch.pictures else {}
    return seen | {
        "tokens": f"{epoch.tokens:,} in {epoch.examples:,} example{'' if epoch.examples == 1 else 's'} of an epoch, "
        f"{share(epoch.supervised_tokens, epoch.tokens)} of them supervised",
        "packing": f"{epoch.rows:,.1f} rows of {epoch.row_tokens:,} tokens a step, {epoch.fill:.0%} full, on {ranks}",
        "epoch": f"{epoch.steps:,} step{'' if epoch.steps == 1 else 's'} of {epoch.global_batch:,} examples, "
        f"{epoch.tokens / epoch.steps:,.0f} tokens a step{run}",
    }
