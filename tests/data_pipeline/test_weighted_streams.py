# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Streams of data sets with loss weights: each token with its own, wherever it lies and whoever reads it.

Covers: data_pipeline/blend.py, data_pipeline/opening.py, data_pipeline/store.py, data_pipeline/stream.py
"""

import itertools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from data_pipeline import Blend, DocumentIndex, FarSettings, SegmentBatch, SegmentStream, build_dataset, open_data
from data_pipeline.adopt import adopt
from data_pipeline.loss_weights import ONE
from tests.data_pipeline.faulty_server import serving

SHAPE = {"num_lanes": 5, "segment_length": 64, "num_segments": 3, "seed": 2}
WEIGHTS = [0, 1, 0.5, 0.1, 3 / ONE]


def records(seed: int) -> list[dict[str, Any]]:
    """Texts of ASCII, a token a character, with a weight for some stretches of them."""
    generator, found = random.Random(seed), []
    for number in range(9):
        text = "".join(chr(48 + (at + number) % 70) for at in range(1 + 90 * number))
        places = sorted(generator.sample(range(len(text) + 1), min(len(text), 12)))
        ranges = [[start, end, generator.choice(WEIGHTS)] for start, end in itertools.pairwise(places)]
        found.append({"id": f"{seed}-{number}", "text": text, "loss_weights": ranges})
    return found


def expected(index: int, documents: list[dict[str, Any]]) -> NDArray[np.float32]:
    weights = np.zeros(len(documents[index]["text"]), np.float32)
    for start, end, weight in documents[index]["loss_weights"]:
        weights[start:end] = round(weight * ONE) / ONE
    return weights


def build(folder: Path, seed: int, form: str = "webdataset") -> Path:
    (folder / f"{seed}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records(seed)))
    out = folder / f"set-{seed}-{form}"
    build_dataset([folder / f"{seed}.jsonl"], out, format=form, shard_megabytes=0.004, loss_weights_key="loss_weights")
    return out


@pytest.fixture(scope="module")
def weighted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = build(tmp_path_factory.mktemp("weighted"), 1)
    assert len(DocumentIndex.load(out).manifest.shards) > 2
    return out


def check(batch: SegmentBatch, wanted: list[NDArray[np.float32]]) -> dict[tuple[int, int], int]:
    """Holds each token of a batch to its weight; tokens read by (epoch, document)."""
    weights = batch.loss_weights
    assert weights is not None and weights.dtype == np.float32 and weights.shape == batch.tokens.shape
    read: dict[tuple[int, int], int] = {}
    for lane, segment in np.ndindex(batch.lengths.shape):
        length, start = int(batch.lengths[lane, segment]), int(batch.starts[lane, segment])
        assert not weights[lane, segment, length:].any()
        if length:
            document = int(batch.documents[lane, segment])
            assert np.array_equal(weights[lane, segment, :length], wanted[document][start : start + length])
            key = int(batch.epochs[lane, segment]), document
            read[key] = read.get(key, 0) + length
    return read


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    phases=st.lists(
        st.tuples(st.integers(1, 7), st.integers(1, 70), st.integers(1, 4), st.integers(0, 4), st.integers(1, 3)),
        min_size=1,
        max_size=4,
    ),
    cut=st.sampled_from([None, 50]),
    seed=st.integers(0, 99),
)
def test_every_token_once_with_its_own_weight_across_stops_and_resizings(
    weighted: Path, phases: list[tuple[int, int, int, int, int]], cut: int | None, seed: int
) -> None:
    """Each phase is (lanes, segment length, segments, rollouts, ranks); the last one runs to the end of two epochs."""
    wanted = [expected(number, records(1)) for number in range(9)]
    read: dict[tuple[int, int], int] = {}
    saved = None
    for number, (lanes, segment_length, num_segments, rollouts, ranks) in enumerate(phases):
        last = number == len(phases) - 1
        states = set()
        for rank in range(min(ranks, lanes)):
            stream = SegmentStream(
                weighted,
                num_lanes=lanes,
                segment_length=segment_length,
                num_segments=num_segments,
                epochs=2,
                seed=seed,
                prefetch=0,
                rank=rank,
                world_size=min(ranks, lanes),
                max_document_tokens=cut,
            )
            with stream:
                if saved is not None:
                    stream.load_state_dict(json.loads(saved))
                for batch in stream if last else itertools.islice(stream, rollouts):
                    for key, count in check(batch, wanted).items():
                        read[key] = read.get(key, 0) + count
                states.add(json.dumps(stream.state_dict()))
        (saved,) = states
    assert read == {(epoch, document): len(wanted[document]) for epoch in range(2) for document in range(9)}


@pytest.mark.parametrize("mode", ["spool", "range"])
def test_far_weights_are_the_near_ones(weighted: Path, tmp_path: Path, mode: Any) -> None:
    with serving(weighted.parent) as server:
        far = open_data(f"{server.address}/{weighted.name}", FarSettings(cache_dir=tmp_path / "cache", mode=mode))
        with SegmentStream(weighted, **SHAPE, epochs=1) as near, SegmentStream(far, **SHAPE, epochs=1) as stream:
            for one, other in itertools.zip_longest(near, stream):
                assert np.array_equal(one.loss_weights, other.loss_weights) and one.loss_weights.any()
                assert np.array_equal(one.tokens, other.tokens)
    copied = {name: count for name, count in server.requests.items() if name.endswith(".tar")}
    if mode == "spool":
        assert set(copied.values()) == {1}  # one copy serves tokens and weights


def test_data_sets_without_weights_count_whole_beside_those_with_them(weighted: Path, tmp_path: Path) -> None:
    second = build(tmp_path, 2, "mds")
    (tmp_path / "page.txt").write_text("every token of this page counts, " * 20)
    build_dataset([tmp_path / "page.txt"], tmp_path / "page")
    np.arange(200, dtype=np.uint8).tofile(tmp_path / "numbers.bin")  # ids of one byte, in which no weight fits
    adopt(tmp_path / "numbers.bin", tokenizer="bytes", out=tmp_path / "adopted", dtype="uint8", eos=199)
    blend = open_data([(str(path), 1.0) for path in (weighted, tmp_path / "page", second, tmp_path / "adopted")])
    assert isinstance(blend, Blend)
    wanted = [expected(number, records(1)) for number in range(9)]
    wanted += [np.ones(int(blend.lengths[9]), np.float32)]
    wanted += [expected(number, records(2)) for number in range(9)]
    wanted += [np.ones(200, np.float32)]
    with SegmentStream(blend, **SHAPE, epochs=1) as stream:
        read = {key for batch in stream for key in check(batch, wanted)}
    assert {document for _, document in read} == set(range(20))
    plain = open_data([(str(tmp_path / "page"), 1.0), (str(tmp_path / "adopted"), 1.0)])
    with SegmentStream(plain, **SHAPE, epochs=1) as stream:
        assert next(stream).loss_weights is None


def test_a_document_whose_weights_are_damaged_is_skipped_or_named(weighted: Path, tmp_path: Path) -> None:
    broken = build(tmp_path, 1)
    weights = DocumentIndex.load(broken).loss_weights
    assert weights is not None
    path, content = weights.shard_path(int(weights.shards[5])), bytearray()
    content += path.read_bytes()
    content[int(weights.offsets[5]) + 7] ^= 1
    path.write_bytes(content)
    skipped: dict[int, str] = {}
    settings: dict[str, Any] = {**SHAPE, "epochs": 1, "order": "sequential"}
    with SegmentStream(broken, **settings, on_damage="skip", on_skip=skipped.update) as stream:
        documents = {document for batch in stream for document in batch.documents.flatten().tolist()}
    assert documents - {-1} == set(range(9)) - {5} and list(skipped) == [5]
    with pytest.raises(Exception, match=r"damaged: document 5 \(1-5\) does not have its checksum"):
        list(SegmentStream(broken, **settings))
