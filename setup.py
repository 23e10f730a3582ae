# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Lets tools that look for a setup.py install the project; all that there is to declare stands in pyproject.toml."""

from setuptools import setup

setup()
