# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Everything that only a GPU can show, in one script for one lent GPU: at most nine minutes a call.

    python benchmarks/gpu.py --data DATA --out benchmarks/results/DATE-gpu-step
    python benchmarks/gpu.py --simulated                      without a GPU: does every part run?
    python benchmarks/gpu.py --data DATA --out /tmp/try --device cpu --small     on a CPU: are its numbers right?

DATA is a data set with a vocabulary of about 32,768 (`memformer data build corpora/books --tokenizer train-bpe:32768`).
Each part is a process of its own with a limit of its own (benchmarks/gpu_parts.py, gpu_gradients.py, gpu_runs.py):
first, side by side, those that only ask whether numbers are right, and what torch.compile has to build; then one after
another, in order of worth, those that are timed. OUT.json is written after each part, OUT.md at the end. Started again
with the same OUT, the script does what is missing, and only that; --again names parts to do anew.

--simulated runs all of it at tiny sizes on a simulated GPU (benchmarks/simulated_gpu), so that the first lent minute is
not lost on a typo. Nothing is measured there and nothing compared, since its tensors have no numbers, and torch.compile
is left out, since it has no kernels; with --out, OUT.json remembers which parts ran.
"""

import argparse
import contextlib
import importlib
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from subprocess import TimeoutExpired
from threading import Lock
from types import FrameType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.simulated_gpu import library

if __name__ == "__main__" and "--simulated" in sys.argv:
    if missing := library.missing():
        raise SystemExit(missing)
    library.load()  # before torch

import torch

from benchmarks import programs
from benchmarks.common import ROOT, markdown_table, provenance, write_results
from benchmarks.gpu_page import page
from memformer.run.directory import write_atomically

BUILDS = {
    "compile-1.3b": "train-1.3b-compiled",
    "compile-350m": "train-350m-compiled",
    "compile-1.3b-lean": "train-1.3b-lean",
}
"""Parts that fill the cache of compiled graphs, which a lent machine does not keep, for a part that is timed."""
UNTIMED = {
    "compile-1.3b": 200, "compile-350m": 200, "stages": 200, "resume": 200, "correctness-compiled": 200,
    "correctness": 120, "compile-1.3b-lean": 200,
}  # fmt: skip
AT_ONCE = 4
"""Of the untimed: in their order the two that take most memory do not meet on a GPU of 80 GB."""
TIMED = {
    "ceilings": 40, "train-350m": 70, "train-350m-compiled": 70, "train-1.3b": 90, "train-1.3b-compiled": 90,
    "generation": 80, "profile": 120, "train-1.3b-lean": 90, "wavefront": 60, "groups": 40, "reading": 60,
    "replay": 120, "train-350m-bf16-stream": 90, "flat": 90,
}  # fmt: skip
"""Parts in order of worth, with the seconds that each may take."""
IMPORTED = (
    "memformer.training.trainer", "benchmarks.gpu_parts", "deepspeed.compile.backend", "torch.utils.tensorboard",
)  # fmt: skip
ALIKE = {"train-1.3b-compiled": "train-350m-compiled", "train-350m-bf16-stream": "train-1.3b-lean"}
"""Parts that run at tiny sizes what another does, or less."""
KEPT = ("part_seconds", "failed", "not_compared")
"""What is remembered of a part that ran on a simulated GPU."""


class Parts:
    """Runs parts and keeps what they found in OUT.json.

    Args:
        options: Of the command line.
        values: What OUT.json holds so far.
        work: A directory for what parts leave behind.
    """

    def __init__(self, options: argparse.Namespace, values: dict[str, Any], work: Path) -> None:
        self._options, self.values, self._work, self._lock = options, values, work, Lock()
        self._running: set[programs.Program] = set()
        self._leaving = False
        self._end = time.monotonic() + options.seconds
        self._origin = {name: values[name] for name in ("hardware", "commit")}

    def missing(self) -> list[str]:
        """The parts that were asked for and are not there, or failed."""
        there = {name for name, part in self.values["parts"].items() if not part.get("failed")}
        return [name for name in self._options.only if name not in there]

    def run(self, name: str) -> None:
        """Runs one part, unless it is there or no time is left for it."""
        timed = BUILDS.get(name, name)
        if timed not in self._options.again and not {name, timed} & set(self.missing()):
            return
        limit = min((UNTIMED | TIMED)[name] * self._options.patience, self._end - time.monotonic())
        if limit < 5 or self._leaving:
            return
        started, out, log = time.monotonic(), self._work / f"{name}.json", self._work / f"{name}.out"
        words = ["benchmarks/gpu_parts.py", name, "--out", str(out), "--data", str(self._options.data)]
        words += ["--device", self._options.device, *(["--small"] if self._options.small else [])]
        kept = {"TORCHINDUCTOR_CACHE_DIR": str(self._work / "compiled")}
        program = programs.start(words, log, kept, leads=True)
        self._running.add(program)
        with contextlib.suppress(TimeoutExpired):
            program.wait(limit)
        programs.end(program)  # this part and the runs that it started
        self._running.remove(program)
        if self._leaving:
            return
        seconds = time.monotonic() - started
        found: dict[str, Any] = json.loads(out.read_text()) if out.is_file() else {}
        if program.returncode:
            found["failed"] = f"exit code {program.returncode} after {seconds:.0f} s"
            print(f"--- {name}\n" + log.read_text(errors="replace")[-3000:], flush=True)
        self._keep(name, {**found, "part_seconds": round(seconds, 1)})
        print(f"{name:<22} {seconds:6.1f} s  {'FAILED' if program.returncode else 'done'}", flush=True)

    def leave(self, number: int, frame: FrameType | None) -> None:
        """On a signal: ends what runs, and the script. What is done is written already."""
        self._leaving = True
        for program in list(self._running):
            programs.end(program)
        raise SystemExit(f"gpu.py: stopped; {self.further()}")

    def further(self) -> str:
        """What becomes of the parts that are missing: without OUT.json nobody knows which those are."""
        if self._options.out:
            return "the same command goes on with what is missing"
        return "nothing was kept; with --out OUT the same command would go on with what is missing"

    def _keep(self, name: str, found: dict[str, Any]) -> None:
        if self._options.simulated:
            page(self.values | {"parts": {name: found}})  # drawn, so that it is known to be, and thrown away
            found = {key: value for key, value in (found | {"not_compared": comparisons(found)}).items() if key in KEPT}
        with self._lock:
            self.values["parts"][name] = {**found, **self._origin}
            if self._options.out:
                write_atomically(self._options.out.with_suffix(".json"), json.dumps(self.values, indent=1) + "\n")


def comparisons(found: Any) -> int:
    """How many numbers a part holds against a bound."""
    if isinstance(found, dict):
        return ("right" in found) + sum(map(comparisons, found.values()))
    return sum(map(comparisons, found)) if isinstance(found, list) else 0


def simulated_page(values: Mapping[str, Any]) -> str:
    """What ran on a simulated GPU: no figures."""
    rows = [
        [name, "failed" if part.get("failed") else "runs", part["not_compared"] or ""]
        for name, part in values["parts"].items()
    ]
    return "\n".join(
        [
            f"On a simulated GPU, commit {values['commit']}: nothing is measured, nothing compared.",
            "",
            markdown_table(["part", "", "numbers not compared"], rows),
            "",
            f"Not run here: torch.compile ({', '.join(BUILDS)}; layers run as they are written), the pass that "
            f"verifies an export, and, unless --only asks, what is another part at these sizes ({', '.join(ALIKE)}).",
        ]
    )


def earlier(options: argparse.Namespace) -> dict[str, Any]:
    """What the result file holds.

    Raises:
        SystemExit: It is not one of this kind of run.
    """
    kind = "simulated" if options.simulated else "small" if options.small else "measured"
    path = options.out.with_suffix(".json") if options.out else None
    try:
        before = json.loads(path.read_text()) if path and path.is_file() else {}
        parts, is_kind = dict(before.get("parts", {})), before.get("kind", "measured" if before else kind)
    except (ValueError, AttributeError, TypeError):
        raise SystemExit(f"gpu.py: {path} is no result of this script: give another --out") from None
    if is_kind != kind:
        raise SystemExit(f"gpu.py: {path} is of a run of kind {is_kind}, this one is {kind}: give another --out")
    notes = {"notes": before["notes"]} if "notes" in before else {}
    return {"kind": kind, "parts": parts, **notes}


def checked(options: argparse.Namespace) -> None:
    """Ends the script with one line where it could not begin."""
    if options.simulated:
        options.device, options.small = "cuda", True
        asked = options.only if options.asked else [name for name in options.only if name not in ALIKE]
        options.only = [name for name in asked if name not in BUILDS]
        if not library.loaded():
            raise SystemExit("gpu.py: --simulated needs a process without torch: start it as a program")
        if options.out and ROOT / "benchmarks" / "results" in options.out.resolve().parents:
            raise SystemExit("gpu.py: a simulated GPU measures nothing: give an --out outside benchmarks/results")
    elif options.out is None:
        raise SystemExit("gpu.py: --out is missing: give the stem of the result files")
    elif options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("gpu.py: there is no GPU here: --simulated runs every part without one, at tiny sizes")
    if options.data is None and not options.simulated:
        raise SystemExit("gpu.py: --data is missing: give a data set (memformer data build)")
    if options.data and not (options.data / "train" / "manifest.json").is_file():
        raise SystemExit(
            f"gpu.py: --data {options.data} has no train/ and validation/: "
            "make them with memformer data build --validation-fraction 0.1"
        )
    try:
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=options.out.parent).close()
    except OSError as error:
        raise SystemExit(f"gpu.py: --out {options.out} cannot be written ({error.strerror}): give another") from None


def made_up_data(work: Path) -> Path:
    """A data set for a run whose tokens do not matter."""
    from data_pipeline import build_dataset

    (work / "texts").mkdir()
    for number in range(40):
        (work / "texts" / f"{number}.txt").write_text("a" * (50 + 30 * (number % 13)))
    build_dataset([work / "texts"], work / "data", tokenizer="bytes", validation_fraction=0.2)
    return work / "data"


def begin_simulation() -> None:
    """Puts the simulated device in the place of CUDA.

    Programs that are forked from here have then what they import, and what the device answers to a forward pass. A
    backward pass would do as much for theirs, but after one in this process torch allows them none.
    """
    from benchmarks.simulated_gpu import training

    training.start(1, track_memory=True)
    for name in IMPORTED:
        importlib.import_module(name)
    from benchmarks.gpu_gradients import forward_passes

    forward_passes()


@contextlib.contextmanager
def handling(numbers: Sequence[signal.Signals], handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Within the block, signals are answered by a function."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier_one in before.items():
            signal.signal(number, earlier_one)


def main(words: Sequence[str] | None = None) -> int:
    """Runs what is missing; exit code 1 if a part failed or is missing still."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    names = [*UNTIMED, *TIMED]
    parser.add_argument("--data", type=Path, help="a data set with train/ and validation/; simulated: made up")
    parser.add_argument("--out", type=Path, help="write OUT.json and OUT.md; simulated: not needed")
    parser.add_argument("--simulated", action="store_true", help="tiny sizes on a simulated GPU: to see that it runs")
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--small", action="store_true", help="tiny sizes")
    parser.add_argument("--seconds", type=float, default=540, help="for all parts together (default 540)")
    parser.add_argument("--patience", type=float, default=1.0, help="times the limit of each part (default 1)")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="PART", help="default: all")
    parser.add_argument("--again", nargs="+", choices=names, default=[], metavar="PART", help="do these anew")
    options = parser.parse_args(words)
    options.asked = options.only is not names
    checked(options)
    before, chosen = earlier(options), {*options.only, *options.again}
    with tempfile.TemporaryDirectory(prefix="memformer-gpu-", ignore_cleanup_errors=True) as work:
        if options.simulated:
            begin_simulation()
        options.data = options.data.resolve() if options.data else made_up_data(Path(work))
        values = {**provenance(torch.device(options.device)), **before}
        parts = Parts(options, values, Path(work))
        with handling((signal.SIGINT, signal.SIGTERM), parts.leave):
            at_once = AT_ONCE if options.device == "cuda" else 1
            programs.side_by_side(parts.run, (name for name in UNTIMED if name in chosen), at_once)
            for name in filter(chosen.__contains__, TIMED):
                parts.run(name)
    if options.simulated:
        print(simulated_page(values))
    else:
        write_results(options.out, values, page(values))
        print(page(values))
    if left := parts.missing():
        print(f"missing: {', '.join(left)}; {parts.further()}", file=sys.stderr)
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
