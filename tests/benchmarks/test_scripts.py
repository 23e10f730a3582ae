# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The scripts on what the memory keeps, pixels and peers run at their smallest and write what they say."""

import gzip
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import long_text, memory_tasks, peers_text, pixels


def idx_file(path: Path, images: np.ndarray) -> None:
    """The format of the MNIST files: magic number, sizes, bytes."""
    with gzip.open(path, "wb") as file:
        file.write(struct.pack(">IIII", 0x0803, *images.shape) + images.astype(np.uint8).tobytes())


@pytest.fixture(scope="module")
def image_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for name in pixels.FILES.values():
        idx_file(directory / name, random.integers(0, 256, size=(40, 28, 28)))
    return directory


def test_images_are_averaged_and_cut_into_greys(tmp_path: Path) -> None:
    image = np.zeros((1, 28, 28), dtype=np.uint8)
    image[0, 0, :2], image[0, 1, :2] = 255, 253  # mean 254
    image[0, 0, 2] = 64  # mean 16: the second of 16 greys
    image[0, 26:, 26:] = 128
    idx_file(tmp_path / pixels.FILES["train"], image)
    tokens = pixels.images(tmp_path, "train", pixels.SCALES["quarter"], most=10)
    assert tokens.shape == (1, 196)
    assert tokens[0, :3].tolist() == [15, 1, 0]
    assert tokens[0, -1] == 8
    full = pixels.images(tmp_path, "train", pixels.SCALES["full"], most=10)
    assert full.flatten().tolist() == image.flatten().tolist()


def test_scales_keep_the_proportions() -> None:
    for scale in pixels.SCALES.values():
        assert scale.length % scale.segment_length == 0
        assert scale.length == 784 // scale.divisor
    quarter = pixels.make_reader(pixels.TABLE[2], pixels.SCALES["quarter"], seed=0)
    assert quarter.module.config.num_memory_slots == 16
    one = next(row for row in pixels.TABLE if row.slots == 1)
    assert pixels.make_reader(one, pixels.SCALES["quarter"], seed=0).module.config.num_memory_slots == 1


def test_missing_images_are_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="apt-get install dataset-fashion-mnist"):
        pixels.images(tmp_path, "train", pixels.SCALES["tiny"], most=1)


def test_pixels(image_directory: Path, tmp_path: Path) -> None:
    words = f"--scale tiny --rows LSTM 4+4 --images {image_directory} --training-images 32 --out {tmp_path / 'result'}"
    pixels.main(words.split())
    values = json.loads((tmp_path / "result.json").read_text())
    assert [row["name"] for row in values["rows"]] == ["Memformer 4+4", "LSTM"]
    for row in values["rows"]:
        assert 5 < row["perplexity"] < 30  # 16 greys, hardly trained
        assert row["gflops_per_image"] > 0
    assert "| LSTM |" in (tmp_path / "result.md").read_text()


def test_memory_tasks(tmp_path: Path) -> None:
    words = f"--quick --steps 2 --longest 64 --documents 4 --out {tmp_path / 'result'}"
    memory_tasks.main(words.split())
    values = json.loads((tmp_path / "result.json").read_text())
    assert [row["variant"] for row in values["rows"]] == ["default", "memory reset", "no-slots"]
    for row in values["rows"]:
        assert [point["distance"] for point in row["by_distance"]] == [8, 16, 32, 64]
        assert all(point["asked"] == 16 for point in row["by_distance"])
    assert "## copy" in (tmp_path / "result.md").read_text()


def test_the_small_bias_starts_from_the_same_memory() -> None:
    setup = memory_tasks.SETUPS["copy"]
    default, small = (memory_tasks.make_reader(setup, variant, seed=0).module for variant in ("default", "small-bias"))
    torch.testing.assert_close(small.initial_memory(1), default.initial_memory(1))
    torch.testing.assert_close(small.forget.bias, default.forget.bias * memory_tasks.SMALL_BIAS)


def test_peers_on_text(tmp_path: Path) -> None:
    words = (
        "--variants memformer memformer-no-slots lstm --steps 2 --documents 2 --test-length 128 --lanes 2 "
        f"--length 256 --width 16 --out {tmp_path / 'result'}"
    )
    peers_text.main(words.split())
    values = json.loads((tmp_path / "result.json").read_text())
    ours, without, lstm = values["rows"]
    assert abs(lstm["parameters"] - ours["parameters"]) <= 0.03 * ours["parameters"]
    assert ours["carried_numbers"] == 16 * 16
    assert without["carried_numbers"] == 0
    assert len(ours["by_segment"]) == 2


def test_books_are_held_out_whole() -> None:
    trained, tested = peers_text.books(held_out=False), peers_text.books(held_out=True)
    assert len(tested) == len(peers_text.HELD_OUT)
    assert {len(text) for text in trained}.isdisjoint(len(text) for text in tested)


def test_a_package_is_one_document(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / "packages" / name / "inner").mkdir(parents=True)
        (tmp_path / "packages" / name / "__init__.py").write_text(f"# {name}\n")
        (tmp_path / "packages" / name / "inner" / "code.py").write_text("x = 1\n")
    (tmp_path / "packages" / "stray.py").write_text("left out\n")
    gathered = long_text.gather(tmp_path / "packages", tmp_path / "documents")
    assert sorted(path.name for path in gathered.iterdir()) == ["one.txt.gz", "two.txt.gz"]
    with gzip.open(gathered / "two.txt.gz", "rt", encoding="utf-8") as file:
        assert file.read() == "# two/__init__.py\n# two\n\n# two/inner/code.py\nx = 1\n\n"
    assert long_text.gather(long_text.BOOKS, tmp_path / "unused") == long_text.BOOKS


def test_horizons_divide_the_segments_of_a_step(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        long_text.parse(["--horizons", "3"])
    assert stopped.value.code == 2
    assert "choose a divisor" in capsys.readouterr().err
