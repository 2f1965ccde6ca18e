"""What cannot work is refused before anything starts, in one sentence with field, value and remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from gemfleet.train.config.deepspeed_json import engine_json, with_reduce_bucket
from gemfleet.train.config.load import load_validated
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.config.strict import StrictModel
from gemfleet.train.entry import check_ranks_have_gpus
from gemfleet.train.errors import UserError


class File(StrictModel):
    train: TrainConfig


def load(folder: Path, **train: Any) -> TrainConfig:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump({"train": {"model": "demo", "data": {"train": "demo"}, **train}}))
    return load_validated(path, [], File).train


def refusal(folder: Path, **train: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(folder, **train)
    first, *sentences = str(caught.value).splitlines()
    assert first.endswith("one problem:")
    assert len(sentences) == 1
    return sentences[0]


def with_json(**content: Any) -> dict[str, Any]:
    return {"strategy": "deepspeed", "deepspeed": {"config": content}}


def test_a_stage_that_does_not_exist(tmp_path: Path) -> None:
    sentence = refusal(tmp_path, strategy="deepspeed", deepspeed={"stage": 4})
    assert "train.deepspeed.stage: found 4; give one of `1`, `2`, `3`" in sentence


def test_a_quantised_base_is_not_divided_by_deepspeed(tmp_path: Path) -> None:
    sentence = refusal(tmp_path, strategy="deepspeed", quantization="int4", deepspeed={"stage": 3})
    assert "train.quantization is int4, but train.strategy deepspeed" in sentence
    assert "use strategy fsdp2" in sentence
    assert load(tmp_path, strategy="fsdp2", quantization="int4").quantization == "int4"


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ({"train_batch_size": 64}, ["train_batch_size to 64", "train.batch.global is 32"]),
        ({"train_micro_batch_size_per_gpu": 4}, ["train_micro_batch_size_per_gpu to 4", 'train.batch.micro is "auto"']),
        ({"gradient_accumulation_steps": 8}, ["gradient_accumulation_steps", "train.batch's to decide", "remove it"]),
        ({"optimizer": {"type": "Lamb"}}, ["optimizer", "train.optim's to decide"]),
        ({"fp16": {"enabled": True}}, ["fp16.enabled", "train.precision's to decide"]),
        ({"bf16": {"enabled": True}}, ["bf16.enabled to true", "train.precision"]),
        ({"gradient_clipping": 0.3}, ["gradient_clipping to 0.3", "train.optim.max_grad_norm is 1.0"]),
        ({"zero_optimization": {"stage": 3}}, ["zero_optimization.stage to 3", "train.deepspeed.stage is 2"]),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "nvme"}}},
            ['offload_optimizer.device to "nvme"', "train.deepspeed.offload_optimizer"],
        ),
    ],
)
def test_a_deepspeed_json_that_contradicts_ours(tmp_path: Path, content: dict[str, Any], parts: list[str]) -> None:
    (tmp_path / "zero.json").write_text(json.dumps(content))
    for given in (content, "zero.json"):
        sentence = refusal(tmp_path, strategy="deepspeed", deepspeed={"config": given})
        assert all(part in sentence for part in ["train.deepspeed.config sets", *parts]), sentence


@pytest.mark.parametrize(("content", "part"), [(None, "is not a file"), ("{", "is not valid JSON"), ("[]", "no JSON")])
def test_a_deepspeed_file_that_cannot_be_read(tmp_path: Path, content: str | None, part: str) -> None:
    if content is not None:
        (tmp_path / "zero.json").write_text(content)
    sentence = refusal(tmp_path, strategy="deepspeed", deepspeed={"config": "zero.json"})
    assert "train.deepspeed.config: 'zero.json'" in sentence
    assert part in sentence


def test_parameters_are_offloaded_under_stage_three_only(tmp_path: Path) -> None:
    sentence = refusal(tmp_path, strategy="deepspeed", deepspeed={"stage": 2, "offload_params": True})
    assert "train.deepspeed.offload_params is true, but train.deepspeed.stage 2" in sentence


def test_a_deepspeed_json_that_agrees_is_passed_on(tmp_path: Path) -> None:
    theirs = {
        "train_batch_size": 32,
        "gradient_accumulation_steps": "auto",
        "optimizer": "auto",
        "bf16": {"enabled": "auto"},
        "steps_per_print": 7,
        "zero_optimization": {"stage": 2, "reduce_bucket_size": 1000, "allgather_bucket_size": "auto"},
    }
    merged = engine_json(load(tmp_path, **with_json(**theirs)).deepspeed_settings())
    assert merged["zero_optimization"] == {"stage": 2, "reduce_bucket_size": 1000}
    assert merged["steps_per_print"] == 7
    assert merged["gradient_clipping"] == 1.0
    assert "auto" not in json.dumps(merged)
    assert {"bf16", "optimizer", "train_batch_size"}.isdisjoint(merged)


def test_more_ranks_than_gpus() -> None:
    check_ranks_have_gpus(ranks=4, gpus=0)
    check_ranks_have_gpus(ranks=4, gpus=4)
    with pytest.raises(UserError, match=r"--nproc-per-node is 4, but this machine has 2 GPUs; start at most 2"):
        check_ranks_have_gpus(ranks=4, gpus=2)


def test_the_buffer_for_gradients_is_as_large_as_the_adapters_unless_a_person_says(tmp_path: Path) -> None:
    plain: dict[str, Any] = {}
    set_by_hand = {"zero_optimization": {"reduce_bucket_size": 7}}
    for content, trained, expected in ((plain, 1000, 1000), (plain, 10**9, 5 * 10**8), (set_by_hand, 1000, 7)):
        engine = with_reduce_bucket(engine_json(load(tmp_path, **with_json(**content)).deepspeed_settings()), trained)
        assert engine["zero_optimization"] == {"stage": 2, "reduce_bucket_size": expected}


def test_ranks_that_share_passes_are_alike(tmp_path: Path) -> None:
    for batch, words in (
        ({"shares": "speed"}, "shares is speed"),
        ({"micro_by_gpu": {"NVIDIA L4": 2}}, "micro_by_gpu"),
    ):
        assert load(tmp_path, batch=batch).context_size == 1
        assert words in refusal(tmp_path, batch=batch, context_parallel=2)


def test_pictures_are_not_shared_among_ranks(tmp_path: Path) -> None:
    config = load(tmp_path, context_parallel=2)
    config.refuse_shared_pictures(0)
    load(tmp_path).refuse_shared_pictures(3)
    with pytest.raises(UserError, match=r"context_parallel is 2, but the data have pictures.*context_parallel: 1"):
        config.refuse_shared_pictures(3)
    with pytest.raises(UserError, match=r"context_parallel is 2, but 3 ranks do not form groups of 2"):
        config.data_ranks(3)
