"""Probes time the passes that the run will make, and judge memory by the worst there can be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gemfleet.train.batch_finder.probes.child import ProbeTask, task_line
from gemfleet.train.batch_finder.probes.probe import Probe
from gemfleet.train.batch_finder.setting import RankPlace, probe_tasks
from gemfleet.train.batch_finder.typical import TIMED_PASSES, typical_passes, typical_steps
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.config.sections.vision import VisionConfig
from gemfleet.train.interfaces import PackedRows
from gemfleet.train.local.source import LocalBlockSource
from support.picture_steps import SOFT_TOKENS, examples_with_pictures
from support.reference_step import examples
from support.tiny_model import save_tiny_gemma3
from support.tiny_multimodal import save_tiny_multimodal

CONFIG = TrainConfig.model_validate(
    {
        "model": "tiny",
        "data": {"train": "x.jsonl", "max_length": 40},
        "lora": {"r": 4},
        "precision": "fp32",
        "batch": {"global": 8, "micro": "probe"},
        "strategy": "ddp",
        "activation_checkpointing": "off",
    }
)


def source(ranks: int = 2) -> LocalBlockSource:
    return LocalBlockSource(examples(), {}, global_batch=8, max_length=40, seed=1, world_size=ranks)


def test_the_steps_are_those_of_the_rank_that_all_wait_for() -> None:
    steps = typical_steps(source(), CONFIG, 2)
    shares = [source().step(0, 0, rank).rows for rank in range(2)]
    slowest = max(shares, key=lambda rows: len(rows.tokens))
    (rows,) = steps
    assert [[tokens for tokens, *_ in row] for row in rows] == [
        lengths.tolist() for lengths in np.split(slowest.document_lengths, np.cumsum(slowest.row_documents)[:-1])
    ]
    assert sum(supervised for row in rows for _, supervised, _ in row) == slowest.supervised_tokens


@pytest.mark.parametrize("micro", [1, 2, 3])
def test_passes_hold_the_documents_that_the_runs_own_hold(micro: int) -> None:
    mine = source(ranks=1).step(0, 0, 0).rows
    own = [part.document_lengths.tolist() for part in mine.micro_batches(micro)]
    timed = typical_passes(typical_steps(source(ranks=1), CONFIG, 1), micro, vocabulary=512)
    found = [part.document_lengths.tolist() for part in timed]
    assert len(found) == min(TIMED_PASSES, len(own))
    assert (found[0], found[-1]) == (own[0], own[-1])  # the last of a step holds what is left
    assert all(part in own for part in found)
    first_tokens = [np.cumsum(part.document_lengths) - part.document_lengths for part in timed]
    assert not any(part.supervised[starts].any() for part, starts in zip(timed, first_tokens, strict=True))


def test_a_trial_times_those_and_measures_full_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = typical_steps(source(ranks=1), CONFIG, 1)
    folder = save_tiny_gemma3(tmp_path / "model")
    probe = Probe(CONFIG.with_micro(1), folder, 0, steps)
    seen: list[PackedRows] = []
    real = Probe._timed_pass

    def a_second_each(self: Probe, batch: PackedRows, supervised: int) -> float:
        seen.append(batch)
        real(self, batch, supervised)
        return 1.0

    monkeypatch.setattr(Probe, "_timed_pass", a_second_each)
    _, seconds = probe.measure(2)
    worst, *timed, last = seen
    assert len(worst.tokens) == len(last.tokens) == 2 * 40
    text = sum(len(batch.tokens) for batch in timed)
    assert text < len(timed) * 2 * 40
    assert seconds == pytest.approx(len(timed) * 2 * 40 / text)  # of as much text as two full rows hold


@pytest.mark.parametrize("cache", ["auto", "off"])
def test_rows_of_a_trial_hold_pictures_where_the_runs_rows_do(tmp_path: Path, cache: str) -> None:
    config = CONFIG.model_copy(update={"vision": VisionConfig.model_validate({"cache": cache})}).with_micro(1)
    block = examples_with_pictures()
    mine = LocalBlockSource(block, {}, global_batch=6, max_length=40, seed=1, world_size=1)
    steps = typical_steps(mine, config, 1)
    timed = typical_passes(steps, 9, vocabulary=512, soft_tokens=SOFT_TOKENS)
    assert sum(len(part.pictures) for part in timed) == len(block.pictures)
    probe = Probe(config, save_tiny_multimodal(tmp_path / "model"), 0, steps)
    worst = probe._worst_rows(2)
    assert len(worst.pictures) == 2 * max(len(row.pictures) for row in mine.step(0, 0, 0).rows.micro_batches(1)) > 0
    probe.measure(2)
    assert (probe._model.take_pictures_seen() > 0) == (cache == "off")


def test_the_steps_reach_a_probe_process() -> None:
    import json

    steps = typical_steps(source(), CONFIG, 2)
    (task,) = probe_tasks(CONFIG, [RankPlace("model", 0, 1, 0)], steps)
    again = ProbeTask(**json.loads(task_line(task)))
    ours, theirs = (typical_passes(kept, 1, vocabulary=512) for kept in (steps, again.steps))
    assert [part.supervised.tolist() for part in ours] == [part.supervised.tolist() for part in theirs]
