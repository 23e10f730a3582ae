# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The peaks that utilisation is measured against."""

import pytest

from memformer.planning.devices import peak_flops


@pytest.mark.parametrize(
    ("name", "precision", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4),
        ("NVIDIA H100 PCIe", "bf16", 756.0),
        ("NVIDIA H200", "bf16", 989.4),
        ("NVIDIA A100-SXM4-80GB", "bf16", 312.0),
        ("NVIDIA A100-SXM4-80GB", "fp32", 19.5),
        ("NVIDIA L40S", "bf16", 362.0),
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
        ("NVIDIA A10G", "bf16"),
        ("NVIDIA RTX A4000", "bf16"),
        ("NVIDIA H100 80GB HBM3", "fp64"),
        ("Intel(R) Xeon(R) Processor", "bf16"),
        ("", "fp32"),
    ],
)
def test_unknown_peaks_are_none(name: str, precision: str) -> None:
    assert peak_flops(name, precision) is None
