# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Sums of a trace, on one made by hand: a GPU's kernels, which run behind the host's back, and a host's operators."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import UserError
from memformer.run.directory import RunDirectory
from memformer.run.traces import find_traces, kind_of, read_trace, step_times


def event(cat: str, name: str, begin: float, length: float, **more: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "ts": begin, "dur": length, "tid": 1, **more}


PARTS = [
    event("user_annotation", "memformer: step 3", 0, 100),
    event("user_annotation", "memformer: data", 0, 10),
    event("user_annotation", "memformer: segment forward", 10, 30),
    event("user_annotation", "memformer: pass 1", 15, 5),  # within another: its time is that one's
    event("user_annotation", "memformer: optimizer", 60, 20),
    event("user_annotation", "memformer: data", 200, 50),  # of a step that is not traced
]


def launched(number: int, launch: float, name: str, begin: float, length: float) -> list[dict[str, Any]]:
    return [
        event("cuda_runtime", "cudaLaunchKernel", launch, 1, args={"correlation": number}),
        event("kernel", name, begin, length, args={"correlation": number}),
    ]


def test_kernels_count_where_they_were_launched_and_once_where_they_overlap() -> None:
    kernels = [
        *launched(1, 12, "nvjet_tst_gemm", 20, 40),
        *launched(2, 30, "flash_fwd_kernel", 50, 20),  # beside the first for 10
        *launched(3, 65, "multi_tensor_apply_adam", 90, 5),
        *launched(4, 55, "vectorized_elementwise_kernel", 96, 1),  # in no part
    ]
    times = step_times([*PARTS, *kernels], Path("x"))
    parts = {
        name: (part.calls, part.host_seconds * 1e6, part.device_seconds * 1e6) for name, part in times.parts.items()
    }
    assert {name: tuple(map(round, figures)) for name, figures in parts.items()} == {
        "data": (1, 10, 0),
        "segment forward": (1, 30, 60),
        "optimizer": (1, 20, 5),
        "between the parts": (1, 40, 1),
    }
    assert times.steps == [3] and times.seconds == pytest.approx(100e-6)
    assert times.busy_seconds == pytest.approx(56e-6), "20 to 70, 90 to 95, 96 to 97"
    assert {kind: round(took * 1e6) for kind, took in times.kinds.items()} == {
        "matrix products": 40,
        "attention": 20,
        "optimizer": 5,
        "elementwise": 1,
    }
    assert list(times.kinds) == ["matrix products", "attention", "optimizer", "elementwise"], "largest first"


def test_without_kernels_each_operator_counts_without_those_that_it_calls() -> None:
    operators = [
        event("cpu_op", "aten::linear", 12, 20),
        event("cpu_op", "aten::addmm", 14, 15),
        event("cpu_op", "aten::copy_", 15, 4),
        event("cpu_op", "aten::gelu", 33, 3),
        event("cpu_op", "aten::mul", 500, 3),  # after the traced steps
        event("cpu_op", "aten::mul", 16, 2, tid=2),  # at the same time, on another thread
    ]
    times = step_times([*PARTS, *operators], Path("x"))
    assert times.busy_seconds is None
    assert {kind: round(took * 1e6) for kind, took in times.kinds.items()} == {
        "matrix products": 16,
        "copies and casts": 4,
        "elementwise": 5,
    }


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ncclDevKernel_ReduceScatter_Sum_bf16", "communication"),
        ("pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel", "attention"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32", "matrix products"),
        ("aten::bmm", "matrix products"),
        ("void at::native::vectorized_layer_norm_kernel<float>", "normalisation"),
        ("Memcpy DtoD (Device -> Device)", "copies and casts"),
        ("void cunn_SoftMaxForward", "softmax and loss"),
        ("something new", "other"),
    ],
)
def test_kinds(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def packed(events: list[dict[str, Any]]) -> bytes:
    return gzip.compress(json.dumps({"traceEvents": events}).encode())


NO_TRACES = {
    "empty": b"",
    "no archive": b"no archive",
    **{str(text[:2]): gzip.compress(text) for text in (b"[1", b"[]", b"{}", b"[" * 200_000)},
    "no name": packed([{"ph": "X", "dur": 1, "cat": "user_annotation"}]),
    **{
        cat: packed([*PARTS[:1], event(cat, "x", 1, 1) | changes])
        for cat, changes in (("cpu_op", {"dur": "1"}), ("cuda_runtime", {"args": None}), ("kernel", {"ts": None}))
    },
    **{
        str(length): packed([event("user_annotation", "memformer: step 1", 0, length)]) for length in (-5, float("nan"))
    },
}


def written(path: Path, events: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(packed(events))
    return path


def test_the_latest_window_is_found_and_others_by_their_place(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    with pytest.raises(
        UserError, match=r"profile: holds no trace: give a run's directory; if it is one, train with --profile\.steps"
    ):
        find_traces(run)
    (run.profile / "steps-00000090-00000092").mkdir(parents=True)
    early = written(run.profile / "steps-00000002-00000003" / "rank-00000.json.gz", PARTS)
    late = [written(run.profile / "steps-00000010-00000012" / f"rank-0000{n}.json.gz", PARTS) for n in (0, 1)]
    assert find_traces(run) == late and find_traces(run, early.parent) == [early]
    assert read_trace(early).steps == [3]


@pytest.mark.parametrize("kind", NO_TRACES)
def test_what_is_no_trace_is_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "rank-00000.json.gz"
    path.write_bytes(NO_TRACES[kind])
    with pytest.raises(
        UserError, match=r"rank-00000.json.gz: cannot be read as a trace \(.*\): train those steps again"
    ):
        read_trace(path)
    with pytest.raises(UserError, match="is no trace of a run's steps"):
        read_trace(written(path, [event("cpu_op", "aten::mul", 1, 1)]))
