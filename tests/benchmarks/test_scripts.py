# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The scripts on what the memory keeps, pixels and peers run at their smallest and write what they say."""

import gzip
import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import (
    cases,
    gradient_accumulation,
    long_text,
    memory_tasks,
    optimizers,
    peers_text,
    pixels,
    residual_dtype,
    texts,
)
from benchmarks.training import Recipe, train


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
    words = f"--scale tiny --rows LSTM 4+4 --learning-rates 1e-2 1e-3 --images {image_directory} --training-images 32"
    pixels.main([*words.split(), "--out", str(tmp_path / "result")])
    values = json.loads((tmp_path / "result.json").read_text())
    trained = [(row["name"], row["learning_rate"]) for row in values["rows"]]
    assert trained == [("Memformer 4+4", 1e-2), ("LSTM", 1e-2), ("Memformer 4+4", 1e-3), ("LSTM", 1e-3)]
    for row in values["rows"]:
        assert 5 < row["perplexity"] < 30  # 16 greys, hardly trained
        assert row["gflops_per_image"] > 0
    assert (tmp_path / "result.md").read_text().count("| LSTM |") == 1


def test_a_model_is_shown_at_the_rate_of_its_lowest_training_loss() -> None:
    def row(rate: float, seed: int, *losses: float) -> dict[str, Any]:
        return {"learning_rate": rate, "seed": seed, "training_losses": losses, "perplexity": 1 / rate}

    high = [row(1e-2, 0, 2.0, 1.0), row(1e-2, 1, 2.0, 1.4)]
    low = [row(1e-3, 0, 0.5, 1.3), row(1e-3, 1, 0.5, 1.3)]
    assert cases.at_best_rate([*low, *high]) == high
    assert cases.at_best_rate([*low, high[0]]) == low  # a rate of one seed alone is not compared


def test_memory_tasks(tmp_path: Path) -> None:
    words = f"--quick --steps 2 --longest 64 --documents 4 --out {tmp_path / 'result'}"
    memory_tasks.main(words.split())
    values = json.loads((tmp_path / "result.json").read_text())
    assert [row["variant"] for row in values["rows"]] == ["paper", "memory reset", "no-slots"]
    for row in values["rows"]:
        assert [point["distance"] for point in row["by_distance"]] == [8, 16, 32, 64]
        assert all(point["asked"] == 16 for point in row["by_distance"])
    assert "## copy" in (tmp_path / "result.md").read_text()

    # Models trained on documents that grow join them, under a name of their own.
    memory_tasks.main([*words.split(), "--num-segments", "{0: 4, 1: 8}"])
    page, values = (tmp_path / "result.md").read_text(), json.loads((tmp_path / "result.json").read_text())
    assert {row["trained_as"] for row in values["rows"]} == {"paper", "no-slots", "paper to 8", "no-slots to 8"}
    grown = [row for row in values["rows"] if row["trained_as"] == "paper to 8"]
    assert [row["variant"] for row in grown] == ["paper to 8", "memory reset"]
    assert grown[0]["training_length"] == 8 * 16
    assert grown[0]["training_tokens"] == 32 * (4 + 8) * 16
    assert "Trained on documents of 64 tokens (16 a segment)" in page
    assert "- `paper to 8`: trained on documents of 4, from step 2 on 8 segments, up to 128 tokens each, 0.0 M" in page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num-segments", "{1: 4}"], "does not say with how many segments to begin, add 0: 1 to it"),
        (["--num-segments", "{0: 4, "], "--num-segments"),
        (["--num-segments", "{0: 4, 600: 8}"], "changes after 600 steps: give --steps, more than that"),
        (["--num-segments", "{0: 4, 600: 8}", "--steps", "600"], "changes after 600 steps"),
    ],
)
def test_segments_that_no_step_would_have_are_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        memory_tasks.parse(words)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("variant", memory_tasks.VARIANTS)
def test_a_variant_of_the_memory_is_the_tasks_model_but_for_that(variant: str) -> None:
    setup = memory_tasks.SETUPS["copy"]
    found = memory_tasks.make_reader(setup, variant, 0).module.config.to_dict()
    plain = setup.model.to_dict() | {"vocab_size": 20, "start_token_id": 19, "segment_length": 16}
    assert {name for name, value in found.items() if value != plain[name]} == {
        name for name, value in memory_tasks.VARIANTS[variant].items() if value != plain[name]
    }


def test_peers_on_text(tmp_path: Path) -> None:
    words = (
        "--variants memformer memformer-no-slots memformer-overlap memformer-overlap-modern lstm --steps 2 "
        "--documents 2 --test-length 128 --lanes 2 --length 256 --width 16 --encoder-layers 2 --decoder-layers 4 "
        "--learning-rates 1e-2 "
        f"--out {tmp_path / 'result'}"
    )
    peers_text.main(words.split())
    values = json.loads((tmp_path / "result.json").read_text())
    ours, without, overlapping, modern, lstm = values["rows"]
    assert abs(modern["parameters"] - ours["parameters"]) <= 0.03 * ours["parameters"]
    assert overlapping["parameters"] == ours["parameters"]
    assert overlapping["flops_per_token"] > ours["flops_per_token"]
    assert abs(lstm["parameters"] - ours["parameters"]) <= 0.03 * ours["parameters"]
    assert ours["carried_numbers"] == 16 * 16
    assert without["carried_numbers"] == 0
    assert len(ours["by_segment"]) == 4


def test_a_page_of_peers_tells_the_rates_of_seeds_that_have_seen_them_all() -> None:
    def row(variant: str, seed: int, rate: float, loss: float) -> cases.Row:
        names = {"variant": variant, "seed": seed, "learning_rate": rate}
        return names | {"training_losses": [9.0, loss], "perplexity": 2 * loss}

    one_rate = [row("rmt", seed, 0.01, 2.0) for seed in (0, 1)]
    assert peers_text.rates_tried(one_rate) == []
    two = [row("lstm", 0, 0.01, 1.5), row("lstm", 0, 0.005, 1.25), row("lstm", 1, 0.01, 1.0)]
    assert peers_text.rates_tried(one_rate + two)[1].splitlines()[2:] == [
        "| lstm | 0 | 0.005: 1.250 and 2.500, 0.01: 1.500 and 3.000 |"
    ]


def test_books_are_held_out_whole() -> None:
    books = texts.texts("books")
    assert len(books.held_out) == len(texts.HELD_OUT_BOOKS)
    assert {len(text) for text in books.trained}.isdisjoint(len(text) for text in books.held_out)


def write_packages(directory: Path, count: int) -> None:
    for number in range(count):
        package = directory / f"package_{number}"
        (package / "inner").mkdir(parents=True)
        (package / "__init__.py").write_text(f"# {number}\n")
        (package / "inner" / "code.py").write_text("x = 1\n" * (texts.LEAST_BYTES // 6))
    (directory / "stray.py").write_text("left out\n")


def test_a_package_is_one_document(tmp_path: Path) -> None:
    write_packages(tmp_path / "packages", 9)
    (tmp_path / "packages" / "small").mkdir()
    (tmp_path / "packages" / "small" / "__init__.py").write_text("")
    found = texts.texts(str(tmp_path / "packages"))
    assert (found.name, len(found.trained), len(found.held_out)) == ("packages", 8, 1)
    text = found.held_out[0].tobytes()
    assert text.startswith(b"# package_4/__init__.py\n# 4\n\n# package_4/inner/code.py\nx = 1\nx = 1\n")


def test_nothing_to_train_and_excerpts_that_are_too_long_are_one_clear_line(image_directory: Path) -> None:
    with pytest.raises(SystemExit, match="nothing to train"):
        pixels.main(["--scale", "tiny", "--images", str(image_directory), "--rows", "nobody"])
    with pytest.raises(SystemExit, match="no document is longer than an excerpt of 100,000,000 bytes"):
        texts.excerpts(texts.texts("books").held_out, 1, 100_000_000, np.random.default_rng(0))


def test_too_few_documents_are_one_clear_line(tmp_path: Path) -> None:
    write_packages(tmp_path, 3)
    with pytest.raises(SystemExit, match="3 documents of at least 50,000 bytes"):
        long_text.main(["--documents", str(tmp_path), "--quick"])


def test_long_text_goes_on_and_adds_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--quick", "--steps", "2", "--width", "16", "--lanes", "2", "--out", str(tmp_path / "result")]
    long_text.main([*words, "--horizons", "4"])
    first = json.loads((tmp_path / "result.json").read_text())
    assert [long_text.label(row) for row in first["rows"]] == ["no slots", "T = 4, off"]
    assert first["rows"][0]["perplexity"] == first["rows"][0]["perplexity_memory_reset"]
    assert [place["from"] for place in first["rows"][1]["by_position"]] == [0, 16, 32, 64, 128, 256]
    capsys.readouterr()
    long_text.main([*words, "--horizons", "4", "--seeds", "0", "1", "--jobs", "2"])
    assert "2 of 4 models" in capsys.readouterr().out
    second = json.loads((tmp_path / "result.json").read_text())
    assert [row["seed"] for row in second["rows"]] == [0, 0, 1, 1]
    assert second["rows"][:2] == first["rows"]
    assert {row["commit"] for row in second["rows"]} == {second["commit"]}
    assert "| T = 4, off, reset |" in (tmp_path / "result.md").read_text()
    with pytest.raises(SystemExit, match="rows of other sizes \\(length\\)"):
        long_text.main([*words, "--length", "1024"])


def test_optimizers_are_judged_at_their_best_rate(tmp_path: Path) -> None:
    """By the training loss with states in float32; a second call adds the other states."""
    words = ["--quick", "--steps", "2", "--width", "16", "--lanes", "2", "--out", str(tmp_path / "result")]
    words += ["--optimizers", "muon", "--rates", "1e-3", "1e-2"]
    optimizers.main([*words, "--states", "float32"])
    optimizers.main(words)
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert [(row["states"], row["learning_rate"]) for row in rows] == [
        (states, rate) for states in optimizers.STATES for rate in (1e-3, 1e-2)
    ]
    best = min(rows[:2], key=lambda row: row["training_losses"][-1])["learning_rate"]
    text = (tmp_path / "result.md").read_text()
    assert all(f"| muon, states in {states} | {best:g} |" in text for states in optimizers.STATES)


def test_streams_are_held_against_that_in_float32(tmp_path: Path) -> None:
    words = ["--quick", "--steps", "2", "--width", "16", "--layers", "1", "1", "--lanes", "2"]
    residual_dtype.main([*words, "--streams", "float32", "compute", "--out", str(tmp_path / "result")])
    plain, narrow = json.loads((tmp_path / "result.json").read_text())["rows"]
    text, difference = (tmp_path / "result.md").read_text(), narrow["test_loss"] - plain["test_loss"]
    assert "| bf16, stream in float32 |" in text and "| +0.0000 | +0.0000 |" in text
    assert (
        f"| {difference:+.4f} | {difference:+.4f} |" in text and plain["training_losses"] != narrow["training_losses"]
    )


def test_sums_in_bfloat16_differ_from_the_second_segment_on(tmp_path: Path) -> None:
    words = ["--quick", "--steps", "2", "--width", "16", "--layers", "1", "1", "--lanes", "2", "--test-length", "128"]
    gradient_accumulation.main([*words, "--step-segments", "2", "--seeds", "0", "--out", str(tmp_path / "result")])
    plain, narrow = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert (plain["sums"], narrow["sums"]) == ("float32", "bfloat16") and "errors" not in narrow
    one, four = plain["errors"]
    assert (one["segments"], one["of_sums"]) == (1, 0) and 0 < four["of_sums"] < four["of_both"] < 0.1
    assert f"| 4 | {four['of_sums']:.1e} | {four['of_bf16']:.1e} |" in (tmp_path / "result.md").read_text()


def test_horizons_differ_in_the_gradient_alone() -> None:
    """Same losses with the first weights; gradients of T = 1 and 4 differ, of T = 4 in one part and in all do not."""
    options = long_text.parse(["--quick"])
    case = {"horizon": 4, "slots": 4, "forgetting": "paper", "seed": 0}
    documents = texts.texts("books").trained
    rollout = next(texts.rollouts(documents, 2, 128, 4, options.segment_length, seed=0))
    losses, gradients = {}, {}
    for horizon in (1, 2, 4, None):
        torch.manual_seed(0)
        copy = long_text.make_reader(options, case)
        recipe = Recipe(1, 1e-12, clip=math.inf, horizon=horizon)
        losses[horizon] = train(copy, iter([rollout]), recipe).losses
        gradients[horizon] = {name: p.grad for name, p in copy.module.named_parameters() if p.grad is not None}
    assert losses[1] == pytest.approx(losses[4], rel=1e-6)
    for name, gradient in gradients[4].items():
        torch.testing.assert_close(gradients[None][name], gradient)
    writer = "writer.query.weight"
    assert gradients[1][writer].abs().max() == 0
    assert gradients[2][writer].abs().max() > 0
    assert not torch.allclose(gradients[2][writer], gradients[4][writer])


def test_horizons_divide_the_segments_of_a_step(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        long_text.parse(["--horizons", "3"])
    assert stopped.value.code == 2
    assert "choose a divisor" in capsys.readouterr().err
