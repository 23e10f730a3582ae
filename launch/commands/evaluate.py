# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What a model is worth, with the memory carried and with it reset at every segment: perplexity on a data set, or the
share of right answers to questions about what a document told once. Or with the memory carried alone: tasks of
EleutherAI's lm-evaluation-harness.

Both figures see the previous segment; the second shows what the memory adds beyond it. By position: targets from the
given token of their document on. Where the data set has loss weights, a target counts by its weight. Memory use does
not depend on the length of the documents.
"""

import argparse
import math
from pathlib import Path
from typing import Any

from launch.answers import answer
from launch.commands import evaluate_lm_eval, evaluate_tasks

Parser = evaluate_tasks.Parser

TOGETHER = 64
"""Segments of a lane that a wavefront reads at once: of 8 layers in 71 steps instead of 512, of 32 in 95, not 2,048."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL, and --data with how much of it, --tasks, or --lm-eval."""
    from launch.addresses import add_far_arguments
    from launch.models import add_model_arguments, add_wavefront_argument

    add_model_arguments(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--data", metavar="DIR", help="data set, or its address; with splits, its validation/ is used")
    what.add_argument(
        "--tasks",
        metavar="NAME,...",
        help="tasks with their settings, such as needle:digits=3:keys=4,passkey; see below",
    )
    what.add_argument(
        "--lm-eval",
        metavar="TASK,...",
        help="tasks of lm-evaluation-harness by name, of --lm-eval-path, or YAML files of them",
    )
    parser.add_argument("--lanes", type=int, default=8, metavar="B", help="documents read side by side")
    parser.add_argument("--max-segments", type=int, metavar="N", help="segments a lane at most (default: all)")
    parser.add_argument(
        "--from-token",
        type=int,
        default=0,
        metavar="N",
        help="score targets from this token of their document on; what comes before is read for the memory alone",
    )
    add_wavefront_argument(parser, "read a data set")
    parser.add_argument(
        "--segments-per-decoder-batch",
        type=int,
        default=1,
        metavar="G",
        help="segments of a data set that the decoder takes at once, equal to rounding: faster for one or a few "
        "documents or short segments (Memformers alone)",
    )
    add_far_arguments(parser)
    parser.add_argument("--json", action="store_true", help="JSON alone on stdout, the rest on stderr")
    evaluate_tasks.add_arguments(parser)
    evaluate_lm_eval.add_arguments(parser)


def refuse_others(arguments: argparse.Namespace) -> None:
    """Refuses options of what is not asked for.

    Raises:
        UserError: One is given.
    """
    from data_pipeline import UserError

    own = (
        (evaluate_tasks.OWN, arguments.tasks, "tasks", "--tasks"),
        (evaluate_lm_eval.OWN, arguments.lm_eval, "tasks of lm-evaluation-harness", "--lm-eval"),
    )
    meant = {name for names, asked, _, _ in own if asked is not None for name in names}
    for names, _, what, option in own:
        for name in names:
            if name in arguments and name not in meant:
                raise UserError(f"--{name.replace('_', '-')} is for {what}: give {option}, or leave it out")
    if arguments.data is None:
        instead = "--lengths" if arguments.lm_eval is None else "--limit"
        if arguments.max_segments is not None:
            raise UserError(f"--max-segments is for a data set: give {instead}, or leave it out")
        if arguments.wavefront:
            raise UserError("--wavefront is for a data set: tasks read many documents side by side, leave it out")
        if arguments.segments_per_decoder_batch > 1:
            raise UserError(
                "--segments-per-decoder-batch is for a data set: tasks decode the segments of their answers alone, "
                "leave it out"
            )
        if arguments.from_token:
            raise UserError("--from-token is for a data set: tasks score their answers alone, leave it out")


def run(arguments: argparse.Namespace) -> None:
    """Scores the data set or asks the tasks, and prints a table."""
    from data_pipeline import DocumentIndex, SegmentStream, UserError, open_data
    from data_pipeline.addresses import beneath
    from data_pipeline.opening import holds_data
    from launch.addresses import far_settings
    from launch.models import check_decoder_batch, check_wavefront, model_here, open_model, open_wavefront

    group = arguments.segments_per_decoder_batch
    for name in ("lanes", "max_segments", "segments_per_decoder_batch"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(arguments, name)}: give 1 or more")
    if arguments.from_token < 0:
        raise UserError(f"--from-token is {arguments.from_token}: give 0 or more")
    refuse_others(arguments)
    if arguments.tasks is not None:
        return evaluate_tasks.run(arguments)
    if arguments.lm_eval is not None:
        return evaluate_lm_eval.run(arguments)
    if arguments.wavefront and group > 1:
        raise UserError(
            f"--segments-per-decoder-batch is {group}, but --wavefront reads all layers along diagonals: leave one out"
        )
    path = model_here(arguments)
    if arguments.wavefront:
        check_wavefront(path)
    if group > 1:
        check_decoder_batch(path, group)
    far, data = far_settings(arguments), arguments.data
    if not holds_data(data, far) and holds_data(beneath(data, "validation"), far):
        data = beneath(data, "validation")
    index = open_data(data, far)
    assert isinstance(index, DocumentIndex)
    if arguments.from_token and arguments.from_token >= int(index.lengths.max()):
        raise UserError(
            f"--from-token is {arguments.from_token}, and the longest document of {index.location} has "
            f"{int(index.lengths.max()):,} tokens: give less"
        )
    model, tokenizer = open_model(arguments)
    from memformer.inference import evaluate

    if index.manifest.tokenizer_sha256 != tokenizer.sha256:
        raise UserError(
            f"--data {index.location}: was built with another tokenizer than the model's: build it with "
            f"--tokenizer bpe:{Path(arguments.model) / 'tokenizer.json'} (bytes for a byte model)"
        )
    length = model.config.segment_length
    if length is None:
        raise UserError(f"{arguments.model}: config.json names no segment_length: export the model again")
    lanes, wavefront, together = min(arguments.lanes, len(index)), None, 1
    if arguments.wavefront:
        wavefront = open_wavefront(model)
    if wavefront or group > 1:
        segments = int((-(-index.lengths // length)).sum()) // lanes
        together = max(1, min(group if group > 1 else TOGETHER, segments, arguments.max_segments or segments))
    with SegmentStream(
        index,
        num_lanes=lanes,
        segment_length=length,
        num_segments=together,
        epochs=1,
        order="longest_first",
    ) as stream:
        scores = evaluate(
            model,
            stream,
            model.device,
            max_segments=arguments.max_segments,
            from_token=arguments.from_token,
            wavefront=wavefront,
            group=group,
        )
    result: dict[str, Any] = {mode: score.report() for mode, score in scores.items()}
    if result["with_memory"]["loss"] is None:
        raise UserError(
            f"--data {index.location}: of the {result['with_memory']['tokens']:,} tokens that were read none counts by "
            "its loss weight: raise --max-segments, or name other data"
        )
    # None where the text is not known: adopted tokens whose tokenizer was not at hand, and what loss weights pick out.
    bytes_per_token = 0 if index.has_loss_weights else int(index.byte_lengths.sum()) / max(1, index.num_tokens)
    for report in result.values():
        report["bits_per_byte"] = report["loss"] / math.log(2) / bytes_per_token if bytes_per_token else None
    show(result)
    if arguments.json:
        answer(result)


def show(result: dict[str, Any]) -> None:
    """The table for people."""
    with_memory, reset = result["with_memory"], result["memory_reset"]
    weighted = "counted_tokens" in with_memory
    count, form = ("counted_tokens", ",.1f") if weighted else ("tokens", ",")
    print(
        f"{'position':>22}  {'counted' if weighted else 'tokens':>10}  {'with memory':>11}  {'memory reset':>12}   "
        "(perplexity)"
    )
    for ours, theirs in zip(with_memory["by_position"], reset["by_position"], strict=True):
        place = f"{ours['from']:,}..{ours['to'] - 1:,}"
        print(f"{place:>22}  {ours[count]:>10{form}}  {ours['perplexity']:>11.4f}  {theirs['perplexity']:>12.4f}")
    print(
        f"{'all':>22}  {with_memory[count]:>10{form}}  {with_memory['perplexity']:>11.4f}  {reset['perplexity']:>12.4f}"
    )
    if weighted:
        print(f"{'':>22}  by the data's loss weights, of {with_memory['tokens']:,} tokens that were read")
    if with_memory["bits_per_byte"] is not None:
        print(
            f"{'bits per byte':>22}  {'':>10}  {with_memory['bits_per_byte']:>11.4f}  {reset['bits_per_byte']:>12.4f}"
        )
