"""What NVIDIA's management library says of this node's GPUs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


def gpu_facts() -> dict[str, Any]:
    """`count`: of the driver; `problem`: why no more could be read, else empty; `devices` in the library's order."""
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


def _device(pynvml: Any, index: int) -> dict[str, Any]:
    """`ecc_errors`: uncorrected since the driver was loaded; None where the GPU has no such memory."""
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
        "ecc_errors": asked(lambda: pynvml.nvmlDeviceGetTotalEccErrors(handle, uncorrected, volatile)),
        "throttled": _throttled(pynvml, asked(lambda: pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)) or 0),
        "celsius": asked(lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)),
    }


def _throttled(pynvml: Any, reasons: int) -> list[str]:
    """Only what slows training down: an idle GPU lowers its clocks, too."""
    bits = {
        "heat": pynvml.nvmlClocksThrottleReasonHwThermalSlowdown | pynvml.nvmlClocksThrottleReasonSwThermalSlowdown,
        "power": pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown,
        "hardware": pynvml.nvmlClocksThrottleReasonHwSlowdown,
    }
    return [name for name, bit in bits.items() if reasons & bit]


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode()
