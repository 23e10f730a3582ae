# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""A program that reads or writes MDS with `streaming` itself (mosaicml-streaming), for tests to compare with.

    streaming_library.py read DIR OUT.npz       every sample through StreamingDataset, hashes checked
    streaming_library.py write IN.npz DIR       samples in columns of several kinds through MDSWriter

It is a process of its own: the library wants torchvision and transformers, which only its examples use, and the empty
modules that stand in for them must not be seen by other tests. The npz files hold `tokens` and `ends`; what was read
has `names` and `loss_weights` too (empty where there are none).
"""

import importlib
import sys
import types
from typing import Any

import numpy as np


def import_streaming() -> Any:
    """The library, without the parts that need torchvision and transformers."""
    stand_ins = {
        "streaming.vision": (),
        "streaming.text": (),
        "streaming.multimodal": (),
        "transformers": (),
        "transformers.feature_extraction_utils": ("BatchFeature",),
        "transformers.tokenization_utils_base": ("BatchEncoding",),
    }
    for name, classes in stand_ins.items():
        module = types.ModuleType(name)
        for each in classes:
            setattr(module, each, type(each, (dict,), {}))
        sys.modules[name] = module
    return importlib.import_module("streaming")


def read(directory: str, out: str) -> None:
    dataset = import_streaming().StreamingDataset(local=directory, shuffle=False, batch_size=1, validate_hash="sha256")
    tokens = [np.frombuffer(dataset[i]["tokens"], "<u2") for i in range(dataset.num_samples)]
    names = [dataset[i]["name"] for i in range(dataset.num_samples)]
    weights = [np.frombuffer(dataset[i].get("loss_weights", b""), "<u2") for i in range(dataset.num_samples)]
    columns = {"tokens": np.concatenate(tokens), "loss_weights": np.concatenate(weights), "names": names}
    np.savez(out, ends=np.cumsum([len(each) for each in tokens]), **columns)


def write(source: str, directory: str) -> None:
    with np.load(source) as columns:
        documents = np.split(columns["tokens"], columns["ends"][:-1])
    encodings = {"label": "int", "tokens": "bytes", "uid": "str", "array": "ndarray:uint16"}
    with import_streaming().MDSWriter(out=directory, columns=encodings, size_limit=20_000, hashes=["sha256"]) as out:
        for number, tokens in enumerate(documents):
            uid = f"document-{number}" + "x" * (number % 3)
            out.write({"label": number, "tokens": tokens.tobytes(), "uid": uid, "array": tokens})


if __name__ == "__main__":
    {"read": read, "write": write}[sys.argv[1]](*sys.argv[2:])
