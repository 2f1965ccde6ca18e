"""Compiles the stand-in for this environment's torch, once for each state of its sources."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

SOURCES = Path(__file__).resolve().parent / "src"
REPOSITORY = Path(__file__).resolve().parents[3]
DRIVER, NVML = "libcuda.so.1", "libnvidia-ml.so.1"
FLAGS = ("-std=c++20", "-O1", "-g", "-fPIC", "-shared", "-Wall", "-Wno-unused-function")
# What Triton, DeepSpeed and torch look up by name at run time, so that no library's table of symbols lists it.
LOOKED_UP = [
    "cuMemCreate",
    "cuMemMap",
    "cuMemUnmap",
    "cuMemRelease",
    "cuMemAddressReserve",
    "cuMemAddressFree",
    "cuMemSetAccess",
    "cuCtxSetLimit",
    "cuModuleUnload",
    "cuTensorMapEncodeTiled",
    "cuCtxSynchronize",
    "cuStreamSynchronize",
    "cuLibraryLoadData",
    "cuDevicePrimaryCtxRelease",
]
# Answers the one question that is asked of it: name and memory of each GPU, as CSV.
NVIDIA_SMI = """#!/usr/bin/env bash
mib=$(awk -v gib="${NULLGPU_GIB:-139.8}" 'BEGIN { printf "%d", gib * 1024 }')
IFS=';' read -ra names <<< "${NULLGPU_NAME:-NVIDIA H200}"
for ((i = 0; i < ${NULLGPU_DEVICES:-1}; i++)); do
    echo "${names[i]:-${names[-1]}}, $mib MiB"
done
"""
CALLS = re.compile(r"(_*cuda[A-Z]|cu[A-Z][a-zA-Z]|cublas|nccl)(?!File)")


def why_not() -> str | None:
    """What is missing to build and use the stand-in here; None where nothing is."""
    import torch

    if not torch.version.cuda:
        return "torch is a CPU build; `make test-nullgpu` uses an environment with the CUDA build"
    if missing := [program for program in ("g++", "nm") if not shutil.which(program)]:
        return f"needs {' and '.join(missing)}"
    return None if _includes() else "CUDA's headers are neither in CUDA_HOME nor beside torch"


def built() -> Path:
    """The folder with both libraries, in GEMFLEET_TEST_CACHE or the repository's own cache."""
    cache = Path(os.environ.get("GEMFLEET_TEST_CACHE") or REPOSITORY / ".cache" / "tests").resolve()
    folder = cache / f"nullgpu-{_key()}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process of these tests may build it just now
        if not (folder / DRIVER).exists():
            _build(folder)
    return folder


def _build(folder: Path) -> None:
    _compile(folder / NVML, [SOURCES / "nvml.cpp"])
    stubs = folder / "stubs.cpp"
    stubs.write_text(_stubs())
    parts = [path for path in sorted(SOURCES.glob("*.cpp")) if path.name != "nvml.cpp"]
    _write_nvidia_smi(folder / "bin" / "nvidia-smi")
    _compile(folder / DRIVER, [*parts, stubs])


def _write_nvidia_smi(program: Path) -> None:
    program.parent.mkdir(exist_ok=True)
    program.write_text(NVIDIA_SMI)
    program.chmod(0o755)


def _key() -> str:
    import torch

    files = (path.read_bytes() for path in (*sorted(SOURCES.iterdir()), Path(__file__)))
    return hashlib.sha256(b"\0".join([torch.__version__.encode(), *files])).hexdigest()[:16]


def _compile(target: Path, sources: list[Path]) -> None:
    """In one rename, so that a library is whole wherever there is one."""
    unfinished = target.with_suffix(f".{os.getpid()}")
    include = [f"-I{folder}" for folder in (SOURCES, *_includes())]
    command = ["g++", *FLAGS, f"-Wl,-soname,{target.name}", *include, "-o", unfinished, *sources, "-ldl", "-lpthread"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    unfinished.rename(target)


def _stubs() -> str:
    """Functions that answer zero, for all that the libraries call and the stand-in has not."""
    defined = set(re.findall(r"\b(\w+)\(", "".join(path.read_text() for path in SOURCES.glob("*.cpp"))))
    wanted = {*LOOKED_UP, *(name for library in _libraries() for name in _undefined(library) if CALLS.match(name))}
    return "".join(f'extern "C" int {name}() {{ return 0; }}\n' for name in sorted(wanted - defined))


def _undefined(library: Path) -> list[str]:
    table = subprocess.run(["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True)
    return [line.split()[1].partition("@")[0] for line in table.stdout.splitlines()]


def _libraries() -> list[Path]:
    packages = _packages()
    return [*packages.glob("torch/lib/lib*.so"), *packages.glob("bitsandbytes/libbitsandbytes_cuda13*.so")]


def _includes() -> list[Path]:
    """Folders of headers: the wheels' beside torch, then Triton's, which has the few that those lack."""
    folders = [*sorted(_packages().glob("nvidia/*/include")), _packages() / "triton/backends/nvidia/include"]
    if home := os.environ.get("CUDA_HOME"):
        folders.append(Path(home) / "include")
    wanted = ("cuda_runtime_api.h", "cublasLt.h", "nccl.h")
    return folders if all(any((folder / name).exists() for folder in folders) for name in wanted) else []


def _packages() -> Path:
    return Path(sysconfig.get_path("purelib"))
