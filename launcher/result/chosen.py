"""Chooses the checkpoint that is published: the best by evaluation loss, the last, or the one that a person names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gemfleet.cluster.checkpoint_store.manifest import Manifest, least
from gemfleet.cluster.checkpoint_store.shelf import Shelf
from gemfleet.cluster.errors import StoreError
from gemfleet.launcher.config.schema import PublishedStep
from gemfleet.train.checkpoint.state import TRAINER_STATE_FILE
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.errors import UserError
from gemfleet.train.step.history import evaluation_losses
from gemfleet.train.step.schedule import is_due

METRIC = "eval_loss"


def asked_checkpoint(step: str) -> PublishedStep:
    """What a person gives as `--step`. Raises UserError unless it is `best`, `last` or a number of steps."""
    if step == "best":
        return "best"
    if step == "last":
        return "last"
    if not step.isdecimal():
        raise UserError(f"--step is {step!r}; give a number of steps, `best` or `last`")
    return int(step)


@dataclass(frozen=True)
class Chosen:
    """step: of the checkpoint; eval_loss: its own, None where it was not evaluated; reason: a sentence for people"""

    step: int
    eval_loss: float | None
    reason: str


@dataclass(frozen=True)
class Picked:
    """folder: of the chosen checkpoint, on this machine; history: the newest checkpoint's `trainer_state.json`"""

    chosen: Chosen
    folder: Path
    history: bytes


def choose(
    manifests: Sequence[Manifest], asked: PublishedStep, total_steps: int, before: float | None = None
) -> Chosen | None:
    """The checkpoint to publish; None where there is none, or not the one that `asked` names.

    manifests: by ascending step; total_steps: of the whole run; before: the evaluation loss before the first step
    """
    if not manifests:
        return None
    last, best = manifests[-1], least(manifests, METRIC)
    if isinstance(asked, int):
        named = next((m for m in manifests if m.step == asked), None)
        return None if named is None else _chosen(named, total_steps, f"as asked{_other(last, named)}")
    if asked == "last":
        return _chosen(last, total_steps, f"the last{_other(best, last, 'lowest')}")
    if best is None:
        return _chosen(last, total_steps, "the last, as none has an evaluation loss")
    loss = best.metrics[METRIC]
    worse = f"; before training it was lower: {before:.4f}" if before is not None and before < loss else ""
    return _chosen(best, total_steps, f"lowest evaluation loss {loss:.4f}{_other(last, best)}{worse}")


def _chosen(manifest: Manifest, total_steps: int, why: str) -> Chosen:
    return Chosen(manifest.step, manifest.metrics.get(METRIC), f"step {manifest.step} of {total_steps}: {why}")


def _other(other: Manifest | None, chosen: Manifest, name: str = "last") -> str:
    """The evaluation loss of another checkpoint beside the chosen one, in brackets; empty where it is the same."""
    if other is None or other.step == chosen.step:
        return ""
    loss = other.metrics.get(METRIC)
    return f" ({name}: {f'{loss:.4f} at' if loss is not None else 'not evaluated,'} step {other.step})"


def refuse_unsaved(asked: PublishedStep, train: TrainConfig, steps_per_epoch: int) -> None:
    """Raises UserError if `output.checkpoint` names a step of which no checkpoint will be saved."""
    if not isinstance(asked, int):
        return
    total, every = train.total_steps(steps_per_epoch), train.checkpoint.every
    if asked > total:
        raise UserError(
            f"output.checkpoint is {asked}, but the run has {total} steps; give a smaller step, best or last"
        )
    if asked < total and not is_due(every, asked, steps_per_epoch):
        raise UserError(
            f"output.checkpoint is {asked}, but train.checkpoint.every is {every}, which saves no checkpoint at that "
            "step; let it be a number that divides the step"
        )


def pick(shelf: Shelf, asked: PublishedStep) -> tuple[Picked, list[str]]:
    """The checkpoint that `asked` means among those whose files verify, and a sentence for each that is passed over.

    Raises StoreError where none is whole, and where the one that `asked` names is missing or damaged.
    """
    newest, damaged = shelf.newest_verified()
    if newest is None:
        raise StoreError(f"there is no checkpoint that verifies ({'; '.join(damaged) or 'none at all'})")
    state = (shelf.at_hand(newest.step) / TRAINER_STATE_FILE).read_bytes()
    history = json.loads(state)
    before = next((loss for _, loss in evaluation_losses(history["log_history"])), None)
    left = shelf.manifests()
    steps = ", ".join(str(manifest.step) for manifest in left)
    while (chosen := choose(left, asked, history["max_steps"], before)) is not None:
        manifest = next(m for m in left if m.step == chosen.step)
        problem = None if manifest == newest else shelf.problem(manifest)
        if problem is None:
            return Picked(chosen, shelf.at_hand(chosen.step), state), list(dict.fromkeys(damaged))
        damaged.append(f"checkpoint-{chosen.step}: {problem}")
        left.remove(manifest)
    why = next((text for text in damaged if text.startswith(f"checkpoint-{asked}:")), f"there are: {steps}")
    raise StoreError(f"there is no whole checkpoint of step {asked} ({why})")
