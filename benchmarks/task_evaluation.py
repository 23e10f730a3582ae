# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Tasks of memory by length and depth: trained on 160 tokens by the project's own commands, asked at up to 16,000.

    python benchmarks/task_evaluation.py --seeds 0 1 2           about two hours of one CPU core
    python benchmarks/task_evaluation.py --quick --json          about a minute: few steps, one task
    python benchmarks/task_evaluation.py --seeds 0 1 2 --out benchmarks/results/DATE-cpu-task-evaluation

For each task, model and seed: `memformer data synthesise`, `train`, `export` and `evaluate --tasks`, each in a process
of its own, as a user would type them. The models are the quick start's Memformer and a tiny Llama with an associative
memory, which has read books first (`pretrained`: trained and exported by the same commands, in segments of 128 that
remember nothing) or not (`associative`). Beside them a plain Transformer of as many parameters, which is trained on the
same documents, read whole, and asked with the last 160 tokens in view: it must be right inside its window and guess
beyond. A case that is in OUT.json is not measured again.
"""

import argparse
import atexit
import functools
import itertools
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.cases import Case, Row, add_options, run_cases, seeds_of
from benchmarks.common import markdown_table, page_head
from benchmarks.peers.backbone import TINY
from benchmarks.peers.reader import parameters
from benchmarks.peers.window import WindowModel, WindowReader
from benchmarks.published import PUBLISHED
from benchmarks.training import Recipe, Rollout, train
from data_pipeline import SegmentStream
from data_pipeline.tasks import parse_depths, parse_lengths, parse_tasks
from data_pipeline.tasks.filler import texts_for
from data_pipeline.tokenizer_choice import make_tokenizer
from launch.quickstart import PASSKEY_CONFIG, memformer
from memformer import MemformerConfig
from memformer.config.builtin import located
from memformer.inference.task_report import Grid, evaluate_task
from memformer.run import jsonl

TASKS = ("passkey:digits=1", "needle:digits=1")
TRAINED = "0,96,128,160"
"""Tokens of the training documents, which are bytes."""
WINDOW = 160
SETTINGS: dict[str, dict[str, Any]] = {
    "memformer": {"training": {"max_steps": 600}},
    "pretrained": {
        "model": {"family": "backbone", "memory": {"kind": "associative"}},
        "training": {"max_steps": 400},
        "optimizer": {"learning_rate": 1e-3},
    },
    "associative": {
        "model": {
            "family": "backbone",
            "backbone": TINY | {"num_hidden_layers": 2},
            "memory": {"kind": "associative", "num_write_tokens": 4},
        },
        "training": {"max_steps": 400},
        "optimizer": {"learning_rate": 2e-3},
    },
}
"""What differs from configs/train/quickstart-memory.yaml; a model is replaced as a whole."""
PRETRAINING: dict[str, Any] = {
    "model": {
        "family": "backbone",
        "backbone": TINY,
        "memory": {"kind": "slots", "layers": [0], "num_slots": 1},
    },
    "data": {"num_lanes": 16, "segment_length": 128, "num_segments": 1},
    "training": {"max_steps": 600, "eval_interval": 0, "log_interval": 100},
    "optimizer": {"learning_rate": 3e-3, "schedule": "wsd"},
}
"""Only the language model is taken from this run; its one slot is left behind."""
PLAIN, PLAIN_LANES, PLAIN_LAYERS = Recipe(400, 1e-3, "wsd"), 48, 3
"""As many documents a step as the others read in 16 lanes of 320 tokens, about; as many parameters as the Memformer."""
NAMES = {
    "memformer": "Memformer",
    "pretrained": "pretrained Llama with an associative memory",
    "associative": "the same from scratch, 2 layers",
    "transformer": "plain Transformer",
}
DEFAULT = ("memformer", "pretrained", "transformer")
PUBLISHED_WORDS = (
    "Large models, other tokens and sentences, lengths of a thousand times ours: the tables say what the field calls "
    "good, not how ours compare."
)
MODES = {"with_memory": "", "memory_reset": ", memory reset", "without_memory": ", without memory"}


def measure(options: argparse.Namespace, case: Case) -> list[Row]:
    """Makes the documents, trains a model and asks it: one row."""
    began = time.process_time(), time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="task-evaluation-") as folder:
        data = Path(folder) / "data"
        made = ["--lengths", TRAINED, "--documents", str(options.train_documents), "--seed", str(case["seed"])]
        memformer("data", "synthesise", case["task"], *made, "--out", str(data))
        ask = plain if case["model"] == "transformer" else ours
        found = ask(options, case, data)
    row = {**case, **found, "seconds": time.perf_counter() - began[1]}
    print(line(row), flush=True)
    return [row]


def settings_of(model: str, seed: int, steps: int | None, data: Path) -> dict[str, Any]:
    """A run's configuration: the quick start's with this model's changes."""
    settings: dict[str, Any] = yaml.safe_load(located(PASSKEY_CONFIG).read_text(encoding="utf-8"))
    changes = SETTINGS[model]
    settings["model"] = changes.get("model", settings["model"])
    for section in ("training", "optimizer"):
        settings[section] |= changes.get(section, {})
    steps = steps or settings["training"]["max_steps"]
    settings["training"]["max_steps"] = steps
    settings["optimizer"]["warmup_steps"] = min(settings["optimizer"]["warmup_steps"], steps)
    settings["data"]["path"], settings["run_dir"] = str(data), str(data.parent / "run")
    return settings | {"seed": seed, "tensorboard": False, "checkpoint": {"interval": 100_000}}


def ours(options: argparse.Namespace, case: Case, data: Path) -> Row:
    """A model of this project, by its commands."""
    settings = settings_of(case["model"], case["seed"], options.steps, data)
    if case["model"] == "pretrained":
        settings["model"]["pretrained"] = str(pretrained(options.pretraining_steps))
    config, run = data.parent / "config.yaml", data.parent / "run"
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    memformer("train", str(config))
    memformer("export", str(run), "--out", str(run / "model"))
    asked = ["--lengths", options.lengths, "--depths", options.depths, "--documents", str(options.documents)]
    lanes = ["--lanes", str(options.documents), "--device", "cpu", "--json"]
    said = memformer("evaluate", str(run / "model"), "--tasks", case["task"], *asked, *lanes)
    steps = jsonl.records(run / "metrics.jsonl")
    return {
        "steps": steps[-1]["step"],
        "trained_tokens": steps[-1]["tokens"],
        "last_loss": steps[-1]["loss"],
        **json.loads(said.splitlines()[-1])["tasks"][0],
    }


@functools.cache
def pretrained(steps: int) -> Path:
    """A tiny byte-level Llama that has read books, as `export` writes it; made once a process."""
    folder = Path(tempfile.mkdtemp(prefix="task-evaluation-pretrained-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    memformer("data", "build", "builtin:books", "--tokenizer", "bytes", "--out", str(folder / "books"))
    settings = PRETRAINING | {"run_dir": str(folder / "run"), "tensorboard": False}
    settings["data"] = PRETRAINING["data"] | {"path": str(folder / "books")}
    settings["training"] = PRETRAINING["training"] | {"max_steps": steps}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    memformer("train", str(folder / "config.yaml"))
    memformer("export", str(folder / "run"), "--out", str(folder / "model"))
    return folder / "model"


def plain(options: argparse.Namespace, case: Case, data: Path) -> Row:
    """The plain Transformer, trained on the same documents."""
    task, tokenizer = parse_tasks(case["task"])[0], make_tokenizer("bytes")
    own = yaml.safe_load(located(PASSKEY_CONFIG).read_text(encoding="utf-8"))
    config = MemformerConfig(
        d_model=own["model"]["d_model"],
        num_heads=own["model"]["num_heads"],
        d_ff=own["model"]["d_ff"],
        vocab_size=tokenizer.vocab_size,
        start_token_id=tokenizer.start_token_id,
        segment_length=own["data"]["segment_length"],
    )
    torch.manual_seed(case["seed"])
    model = WindowModel(config, PLAIN_LAYERS, WINDOW)
    reader = WindowReader(model)
    steps = options.steps or PLAIN.steps
    with SegmentStream(data, num_lanes=PLAIN_LANES, segment_length=WINDOW, num_segments=1, seed=case["seed"]) as stream:
        history = train(reader, rollouts(stream), Recipe(steps, PLAIN.learning_rate, PLAIN.schedule), print)
    grid = Grid(
        parse_lengths(options.lengths), parse_depths(options.depths), options.documents, lanes=options.documents
    )
    texts = texts_for([task], grid.lengths, ())
    return {
        "steps": history.steps,
        "parameters": parameters(reader),
        "last_loss": history.losses[-1],
        **evaluate_task(model, tokenizer, task, texts, grid),
    }


def rollouts(stream: SegmentStream) -> Iterator[Rollout]:
    """Whole documents, with the weights of their answers."""
    for batch in stream:
        assert batch.loss_weights is not None
        yield Rollout(torch.from_numpy(batch.tokens).long(), torch.from_numpy(batch.loss_weights))


def line(row: Row) -> str:
    """One line for people."""
    found = "  ".join(
        f"{length:,}: {min(each['with_memory']['accuracy'] for each in row['cells'] if each['length'] == length):.2f}"
        for length in sorted({cell["length"] for cell in row["cells"]})
    )
    return f"{row['task']} {row['model']} seed {row['seed']}, worst depth by length: {found}; {row['seconds']:.0f} s"


def shares(rows: Sequence[Row], length: int, mode: str, depth: float | None = None) -> list[float]:
    """Each seed's share of right answers at a length, at all depths below 1 or at one.

    None where the mode has no figures. Depth 1 is apart: the fact stands right before the question, and nothing has to
    be remembered.
    """
    found = []
    for row in rows:
        cells = [
            cell
            for cell in row["cells"]
            if cell["length"] == length
            and (cell["depth"] < 1 if depth is None else cell["depth"] == depth)
            and cell.get(mode)
        ]
        if cells:
            found.append(sum(cell[mode]["right"] for cell in cells) / sum(cell["questions"] for cell in cells))
    return found


def shown(found: Sequence[float]) -> str:
    """The mean of the seeds, and the worst where it is another."""
    if not found:
        return "longer than its context"
    mean, least = f"{statistics.fmean(found):.2f}", f"{min(found):.2f}"
    return mean if mean == least else f"{mean} ({least})"


def page(values: dict[str, Any]) -> str:
    """The result page in Markdown."""
    sizes = values["sizes"]
    lengths, depths = parse_lengths(sizes["lengths"]), parse_depths(sizes["depths"])
    parts = [
        *page_head("Tasks of memory: pass key and needle by length and depth", values),
        f"Share of right answers of {sizes['documents']} documents a length and depth, of each seed; mean over the "
        "seeds, the worst in brackets where it is another. Trained on documents of at most "
        f"{WINDOW} tokens (bytes) in segments of 32. *Memory reset*: the same model, its memory taken away at every "
        "segment; *without memory*: its language model alone, with all of the document in view. The plain Transformer "
        f"sees the last {WINDOW} tokens; reset, those of the segment alone. Depth 1 has the fact right before the "
        "question; documents of a drawn depth, as in training, always have a word between.",
    ]
    for task in dict.fromkeys(row["task"] for row in values["rows"]):
        rows = [row for row in values["rows"] if row["task"] == task]
        parts += ["", f"## {task}", "", f"Chance {rows[0]['chance']:.2f}.", ""]
        of_model = {model: [row for row in rows if row["model"] == model] for model in NAMES}
        table = [
            [
                f"{NAMES[model]}{words}",
                seeds_of(found),
                found[0]["steps"],
                *(shown(shares(found, length, mode)) for length in lengths),
            ]
            for model, found in of_model.items()
            if found
            for mode, words in MODES.items()
            if any(shares(found, length, mode) for length in lengths)
        ]
        for baseline in ("guess", "solver"):
            cells = [[cell for row in rows for cell in row["cells"] if cell["length"] == length] for length in lengths]
            table.append(
                [f"*{baseline}*", "", "", *(statistics.fmean(each[baseline] for each in some) for some in cells)]
            )
        parts += [
            markdown_table(["depths below 1", "seeds", "steps", *(f"{length:,} tokens" for length in lengths)], table)
        ]
        table = [
            [NAMES[model], f"{length:,}", *(shown(shares(found, length, "with_memory", depth)) for depth in depths)]
            for model, found in of_model.items()
            if found
            for length in lengths
        ]
        parts += ["", markdown_table(["by depth", "tokens", *(f"{depth:g}" for depth in depths)], table)]
    parts += ["", "## What others have published", "", PUBLISHED_WORDS]
    parts += [line for each in PUBLISHED for line in ("", each.markdown())]
    if values["notes"]:
        parts += ["", values["notes"]]
    return "\n".join(parts)


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), help=f"default: {' '.join(TASKS)}")
    parser.add_argument(
        "--models", nargs="+", choices=NAMES, default=list(DEFAULT), help=f"default: {' '.join(DEFAULT)}"
    )
    parser.add_argument("--lengths", default="160,1600,16000", help="as of evaluate; default 160,1600,16000")
    parser.add_argument("--depths", default="0,0.25,0.5,0.75,1", help="as of evaluate; default 0,0.25,0.5,0.75,1")
    parser.add_argument("--documents", type=int, default=20, help="documents a length and depth; default 20")
    parser.add_argument("--train-documents", type=int, default=12_000, help="documents trained on; default 12000")
    parser.add_argument("--steps", type=int, help="optimizer steps (default: the model's)")
    parser.add_argument("--pretraining-steps", type=int, default=600, help="of the Llama on books; default 600")
    add_options(parser, "a few steps on pass keys, asked at 160 and 1,600")
    options = parser.parse_args(words)
    if options.quick:
        options.tasks, options.lengths, options.depths = [TASKS[0]], "160,1600", "0,0.5"
        options.steps, options.documents, options.train_documents = options.steps or 20, 8, 400
        options.pretraining_steps = min(options.pretraining_steps, 20)
    return options


def main(words: Sequence[str] | None = None) -> None:
    options = parse(words)
    cases = [
        {"task": task, "model": model, "seed": seed}
        for task, model, seed in itertools.product(options.tasks, options.models, options.seeds)
    ]
    sizes = {name: getattr(options, name) for name in ("lengths", "depths", "documents", "train_documents")}
    values = run_cases(options, sizes, cases, functools.partial(measure, options), page)
    if options.json:
        print(json.dumps({key: values[key] for key in ("rows", "hardware", "commit")}))


if __name__ == "__main__":
    main()
