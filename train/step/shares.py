"""Gives each rank a share of a step's tokens by its measured speed, for `train.batch.shares: speed`.

All ranks see all speeds, so all decide alike. A change that follows from a step holds from the step after the next,
whose rows nobody has fetched yet. It is an entry of the history, so a resumed run goes on with the same shares.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ..config.schema import TrainConfig
from ..interfaces import Shares, StepRows
from .throughput import PassTimer, products_per_second

log = logging.getLogger("gemfleet.train")
MEAN = 1000  # the weight of a rank of mean speed
MEASURED_STEPS = 2  # before a change; the first step of a process warms up and does not count
NEWEST = 0.3  # how much the newest step counts in a rank's speed
WORTH = 0.08  # shares change if one of them would change by more than this part of itself
WORTH_AGAIN = 0.25  # the same when a run goes on, and its ranks have measured themselves anew before the first step
Entry = dict[str, Any]


class EqualShares:
    """Shares that never change: those of a single rank, and of `train.batch.shares: equal`."""

    equal_passes = False  # whether a rank's rows are spread over all passes that it must run

    def of_step(self, index: int) -> Shares | None:
        """The shares of a step, by its index from 0; None: equal ones."""
        return None

    def begin(
        self, history: Sequence[Mapping[str, Any]], step: int, sum_over_ranks: Callable[[list[float]], list[float]]
    ) -> Entry | None:
        """Takes the shares of a run that has done `step` steps from its history. Collective.

        Returns the history's new entry, if the shares change now.
        """
        return None

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
    """Shares in proportion to speed.

    Each step measures the ranks' tokens per second, unless they must run equally many passes: then they wait for each
    other in every layer, and each measures its own matrix products before the first step.
    """

    def __init__(self, config: TrainConfig, device: torch.device, rank: int, world_size: int) -> None:
        self.equal_passes = config.strategy != "ddp"
        self._strategy, self._max_length = config.strategy, config.data.max_length
        self._rank, self._world_size, self._device = rank, world_size, device
        self._timer = PassTimer(device)
        self._tokens, self._steps = 0, 0
        self._speeds = [0.0] * world_size
        self._changes: list[tuple[int, Shares]] = []

    def of_step(self, index: int) -> Shares | None:
        return next((shares for first, shares in reversed(self._changes) if first <= index), None)

    def begin(
        self, history: Sequence[Mapping[str, Any]], step: int, sum_over_ranks: Callable[[list[float]], list[float]]
    ) -> Entry | None:
        """Shares of another number of ranks do not count."""
        found = [(entry["shares_from_step"] - 1, tuple(entry["shares"])) for entry in history if "shares" in entry]
        self._changes = [(first, self._shares(weights)) for first, weights in found if len(weights) == self._world_size]
        if not self.equal_passes:
            return None
        speeds = sum_over_ranks(self._own(products_per_second(self._device)))
        return self._change(step, speeds, WORTH_AGAIN if self._changes else WORTH)

    def start(self) -> None:
        self._timer.start()

    def stop(self, tokens: int) -> None:
        self._timer.stop()
        self._tokens = tokens

    def places(self) -> list[float]:
        return self._own(self._tokens / max(1e-9, self._timer.seconds()))

    def observe(self, index: int, step: StepRows, speeds: Sequence[float]) -> Entry | None:
        self._steps += 1
        if self.equal_passes:
            if self._steps == 1 and self._changes and 2 * step.step_tokens > step.step_examples * self._max_length:
                log.info("%s", NO_GAIN.format(strategy=self._strategy, length=self._max_length))
            return None
        if self._steps == 1:
            return None
        self._speeds = [smoothed(old, new) for old, new in zip(self._speeds, speeds, strict=True)]
        return self._change(index + 2, self._speeds, WORTH) if self._steps > MEASURED_STEPS else None

    def _change(self, first: int, speeds: Sequence[float], worth: float) -> Entry | None:
        """New shares from the step with the index `first`, if that is worth a change."""
        if not all(speeds):
            return None  # a rank without rows has shown no speed yet
        weights = tuple(max(1, round(MEAN * speed * len(speeds) / sum(speeds))) for speed in speeds)
        before = self._changes[-1][1].weights if self._changes else (MEAN,) * len(speeds)
        if all(abs(new - old) <= worth * old for new, old in zip(weights, before, strict=True)):
            return None
        self._changes.append((first, self._shares(weights)))
        self._steps = min(self._steps, 1)
        return {"shares": list(weights), "shares_from_step": first + 1}

    def _shares(self, weights: tuple[int, ...]) -> Shares:
        return Shares(weights, self.equal_passes)

    def _own(self, value: float) -> list[float]:
        return [value if rank == self._rank else 0.0 for rank in range(self._world_size)]


NO_GAIN = (
    "train.batch.shares is speed, but under {strategy} all ranks run equally many passes, and these examples nearly "
    "fill rows of {length} tokens: a slower rank's passes can hardly be shorter, so this gains little"
)


def shares_of(config: TrainConfig, device: torch.device, rank: int, world_size: int) -> EqualShares:
    """What decides on the shares of this run's ranks."""
    if config.batch.shares == "equal" or world_size == 1:
        return EqualShares()
    return SpeedShares(config, device, rank, world_size)


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
