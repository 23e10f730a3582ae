# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What the memory keeps of a text: how much of each slot is left after a segment, forgetting included, the kinds of
slots and their shares, what tokens a slot took and still holds, how alike the slots are, how long a moved slot stays
moved. Of a memory that has no such slots: its size, change, gates by segment and layer, and how much of what a segment
wrote is still read so many segments later.

Writes DIR/memory.json with everything, definitions included, and pictures (PNG) of it. Memory use depends neither on
the text's length nor on the number of segments. How far it is stands on stderr.
"""

import argparse
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launch.answers import answer
from launch.progress import Progress
from launch.reports import check_out, write_report

CHARACTERS = 1 << 20  # of the text read at once


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL, the text, where to write, and what to measure."""
    from launch.models import add_model_arguments

    add_model_arguments(parser)
    parser.add_argument("--text-file", required=True, metavar="FILE", help="UTF-8 text (.gz: gzipped), one document")
    parser.add_argument("--out", required=True, metavar="DIR", help="directory for memory.json and the pictures")
    parser.add_argument("--top", type=int, default=8, metavar="N", help="tokens named a slot")
    parser.add_argument("--horizon", type=int, default=32, metavar="N", help="segments a moved memory is followed")
    parser.add_argument("--perturbation", type=float, default=0.1, metavar="X", help="its size; a slot has norm 1")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the perturbation's direction")
    parser.add_argument("--no-pictures", action="store_true", help="memory.json alone (pictures need matplotlib)")
    parser.add_argument("--json", action="store_true", help="JSON alone on stdout, the rest on stderr")


def run(arguments: argparse.Namespace) -> None:
    """Reads the text, writes the files and prints a summary."""
    from data_pipeline import UserError
    from launch.models import model_here
    from memformer.inference.pictures import available, pictures

    check(arguments)
    if not arguments.no_pictures and not available():
        raise UserError("pictures need matplotlib: pip install 'memformer-train[plots]', or give --no-pictures")
    path, out = Path(arguments.text_file), Path(arguments.out)
    model_here(arguments)
    check_out(out)
    if not path.is_file():
        if path.exists() and not path.is_dir():
            raise UserError(f"--text-file {path}: is a pipe or a device, and is read twice: write it to a file")
        why = "it is a directory" if path.is_dir() else "there is no such file"
        raise UserError(f"--text-file {path}: cannot be read as UTF-8 text ({why}): give the path of a text file")
    with Progress() as progress:
        progress.say("opening the model")
        report = inspected(arguments, progress)
        progress.say("drawing")
        files = write_report(out, "memory.json", report, {} if arguments.no_pictures else pictures(report))
    show(report)
    print(f"\n{out}: {', '.join(files)}")
    if arguments.json:
        answer({**summary(report), "out": str(out), "files": files})


def inspected(arguments: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    """Reads the text; the report."""
    from data_pipeline import UserError
    from launch.models import open_model

    model, tokenizer = open_model(arguments)
    from memformer.inference.diagnostics import has_slots
    from memformer.inference.inspection import MemoryInspector
    from memformer.inference.recall import RecallInspector

    path = Path(arguments.text_file)
    # Two passes, so that places in the document are known while it is read, without keeping it.
    count = 0
    for piece in token_pieces(path, tokenizer):
        count += len(piece)
        progress.say(f"counting: {count:,} tokens")
    if count == 0:
        raise UserError(f"--text-file {path}: is empty: give a text of one segment at least")

    def reading(done: int, total: int) -> None:
        progress.count("reading", done, total, "segments")

    inspector: MemoryInspector | RecallInspector
    if has_slots(model):
        inspector = MemoryInspector(
            model,
            tokenizer,
            count,
            horizon=arguments.horizon,
            perturbation=arguments.perturbation,
            top=arguments.top,
            seed=arguments.seed,
            progress=reading,
        )
    else:
        inspector = RecallInspector(model, count, horizon=arguments.horizon, progress=reading)
    for piece in token_pieces(path, tokenizer):
        inspector.read(piece)
    return {"model_path": str(arguments.model), "text_file": str(path), **inspector.report()}


def check(arguments: argparse.Namespace) -> None:
    """Refuses values out of range."""
    from data_pipeline import UserError

    for name, fits, mend in (
        ("top", arguments.top >= 1, "give 1 or more"),
        ("horizon", arguments.horizon >= 0, "give 0 or more"),
        ("perturbation", arguments.perturbation > 0, "give more than 0"),
    ):
        if not fits:
            raise UserError(f"--{name} is {getattr(arguments, name)}: {mend}")


def token_pieces(path: Path, tokenizer: Any) -> Iterator[Any]:
    """The text's tokens, a piece at a time, the same as those of the whole text."""
    from data_pipeline import UserError

    opened: Any = gzip.open if path.suffix == ".gz" else open
    text = ""
    try:
        with opened(path, "rt", encoding="utf-8", newline="") as file:
            while part := file.read(CHARACTERS):
                text += part
                cut = tokenizer.safe_cut(text)
                if cut:
                    yield tokenizer.encode(text[:cut])
                text = text[cut:]
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"--text-file {path}: cannot be read as UTF-8 text ({error}): give it as UTF-8") from None
    if text:
        yield tokenizer.encode(text)


def summary(report: dict[str, Any]) -> dict[str, Any]:
    """The figures of the report without its series."""
    if "recall" in report:
        return {name: report[name] for name in ("document", "figures", "recall")}
    moved = report["perturbation"] or {}
    return {
        "document": report["document"],
        "shares": report["shares"],
        "bias_norm_by_kind": report["bias_norm_by_kind"],
        "bias_norm_correlation": report["bias_norm_correlation"],
        "mean_slot_cosine": report["similarity"]["mean"],
        "half_life_all_slots": moved.get("half_life_all_slots"),
        "half_life_expected": moved.get("half_life_expected"),
    }


def show(report: dict[str, Any]) -> None:
    """The summary for people."""
    from memformer.inference.pictures import excerpt

    document = report["document"]
    if "recall" in report:
        return show_recall(report)
    print(f"{document['tokens']:,} tokens, {document['writes']} writes of {report['model']['num_memory_slots']} slots")
    print(
        f"{'slots':>10}  {'kept':>6}  {'mixed':>6}  {'overwritten':>11}  {'left a segment':>14}  "
        f"{'weight on itself':>16}  by head"
    )
    for phase, row in report["shares"].items():
        cells = (
            f"{row['kept']:>6.1%}  {row['mixed']:>6.1%}  {row['overwritten']:>11.1%}  {row['retention']:>14.3f}  "
            f"{row['self_weight']:>16.3f}"
        )
        heads = f"{row['kept_by_head']:.1%} kept, {row['overwritten_by_head']:.1%} overwritten"
        print(f"{phase:>10}  {cells}  {heads}")
    norms = report["bias_norm_by_kind"] or {}
    means = (f"{kind} {row['mean']:.3f} ({row['slots']})" for kind, row in norms.items() if row["slots"])
    print(f"mean norm of the bias by kind (slots): {', '.join(means)}")
    print(f"mean cosine of two slots at the end: {report['similarity']['mean']:.3f}")
    if moved := report["perturbation"]:
        life, expected = (
            moved[name] or f"more than {moved['horizon']}" for name in ("half_life_all_slots", "half_life_expected")
        )
        print(f"moved memory: half of it is gone after {life} segments; by what is left a segment, after {expected}")
    for slot in report["slots"][:8]:
        left = f"{slot['retention']:.3f} left a segment"
        print(f"slot {slot['slot']:>3} {slot['kind']:>11}, {left}  took {excerpt(slot['took'][0])}")


SHOWN = (0, 1, 2, 4, 8, 16, 32)
"""Distances in writes of which it is shown what is recalled."""


def show_recall(report: dict[str, Any]) -> None:
    """The summary of a memory without slots that attend: a row a layer that has a memory, or one of all."""
    document, figures, recall = report["document"], report["figures"], report["recall"]
    print(f"{document['tokens']:,} tokens, {document['writes']} writes; {report['model']['summary']}")
    names = [name for name in figures if name != "read"]
    distances = [each for each in SHOWN if recall and each < len(recall["distance"])]
    heads = [*(f"{name:>9}" for name in names), *(["recall 0", "before"] if recall else [])]
    heads += [*(f"distinct {each}" for each in distances), *(["half-life"] if recall else [])]
    print("  ".join(["layer", *heads]))
    for layer in range(len(recall["half_life"]) if recall else 1):
        cells = [figures[name][layer] if recall else figures[name] for name in names]
        if recall:
            cells += [recall["recall"][0][layer], recall["distinct_before"][layer]]
        cells += [recall["distinct"][each][layer] for each in distances]
        if recall:
            cells.append(recall["half_life"][layer] or "beyond")
        row = [
            f"{cell:>{len(head)}.3f}" if isinstance(cell, float) else f"{cell:>{len(head)}}"
            for cell, head in zip(cells, heads, strict=True)
        ]
        print("  ".join([f"{layer:>5}", *row]))
    for name, words in report["definitions"].items():
        if name in names or (recall and name in ("recall", "distinct")):
            print(f"{name}: {words}")
