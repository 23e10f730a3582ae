# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""A program that trains, evaluates and generates on a simulated GPU in every way there is, and writes what it has seen.

    python -m tests.simulated_gpu.cases OUT.json [NAME ...]

A process of its own, since the simulated device must be there before torch. It is the first of eight processes.
"""

from benchmarks.simulated_gpu import library

library.load()

import contextlib  # noqa: E402
import gc  # noqa: E402
import json  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import traceback  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402
from unittest import mock  # noqa: E402

import torch  # noqa: E402

from benchmarks.simulated_gpu import training  # noqa: E402
from benchmarks.simulated_gpu.device import SimulatedDevice  # noqa: E402
from benchmarks.simulated_gpu.records import Records  # noqa: E402
from data_pipeline import build_dataset  # noqa: E402
from tests.simulated_gpu.runs import BACKBONE, CASES, LENGTH, MEMFORMER, SAVED, WORLD, config_of  # noqa: E402


def main(out: Path, names: list[str]) -> None:
    """Runs the cases and writes them, each with the traceback where it failed."""
    torch.set_num_threads(1)
    device = training.start(WORLD)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        data = _data(Path(scratch))
        todo: dict[str, Callable[[], Any]] = {
            name: lambda name=name: trained(name, data, Path(scratch), device)  # type: ignore[misc]
            for name in CASES
        }
        todo |= {f"{family} reads": lambda family=family: read(family, device) for family in ("memformer", "backbone")}  # type: ignore[misc]
        todo |= {"faults": lambda: faults(device)}
        for name in names or todo:
            gc.collect()  # an engine of the case before synchronises the device where it happens to be collected
            try:
                found[name] = todo[name]()
            except Exception:
                found[name] = {"error": traceback.format_exc()}
            device.phase, device.answer = "", 1.0
            out.write_text(json.dumps(found))


def _data(scratch: Path) -> Path:
    """Documents of one to nine segments: rollouts with resets, segments that are not full."""
    source = scratch / "text"
    source.mkdir()
    for number in range(64):
        (source / f"{number}.txt").write_text("a" * (7 + 11 * (number % 13)))
    build_dataset([source], scratch / "data", tokenizer="bytes", validation_fraction=0.2)
    return scratch / "data"


def trained(name: str, data: Path, scratch: Path, device: SimulatedDevice) -> dict[str, Any]:
    """The second of two optimizer steps."""
    from memformer.training.callbacks import Callback

    config = config_of(name, data, scratch)

    class Broken(Callback):
        """The second step's numbers are not finite."""

        def before_optimizer_step(self, state: Any) -> None:
            if name == "skipped" and state.progress.step == 1:
                device.answer = float("nan")

        def after_metrics(self, state: Any, metrics: Any) -> None:
            device.answer = 1.0

    with contextlib.ExitStack() as stack:
        if name not in SAVED:  # it is the same work in all of them, and a third of it
            stack.enter_context(mock.patch("memformer.training.save_schedule.Saver.start"))
            stack.enter_context(mock.patch("memformer.training.life.probe_losses", lambda engine: [1.0]))
        steps = training.trained(config, device, [Broken()])
    events = [json.loads(line) for line in (scratch / name / "events.jsonl").read_text().splitlines()]
    asked = {"events": [each["event"] for each in events], "pinned": [each.pinned for each in steps]}
    return _as_json(steps[1]) | asked


def read(family: str, device: SimulatedDevice) -> dict[str, Any]:
    """Two prompts are read and continued with a model on the device."""
    from memformer.config.schema import parse_config
    from memformer.inference.generation import choose, read_texts, reader_of
    from memformer.models.registry import family_of

    values = MEMFORMER if family == "memformer" else BACKBONE
    data = {"path": "unused", "segment_length": LENGTH}
    config: Any = parse_config({"run_dir": "unused", "model": values, "data": data}, family).model
    config = config.completed(257, 256, LENGTH)
    model = family_of(config).build(config).to("cuda:0").eval()
    device.fresh_records()
    with torch.no_grad(), torch.autocast("cuda", dtype=torch.bfloat16), device.during("read"):
        reader = reader_of(model, 2)
        read_texts(reader, [list(range(40)), list(range(9))])
        for _ in range(3):
            reader.read(choose(reader.logits, top_k=4, top_p=0.9)[:, None].cpu())
    return _as_json(device.fresh_records())


def faults(device: SimulatedDevice) -> dict[str, Any]:
    """What must not go unseen, done on purpose."""
    import torch.distributed as dist

    x, host, said = torch.ones(4, 4, device="cuda:0", requires_grad=True), torch.ones(4, 4), {}
    attempts: dict[str, Callable[[], Any]] = {
        "operand": lambda: x + host,
        "product": lambda: x @ host,
        "gathered rows": lambda: x.gather(0, torch.zeros(1, 4, dtype=torch.int64)),
        "collective": lambda: dist.all_reduce(host),
        "collective of a part": lambda: dist.all_gather_into_tensor(torch.ones(32, 4), x),
    }
    for name, attempt in attempts.items():
        try:
            attempt()
            said[name] = ""
        except RuntimeError as error:
            said[name] = str(error)
    device.fresh_records()
    with device.during("faults"):
        y = (x.double() @ x.double()).sum()
        y.backward()
        x, y = x.detach(), y.detach()
        waits = [float(y), y.isnan().any().item(), x.tolist(), x[x > 0], x.nonzero(), x.cpu()]
        waits += [torch.tensor([1.0], device="cuda:0"), host.to("cuda:0", non_blocking=True)]
        waits += [torch.empty(4, 4).copy_(x, non_blocking=True)]
        torch.empty(4, 4, pin_memory=True).copy_(x, non_blocking=True)
        host.pin_memory().to("cuda:0", non_blocking=True)
        host.mul(2)
        dist.all_reduce(x)
    nowhere = [torch.zeros_like(x, device="meta").device.type for _ in range(2)]  # the second by a kept answer
    return _as_json(device.fresh_records()) | {"said": said, "asked": len(waits), "nowhere": nowhere}


def _as_json(records: Records) -> dict[str, Any]:
    """Lists of plain values; a place is [file, line, function, DeepSpeed's file]."""

    def place(each: Any) -> list[Any]:
        return [each.file, each.line, each.function, each.through.partition(":")[0]]

    return {
        "kernels": [
            [each.phase, each.name, each.kind, each.dtypes, place(each.place), work.count]
            for each, work in records.kernels.items()
        ],
        "collectives": [
            [each.phase, each.kind, each.dtype, each.ranks, place(each.place), *counts]
            for each, counts in records.collectives.items()
        ],
        "waits": [[each.phase, each.kind, place(each.place), count] for each, count in records.waits.items()],
        "host_work": [[phase, name, place(where), count] for (phase, name, where), count in records.host_work.items()],
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
