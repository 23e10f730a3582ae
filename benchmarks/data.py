# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""How fast lanes are filled, beside a flat file in memory and the libraries whose formats we read.

    python benchmarks/data.py [--megatokens 40] [--repetitions 5] [--json] [--out benchmarks/results/...]

Every variant delivers the same thing: int32 tensors of `lanes x (segments * 512)` tokens in which a lane reads one
document after another. Ours reads with prefetch off, so what is timed is all the work there is, the orders of the
epochs included; and it alone begins every document with a segment of its own.

- flat: one file, a slice a lane copied out of memory (mmap) or by a system call (pread); no documents, no plan, no
  checksums: the limit.
- tar, MDS: `SegmentStream`; "first" sums every chunk as it is first read, "again" reads what was summed before.
- HTTP: a server on this machine, a process of its own, through range requests or a cache that is already filled.
- webdataset, streaming: their own iterators of whole documents, with the shortest loop that fills lanes from them. It
  can neither stop within a document nor change the number of lanes or ranks.
- by access: their random access `dataset[i]` (wids, StreamingDataset), a document fetched for each lane and batch:
  what resuming anywhere costs with them.

Rates are per second of this process's processor time, all its threads together: the machine is shared. So they count
what fetching over HTTP costs the client, not how long it waits; the table of steps shows the waiting.

Documents are 20,000 to 400,000 tokens long. Short ones, of 20 to 500 tokens, follow in a table of their own: there a
lane reads another document in each segment, "flat" copies a slice as long as a document for each lane, and tokens are
counted without the padding.

Then: the time of a step with 20 ms of latency a request and 10 ms of computing, against local shards; resuming early
and late in a run; and the loader's share of a training step of the tiny model.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import ROOT, markdown_table, provenance, tell
from benchmarks.data_peers import (
    flat_batches,
    flat_slices,
    lanes_from,
    pread_batches,
    streaming_documents,
    streaming_item,
    wds_documents,
    wids_item,
)
from data_pipeline import DocumentIndex, FarSettings, LanePlan, SegmentStream, ShardStore, build_dataset, open_data
from data_pipeline.opening import open_store
from memformer.run import jsonl
from tests.data_pipeline.faulty_server import serving

LANES, SEGMENT = 64, 512


def build(root: Path, megatokens: float, shortest: int, longest: int) -> dict[str, Path]:
    """The same documents, of so many tokens each, as tar, as MDS and as one flat file."""
    root.mkdir(exist_ok=True)
    generator = np.random.default_rng(0)
    left, source = int(megatokens * 1e6), root / "source.jsonl"
    with source.open("w") as file:
        while left > 0:
            length = int(min(left, generator.integers(shortest, longest)))
            text = generator.integers(97, 123, length, dtype=np.uint8).tobytes().decode()
            file.write(json.dumps({"text": text}) + "\n")
            left -= length
    paths = {"tar": root / "tar", "mds": root / "mds", "flat": root / "flat.bin"}
    build_dataset([source], paths["tar"], shard_megabytes=32)
    build_dataset([source], paths["mds"], format="mds", shard_megabytes=32)
    index = DocumentIndex.load(paths["tar"])
    store = ShardStore(index)
    with paths["flat"].open("wb") as file:
        for document in range(len(index)):
            file.write(store.read(document, 0, int(index.lengths[document])).tobytes())
    source.unlink()
    read_back(root)
    return paths


def stream(data: Any, segments: int, **others: Any) -> SegmentStream:
    return SegmentStream(data, num_lanes=LANES, segment_length=SEGMENT, num_segments=segments, **others)


def tensors(batches: Iterator[Any]) -> Iterator[torch.Tensor]:
    return (torch.from_numpy(batch.tokens) for batch in batches)


def read_once(index: Any) -> Any:
    """A store in which every chunk has been summed, and shards from elsewhere are in the cache."""
    store = open_store(index)
    for _ in stream(index, 8, store=store, epochs=1, prefetch=0):
        pass
    return store


def rates(runs: dict[str, tuple[Callable[[], Iterator[torch.Tensor]], int, int]], repetitions: int) -> dict[str, Any]:
    """Mtok/s of every variant, given what makes its iterator, batches a run and tokens a run; and its ratio to flat.

    Runs are interleaved, and go on with one iterator; "first" begins with a new one each time. The first batch of an
    iterator is not timed.
    """
    iterators: dict[str, Iterator[torch.Tensor]] = {}
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repetitions):
        for name, (make, batches, tokens) in runs.items():
            if name not in iterators or "first" in name:
                iterators[name] = make()
                next(iterators[name])
            began = time.process_time()
            assert sum(1 for _ in itertools.islice(iterators[name], batches)) == batches
            found[name].append(tokens / (time.process_time() - began) / 1e6)
    flat = found["flat file, mmap"]
    return {
        name: {
            "mtok_per_second": round(statistics.median(rate), 1),
            "lowest": round(min(rate), 1),
            "highest": round(max(rate), 1),
            "of_flat": round(statistics.median(a / b for a, b in zip(rate, flat, strict=True)), 3),
        }
        for name, rate in found.items()
    }


def read_back(directory: Path) -> None:
    """Has the system forget what was just written and read it from disk, as it will be in a run."""
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                while file.read(1 << 20):
                    pass


def serve(root: str, latency_seconds: float, address: Any) -> None:
    with serving(Path(root)) as server:
        server.latency_seconds = latency_seconds
        address.put(server.address)
        time.sleep(3600)


def server(root: Path, latency_seconds: float) -> tuple[Any, str]:
    """A server in a process of its own, and its address."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=serve, args=(str(root), latency_seconds, queue), daemon=True)
    process.start()
    return process, queue.get(timeout=60)


def throughput(paths: dict[str, Path], root: Path, address: str, segments: int, repetitions: int) -> dict[str, Any]:
    """Mtok/s of every variant: median and spread, and the ratio to the flat file."""
    width, count = segments * SEGMENT, 320 if segments == 1 else 160
    indexes = {name: DocumentIndex.load(paths[name]) for name in ("tar", "mds")}
    warm = {name: read_once(index) for name, index in indexes.items()}
    ranged = open_data(f"{address}/tar", FarSettings(cache_dir=root / "cache", mode="range"))
    spooled = open_data(f"{address}/tar", FarSettings(cache_dir=root / "cache"))
    spool_store = read_once(spooled)

    def ours(data: Any, store: Any = None, **others: Any) -> Callable[[], Iterator[torch.Tensor]]:
        return lambda: tensors(stream(data, segments, store=store, prefetch=others.get("prefetch", 0)))

    makers: dict[str, Callable[[], Iterator[torch.Tensor]]] = {
        "flat file, mmap": lambda: flat_batches(paths["flat"], LANES, width),
        "flat file, pread": lambda: pread_batches(paths["flat"], LANES, width),
        "tar, first": ours(indexes["tar"]),
        "tar, again": ours(indexes["tar"], warm["tar"]),
        "MDS, first": ours(indexes["mds"]),
        "MDS, again": ours(indexes["mds"], warm["mds"]),
        "HTTP, cache": ours(spooled, spool_store),
        "HTTP, ranges": ours(ranged, prefetch=2),
        "webdataset iterator + lanes": lambda: lanes_from(wds_documents(paths["tar"]), LANES, width),
        "streaming iterator + lanes": lambda: lanes_from(streaming_documents(paths["mds"]), LANES, width),
        "wids by access": lambda: wids_item(paths["tar"], LANES, width),
        "streaming by access": lambda: streaming_item(paths["mds"], LANES, width),
    }
    # Iterators of whole documents read in bursts: a run of theirs is as long as an epoch of 40 megatokens.
    others = {"access": 4, "iterator": 1280 // segments, "ranges": count // 4}
    counts = {name: next((others[word] for word in others if word in name), count) for name in makers}
    tokens = LANES * width
    return rates({name: (make, counts[name], counts[name] * tokens) for name, make in makers.items()}, repetitions)


def short_documents(root: Path, megatokens: float, repetitions: int) -> dict[str, Any]:
    """Mtok/s from documents that are shorter than a segment, one segment a rollout."""
    paths = build(root, megatokens, 20, 500)
    index = DocumentIndex.load(paths["tar"])
    warm, count = read_once(index), 160
    ours = sum(batch.valid_tokens for batch in itertools.islice(stream(index, 1, prefetch=0), count))
    lengths = index.lengths[: count * LANES].tolist()
    packed = LANES * SEGMENT * (count // 8)  # without padding
    return rates(
        {
            "flat file, mmap": (lambda: flat_slices(paths["flat"], lengths, LANES, SEGMENT), count, sum(lengths)),
            "tar, first": (lambda: tensors(stream(index, 1, prefetch=0)), count, ours),
            "tar, again": (lambda: tensors(stream(index, 1, store=warm, prefetch=0)), count, ours),
            "webdataset iterator + lanes": (
                lambda: lanes_from(wds_documents(paths["tar"]), LANES, SEGMENT), count // 8, packed
            ),
            "streaming iterator + lanes": (
                lambda: lanes_from(streaming_documents(paths["mds"]), LANES, SEGMENT), count // 8, packed
            ),
        },
        repetitions,
    )  # fmt: skip


def step_times(paths: dict[str, Path], root: Path, repetitions: int) -> dict[str, Any]:
    """Milliseconds a step with 10 ms of computing, after 8 steps of start: local, and with 20 ms a request."""
    process, address = server(paths["tar"].parent, 0.02)
    steps, start = 60, 8
    found: dict[str, list[float]] = {
        "local": [],
        "range, look-ahead 32": [],
        "spool, empty cache": [],
        "range, none": [],
    }
    try:
        for repetition in range(repetitions):
            for name, times in found.items():
                mode = "range" if name.startswith("range") else "spool"
                far = FarSettings(
                    cache_dir=root / f"cache-{repetition}-{mode}",
                    mode=mode,
                    look_ahead=0 if name.endswith("none") else 32,
                )
                data = paths["tar"] if name == "local" else open_data(f"{address}/tar", far)
                with stream(data, 4, seed=repetition, prefetch=0 if name.endswith("none") else 2) as batches:
                    for step in range(start + (10 if name.endswith("none") else steps)):
                        if step == start:
                            began = time.perf_counter()
                        next(batches)
                        time.sleep(0.01)
                    times.append((time.perf_counter() - began) / (step + 1 - start) * 1e3)
    finally:
        process.kill()
    local = found["local"]
    return {
        name: {
            "milliseconds": round(statistics.median(times), 2),
            "of_local": round(statistics.median(a / b for a, b in zip(times, local, strict=True)), 2),
        }
        for name, times in found.items()
    }


def resume_times() -> dict[str, float]:
    """Milliseconds from a saved state to the next rollout, 64 lanes, a million documents: early and late in a run."""
    lengths = np.full(1_000_000, 5_000)
    plan = LanePlan(lengths, num_lanes=LANES, segment_length=SEGMENT)
    for _ in range(10):
        plan.next_rollout(8)
    early = plan.state_dict()
    epoch = 1_000_000 * 8 * LANES * SEGMENT // int(lengths.sum())
    late = {**early, "step": 1_000_000, "sources": [f"{epoch} 400000 0"], "lane_epochs": " ".join([str(epoch)] * LANES)}
    times: dict[str, list[float]] = {"step 10": [], "step 1,000,000": []}
    for _ in range(5):
        for (name, measured), state in zip(times.items(), (early, late), strict=True):
            resumed = LanePlan(lengths, num_lanes=LANES, segment_length=SEGMENT)
            began = time.process_time()
            resumed.load_state_dict(state)
            # A lane near the end of its document asks for the order of the epoch: the costly part.
            resumed.document_order(epoch if name.endswith("000") else 0)
            resumed.next_rollout(8)
            measured.append(time.process_time() - began)
    return {name: round(statistics.median(measured) * 1e3, 1) for name, measured in times.items()}


def training_share(paths: dict[str, Path], root: Path) -> dict[str, float]:
    """The tiny model's step, the time it waits for data in it, and all of the loader's work for it."""
    config = ROOT / "configs" / "train" / "quickstart.yaml"
    settings = {
        "run_dir": root / "run",
        "data.path": paths["tar"],
        "training.max_steps": 6,
        "training.eval_interval": 0,
        "optimizer.warmup_steps": 2,
    }
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "launch.cli", "train", str(config), *words]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=600)
    rows = jsonl.records(root / "run" / "metrics.jsonl")[2:]
    step = statistics.median(row["step_seconds"] for row in rows)
    import yaml

    data = yaml.safe_load((root / "run" / "config.yaml").read_text())["data"]
    shape = {name: data[name] for name in ("num_lanes", "segment_length", "num_segments")}
    rollouts = 1000  # reading is done for many rollouts at once
    with SegmentStream(paths["tar"], **shape, prefetch=0) as batches:
        began = time.process_time()
        for _ in itertools.islice(batches, rollouts):
            pass
        loader = (time.process_time() - began) / rollouts
    return {
        "step_milliseconds": round(step * 1e3, 1),
        "waiting_percent": round(100 * statistics.median(row["data_seconds"] / row["step_seconds"] for row in rows), 3),
        "loader_milliseconds": round(loader * 1e3, 3),
        "loader_percent": round(100 * loader / step, 3),
    }


def page(values: dict[str, Any]) -> str:
    lines = ["# Filling lanes", "", "Made by `benchmarks/data.py`, whose first lines say what each row is.", ""]
    lines += [f"- {name}: {value}" for name, value in values["provenance"].items()]
    for segments, rows in values["throughput"].items():
        lines += [
            "",
            f"## Mtok/s, {LANES} lanes x {segments} segment{'s' if int(segments) > 1 else ''} x {SEGMENT} tokens",
            "",
        ]
        cells = [[name, *row.values()] for name, row in rows.items()]
        lines.append(markdown_table(["", "median", "lowest", "highest", "of flat"], cells))
    if "short" in values:  # not in results before 2026-11-23
        lines += ["", f"## Mtok/s, {LANES} lanes x 1 segment x {SEGMENT} tokens, documents of 20 to 500 tokens", ""]
        cells = [[name, *row.values()] for name, row in values["short"].items()]
        lines.append(markdown_table(["", "median", "lowest", "highest", "of flat"], cells))
    lines += ["", "## A step with 10 ms of computing; requests take 20 ms", ""]
    cells = [[name, *row.values()] for name, row in values["steps"].items()]
    lines.append(markdown_table(["", "ms", "of local"], cells))
    lines += ["", "## Resuming: from a state to the next rollout, ms, a million documents", ""]
    lines.append(markdown_table(["", "ms"], list(values["resuming"].items())))
    lines += ["", "## A training step of the tiny model (configs/train/quickstart.yaml, one process)", ""]
    lines.append(markdown_table(["", ""], list(values["training"].items())))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megatokens", type=float, default=40, help="size of the data set (default 40)")
    parser.add_argument("--repetitions", type=int, default=5, help="interleaved repetitions (default 5)")
    parser.add_argument("--out", type=Path, help="write OUT.json and OUT.md")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--quick", action="store_true", help="4 megatokens, 2 repetitions")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.megatokens, arguments.repetitions = 4, 2
    torch.set_num_threads(1)
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        paths = build(root, arguments.megatokens, 20_000, 400_000)
        process, address = server(root, 0.0)
        try:
            throughputs = {
                segments: throughput(paths, root, address, segments, arguments.repetitions) for segments in (1, 8)
            }
        finally:
            process.kill()
        short = short_documents(root / "short", arguments.megatokens / 4, arguments.repetitions)
        steps = step_times(paths, root, 5)
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
            del os.environ[name]
        training = training_share(paths, root)
    values = {
        "provenance": provenance(torch.device("cpu")),
        "throughput": throughputs,
        "short": short,
        "steps": steps,
        "resuming": resume_times(),
        "training": training,
    }
    tell(values, page(values), arguments)


if __name__ == "__main__":
    main()
