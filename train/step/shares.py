"""Gives each rank a share of a step's tokens by its measured speed, for `train.batch.shares: speed`.

All ranks see all speeds, so all decide alike. A change that follows from a step holds from the step after the next,
whose rows nobody has fetched yet. It is an entry of the history, so a resumed run goes on with the same shares.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..config.schema import TrainConfig
from ..interfaces import Shares, StepRows
from ..kernels.loss import SupervisedCrossEntropy
from .throughput import SpanTimer

log = logging.getLogger("gemfleet.train")
MEAN = 1000  # the weight of a rank of mean speed
MEASURED_STEPS = 2  # before a change; the first step of a process warms up and does not count
NEWEST = 0.3  # how much the newest step counts in a rank's speed
WORTH = 0.08  # shares change if one of them would change by more than this part of itself
Entry = dict[str, Any]


class EqualShares:
    """Shares that never change: those of a single rank, and of `train.batch.shares: equal`."""

    equal_passes = False  # whether a rank's rows are spread over all passes that it must run

    def of_step(self, index: int) -> Shares | None:
        """The shares of a step, by its index from 0; None: equal ones."""
        return None

    def restore(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Takes the shares from the history of a run that goes on. Shares of another number of ranks do not count."""

    def start(self) -> None:
        """This rank's passes begin."""

    def stop(self, tokens: int) -> None:
        """Its passes have ended. tokens: of text in them"""

    def places(self) -> list[float]:
        """The summand of this rank for the step's reduction: a number for each rank, 0 for all others."""
        return []

    def observe(self, index: int, step: StepRows, speeds: Sequence[float]) -> Entry | None:
        """Takes the sum of all `places` of a step. Returns the history's new entry, if the shares change."""
        return None


class SpeedShares(EqualShares):
    """Shares in proportion to speed: tokens per second of each rank's own passes.

    If ranks must run equally many passes, they wait for each other in every layer. Then the loss is timed alone, which
    waits for nobody.
    """

    def __init__(
        self, config: TrainConfig, device: torch.device, criterion: SupervisedCrossEntropy, rank: int, world_size: int
    ) -> None:
        self.equal_passes = config.strategy != "ddp"
        self._strategy, self._max_length = config.strategy, config.data.max_length
        self._rank, self._world_size = rank, world_size
        self._timer = SpanTimer(device)
        self._tokens, self._steps = 0, 0
        self._speeds = [0.0] * world_size
        self._changes: list[tuple[int, Shares]] = []
        self._said_no_gain = False
        if self.equal_passes:
            self._time_loss(criterion)

    def of_step(self, index: int) -> Shares | None:
        return next((shares for first, shares in reversed(self._changes) if first <= index), None)

    def restore(self, history: Sequence[Mapping[str, Any]]) -> None:
        found = [(entry["shares_from_step"] - 1, tuple(entry["shares"])) for entry in history if "shares" in entry]
        self._changes = [(first, self._shares(weights)) for first, weights in found if len(weights) == self._world_size]

    def start(self) -> None:
        if not self.equal_passes:
            self._timer.start()

    def stop(self, tokens: int) -> None:
        if not self.equal_passes:
            self._timer.stop()
            self._tokens = tokens

    def places(self) -> list[float]:
        tokens, self._tokens = self._tokens, 0
        speed = tokens / max(1e-9, self._timer.take_seconds())
        return [speed if rank == self._rank else 0.0 for rank in range(self._world_size)]

    def observe(self, index: int, step: StepRows, speeds: Sequence[float]) -> Entry | None:
        self._steps += 1
        if self._steps == 1:
            return None
        self._speeds = [smoothed(old, new) for old, new in zip(self._speeds, speeds, strict=True)]
        change = self._change(index + 2) if self._steps > MEASURED_STEPS else None
        if change and self.equal_passes and 2 * step.step_tokens > step.step_examples * self._max_length:
            self._say_no_gain()
        return change

    def _say_no_gain(self) -> None:
        """Once in a process, and on one rank for all."""
        if self._rank == 0 and not self._said_no_gain:
            log.info("%s", NO_GAIN.format(strategy=self._strategy, length=self._max_length))
        self._said_no_gain = True

    def _change(self, first: int) -> Entry | None:
        """New shares from the step with the index `first`, if that is worth a change."""
        if not all(self._speeds):
            return None  # a rank without rows has shown no speed yet
        mean = sum(self._speeds) / len(self._speeds)
        weights = tuple(max(1, round(MEAN * speed / mean)) for speed in self._speeds)
        before = self._changes[-1][1].weights if self._changes else (MEAN,) * len(weights)
        if all(abs(new - old) <= WORTH * old for new, old in zip(weights, before, strict=True)):
            return None
        self._changes.append((first, self._shares(weights)))
        self._steps = 1
        return {"shares": list(weights), "shares_from_step": first + 1}

    def _shares(self, weights: tuple[int, ...]) -> Shares:
        return Shares(weights, self.equal_passes)

    def _time_loss(self, criterion: SupervisedCrossEntropy) -> None:
        compute = criterion.losses_and_gradient

        def timed(hidden: Tensor, targets: Tensor, wants_gradient: bool) -> tuple[Tensor, Tensor | None]:
            if not wants_gradient:  # an evaluation's
                return compute(hidden, targets, wants_gradient)
            self._timer.start()
            found = compute(hidden, targets, wants_gradient)
            self._timer.stop()
            self._tokens += len(targets)
            return found

        criterion.losses_and_gradient = timed  # type: ignore[method-assign]


NO_GAIN = (
    "train.batch.shares is speed, but under {strategy} all ranks run equally many passes, and these examples nearly "
    "fill rows of {length} tokens: a slower rank's passes can hardly be shorter, so this gains little"
)


def shares_of(
    config: TrainConfig, device: torch.device, criterion: SupervisedCrossEntropy, rank: int, world_size: int
) -> EqualShares:
    """What decides on the shares of this run's ranks."""
    if config.batch.shares == "equal" or world_size == 1:
        return EqualShares()
    return SpeedShares(config, device, criterion, rank, world_size)


def smoothed(old: float, new: float) -> float:
    """A rank's speed. A step in which it had no tokens (0) tells nothing."""
    return NEWEST * new + (1 - NEWEST) * old if old and new else old or new


def sentence_of(entry: Entry) -> str:
    """A change for people."""
    most, least = max(entry["shares"]) / MEAN, min(entry["shares"]) / MEAN
    return (
        f"from step {entry['shares_from_step']} on, ranks get shares by their speed: of the mean share, the fastest "
        f"gets {most:.2f} and the slowest {least:.2f}"
    )
