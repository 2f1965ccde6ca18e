"""Describes a search for people and programs."""

from __future__ import annotations

from .finder import Found
from .probes.trial import Trial


def trial_line(variant: str, trial: Trial) -> str:
    """`ddp, 4 rows: 3.10 of 8.00 GiB on rank 1 (10.0.0.2), 2.41 s a pass`"""
    what = "evaluation of " if trial.evaluation else ""
    head = f"{variant}, {what}{trial.rows} row{'s' if trial.rows > 1 else ''}: "
    if trial.failure is not None:
        return head + f"no measurement ({trial.failure}): {trial.message}"
    rank = trial.tightest
    verdict = "" if trial.fits else "does not fit: "
    memory = f"{rank.peak_bytes / 2**30:.2f} of {rank.usable_bytes / 2**30:.2f} GiB on rank {rank.rank} ({rank.node})"
    return f"{head}{verdict}{memory}, {trial.seconds:.2f} s a pass"


def trial_facts(variant: str, trial: Trial) -> dict[str, object]:
    """The trial for programs. Memory in bytes."""
    facts: dict[str, object] = {"variant": variant, "rows": trial.rows, "fits": trial.fits}
    facts["evaluation"] = trial.evaluation
    if trial.failure is not None:
        return facts | {"failure": str(trial.failure)}
    rank = trial.tightest
    return facts | {
        "tightest_rank": rank.rank,
        "node": rank.node,
        "peak_bytes": rank.peak_bytes,
        "usable_bytes": rank.usable_bytes,
        "pass_seconds": trial.seconds,
    }


def table(found: Found) -> list[str]:
    """A line for each size that fits. The chosen one is marked."""
    width = max(16, *(len(candidate.variant) for candidate in found.candidates))
    lines = [f"{'variant':{width}} {'rows':>5} {'tokens/s':>10} {'peak GiB':>9}"]
    for candidate in found.candidates:
        mark = "  <- chosen" if candidate == found.choice else ""
        gib = candidate.peak_bytes / 2**30
        lines.append(f"{candidate.variant:{width}} {candidate.rows:5} {candidate.speed:10,.0f} {gib:9.2f}{mark}")
    return lines


def found_sentences(found: Found, evaluation_asked: int | None) -> list[str]:
    """The choice, then what else a person should know. evaluation_asked: `train.evaluation.micro`"""
    choice, least = found.choice, found.tightest
    sentences = [f"micro-batch {choice.rows} ({choice.variant}) after {found.trials} trials"]
    if least is not None:
        gib = least.usable_bytes / 2**30
        sentences.append(
            f"memory differs between ranks: rank {least.rank} on {least.node} has the least, {gib:.2f} GiB less the "
            "margin, and decides for all"
        )
    if found.cut_short:
        sentences.append("the search ended early: the run could not earn back more of it")
    asked = evaluation_asked or choice.rows
    if 0 < found.evaluation_rows < asked:
        sentences.append(f"an evaluation of {asked} rows does not fit: it goes in passes of {found.evaluation_rows}")
    return sentences
