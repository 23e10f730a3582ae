# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""TensorBoard's files, read by TensorBoard itself."""

import struct
import time
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from memformer.run.board import Board


def read(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder), size_guidance={"images": 0})
    found.Reload()
    return found


def test_numbers_and_pictures_are_read_by_tensorboard(tmp_path: Path) -> None:
    figure: Any = pytest.importorskip("matplotlib.figure").Figure(figsize=(3, 2), dpi=50)
    board = Board(tmp_path / "tensorboard", first_step=1)
    board.add_scalars(1, {"train/loss": 2.5, "train/part/a": 1})
    board.add_scalars(2, {"train/loss": 1.5})
    board.add_figure("memory/shares", figure, 2)
    board.add_text("settings", "    seed: 1", 2)
    found = read(tmp_path / "tensorboard")  # before it is closed: a killed run loses nothing that it reported
    assert [(each.step, each.value) for each in found.Scalars("train/loss")] == [(1, 2.5), (2, 1.5)]
    assert found.Tags()["scalars"] == ["train/loss", "train/part/a"]
    (text,) = found.Tensors("settings/text_summary")
    assert (text.step, text.tensor_proto.string_val[0]) == (2, b"    seed: 1")
    (picture,) = found.Images("memory/shares")
    assert (picture.step, picture.width, picture.height) == (2, 150, 100)
    assert struct.unpack(">II", picture.encoded_image_string[16:24]) == (150, 100), "as the PNG says"


def test_a_later_life_takes_back_what_it_trains_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_700_000_000.09)
    first = Board(tmp_path, first_step=1)
    for step in range(1, 6):
        first.add_scalars(step, {"loss": 1.0})
    first.close()
    # The same second still, and one digit more of microseconds: the order of the files' names has to hold.
    monkeypatch.setattr(time, "time", lambda: 1_700_000_000.11)
    second = Board(tmp_path, first_step=4)
    second.add_scalars(4, {"loss": 2.0})
    second.close()
    found = [(each.step, each.value) for each in read(tmp_path).Scalars("loss")]
    assert found == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0)]
