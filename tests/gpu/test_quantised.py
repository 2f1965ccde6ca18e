"""A base in 4 or 8 bits trains as the dense base that its weights stand for."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from gemfleet.train.kernels.quantization import dequantiser, is_quantised
from support.gpu_proof.findings import apart, ratio
from support.gpu_proof.stage import Stage, gradients

# fp32 differs by rounding at most; bf16 by kernels whose sums have no fixed order.
BOUNDS = {"fp32": (1e-5, 1e-3), "bf16": (1e-2, 5e-2)}


def test_quantised(stage: Stage) -> None:
    if find_spec("bitsandbytes") is None:
        stage.skip("int4 and int8", "bitsandbytes is not installed")
        return
    for quantization in ("int4", "int8"):
        for precision in BOUNDS:
            _compare(stage, quantization, precision)


def _compare(stage: Stage, quantization: str, precision: str) -> None:
    narrow = stage.model(stage.config(quantization=quantization, precision=precision))
    twin = stage.model(stage.config(precision=precision))
    layers = {name: layer for name, layer in narrow.peft_model.get_base_model().named_modules() if is_quantised(layer)}
    name = f"{quantization}, {precision}"
    stage.holds(f"{name}: every projection", len(layers) == 7 * stage.shape.layers, f"{len(layers)} are quantised")
    _take_weights(twin.peft_model.get_base_model(), layers)
    (loss, found), (exact_loss, exact) = (gradients(model, stage.rows()) for model in (narrow, twin))
    stage.at_most(f"{name}: loss", ratio(loss, exact_loss), BOUNDS[precision][0])
    stage.at_most(f"{name}: gradients", apart(found, exact), BOUNDS[precision][1])


def _take_weights(twin: Any, layers: dict[str, Any]) -> None:
    for path, layer in layers.items():
        dequantise, target = dequantiser(layer), twin.get_submodule(path).weight
        assert dequantise is not None
        target.data = dequantise(layer.weight, target.dtype)
