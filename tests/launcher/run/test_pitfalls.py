"""What goes wrong in other trainers of this model family, a named test each.

The first part is what one published run of the platform did; the second what users report of transformers, trl, peft,
accelerate, DeepSpeed and others. Where a proof takes a cluster, many processes or minutes, it lies elsewhere and is
named in `PROVEN_ELSEWHERE`; a test sees that it is still there.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gemfleet.launcher.config.platform.convert import convert
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.config.sections.recipe import LoraConfig
from gemfleet.train.device.abilities import DeviceFacts, choose_dtype
from gemfleet.train.errors import UserError
from gemfleet.train.interfaces import PackedRows
from gemfleet.train.model.gemma import attach_lora, language_model_of, load_base_model, lora_targets
from gemfleet.train.model.merge import merge_adapter
from pydantic import ValidationError
from support.places import TESTS
from support.platform_requests import changed
from support.reference_step import Case, examples, gemfleet_step, reference, relative_difference, trainable
from support.step_records import a_step
from support.tiny_model import WINDOW, save_tiny_gemma3, tiny_gemma3
from support.tiny_multimodal import save_tiny_multimodal

CPU = torch.device("cpu")
PROVEN_ELSEWHERE = {
    "every step's loss is in log_history, also where a loss is logged once an epoch": [
        "train/test_loop.py::test_the_mean_loss_is_logged_once_an_epoch_and_every_step_recorded",
        "launcher/config/platform/test_platform_end_to_end.py::test_peft_and_transformers_load_the_clone",
    ],
    "every GPU of the cluster is used, not one": ["launcher/test_placement.py::test_auto_takes_every_gpu_busy_or_not"],
    "a batch size that is found changes no loss": [
        "train/test_entry.py::test_a_micro_batch_found_by_probes_changes_no_loss"
    ],
    "documents of a row do not see each other, beyond the sliding window too": [
        "train/kernels/attention/test_packed.py::test_changing_one_document_changes_no_other",
        "train/kernels/attention/test_packed.py::test_equals_masked_attention_written_out",
    ],
    "a sharded save holds every rank's part": [
        "train/strategies/test_strategies.py::test_a_sample_resumes_under_another",
        "train/strategies/test_strategies.py::test_a_checkpoint_resumes_under_every_strategy_on_other_ranks",
    ],
    "a multimodal checkpoint trains on text, with token_type_ids or without": [
        "train/model/test_multimodal.py::test_the_adapter_fits_the_original_class_with_the_same_loss",
    ],
    "a rank without memory ends the trial for all, and none hangs": [
        "train/batch_finder/test_probes.py::test_a_cap_on_rank_1_alone_decides_for_all",
        "train/batch_finder/test_probes.py::test_a_rank_lost_in_a_trial_ends_it_for_all_in_bounded_time",
    ],
    "lack of memory while training lowers the micro-batch and changes no loss": [
        "launcher/run/batch_search/test_batch_on_ray.py::test_lack_of_memory_lowers_the_micro_batch_and_changes_no_loss",
        "launcher/run/training/test_less_memory.py::test_the_micro_batch_is_halved_and_the_recipe_stays",
    ],
}


def converted(**values: Any) -> dict[str, Any]:
    return convert(changed(**values), exists=lambda path: False).content


# --- what the published run did


def test_logging_steps_of_minus_one_means_once_an_epoch() -> None:
    """It became `logging_steps: -450`, and the history was empty."""
    for steps in (-1, 0):
        train = converted(train__logging_strategy="epoch", train__logging_steps=steps)["train"]
        assert train["logging"] == {"every": "epoch"}


def test_the_global_batch_stays_when_the_batch_finds_itself() -> None:
    """Asked for 4 examples a device and 4 accumulation steps, it fell to 1 example, and 16 became 4."""
    for auto in (True, False):
        batch = converted(train__auto_find_batch_size=auto)["train"]["batch"]
        assert batch["global"] == 16


def test_fp16_is_never_computed_in() -> None:
    """Gemma 3's activations overflow fp16: NaN, or silently worse results (transformers #36822, #36832)."""
    train = TrainConfig.model_validate(converted(train__mixed_precision="fp16")["train"])
    for asked in (train.precision, "fp16"):
        assert choose_dtype(asked, DeviceFacts(CPU, "with bf16", bf16_gains=True)) == torch.bfloat16
        assert choose_dtype(asked, DeviceFacts(CPU, "without", bf16_gains=False)) == torch.float32


def test_all_linear_leaves_vision_tower_and_head_alone(tmp_path: Path) -> None:
    """It adapted `fc1`, `fc2`, `out_proj` of the tower and `lm_head`, for text alone."""
    from transformers import Gemma3ForConditionalGeneration

    original = Gemma3ForConditionalGeneration.from_pretrained(save_tiny_multimodal(tmp_path))
    names = lora_targets(original, "all-linear")
    assert len(names) == 4 * 7  # layers, projections
    assert not [name for name in names if "vision" in name or "projector" in name or "lm_head" in name]
    assert {name.rpartition(".")[2] for name in names} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    }


def test_the_string_none_is_no_backend() -> None:
    """`distributed_backend: "None"` and `use_fsdp2: "false"` are texts; a run on several devices uses DDP."""
    for backend in ("None", None, "", "none"):
        train = converted(train__distributed_backend=backend, train__use_fsdp2="false")["train"]
        assert train["strategy"] == "ddp"


def test_strings_mean_what_they_say() -> None:
    """`"false"` is not true because it is a text that is not empty."""
    assert "formats" not in converted(peft__merge_adapter="None").get("output", {})
    assert converted(peft__merge_adapter="false")["output"]["formats"] == ["adapter"]
    assert convert(changed(train__unsloth="false")).problems == ()
    assert convert(changed(train__unsloth="true")).problems != ()


# --- what users report


def test_text_needs_no_token_type_ids(tmp_path: Path) -> None:
    """A multimodal checkpoint asked for them on text alone (trl #5032)."""
    model = attach_lora(load_base_model(save_tiny_multimodal(tmp_path), torch.float32, CPU), LoraConfig(r=4), 0, "tiny")
    tokens = np.arange(3, 23, dtype=np.int32)
    rows = PackedRows(tokens, np.arange(20) > 0, np.array([20], np.int32), np.array([1], np.int32))
    assert torch.isfinite(model.loss_sum(rows))


def test_packed_loss_and_gradients_equal_unpacked_ones() -> None:
    """With an all-ones mask documents saw each other (transformers #39194, #46634). Some are longer than the window."""
    lengths = np.diff(examples().offsets)
    assert lengths.max() > WINDOW
    expected_loss, expected = reference()
    loss, gradients = gemfleet_step(Case(max_length=int(lengths.sum()), micro=1, ranks=1), rank=0)
    assert loss == pytest.approx(expected_loss, rel=1e-4)
    assert relative_difference(gradients, expected) < 1e-4


def test_accumulation_divides_by_the_supervised_tokens_of_the_whole_step() -> None:
    """A mean of each pass's mean weighs tokens of short passes more (transformers #37197)."""
    whole, whole_gradients = gemfleet_step(Case(max_length=40, micro=100, ranks=1), rank=0)
    cut, cut_gradients = gemfleet_step(Case(max_length=40, micro=1, ranks=1), rank=0)
    assert cut == pytest.approx(whole, rel=1e-5)
    assert relative_difference(cut_gradients, whole_gradients) < 1e-4


@pytest.mark.parametrize("name", ["lm_head", "base.lm_head"])
def test_an_adapter_of_the_tied_head_is_refused(tmp_path: Path, name: str) -> None:
    """Merged, it changes the embedding too (peft #2018)."""
    with pytest.raises(ValidationError, match="found `lm_head`"):
        LoraConfig(target_modules=["q_proj", name])
    with pytest.raises(UserError, match="no linear layer of that name"):
        lora_targets(tiny_gemma3(), [name])
    with pytest.raises(UserError, match="no linear layer of that name"):
        lora_targets(tiny_gemma3(), ["q_proj", name])
    refused = convert(changed(peft__target_modules=["lm_head"])).problems
    assert any(problem.startswith("peft.target_modules") for problem in refused)

    from peft import LoraConfig as PeftLoraConfig
    from peft import get_peft_model

    peft_config = PeftLoraConfig(r=4, target_modules=["lm_head"], bias="none")
    get_peft_model(tiny_gemma3(), peft_config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError, match="lm_head cannot be merged"):
        merge_adapter(save_tiny_gemma3(tmp_path / "base"), tmp_path / "adapter", tmp_path / "merged")


@pytest.mark.parametrize("strategy", ["fsdp2", "deepspeed"])
@pytest.mark.parametrize("quantization", ["int4", "int8"])
def test_a_quantised_base_is_refused_where_it_would_be_divided(strategy: str, quantization: str) -> None:
    """NaN or zero losses under FSDP2 (accelerate #3983, bitsandbytes #1945), no gain under ZeRO-3 (DeepSpeed #5660)."""
    content = {
        "model": "demo",
        "data": {"train": "demo"},
        "strategy": strategy,
        "deepspeed": {"stage": 3},
        "quantization": quantization,
    }
    with pytest.raises(ValidationError, match=r"use strategy ddp"):
        TrainConfig.model_validate(content)


def test_throughput_never_counts_padding_as_text() -> None:
    """Rates that count padding mislead (transformers #29889, torchtune #2296): three counts, told apart."""
    counts = {"raw_tokens": 1000, "tokens": 600, "supervised_tokens": 100}
    record = a_step(step_seconds=2.0, world_size=2, **counts).to_dict()
    rates = [record[f"{name}_per_second"] for name in ("raw_tokens", "tokens", "supervised_tokens")]
    assert rates == [500.0, 300.0, 50.0]
    assert record["tokens_per_second_per_rank"] == 150.0


def test_the_embedding_is_not_trained_through_its_tied_head() -> None:
    model = trainable()
    embedding = language_model_of(model.peft_model.get_base_model()).embed_tokens.weight
    assert not embedding.requires_grad
    assert not [name for name in model.adapter_parameters() if "lm_head" in name or "embed" in name]


@pytest.mark.parametrize("pitfall", PROVEN_ELSEWHERE)
def test_what_is_proven_elsewhere_is_still_there(pitfall: str) -> None:
    for place in PROVEN_ELSEWHERE[pitfall]:
        file, _, name = place.partition("::")
        functions = [
            node.name for node in ast.parse((TESTS / file).read_text()).body if isinstance(node, ast.FunctionDef)
        ]
        assert name in functions, f"{place} proved that {pitfall}"
