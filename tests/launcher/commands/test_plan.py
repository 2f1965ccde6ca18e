"""`gemfleet plan`, through the real command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from gemfleet.launcher.cli import app, main
from gemfleet.launcher.plan.sweep_table import sweep_table
from gemfleet.train.config.schema import ActivationCheckpointing
from gemfleet.train.config.schema import Quantization as ConfigQuantization
from gemfleet.train.errors import UserError
from gemfleet.train.planning import GPUS, SIZES, Workload
from gemfleet.train.planning.options import Checkpointing, Quantization
from support.places import REPOSITORY
from typer.testing import CliRunner


def output_of(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["plan", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def json_of(*arguments: str) -> Any:
    return json.loads(output_of(*arguments, "--json"))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("gpus", [1, 8, 512])
def test_every_size_on_every_gpu(size: str, gpus: int) -> None:
    for gpu in GPUS:
        report = json_of("--model", size, "--gpus", str(gpus), "--gpu", gpu)
        parts = report["chosen"]["memory_bytes"]
        assert parts["total"] == sum(value for name, value in parts.items() if name != "total")
        assert report["chosen"]["reason"]
        assert len(report["strategies"]) == (1 if gpus == 1 else 5)


def test_the_table_names_the_choice_and_why() -> None:
    text = output_of("--model", "27b", "--gpus", "8", "--gpu", "h200")
    assert "ddp *" in text
    assert "chosen: ddp: the whole base fits on every rank" in text
    assert "no speed of several GPUs was measured" in text


def test_a_configuration_is_read_and_options_come_first(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "train:\n  model: google/gemma-3-4b-it\n  data: {train: x.jsonl, max_length: 512}\n"
        "  batch: {global: 64, micro: 4}\n  lora: {r: 8}\n  quantization: int8\n  activation_checkpointing: full\n"
    )
    report = json_of(str(file))
    assert report["model"]["name"] == "4b"
    wanted = {"length": 512, "micro": 4, "global_batch": 64, "lora_rank": 8, "quantization": "int8"}
    assert {name: report["workload"][name] for name in wanted} == wanted
    assert report["chosen"]["activation_checkpointing"] == "full"
    changed = json_of(str(file), "--micro", "1", "--quantization", "none", "--model", "1b")
    assert (changed["workload"]["micro"], changed["workload"]["quantization"]) == (1, "none")
    assert changed["model"]["name"] == "1b"


def test_a_configuration_that_names_only_model_and_data_gets_the_plans_rows(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("train:\n  model: google/gemma-3-4b-it\n  data: {train: x.jsonl}\n")
    roomy, tight = json_of(str(file), "--gpus", "4"), json_of(str(file), "--gpu", "rtx4090")
    assert (roomy["workload"]["micro"], tight["workload"]["micro"]) == (8, 2)
    assert "8 rows in a pass by the plan: a pass holds all rows" in " ".join(roomy["notes"])
    assert "4 rows would take" in " ".join(tight["notes"])
    assert all(report["chosen"]["fits"] for report in (roomy, tight))
    assert roomy["chosen"]["memory_bytes"]["total"] > 1.2 * tight["chosen"]["memory_bytes"]["total"]
    assert json_of(str(file), "--micro", "3")["workload"]["micro"] == 3


@pytest.mark.parametrize(("workers", "gpus"), [("4", 4), ("{min: 2, max: 8}", 2), ("auto", 1)])
def test_a_configurations_workers_are_the_gpus_unless_they_are_given(tmp_path: Path, workers: str, gpus: int) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"train: {{model: google/gemma-3-1b-it, data: {{train: x}}}}\ncluster: {{workers: {workers}}}\n")
    assert json_of(str(file))["fleet"]["ranks"] == gpus
    assert json_of(str(file), "--gpus", "3")["fleet"]["ranks"] == 3


def test_a_gpu_without_bf16_computes_in_fp32() -> None:
    report = json_of("--model", "270m", "--gpu", "t4")
    assert report["workload"]["dtype"] == "fp32"
    assert "no bf16" in report["notes"][0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "nothing to plan for"),
        (["--model", "7b"], "--model is '7b'; give one of 270m"),
        (["--model", "1b", "--gpu", "abacus"], "--gpu is 'abacus'; give one of t4"),
        (["--model", "1b", "--gpus", "513"], "--gpus is 513; give a number from 1 to 512"),
        (["--model", "1b", "--gpus", "6", "-c", "4"], "6 GPUs do not form groups of 4; give --gpus as a multiple of 4"),
        (["--model", "4b", "--gpus", "4", "-c", "2", "--pictures"], "or give --context-parallel 1"),
        (["--sweep", "-m", "4b", "--json"], "it takes no --model and no --json; leave out one or the other"),
        (["--sweep", "-n", "4", "--gpu", "h200", "-c", "auto"], "no --gpu and no --gpus and no --context-parallel;"),
    ],
)
def test_wrong_input_is_one_sentence_and_code_2(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["gemfleet", "plan", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error


@pytest.mark.parametrize("asked", ["train.batch.shares: speed", "cluster.gpu_kind: any"])
def test_no_passes_are_shared_where_shares_follow_speed(tmp_path: Path, asked: str) -> None:
    """Nor does a remedy name that, which would be refused."""
    file, (section, field) = tmp_path / "run.yaml", asked.split(".", 1)
    batch = f", batch: {{{field.partition('.')[2]}}}" if section == "train" else ""
    cluster = f"cluster: {{{field}}}\n" if section == "cluster" else ""
    file.write_text(
        f"train: {{model: google/gemma-3-12b-it, data: {{train: x, max_length: 131072}}{batch}}}\n{cluster}"
    )
    fleet = ("--gpus", "8", "--gpu", "a100-80")
    assert "set train.context_parallel to" in json_of("-m", "12b", "-l", "131072", *fleet)["chosen"]["reason"]
    reason = json_of(str(file), *fleet)["chosen"]["reason"]
    assert "nothing fits" in reason
    assert "context_parallel" not in reason
    refused = CliRunner().invoke(app, ["plan", str(file), *fleet, "-c", "8"])
    assert isinstance(refused.exception, UserError)
    assert "GPUs get shares by their speed" in str(refused.exception)


def test_the_table_of_the_documentation_is_what_the_command_prints() -> None:
    """Print it again with `gemfleet plan --sweep` after a change of the plan."""
    written = (REPOSITORY / "docs" / "plan-table.md").read_text()
    assert written.endswith(sweep_table(Workload()))


def test_the_words_are_those_of_the_configuration() -> None:
    assert set(get_args(Quantization)) == set(get_args(ConfigQuantization))
    assert set(get_args(Checkpointing)) == set(get_args(ActivationCheckpointing))
