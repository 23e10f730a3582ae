# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The site is built of pages and docstrings without a warning (links are checked), and what the pages say is true."""

import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launch.cli import COMMANDS
from memformer.config.schema import load_config, schema_of, settings_of
from memformer.models.sizes import advance_share
from memformer.planning import make_plan
from tests import ROOT

DOCS = ROOT / "docs"
PAGES = ("memory-replay.md", "sizes.md", "coming-from.md", "troubleshooting.md")


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info < (3, 11), reason="Sphinx 9 needs Python 3.11")
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs", ".", str(tmp_path / "site")]
    done = subprocess.run(
        [*words, "-d", str(tmp_path / "trees")], cwd=ROOT, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    api = (tmp_path / "site" / "docs" / "api.html").read_text()
    for name in ("memory_replay_backward", "bptt_backward", "load_model", "SegmentStream", "Callback", "build_dataset"):
        assert re.search(rf'id="[\w.]*\b{name}"', api), f"{name} is not in the reference"
    start = (tmp_path / "site" / "docs" / "index.html").read_text()
    head = subprocess.run(["git", "rev-parse", "--short=8", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    brand = re.search(r'sidebar-brand-text">([^<]*)<', start)
    assert brand and re.fullmatch(rf"Memformer [\d.]+( \({head.strip()}\+?\))?", brand[1])
    assert all(page.replace(".md", ".html") in start for page in (*PAGES, "comparison.md"))


def rows_of(page: str, name: str) -> list[list[str]]:
    """The cells of a table that stands between marks."""
    table = re.search(rf"{name}:begin -->\n(.*?)<!-- {name}:end", (DOCS / page).read_text(), re.DOTALL)
    assert table
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[1].splitlines()[2:]]


def test_figures_of_sizes_are_the_plans() -> None:
    rows = rows_of("sizes.md", "sizes")
    assert len(rows) == 4
    for segments, interval, tokens, *figures in rows:
        said = [f"--data.num_segments={segments}", f"--activation_checkpointing.memory_interval={interval}"]
        config = load_config(ROOT / "configs" / "parallel" / "1.3b-on-8.yaml", said)
        plan = make_plan(config, config.model, 1, 8, "h100")
        memory = plan.device_memory
        found = [f"{memory['total'] / 1e9:.1f}", f"{memory['replay buffer'] / 1e9:.3f}"]
        assert figures == [*found, f"{plan.step_seconds:.1f}", f"{plan.tokens_per_second:,.0f}"]
        assert tokens == f"{int(segments) * config.data.segment_length:,}"


EIGHT_BILLION = ROOT / "configs" / "parallel" / "8b-memory-on-8.yaml"


@pytest.mark.slow
def test_figures_of_an_8b_are_the_plans() -> None:
    rows = rows_of("backbones.md", "8b")
    assert len(rows) == 6
    for said, *figures in rows:
        values = re.findall(r"`([\w.]+): (\w+)`", said)
        named = [f"--{name if '.' in name else f'parallel.{name}'}={value}" for name, value in values]
        config = load_config(EIGHT_BILLION, named)
        assert "as in the file" not in said or config == load_config(EIGHT_BILLION, [])
        plan = make_plan(config, config.model, 1, 8, "h100")
        assert figures == [f"{plan.device_memory['total'] / 1e9:.1f}", f"{plan.step_seconds:.1f}"], said


def test_the_file_of_an_8b_says_what_the_page_says() -> None:
    figures = [[*map(float, row[1:])] for row in rows_of("backbones.md", "8b")]
    said = re.findall(r"([\d.]+) GB(?: a GPU)?, ([\d.]+) s", EIGHT_BILLION.read_text())
    assert said == [(f"{gigabytes:.0f}", f"{seconds}") for gigabytes, seconds in (figures[0], figures[3])]


def test_what_a_memory_of_an_8b_depends_on_is_as_computed() -> None:
    model: Any = load_config(EIGHT_BILLION, []).model
    sizes = model.to_dict() | {"overlap": 256}
    rows = rows_of("backbones.md", "advance")
    assert len(rows) == 8
    for memory, _, *figures in rows:
        kind, count = memory.split(",")[0], [int(each) for each in re.findall(r" (\d+)", memory)]
        settings: dict[str, Any] = {"kind": kind}
        if kind == "associative" and "last" in memory:
            settings |= {"d_key": 32, "layers": [0, 1, 2, count[-1]]}
        elif kind == "associative":
            settings |= {"d_key": 32, "layers": None}
        else:
            settings |= {"num_slots": count[0]} | ({"write_layer": count[1]} if kind == "slots" else {})
        config = type(model).from_dict(sizes | {"memory": settings})
        share = advance_share(config, 1024)
        speeds = [f"{c / (c + share * 7 / 8):.2f}" for c in (3, 2)]
        assert figures == [f"{share:.2f}", *speeds, f"{4 * math.prod(config.memory_shape) / 1e6:.1f} MB"], memory


def test_settings_and_commands_that_the_pages_name_are_there() -> None:
    settings = {name for family in ("memformer", "backbone") for name, _ in settings_of(schema_of(family))}
    for page in PAGES:
        text = (DOCS / page).read_text()
        sections = "|".join({name.split(".")[0] for name in settings if "." in name})
        named = set(re.findall(rf"`(?:--)?((?:{sections})\.[a-z_0-9.]+)", text))
        assert named and named <= settings, f"{page}: {sorted(named - settings)}"
        commands = set(re.findall(r"`?memformer ([a-z][a-z-]+)", text))
        assert commands <= set(COMMANDS), f"{page}: {sorted(commands - set(COMMANDS))}"


def test_messages_that_are_explained_are_those_of_the_program() -> None:
    sources = "\n".join(
        path.read_text()
        for folder in ("data_pipeline", "memformer", "launch")
        for path in (ROOT / folder).rglob("*.py")
    )
    sources = re.sub(r'"\s*\n\s*f?"', "", sources)  # a line's pieces
    text = (DOCS / "troubleshooting.md").read_text()
    quoted = [words for words in re.findall(r"^\| `([^`]+)`", text, re.MULTILINE) if " " in words]
    assert len(quoted) >= 6
    for words in quoted:
        for piece in words.split("..."):
            assert len(piece.strip(" ?")) < 4 or piece.strip(" ?") in sources, f"{words}: nothing says {piece!r}"


def test_every_cell_of_the_comparison_has_a_verdict_and_a_source() -> None:
    """Ours leads to a file that is here, those of others to a file at the commit that the page names."""
    text = (DOCS / "comparison.md").read_text()
    commits = dict(
        re.findall(r"^\| \[[^]]+\]\((https://github.com/[^/]+/[^/]+)/tree/([0-9a-f]{40})\)", text, re.MULTILINE)
    )
    sources = dict(re.findall(r"^\[(\w+)\]: (\S+)$", text, re.MULTILINE))
    rows = [line.strip("|").split(" | ") for line in text.splitlines() if re.match(r"\| .* \| (yes|partly|no): ", line)]
    assert len(commits) == 9 and len(rows) >= 24
    for name, *cells in rows:
        assert len(cells) == 6, name
        for cell in cells:
            assert re.match(r"(yes|partly|no): .*\]([(]|\[\w)", cell), f"{name}: {cell}"
        for place in re.findall(r"\]\(([^)#]+)", cells[0]):
            assert (DOCS / place).exists(), f"{name}: {place}"
        assert not re.search(r"\]\(", " ".join(cells[1:])), f"{name}: a source without its commit"
    used = set(re.findall(r"\]\[(\w+)\]", text))
    assert used == set(sources)
    for source in sources.values():
        repository, commit = re.match(
            r"(https://github.com/[^/]+/[^/]+)/(?:blob|tree)/([0-9a-f]{40})/", source
        ).groups()  # type: ignore[union-attr]
        assert commits[repository] == commit, source
