"""Finds out what this process's device can do. No other module looks at the hardware."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from ..config.schema import Precision
from ..errors import UserError
from ..quiet import hide_known_lines
from .cpu import cpu_gains_from_bf16, cpu_name


@dataclass(frozen=True)
class DeviceFacts:
    """device: of the tensors; name: for people; bf16_gains: whether its matrix products are faster in bf16 than fp32"""

    device: torch.device
    name: str
    bf16_gains: bool


def current_device(local_rank: int) -> DeviceFacts:
    """The CUDA device of this local rank if there is one, else the CPU."""
    if torch.cuda.is_available():
        # Ray sets CUDA_VISIBLE_DEVICES to the rank's own GPU; torchrun does not.
        device = torch.device("cuda", local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
        # For a GPU before Ampere, torch says yes to bf16 unless emulation is excluded.
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return DeviceFacts(device, torch.cuda.get_device_name(device), bf16)
    return DeviceFacts(torch.device("cpu"), cpu_name(), cpu_gains_from_bf16())


def refuse_unusable_gpus() -> None:
    """Raises UserError if the driver shows GPUs that torch cannot use: nobody means to train on the CPU beside them."""
    if _cuda_runs() or os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return
    if gpus := _gpus_of_the_driver():
        shown = f"{gpus} GPU" + ("" if gpus == 1 else "s")
        built = torch.version.cuda
        reason = f"finds none with its CUDA {built}" if built else "is a build without CUDA"
        remedy = "update the driver, or install a torch for an older CUDA" if built else "install a torch with CUDA"
        raise UserError(
            f"the driver shows {shown} on this machine, but torch {torch.__version__} {reason}; "
            f"{remedy}, or hide the GPUs with CUDA_VISIBLE_DEVICES= to train on the CPU"
        )


def _cuda_runs() -> bool:
    """Whether CUDA itself starts. After an import of DeepSpeed, `is_available` only counts what the driver lists."""
    return torch.cuda.is_available() and torch._C._cuda_getDeviceCount() > 0


def _gpus_of_the_driver() -> int:
    """The number of GPUs that the driver lists in /proc, or else NVIDIA's management library."""
    listed = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    try:
        import pynvml
    except ImportError:
        return listed
    try:
        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetCount())
    except pynvml.NVMLError:
        return listed


def choose_dtype(precision: Precision, facts: DeviceFacts) -> torch.dtype:
    """The dtype of the computation. `auto` takes bf16 only if the hardware gains from it: emulated, it is slow.

    fp16 has the same answer as `auto`: Gemma 3's activations leave its range (transformers issues 36822 and 36832).
    """
    if precision in ("auto", "fp16"):
        return torch.bfloat16 if facts.bf16_gains else torch.float32
    return torch.bfloat16 if precision == "bf16" else torch.float32


def prepare_process(ranks_on_node: int) -> int:
    """Gives this process its share of the node's cores, and keeps the memory it frees. Returns its number of threads.

    It also hides known lines of libraries, so it must be called before models are loaded.
    """
    hide_known_lines()
    keep_freed_memory()
    threads = max(1, len(os.sched_getaffinity(0)) // max(1, ranks_on_node))
    torch.set_num_threads(threads)
    return threads


def keep_freed_memory() -> bool:
    """Tells glibc not to return freed activations to the kernel between passes. Returns False if there is no glibc.

    By default glibc maps each large tensor anew, and each first touch of a page is a fault, which is slow on virtual
    machines. The gain has not been measured in isolation.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    trim_threshold, top_pad, mmap_threshold, arena_max = -1, -2, -3, -8
    mib = 1024 * 1024
    settings = ((arena_max, 1), (mmap_threshold, 32 * mib), (trim_threshold, 2**31 - 1), (top_pad, 64 * mib))
    accepted = [bool(mallopt(parameter, value)) for parameter, value in settings]
    return all(accepted)
