"""Memory that runs out: while training, while evaluating, and in a probe. Each is told with the field to change."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.nullgpu.cases import STEPS, runs_out_of_memory
from support.nullgpu.commands import run, write_config
from support.nullgpu.device import PretendedGpu
from support.nullgpu.pools import Pools
from support.nullgpu.sparse_base import save_sparse_base
from support.tiny_tokenizer import tiny_tokenizer

pytestmark = [pytest.mark.nullgpu, pytest.mark.slow]

SMALL = PretendedGpu("a small GPU", gib=0.7)
LENGTH, ROWS = 2048, 32


def test_training_names_the_micro_batch(pools: Pools, small_model: str, tmp_path: Path) -> None:
    changes = {"batch": {"global": 256, "micro": 256}, "evaluation": {"every": "never", "micro": 1}}
    ((message, steps),) = pools.alone(1, SMALL).run(runs_out_of_memory, small_model, str(tmp_path), changes)
    assert message.startswith("out of memory with 256 rows in a pass")
    assert "lower train.batch.micro, for instance to 128" in message
    assert steps == STEPS


def test_an_evaluation_names_its_own_field(pools: Pools, small_model: str, tmp_path: Path) -> None:
    changes = {"evaluation": {"micro": 256}}
    ((message, steps),) = pools.alone(1, SMALL).run(runs_out_of_memory, small_model, str(tmp_path), changes)
    assert message.startswith("out of memory with 256 rows in a pass")
    assert "lower train.evaluation.micro, for instance to 128" in message
    assert steps == STEPS


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 1B's shape, and documents that fill a row each."""
    from gemfleet.train.planning import SIZES

    folder = tmp_path_factory.mktemp("probes")
    (folder / "model").mkdir()
    save_sparse_base(SIZES["1b"], folder / "model")
    tiny_tokenizer(folder / "model")
    text = "a" + " a" * (LENGTH - 100)
    (folder / "rows.jsonl").write_text(f'{{"text": "{text}"}}\n' * (2 * ROWS))
    return folder


@pytest.mark.parametrize(("gib", "rows"), [(15.8, {2, 3}), (79.2, {20}), (178.4, {ROWS})])
def test_probes_find_what_fits_and_the_run_then_does(workplace: Path, gib: float, rows: set[int]) -> None:
    """A 1B with rows of 2,048 tokens. Which size is the fastest, kernels that do nothing cannot tell."""
    name = f"probe-{gib:g}"
    config = write_config(
        workplace,
        name,
        data={"train": "rows.jsonl", "max_length": LENGTH},
        batch={"global": ROWS, "micro": "probe"},
        activation_checkpointing="off",
        evaluation={"every": "never"},
        max_steps=1,
        checkpoint={"every": "never"},
    )
    done = run(workplace, ["-m", "gemfleet.train", config, "--out", name], PretendedGpu(gib=gib))
    assert done.returncode == 0, done.stdout[-4000:]
    fitting = re.findall(r"ddp, (\d+) rows?: [\d.]+ of [\d.]+ GiB", done.stdout)
    assert max(map(int, fitting)) in rows, done.stdout[-4000:]
