# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Turn a sharded checkpoint of any ZeRO stage into single-GPU weights that torch and safetensors load.

Writes OUT/model.safetensors, config.json, tokenizer.json, README.md and code for transformers' trust_remote_code, after
a forward pass has given the losses that the checkpoint recorded. A backbone is written as transformers has it, with
memory.safetensors and memory.json beside it. To an address, it is copied from the directory for temporary files.
"""

import argparse
import tempfile
from contextlib import nullcontext
from pathlib import Path

from data_pipeline.cloud_settings import is_cloud
from launch.answers import answer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to export, and where to."""
    parser.add_argument("source", metavar="RUN_OR_CHECKPOINT", help="a run (its newest checkpoint) or a checkpoint")
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="directory to make, or an address, s3://BUCKET/MODEL"
    )
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "bf16"), help="precision of the weights")
    parser.add_argument(
        "--max-file-megabytes", type=int, default=5000, metavar="N", help="more than this goes into several files"
    )
    parser.add_argument(
        "--no-verify", action="store_true", help="leave out the forward pass, which needs the whole model in memory"
    )
    parser.add_argument(
        "--base-reference",
        action="store_true",
        help="leave out weights that are still those of model.pretrained, and record where that is and its SHA-256",
    )
    parser.add_argument(
        "--merge", action="store_true", help="add low-rank adapters (model.lora) to the weights that they are beside"
    )
    parser.add_argument("--json", action="store_true", help="JSON alone on stdout, the rest on stderr")


def run(arguments: argparse.Namespace) -> None:
    """Exports and says what was written."""
    from data_pipeline import UserError
    from data_pipeline.object_store import ObjectStore
    from memformer.checkpoints.directory import refuse_full, refuse_no_checkpoint

    if arguments.max_file_megabytes < 1:
        raise UserError(f"--max-file-megabytes {arguments.max_file_megabytes}: give 1 or more")
    refuse_no_checkpoint(arguments.source)
    store = ObjectStore(arguments.out) if is_cloud(arguments.out) else None
    if store is None:
        refuse_full(arguments.out)
    from memformer.checkpoints.export_copy import put_export, refuse_taken  # and torch: only for what can be exported
    from memformer.checkpoints.exporting import export

    if store is not None:
        refuse_taken(store)

    with tempfile.TemporaryDirectory(prefix="memformer-export-") if store else nullcontext("") as scratch:
        result = export(
            arguments.source,
            Path(scratch) / "export" if store else arguments.out,
            arguments.dtype,
            max_file_bytes=arguments.max_file_megabytes * 10**6,
            verify=not arguments.no_verify,
            base_reference=arguments.base_reference,
            merge=arguments.merge,
        )
        if store is not None:
            put_export(store, Path(scratch) / "export")
            result["out"] = str(store.address)
    difference = result["largest_loss_difference"]
    checked = (
        "not verified" if difference is None else f"losses differ from the trained model's by {difference:.1e} nats"
    )
    left = "" if result["base"] is None else f", the others are left to {result['base']}"
    merged = ", adapters merged" if result["merged"] else ""
    print(
        f"exported step {result['step']} of {result['checkpoint']} to {result['out']}: {result['parameters']:,} "
        f"parameters in {arguments.dtype}{merged}, {result['bytes']:,} bytes{left}; {checked}"
    )
    if arguments.json:
        answer(result)
