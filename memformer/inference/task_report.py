# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""A model on tasks by length and depth: documents asked cell by cell, the report, its table and heat maps."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from data_pipeline import Tokenizer, UserError
from data_pipeline.tasks import Document, Task, Texts, make_document, solved
from data_pipeline.tasks.prompts import USE, Cell, Grid, Prompt, prompt_of
from memformer.inference import drawing
from memformer.inference.perplexity import MODES
from memformer.inference.tasks import Said, answer_questions
from memformer.models.protocol import MemoryModel
from memformer.processes.topology import Axis

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
    progress: Callable[[int], None] | None = None,
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
        dump: Given a record of each question, with the document's text.

    Returns:
        JSON-ready: task, chance and cells. A cell has its length, depth, documents and questions; the shares of right
        answers of `solver`, which reads the text by a rule (null where there is none), and of `guess`, which sees the
        question alone; and by mode `right`, `accuracy`, its 95 % interval `low` to `high`, and `log_likelihood`, the
        mean of the right answers' in nats.

    Raises:
        UserError: A document does not fit into a length.
    """

    def count(text: str) -> int:
        return len(tokenizer.encode(text))

    cells = []
    for length, depth in grid.cells_of(task):
        documents, number = grid.documents_of(task), 0
        score = _Cell(task, grid.seed)
        while number < documents:  # as many at a time as are read side by side: that much text is held
            batch = range(number, min(number + grid.lanes, documents))
            made = [make_document(task, texts, length, depth, grid.seed, each, USE, count) for each in batch]
            prompts = [prompt_of(each, tokenizer) for each in made]
            found = answer_questions(model, prompts, grid.lanes, progress=progress)
            for lane, document in enumerate(made):
                said = {mode: found[mode][lane] for mode in MODES}
                for record in score.add(document, prompts[lane], said, tokenizer):
                    if dump:
                        dump({"task": task.label, "length": length, "depth": depth, **record})
            number = batch.stop
        cells.append({"length": length, "depth": depth, "documents": documents, **score.report()})
    return {"task": task.label, "chance": task.chance, "cells": cells}


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
        self.task, self.random = task, np.random.default_rng(seed)
        self.questions = self.guessed = self.solved = self.documents = self.tokens = 0
        self.right = dict.fromkeys(MODES, 0)
        self.likely = dict.fromkeys(MODES, 0.0)

    def add(
        self, document: Document, prompt: Prompt, said: dict[str, tuple[Said, ...]], tokenizer: Tokenizer
    ) -> Iterator[dict[str, Any]]:
        """Counts a document; a record of each question."""
        self.documents += 1
        self.solved += bool(solved(self.task, document))
        self.tokens += len(prompt.tokens)
        for number, place in enumerate(document.answers):
            question, answer = document.question(place), document.answer(place)
            self.questions += 1
            self.guessed += self.task.guess(self.random, question) == answer
            for mode in MODES:
                self.right[mode] += said[mode][number].right
                self.likely[mode] += said[mode][number].log_likelihood
            yield {
                "document": document.name,
                "prompt": document.text[: place.start],
                "question": question,
                "answer": answer,
                **{mode: tokenizer.decode(said[mode][number].tokens).strip() for mode in MODES},
                **{f"{mode}_right": said[mode][number].right for mode in MODES},
            }

    def report(self) -> dict[str, Any]:
        """The cell's figures."""
        return {
            "questions": self.questions,
            "tokens": self.tokens,
            "solver": self.solved / self.documents if self.task.solves else None,
            "guess": self.guessed / self.questions,
            **{mode: _figures(self.right[mode], self.likely[mode], self.questions) for mode in MODES},
        }


def table(result: dict[str, Any]) -> list[str]:
    """The lines of a task for people: a row a cell, shares of right answers with their intervals."""
    chance = "unknown" if result["chance"] is None else f"{result['chance']:.3g}"
    lines = [f"{result['task']}: share of right answers, 95 % interval; chance {chance}"]
    lines.append(f"{'tokens':>10}  {'depth':>5}  {'asked':>5}  {'with memory':>19}  {'memory reset':>19}  {'guess':>5}")
    for cell in result["cells"]:
        shares = [
            f"{cell[mode]['accuracy']:.3f} ({cell[mode]['low']:.2f} to {cell[mode]['high']:.2f})" for mode in MODES
        ]
        length = f"{cell['length']:,}" if cell["length"] else "no filler"
        depth = f"{cell['depth']:.2f}" if cell["length"] else ""
        lines.append(
            f"{length:>10}  {depth:>5}  {cell['questions']:>5}  {shares[0]:>19}  {shares[1]:>19}  {cell['guess']:>5.2f}"
        )
    return lines


def heat_map(result: dict[str, Any]) -> "Figure":
    """Shares of right answers by length and depth: with the memory, and with it reset at every segment.

    Raises:
        UserError: matplotlib is missing.
    """
    if not drawing.available():
        raise UserError("pictures need matplotlib: pip install 'memformer-train[plots]', or give --no-pictures")
    lengths = sorted({cell["length"] for cell in result["cells"]})
    depths = sorted({cell["depth"] for cell in result["cells"]})
    figure = drawing.figure(2.6 + 1.3 * len(lengths), 1.9 + 0.42 * len(depths))
    chance = "" if result["chance"] is None else f" (chance {result['chance']:.2g})"
    figure.suptitle(f"{result['task']}: right answers{chance}", fontsize=drawing.TITLE, x=0.01, ha="left")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, mode, words in zip(panels, MODES, ("with the memory", "memory reset at every segment"), strict=True):
        shares = np.full((len(depths), len(lengths)), np.nan)
        for cell in result["cells"]:
            shares[depths.index(cell["depth"]), lengths.index(cell["length"])] = cell[mode]["accuracy"]
        image = axes.imshow(shares, vmin=0, vmax=1, cmap="viridis", aspect="auto", interpolation="nearest")
        for (row, column), share in np.ndenumerate(shares):
            if not np.isnan(share):
                colour = "black" if share > 0.6 else "white"
                axes.text(column, row, f"{share:.2f}", ha="center", va="center", fontsize=drawing.SMALL, color=colour)
        axes.set_xticks(range(len(lengths)), [short(length) for length in lengths])
        axes.set_yticks(range(len(depths)), [f"{depth:g}" for depth in depths])
        drawing.name(axes, title=words, x="tokens", y="depth" if axes is panels[0] else "")
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
