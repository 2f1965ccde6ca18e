"""The contenders as they run: own processes, a tiny random Gemma 3, and losses that must agree."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from argparse import Namespace
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
from gemfleet.benchmarks.peers.data import Example, describe_batches
from gemfleet.benchmarks.peers.stats import loss_parity
from gemfleet.benchmarks.peers.suite import CONTENDERS, SUITE, chosen_contenders, contender_case, measure
from gemfleet.benchmarks.peers.task import Recipe, Task, write_initial_adapter
from gemfleet.benchmarks.shared.measuring import measure_all
from gemfleet.benchmarks.shared.record import Record, Run, read_records
from gemfleet.train.errors import UserError
from rich.console import Console
from support.places import REPOSITORY
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

pytestmark = pytest.mark.slow

VOCABULARY = 384
STEPS = 3


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    folder = tmp_path_factory.mktemp("peers")
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
    )
    Gemma3ForCausalLM(config).save_pretrained(folder / "model")
    # A high rate, so that a contender whose update differs is off by the next step.
    recipe = Recipe(precision="fp32", learning_rate=2e-2, lora_r=4, lora_alpha=8)
    write_initial_adapter(folder / "model", recipe, folder / "initial.safetensors")
    draw = random.Random(0)

    def example() -> Example:
        length = draw.randint(6, 24)
        tokens = tuple(draw.randrange(5, VOCABULARY) for _ in range(length))
        return Example("", "", tokens, draw.randint(1, length - 2))

    batches = tuple(tuple(example() for _ in range(4)) for _ in range(STEPS))
    return Task(
        model_folder=folder / "model",
        adapter_file=folder / "initial.safetensors",
        batches=batches,
        recipe=recipe,
        threads=1,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("records")


@pytest.fixture(scope="module")
def records(task: Task, folder: Path) -> list[Record]:
    config = {"threads": 1, "data": describe_batches(task.batches)}
    cases = [contender_case(name, config, 1) for name in ("plain", "gemfleet")]
    options = Namespace(repeat=1, out=folder, again=False)
    measuring = nullcontext(partial(measure, task))
    return measure_all("peers", cases, lambda: measuring, SUITE.results, options, Console(quiet=True))


def test_a_task_survives_its_file(task: Task) -> None:
    assert Task.model_validate_json(task.model_dump_json()) == task


def test_plain_and_gemfleet_take_the_same_steps(records: list[Record]) -> None:
    plain, gemfleet = (record.runs[0] for record in records)
    assert (plain.error, gemfleet.error) == (None, None)
    assert len(plain.losses) == STEPS
    assert max(loss_parity(gemfleet.losses, plain.losses).per_step) < 1e-4


def test_steps_are_timed_and_memory_is_measured(records: list[Record]) -> None:
    for record in records:
        assert all(0 < seconds < 60 for seconds in record.runs[0].step_seconds)
        assert 50 * 2**20 < record.runs[0].facts["peak_rss_bytes"] < 8 * 2**30


def test_records_hold_raw_times_and_their_summary_is_one_json_line(records: list[Record], folder: Path) -> None:
    stored = read_records(folder)
    assert sorted(record.case for record in stored) == ["gemfleet", "plain"]
    assert stored[0].runs[0].step_seconds == records[1].runs[0].step_seconds
    line = json.dumps(SUITE.summary(SUITE.side_by_side(records)))
    assert "\n" not in line
    assert json.loads(line)["results"]["gemfleet"]["counts"] is True


def test_a_contender_that_dies_is_reported_with_its_last_words(task: Task, tmp_path: Path) -> None:
    broken = task.model_copy(update={"model_folder": tmp_path / "nowhere"})
    case = contender_case("plain", {"data": describe_batches(task.batches)}, 1)
    with pytest.raises(UserError, match="ended with code 1 after 0 of 3 steps") as failed:
        measure(broken, case, Run(repeat=0, started_at=""), lambda text: None)
    assert "nowhere" in str(failed.value)


def test_unknown_contender_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"--contenders has nobody; choose from: gemfleet"):
        chosen_contenders("plain,nobody")


def test_without_trl_the_remedy_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemfleet.benchmarks.peers.suite.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"trl-default need TRL.*pip install 'gemfleet\[bench\]'"):
        chosen_contenders("plain,trl-default")


def test_both_module_names_run_from_the_repository() -> None:
    root = REPOSITORY
    for module in ("benchmarks", "gemfleet.benchmarks"):
        done = subprocess.run(
            [sys.executable, "-m", module, "peers", "--contenders", "nobody"], cwd=root, capture_output=True, text=True
        )
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith("Error: --contenders has nobody; choose from: " + ", ".join(CONTENDERS))
