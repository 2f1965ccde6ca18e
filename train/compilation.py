"""Regional compilation: the decoder layer is compiled once for each kind (sliding, global) and shared by all layers.

Attention stays outside the compiled graphs, because documents differ from pass to pass; everything else in a layer has
static shapes, as every pass is padded to the same number of tokens. Nothing is compiled again after the first step and
the first evaluation.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import nn

from .errors import UserError

MANY_SHAPES = 64


def compile_layers(layers: nn.ModuleList) -> None:
    """Compile each layer's forward. It happens at the first pass; hooks of the modules stay outside."""
    refuse_without_compiler()
    for layer in layers:
        layer.forward = torch.compile(layer.forward, dynamic=False)


def allow_many_shapes() -> None:
    """Let each new number of rows be compiled: after eight shapes torch would run a layer without compilation, so that
    the sizes a probe tries last would look slower than they are."""
    import torch._dynamo

    torch._dynamo.config.recompile_limit = MANY_SHAPES


def refuse_without_compiler() -> None:
    """UserError where torch finds no C++ compiler, which the generated code needs on CPUs and for CUDA's launchers."""
    if not has_compiler():
        raise UserError(
            "train.compile is true, but this machine has no C++ compiler that torch can use; "
            "install g++ (or name one in CXX) on every node, or set train.compile: false"
        )


@cache
def has_compiler() -> bool:
    """Whether torch finds a C++ compiler on this machine."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    return True
