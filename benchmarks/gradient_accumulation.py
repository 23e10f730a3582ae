# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What sums of gradients in bfloat16 cost: their error by the number of segments, and the loss of small runs on books.

    python benchmarks/gradient_accumulation.py                       about six minutes on one CPU core
    python benchmarks/gradient_accumulation.py --quick --json        half a minute: few steps
    python benchmarks/gradient_accumulation.py --seeds 0 1 2 --out benchmarks/results/DATE-cpu-gradient-accumulation

Rows of a seed read the same bytes in the same order and start from the same weights; all compute in precision bf16. The
errors are those of the gradient of one rollout of the trained model, over the weights whose gradients are summed
(`memformer.engine.weight_copies`).
"""

import argparse
import contextlib
import functools
import json
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.cases import Case, Row, run_cases, seeds_of
from benchmarks.common import markdown_table, page_head
from benchmarks.peers.reader import MemformerReader, State
from benchmarks.tasks.text import START
from benchmarks.text_runs import add_sizes, parsed, sizes_of, trained, variants_tables
from benchmarks.texts import losses_by_segment, texts
from benchmarks.training import Recipe
from memformer import MemformerConfig
from memformer.engine.weight_copies import WeightCopies, copied_weights

NAMES = {"float32": "sums in float32", "bfloat16": "sums in bfloat16"}
"""Rows of the table by `training.gradient_accumulation_dtype`."""
ROLLOUTS = (1, 4, 16, 64)
"""Segments of the rollouts whose gradients are compared."""


class SummingReader(MemformerReader):
    """A Memformer in bf16 whose gradients are summed as a run sums them.

    Args:
        config: The model.
        sums: "float32" or "bfloat16"; None: the model computes in float32.
    """

    def __init__(self, config: MemformerConfig, sums: str | None) -> None:
        super().__init__(config, NAMES[sums] if sums else "fp32")
        self.sum_in(sums)

    def sum_in(self, sums: str | None) -> None:
        """From now on."""
        self._copies = WeightCopies(self.module, torch.bfloat16, getattr(torch, sums)) if sums else None
        self.precision = functools.partial(torch.autocast, "cpu", torch.bfloat16, enabled=bool(sums))

    def backward(self, tokens_BTS: torch.Tensor, state: State, weights_BTS: torch.Tensor) -> tuple[torch.Tensor, State]:
        """As in `Reader`; the optimizer here steps by float32 gradients."""
        with (
            torch.autocast("cpu", enabled=False),
            self._copies.in_place() if self._copies else contextlib.nullcontext(),
        ):
            result = super().backward(tokens_BTS, state, weights_BTS)
        for parameter in self.module.parameters():
            if parameter.grad is not None:
                parameter.grad = parameter.grad.float()
        return result


def gradient(reader: SummingReader, tokens_BTS: torch.Tensor, sums: str | None) -> torch.Tensor:
    """Of one rollout, over the weights that runs in 16 bits have copies of."""
    reader.sum_in(sums)
    reader.module.zero_grad()
    reader.backward(tokens_BTS, None, torch.full(tokens_BTS.shape, 1 / tokens_BTS.numel()))
    return torch.cat(
        [each.weight.grad.flatten() for each in copied_weights(reader.module) if each.weight.grad is not None]
    )


def errors(reader: SummingReader, tokens_BL: torch.Tensor, length: int) -> list[dict[str, float]]:
    """Relative errors of the gradient, by the segments of a rollout.

    Args:
        reader: The model.
        tokens_BL: Documents.
        length: S.
    """
    reader.module.train()
    found = []
    for segments in (count for count in ROLLOUTS if count * length <= tokens_BL.shape[1]):
        tokens = tokens_BL[:, : segments * length].unflatten(1, (segments, length))
        exact, usual, narrow = (gradient(reader, tokens, sums) for sums in (None, "float32", "bfloat16"))
        found.append(
            {
                "segments": segments,
                "of_sums": float((narrow - usual).norm() / usual.norm()),
                "along": float(narrow @ usual / usual.square().sum()) - 1,
                "of_bf16": float((usual - exact).norm() / exact.norm()),
                "of_both": float((narrow - exact).norm() / exact.norm()),
            }
        )
    return found


def measure(options: argparse.Namespace, case: Case) -> list[Row]:
    """Trains and scores one model."""
    torch.manual_seed(case["seed"])
    sums: Any = case["sums"]
    config = MemformerConfig(
        options.layers[0],
        options.layers[1],
        d_model=options.width,
        num_heads=4,
        d_ff=4 * options.width,
        num_memory_slots=16,
        vocab_size=START + 1,
        start_token_id=START,
        segment_length=options.segment_length,
    )
    reader = SummingReader(config, sums)
    recipe = Recipe(options.steps, options.learning_rate, "wsd", weight_decay=0.1)
    figures, test = trained(reader, texts("books"), options, recipe, case["seed"])
    losses, _ = losses_by_segment(reader, test, options.segment_length)
    loss = float(losses.mean())
    row = {**case, **figures, "test_loss": loss, "perplexity": math.exp(loss)}
    if sums == "float32":
        row["errors"] = errors(reader, test[: options.lanes], options.segment_length)
    print(f"{NAMES[sums]}, seed {row['seed']}: {row['perplexity']:.4f}", flush=True)
    return [row]


def page(values: dict[str, Any]) -> str:
    """The result page in Markdown."""
    sizes, rows = values["sizes"], values["rows"]
    by_length: dict[int, list[dict[str, float]]] = {}
    for each in (each for row in rows for each in row.get("errors", [])):
        by_length.setdefault(int(each["segments"]), []).append(each)
    table = [
        [
            count,
            *(
                f"{statistics.fmean(each[name] for each in found):.1e}"
                for name in ("of_sums", "of_bf16", "of_both", "along")
            ),
        ]
        for count, found in sorted(by_length.items())
    ]
    return "\n".join(
        [
            *page_head("Sums of gradients in bfloat16", values),
            f"Bytes of books; a Memformer of {rows[0]['parameters']:,} parameters ({sizes['layers'][0]}+"
            f"{sizes['layers'][1]} layers, width {sizes['width']}, 16 slots), precision bf16; {sizes['steps']} steps "
            f"of {sizes['lanes']} lanes, {sizes['step_segments']} segments of {sizes['segment_length']} bytes, peak "
            f"rate {sizes['learning_rate']:g}; seeds {seeds_of(rows)}.",
            "",
            f"**The gradient of one rollout** of the trained model, {sizes['lanes']} lanes in one group, means over "
            "seeds. *Of the sums*: distance of the gradient with sums in bfloat16 from that with sums in float32, in "
            "parts of its norm. *Of bf16*: distance of that with sums in float32 from one that is computed in float32 "
            "throughout. *Of both* from the same. *Along*: by how much the part along the gradient is too long; sums "
            "that stood still would make it negative.",
            "",
            markdown_table(["segments", "of the sums", "of bf16", "of both", "along"], table),
            "",
            f"**Trained with either**, tested on {rows[0]['test_bytes']:,} bytes of other books. *Difference*: of the "
            "test loss in nats a byte, mean over seeds and seed by seed.",
            "",
            *variants_tables(rows, "sums", NAMES, plain="float32"),
            *(["", values["notes"]] if values["notes"] else []),
        ]
    )


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sums", nargs="+", choices=NAMES, default=list(NAMES), help="rows; default all")
    parser.add_argument("--layers", nargs=2, type=int, default=[1, 4], help="encoder's and decoder's; default 1 4")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="peak; default 3e-3")
    sizes = {"steps": 60, "lanes": 8, "step_segments": 16, "segment_length": 32, "excerpts": 32, "test_length": 2048}
    add_sizes(parser, "15 steps, short test excerpts", **sizes)
    return parsed(parser, words)


def main(words: Sequence[str] | None = None) -> None:
    options = parse(words)
    cases = [{"sums": sums, "seed": seed} for seed in options.seeds for sums in options.sums]
    sizes = sizes_of(options, "layers", "learning_rate")
    values = run_cases(options, sizes, cases, functools.partial(measure, options), page)
    if options.json:
        print(json.dumps(values))


if __name__ == "__main__":
    main()
