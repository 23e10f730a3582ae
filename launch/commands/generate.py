# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Continue a text. Memory use depends neither on the prompt's length nor on the continuation's."""

import argparse
import codecs
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from launch.answers import answer

if TYPE_CHECKING:
    from memformer.models.protocol import MemoryModel

BYTES_A_THREAD = 2**28
"""Weights that one core reads in some hundredths of a second; threads that share less wait for one another."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL, the prompt, how much to write and how to draw."""
    from launch.models import add_model_arguments

    add_model_arguments(parser)
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", metavar="TEXT", help="text to continue; empty starts a document")
    prompt.add_argument("--prompt-file", metavar="FILE", help="UTF-8 file to continue; - reads standard input")
    parser.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="tokens to write")
    parser.add_argument("--temperature", type=float, default=0.8, metavar="T", help="0 takes the most likely token")
    parser.add_argument("--top-k", type=int, metavar="K", help="draw among the K most likely tokens (default: all)")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="draw among tokens that reach it")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the draws")
    parser.add_argument("--json", action="store_true", help="JSON alone on stdout, the rest on stderr")


def run(arguments: argparse.Namespace) -> None:
    """Streams the continuation to standard output; with --json, to standard error."""
    from launch.models import check_model, open_model

    check(arguments)
    check_model(Path(arguments.model))
    text = read_prompt(arguments)
    model, tokenizer = open_model(arguments)
    from memformer.inference.generation import generate

    prompt = tokenizer.encode(text).tolist()
    if len(prompt) <= (model.config.segment_length or 0):  # more is worth all threads until it is read
        spare_threads(model)
    started = time.perf_counter()
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    written: list[str] = []
    tokens = generate(
        model,
        prompt,
        arguments.max_new_tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        seed=arguments.seed,
    )
    for token in tokens:
        if not written:
            spare_threads(model)
        # A character may take several tokens: it is shown when its last byte is there.
        piece = decoder.decode(tokenizer.token_bytes(token))
        written.append(piece)
        sys.stdout.write(piece)
        sys.stdout.flush()
    written.append(decoder.decode(b"", final=True))
    print(written[-1])
    if arguments.json:
        seconds = time.perf_counter() - started
        result = {
            "prompt_tokens": len(prompt),
            "new_tokens": len(written) - 1,
            "seconds": seconds,
            "text": "".join(written),
        }
        answer(result)


def check(arguments: argparse.Namespace) -> None:
    """Refuses values out of range."""
    from data_pipeline import UserError

    for name, fits, mend in (
        ("max_new_tokens", arguments.max_new_tokens >= 0, "give 0 or more"),
        ("temperature", arguments.temperature >= 0, "give 0 or more"),
        ("top_k", arguments.top_k is None or arguments.top_k >= 1, "give 1 or more"),
        ("top_p", 0 < arguments.top_p <= 1, "give more than 0 and at most 1"),
    ):
        if not fits:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(arguments, name)}: {mend}")


def read_prompt(arguments: argparse.Namespace) -> str:
    """The prompt's text.

    Raises:
        UserError: It cannot be read, or is not UTF-8.
    """
    from data_pipeline import UserError

    source = "--prompt" if arguments.prompt is not None else f"--prompt-file {arguments.prompt_file}"
    try:
        if arguments.prompt is not None:
            content = os.fsencode(arguments.prompt)  # the bytes of the command line, whatever they are
        elif arguments.prompt_file == "-":
            content = sys.stdin.buffer.read()
        else:
            content = Path(arguments.prompt_file).read_bytes()
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        wrong, line = error.object[error.start], error.object[: error.start].count(b"\n") + 1
        raise UserError(
            f"{source}: is not UTF-8 text (byte {wrong:#x} in line {line}): give it as UTF-8, by iconv for example"
        ) from None
    except OSError as error:
        raise UserError(f"{source}: cannot be read ({error.strerror}): give the path of a text file") from None


def spare_threads(model: "MemoryModel") -> None:
    """Computes with as many threads as one token's work is worth, unless OMP_NUM_THREADS says how many.

    A token reads every weight once and computes little. Small models are done before several threads have met, and on
    busy cores a thread that waits for its turn holds up all others at every product.
    """
    import torch

    if model.device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        size = sum(weight.nbytes for _, weight in model.named_parameters())
        torch.set_num_threads(min(torch.get_num_threads(), 1 + size // BYTES_A_THREAD))
