# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The page of benchmarks/gpu.py, drawn from its file."""

from collections.abc import Mapping
from typing import Any

from benchmarks.common import markdown_table, page_head

MEBI, GIBI = 2**20, 2**30


COMPARED = {
    "train-350m-compiled": "train-350m",
    "train-1.3b-compiled": "train-1.3b",
    "train-350m-bf16-stream": "train-350m-compiled",
    "train-1.3b-lean": "train-1.3b-compiled",
}
"""Runs -> those that they are compared with: they differ in one setting, `lean` in three."""


def page(values: Mapping[str, Any]) -> str:
    """The result file for people."""
    parts = {name: part for name, part in values["parts"].items() if not part.get("failed")}
    lines = [*page_head("On one GPU: speed, memory, exactness", values)]
    if values.get("kind") == "small":
        lines += ["**Tiny models and sizes, to see that it runs**: titles name what a GPU is given.", ""]
    for name, part in values["parts"].items():
        if part.get("failed"):
            lines += [f"**{name} failed**: {part['failed']}.", ""]
    lines += _sittings(parts)
    if "ceilings" in parts:
        found = parts["ceilings"]
        lines += [
            f"Limits taken in the same run: a bf16 product of two matrices of 8192 x 8192 at "
            f"{found['matmul_tflops']:.0f} TFLOP/s, a copy at {found['copy_gb_per_second']:.0f} GB/s.",
            "",
        ]
    for title, table in (
        ("Training, ZeRO 1, bf16, 8 lanes x 8 segments x 1,024 tokens", _training(parts)),
        ("A rollout's memory and time by its segments, 350M in bf16", _flat(parts)),
        ("One document of a million tokens, 350M in bf16", _reading(parts)),
        ("Generation, 350M in bf16", _generation(parts)),
        ("The decoder of several segments as one batch, 350M in bf16, one lane", _groups(parts)),
        ("Along the diagonals of segments and layers: a backbone with a matrix at each layer, bf16", _wavefront(parts)),
        ("Replay against full back-propagation and checkpointing, float32", _replay(parts)),
        ("Where a rollout's time goes, 350M, 8 lanes x 8 segments x 1,024 tokens in bf16", _profile(parts)),
        ("Right numbers", _right(parts)),
    ):
        if table:
            lines += [f"## {title}", "", table, ""]
    return "\n".join([*lines, *values.get("notes", [])]).rstrip()


def _sittings(parts: Mapping[str, Any]) -> list[str]:
    """Where parts ran, if not all ran in the same place."""
    places: dict[str, list[str]] = {}
    for name, part in parts.items():
        if "hardware" in part:
            places.setdefault(f"{part['hardware']}, commit {part['commit']}", []).append(name)
    if len(places) < 2:
        return []
    return [*(f"* {place}: {', '.join(names)}." for place, names in places.items()), ""]


def place(part: Mapping[str, Any]) -> tuple[Any, Any]:
    """Where a part ran, and of what."""
    return part.get("hardware"), part.get("commit")


def _training(parts: Mapping[str, Any]) -> str:
    rows = []
    for name, part in parts.items():
        if name.startswith("train-"):
            share = [f"{part[key]:.1%}" if part.get(key) is not None else "n/a" for key in ("mfu", "hfu")]
            other = parts.get(COMPARED.get(name, ""))
            if other and place(other) != place(part):
                other = None  # another host, or other code
            ratio = f"{part['tokens_per_second'] / other['tokens_per_second']:.2f} x" if other else ""
            rows.append(
                [
                    name.removeprefix("train-"),
                    f"{part['tokens_per_second']:,.0f}",
                    f"{ratio} {COMPARED[name].removeprefix('train-')}" if ratio else "",
                    f"{part['step_seconds']:.3f}",
                    *share,
                    f"{part['peak_bytes'] / GIBI:.2f}",
                    f"{part['planned_bytes'] / part['peak_bytes'] - 1:+.1%}" if part.get("planned_bytes") else "",
                    f"{part['seconds_before_steady']:.0f}",
                ]
            )
    columns = [
        "model",
        "tokens/s",
        "of another row",
        "s a step",
        "MFU",
        "HFU",
        "peak GiB",
        "the plan's",
        "s before the steps are steady",
    ]
    return markdown_table(columns, rows) if rows else ""


def _profile(parts: Mapping[str, Any]) -> str:
    rows, columns = [], ["", "seconds", "of them in kernels", "kernels", "by kind, seconds"]
    for name, found in parts.get("profile", {}).items():
        if isinstance(found, dict):
            kinds = [f"{kind} {seconds:.3f}" for kind, seconds in found["seconds_by_kind"].items() if seconds > 0.001]
            busy = f"{found['busy_seconds']:.3f}"
            rows.append([name, f"{found['seconds']:.3f}", busy, f"{found['kernels']:,}", ", ".join(kinds)])
            if "idle_share" in found:  # not in results of before
                columns[3:-1] = ["idle", "until all are launched", "kernels"]
                rows[-1][3:3] = [f"{100 * found['idle_share']:.0f}%", f"{found['launch_seconds']:.3f}"]
    return markdown_table(columns, rows) if rows else ""


def _flat(parts: Mapping[str, Any]) -> str:
    if "flat" not in parts:
        return ""
    rows = [
        [
            row["num_segments"],
            f"{row['replay_bytes'] / MEBI:,.0f}",
            f"{row['tokens'] / row['replay_seconds']:,.0f}",
            f"{row['bptt_bytes'] / MEBI:,.0f}" if "bptt_bytes" in row else "not run",
            f"{row['tokens'] / row['bptt_seconds']:,.0f}" if "bptt_bytes" in row else "not run",
        ]
        for row in parts["flat"]["rows"]
    ]
    return markdown_table(
        ["T", "replay: MiB above parameters and gradients", "tokens/s", "full back-propagation: MiB", "tokens/s"], rows
    )


def _reading(parts: Mapping[str, Any]) -> str:
    if "reading" not in parts:
        return ""
    rows = []
    for row in parts["reading"]["rows"]:
        marks = [f"{size / MEBI:,.1f} MiB after {int(done):,}" for done, size in row["peak_bytes_by_tokens"].items()]
        rows.append([row["what"], f"{row['tokens']:,}", f"{row['tokens_per_second']:,.0f}", "; ".join(marks)])
    return markdown_table(["what", "tokens", "tokens/s", "peak above the parameters"], rows)


def _generation(parts: Mapping[str, Any]) -> str:
    if "generation" not in parts:
        return ""
    rows = [
        [row["batch"], row["model"], row["milliseconds_a_token"], row["ratio"]] for row in parts["generation"]["rows"]
    ]
    return markdown_table(["documents", "model", "ms a token", "times ours"], rows)


def _groups(parts: Mapping[str, Any]) -> str:
    rows = [
        [
            row["group"],
            f"{1e3 * row['seconds']:.0f}",
            f"{row['peak_bytes'] / MEBI:,.0f}",
            f"{row['gradient_error']:.1e}",
        ]
        for row in parts.get("groups", {}).get("rows", ())
    ]
    columns = ["segments a batch", "ms a rollout", "peak MiB above weights and gradients", "gradients differ by"]
    return markdown_table(columns, rows) if rows else ""


def _wavefront(parts: Mapping[str, Any]) -> str:
    rows = [
        [row["way"], f"{row['tokens_per_second']:,.0f}", f"{row['gradient_error']:.1e}"]
        for row in parts.get("wavefront", {}).get("rows", ())
    ]
    return markdown_table(["way", "tokens/s", "float32 gradients differ by"], rows) if rows else ""


def _replay(parts: Mapping[str, Any]) -> str:
    rows = [
        [
            row["shape"].replace("_", "+"),
            row["num_segments"],
            row["speed_mrbp"],
            row["speed_limit"],
            row["speed_checkpointing"],
            row["memory_vs_limit"],
            *(f"{row[f'allocated_bytes_{method}'] / MEBI:,.0f}" for method in ("mrbp", "bptt", "checkpointing")),
        ]
        for row in parts.get("replay", {}).get("rows", ())
    ]
    columns = [
        "model", "T", "speed of replay", "its limit", "speed of checkpointing", "graph / limit",
        "all tensors, replay (MiB)", "BPTT (MiB)", "checkpointing (MiB)",
    ]  # fmt: skip
    return markdown_table(columns, rows) if rows else ""


def _right(parts: Mapping[str, Any]) -> str:
    rows = []
    for part, what in (("correctness", "replay"), ("correctness-compiled", "compiled layers")):
        for name, found in parts.get(part, {}).items():
            if isinstance(found, dict):
                rows.append([f"gradient of {what}, {name}", f"{found['gradient_error']:.1e}", f"{found['bound']:.0e}"])
    for found in parts.get("generation", {}).get("graphs", ()):
        what = f"generation, {found['batch']} documents, logits of a CUDA graph, bf16"
        rows.append([what, f"{found['logits_error']:.1e}", f"{found['bound']:.0e}"])
    for name, found in parts.get("stages", {}).items():
        if isinstance(found, dict):
            rows.append([f"20 steps, {name}, losses", f"{found['loss_error']:.1e}", f"{found['bound']:.0e}"])
    if "resume" in parts:
        found = parts["resume"]
        again = found["loss_error_of_the_same_run_twice"]
        rows.append(["killed and resumed, losses", f"{found['loss_error']:.1e}", f"the same run twice: {again:.1e}"])
        if "error" in found["export"]:
            export = found["export"]
            rows.append(["its export on the host, perplexity", f"{export['error']:.1e}", f"{export['bound']:.0e}"])
    return markdown_table(["what", "relative difference", "bound"], rows) if rows else ""
