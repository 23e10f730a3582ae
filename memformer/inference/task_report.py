# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""A model on tasks by length and depth: documents asked cell by cell, the report, its table and heat maps."""

import math
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from data_pipeline import Tokenizer, UserError
from data_pipeline.tasks import Document, Task, Texts, make_document, solved
from data_pipeline.tasks.prompts import USE, Cell, Grid, Prompt, prompt_of
from memformer.inference import drawing
from memformer.inference.perplexity import MODES
from memformer.inference.task_answers import ALL_MODES, WITHOUT, Answers, OneProcess, Progress
from memformer.inference.tasks import Said, answer_questions
from memformer.models.protocol import MemoryModel
from memformer.processes.topology import Axis

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = {
    "with_memory": ("with memory", "with the memory"),
    "memory_reset": ("memory reset", "memory reset at every segment"),
    WITHOUT: ("without memory", "the language model alone"),
}
"""What a mode is called in a table and over a heat map."""
Z95 = 1.959963984540054  # standard deviations on either side of the mean that hold 95 % of a normal distribution


Dump = Callable[[dict[str, Any]], None]


def interval(right: int, asked: int) -> tuple[float, float]:
    """The 95 % confidence interval of a share, after Wilson (1927)."""
    share, square = right / asked, Z95**2
    centre = (share + square / (2 * asked)) / (1 + square / asked)
    reach = Z95 * math.sqrt(share * (1 - share) / asked + square / (4 * asked**2)) / (1 + square / asked)
    return max(0.0, centre - reach), min(1.0, centre + reach)


def evaluate_task(
    model: MemoryModel,
    tokenizer: Tokenizer,
    task: Task,
    texts: Texts | None,
    grid: Grid,
    *,
    progress: Progress | None = None,
    dump: Dump | None = None,
) -> dict[str, Any]:
    """Asks a model the questions of a task's documents, in every cell of a grid.

    Args:
        model: In evaluation mode.
        tokenizer: The model's.
        task: What is told and asked.
        texts: What stands between the facts.
        grid: Lengths, depths, documents.
        progress: Told after each segment how many tokens it had.
        dump: See `report_of`.

    Returns:
        See `report_of`.

    Raises:
        UserError: See `report_of`.
    """
    return report_of(OneProcess(model, progress), tokenizer, task, texts, grid, dump)


def report_of(
    answers: Answers, tokenizer: Tokenizer, task: Task, texts: Texts | None, grid: Grid, dump: Dump | None = None
) -> dict[str, Any]:
    """The questions of a task's documents in every cell of a grid, and what is answered.

    Args:
        answers: What answers.
        tokenizer: The model's.
        task: What is told and asked.
        texts: What stands between the facts.
        grid: Lengths, depths, documents.
        dump: Given a record of each question, with the document's text.

    Returns:
        JSON-ready: task, chance, context and cells. `context` is how many tokens the language model alone reads at once
        (null: it cannot do without its memory). A cell has its length, depth, documents and questions; the shares of
        right answers of `solver`, which reads the text by a rule (null where there is none), and of `guess`, which sees
        the question alone; and by mode `right`, `accuracy`, its 95 % interval `low` to `high`, and `log_likelihood`,
        the mean of the right answers' in nats. `without_memory` is null where a document is longer than the context.

    Raises:
        UserError: A document does not fit into a length; or what answers raises it.
    """

    def count(text: str) -> int:
        return len(tokenizer.encode(text))

    made: deque[tuple[list[Document], list[Prompt]]] = deque()  # what is being answered

    def batches() -> Iterator[list[Prompt]]:
        for length, depth, numbers in parts:  # as many at a time as are read side by side: that much text is held
            documents = [make_document(task, texts, length, depth, grid.seed, each, USE, count) for each in numbers]
            made.append((documents, [prompt_of(each, tokenizer) for each in documents]))
            yield made[-1][1]

    cells, total, lanes = grid.cells_of(task), grid.documents_of(task), grid.lanes
    parts = [
        (length, depth, range(first, min(first + lanes, total)))
        for length, depth in cells
        for first in range(0, total, lanes)
    ]
    scores = {cell: _Cell(task, grid.seed) for cell in cells}
    for (length, depth, _), found in zip(parts, answers(batches()), strict=True):
        documents, prompts = made.popleft()
        for lane, (document, prompt) in enumerate(zip(documents, prompts, strict=True)):
            said = {mode: found[mode][lane] for mode in ALL_MODES}
            for record in scores[length, depth].add(document, prompt, said, tokenizer):
                if dump:
                    dump({"task": task.label, "length": length, "depth": depth, **record})
    return {
        "task": task.label,
        "chance": task.chance,
        "context": answers.context,
        "cells": [
            {"length": length, "depth": depth, "documents": total, **score.report()}
            for (length, depth), score in scores.items()
        ],
    }


def ask_cells(
    model: MemoryModel, cells: Sequence[Cell], lanes: int, replicas: Axis, progress: Callable[[int], None]
) -> list[dict[str, Any]]:
    """Asks a model that is being trained; called by all processes together, and the result is the same on all.

    Args:
        model: The model; put into evaluation mode for the time.
        cells: The documents, the same on all processes.
        lanes: Documents that each replica reads side by side at most.
        replicas: This one among all, which share the documents.
        progress: Told after each segment how many tokens it had here; may raise.

    Returns:
        Of each task what `evaluate_task` gives, without the baselines.
    """
    results: dict[str, dict[str, Any]] = {}
    for cell in cells:
        found = answer_questions(model, cell.prompts, lanes, progress=progress, replicas=replicas)
        said = [[each for document in found[mode] for each in document] for mode in MODES]
        sums = [[len(own), sum(each.right for each in own), sum(each.log_likelihood for each in own)] for own in said]
        totals = replicas.sum(torch.tensor(sums, dtype=torch.float64, device=model.device)).tolist()
        figures = {
            mode: _figures(int(right), likely, int(asked))
            for mode, (asked, right, likely) in zip(MODES, totals, strict=True)
        }
        task = results.setdefault(
            cell.task.label, {"task": cell.task.label, "chance": cell.task.chance, "cells": list[Any]()}
        )
        place = {"length": cell.length, "depth": cell.depth, "documents": len(cell.prompts)}
        task["cells"].append({**place, "questions": int(totals[0][0]), **figures})
    return list(results.values())


def _figures(right: int, likely: float, questions: int) -> dict[str, Any]:
    """What is reported of the answers of a cell in one mode."""
    low, high = interval(right, questions)
    return {
        "right": right,
        "accuracy": right / questions,
        "low": low,
        "high": high,
        "log_likelihood": likely / questions,
    }


class _Cell:
    """Sums the answers of a cell up."""

    def __init__(self, task: Task, seed: int) -> None:
        self.task, self.seed = task, seed
        self.questions = self.guessed = self.solved = self.documents = self.tokens = 0
        self.right = dict.fromkeys(ALL_MODES, 0)
        self.likely = dict.fromkeys(ALL_MODES, 0.0)
        self.unread: set[str] = set()  # modes in which a document could not be read

    def add(
        self, document: Document, prompt: Prompt, said: dict[str, tuple[Said, ...] | None], tokenizer: Tokenizer
    ) -> Iterator[dict[str, Any]]:
        """Counts a document; a record of each question."""
        # The same guess however many documents are asked, and in whatever order.
        random = np.random.default_rng([self.seed, zlib.crc32(f"guess {document.name}".encode())])
        self.documents += 1
        self.solved += bool(solved(self.task, document))
        self.tokens += len(prompt.tokens)
        self.unread |= {mode for mode, each in said.items() if each is None}
        for place, answer in enumerate(document.answers):
            question, right = document.question(answer), document.answer(answer)
            self.questions += 1
            self.guessed += self.task.guess(random, question) == right
            record: dict[str, Any] = {"document": document.name, "prompt": document.text[: answer.start]}
            record |= {"question": question, "answer": right}
            for mode, each in said.items():
                if each is not None:
                    self.right[mode] += each[place].right
                    self.likely[mode] += each[place].log_likelihood
                    record[mode] = tokenizer.decode(each[place].tokens).strip()
                    record[f"{mode}_right"] = each[place].right
            yield record

    def report(self) -> dict[str, Any]:
        """The cell's figures."""
        return {
            "questions": self.questions,
            "tokens": self.tokens,
            "solver": self.solved / self.documents if self.task.solves else None,
            "guess": self.guessed / self.questions,
            **{
                mode: None if mode in self.unread else _figures(self.right[mode], self.likely[mode], self.questions)
                for mode in ALL_MODES
            },
        }


def modes_of(result: dict[str, Any]) -> list[str]:
    """The modes that a task's report has figures of, or could have of shorter documents."""
    return [mode for mode in ALL_MODES if mode != WITHOUT or result["context"] is not None]


def table(result: dict[str, Any]) -> list[str]:
    """The lines of a task for people: a row a cell, shares of right answers with their intervals."""
    chance = "unknown" if result["chance"] is None else f"{result['chance']:.3g}"
    lines = [f"{result['task']}: share of right answers, 95 % interval; chance {chance}"]
    modes, context = modes_of(result), result["context"]
    names = "".join(f"  {NAMES[mode][0]:>19}" for mode in modes)
    lines.append(f"{'tokens':>10}  {'depth':>5}  {'asked':>5}{names}  {'guess':>5}")
    for cell in result["cells"]:
        shares = ""
        for mode in modes:
            found, told = cell[mode], f"longer than {context}"
            if found is not None:
                told = f"{found['accuracy']:.3f} ({found['low']:.2f} to {found['high']:.2f})"
            shares += f"  {told:>19}"
        length = f"{cell['length']:,}" if cell["length"] else "no filler"
        depth = f"{cell['depth']:.2f}" if cell["length"] else ""
        lines.append(f"{length:>10}  {depth:>5}  {cell['questions']:>5}{shares}  {cell['guess']:>5.2f}")
    if any(cell[mode] is None for cell in result["cells"] for mode in modes):
        lines.append(f"without memory: the language model alone, which reads {context:,} tokens at once and no more")
    return lines


def heat_map(result: dict[str, Any]) -> "Figure":
    """Shares of right answers by length and depth: a panel for each of `modes_of`.

    Of documents that are longer than the language model's context its panel has nothing.

    Raises:
        UserError: matplotlib is missing.
    """
    if not drawing.available():
        raise UserError("pictures need matplotlib: pip install 'memformer-train[plots]', or give --no-pictures")
    lengths = sorted({cell["length"] for cell in result["cells"]})
    depths = sorted({cell["depth"] for cell in result["cells"]})
    modes = modes_of(result)
    figure = drawing.figure(1.3 * (1 + len(lengths)) * len(modes) / 2 + 1.3, 1.9 + 0.42 * len(depths))
    chance = "" if result["chance"] is None else f" (chance {result['chance']:.2g})"
    figure.suptitle(f"{result['task']}: right answers{chance}", fontsize=drawing.TITLE, x=0.01, ha="left")
    panels = figure.subplots(1, len(modes), sharey=True)
    for axes, mode in zip(panels, modes, strict=True):
        shares = np.full((len(depths), len(lengths)), np.nan)
        for cell in result["cells"]:
            if cell[mode] is not None:
                shares[depths.index(cell["depth"]), lengths.index(cell["length"])] = cell[mode]["accuracy"]
        image = axes.imshow(shares, vmin=0, vmax=1, cmap="viridis", aspect="auto", interpolation="nearest")
        for (row, column), share in np.ndenumerate(shares):
            if not np.isnan(share):
                colour = "black" if share > 0.6 else "white"
                axes.text(column, row, f"{share:.2f}", ha="center", va="center", fontsize=drawing.SMALL, color=colour)
        axes.set_xticks(range(len(lengths)), [short(length) for length in lengths])
        axes.set_yticks(range(len(depths)), [f"{depth:g}" for depth in depths])
        drawing.name(axes, title=NAMES[mode][1], x="tokens", y="depth" if axes is panels[0] else "")
    colours = figure.colorbar(image, ax=panels)
    colours.ax.tick_params(labelsize=drawing.SMALL)
    return figure


def short(length: int) -> str:
    """A length as `--lengths` takes it: 160, 4k, 1M."""
    for unit, letter in ((1_000_000, "M"), (1000, "k")):
        if length >= unit and length * 10 % unit == 0:
            return f"{length / unit:g}{letter}"
    return str(length)


def timed(start: float, tokens: int) -> str:
    """How long it took, for people."""
    seconds = time.perf_counter() - start
    return f"{tokens:,} tokens in {seconds:.1f} s ({tokens / max(seconds, 1e-9):,.0f} tokens/s)"
