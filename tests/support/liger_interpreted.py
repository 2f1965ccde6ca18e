"""Liger's kernels by Triton's interpreter, where `train/kernels/liger.py` puts them, beside transformers' own.

Run as a program, because TRITON_INTERPRET is read when Triton is imported. Prints one JSON line a case: relative
differences of the output and of the gradient with respect to the input, and whether the dtypes are equal.
"""

from __future__ import annotations

import copy
import json
import os
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import liger_kernel.ops.geglu as geglu
import liger_kernel.ops.rms_norm as rms_norm
import numpy as np
import torch
import triton.language as tl
import triton.runtime.interpreter as interpreter
from gemfleet.train.kernels.liger import use_liger
from torch import Tensor, nn
from transformers import Gemma3TextConfig
from transformers.models.gemma3.modeling_gemma3 import Gemma3MLP, Gemma3RMSNorm


def run_libdevice_by_numpy() -> None:
    """The interpreter calls nothing of CUDA's own library, and makes no tensor of a Python float."""
    convert = interpreter._implicit_cvt

    def convert_floats_too(value: Any) -> Any:
        if isinstance(value, float):
            return tl.tensor(interpreter.TensorHandle(np.array([value], np.float32), tl.float32), tl.float32)
        return convert(value)

    def tanh(x: Any, _semantic: Any = None) -> Any:
        return tl.tensor(interpreter.TensorHandle(np.tanh(x.handle.data), x.handle.dtype), x.type)

    def rsqrt(x: Any, _semantic: Any = None) -> Any:
        data = (1 / np.sqrt(x.handle.data)).astype(x.handle.data.dtype)
        return tl.tensor(interpreter.TensorHandle(data, x.handle.dtype), x.type)

    interpreter._implicit_cvt = convert_floats_too
    geglu.tanh, rms_norm.rsqrt = tanh, rsqrt


def compare(name: str, plain: nn.Module, x: Tensor) -> None:
    ours = copy.deepcopy(plain)
    assert use_liger(nn.ModuleList([ours])) == 1
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [module(given) for module, given in zip((plain, ours), inputs, strict=True)]
    upstream = torch.randn_like(outputs[0])
    for output in outputs:
        output.backward(upstream)
    (expected, output), (expected_gradient, gradient) = outputs, [given.grad for given in inputs]
    assert gradient is not None
    assert expected_gradient is not None
    result = {
        "case": f"{name} {tuple(x.shape)} {x.dtype}",
        "output": difference(output, expected),
        "gradient": difference(gradient, expected_gradient),
        "same_dtypes": output.dtype == expected.dtype and gradient.dtype == expected_gradient.dtype,
    }
    print(json.dumps(result), flush=True)


def difference(ours: Any, theirs: Any) -> float:
    ours, theirs = ours.detach().double(), theirs.detach().double()
    return float((ours - theirs).norm() / theirs.norm())


def main() -> None:
    run_libdevice_by_numpy()
    torch.manual_seed(0)
    config = Gemma3TextConfig(hidden_size=64, intermediate_size=144, num_hidden_layers=1, vocab_size=64)
    for dtype in (torch.float32, torch.float16):
        for shape in ((1, 7, 1152), (1, 5, 5376), (1, 4, 33, 256)):
            norm = Gemma3RMSNorm(shape[-1], 1e-6).to(dtype).requires_grad_(False)
            norm.weight.normal_(0, 0.3)
            x = torch.randn(shape, dtype=dtype)
            compare("norm", norm, x if len(shape) == 3 else x.transpose(1, 2).contiguous().transpose(1, 2))
        compare("mlp", Gemma3MLP(config).to(dtype).requires_grad_(False), torch.randn(1, 9, 64, dtype=dtype))


if __name__ == "__main__":
    main()
