"""What a run would find to be wrong is found before it, all at once: by `--dry-run` and before Ray starts alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from gemfleet.launcher.cli import app, main
from gemfleet.launcher.run import check_inputs as inputs
from gemfleet.launcher.run.check_inputs import check_inputs
from gemfleet.train.config.deepspeed_check import check_deepspeed
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.errors import UserError
from gemfleet.train.model import hub_lookup
from support.tiny_model import save_tiny_gemma3
from support.tiny_tokenizer import tiny_tokenizer
from typer.testing import CliRunner


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    save_tiny_gemma3(folder / "model")
    tiny_tokenizer(folder / "model")
    (folder / "rows.jsonl").write_text(json.dumps({"text": "a cat"}) + "\n")
    return folder


def run_file(folder: Path, **train: Any) -> Path:
    values = {"model": str(folder / "model"), "data": {"train": str(folder / "rows.jsonl")}, **train}
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump({"train": values}))
    return path


@pytest.fixture
def dry_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[Path], str]:
    """What a person is told of a file, with exit code 2."""

    def refused(path: Path) -> str:
        monkeypatch.setattr("sys.argv", ["gemfleet", "train", str(path), "--dry-run"])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        return capsys.readouterr().err

    return refused


def test_a_dry_run_tells_all_problems_at_once(workplace: Path, dry_run: Callable[[Path], str]) -> None:
    data = {"train": str(workplace / "gone.jsonl"), "eval": str(workplace / "rows.jsonl"), "format": "messages"}
    path = run_file(workplace, model=str(workplace / "nowhere"), data=data)
    said = dry_run(path)
    assert "error: 3 problems:" in said
    assert "nowhere', which is not a folder" in said
    assert "gone.jsonl does not exist" in said
    assert "has no column 'messages'; its columns are 'text'" in said


@pytest.mark.parametrize(
    ("train", "sentence"),
    [
        ({"lora": {"target_modules": ["q_proj", "qkv_proj"]}}, "names 'qkv_proj', but the model has no linear layer"),
        ({"data": {"train": "rows.csv"}}, "rows.csv does not exist"),
        ({"data": {"train": "demo:klingon"}}, "no language 'klingon'"),
        ({"data": {"train": "demo", "max_length": 5000}}, "max_length is 5000, but the model"),
    ],
)
def test_a_dry_run_tells_a_single_problem_in_a_sentence(
    workplace: Path, dry_run: Callable[[Path], str], train: dict[str, Any], sentence: str
) -> None:
    assert sentence in dry_run(run_file(workplace, **train))


def test_a_dry_run_of_what_would_run_prints_the_plan(workplace: Path) -> None:
    done = CliRunner().invoke(app, ["train", str(run_file(workplace)), "--dry-run"])
    assert done.exit_code == 0, done.output
    assert "adapters" in done.output


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception | None], None]:
    """A hub that answers every question in the given way."""
    import huggingface_hub

    def answers(error: Exception | None) -> None:
        def ask(self: Any, name: str, timeout: float) -> None:
            if error is not None:
                raise error

        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", ask)
        monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", ask)

    return answers


def test_an_id_is_looked_up_on_the_hub(workplace: Path, hub: Callable[[Exception | None], None]) -> None:
    from huggingface_hub.errors import HFValidationError

    train = {"model": "nobody/no-such-model", "data": {"train": "nobody/no-such-rows"}}
    config = TrainConfig.model_validate(train)
    hub(None)
    check_inputs(config)
    for error, sentence in (
        (HFValidationError("no"), "nor a Hugging Face id that exists"),
        (OSError("no network"), "and Hugging Face cannot be reached"),
    ):
        hub(error)
        with pytest.raises(UserError, match=rf"2 problems:\n  train\.model .*{sentence}.*\n  train\.data .*{sentence}"):
            check_inputs(config)


def test_data_that_was_fetched_before_needs_no_hub(
    tmp_path: Path, hub: Callable[[Exception | None], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from datasets import config

    hub(OSError("no network"))
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(UserError, match="cannot be reached"):
        hub_lookup.look_up_data("some/rows")
    (tmp_path / "some___rows").mkdir()
    hub_lookup.look_up_data("some/rows")


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (
            {"zero_optimisation": {}},
            "'zero_optimisation', which DeepSpeed does not know; did you mean 'zero_optimi",
        ),
        ({"zero_optimization": {"stag": 3}}, "refused by DeepSpeed: stag: Extra inputs are not permitted"),
        ({"zero_optimization": {"reduce_bucket_size": -4}}, "reduce_bucket_size: Input should be greater than 0"),
        ({"zero_optimization": {"overlap_comm": "maybe"}}, "overlap_comm: Input should be a valid boolean"),
    ],
)
def test_a_deepspeed_configuration_is_read_as_deepspeed_does(config: dict[str, Any], sentence: str) -> None:
    pytest.importorskip("deepspeed")
    values = {"model": "demo", "data": {"train": "demo"}, "strategy": "deepspeed", "deepspeed": {"config": config}}
    with pytest.raises(UserError, match=sentence):
        check_deepspeed(TrainConfig.model_validate(values))
    check_deepspeed(TrainConfig.model_validate({**values, "strategy": "ddp"}))


def test_deepspeeds_own_keys_are_known() -> None:
    pytest.importorskip("deepspeed")
    config = {
        "steps_per_print": 100,
        "wall_clock_breakdown": False,
        "communication_data_type": "fp32",
        "activation_checkpointing": {"partition_activations": False},
        "comms_logger": {"enabled": False},
        "zero_optimization": {"stage": 2, "overlap_comm": True, "reduce_bucket_size": 1000},
        "train_batch_size": "auto",
        "gradient_clipping": "auto",
        "prescale_gradients": False,
    }
    values = {"model": "demo", "data": {"train": "demo"}, "strategy": "deepspeed", "deepspeed": {"config": config}}
    check_deepspeed(TrainConfig.model_validate(values))


def test_the_checks_of_a_dry_run_are_those_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both call one function, and it asks everything even after a first problem."""
    asked = []

    def check(name: str) -> Callable[[], None]:
        def ask() -> None:
            asked.append(name)
            raise UserError(name)

        return ask

    with pytest.raises(UserError, match="2 problems:\n  one\n  two"):
        inputs.tell_all([check("one"), check("two")])
    assert asked == ["one", "two"]
