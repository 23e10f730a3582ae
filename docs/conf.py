# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Sphinx over the Markdown of this checkout, as it is, and over the docstrings: `make docs`.

The source directory is the checkout's top, so that the links between its pages hold in the site as they do in a viewer
of Markdown.
"""

import importlib
import os
import re
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

html_theme = "furo"
html_title = f"Memformer {version}"
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
