# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Continue texts. Memory use depends neither on a prompt's length nor on the continuation's.

Several prompts are read and continued side by side. A document that was read once with --save-state and
--max-new-tokens 0 answers any number of prompts with --load-state, without being read again.
"""

import argparse
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from launch.answers import answer

if TYPE_CHECKING:
    from memformer.models.protocol import MemoryModel, Reader

TEXT, FILE = "--prompt", "--prompt-file"


class Prompt(NamedTuple):
    """A prompt as it was given."""

    kind: str
    """TEXT or FILE."""
    source: str
    """The text, or the file's path; - is standard input."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL, the prompts or a state to go on from, how much to write and how to draw."""
    from launch.models import add_model_arguments, add_wavefront_argument

    add_model_arguments(parser)
    add = parser.add_argument
    for kind, metavar, words in (
        (TEXT, "TEXT", "text to continue; empty starts a document; may be repeated, for texts side by side"),
        (FILE, "FILE", "UTF-8 file to continue; - reads standard input; may be repeated"),
    ):
        add(kind, dest="prompts", action="append", type=partial(Prompt, kind), metavar=metavar, help=words)
    add("--load-state", metavar="FILE", help="go on behind what was read when FILE was saved; each prompt by itself")
    add("--save-state", metavar="FILE", help="write what is remembered of all that was read and written to a new FILE")
    add("--max-new-tokens", type=int, default=256, metavar="N", help="tokens to write; 0 only reads")
    add("--temperature", type=float, default=0.8, metavar="T", help="0 takes the most likely token")
    add("--top-k", type=int, metavar="K", help="draw among the K most likely tokens (default: all)")
    add("--top-p", type=float, default=1.0, metavar="P", help="draw among tokens that reach it")
    add("--seed", type=int, default=0, metavar="N", help="seed of the draws; the next prompt has the next one")
    add_wavefront_argument(parser, "read prompts")
    add("--json", action="store_true", help="JSON alone on stdout, the rest on stderr")


def run(arguments: argparse.Namespace) -> None:
    """Streams the continuation of one prompt to standard output, or shows those of several; with --json, to stderr."""
    from launch.models import check_wavefront, model_here, open_model

    check(arguments)
    path = model_here(arguments)
    if arguments.wavefront:
        check_wavefront(path)
    texts = [read_prompt(prompt) for prompt in arguments.prompts or ()]
    model, tokenizer = open_model(arguments)
    from memformer.inference.generation import Written, draw, read_texts
    from memformer.inference.state_file import save_state
    from memformer.inference.threads import spare_threads

    prompts = [tokenizer.encode(text).tolist() for text in texts]
    reader = open_reader(arguments, model, len(prompts))
    prompts = prompts or [[] for _ in range(reader.batch_size)]  # a state alone is continued as it is
    started = time.perf_counter()
    if max(map(len, prompts)) <= (model.config.segment_length or 0):  # more is worth all threads until it is read
        spare_threads(model)
    read_texts(reader, prompts)
    spare_threads(model)
    written = [Written(tokenizer) for _ in prompts]
    tokens = draw(
        reader,
        model.config.start_token_id,
        arguments.max_new_tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        seed=arguments.seed,
    )
    for row in tokens:
        pieces = [each.add(token) for each, token in zip(written, row, strict=True)]
        if len(pieces) == 1:
            sys.stdout.write(pieces[0])
            sys.stdout.flush()
    ends = [each.end() for each in written]
    if len(ends) == 1:
        print(ends[0])
    else:
        for number, each in enumerate(written, start=1):
            print(f"--- prompt {number}\n{each.text}")
    if arguments.save_state is not None:
        save_state(Path(arguments.save_state), reader.state, model)
        print(f"{arguments.save_state}: what was read and written is saved", file=sys.stderr)
    if arguments.json:
        found = [
            {"prompt_tokens": len(prompt), "new_tokens": each.tokens, "text": each.text}
            for prompt, each in zip(prompts, written, strict=True)
        ]
        answer({**(found[0] if len(found) == 1 else {"prompts": found}), "seconds": time.perf_counter() - started})


def open_reader(arguments: argparse.Namespace, model: "MemoryModel", count: int) -> "Reader":
    """What reads so many prompts, from a document's beginning or from the state that the arguments name.

    Without prompts it goes on in the documents of the state.

    Raises:
        UserError: The state cannot be read, is another model's, or of another number of documents.
    """
    from data_pipeline import UserError
    from launch.models import open_wavefront
    from memformer.inference.generation import reader_of
    from memformer.inference.state_file import load_state

    wavefront = open_wavefront(model) if arguments.wavefront else None
    if arguments.load_state is None:
        return reader_of(model, count, wavefront=wavefront)
    state = load_state(Path(arguments.load_state), model)
    documents = state.batch_size
    count = count or documents
    if documents not in (1, count):
        raise UserError(
            f"--load-state {arguments.load_state}: is of {documents} documents, and there are {count} prompts: give "
            f"{documents} prompts, or none"
        )
    reader = reader_of(model, count, state.segment_length, wavefront)
    reader.restore(state.rows([0] * count if documents == 1 else range(documents)))
    return reader


def check(arguments: argparse.Namespace) -> None:
    """Refuses values out of range."""
    from data_pipeline import UserError
    from memformer.run.directory import refuse_taken

    for name, fits, mend in (
        ("max_new_tokens", arguments.max_new_tokens >= 0, "give 0 or more"),
        ("temperature", arguments.temperature >= 0, "give 0 or more"),
        ("top_k", arguments.top_k is None or arguments.top_k >= 1, "give 1 or more"),
        ("top_p", 0 < arguments.top_p <= 1, "give more than 0 and at most 1"),
    ):
        if not fits:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(arguments, name)}: {mend}")
    if arguments.prompts is None and arguments.load_state is None:
        raise UserError("there is nothing to continue: give --prompt, --prompt-file or --load-state")
    if (arguments.prompts or []).count(Prompt(FILE, "-")) > 1:
        raise UserError("--prompt-file - is given twice: standard input is read once")
    if arguments.save_state is not None:
        refuse_taken(Path(arguments.save_state))


def read_prompt(prompt: Prompt) -> str:
    """A prompt's text.

    Raises:
        UserError: It cannot be read, or is not UTF-8.
    """
    from data_pipeline import UserError

    name = prompt.kind if prompt.kind == TEXT else f"{prompt.kind} {prompt.source}"
    try:
        if prompt.kind == TEXT:
            content = os.fsencode(prompt.source)  # the bytes of the command line, whatever they are
        elif prompt.source == "-":
            content = sys.stdin.buffer.read()
        else:
            content = Path(prompt.source).read_bytes()
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        wrong, line = error.object[error.start], error.object[: error.start].count(b"\n") + 1
        raise UserError(
            f"{name}: is not UTF-8 text (byte {wrong:#x} in line {line}): give it as UTF-8, by iconv for example"
        ) from None
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror}): give the path of a text file") from None
