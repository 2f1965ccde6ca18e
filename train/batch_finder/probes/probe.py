"""One rank's part of a trial: real optimizer steps. The worst possible rows measure memory, the run's passes time."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch

from ...config.schema import TrainConfig
from ...device.abilities import DeviceFacts, current_device
from ...device.memory import peak_bytes, reset_peak
from ...interfaces import EMPTY_PASS, PackedRows
from ...model.gemma import TrainableModel
from ...strategies.base import Strategy
from ...worker import prepare_model
from ..typical import Steps, most_pictures, typical_passes
from .one_picture import KeptPicture, OnePicture


def worst_rows(
    rows: int, max_length: int, vocabulary: int, seed: int = 0, pictures: int = 0, soft_tokens: int = 0
) -> PackedRows:
    """Full rows of one document each, in which every token but the first is supervised, if it is no picture's.

    pictures: in each row, as many as it has room for at most, of so many soft tokens
    """
    tokens = np.random.default_rng(seed).integers(3, vocabulary, rows * max_length).astype(np.int32)
    supervised = np.ones(rows * max_length, np.bool_)
    supervised[::max_length] = False
    fitting = min(pictures, (max_length - 1) // soft_tokens) if pictures else 0
    starts = (np.arange(rows)[:, None] * max_length + 1 + np.arange(fitting) * soft_tokens).reshape(-1)
    supervised[(starts[:, None] + np.arange(soft_tokens)).reshape(-1)] = False
    shown = np.zeros(len(starts), np.int64), starts.astype(np.int64)
    return PackedRows(tokens, supervised, np.full(rows, max_length, np.int32), np.ones(rows, np.int32), *shown)


class Probe:
    """Loads a run's model under its strategy once, and measures one size after the other. Collective."""

    def __init__(self, config: TrainConfig, model_folder: Path, local_rank: int, steps: Steps = ()) -> None:
        """steps: steps of the run, whose passes are timed, equal on all ranks; none: full rows are timed"""
        facts = current_device(local_rank)
        self.device, self.device_name = facts.device, facts.name
        self._config, self._steps = config, steps
        self._pictures = most_pictures(steps)
        model, self._strategy = self._prepared(model_folder, facts)
        self._soft_tokens = 0 if model.sight is None else model.sight.soft_tokens
        self._vocabulary = int(model.peft_model.config.get_text_config().vocab_size)
        self._model = self._strategy.setup(model)
        self._step(1)  # makes the optimizer's state, which every later step has

    def _prepared(self, model_folder: Path, facts: DeviceFacts) -> tuple[TrainableModel, Strategy]:
        sees = self._pictures or self._config.vision.train != "none"
        pictures = OnePicture(model_folder) if sees else None
        model, strategy = prepare_model(self._config, model_folder, facts, pictures=pictures)
        if model.sight is not None and self._config.vision.cache != "off":
            model.sight.features = KeptPicture(model.sight.features)
        return model, strategy

    def measure(self, rows: int) -> tuple[int, float]:
        """The peak bytes of an optimizer step with passes of `rows` rows, and the seconds for a pass full of text."""
        reset_peak(self.device)
        seconds = self._step(rows)
        return peak_bytes(self.device), seconds

    @torch.no_grad()
    def measure_evaluation(self, rows: int) -> tuple[int, float]:
        """The same for a pass that scores `rows` rows."""
        reset_peak(self.device)
        batch = self._worst_rows(rows)
        self._strategy.passes(1)
        self._model.peft_model.eval()
        started = time.perf_counter()
        float(self._model.loss_sum(batch))
        seconds = time.perf_counter() - started
        self._model.peft_model.train()
        return peak_bytes(self.device), seconds

    def _step(self, rows: int) -> float:
        full = rows * self._config.data.max_length
        worst = self._worst_rows(rows)
        timed = typical_passes(self._steps, rows, self._vocabulary, soft_tokens=self._soft_tokens)
        # The last pass adds to gradients that exist, as all passes of a step but the first do.
        passes = [worst, *timed, worst]
        wanted = self._strategy.passes(len(passes))  # ranks that hold fewer rows may have more passes
        supervised = sum(batch.supervised_tokens for batch in passes)
        seconds = [self._timed_pass(batch, supervised) for batch in passes]
        for _ in range(wanted - len(passes)):
            self._timed_pass(EMPTY_PASS, supervised)
        self._strategy.reduce_gradients()
        self._strategy.clip(self._config.optim.max_grad_norm)
        self._strategy.step(0.0)
        if not timed:
            return min(seconds)
        return sum(seconds[1:-1]) * full / sum(len(batch.tokens) for batch in timed)

    def _worst_rows(self, rows: int) -> PackedRows:
        length = self._config.data.max_length
        return worst_rows(rows, length, self._vocabulary, pictures=self._pictures, soft_tokens=self._soft_tokens)

    def _timed_pass(self, batch: PackedRows, supervised: int) -> float:
        self._synchronize()
        started = time.perf_counter()
        self._strategy.backward(self._model.loss_sum(batch) / supervised)
        self._synchronize()
        return time.perf_counter() - started

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
