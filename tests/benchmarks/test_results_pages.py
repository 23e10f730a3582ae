# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""docs/results is what the result files give, drift is noticed, and every benchmark is in the quick round."""

import dataclasses
import json
from pathlib import Path

import pytest

from benchmarks import common, pixels, quick, results_pages
from benchmarks.common import ROOT
from benchmarks.plots import DIGEST, Plot, Series
from benchmarks.results_pages import drifted, newest, origin_of, pages

PLOT = Plot("a title", "x", "y", [Series("one", [1, 2, 4], [3.0, 2.5, 0.25]), Series("two", [1, 2], [1.0, 1.0])])


@pytest.mark.parametrize("path", newest().values(), ids=lambda path: path.stem)
def test_result_files_say_when_where_and_how(path: Path) -> None:
    origin = origin_of(json.loads(path.read_text()))
    assert path.stem.startswith(origin["date"][:4])
    assert origin["hardware"] and origin["commit"] and origin["torch"]
    script = ROOT / "benchmarks" / f"{results_pages.script_of(json.loads(path.read_text()))}.py"
    assert script.is_file()
    assert "/" not in origin["command"].removeprefix("python benchmarks/").partition(" ")[0]


def test_drift_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed number, a plot of other data, a page that is missing, and one of no result file."""
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(results_pages, "PAGES", tmp_path)
    texts, drawn = {"a.md": "1\n", "b.md": "2\n"}, {"a-1.svg": PLOT}
    assert drifted(texts, drawn) == ["a.md", "b.md", "a-1.svg"]
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "a-1.svg").write_text(PLOT.svg())
    assert drifted(texts, drawn) == []
    (tmp_path / "c.md").touch()
    (tmp_path / "b.md").write_text("3\n")
    other = dataclasses.replace(PLOT, series=[Series("one", [1, 2, 4], [3.0, 2.5, 0.26]), PLOT.series[1]])
    assert drifted(texts, {"a-1.svg": other}) == ["b.md", "a-1.svg", "c.md"]


def test_a_plot_is_the_same_bytes_each_time_and_names_its_data() -> None:
    pytest.importorskip("matplotlib")
    drawn = PLOT.svg()
    assert drawn == PLOT.svg() and drawn.startswith("<?xml")
    found = DIGEST.search(drawn)
    assert found is not None and found[1] == PLOT.digest


def test_every_page_has_its_plots_and_numbers() -> None:
    texts, drawn = pages()
    assert set(texts) == {f"{kind}.md" for kind in newest()} | {"README.md"}
    for name in drawn:
        assert f"]({name})" in "".join(texts.values())
    for name in texts:
        assert name == "README.md" or f"({name})" in texts["README.md"]


def test_what_is_not_installed_is_not_run_and_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "PACKAGE", tmp_path / "nowhere")
    assert quick.run("pixels", tmp_path, 60) == "not run: Fashion-MNIST is not installed (make images)"


def test_every_benchmark_with_a_small_version_is_in_the_quick_round(tmp_path: Path) -> None:
    scripts = {path.stem: path.read_text() for path in (ROOT / "benchmarks").glob("*.py")}
    marks = '"--quick", action', "add_options(parser", "add_measuring_options(parser", "add_sizes(parser"
    small = {name for name, text in scripts.items() if any(mark in text for mark in marks)}
    assert set(quick.SCRIPTS) == small - {"cases", "common", "text_runs"}  # which have the options that others share
    assert quick.run("nothing", tmp_path, 60).startswith("failed: ")
    assert quick.run("replay", tmp_path, 0.1) == "failed: took more than the 0 s that were left"


def test_no_result_names_a_place_of_the_machine_that_it_was_measured_on() -> None:
    assert common._placed(["--seeds", "0", "--out", "/somewhere/2026-01-01-cpu-x"])[-1] == (
        "benchmarks/results/2026-01-01-cpu-x"
    )
    assert common._placed(["--out", "runs/x", "--json"]) == ["--out", "runs/x", "--json"]
    assert common._placed(["--notes", "a remark", "--json"]) == ["--json"]
    for path in results_pages.RESULTS.glob("*.json"):
        assert "--out /" not in path.read_text(), path
