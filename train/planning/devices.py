"""The figures of GPUs that a plan needs, from their makers' data sheets. Only one figure is measured.

Rates are dense bf16 tensor-core rates with fp32 accumulation. Matrix products reach less. How much is known only for
the H200 (790 of 989 TFLOP/s); the same share is assumed for all others.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

from .options import DeviceKind

GB = 10**9
GIB = 2**30
REACHED_SHARE = 790 / 989.4


@dataclass(frozen=True)
class Device:
    """memory_bytes: of one device; tflops: the sheet's peak in bf16, or in fp32 for a GPU without bf16 (bf16 False)

    reached_tflops: by large matrix products; bandwidth_gb_s: of the memory; link_gb_s: to the node's other GPUs, in
    one direction: NVLink or Infinity Fabric, else PCIe
    """

    name: str
    kind: DeviceKind
    memory_bytes: int
    tflops: float
    reached_tflops: float
    bandwidth_gb_s: float
    link_gb_s: float
    bf16: bool
    source: str


def _gpu(
    name: str, memory_gb: int, tflops: float, bandwidth: float, link: float, source: str, bf16: bool = True
) -> Device:
    # Data sheets of GDDR cards mean GiB. Those of HBM cards mean GB; a driver shows that number in GiB, less 3 to 7%.
    # The smaller reading is taken for all.
    return Device(name, "cuda", memory_gb * GB, tflops, tflops * REACHED_SHARE, bandwidth, link, bf16, source)


GPUS: dict[str, Device] = {
    device.name: device
    for device in (
        _gpu("t4", 16, 8.1, 320, 16, "NVIDIA T4 data sheet; no bf16, fp32 rate", bf16=False),
        _gpu("v100-16", 16, 15.7, 900, 150, "NVIDIA V100 data sheet, SXM2; no bf16, fp32 rate", bf16=False),
        _gpu("v100-32", 32, 15.7, 900, 150, "NVIDIA V100 data sheet, SXM2; no bf16, fp32 rate", bf16=False),
        _gpu("rtx4080", 16, 97.5, 717, 32, "NVIDIA Ada architecture whitepaper"),
        _gpu("rtx3090", 24, 71, 936, 32, "NVIDIA GA102 architecture whitepaper"),
        _gpu("rtx4090", 24, 165.2, 1008, 32, "NVIDIA Ada architecture whitepaper"),
        _gpu("a10", 24, 125, 600, 32, "NVIDIA A10 data sheet"),
        _gpu("l4", 24, 121, 300, 32, "NVIDIA L4 data sheet (half of the sparse rate)"),
        _gpu("rtx5090", 32, 209.5, 1792, 64, "NVIDIA Blackwell RTX architecture whitepaper"),
        _gpu("a100-40", 40, 312, 1555, 300, "NVIDIA A100 data sheet, SXM4"),
        _gpu("a6000", 48, 154.8, 768, 32, "NVIDIA RTX A6000 data sheet (half of the sparse rate)"),
        _gpu("l40s", 48, 362, 864, 32, "NVIDIA L40S data sheet"),
        _gpu("a100-80", 80, 312, 2039, 300, "NVIDIA A100 data sheet, SXM4"),
        _gpu("h100-pcie", 80, 756, 2000, 64, "NVIDIA H100 data sheet, PCIe (half of the sparse rate)"),
        _gpu("h100", 80, 989.4, 3350, 450, "NVIDIA H100 data sheet, SXM5 (half of the sparse rate)"),
        _gpu("gh200", 96, 989.4, 4000, 450, "NVIDIA GH200 data sheet (half of the sparse rate)"),
        _gpu("h200", 141, 989.4, 4800, 450, "NVIDIA H200 data sheet (half of the sparse rate); 790 TFLOP/s measured"),
        _gpu("b200", 180, 2250, 8000, 900, "NVIDIA DGX B200 data sheet, an eighth (half of the sparse rate)"),
        _gpu("mi300x", 192, 1307.4, 5300, 448, "AMD Instinct MI300X data sheet; gemfleet was never run on ROCm"),
    )
}


def gpu_of_driver_name(name: str) -> Device | None:
    """The data sheet of a GPU by its driver's name, as in `NVIDIA H100 80GB HBM3`; None if none is sure.

    Whole words must match: an A10G, a laptop's or an NVL card is another card than the one with the sheet.
    """
    words = re.findall(r"[a-z0-9]+", name.lower())
    known = {*words, *(first + second for first, second in pairwise(words))}
    if known & {"laptop", "nvl", "maxq", "super", "ti"}:
        return None
    found = [
        device for key, device in GPUS.items() if all(part in known or f"{part}gb" in known for part in key.split("-"))
    ]
    return max(found, key=lambda device: len(device.name), default=None)


def cpu_device(memory_bytes: int) -> Device:
    """A host whose ranks compute on its cores. Its speed depends on cores and flags, so the plan expects none."""
    return Device("cpu", "cpu", memory_bytes, 0.0, 0.0, 0.0, 0.0, True, "this host")
