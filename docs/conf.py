# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Sphinx over the Markdown of this checkout, as it is, and over the docstrings: `make docs`.

The source directory is the checkout's top, so that the links between its pages hold in the site as they do in a viewer
of Markdown.
"""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

project = "Memformer"
author = copyright = "the Memformer authors of this repository"
version = release = re.findall(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[0]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
include_patterns = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "docs/**"]
root_doc = "docs/index"
myst_heading_anchors = 4
"""Links to headings (`page.md#a-heading`) are checked, too."""


def commit() -> str:
    """What the pages are of: ` (1a2b3c4d)`, with a + where files differ from it; nothing at the version's own tag."""
    if not (ROOT / ".git").exists():  # an archive
        return ""
    git = ["git", "-C", str(ROOT)]
    words = (
        [*git, "describe", "--always", "--exclude=*", "--dirty=+", "--abbrev=8"],
        [*git, "tag", "--points-at=HEAD"],
    )
    described, tags = (
        subprocess.run(each, capture_output=True, text=True, timeout=60).stdout.split() for each in words
    )
    if not described or (f"v{version}" in tags and not described[0].endswith("+")):
        return ""
    return f" ({described[0]})"


html_theme = "furo"
html_title = f"Memformer {version}{commit()}"
"""At the top of every page's list of pages."""
html_copy_source = False

autodoc_member_order = "groupwise"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring, napoleon_numpy_docstring, napoleon_use_ivar = True, False, True
default_role = "code"
"""A word in single backticks, as everywhere in these docstrings."""

os.environ.setdefault("OMP_NUM_THREADS", "1")
for package in ("memformer", "memformer.replay", "memformer.training", "memformer.inference", "data_pipeline"):
    module = importlib.import_module(package)
    # Packages import what they show when it is asked for; autodoc looks at what is there.
    vars(module).update({name: getattr(module, name) for name in module.__all__})
