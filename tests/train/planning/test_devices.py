"""GPUs found by the name that their driver gives them."""

from __future__ import annotations

import pytest
from gemfleet.train.planning.devices import gpu_of_driver_name


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100-80"),
        ("NVIDIA A100-PCIE-40GB", "a100-40"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L4", "l4"),
        ("Tesla T4", "t4"),
        ("Tesla V100-SXM2-16GB", "v100-16"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA RTX A6000", "a6000"),
        ("AMD Instinct MI300X", "mi300x"),
    ],
)
def test_a_known_card_is_found(name: str, key: str) -> None:
    device = gpu_of_driver_name(name)
    assert device is not None
    assert device.name == key


@pytest.mark.parametrize(
    "name",
    ["NVIDIA A10G", "NVIDIA H100 NVL", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 4080 SUPER", ""],
)
def test_a_card_that_is_only_called_alike_is_not(name: str) -> None:
    assert gpu_of_driver_name(name) is None
