# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Continuing a text with a backbone and its memory: time a token, and what is kept from token to token.

    python benchmarks/backbone_generation.py                    about 3 minutes on one CPU core
    python benchmarks/backbone_generation.py --quick --json     some seconds; the last line is one JSON object

Three ways of reading the same text token by token, with the logits of each next token:

* this segment's keys and values: `BackboneReader`, whatever the length. Timed over whole segments, so that each token
  has its share of what is done at a segment's end.
* the segment anew: the segment is computed again for each token, as this project did before. Timed at evenly spread
  places of a segment.
* all keys and values: the same language model without a memory, by transformers, whose cache grows with the text.

Times are processor time of one thread on a CPU, medians of interleaved repetitions. *Kept* are the bytes of all tensors
held from token to token, after so many segments.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import interleaved_seconds, markdown_table, page_head, provenance, tell
from benchmarks.inference import storage_bytes
from memformer.models.backbone import Backbone, BackboneConfig, MemoryConfig
from memformer.models.backbone.parts import language_model
from memformer.models.backbone.reader import BackboneReader
from memformer.replay import Segment

SIZES = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 8192,
}
IDS = 4096
MEMORIES = {
    "associative": MemoryConfig(layers=(2, 4, 6), d_key=16, num_write_tokens=8),
    "slots": MemoryConfig(kind="slots", num_slots=16, write_layer=4),
    "tokens": MemoryConfig(kind="tokens", num_slots=16),
}


class Anew:
    """Computes the segment again for each token, after `count` of its tokens."""

    def __init__(self, model: Backbone, length: int, count: int) -> None:
        self._model, self._memory = model, model.initial_memory(1).clone()
        tokens = torch.randint(IDS - 1, (1, length))
        full, never = torch.tensor([length]), torch.zeros(1, dtype=torch.bool)
        self._segment = Segment(tokens, full, tokens[:, : count + 1], torch.tensor([count + 1]), never, True, False)

    def __call__(self) -> torch.Tensor:
        """The logits of the next token."""
        return self._model.logits(self._segment, self._memory)[0][:, -1]


@torch.no_grad()
def measure(memory: str, length: int, segments: list[int], repetitions: int) -> list[dict[str, Any]]:
    """Rows of one kind of memory."""
    torch.manual_seed(0)
    config = BackboneConfig(
        backbone=SIZES, memory=MEMORIES[memory], vocab_size=IDS, start_token_id=IDS - 1, segment_length=length
    )
    model = Backbone(config).eval()
    reader = BackboneReader(model)
    source = torch.Generator().manual_seed(1)

    def one_segment() -> None:
        for token in torch.randint(IDS - 1, (length, 1, 1), generator=source):
            assert reader.logits is not None
            reader.read(token)

    places = [round((number + 0.5) * length / 8) for number in range(8)]
    again = [Anew(model, length, place) for place in places]
    variants: dict[str, Callable[[], object]] = {
        "this segment's keys and values": one_segment,
        "the segment anew": lambda: [each() for each in again],
    }
    times = interleaved_seconds(variants, repetitions, torch.device("cpu"), time.process_time)
    ours = statistics.median(times["this segment's keys and values"]) / length
    anew = statistics.median(times["the segment anew"]) / len(again)
    rows: list[dict[str, Any]] = []
    for count in segments:
        reader = BackboneReader(model)
        reader.read(torch.randint(IDS - 1, (1, count * length - 1)))  # the last token of the last segment is missing
        assert reader.logits is not None
        rows.append({"memory": memory, "way": "this segment's keys and values", "segments": count})
        rows[-1] |= {"milliseconds": 1e3 * ours, "kept_bytes": storage_bytes(reader.tensors())}
    rows.append({"memory": memory, "way": "the segment anew", "segments": None})
    rows[-1] |= {"milliseconds": 1e3 * anew, "kept_bytes": None, "times_ours": anew / ours}
    return rows


@torch.no_grad()
def plain(length: int, segments: list[int], repetitions: int) -> list[dict[str, Any]]:
    """Rows of the language model alone, with all keys and values."""
    from transformers import DynamicCache

    config = BackboneConfig(backbone=SIZES, vocab_size=IDS, start_token_id=IDS - 1, segment_length=length)
    model, rows = language_model(config).eval(), []
    for count in segments:
        cache = DynamicCache(config=model.config)
        model(torch.randint(IDS - 1, (1, count * length)), cache=cache, use_cache=True, logits_to_keep=1)
        taken = []
        for _ in range(8 * repetitions):
            started = time.process_time()
            model(torch.randint(IDS - 1, (1, 1)), cache=cache, use_cache=True)
            taken.append(time.process_time() - started)
        size = sum(each.keys.nbytes + each.values.nbytes for each in cache.layers)
        rows.append({"memory": "none", "way": "all keys and values", "segments": count})
        rows[-1] |= {"milliseconds": 1e3 * statistics.median(taken), "kept_bytes": size}
    return rows


def page(values: dict[str, Any]) -> str:
    """The result page in Markdown."""
    rows = values["rows"]
    table = [
        [
            row["memory"],
            row["way"],
            "any" if row["segments"] is None else row["segments"] * values["segment_length"],
            f"{row['milliseconds']:.2f}",
            "" if row["kept_bytes"] is None else f"{row['kept_bytes'] / 2**20:.2f}",
        ]
        for row in rows
    ]
    faster = ", ".join(f"{row['times_ours']:.1f} ({row['memory']})" for row in rows if "times_ours" in row)
    return "\n".join(
        [
            *page_head("A backbone continues a text on one segment's keys and values", values),
            f"A Llama of 8 layers and width 256, segments of {values['segment_length']} tokens, overlap of a quarter; "
            f"one text, fp32. Computing the segment anew for each token, as before, takes so many times as long: "
            f"{faster}. What is kept does not grow with the text.",
            "",
            markdown_table(["memory", "way", "tokens read", "ms a token", "kept (MiB)"], table),
        ]
    )


def main() -> None:
    """Measures, prints, and writes the results where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--segment-length", type=int, default=256, metavar="S", help="tokens (default 256)")
    parser.add_argument("--segments", type=int, nargs="+", default=[2, 20], help="texts of so many (default 2, 20)")
    parser.add_argument("--repetitions", type=int, default=5, help="of each timing (default 5)")
    parser.add_argument("--out", type=Path, metavar="STEM", help="write STEM.json and STEM.md")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--quick", action="store_true", help="segments of 16 tokens, one repetition")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.segment_length, arguments.repetitions = 16, 1
    torch.set_num_threads(1)
    length, segments, repetitions = arguments.segment_length, arguments.segments, arguments.repetitions
    rows = [row for memory in MEMORIES for row in measure(memory, length, segments, repetitions)]
    rows += plain(length, segments, repetitions)
    values = {**provenance(torch.device("cpu")), "segment_length": length, "rows": rows}
    tell(values, page(values), arguments)


if __name__ == "__main__":
    sys.exit(main())
