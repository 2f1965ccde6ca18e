"""Every key of the platform's request has the effect that its table says, and what cannot be used is named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gemfleet.launcher.config.load import load_config
from gemfleet.launcher.config.platform.convert import Conversion, convert
from gemfleet.launcher.config.platform.document import document
from gemfleet.launcher.config.platform.keys.table import TABLE
from gemfleet.launcher.config.platform.write_yaml import to_yaml
from gemfleet.launcher.config.schema import LaunchConfig
from gemfleet.train.config.load import parse_yaml
from gemfleet.train.config.train_file import is_platform_request
from gemfleet.train.errors import UserError
from support.places import REPOSITORY
from support.platform_requests import MISSING, REFERENCE, changed, supported_request

REFERENCE_BECOMES = {
    "name": "caost-test-2",
    "train": {
        "model": "git+git@git.example.org:group/gemma-3-4b-it.git#main",
        "data": {
            "train": "git+git@git.example.org:group/finance-questions.git#main",
            "add_eos": True,
            "max_length": 1024,
            "too_long": "truncate",
            "format": "text",
            "columns": {"text": "text"},
            "eval_fraction": 0.1,
        },
        "lora": {"r": 16, "alpha": 32.0, "dropout": 0.05, "target_modules": "all-linear"},
        "quantization": "int4",
        "epochs": 1.0,
        "optim": {
            "learning_rate": 3e-05,
            "weight_decay": 0.0,
            "max_grad_norm": 1.0,
            "schedule": "linear",
            "warmup_ratio": 0.1,
        },
        "seed": 42,
        "precision": "auto",
        "batch": {"global": 16, "micro": "probe"},
        "evaluation": {"micro": 4, "every": "epoch"},
        "strategy": "ddp",
        "activation_checkpointing": "full",
        "logging": {"every": "epoch"},
    },
    "cluster": {"keep_checkpoints": 1},
    "output": {
        "deliver": {"type": "git", "repository": "git@git.example.org:group/result.git", "branch": "caost-test-2"},
        "padding_side": "right",
        "tensorboard": True,
    },
    "predict": {"batch": 4},
}
# One change of the reference, the dotted field that it decides, and what that becomes (None: it is not set any more).
EFFECTS: list[tuple[dict[str, Any], str, Any]] = [
    ({"experiment_name": "other"}, "name", "other"),
    ({"experiment_name": "other"}, "output.deliver.branch", "other"),
    ({"save_model__type": "local"}, "output.deliver", None),
    ({"save_model__type": "hub", "save_model__model_repository": "a/b"}, "output.deliver.type", "hub"),
    (
        {"save_model__type": "s3", "save_model__model_repository": "s3://bucket/results"},
        "output.deliver",
        {"type": "s3", "repository": "s3://bucket/results", "branch": "caost-test-2"},
    ),
    ({"model__type": "gs", "model__model_repository": "gs://bucket/gemma"}, "train.model", "gs://bucket/gemma"),
    (
        {"dataset__type": "s3", "dataset__dataset_repository": "s3://bucket/rows"},
        "train.data.train",
        "s3://bucket/rows",
    ),
    (
        {"dataset__dataset_branch": "next"},
        "train.data.train",
        "git+git@git.example.org:group/finance-questions.git#next",
    ),
    ({"dataset__dataset_path": "/here"}, "train.data.train", "/here"),
    ({"dataset__type": "local", "dataset__dataset_path": "/new"}, "train.data.train", "/new"),
    ({"dataset__dataset_repository": "https://h/d.git"}, "train.data.train", "git+https://h/d.git#main"),
    ({"model__model_branch": None}, "train.model", "git+git@git.example.org:group/gemma-3-4b-it.git"),
    ({"model__model_path": "/here"}, "train.model", "/here"),
    ({"model__type": "hub", "model__model_repository": "google/gemma-3-1b-it"}, "train.model", "google/gemma-3-1b-it"),
    ({"tokenizer__block_size": 512}, "train.data.max_length", 512),
    ({"tokenizer__max_length": 256}, "train.data.max_length", 256),
    ({"tokenizer__padding": "left"}, "output.padding_side", "left"),
    ({"tokenizer__add_eos_token": "false"}, "train.data.add_eos", False),
    ({"peft__r": "8"}, "train.lora.r", 8),
    ({"peft__lora_alpha": 4}, "train.lora.alpha", 4.0),
    ({"peft__lora_dropout": 0}, "train.lora.dropout", 0.0),
    ({"peft__target_modules": "q_proj, v_proj"}, "train.lora.target_modules", ["q_proj", "v_proj"]),
    ({"peft__quantization": "int8"}, "train.quantization", "int8"),
    ({"peft__quantization": "None"}, "train.quantization", None),
    ({"peft__merge_adapter": "true"}, "output.formats", ["adapter", "merged"]),
    ({"train__num_train_epochs": 3}, "train.epochs", 3.0),
    ({"train__learning_rate": "1e-4"}, "train.optim.learning_rate", 1e-4),
    ({"train__scheduler": "cosine"}, "train.optim.schedule", "cosine"),
    ({"train__scheduler": "constant"}, "train.optim.warmup_ratio", None),
    ({"train__warmup_ratio": 0.2}, "train.optim.warmup_ratio", 0.2),
    ({"train__weight_decay": 0.1}, "train.optim.weight_decay", 0.1),
    ({"train__max_grad_norm": 0.5}, "train.optim.max_grad_norm", 0.5),
    ({"train__seed": 7}, "train.seed", 7),
    ({"train__mixed_precision": "bf16"}, "train.precision", "bf16"),
    ({"train__mixed_precision": None}, "train.precision", "fp32"),
    ({"train__per_device_train_batch_size": 2}, "train.batch.global", 8),
    ({"train__per_device_train_batch_size": None}, "train.batch.global", 8),
    ({"train__per_device_train_batch_size": None, "train__batch_size": 3}, "train.batch.global", 12),
    ({"train__gradient_accumulation": 2}, "train.batch.global", 8),
    ({"train__auto_find_batch_size": "False"}, "train.batch.micro", 4),
    ({"train__per_device_eval_batch_size": 2}, "train.evaluation.micro", 2),
    ({"train__per_device_eval_batch_size": 2}, "predict.batch", 2),
    ({"train__gradient_checkpointing": False}, "train.activation_checkpointing", "off"),
    ({"train__gradient_checkpointing": None, "train__disable_gc": None}, "train.activation_checkpointing", None),
    ({"train__gradient_checkpointing": False, "train__disable_gc": True}, "train.activation_checkpointing", "off"),
    ({"train__distributed_backend": "deepspeed"}, "train.strategy", "deepspeed"),
    ({"train__use_fsdp2": "true"}, "train.strategy", "fsdp2"),
    ({"train__use_flash_attention": True}, "train.attention", "flash"),
    ({"train__chat_template": "tokenizer"}, "train.data.format", "messages"),
    ({"train__chat_template": "tokenizer"}, "train.data.columns.messages", "text"),
    (
        {"train__dataset_text_field": "body", "train__column_mappings__text_column": "body"},
        "train.data.columns.text",
        "body",
    ),
    ({"train__column_mappings__text_column": ""}, "train.data.columns.text", "text"),
    ({"train__logging_strategy": "steps", "train__logging_steps": 5}, "train.logging.every", 5),
    ({"train__logging_strategy": "no"}, "train.logging.every", "never"),
    ({"train__evaluation_strategy": "steps", "train__logging_steps": 5}, "train.evaluation.every", 5),
    ({"train__evaluation_strategy": "steps", "train__eval_steps": 3}, "train.evaluation.every", 3),
    ({"train__evaluation_strategy": "no"}, "train.evaluation.every", "never"),
    ({"train__evaluation_strategy": "no", "train__do_predict": False}, "train.data.eval_fraction", 0.0),
    ({"train__save_total_limit": 3}, "cluster.keep_checkpoints", 3),
    ({"train__log": "None"}, "output.tensorboard", False),
    ({"train__do_predict": "false"}, "predict", None),
    ({"train__do_train": "false"}, "train.max_steps", 0),
]
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"trainer": "dpo"}, "trainer: found 'dpo'"),
    ({"train__unsloth": True}, "train_model_parameters.unsloth: found True; gemfleet has its own step"),
    ({"peft__peft": False}, "peft.peft: found False; gemfleet trains adapters only"),
    ({"peft__tuner": "dora"}, "peft.tuner: found 'dora'"),
    ({"peft__bias": "all"}, "peft.bias: found 'all'"),
    ({"peft__task_type": "SEQ_CLS"}, "peft.task_type: found 'SEQ_CLS'"),
    ({"train__optimizer": "adafactor"}, "train_model_parameters.optimizer: found 'adafactor'"),
    (
        {"train__do_train": False, "train__do_predict": False, "train__evaluation_strategy": "no"},
        "train_model_parameters.do_train: found false while train_model_parameters.evaluation_strategy is `no`",
    ),
    ({"train__do_train": False, "peft__merge_adapter": True}, "peft.merge_adapter: found true while"),
    ({"train__chat_template": "zephyr"}, "train_model_parameters.chat_template: found 'zephyr'"),
    ({"train__log": "wandb"}, "train_model_parameters.log: found 'wandb'"),
    ({"train__disable_gc": True}, "gradient_checkpointing: found true while train_model_parameters.disable_gc"),
    ({"train__use_fsdp2": True, "train__distributed_backend": "deepspeed"}, "distributed_backend: found 'deepspeed'"),
    ({"train__dataset_text_field": "body"}, "dataset_text_field: found 'body'"),
    ({"train__evaluation_strategy": "steps"}, "eval_steps: missing"),
    ({"peft__target_modules": ["q_proj", "lm_head"]}, "peft.target_modules: found `lm_head`"),
    ({"save_model__model_repository": ""}, "save_model.model_repository: missing"),
    ({"dataset__type": "ftp"}, "dataset.type: found 'ftp'"),
    ({"dataset__type": "s3"}, "dataset.dataset_repository: 'git@git.example.org:group/finance-questions.git' is not"),
    ({"model__type": "s3", "model__model_repository": "gs://bucket/x"}, "found 'gs://bucket/x', but its type is `s3`"),
    ({"save_model__type": "gs", "save_model__model_repository": "s3://bucket/x"}, "give one of gs://"),
    (
        {"dataset__type": "s3", "dataset__dataset_repository": "s3://bucket/x", "dataset__dataset_branch": "next"},
        "dataset.dataset_branch: found 'next'; only a git repository has branches here",
    ),
    ({"model__model_repository": "ext::sh -c id"}, "model.model_repository: 'ext::sh -c id' is not an address"),
    ({"dataset__dataset_repository": "--upload-pack=id"}, "dataset.dataset_repository: '--upload-pack=id' is not"),
    ({"save_model__model_repository": "http://host/x.git"}, "save_model.model_repository: 'http://host/x.git' is not"),
    ({"model__model_branch": "--force"}, "model.model_repository: the branch '--force'"),
    ({"model__model_repository": MISSING}, "model.model_repository: missing"),
    ({"experiment_name": "no spaces please"}, "experiment_name (name): found 'no spaces please'"),
    ({"train__lerning_rate": 1}, "lerning_rate: unknown key; did you mean `train_model_parameters.learning_rate`?"),
    ({"peft": 7}, "peft: found 7; give a section"),
]


def converted(**values: Any) -> Conversion:
    return convert(changed(**values), exists=lambda path: path == "/here")


def field(content: dict[str, Any], dotted: str) -> Any:
    for part in dotted.split("."):
        content = content.get(part, {}) if isinstance(content, dict) else {}
    return None if content == {} else content


def test_the_reference_request_becomes_exactly_this() -> None:
    assert converted().content == REFERENCE_BECOMES


@pytest.mark.parametrize(("change", "target", "value"), EFFECTS, ids=lambda value: str(value)[:60])
def test_each_key_has_its_effect(change: dict[str, Any], target: str, value: Any) -> None:
    assert field(converted(**change).content, target) == value
    assert field(REFERENCE_BECOMES, target) != value or change == {"train__column_mappings__text_column": ""}


@pytest.mark.parametrize(("change", "sentence"), REFUSED, ids=lambda value: str(value)[:60])
def test_what_cannot_be_used_is_refused_by_name(change: dict[str, Any], sentence: str) -> None:
    assert any(sentence in problem for problem in converted(**change).problems)


def test_rows_longer_than_the_models_context_are_refused() -> None:
    request = changed(tokenizer__block_size=4096, tokenizer__max_length=4096)
    (problem,) = set(convert(request, context=lambda model: 2048).problems) - set(convert(request).problems)
    assert problem.startswith("tokenizer_parameters.block_size and tokenizer_parameters.max_length: found 4096")


def test_all_problems_are_named_together() -> None:
    changes = {key: value for change, _ in REFUSED[:8] for key, value in change.items()}
    assert len(converted(**changes).problems) >= 8


def test_every_key_but_the_unused_is_tried_by_some_test() -> None:
    names = {"train": "train_model_parameters", "tokenizer": "tokenizer_parameters"}
    tried = set()
    for change in [*(effect[0] for effect in EFFECTS), *(refusal[0] for refusal in REFUSED)]:
        for dotted in change:
            first, *rest = dotted.split("__")
            tried.add(".".join([names.get(first, first), *rest]))
    assert {name for name, key in TABLE.items() if key.how != "unused"} - tried == set()


def test_warnings_of_the_reference_name_both_batches_the_precision_the_split_and_the_unused() -> None:
    notes = "\n".join(converted().notes)
    assert "per_device_train_batch_size is 4 and train_model_parameters.batch_size is 2" in notes
    assert "4 x 4 = 16 examples" in notes
    assert "fp16, which Gemma 3's activations overflow" in notes
    assert "a seeded tenth of the data is held out" in notes
    assert "train_model_parameters.dpo_beta" in notes
    assert "train_model_parameters.max_prompt_length" not in notes  # null says nothing


def test_strings_that_mean_nothing_are_read_as_nothing() -> None:
    for nothing in (None, "None", "null", "", " none "):
        content = converted(train__chat_template=nothing, train__distributed_backend=nothing).content
        assert content == REFERENCE_BECOMES


def test_what_was_written_down_reads_back_to_the_same(tmp_path: Path) -> None:
    text = to_yaml(converted(), "request.json")
    assert parse_yaml(text) == REFERENCE_BECOMES
    assert "# train_model_parameters.learning_rate" in text
    assert text.count("\n# Note: ") == len(converted().notes)


def test_a_request_is_recognised_and_overrides_still_count(tmp_path: Path) -> None:
    path = tmp_path / "request.json"
    path.write_text(json.dumps(supported_request()))
    config = load_config(path, ["train.lora.r=4"])
    assert isinstance(config, LaunchConfig)
    assert (config.train.lora.r, config.train.batch.global_) == (4, 16)
    assert is_platform_request(REFERENCE)
    assert not is_platform_request({"train": {}, "peft": {}})


def test_a_bad_request_is_one_error_with_every_problem(tmp_path: Path) -> None:
    path = tmp_path / "request.json"
    path.write_text(json.dumps(changed(trainer="orpo", peft__r=0)))
    with pytest.raises(UserError, match=r"problems:\n  trainer: found 'orpo'(.|\n)*\n  peft.r: found 0"):
        load_config(path)


@pytest.mark.slow
def test_convert_writes_yaml_to_the_standard_output(tmp_path: Path) -> None:
    path = tmp_path / "request.json"
    path.write_text(json.dumps(supported_request()))
    command = [sys.executable, "-m", "gemfleet.launcher.cli", "convert", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    (tmp_path / "run.yaml").write_text(done.stdout)
    assert load_config(tmp_path / "run.yaml") == load_config(path)


def test_the_page_in_docs_is_the_table() -> None:
    assert (REPOSITORY / "docs" / "platform.md").read_text(encoding="utf-8") == document()
