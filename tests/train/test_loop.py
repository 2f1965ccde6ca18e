"""The loop: the recipe does not depend on how it is cut, and an interrupted run ends where a whole one does."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from gemfleet.launcher.result.card.model_card import _settings
from gemfleet.train.checkpoint.lineage import Lineage
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.data.digest import example_digests, run_digest
from gemfleet.train.data.mixture import Mixture
from gemfleet.train.data.packing import TokenBlock
from gemfleet.train.errors import NonFiniteLossError, UserError
from gemfleet.train.interfaces import PackedRows, WriteCheckpoint
from gemfleet.train.local.source import LocalBlockSource
from gemfleet.train.loop import Trainer
from gemfleet.train.model.gemma import attach_lora
from gemfleet.train.step.outcome import TrainResult
from gemfleet.train.strategies import build_strategy
from safetensors.torch import load_file
from support.reference_step import examples
from support.tiny_model import save_tiny_gemma3, tiny_gemma3

pytestmark = pytest.mark.slow


class MemoryReporter:
    """Keeps checkpoints in a folder and records in a list; asks to stop after a given step."""

    def __init__(self, folder: Path, stop_after: int | None = None) -> None:
        self.folder, self.stop_after = folder, stop_after
        self.records: list[dict[str, Any]] = []
        self.saved: list[int] = []
        self.phases: list[str] = []
        self.pending: Callable[[], None] | None = None

    def log_step(self, record: Mapping[str, Any]) -> None:
        self.records.append(dict(record))

    def progress(self, phase: str) -> None:
        self.phases.append(phase)

    def tell(self, kind: str, sentence: str, facts: Mapping[str, Any]) -> None:
        raise AssertionError("no events here")

    def save_checkpoint(self, step: int, write: WriteCheckpoint | None, metrics: Mapping[str, float]) -> None:
        """Written only at the next save or at the end, as behind a slow head: it must be of this step all the same."""
        assert write is not None
        self.write_pending()
        self.pending = partial(write, self.folder / f"checkpoint-{step}")
        self.saved.append(step)

    def write_pending(self) -> None:
        if self.pending is not None:
            self.pending()
        self.pending = None

    def finish(self) -> None:
        self.write_pending()
        self.records.append({"kind": "finished"})

    def latest_checkpoint(self, destination: Path) -> Path | None:
        steps = [int(p.name.removeprefix("checkpoint-")) for p in self.folder.glob("checkpoint-*")]
        return self.folder / f"checkpoint-{max(steps)}" if steps else None

    def should_stop(self) -> bool:
        steps = [r["step"] for r in self.records if r["kind"] == "step"]
        return self.stop_after is not None and len(steps) + 1 >= self.stop_after

    def losses(self) -> list[float]:
        return [r["loss"] for r in self.records if r["kind"] == "step"]


def config(**changes: Any) -> TrainConfig:
    values = {
        "model": "tiny",
        "data": {"train": "x.jsonl", "max_length": 64},
        "lora": {"r": 4, "dropout": 0.1},
        "batch": {"global": 3, "micro": 1},
        "strategy": "ddp",
        "activation_checkpointing": "off",
        "optim": {"learning_rate": 0.02},
        "epochs": 2.0,
        "precision": "fp32",
    }
    return TrainConfig.model_validate({**values, **changes})


def source(train: TrainConfig) -> LocalBlockSource:
    held_out = examples(seed=1)
    return LocalBlockSource(
        examples(), {"eval": held_out}, global_batch=train.batch.global_, max_length=64, seed=train.seed, world_size=1
    )


def trainer(train: TrainConfig, reporter: MemoryReporter, work: Path, block_source: Any = None) -> Trainer:
    work.mkdir(exist_ok=True)
    model = attach_lora(tiny_gemma3().requires_grad_(False), train.lora, train.seed, "tiny")
    return Trainer(train, model, build_strategy(train), block_source or source(train), reporter, 0, work)


def train_in(folder: Path, stop_after: int | None = None, **changes: Any) -> tuple[TrainResult, MemoryReporter]:
    folder.mkdir(exist_ok=True)
    reporter = MemoryReporter(folder, stop_after)
    return trainer(config(**changes), reporter, folder / "work").run(), reporter


def test_learns_and_records_everything(tmp_path: Path) -> None:
    result, reporter = train_in(tmp_path / "run", epochs=6.0)
    assert result.steps == result.total_steps == 18
    assert not result.stopped
    assert result.eval_loss_before is not None
    assert reporter.losses()[-1] < reporter.losses()[0]
    assert reporter.saved == [3, 6, 9, 12, 15, 18]
    steps = [r for r in reporter.records if r["kind"] == "step"]
    assert sum(r["tokens"] for r in steps) == 6 * len(examples().tokens)
    assert sum(r["supervised_tokens"] for r in steps) == 6 * examples().supervised_tokens
    assert all(r["grad_norm"] > 0 for r in steps)
    assert [r["step"] for r in reporter.records if r["kind"] == "eval"] == [0, 3, 6, 9, 12, 15, 18]
    assert reporter.records[-1] == {"kind": "finished"}


def test_the_mean_loss_is_logged_once_an_epoch_and_every_step_recorded(tmp_path: Path) -> None:
    _, reporter = train_in(tmp_path / "run", logging={"every": "epoch"})
    history = json.loads((tmp_path / "run" / "checkpoint-6" / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "loss" in entry] == [1, 2, 3, 4, 5, 6]
    means = {entry["step"]: entry["mean_loss"] for entry in history if "mean_loss" in entry}
    losses = reporter.losses()
    assert means == pytest.approx({3: sum(losses[:3]) / 3, 6: sum(losses[3:]) / 3})
    assert [r["step"] for r in reporter.records if "mean_loss" in r] == [3, 6]
    _, never = train_in(tmp_path / "never", logging={"every": "never"})
    assert not [r for r in never.records if "mean_loss" in r]
    _, often = train_in(tmp_path / "often", logging={"every": 4})
    assert [r["step"] for r in often.records if "mean_loss" in r] == [4, 6]


def test_evaluation_has_its_own_number_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    (tmp_path / "run").mkdir()
    run = trainer(config(evaluation={"micro": 7}), MemoryReporter(tmp_path / "run"), tmp_path / "work")
    rows = run.source.eval_rows(0, "eval")

    def whole(rows: PackedRows, size: int) -> Iterator[PackedRows]:
        asked.append(size)
        yield rows

    monkeypatch.setattr(type(rows), "micro_batches", whole)
    run.evaluation_losses()
    assert asked == [7]


def test_interrupted_equals_uninterrupted_bit_for_bit(tmp_path: Path) -> None:
    _, whole = train_in(tmp_path / "whole")
    stopped, first = train_in(tmp_path / "parts", stop_after=4)
    assert (stopped.steps, stopped.stopped) == (4, True)
    resumed, second = train_in(tmp_path / "parts")
    assert resumed.steps == 6
    assert first.losses() + second.losses() == whole.losses()
    ours = load_file(tmp_path / "parts" / "checkpoint-6" / "adapter_model.safetensors")
    theirs = load_file(tmp_path / "whole" / "checkpoint-6" / "adapter_model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    history = json.loads((tmp_path / "parts" / "checkpoint-6" / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "loss" in entry] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("micro", [2, 4])
def test_the_micro_batch_does_not_change_the_recipe(tmp_path: Path, micro: int) -> None:
    no_dropout = {"r": 4, "dropout": 0.0}
    _, one = train_in(tmp_path / "one", lora=no_dropout)
    _, more = train_in(tmp_path / "more", lora=no_dropout, batch={"global": 3, "micro": micro})
    assert more.losses() == pytest.approx(one.losses(), rel=1e-4)


def test_the_adapter_loads_onto_the_plain_model_with_the_reported_loss(tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    result, _ = train_in(tmp_path / "run", epochs=4.0)
    base = AutoModelForCausalLM.from_pretrained(save_tiny_gemma3(tmp_path / "base"))
    model = PeftModel.from_pretrained(base, tmp_path / "run" / f"checkpoint-{result.steps}").eval()
    block, total = examples(seed=1), 0.0
    for start, end in zip(block.offsets[:-1], block.offsets[1:], strict=True):
        tokens = torch.from_numpy(block.tokens[start:end]).long()
        targets = torch.where(torch.from_numpy(block.supervised[start:end]), tokens, -100)
        logits = model(input_ids=tokens[None]).logits[0, :-1]
        total += float(torch.nn.functional.cross_entropy(logits, targets[1:], reduction="sum"))
    assert total / block.supervised_tokens == pytest.approx(result.eval_loss, abs=1e-3)


def test_transformers_reads_the_trainer_state(tmp_path: Path) -> None:
    from transformers import TrainerState

    train_in(tmp_path / "run")
    state = TrainerState.load_from_json(str(tmp_path / "run" / "checkpoint-6" / "trainer_state.json"))
    assert state.global_step == state.max_steps == 6
    assert len(state.log_history) > 6


def test_a_checkpoint_of_other_adapters_or_another_seed_is_refused(tmp_path: Path) -> None:
    train_in(tmp_path / "run", stop_after=2)
    with pytest.raises(UserError, match=r"train\.seed is 7"):
        train_in(tmp_path / "run", seed=7)
    with pytest.raises(UserError, match=r"train\.batch\.global is 4"):
        train_in(tmp_path / "run", batch={"global": 4, "micro": 1})
    with pytest.raises(UserError, match=r"train\.lora"):
        train_in(tmp_path / "run", lora={"r": 4, "target_modules": ["q_proj"]})


def test_a_nan_is_found_at_its_step_and_nothing_is_saved_after(tmp_path: Path) -> None:
    reporter = MemoryReporter(tmp_path)
    run = trainer(config(), reporter, tmp_path / "work")
    parameter = next(iter(run.model.adapter_parameters().values()))
    poison = run.strategy.step

    def step_then_break(learning_rate: float) -> None:
        poison(learning_rate)
        if run.progress.step == 1:
            parameter.data.fill_(float("nan"))

    run.strategy.step = step_then_break  # type: ignore[method-assign]
    with pytest.raises(NonFiniteLossError, match="step 3"):
        run.run()
    assert reporter.saved == []


def test_padding_counts_as_raw_tokens_only(tmp_path: Path) -> None:
    reporter = MemoryReporter(tmp_path)
    run = trainer(config(epochs=1.0), reporter, tmp_path / "work")
    run.model.computed_tokens = lambda rows: -(-len(rows.tokens) // 100) * 100  # type: ignore[method-assign]
    run.run()
    steps = [record for record in reporter.records if record["kind"] == "step"]
    assert sum(record["tokens"] for record in steps) == len(examples().tokens)
    assert all(record["raw_tokens"] % 100 == 0 for record in steps)
    assert sum(record["raw_tokens"] for record in steps) >= 300


def test_each_evaluation_set_has_a_loss_and_the_mean_is_over_all_tokens(tmp_path: Path) -> None:
    block, other = examples(seed=1), examples(seed=2).select(range(3))
    train = config(epochs=1.0)
    options: dict[str, Any] = {"global_batch": 3, "max_length": 64, "seed": train.seed, "world_size": 1}
    losses = {}
    for sets in ({"chat": block}, {"code": other}, {"chat": block, "code": other}):
        reporter = MemoryReporter(tmp_path / "-".join(sets))
        reporter.folder.mkdir()
        run = trainer(train, reporter, reporter.folder / "work", LocalBlockSource(examples(), sets, **options))
        run.run()
        evaluations = [record for record in reporter.records if record["kind"] == "eval"]
        history = json.loads((reporter.folder / "checkpoint-3" / "trainer_state.json").read_text())["log_history"]
        losses[tuple(sets)] = (evaluations[-1], [entry for entry in history if "eval_loss" in entry][-1])
    both, kept = losses["chat", "code"]
    alone = {name: losses[name,][0] for name in ("chat", "code")}
    assert "eval_losses" not in alone["chat"]
    assert set(losses["chat",][1]) == {"epoch", "step", "eval_loss", "eval_runtime"}
    assert both["eval_losses"] == pytest.approx({name: record["eval_loss"] for name, record in alone.items()})
    assert {name: kept[f"eval_{name}_loss"] for name in alone} == both["eval_losses"]
    tokens = {"chat": block.supervised_tokens, "code": other.supervised_tokens}
    mean = sum(tokens[name] * both["eval_losses"][name] for name in tokens) / sum(tokens.values())
    assert both["eval_loss"] == kept["eval_loss"] == pytest.approx(mean)


def test_without_evaluation_data_it_still_trains(tmp_path: Path) -> None:
    train = config()
    block: TokenBlock = examples()
    only_training = LocalBlockSource(block, {}, global_batch=3, max_length=64, seed=1, world_size=1)
    result = trainer(train, MemoryReporter(tmp_path), tmp_path / "work", only_training).run()
    assert result.eval_loss is None
    assert result.train_loss is not None


def test_a_run_ends_early_with_its_best_saved_and_a_resumed_one_counts_on(tmp_path: Path) -> None:
    """A rate that ruins the model; evaluated every other step, so that most evaluations are at no due checkpoint."""
    changes: dict[str, Any] = {
        "epochs": 20.0,
        "optim": {"learning_rate": 1.0},
        "evaluation": {"every": 2},
        "checkpoint": {"every": 7},
        "early_stopping": {"patience": 3},
    }
    whole, reporter = train_in(tmp_path / "whole", **changes)
    losses = {r["step"]: r["eval_loss"] for r in reporter.records if r["kind"] == "eval" and r["step"]}
    best = min(losses, key=lambda step: losses[step])
    assert whole.steps == best + 6 < whole.total_steps == 60
    assert not whole.stopped
    assert f"stopped early at step {whole.steps} of 60: eval_loss did not fall below" in str(whole.stopped_early)
    assert best in reporter.saved
    state = json.loads((tmp_path / "whole" / f"checkpoint-{whole.steps}" / "trainer_state.json").read_text())
    assert (state["best_global_step"], state["best_model_checkpoint"]) == (best, f"checkpoint-{best}")
    assert state["best_metric"] == losses[best]
    assert state["log_history"][-1]["stopped_early"] == whole.stopped_early

    for folder, stop_after in (("at-evaluation", best + 4), ("parts", best + 3)):
        train_in(tmp_path / folder, stop_after=stop_after, **changes)
        resumed, _ = train_in(tmp_path / folder, **changes)
        assert (resumed.steps, resumed.stopped_early) == (whole.steps, whole.stopped_early)
    again, idle = train_in(tmp_path / "parts", **changes)
    assert (again.steps, again.stopped_early, idle.losses()) == (whole.steps, whole.stopped_early, [])
    longer, _ = train_in(tmp_path / "parts", **{**changes, "early_stopping": {"patience": 4}})
    assert longer.steps > whole.steps


def test_a_run_that_changes_nothing_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING", "gemfleet.train")
    result, _ = train_in(tmp_path / "learns")
    assert result.adapter_changed
    assert "adapter is what it was" not in caplog.text
    result, _ = train_in(tmp_path / "idle", optim={"learning_rate": 1e-60})
    assert not result.adapter_changed
    assert "the adapter is what it was before training" in caplog.text


def test_one_step_of_the_defaults_changes_the_adapter(tmp_path: Path) -> None:
    result, _ = train_in(tmp_path / "run", optim={}, batch={"global": 32, "micro": 1}, epochs=1.0)
    assert result.total_steps == 1
    assert result.adapter_changed
    adapter = load_file(tmp_path / "run" / "checkpoint-1" / "adapter_model.safetensors")
    assert all(float(tensor.abs().max()) > 0 for name, tensor in adapter.items() if "lora_B" in name)


def other(block: TokenBlock, kind: str) -> TokenBlock:
    """The same examples, in another order, the first few of them, or one of them with another token."""
    if kind == "reordered":
        return block.select(range(len(block))[::-1])
    if kind == "cut":
        return block.select(range(5))
    if kind != "edited":
        return block
    tokens = block.tokens.copy()
    tokens[3] += 1
    return TokenBlock(tokens, block.supervised, block.offsets)


def resumed(folder: Path, lineage: Lineage, **changes: Any) -> TrainResult:
    """Two epochs where the first is trained already."""
    train = config(epochs=2.0, **changes)
    run = trainer(train, MemoryReporter(folder), folder / "work")
    run.lineage = lineage
    return run.run()


@pytest.fixture
def first_epoch(tmp_path: Path) -> tuple[Path, Lineage]:
    folder = tmp_path / "run"
    folder.mkdir()
    lineage = Lineage("base", run_digest([example_digests(examples())], "", []))
    run = trainer(config(epochs=1.0), MemoryReporter(folder), folder / "work")
    run.lineage = lineage
    assert run.run().steps == 3
    return folder, lineage


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"lora": {"r": 8}}, r"train\.lora\.r is 8, but the checkpoint checkpoint-3 was written with 4; resume with"),
        (
            {"lora": {"r": 4, "target_modules": ["q_proj"]}},
            r"resume with train\.lora\.target_modules as .*all-lin",
        ),
        ({"seed": 7}, r"train\.seed is 7, but"),
        ({"batch": {"global": 4}}, r"train\.batch\.global is 4, but"),
    ],
)
@pytest.mark.parametrize("accept", [False, True])
def test_steps_or_tensors_that_mean_something_else_are_refused_in_any_case(
    first_epoch: tuple[Path, Lineage], changes: dict[str, Any], sentence: str, accept: bool
) -> None:
    folder, lineage = first_epoch
    with pytest.raises(UserError, match=sentence):
        resumed(folder, replace(lineage, accept_changes=accept), **changes)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("alpha", r"train\.lora\.alpha is 64\.0, it was 32\.0"),
        ("eval_fraction", r"train\.data\.eval_fraction is 0\.5, it was 0\.1"),
        ("base", r"the weights of the base \(train\.model\) are other ones"),
        ("reordered", "the data has changed: the same examples are in another order"),
        ("cut", "the data has changed: it has 5 examples, it had 8"),
        ("edited", "the data has changed: as many examples, but other ones"),
        ("mixed", r"the mixture of train\.data\.train has changed: it is 4 examples, 4 examples, it was one set"),
        ("evaluated", r"the examples of train\.data\.eval have changed"),
    ],
)
def test_going_on_with_something_else_is_refused_or_said(
    first_epoch: tuple[Path, Lineage], kind: str, sentence: str
) -> None:
    folder, lineage = first_epoch
    changes: dict[str, Any] = {}
    if kind == "alpha":
        changes = {"lora": {"r": 4, "dropout": 0.1, "alpha": 64.0}}
    elif kind == "eval_fraction":
        changes = {"data": {"train": "x.jsonl", "max_length": 64, "eval_fraction": 0.5}}
    elif kind == "base":
        lineage = replace(lineage, base="another")
    else:
        mixture = Mixture((4, 4) if kind == "mixed" else (8,)).describe()
        evaluation = [example_digests(examples(seed=1))] if kind == "evaluated" else []
        data = run_digest([example_digests(other(examples(), kind))], mixture, evaluation)
        lineage = replace(lineage, data=data)
    with pytest.raises(UserError, match=sentence + r".* --accept-changes"):
        resumed(folder, lineage, **changes)
    assert resumed(folder, replace(lineage, accept_changes=True), **changes).steps == 6
    state = json.loads((folder / "checkpoint-6" / "trainer_state.json").read_text())
    (entry,) = [entry for entry in state["log_history"] if "accepted_changes" in entry]
    assert entry["step"] == 3
    assert re.fullmatch(sentence, "; ".join(entry["accepted_changes"]))
    train = json.loads((folder / "checkpoint-6" / "training_config.json").read_text())["train"]
    name = "changed when it was resumed at step 3"
    assert dict(_settings(train, state))[name] == "; ".join(entry["accepted_changes"])
    assert resumed(folder, lineage, **changes).steps == 6  # of the newest checkpoint nothing differs


def test_a_checkpoint_that_keeps_no_digests_is_gone_on_with(first_epoch: tuple[Path, Lineage]) -> None:
    folder, lineage = first_epoch
    path = folder / "checkpoint-3" / "training_config.json"
    written = json.loads(path.read_text())
    del written["made_from"]
    path.write_text(json.dumps(written))
    assert resumed(folder, lineage).steps == 6
