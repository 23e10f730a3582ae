# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Builds, synthesises, adopts, inspects and traces data sets of long documents."""

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import numpy as np

from data_pipeline import (
    Blend,
    BuildReport,
    DocumentIndex,
    StreamSettings,
    UserError,
    build_dataset,
    lanes_of,
    open_data,
    trace_rows,
)
from data_pipeline.addresses import beneath, location
from data_pipeline.build import ON_BAD_RECORD
from data_pipeline.document_order import Order
from data_pipeline.far import is_address
from data_pipeline.loss_weights import USUAL_KEY
from data_pipeline.manifest import SPLITS, Manifest
from data_pipeline.opening import holds_data
from data_pipeline.segment_schedule import SegmentSchedule
from data_pipeline.shards import WRITERS
from data_pipeline.sources import Survey
from data_pipeline.stream_settings import LONGEST_SEGMENT
from data_pipeline.verify import Fault, check_sizes, verify_dataset
from launch.addresses import add_far_arguments, far_settings
from launch.answers import answer
from launch.commands import data_adopt, data_synthesise
from launch.outputs import make_outputs_patient
from launch.progress import Progress

_MOST_DEFAULT_WORKERS = 8
_FAULTS_SHOWN = 20
_BAR_WIDTH = 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the subcommands build, synthesise, adopt, inspect and trace."""
    commands = parser.add_subparsers(dest="data_command", required=True, metavar="build|synthesise|adopt|inspect|trace")

    def command(name: str, summary: str, run_command: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name, help=summary, description=summary, formatter_class=parser.formatter_class, allow_abbrev=False
        )
        added.set_defaults(run_command=run_command)
        return added

    _add_build_arguments(command("build", "Turns text into token shards, complete or not at all.", _build))
    synthesising = command("synthesise", data_synthesise.SUMMARY, _synthesise)
    data_synthesise.add_arguments(synthesising)
    _add_json(synthesising)
    adopting = command("adopt", data_adopt.SUMMARY, _adopt)
    data_adopt.add_arguments(adopting)
    _add_json(adopting)
    _add_inspect_arguments(command("inspect", "Shows what a data set holds, and whether it is whole.", _inspect))
    _add_trace_arguments(command("trace", "Shows what every rank would read: one JSON line a segment.", _trace))


def run(arguments: argparse.Namespace) -> int:
    """Runs the chosen subcommand; returns the exit code."""
    return int(arguments.run_command(arguments))


def _add_build_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help=".txt or .md (one document), .jsonl, .ndjson or .json (a document a record: text, and id if you like), "
        ".parquet (columns text, id), idx images (a document an image, a token a pixel), all but Parquet also packed "
        "(.gz, .bz2, .xz, .zst); a file of another name or a pipe (- is standard input), told by its content; or a "
        "directory, searched for files of these names, through links too",
    )
    _add_required(parser, "--out", metavar="DIR", help="directory to make")
    add("--format", choices=list(WRITERS), default="webdataset", help="storage format of the shards")
    add(
        "--tokenizer",
        metavar="bytes|bpe:FILE|hf:FILE|train-bpe:VOCAB",
        default="bytes",
        help="bytes (257 ids), byte-level BPE from a tokenizer.json or a data set of this project, a "
        "tokenizer.json of Hugging Face's library, or a pretrained model's directory with one, that gives back every "
        "text (images need bytes), or BPE trained on the sources (VOCAB counts all ids, the start token included)",
    )
    workers = min(_MOST_DEFAULT_WORKERS, len(os.sched_getaffinity(0)))
    add("--workers", metavar="N", type=int, default=workers, help="tokenizing threads; they do not change the result")
    add("--shard-megabytes", metavar="MB", type=float, default=128.0, help="largest size of a shard, in 10^6 bytes")
    add(
        "--validation-fraction",
        metavar="SHARE",
        type=float,
        default=0.0,
        help="share of the text held out, in whole documents, from 0 to below 1; above 0, DIR/train and DIR/validation "
        "are the data sets, otherwise DIR is",
    )
    add(
        "--bpe-training-megabytes",
        metavar="MB",
        type=float,
        default=256.0,
        help="text that a BPE is trained on at most, in 10^6 bytes; of more text a sample is taken",
    )
    add("--text-key", metavar="KEY", default="text", help="key (JSON) or column (Parquet) of the text")
    add(
        "--id-key",
        metavar="KEY",
        default=argparse.SUPPRESS,
        help="key or column of the documents' names (default: id, in records that have one)",
    )
    add(
        "--loss-weights-key",
        metavar="KEY",
        default=argparse.SUPPRESS,
        help="key of JSON records that tells what of their text counts in the loss: [[start, end, weight], ...], "
        "ranges of characters and weights from 0 to 1, 0 outside of them; all of a document without it counts "
        "(default: no weights are read, whatever records have)",
    )
    add(
        "--on-bad-record",
        choices=ON_BAD_RECORD,
        default="stop",
        help="at a record that cannot be read: stop, keeping finished shards for the next try, or skip it and count it",
    )
    add("--overwrite", action="store_true", help="replace a data set in DIR when the new one is complete")
    _add_json(parser)


def _add_inspect_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="DIR", help="a data set, the directory of its splits, or an address")
    parser.add_argument(
        "--segment-length", metavar="S", type=int, default=512, help="tokens a segment, for the share of padding"
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="read every byte and compare the checksums too; sizes are compared always; exit code 1 on damage",
    )
    add_far_arguments(parser)
    _add_json(parser)


def _add_trace_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("data", metavar="DIR", nargs="+", help="a data set (directory or address), or several to blend")
    add(
        "--weights",
        metavar="W",
        nargs="+",
        type=float,
        default=argparse.SUPPRESS,
        help="share of each (default: 1 for each)",
    )
    _add_required(parser, "--lanes", metavar="B", type=int, help="lanes of the global batch")
    _add_required(parser, "--segment-length", metavar="S", type=int, help="tokens a segment")
    _add_required(
        parser,
        "--num-segments",
        metavar="T",
        help="segments a rollout, or as in a run's data.num_segments '{0: 1, 1000: 2}'",
    )
    _add_required(parser, "--steps", metavar="N", type=int, help="optimizer steps (rollouts) to show")
    add("--world-size", metavar="W", type=int, default=1, help="data-parallel ranks")
    add("--seed", metavar="X", type=int, default=0, help="seed of the order of the documents")
    add("--order", choices=get_args(Order), default="shuffled", help="order in which an epoch queues the documents")
    add("--epochs", metavar="E", type=int, default=0, help="end after this many epochs; 0 goes on for ever")
    add("--max-document-tokens", metavar="N", type=int, default=0, help="cut longer documents; 0: never")
    add(
        "--state-in",
        metavar="F",
        default=argparse.SUPPRESS,
        help="go on from this state: a file of --state-out, or a checkpoint (its directory or state.json)",
    )
    add("--state-out", metavar="F", default=argparse.SUPPRESS, help="write the state after the last step (JSON)")
    add_far_arguments(parser)
    parser.epilog = (
        "Each line is {step, rank, lane, segment, epoch, document, start, length, reset}: tokens start .. start+length "
        "of the document are the segment's targets. step is the optimizer step, from 1; lane is global; segment is the "
        "place in the rollout, from 0. An idle lane has no line."
    )


def _add_required(parser: argparse.ArgumentParser, name: str, **settings: Any) -> None:
    parser.add_argument(name, required=True, default=argparse.SUPPRESS, **settings)  # no default to show in --help


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="JSON alone on stdout, the rest on stderr")


def _build(arguments: argparse.Namespace) -> int:
    make_outputs_patient()  # a reader that goes away (`| head`) is no reason to leave a data set unfinished
    began = time.monotonic()
    progress = Progress()

    def count(stage: str, documents: int, text_bytes: int) -> None:
        progress.say(f"{stage}: {documents:,} documents, {text_bytes / 1e6:,.1f} MB")

    def tell(sources: Survey) -> None:
        progress.end()
        print("\n".join(sources.lines()), flush=True)

    with progress:
        report = build_dataset(
            arguments.sources,
            arguments.out,
            format=arguments.format,
            tokenizer=arguments.tokenizer,
            workers=arguments.workers,
            shard_megabytes=arguments.shard_megabytes,
            validation_fraction=arguments.validation_fraction,
            bpe_training_megabytes=arguments.bpe_training_megabytes,
            text_key=arguments.text_key,
            id_key=arguments.id_key if "id_key" in arguments else None,
            loss_weights_key=arguments.loss_weights_key if "loss_weights_key" in arguments else None,
            on_bad_record=arguments.on_bad_record,
            overwrite=arguments.overwrite,
            progress=count,
            told=tell,
        )
    _print_written(report)
    if report.resumed_documents:
        print(f"went on from an unfinished build, which had written {report.resumed_documents:,} documents")
    if report.dropped_documents:
        print(f"{report.dropped_documents:,} documents without text were left out")
    if report.bad_records:
        print(_bad_records(report.bad_records, report.bad_record_places))
    if report.unread_weights:
        print(
            f'{report.unread_weights:,} record(s) have "{USUAL_KEY}", which was not read: all their tokens count '
            f"in the loss (--loss-weights-key {USUAL_KEY} reads it)"
        )
    wanted = arguments.tokenizer.partition("train-bpe:")[2]
    if wanted and int(wanted) != report.vocab_size:
        print(f"the text gave {report.vocab_size:,} ids of the {int(wanted):,} asked for")
    if arguments.json:
        result = _summary(Path(arguments.out), {path: _counts(found) for path, found in report.manifests.items()})
        result |= {"dropped_documents": report.dropped_documents, "vocab_size": report.vocab_size}
        result |= {"sources": report.sources.to_json(), "bad_records": report.bad_records}
        result |= {"bad_record_places": report.bad_record_places}
        answer(result | {"seconds": round(time.monotonic() - began, 3)})
    return 0


def _print_written(report: BuildReport) -> None:
    for path, manifest in report.manifests.items():
        print(
            f"{path}: {manifest.documents:,} documents, {manifest.tokens:,} tokens, {manifest.text_bytes:,} bytes of "
            f"text, {len(manifest.shards)} shards"
        )


def _bad_records(count: int, places: Sequence[str]) -> str:
    more = f"; and {count - len(places):,} more" if count > len(places) else ""
    return f"{count:,} bad record{'s' * (count != 1)} left out: {'; '.join(places)}{more}"


def _synthesise(arguments: argparse.Namespace) -> int:
    began = time.monotonic()
    report = data_synthesise.run(arguments)
    _print_written(report)
    if arguments.json:
        result = _summary(Path(arguments.out), {path: _counts(found) for path, found in report.manifests.items()})
        answer(result | {"vocab_size": report.vocab_size, "seconds": round(time.monotonic() - began, 3)})
    return 0


def _adopt(arguments: argparse.Namespace) -> int:
    root, manifest = data_adopt.run(arguments)
    if arguments.json:
        result = _summary(root, {root: _counts(manifest)})
        answer(result | {"dropped_documents": manifest.dropped_documents, "vocab_size": manifest.vocab_size})
    return 0


def _counts(manifest: Manifest) -> dict[str, Any]:
    return {
        "documents": manifest.documents,
        "tokens": manifest.tokens,
        "text_bytes": manifest.text_bytes,
        "shards": len(manifest.shards),
        "shard_bytes": sum(shard.size_bytes for shard in manifest.shards),
        "fingerprint": manifest.fingerprint,
    }


Place = TypeVar("Place", str, Path)


def _summary(root: Place, parts: dict[Place, dict[str, Any]]) -> dict[str, Any]:
    """One data set's facts as they are; of several, the sums, and each under `splits`."""
    if list(parts) == [root]:
        return {"path": str(root), **parts[root]}
    names = ("documents", "tokens", "text_bytes", "shards", "shard_bytes")
    sums = {name: sum(part[name] for part in parts.values()) for name in names}
    return {"path": str(root), **sums, "splits": {Path(path).name: part for path, part in parts.items()}}


def _inspect(arguments: argparse.Namespace) -> int:
    if not 1 <= arguments.segment_length <= LONGEST_SEGMENT:
        raise UserError(f"--segment-length is {arguments.segment_length}; give 1 to {LONGEST_SEGMENT:,}")
    root, far = arguments.data, far_settings(arguments)
    splits = [] if holds_data(root, far) else [beneath(root, split) for split in SPLITS]
    paths = [path for path in splits if holds_data(path, far)] or [root]
    parts: dict[str, dict[str, Any]] = {}
    for path in paths:
        index = open_data(path, far)
        assert isinstance(index, DocumentIndex)
        part = _facts(index, arguments.segment_length)
        _print_facts(index.location, part)
        faults = verify_dataset(index) if arguments.verify else check_sizes(index)
        if arguments.verify and not faults:
            print("  verified   every size and checksum is as recorded")
        if arguments.verify or faults:
            part["faults"] = _report(index, faults)
        parts[index.location] = part
    damaged = sum(len(part.get("faults", ())) for part in parts.values())
    if arguments.json:
        outcome = {"verified": not damaged} if arguments.verify else {}
        answer(_summary(location(root) if is_address(root) else str(Path(root)), parts) | outcome)
    return 1 if damaged else 0


def _facts(index: DocumentIndex, segment_length: int) -> dict[str, Any]:
    manifest, lengths = index.manifest, index.lengths
    exponents = np.frexp(lengths.astype(np.float64))[1] - 1
    histogram = [
        {"from": 1 << exponent, "to": (2 << exponent) - 1, "documents": int((exponents == exponent).sum())}
        for exponent in range(int(exponents.min()), int(exponents.max()) + 1)
    ]
    return {
        **_counts(manifest),
        **({"counted_tokens": index.counted_tokens} if manifest.loss_weights else {}),
        "format": manifest.storage,
        "tokenizer": str(manifest.settings.get("tokenizer", "unknown")),
        "vocab_size": manifest.vocab_size,
        "token_bits": 8 * index.token_dtype.itemsize,
        "dropped_documents": manifest.dropped_documents,
        "bad_records": manifest.settings.get("bad_records", 0),
        "segment_length": segment_length,
        "padding_share": round(index.padding_share(segment_length), 6),
        "shortest": int(lengths.min()),
        "median": float(np.median(lengths)),
        "longest": int(lengths.max()),
        "histogram": histogram,
    }


def _print_facts(path: str, facts: dict[str, Any]) -> None:
    rows = {
        "documents": f"{facts['documents']:,}",
        "tokens": f"{facts['tokens']:,} ({facts['text_bytes'] / facts['tokens']:.2f} bytes of text each)",
        "tokenizer": f"{facts['tokenizer']}, {facts['vocab_size']:,} ids, stored as uint{facts['token_bits']}",
        "shards": f"{facts['shards']:,} ({facts['format']}, {facts['shard_bytes'] / 1e6:,.1f} MB)",
        "padding": f"{facts['padding_share']:.2%} of the positions at {facts['segment_length']} tokens a segment",
        "lengths": f"{facts['shortest']:,} to {facts['longest']:,} tokens, median {facts['median']:,.0f}",
    }
    if "counted_tokens" in facts:
        share = facts["counted_tokens"] / facts["tokens"]
        rows["counted"] = f"{facts['counted_tokens']:,.1f} tokens by their loss weights ({share:.2%})"
    if facts["bad_records"]:
        rows["left out"] = f"{facts['bad_records']:,} records that could not be read (the first in the manifest)"
    print(path)
    for name, value in rows.items():
        print(f"  {name:<10} {value}")
    most = max(bucket["documents"] for bucket in facts["histogram"])
    print(f"  {'tokens':>21}  documents")
    for bucket in facts["histogram"]:
        bar = "#" * -(-bucket["documents"] * _BAR_WIDTH // most)
        print(f"  {bucket['from']:>9,} - {bucket['to']:>9,}  {bucket['documents']:>9,}  {bar}")


def _report(index: DocumentIndex, faults: list[Fault]) -> list[dict[str, Any]]:
    for fault in faults[:_FAULTS_SHOWN]:
        print(f"{index.location}/{fault.file}: {fault.problem}", file=sys.stderr)
    if len(faults) > _FAULTS_SHOWN:
        print(f"{index.location}: {len(faults) - _FAULTS_SHOWN:,} more faults (all with --json)", file=sys.stderr)
    if faults:
        print(f"{index.location} is damaged: restore the files named, or build the data set again", file=sys.stderr)
    return [{"file": fault.file, "document": fault.document, "problem": fault.problem} for fault in faults]


def _segments(text: str) -> int | dict[int, int]:
    """--num-segments: a number, or a mapping in YAML's words."""
    found = re.fullmatch(r"\{(.*)\}", text.strip())
    try:
        parts = [part.split(":") for part in found[1].split(",")] if found else []
        starts = {int(done): int(segments) for done, segments in parts} if found else int(text)
        SegmentSchedule.of(starts)
    except ValueError:
        raise UserError(f"--num-segments is {text}; give 1 or more, or {{0: 1, 1000: 2}}") from None
    return starts


def _trace(arguments: argparse.Namespace) -> int:
    if arguments.world_size < 1:
        raise UserError(f"--world-size is {arguments.world_size}; give 1 or more")
    for name in ("steps", "epochs", "max_document_tokens"):
        if getattr(arguments, name) < 0:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(arguments, name)}; give 0 or more")
    weights = arguments.weights if "weights" in arguments else [1.0] * len(arguments.data)
    if len(weights) != len(arguments.data):
        raise UserError(
            f"--weights gives {len(weights)} numbers for {len(arguments.data)} data sets; give one for each"
        )
    if arguments.lanes < arguments.world_size:
        raise UserError(f"--lanes is {arguments.lanes}; give {arguments.world_size} or more, one for each rank")
    pairs = list(zip(arguments.data, weights, strict=True))
    index: DocumentIndex | Blend = open_data(pairs if len(pairs) > 1 else arguments.data[0], far_settings(arguments))
    settings = StreamSettings(
        num_lanes=arguments.lanes,
        segment_length=arguments.segment_length,
        num_segments=_segments(arguments.num_segments),
        world_size=arguments.world_size,
        seed=arguments.seed,
        epochs=arguments.epochs or None,
        order=arguments.order,
        max_document_tokens=arguments.max_document_tokens or None,
    )
    plan = settings.plan(index)
    if "state_in" in arguments:
        plan.load_state_dict(_read_state(Path(arguments.state_in)))
    for _ in range(arguments.steps):
        rollout = plan.next_rollout(settings.segments.at(plan.state.step))
        if rollout is None:
            break
        for rank in range(settings.world_size):
            block = rollout.block(lanes_of(rank, settings.world_size, settings.num_lanes))
            for row in trace_rows(block, rank):
                print(json.dumps(row))
    if "state_out" in arguments:
        try:
            Path(arguments.state_out).write_text(json.dumps(plan.state_dict()) + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"--state-out {arguments.state_out}: cannot be written ({error.strerror})") from None
    return 0


def _read_state(file: Path) -> dict[str, Any]:
    if file.is_dir():
        file = file / "state.json"
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--state-in {file}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"--state-in {file}: not JSON ({error}); give a file written by --state-out") from None
    if isinstance(state, dict) and isinstance(state.get("data"), dict):
        state = state["data"]  # of a checkpoint
    if not isinstance(state, dict):
        raise UserError(f"--state-in {file}: not a state; give a file written by --state-out")
    return state
