"""Builds `elementwise.cpp` for this machine's CPU, once, and loads it. It takes a C++ compiler a second."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import logging
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...config.home import cache_folder, cpp_compiler

log = logging.getLogger("gemfleet.train")

SOURCE = Path(__file__).with_name("elementwise.cpp")
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-fopenmp", "-fno-math-errno", "-fno-trapping-math")
BUILD_SECONDS = 600  # at most, of a command


@cache
def library() -> ctypes.CDLL | None:
    """The functions of `elementwise.cpp`; None, with a line in the log, if they cannot be built here."""
    compiler, openmp = cpp_compiler(), _openmp_of_torch()
    if compiler is None or openmp is None:
        return None
    try:
        return ctypes.CDLL(str(_built(compiler, openmp)))
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("norms and GeGLU are torch's, as the fused ones could not be built: %s", error)
        return None


def call(name: str, *arguments: Tensor | float | None) -> None:
    """Calls a function of the library, which is there: with tensors as pointers, 64-bit numbers and fp32 ones."""
    getattr(library(), name)(*map(_as_c, arguments))


def _as_c(value: Tensor | float | None) -> Any:
    if value is None or isinstance(value, Tensor):
        assert value is None or value.is_contiguous()
        return ctypes.c_void_p(None if value is None else value.data_ptr())
    return ctypes.c_int64(value) if isinstance(value, int) else ctypes.c_float(value)


def _built(compiler: str, openmp: str) -> Path:
    """The library's path in the cache, where it is built if it is not there."""
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True, timeout=BUILD_SECONDS).stdout
    words = " ".join([*FLAGS, openmp, *_cpu(Path("/proc/cpuinfo").read_text(errors="replace"))])
    parts = (SOURCE.read_bytes(), version, words.encode())
    target = cache_folder("kernels") / f"elementwise-{hashlib.sha256(b'|'.join(parts)).hexdigest()[:16]}.so"
    if not target.exists():
        with target.with_name("lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # ranks of a node that need it at once build it once
            if not target.exists():
                _build(compiler, openmp, target)
    return target


def _build(compiler: str, openmp: str, target: Path) -> None:
    """`target` appears whole or not at all. On a busy machine, seconds become minutes; none runs slowly for that."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        compiled, linked = Path(folder) / "elementwise.o", Path(folder) / target.name
        for command in (
            [compiler, *FLAGS, "-c", str(SOURCE), "-o", str(compiled)],
            # Linked without -fopenmp: a second OpenMP beside torch's would have threads of its own.
            [compiler, "-shared", str(compiled), openmp, "-o", str(linked)],
        ):
            subprocess.run(command, capture_output=True, check=True, timeout=BUILD_SECONDS)
        linked.replace(target)


def _cpu(info: str) -> list[str]:
    """What tells CPUs apart, as x86 and ARM say it: with `-march=native`, code of one may not run on another.

    Both may read the same home.
    """
    return sorted({line for line in info.splitlines() if line.startswith(("model name", "flags", "CPU ", "Features"))})


def _openmp_of_torch() -> str | None:
    """The GNU OpenMP that this process has loaded with torch. Other libraries may have brought theirs."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    found = [path for path in (line.split(maxsplit=5)[-1] for line in lines) if Path(path).name.startswith("libgomp")]
    own = [path for path in found if path.startswith(str(Path(torch.__file__).parent))]
    return next(iter(own + found), None)
