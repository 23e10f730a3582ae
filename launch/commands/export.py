# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Turn a sharded checkpoint of any ZeRO stage into single-GPU weights that torch and safetensors load.

Writes OUT/model.safetensors, config.json and tokenizer.json, after a forward pass has given the losses that the
checkpoint recorded.
"""

import argparse
import json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to export, and where to."""
    parser.add_argument("source", metavar="RUN_OR_CHECKPOINT", help="a run (its newest checkpoint) or a checkpoint")
    parser.add_argument("--out", required=True, metavar="DIR", help="directory to make")
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "bf16"), help="precision of the weights")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")


def run(arguments: argparse.Namespace) -> None:
    """Exports and says what was written."""
    from memformer.export import export

    result = export(arguments.source, arguments.out, arguments.dtype)
    print(
        f"exported step {result['step']} of {result['checkpoint']} to {result['out']}: {result['parameters']:,} "
        f"parameters in {arguments.dtype}, {result['bytes']:,} bytes; losses differ from the trained model's by "
        f"{result['largest_loss_difference']:.1e} nats at most"
    )
    if arguments.json:
        print(json.dumps(result))
