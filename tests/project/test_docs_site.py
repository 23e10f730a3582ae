# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The site is built of pages and docstrings without a warning (links are checked), and what the pages say is true."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from launch.cli import COMMANDS
from memformer.config.schema import load_config, schema_of, settings_of
from memformer.planning import make_plan
from tests import ROOT

DOCS = ROOT / "docs"
PAGES = ("memory-replay.md", "sizes.md", "coming-from.md", "troubleshooting.md")


@pytest.mark.slow
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
    assert all(page.replace(".md", ".html") in start for page in PAGES)


def test_figures_of_sizes_are_the_plans() -> None:
    table = re.search(r"sizes:begin -->\n(.*?)<!-- sizes:end", (DOCS / "sizes.md").read_text(), re.DOTALL)
    assert table
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[1].splitlines()[2:]]
    assert len(rows) == 4
    for segments, interval, tokens, *figures in rows:
        said = [f"--data.num_segments={segments}", f"--activation_checkpointing.memory_interval={interval}"]
        config = load_config(ROOT / "configs" / "parallel" / "1.3b-on-8.yaml", said)
        plan = make_plan(config, config.model, 1, 8, "h100")
        memory = plan.device_memory
        found = [f"{memory['total'] / 1e9:.1f}", f"{memory['replay buffer'] / 1e9:.3f}"]
        assert figures == [*found, f"{plan.step_seconds:.1f}", f"{plan.tokens_per_second:,.0f}"]
        assert tokens == f"{int(segments) * config.data.segment_length:,}"


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
