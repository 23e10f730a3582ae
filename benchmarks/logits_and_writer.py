# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Three products of a step in two forms each: cross entropy in chunks, the writer's softmax fused, q, k and v as one.

    python benchmarks/logits_and_writer.py [--parts head writer projections] [--device cuda] [--quick] [--out STEM]

Each row is one forward and backward, the forms taking turns; time is the median, as a factor of the plain form's. The
peak is all that an operation has returned and that is alive at a time (`LiveTensors`; on a GPU what the allocator
says), beside parameters and inputs: the gradients of both are in it.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.activations import LiveTensors
from benchmarks.common import (
    interleaved_seconds,
    keep_freed_memory,
    markdown_table,
    page_head,
    provenance,
    tell,
)
from memformer.models.memformer import MemformerConfig
from memformer.models.memformer.memory import MemoryWriter
from memformer.models.scoring import Head

MIB = 2**20
VOCABULARY = 50_257
WHOLE = 2**62
COLUMNS = ("form", "seconds", "time_factor", "peak_megabytes")


class Measuring:
    """Times forms side by side and weighs each.

    Args:
        device: Where.
        repetitions: Timed runs of each form.
    """

    def __init__(self, device: torch.device, repetitions: int) -> None:
        self.device, self.repetitions = device, repetitions
        # The time of the core, not of the clock: other work on the machine is left out.
        self._clock = time.process_time if device.type == "cpu" else time.perf_counter

    def rows(
        self, leaves: list[torch.Tensor], forms: Mapping[str, Callable[[], torch.Tensor]], **sizes: Any
    ) -> list[dict[str, Any]]:
        """One row a form; the first is what the others are compared with.

        Args:
            leaves: What gets gradients, which are dropped before each run.
            forms: Each gives a tensor, whose sum is back-propagated.
            sizes: What the rows say of the case.
        """

        def step(form: Callable[[], torch.Tensor]) -> Callable[[], None]:
            def run() -> None:
                for leaf in leaves:
                    leaf.grad = None
                form().float().sum().backward()  # type: ignore[no-untyped-call]

            return run

        runs = {name: step(form) for name, form in forms.items()}
        times = interleaved_seconds(runs, self.repetitions, self.device, self._clock)
        seconds = {name: statistics.median(each) for name, each in times.items()}
        first = next(iter(seconds.values()))
        found = []
        for name, run in runs.items():
            row = {**sizes, "form": name, "seconds": seconds[name], "time_factor": seconds[name] / first}
            found.append(row | {"peak_megabytes": round(self._peak(leaves, run) / 1e6, 1)})
            print(found[-1], file=sys.stderr, flush=True)
        return found

    def _peak(self, leaves: list[torch.Tensor], run: Callable[[], None]) -> int:
        for leaf in leaves:
            leaf.grad = None
        if self.device.type == "cuda":
            before = torch.cuda.memory_allocated(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            run()
            return torch.cuda.max_memory_allocated(self.device) - before
        with LiveTensors() as live:
            run()
        return live.meter.peak_bytes

    def autocast(self, precision: str) -> torch.autocast:
        """The autocast of fp32 or bf16."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16")


def head_rows(measuring: Measuring, quick: bool) -> Iterator[dict[str, Any]]:
    """Logits whole, and in chunks of so many MiB."""
    width, ids = (16, 997) if quick else (128, VOCABULARY)
    cases = [(512, "fp32"), (2048, "fp32"), (2048, "bf16"), (4096, "fp32")]
    for tokens, precision in [(64, "fp32")] if quick else cases:
        head = Head(width, ids, bias=False, device=measuring.device)
        x = torch.randn(1, tokens, width, device=measuring.device, requires_grad=True)
        targets = torch.randint(0, ids, (1, tokens), device=measuring.device)

        def scored(chunk_bytes: int, head: Head = head, x: torch.Tensor = x, case: Any = (targets, precision)) -> Any:
            head.chunk_bytes = chunk_bytes
            with measuring.autocast(case[1]):
                return head(x, case[0])

        sizes = [64 * 997] if quick else [each * MIB for each in (64, 256) if each * MIB < 4 * tokens * ids]
        forms: dict[str, Callable[[], torch.Tensor]] = {"whole": lambda scored=scored: scored(WHOLE)}  # type: ignore[misc]
        for size in sizes:
            forms[f"chunks of {size / MIB:.0f} MiB"] = lambda size=size, scored=scored: scored(size)  # type: ignore[misc]
        yield from measuring.rows(
            [head.weight, x], forms, tokens=tokens, width=width, vocabulary=ids, precision=precision
        )


def writer_rows(measuring: Measuring, quick: bool) -> Iterator[dict[str, Any]]:
    """The writer's softmax written out, and fused."""
    width, heads = (32, 4) if quick else (512, 8)
    cases = [(k, s, "fp32") for s in (512, 4096) for k in (16, 64, 256, 1024)]
    cases += [(256, s, "bf16") for s in (512, 4096)]
    config = MemformerConfig(d_model=width, num_heads=heads, num_memory_slots=1, memory_forgetting="written")
    writer = MemoryWriter(config).to(measuring.device)
    for slots, tokens, precision in [(8, 16, "fp32")] if quick else cases:
        memory = F.normalize(torch.randn(1, slots, width, device=measuring.device), dim=-1).requires_grad_()
        x = torch.randn(1, tokens, width, device=measuring.device, requires_grad=True)

        def written(
            fused: bool, memory: torch.Tensor = memory, x: torch.Tensor = x, how: str = precision
        ) -> torch.Tensor:
            writer.fused = fused
            with measuring.autocast(how):
                found = writer(memory, x, None)
            return torch.cat([found.memory_BKD.flatten(), found.overwritten_BKH.flatten()])

        forms = {
            "written out": lambda written=written: written(False),
            "fused": lambda written=written: written(True),
        }
        leaves = [*writer.parameters(), memory, x]
        yield from measuring.rows(leaves, forms, slots=slots, tokens=tokens, width=width, precision=precision)


def projection_rows(measuring: Measuring, quick: bool) -> Iterator[dict[str, Any]]:
    """q, k and v by three matrices, and by one of three times the rows."""
    for width in [16] if quick else (128, 256, 512, 1024):
        tokens = 16 if quick else 1024
        apart = [nn.Linear(width, width, bias=False, device=measuring.device) for _ in range(3)]
        joined = nn.Linear(width, 3 * width, bias=False, device=measuring.device)
        x = torch.randn(1, tokens, width, device=measuring.device, requires_grad=True)
        forms: dict[str, Callable[[], torch.Tensor]] = {
            "three": lambda x=x, apart=apart: sum(each(x).square() for each in apart),  # type: ignore[misc]
            "one": lambda x=x, joined=joined: sum(each.square() for each in joined(x).chunk(3, dim=-1)),  # type: ignore[misc]
        }
        leaves = [x, joined.weight, *(each.weight for each in apart)]
        yield from measuring.rows(leaves, forms, tokens=tokens, width=width, precision="fp32")


PARTS = {"head": head_rows, "writer": writer_rows, "projections": projection_rows}
TITLES = {
    "head": "Cross entropy: logits whole, and in chunks",
    "writer": "The writer's softmax: written out, and fused",
    "projections": "q, k and v: three matrices, and one",
}


def page(values: dict[str, Any]) -> str:
    """The result page in Markdown."""
    lines = page_head("Logits in chunks, the writer's softmax, fused projections", values)
    for part, rows in values["parts"].items():
        columns = [each for each in rows[0] if each not in COLUMNS] + list(COLUMNS)
        table = markdown_table(columns, [[row[column] for column in columns] for row in rows])
        lines += [f"## {TITLES[part]}", "", table, ""]
        if part in values["notes"]:
            lines += [values["notes"][part], ""]
    return "\n".join(lines)


def main() -> None:
    """Measures, prints, and writes the results where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--repetitions", type=int, default=3, help="timed runs of each form (default 3)")
    parser.add_argument("--threads", type=int, default=1, help="of torch on a CPU; default 1, the least noisy")
    parser.add_argument("--quick", action="store_true", help="one small case of each part")
    parser.add_argument(
        "--out", type=Path, metavar="STEM", help="write STEM.json and STEM.md; parts that are there already stay"
    )
    parser.add_argument("--note", action="append", default=[], metavar="PART=TEXT", help="a remark for the page")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    keep_freed_memory()
    device = torch.device(arguments.device)
    measuring = Measuring(device, arguments.repetitions)
    values = {**provenance(device), "commands": [], "parts": {}, "notes": {}}
    if arguments.out and arguments.out.with_suffix(".json").exists() and not arguments.quick:
        found = json.loads(arguments.out.with_suffix(".json").read_text())
        values |= {key: found[key] for key in ("commands", "parts", "notes")}
    values["commands"] = [*dict.fromkeys([*values["commands"], values["command"]])]
    values["notes"] |= dict(each.split("=", 1) for each in arguments.note)
    for part in arguments.parts:
        values["parts"][part] = list(PARTS[part](measuring, arguments.quick))
    tell(values, page(values), arguments)


if __name__ == "__main__":
    sys.exit(main())
