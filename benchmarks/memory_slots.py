# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What the slots of a trained memory do: the paper's analysis of the writer's attention, on a held-out book.

    python benchmarks/memory_slots.py [--steps N]              trains the quick start's model, then inspects it
    python benchmarks/memory_slots.py --model DIR --text FILE  an exported model on a text of yours
    python benchmarks/memory_slots.py --quick --json           under 1 minute; the last line is one JSON object

The definitions (kinds of slots, their shares, phases of the document, half-life) are those of `memformer
inspect-memory`, which computes them; the result file holds its whole report. A slot's kind goes by what a write leaves
of it, forgetting included; the paper's kinds go by the writer's attention alone, and stand beside the same of ours. The
paper's figures, for a larger model and text, are read off its section on attention patterns: a weight on itself of
about 0.92 (kept) for 60 to 80 % of the slots in mid-document, 0.34 (mixed), 0.07 (overwritten) for nearly all slots in
the first segments and 5 to 10 % later; ||bias|| 3.2 for slots that are overwritten, 1.15 for others.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import ROOT, markdown_table, page_head, provenance, write_results

PAPER = {"kept": "60 to 80 %", "mixed": "", "overwritten": "5 to 10 %"}
BY_HEAD = {"kept_by_head": "kept, by head", "overwritten_by_head": "overwritten, by head"}
TEXT = ROOT / "corpora" / "books" / "shakespeare_antony_and_cleopatra.txt.gz"


def trained(directory: Path, steps: int | None) -> Path:
    """The quick start's model."""
    command = [
        sys.executable,
        "-m",
        "launch.quickstart",
        "--data",
        f"{directory}/books",
        "--run-dir",
        f"{directory}/run",
        "--no-passkeys",
    ]
    subprocess.run([*command, *(["--steps", str(steps)] if steps else [])], cwd=ROOT, check=True)
    return directory / "run" / "model"


def inspected(model: Path, text: Path, out: Path) -> dict[str, Any]:
    """The report of `memformer inspect-memory`."""
    words = [str(model), "--text-file", str(text), "--out", str(out), "--no-pictures", "--device", "cpu"]
    subprocess.run([sys.executable, "-m", "launch.cli", "inspect-memory", *words], cwd=ROOT, check=True)
    report: dict[str, Any] = json.loads((out / "memory.json").read_text())
    return report


def page(values: dict[str, Any]) -> str:
    """The result page in Markdown."""
    report = values["inspection"]
    document, norms, moved = report["document"], report["bias_norm_by_writer_kind"], report["perturbation"]
    named = {
        **{kind: (kind, "") for kind in PAPER},
        **{key: (name, "") for key, name in BY_HEAD.items()},
        **{f"writer_{kind}": (f"{kind} by the writer", paper) for kind, paper in PAPER.items()},
    }
    shares = [
        [name, *(f"{report['shares'][phase][key]:.1%}" for phase in ("early", "middle", "all")), paper]
        for key, (name, paper) in named.items()
    ]
    of_kinds = [
        [kind, norms[kind]["slots"], "" if norms[kind]["mean"] is None else norms[kind]["mean"]] for kind in PAPER
    ]
    followed = [distances is not None for distances in moved["each_slot"]]
    lives = [each for each in moved["half_life_each_slot"] if each is not None]
    longest = f"{max(lives)}" if len(lives) == sum(followed) else "more than the horizon"
    correlation, defined = report["bias_norm_correlation"], report["definitions"]
    taken = [
        [
            slot["slot"],
            slot["kind"],
            f"{slot['retention']:.3f}",
            f"{slot['self_weight']:.3f}",
            *(excerpt(slot[name]) for name in ("took", "holds")),
        ]
        for slot in report["slots"]
    ]
    return "\n".join(
        [
            *page_head("What the slots keep", values),
            f"{values['about']}; {document['tokens']:,} tokens, {document['writes']:,} writes of "
            f"{report['model']['num_memory_slots']} slots. *Kept*: {defined['kept']}; *overwritten*: "
            f"{defined['overwritten']}. *Retention*: {defined['retention']}. *By the writer*: the same bounds for "
            f"self_weight, {defined['self_weight']}. *Early*: {defined['early']}; *middle*: {defined['middle']}; "
            f"*by head*: {defined['kept_by_head']}.",
            "",
            markdown_table(["share of slots", "early", "middle", "all", "paper, mid-document"], shares),
            "",
            "Norm of the slots' bias, by what the writer does to a slot in the middle of the document (paper: 3.2 "
            "where overwritten, 1.15 elsewhere); correlation of norm and weight on itself "
            f"{'none to be had' if correlation is None else f'{correlation:.2f}'}:",
            "",
            markdown_table(["kind", "slots", "mean norm"], of_kinds),
            "",
            f"A memory moved by {moved['size']} at write {moved['at_write']} is half as far off after "
            f"{moved['half_life_all_slots']} writes (by retention {moved['half_life_expected']}); of single slots the "
            f"longest took {longest}. Mean cosine of two "
            f"slots at the end: {report['similarity']['mean']:.3f}.",
            *(line for note in values["notes"] for line in ("", note)),
            "",
            "What each slot took with most weight, and what it holds most of at the end:",
            "",
            markdown_table(["slot", "kind", "left a write", "weight on itself", "took", "holds"], taken),
        ]
    )


def excerpt(tokens: list[dict[str, Any]]) -> str:
    """The first of some tokens in its text, fit for a table of Markdown."""
    first = tokens[0]
    text = "".join(
        character if character.isprintable() and character not in "`|" else "·"
        for character in f"{first['before'][-16:]}[{first['text']}]{first['after'][:16]}"
    )
    return f"{first['weight']:.2g} `{text}`"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", type=Path, metavar="DIR", help="an exported model (default: train the quick start's)"
    )
    parser.add_argument("--about", help="what the model is, for the page")
    parser.add_argument("--text", type=Path, default=TEXT, metavar="FILE", help="UTF-8 text, .gz too")
    parser.add_argument("--steps", type=int, help="optimizer steps (default: the configuration's)")
    parser.add_argument("--quick", action="store_true", help="20 steps")
    parser.add_argument("--out", type=Path, metavar="STEM", help="write STEM.json and STEM.md")
    parser.add_argument("--json", action="store_true", help="last line of stdout: one JSON object")
    parser.add_argument("--notes", nargs="*", default=[], help="remarks for the result files")
    options = parser.parse_args()
    values: dict[str, Any] = provenance(torch.device("cpu"))
    with tempfile.TemporaryDirectory() as directory:
        steps = 20 if options.quick else options.steps
        model = options.model or trained(Path(directory), steps)
        values["about"] = options.about or (
            "The model of the quick start on a held-out play" if not options.model else "An exported model"
        )
        values["text"], values["notes"] = options.text.name, options.notes
        values["inspection"] = inspected(model, options.text.resolve(), Path(directory) / "out")
    del values["inspection"]["model_path"], values["inspection"]["text_file"]
    print(page(values))
    if options.out:
        write_results(options.out, values, page(values))
    if options.json:
        print(json.dumps({key: values["inspection"][key] for key in ("document", "shares", "bias_norm_by_kind")}))


if __name__ == "__main__":
    main()
