# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Everything that only a GPU can show, in one script for one lent GPU: about seven minutes of an H100.

    python benchmarks/gpu.py --data DATA --out benchmarks/results/DATE-gpu-step
    python benchmarks/gpu.py --data DATA --out /tmp/try --device cpu --small     to see that it runs

DATA is a data set with a vocabulary of about 32,768 (`memformer data build corpora/books --tokenizer train-bpe:32768`).
Each part is a process of its own with a limit of its own (benchmarks/gpu_parts.py, benchmarks/gpu_runs.py): first, side
by side, those that only ask whether numbers are right, and what torch.compile has to build; then one after another, in
order of worth, those that are timed. OUT.json is written after each part. Started again with the same OUT, the script
does what is missing, and only that; --again names parts to do anew.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import ROOT, markdown_table, page_head, provenance, write_results

UNTIMED = {"compile-1.3b": 200, "compile-350m": 200, "resume": 200, "stages": 200, "correctness": 120}
TIMED = {
    "ceilings": 40, "train-350m": 70, "train-1.3b": 90, "train-350m-compiled": 100, "profile": 120, "flat": 90,
    "train-1.3b-compiled": 120, "reading": 60, "generation": 80, "replay": 100,
}  # fmt: skip
"""Parts in order of worth, with the seconds that each may take."""
MEBI, GIBI = 2**20, 2**30


class Parts:
    """Runs parts and keeps what they found in OUT.json.

    Args:
        options: Of the command line.
        values: What OUT.json holds so far.
    """

    def __init__(self, options: argparse.Namespace, values: dict[str, Any]) -> None:
        self._options, self.values, self._lock = options, values, Lock()
        self._end = time.monotonic() + options.seconds
        self._work = Path(tempfile.mkdtemp(prefix="memformer-gpu-"))

    def run(self, name: str, limit: float) -> None:
        """Runs one part, unless it is there or no time is left for it."""
        before = self.values["parts"].get(name)
        if before and not before.get("failed") and name not in self._options.again:
            return
        limit = min(limit * self._options.patience, self._end - time.monotonic())
        if limit < 5:
            print(f"{name:<22} not run: the time is up", flush=True)
            return
        started, found = time.monotonic(), self._work / f"{name}.json"
        log = self._work / f"{name}.out"
        command = [sys.executable, "benchmarks/gpu_parts.py", name, "--out", str(found), "--data", str(self._data)]
        command += ["--device", self._options.device, *(["--small"] if self._options.small else [])]
        with log.open("w") as file:
            process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
            try:
                process.wait(limit)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # its own session: this part and the runs that it started
                process.wait()
        seconds = time.monotonic() - started
        values = json.loads(found.read_text()) if found.is_file() else {}
        if process.returncode:
            values["failed"] = f"exit code {process.returncode} after {seconds:.0f} s"
            print(f"--- {name}\n" + log.read_text(errors="replace")[-3000:], flush=True)
        with self._lock:
            self.values["parts"][name] = {**values, "part_seconds": round(seconds, 1)}
            write_results(self._options.out, self.values, page(self.values))
        print(f"{name:<22} {seconds:6.1f} s  {'FAILED' if process.returncode else 'done'}", flush=True)

    @property
    def _data(self) -> Path:
        return Path(self._options.data).resolve()


def page(values: Mapping[str, Any]) -> str:
    """The result file for people."""
    parts = {name: part for name, part in values["parts"].items() if not part.get("failed")}
    lines = [*page_head("On one GPU: speed, memory, exactness", values)]
    for name, part in values["parts"].items():
        if part.get("failed"):
            lines += [f"**{name} failed**: {part['failed']}.", ""]
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
        ("Replay against full back-propagation and checkpointing, float32", _replay(parts)),
        ("Where a rollout's time goes, 350M, 8 lanes x 8 segments x 1,024 tokens in bf16", _profile(parts)),
        ("Right numbers", _right(parts)),
    ):
        if table:
            lines += [f"## {title}", "", table, ""]
    return "\n".join([*lines, *values.get("notes", [])]).rstrip()


def _training(parts: Mapping[str, Any]) -> str:
    rows = []
    for name, part in parts.items():
        if name.startswith("train-"):
            share = [f"{part[key]:.1%}" if part.get(key) is not None else "n/a" for key in ("mfu", "hfu")]
            rows.append(
                [
                    name.removeprefix("train-"),
                    f"{part['tokens_per_second']:,.0f}",
                    f"{part['step_seconds']:.3f}",
                    *share,
                    f"{part['peak_bytes'] / GIBI:.1f}",
                    f"{part['seconds_before_steady']:.0f}",
                ]
            )
    columns = ["model", "tokens/s", "s a step", "MFU", "HFU", "peak GiB", "s before the steps are steady"]
    return markdown_table(columns, rows) if rows else ""


def _profile(parts: Mapping[str, Any]) -> str:
    rows = []
    for name, found in parts.get("profile", {}).items():
        if isinstance(found, dict):
            kinds = [f"{kind} {seconds:.3f}" for kind, seconds in found["seconds_by_kind"].items() if seconds > 0.001]
            busy = f"{found['busy_seconds']:.3f}"
            rows.append([name, f"{found['seconds']:.3f}", busy, f"{found['kernels']:,}", ", ".join(kinds)])
    return markdown_table(["", "seconds", "of them in kernels", "kernels", "by kind, seconds"], rows) if rows else ""


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
    for name, found in parts.get("correctness", {}).items():
        if isinstance(found, dict):
            rows.append([f"gradient of replay, {name}", f"{found['gradient_error']:.1e}", f"{found['bound']:.0e}"])
    for name, found in parts.get("stages", {}).items():
        if isinstance(found, dict):
            rows.append([f"20 steps, {name}, losses", f"{found['loss_error']:.1e}", f"{found['bound']:.0e}"])
    if "resume" in parts:
        found = parts["resume"]
        again = found["loss_error_of_the_same_run_twice"]
        rows.append(["killed and resumed, losses", f"{found['loss_error']:.1e}", f"the same run twice: {again:.1e}"])
    return markdown_table(["what", "relative difference", "bound"], rows) if rows else ""


def main(words: Sequence[str] | None = None) -> int:
    """Runs what is missing; exit code 1 if a part failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a data set with train/ and validation/")
    parser.add_argument("--out", type=Path, required=True, help="write OUT.json and OUT.md")
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--small", action="store_true", help="tiny sizes: to see that it runs")
    parser.add_argument("--seconds", type=float, default=540, help="for all parts together (default 540)")
    parser.add_argument("--patience", type=float, default=1.0, help="times the limit of each part (default 1)")
    parser.add_argument("--only", nargs="+", choices=[*UNTIMED, *TIMED], default=[*UNTIMED, *TIMED])
    parser.add_argument("--again", nargs="+", choices=[*UNTIMED, *TIMED], default=[], help="do these anew")
    options = parser.parse_args(words)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU here: try --device cpu --small")
    found = options.out.with_suffix(".json")
    before = json.loads(found.read_text()).get("parts", {}) if found.is_file() else {}
    values = {**provenance(torch.device(options.device)), "parts": before}
    parts = Parts(options, values)
    with ThreadPoolExecutor(max_workers=len(UNTIMED) if options.device == "cuda" else 1) as pool:
        list(pool.map(parts.run, *zip(*((n, s) for n, s in UNTIMED.items() if n in options.only), strict=True)))
    for name, seconds in TIMED.items():
        if name in options.only:
            parts.run(name, seconds)
    print(page(values))
    return 1 if any(part.get("failed") for part in values["parts"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
