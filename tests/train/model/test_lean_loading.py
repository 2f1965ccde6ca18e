"""Loading a divided base: equal to loading it whole, and no rank ever holds much more than its share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gemfleet.benchmarks.shared.random_base import save_random_base
from gemfleet.train.config.sections.recipe import LoraConfig
from gemfleet.train.device.memory import forget_resident_peak, peak_resident_bytes, resident_bytes
from gemfleet.train.model.gemma import attach_lora, load_base_model
from gemfleet.train.model.lean import WeightFiles, placeholder_model
from gemfleet.train.planning import SIZES, Workload
from gemfleet.train.planning.memory import layer_bytes, weight_bytes
from gemfleet.train.strategies import build_strategy
from safetensors.torch import save_file
from support.rank_pool import RankPool
from support.strategy_cases import strategy_config
from support.tiny_model import save_tiny_gemma3, tiny_gemma3

GIB = 2**30
RANKS = 4
DIVIDED: dict[str, dict[str, Any]] = {
    "fsdp2": {"strategy": "fsdp2"},
    "zero-3": {"strategy": "deepspeed", "deepspeed": {"stage": 3}},
}


def test_placeholders_have_the_names_shapes_and_buffers_of_the_model(tmp_path: Path) -> None:
    save_tiny_gemma3(tmp_path)
    lean, whole = (
        placeholder_model(tmp_path, torch.float32),
        load_base_model(tmp_path, torch.float32, torch.device("cpu")),
    )
    assert {n: p.shape for n, p in lean.named_parameters()} == {n: p.shape for n, p in whole.named_parameters()}
    assert lean.lm_head.weight is lean.model.embed_tokens.weight
    for (name, ours), (_, theirs) in zip(lean.named_buffers(), whole.named_buffers(), strict=True):
        assert torch.equal(ours, theirs), name


def test_adapters_are_drawn_equally_on_placeholders(tmp_path: Path) -> None:
    save_tiny_gemma3(tmp_path)
    lean = attach_lora(placeholder_model(tmp_path, torch.float32), LoraConfig(r=4), 7, "tiny").adapter_parameters()
    whole = attach_lora(tiny_gemma3(), LoraConfig(r=4), 7, "tiny").adapter_parameters()
    assert lean.keys() == whole.keys()
    assert all(torch.equal(lean[name], whole[name]) for name in whole)


def test_rows_of_published_multimodal_names_are_found(tmp_path: Path) -> None:
    weight = torch.arange(12.0).view(6, 2)
    save_file({"language_model.model.norm.weight": weight}, tmp_path / "model.safetensors")
    assert torch.equal(WeightFiles(tmp_path).rows("model.language_model.norm.weight", 2, 5), weight[2:5])


@pytest.mark.slow
@pytest.mark.long
def test_a_rank_quantises_no_more_than_its_share_and_two_layers_and_half_a_gib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two layers and the whole, as they are stored in four bits."""
    monkeypatch.setattr("support.rank_pool.CASE_SECONDS", 1200.0)  # the scale search of 700 M weights, on four ranks
    shape, work = SIZES["1b"], Workload(quantization="int4")
    save_random_base(shape, torch.bfloat16, tmp_path)
    allowed = weight_bytes(shape, work) / RANKS + 2 * layer_bytes(shape, work) + GIB / 2
    with RankPool(RANKS) as pool:
        peaks = pool.run(peak_of_loading, str(tmp_path), {"strategy": "fsdp2", "quantization": "int4"})
    print(f"\nallowed {allowed / GIB:.2f}, peaks", ", ".join(f"{peak / GIB:.2f}" for peak in peaks))
    assert max(peaks) <= allowed


@pytest.mark.slow
@pytest.mark.long
def test_a_rank_peaks_at_its_share_and_two_layers_and_a_gib(tmp_path: Path) -> None:
    sizes = save_random_base(SIZES["1b"], torch.bfloat16, tmp_path)
    whole, layer = sum(sizes.values()), sum(size for name, size in sizes.items() if ".layers.0." in name)
    allowed = whole / RANKS + 2 * layer + GIB
    worst = {}
    with RankPool(RANKS) as pool:
        for name, changes in DIVIDED.items():
            peaks = pool.run(peak_of_loading, str(tmp_path), changes)
            print(f"\n{name}: whole {whole / GIB:.2f} GiB, allowed {allowed / GIB:.2f}, peaks", end=" ")
            print(", ".join(f"{peak / GIB:.2f}" for peak in peaks))
            worst[name] = max(peaks)
    assert max(worst.values()) <= allowed < whole


def peak_of_loading(folder: str, changes: dict[str, Any]) -> int:
    """Bytes by which this rank's resident set grew at most while the base was loaded and set up. Collective."""
    config = strategy_config(**changes)
    build_strategy(config)  # imports, which are not the model's
    import bitsandbytes  # noqa: F401
    import deepspeed  # noqa: F401
    import peft  # noqa: F401

    before = resident_bytes()
    forget_resident_peak()
    strategy = build_strategy(config)
    base = strategy.load_base(Path(folder), torch.bfloat16, torch.device("cpu"))
    strategy.setup(attach_lora(base, config.lora, config.seed, "random"))
    return peak_resident_bytes() - before
