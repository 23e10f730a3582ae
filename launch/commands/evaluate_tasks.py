# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`memformer evaluate MODEL --tasks NAME,...`: shares of right answers by length and depth of a document."""

import argparse
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.errors import UserError
from launch.answers import answer
from launch.cli import OneLineParser
from launch.outputs import make_outputs_patient
from launch.progress import Progress
from launch.reports import check_out, json_lines, write_report

if TYPE_CHECKING:
    import torch

    from memformer.inference.task_answers import Answers

UNSET = argparse.SUPPRESS
LENGTHS, DEPTHS, DOCUMENTS = "1k,4k,16k", "0,0.25,0.5,0.75,1", 32
OWN = ("lengths", "depths", "documents", "seed", "text", "processes", "out", "no_pictures", "dump")
"""Options that mean something with --tasks."""


class Parser(OneLineParser):
    """A parser whose help ends with the tasks."""

    def format_help(self) -> str:
        """Describes the tasks, for those alone who ask: to load them takes a moment."""
        from data_pipeline.tasks.catalogue import described

        self.epilog = described()
        return super().format_help()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is asked, in which documents, and where the report goes."""
    add = parser.add_argument_group("tasks").add_argument
    add(
        "--lengths",
        metavar="N,...",
        default=UNSET,
        help=f"tokens of a document, as 500, 4k, 1M (default: {LENGTHS}); 0: no filler",
    )
    add(
        "--depths",
        metavar="X,...",
        default=UNSET,
        help=f"share of a document before its first fact (default: {DEPTHS})",
    )
    add(
        "--documents", metavar="N", type=int, default=UNSET, help=f"documents a length and depth (default: {DOCUMENTS})"
    )
    add("--seed", metavar="N", type=int, default=UNSET, help="names the documents (default: 0)")
    add(
        "--text",
        metavar="SOURCE",
        nargs="+",
        default=UNSET,
        help="texts that facts are hidden in, of the kinds that `data build` takes (default: the books of the project)",
    )
    add(
        "--processes",
        metavar="N",
        type=int,
        default=UNSET,
        help="processes that share the documents, each with a copy of the model; GPUs in turn (default: 1)",
    )
    add(
        "--out",
        metavar="DIR",
        default=UNSET,
        help="directory for tasks.json and a heat map (PNG) of each task, or lm_eval.json",
    )
    add("--no-pictures", action="store_true", default=UNSET, help="tasks.json alone (pictures need matplotlib)")
    add(
        "--dump",
        metavar="FILE",
        default=UNSET,
        help="write every prompt, question, answer and what was said (without blanks and line ends around it), a JSON "
        "line each",
    )


def run(arguments: argparse.Namespace) -> None:
    """Asks, prints a table a task, writes the files."""
    from data_pipeline.tasks import parse_depths, parse_lengths, parse_tasks
    from data_pipeline.tasks.filler import texts_for
    from data_pipeline.tasks.prompts import Grid
    from launch.models import model_here, open_model
    from memformer.inference.drawing import available

    tasks = parse_tasks(arguments.tasks)
    lengths = parse_lengths(getattr(arguments, "lengths", LENGTHS))
    depths = parse_depths(getattr(arguments, "depths", DEPTHS))
    documents, seed = getattr(arguments, "documents", DOCUMENTS), getattr(arguments, "seed", 0)
    processes = getattr(arguments, "processes", 1)
    for name, value in (("documents", documents), ("processes", processes)):
        if value < 1:
            raise UserError(f"--{name} is {value}: give 1 or more")
    if seed < 0:
        raise UserError(f"--seed is {seed}: give 0 or more")
    out = Path(arguments.out) if "out" in arguments else None
    pictures = out is not None and "no_pictures" not in arguments
    if pictures and not available():
        raise UserError("pictures need matplotlib: pip install 'memformer-train[plots]', or give --no-pictures")
    if out is not None:
        check_out(out)
    if out is not None or "dump" in arguments:
        make_outputs_patient()  # a reader of the table that goes away (`| head`) does not take the files with it
    model_here(arguments)
    texts = texts_for(tasks, lengths, getattr(arguments, "text", ()))
    model, tokenizer = open_model(arguments)
    import torch

    from memformer.inference.task_answers import OneProcess, SeveralProcesses
    from memformer.inference.task_report import heat_map, report_of, table, timed

    grid = Grid(lengths, depths, documents, seed, arguments.lanes)
    began, read, results = time.perf_counter(), 0, []
    total = sum(grid.tokens_of(task) for task in tasks)
    dumped = json_lines(Path(arguments.dump), "--dump") if "dump" in arguments else nullcontext()
    with Progress() as progress, dumped as dump:

        def count(tokens: int) -> None:
            nonlocal read
            read += tokens
            progress.count("reading", read, max(total, read), "tokens")

        answering: AbstractContextManager[Answers] = nullcontext(OneProcess(model, count))
        if processes > 1:
            devices = devices_of(arguments.device, model.device, processes, torch.cuda.device_count())
            answering = SeveralProcesses(Path(arguments.model), model, devices, count)
        with answering as answers:
            for task in tasks:
                result = report_of(answers, tokenizer, task, texts, grid, dump)
                results.append(result)
                progress.end()
                print("\n".join([*table(result), ""]), flush=True)
    print(timed(began, read))
    report = {
        "model_path": str(arguments.model),
        "segment_length": model.config.segment_length,
        "text": [str(source) for source in getattr(arguments, "text", ())] or "books",
        "seed": grid.seed,
        "tasks": results,
    }
    if out is not None:
        figures = {picture_name(result["task"]): heat_map(result) for result in results} if pictures else {}
        print(f"{out}: {', '.join(write_report(out, 'tasks.json', report, figures))}")
    if arguments.json:
        answer(report | {"seconds": round(time.perf_counter() - began, 3)})


def devices_of(said: str, device: "torch.device", processes: int, gpus: int) -> "list[torch.device]":
    """Where each process computes: on all GPUs in turn, unless one is named.

    Args:
        said: The value of --device.
        device: What it stands for.
        processes: How many.
        gpus: That are here.
    """
    import torch

    if device.type != "cuda" or ":" in said:
        return [device] * processes
    return [torch.device("cuda", number % gpus) for number in range(processes)]


def picture_name(task: str) -> str:
    """A task's label as the name of a file."""
    return "".join(letter if letter.isalnum() or letter in "-_=." else "-" for letter in task).strip("-.")
