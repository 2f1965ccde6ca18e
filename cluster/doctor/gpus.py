"""Reads this node's GPUs from NVIDIA's management library, and whether torch can compute on them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def gpu_facts() -> dict[str, Any]:
    """The GPUs that the driver shows.

    count:         how many there are
    problem:       why nothing more could be read; empty when it could
    driver:        its version
    devices:       in the library's order, see `_device`
    torch_problem: why torch cannot compute on them; empty when it can
    """
    facts = _driver_facts()
    capabilities = [device["capability"] for device in facts["devices"]]
    return {**facts, "torch_problem": torch_problem(capabilities) if facts["count"] else ""}


def _driver_facts() -> dict[str, Any]:
    count = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    try:
        import pynvml
    except ImportError:
        return {"count": count, "problem": "the package nvidia-ml-py is missing", "driver": "", "devices": []}
    try:
        pynvml.nvmlInit()
        driver = _text(pynvml.nvmlSystemGetDriverVersion())
        devices = [_device(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as error:
        return {"count": count, "problem": f"the driver does not answer: {error}", "driver": "", "devices": []}
    return {"count": len(devices), "problem": "", "driver": driver, "devices": devices}


def torch_problem(capabilities: Sequence[Sequence[int] | None]) -> str:
    """Why the installed torch cannot compute on GPUs of these compute capabilities (None: unknown). Empty if it can.

    It imports torch, because only CUDA knows whether it works with this driver. It takes no memory of a GPU.
    """
    import torch

    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return ""  # the GPUs are hidden from this process, which so cannot tell
    built = torch.version.cuda
    if not built:
        return f"torch {torch.__version__} is a build without CUDA"
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        usable = _cuda_devices() > 0
    if not usable:
        said = "".join(f": {str(warning.message).splitlines()[0][:200]}" for warning in told[:1])
        return f"torch {torch.__version__} (CUDA {built}) cannot use them{said}"
    kinds = torch.cuda.get_arch_list()
    lacking = sorted({f"{c[0]}.{c[1]}" for c in capabilities if c is not None and not has_code_for(c, kinds)})
    if lacking:
        return f"torch {torch.__version__} has no code for compute capability {', '.join(lacking)} ({' '.join(kinds)})"
    return ""


def _cuda_devices() -> int:
    """CUDA's own count: once DeepSpeed is imported, `is_available` only asks the driver for its list."""
    import torch

    return int(torch._C._cuda_getDeviceCount())


def has_code_for(capability: Sequence[int], kinds: Sequence[str]) -> bool:
    """Whether code of any of these kinds (`sm_90`, `compute_120`) runs on a GPU of this compute capability.

    Machine code (`sm`) runs within its major version, from its own minor version on. PTX (`compute`) runs on all newer.
    """
    major, minor = capability
    for kind in kinds:
        form, _, digits = kind.partition("_")
        found = int(digits.rstrip("af")) if digits.rstrip("af").isdigit() else 0
        at_least = (found // 10, found % 10) <= (major, minor)
        if at_least and (form == "compute" or found // 10 == major):
            return True
    return False


def _device(pynvml: Any, index: int) -> dict[str, Any]:
    """One GPU. What the library does not tell is None.

    total, free: bytes of memory; capability: CUDA's, as [major, minor]; ecc_errors: uncorrected since the driver loaded
    """
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)

    def asked(question: Callable[[], Any]) -> Any:
        try:
            return question()
        except pynvml.NVMLError:
            return None

    processes = asked(lambda: pynvml.nvmlDeviceGetComputeRunningProcesses(handle)) or []
    uncorrected, volatile = pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC
    return {
        "name": _text(pynvml.nvmlDeviceGetName(handle)),
        "total": memory.total,
        "free": memory.free,
        "processes": [process.pid for process in processes],
        "capability": asked(lambda: list(pynvml.nvmlDeviceGetCudaComputeCapability(handle))),
        "ecc_errors": asked(lambda: pynvml.nvmlDeviceGetTotalEccErrors(handle, uncorrected, volatile)),
        "throttled": _throttled(pynvml, asked(lambda: pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)) or 0),
        "celsius": asked(lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)),
    }


def _throttled(pynvml: Any, reasons: int) -> list[str]:
    """The reasons that slow training down. An idle GPU lowers its clocks, too; that is none of them."""
    bits = {
        "heat": pynvml.nvmlClocksThrottleReasonHwThermalSlowdown | pynvml.nvmlClocksThrottleReasonSwThermalSlowdown,
        "power": pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown,
        "hardware": pynvml.nvmlClocksThrottleReasonHwSlowdown,
    }
    return [name for name, bit in bits.items() if reasons & bit]


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode()
