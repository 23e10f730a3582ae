# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What a checkpoint costs: the pause of training, synchronous and in the background, and the memory of an export.

    python benchmarks/checkpoint.py            writes benchmarks/results/DATE-checkpoint.{json,md}
    python benchmarks/checkpoint.py --quick --out STEM

Two runs on this machine, alike but for `checkpoint.background`, each saving at every second step. The export runs in
a process of its own, without the verifying forward pass; its memory is the peak above that of the same process before
it reads a tensor: of what it has allocated (RssAnon, sampled every millisecond), and of all resident pages, which count
the checkpoint's files too as long as they are mapped and the system has room for them.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import ROOT, markdown_table, provenance, write_results
from memformer.config.schema import parse_config
from memformer.run import jsonl
from memformer.run.directory import RunDirectory

STEPS = 12


def train_once(root: Path, data: Path, width: int, background: bool) -> dict[str, float]:
    """Medians over the saves of a run, and over the steps between them."""
    from memformer.training.trainer import train

    run = RunDirectory(root / f"background-{background}")
    values: dict[str, Any] = {
        "run_dir": str(run.root),
        "tensorboard": False,
        "model": {"num_encoder_layers": 2, "num_decoder_layers": 4, "d_model": width, "num_heads": 8},
        "data": {"path": str(data), "num_lanes": 4, "segment_length": 64, "num_segments": 2},
        "training": {"max_steps": STEPS, "eval_interval": 0, "diagnostics_interval": 0},
        "optimizer": {"warmup_steps": 2},
        "checkpoint": {"interval": 2, "background": background, "keep_last": 1},
    }
    values["model"] |= {"d_ff": 4 * width, "num_memory_slots": 16}
    train(parse_config(values, "benchmark"))
    steps = jsonl.records(run.metrics)
    saves = [row for row in jsonl.records(run.events) if row["event"] == "save"]
    # The first step and the first save warm up; the last save has no step to hide behind.
    return {
        "step_seconds": statistics.median(row["step_seconds"] for row in steps[1:]),
        "pause_seconds": statistics.median(row["pause_seconds"] for row in saves[1:-1]),
        "write_seconds": statistics.median(row["write_seconds"] for row in saves[1:-1]),
        "megabytes": saves[-1]["bytes"] / 1e6,
    }


def export_memory(run: Path, out: Path) -> dict[str, float]:
    """Runs the export in a process of its own; its memory above the start, in MB."""
    words = [sys.executable, "-m", "benchmarks.checkpoint", "--export", str(run), str(out)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def export_here(run: str, out: str) -> dict[str, float]:
    from memformer.checkpoints.exporting import export
    from memformer.checkpoints.tensor_file import write_tensors

    # What the libraries need for their first read and write is there before the measurement.
    write_tensors(Path(f"{out}-warm"), {"x": (torch.float32, (4,))}, lambda _: torch.zeros(4))
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here (Linux, proc(5))
    before, allocated = resident("VmRSS"), resident("RssAnon")
    peak, done = allocated, threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, resident("RssAnon"))

    sampler = threading.Thread(target=sample)
    sampler.start()
    result = export(run, out, verify=False)
    done.set()
    sampler.join()
    with safe_open(f"{out}/model.safetensors", "pt") as weights:
        largest = max(weights.get_tensor(name).nbytes for name in weights.keys())  # noqa: SIM118  # not a dictionary
    return {
        "model_megabytes": result["bytes"] / 1e6,
        "largest_tensor_megabytes": largest / 1e6,
        "allocated_megabytes": peak - allocated,
        "resident_megabytes": resident("VmHWM") - before,
    }


def resident(field: str) -> float:
    """A line of /proc/self/status in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(f"{field}:"))


def page(values: dict[str, Any]) -> str:
    """The result page in Markdown."""
    exported = values["export"]
    columns = ("saving", "step (s)", "pause a save (s)", "pause / step", "until complete (s)", "checkpoint (MB)")
    table = [
        (
            name,
            row["step_seconds"],
            row["pause_seconds"],
            row["pause_seconds"] / row["step_seconds"],
            row["write_seconds"],
            row["megabytes"],
        )
        for name, row in (("synchronous", values["synchronous"]), ("in the background", values["background"]))
    ]
    return (
        f"# Checkpoints: pause of training, memory of the export\n\n{values['date']}, {values['hardware']}, "
        f"torch {values['torch']}, commit {values['commit']}\n\n    {values['command']}\n\n"
        f"One process, ZeRO 1, a checkpoint at every second step of {STEPS}; medians, without the first save and the "
        f"last.\n\n{markdown_table(columns, table)}\n\n"
        f"Export of {exported['model_megabytes']:.1f} MB of weights, the largest tensor "
        f"{exported['largest_tensor_megabytes']:.1f} MB: {exported['allocated_megabytes']:.1f} MB more allocated than "
        f"before it, {exported['resident_megabytes']:.1f} MB more resident with the mapped files' pages.\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=512, help="d_model of the model that is saved")
    parser.add_argument("--out", type=Path, metavar="STEM", help="write STEM.json and STEM.md (default: the results)")
    parser.add_argument("--export", nargs=2, metavar=("RUN", "OUT"), help="only export, and print its memory")
    parser.add_argument("--quick", action="store_true", help="width 64")
    arguments = parser.parse_args()
    arguments.width = 64 if arguments.quick else arguments.width
    if arguments.export:
        print(json.dumps(export_here(*arguments.export)))
        return
    from data_pipeline import build_dataset

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    where = provenance(device)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        build_dataset([ROOT / "corpora" / "books"], root / "data")
        rows = {
            background: train_once(root, root / "data", arguments.width, background) for background in (False, True)
        }
        exported = export_memory(root / "background-False", root / "exported")
    values = {
        **where,
        "width": arguments.width,
        "synchronous": rows[False],
        "background": rows[True],
        "export": exported,
    }
    write_results(
        arguments.out or ROOT / "benchmarks" / "results" / f"{where['date']}-checkpoint", values, page(values)
    )
    print(page(values))


if __name__ == "__main__":
    main()
