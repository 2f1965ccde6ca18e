"""What a key of the request decides has its effect on a run, and for each there is a test that fails without it."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
from gemfleet.launcher.config.platform.keys.table import TABLE
from gemfleet.launcher.runs.names import new_run_id
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.config.sections.data import DataConfig
from gemfleet.train.local.source import prepare_local
from support.places import TESTS
from support.tiny_tokenizer import tiny_tokenizer

LOOP, EFFECTS, E2E = (
    "train/test_loop.py::",
    "train/test_effects.py::",
    "launcher/config/platform/test_platform_end_to_end.py::",
)
RECIPE = f"{EFFECTS}test_a_setting_of_the_recipe_changes_the_adapters"
HERE = "launcher/config/platform/test_effects.py::"
DELIVERY, RECOMPUTING = "launcher/result/delivery/", "train/kernels/test_activation_checkpointing.py::"
SHOWN_BY = {
    "name": f"{HERE}test_the_name_begins_the_id_of_the_run",
    "output.deliver.type": f"{DELIVERY}test_object_upload.py::test_everything_arrives_with_a_manifest_that_lists_it",
    "output.deliver.repository": f"{DELIVERY}test_git_push.py::test_a_push_arrives_whole_with_its_large_files_in_lfs",
    "train.model": "launcher/sources/test_checkout.py::test_sources_become_folders",
    "train.data.train": "launcher/sources/test_checkout.py::test_sources_become_folders",
    "train.data.max_length": f"{HERE}test_longer_texts_are_cut_off_at_the_length",
    "train.data.add_eos": "train/data/test_tokenizing.py::test_text_and_pairs",
    "train.data.format": "train/data/test_tokenizing.py::test_the_format_follows_the_columns",
    "train.data.columns.text": f"{HERE}test_the_named_column_is_trained_on",
    "output.padding_side": "launcher/result/test_publish.py::test_padding_board_and_formats_do_what_they_say",
    "output.formats": "launcher/result/test_publish.py::test_padding_board_and_formats_do_what_they_say",
    "output.tensorboard": "launcher/result/test_publish.py::test_padding_board_and_formats_do_what_they_say",
    "train.lora.r": f"{EFFECTS}test_rank_and_target_modules_decide_which_adapters_there_are",
    "train.lora.target_modules": f"{EFFECTS}test_rank_and_target_modules_decide_which_adapters_there_are",
    "train.lora.alpha": RECIPE,
    "train.lora.dropout": RECIPE,
    "train.quantization": "train/kernels/test_quantization.py::test_the_weights_are_near_those_of_the_checkpoint",
    "train.epochs": RECIPE,
    "train.optim.learning_rate": RECIPE,
    "train.optim.schedule": RECIPE,
    "train.optim.warmup_ratio": RECIPE,
    "train.optim.weight_decay": RECIPE,
    "train.optim.max_grad_norm": RECIPE,
    "train.seed": RECIPE,
    "train.precision": "launcher/run/test_precision.py::test_what_is_computed_in",
    "train.batch.global": RECIPE,
    "train.batch.micro": "train/test_entry.py::test_a_micro_batch_found_by_probes_changes_no_loss",
    "train.evaluation.micro": f"{LOOP}test_evaluation_has_its_own_number_of_rows",
    "train.evaluation.every": f"{EFFECTS}test_the_evaluation_set_is_scored_when_it_is_asked_for",
    "train.activation_checkpointing": f"{RECOMPUTING}test_full_keeps_least_and_selective_less_than_off",
    "train.strategy": "train/strategies/test_strategies.py::test_a_rank_holds_its_share_of_the_base",
    "train.attention": "train/device/test_limits.py::test_flash_attention_without_its_kernel_is_refused",
    "train.logging.every": f"{LOOP}test_the_mean_loss_is_logged_once_an_epoch_and_every_step_recorded",
    "cluster.keep_checkpoints": "cluster/checkpoint_store/test_store_policy.py::test_what_goes_is_told_to_the_recorder",
    "predict": f"{E2E}test_predictions_cover_the_evaluation_split",
    "train.max_steps": f"{E2E}test_without_training_the_base_is_scored_and_answers",
}


def test_every_field_that_a_key_decides_is_named_here() -> None:
    assert {key.target for key in TABLE.values() if key.target} == set(SHOWN_BY)


@pytest.mark.parametrize("field", SHOWN_BY)
def test_the_test_of_its_effect_is_there(field: str) -> None:
    file, _, name = SHOWN_BY[field].partition("::")
    functions = [node.name for node in ast.parse((TESTS / file).read_text()).body if isinstance(node, ast.FunctionDef)]
    assert name in functions


def test_the_name_begins_the_id_of_the_run() -> None:
    assert new_run_id("caost-test-2").startswith("caost-test-2-")


def prepared(folder: Path, rows: list[dict[str, str]], **data: object) -> int:
    """Tokens of all examples of a data set with these settings."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "train": str(folder / "rows.jsonl"),
        "eval_fraction": 0.0,
        "too_long": "truncate",
        "max_length": 512,
        **data,
    }
    config = TrainConfig.model_validate({"model": "tiny", "data": values})
    assert isinstance(config.data, DataConfig)
    source, _ = prepare_local(config.data, 4, 1, tiny_tokenizer(folder), 1)
    return source.step(0, 0, 0).step_tokens


def test_longer_texts_are_cut_off_at_the_length(tmp_path: Path) -> None:
    rows = [{"text": "the cat " * 100}] * 4
    assert prepared(tmp_path, rows, max_length=64) == 4 * 64
    assert prepared(tmp_path, rows, max_length=32) == 4 * 32


def test_the_named_column_is_trained_on(tmp_path: Path) -> None:
    rows = [{"text": "cat", "body": "the cat " * 30}] * 4
    text, body = (prepared(tmp_path, rows, format="text", columns={"text": name}) for name in ("text", "body"))
    assert body > 4 * text
