# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`memformer evaluate MODEL --lm-eval TASK,...`: tasks of EleutherAI's lm-evaluation-harness."""

import argparse
import sys
import time
from contextlib import nullcontext, redirect_stdout
from pathlib import Path

from data_pipeline.errors import UserError
from launch.answers import answer
from launch.outputs import make_outputs_patient
from launch.progress import Progress
from launch.reports import check_out, json_lines, write_report

UNSET = argparse.SUPPRESS
OWN = ("lm_eval_path", "lm_eval_trust", "lm_eval_download", "limit", "out", "dump")
"""Options that mean something with --lm-eval; the last two with --tasks too."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the tasks are, what they may do, how much is asked."""
    add = parser.add_argument_group("tasks of lm-evaluation-harness").add_argument
    add(
        "--lm-eval-path",
        metavar="DIR",
        action="append",
        default=UNSET,
        help="directory with YAML files of tasks, at any depth; may be repeated",
    )
    add(
        "--lm-eval-trust",
        action="store_true",
        default=UNSET,
        help="let these files run Python code (!function, templates, metrics of evaluate), and what a model writes",
    )
    add(
        "--lm-eval-download",
        action="store_true",
        default=UNSET,
        help="take the harness's own tasks too, and let data be fetched from the Hugging Face hub",
    )
    add("--limit", metavar="N", type=int, default=UNSET, help="documents of each task at most (default: all)")


def run(arguments: argparse.Namespace) -> None:
    """Loads the tasks, asks the model, prints a table, writes the files."""
    from launch.models import model_here, open_model
    from memformer.inference.lm_eval_tasks import ask_tasks, load_tasks, table

    names = [name.strip() for name in arguments.lm_eval.split(",") if name.strip()]
    limit = getattr(arguments, "limit", None)
    if not names:
        raise UserError("--lm-eval names no task: give names or YAML files with commas between them")
    if limit is not None and limit < 1:
        raise UserError(f"--limit is {limit}: give 1 or more")
    out = Path(arguments.out) if "out" in arguments else None
    if out is not None:
        check_out(out)
        make_outputs_patient()  # as of tasks: the report is written after the table
    model_here(arguments)
    folders = [Path(folder) for folder in getattr(arguments, "lm_eval_path", ())]
    began = time.perf_counter()
    dumped = json_lines(Path(arguments.dump), "--dump") if "dump" in arguments else nullcontext()
    # The harness and the libraries under it print; stdout is for the table.
    with Progress() as progress, dumped as dump:
        with redirect_stdout(sys.stderr):
            progress.say("loading the tasks")
            loaded = load_tasks(
                names, folders, trust="lm_eval_trust" in arguments, download="lm_eval_download" in arguments
            )
            model, tokenizer = open_model(arguments)
            from memformer.inference.lm_eval_adapter import MemoryLM

            lm = MemoryLM(model, tokenizer, arguments.lanes, progress=progress.count)
            result = ask_tasks(lm, loaded, limit=limit, samples=dump is not None)
        if dump is not None:
            for task, samples in result.pop("samples").items():
                for sample in samples:
                    dump({"task": task, **sample})
    print("\n".join(table(result)))
    report = {
        "model_path": str(arguments.model),
        "segment_length": model.config.segment_length,
        "limit": limit,
        **result,
    }
    if out is not None:
        print(f"{out}: {', '.join(write_report(out, 'lm_eval.json', report, {}))}")
    if arguments.json:
        answer(report | {"seconds": round(time.perf_counter() - began, 3)})
