# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Devices that are planned for, and the peaks that utilisation is measured against."""

import pytest

from data_pipeline.errors import UserError
from memformer.planning.devices import DEVICES, device_of, peak_flops


@pytest.mark.parametrize(
    ("name", "precision", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4),
        ("NVIDIA H100 PCIe", "bf16", 756.0),
        ("NVIDIA H200", "bf16", 989.4),
        ("NVIDIA A100-SXM4-80GB", "bf16", 312.0),
        ("NVIDIA A100-SXM4-80GB", "fp32", 19.5),
        ("NVIDIA H100 NVL", "bf16", 835.5),
        ("NVIDIA B200", "bf16", 2250.0),
        ("NVIDIA GB200", "bf16", 2500.0),
        ("NVIDIA L40S", "bf16", 362.05),
        ("NVIDIA A10G", "bf16", 70.0),
        ("NVIDIA A10", "bf16", 125.0),
        ("NVIDIA GeForce RTX 4090", "bf16", 165.2),
        ("AMD Instinct MI300X", "bf16", 1307.4),
        ("AMD Instinct MI250X", "fp16", 191.5),
        ("NVIDIA L4", "bf16", 121.0),
        ("NVIDIA A40", "bf16", 149.7),
        ("Tesla V100-SXM2-16GB", "fp16", 125.0),
    ],
)
def test_peaks(name: str, precision: str, tflops: float) -> None:
    assert peak_flops(name, precision) == pytest.approx(tflops * 1e12)


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("Tesla V100-SXM2-16GB", "bf16"),
        ("NVIDIA RTX A4000", "bf16"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16"),
        ("NVIDIA H100 80GB HBM3", "fp64"),
        ("Intel(R) Xeon(R) Processor", "bf16"),
        ("", "fp32"),
    ],
)
def test_unknown_peaks_are_none(name: str, precision: str) -> None:
    assert peak_flops(name, precision) is None


@pytest.mark.parametrize("name", DEVICES)
def test_every_device_has_a_dense_peak_and_a_source(name: str) -> None:
    device = DEVICES[name]
    peak = peak_flops(device.name, "fp16")
    assert peak is not None and peak > 0
    assert ".com/" in device.source and device.node_bandwidth < device.memory_bandwidth
    assert device_of(name.upper()) == device


def test_a_network_is_the_usual_one_or_given() -> None:
    assert device_of("h100", nodes=4).network_bandwidth == 50e9
    assert device_of("h100", nodes=4, network_gigabits=100).network_bandwidth == 12.5e9
    assert device_of("l40s", nodes=4, network_gigabits=100).network_bandwidth == 12.5e9
    assert device_of("l40s").network_bandwidth is None
    with pytest.raises(UserError, match="--nodes is 4, but l40s has no usual network: give --network-gigabits"):
        device_of("l40s", nodes=4)


def test_links_pair_by_pair_add_up() -> None:
    """One of seven between two, all of them among eight; with a switch, or a single way, always the same."""
    assert [DEVICES["mi300x"].within(members) for members in (2, 4, 8)] == [64e9, 192e9, 448e9]
    assert DEVICES["h100"].within(2) == DEVICES["h100"].within(8) == 450e9


def test_a_wrong_name_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"--device is 'b20'.*b200, gb200, mi250x, mi300x"):
        device_of("b20")
