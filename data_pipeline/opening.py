# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Opens whatever the setting `data.path` may name: a directory, an address, or several of them with weights."""

from collections.abc import Sequence
from pathlib import Path

from data_pipeline.addresses import shown
from data_pipeline.blend import Blend, BlendStore
from data_pipeline.errors import UserError
from data_pipeline.far import FarSettings, is_address
from data_pipeline.index import DocumentIndex
from data_pipeline.loss_weights import WEIGHT_DTYPE
from data_pipeline.manifest import MANIFEST_FILE
from data_pipeline.store import FullWeights, ShardStore, Store


def open_data(data: str | Path | Sequence[tuple[str, float]], far: FarSettings | None = None) -> DocumentIndex | Blend:
    """Opens a data set, or several as a blend.

    Args:
        data: A directory, an address (`far.ADDRESSES`), or pairs of either and a weight.
        far: How data sets at an address are read.

    Raises:
        UserError: A data set cannot be had, is damaged, or two have different tokenizers.
    """
    if isinstance(data, str | Path):
        return _open_one(data, far)
    if not data:
        raise UserError("data.path is an empty list; name a data set or more")
    names = [name for name, _ in data]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"data set {shown(twice)} is named twice; name it once, with the sum of the weights")
    far = far or FarSettings()
    return Blend([_open_one(name, far) for name in names], [weight for _, weight in data])


def open_store(index: DocumentIndex | Blend) -> Store:
    """The store that reads a data set's shards from where it was opened."""
    if isinstance(index, Blend):
        return BlendStore(index, [open_store(part) for part in index.parts])
    if index.far is None:
        return ShardStore(index)
    from data_pipeline.remote import open_far_store

    return open_far_store(index)


def open_weight_store(index: DocumentIndex | Blend) -> Store | None:
    """The store that reads the loss weights, uint16 in 1/32,768ths; None where no data set has any."""
    if isinstance(index, Blend):
        stores = [open_weight_store(part) for part in index.parts]
        if all(store is None for store in stores):
            return None
        return BlendStore(index, [store or FullWeights() for store in stores], WEIGHT_DTYPE)
    weights = index.loss_weights
    return None if weights is None else open_store(weights)


def holds_data(name: str | Path, far: FarSettings) -> bool:
    """Whether there is a data set in a directory or at an address.

    Raises:
        UserError: The address cannot be reached, or may not be used.
    """
    if not is_address(name):
        return Path(name, MANIFEST_FILE).is_file()
    from data_pipeline.remote import has_data

    return has_data(str(name), far)


def _open_one(name: str | Path, far: FarSettings | None) -> DocumentIndex:
    if not is_address(name):
        return DocumentIndex.load(name)
    from data_pipeline.remote import open_far_index

    return open_far_index(str(name), far or FarSettings())
