"""Regional compilation: each kind of decoder layer (sliding, global) is compiled once, and all layers of it share that.

The number of tokens is a variable of the compiled code, so passes need no padding. The variable-length kernel of
attention is a part of the graphs; other kernels stay outside (`attention/packed.py`). Nothing is compiled after the
first step and the first evaluation.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sysconfig
from functools import cache

import torch
from torch import nn

from ..errors import UserError

# A share of what a compiled layer would keep for backward. In every Gemma 3, the results of matrix products and of
# attention are 61 to 64% of it: with room for those, the compiler computes only cheap things again.
SELECTIVE_BUDGET = 0.7


def compile_layers(layers: nn.ModuleList, memory_budget: float = 1.0) -> None:
    """Has torch compile each layer's forward at the first pass. The modules' hooks stay outside.

    memory_budget: the share of the results for backward that the compiler may keep; it computes the rest again
    """
    import torch._functorch.config as partitioner
    import torch.fx.experimental._config as shapes

    refuse_without_compiler(on_gpu=any(parameter.is_cuda for parameter in layers.parameters()))
    # Else torch takes sizes that are equal in the first pass, as of all tokens and the longest document, for one size.
    shapes.use_duck_shape = False
    partitioner.activation_memory_budget = memory_budget
    for layer in layers:
        layer.forward = torch.compile(layer.forward, dynamic=True)


def refuse_without_compiler(on_gpu: bool) -> None:
    """Raises UserError if this machine cannot build `torch.compile`'s code: C++, on a GPU Triton's launchers too."""
    missing, remedy = [], []
    if not has_compiler():
        missing.append("no C++ compiler that torch can use")
        remedy.append("g++ (or name one in CXX)")
    if on_gpu and not triton_builds():
        missing.append("no Triton that can build its kernels")
        remedy.append("triton, gcc and Python's headers (python3-dev)")
    if missing:
        raise UserError(
            f"train.compile is true, but this machine has {' and '.join(missing)}; "
            f"install {' and '.join(remedy)} on every node, or set train.compile: false"
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


@cache
def triton_builds() -> bool:
    """Whether Triton is installed and can build its launchers here, which needs a C compiler and Python's headers.

    Triton itself would fail only at the first kernel's launch.
    """
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or importlib.util.find_spec("triton") is None:
        return False
    # The scheme that Triton uses. Debian's own scheme names a folder for local additions.
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")
    headers = sysconfig.get_paths(scheme=scheme)["include"]
    try:
        command = [compiler, "-fsyntax-only", "-x", "c", f"-I{headers}", "-"]
        return subprocess.run(command, input=b"#include <Python.h>\n", capture_output=True, check=False).returncode == 0
    except OSError:
        return False
