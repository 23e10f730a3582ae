# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Figures that others have published for tasks of memory, to stand beside ours; each with its paper and table.

They are of other models, tokens and sentences: they say what the field calls good, and are not to be compared row by
row with ours. Each figure was read in the source that is named.
"""

import dataclasses
from collections.abc import Sequence

from benchmarks.common import markdown_table


@dataclasses.dataclass(frozen=True)
class Published:
    """A table of a paper, or a part of it.

    Attributes:
        task: What is asked.
        source: Authors, year, paper, table, and where it was read.
        columns: Names of the columns behind the model's.
        rows: Model and its figures, as printed there; empty where there are none.
    """

    task: str
    source: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    def markdown(self) -> str:
        """Heading, source and table."""
        return f"{self.task}. {self.source}\n\n{markdown_table(['published', *self.columns], self.rows)}"


PUBLISHED = (
    Published(
        "Pass key, token accuracy in % with the key at the start / middle / end",
        "Munkhdalai, Faruqui and Gopal, 2024, *Leave No Context Behind* (arXiv:2404.07143), table 3: a model of 1B.",
        ("32K", "128K", "256K", "512K", "1M"),
        (
            (
                "Infini-Transformer (Linear), not tuned on the task",
                *("14/13/98", "11/14/100", "6/3/100", "6/7/99", "8/6/98"),
            ),
            (
                "Infini-Transformer (Linear), tuned on 5K for 400 steps",
                *("100/100/100", "100/100/100", "100/100/100", "97/99/100", "96/94/100"),
            ),
            (
                "Infini-Transformer (Linear + Delta), tuned on 5K for 400 steps",
                *("100/100/100", "100/100/99", "100/100/99", "100/100/100", "100/100/100"),
            ),
        ),
    ),
    Published(
        "BABILong, QA1 (one supporting fact) and QA2 (two), exact match in %",
        "Rodkin, Kuratov, Bulatov and Burtsev, 2024, *Associative Recurrent Memory Transformer* (arXiv:2407.04841), "
        "table 1: tuned on up to 16K, GPT-4 asked with examples.",
        ("64K", "128K", "500K", "1M", "10M"),
        (
            ("QA1: GPT-4", "30.0", "24.0", "", "", ""),
            ("QA1: RMT (137M)", "99.6", "99.1", "96.4", "94.2", "76.4"),
            ("QA1: Mamba (130M)", "100", "99.5", "92.3", "", ""),
            ("QA1: ARMT (145M)", "100", "99.9", "99.3", "98.5", "89.4"),
            ("QA2: GPT-4", "4.0", "8.0", "", "", ""),
            ("QA2: RMT (137M)", "72.7", "56.3", "32.0", "25.5", "16.2"),
            ("QA2: Mamba (130M)", "95.0", "86.7", "", "", ""),
            ("QA2: ARMT (145M)", "100", "99.8", "99.4", "99.4", "84.4"),
        ),
    ),
    Published(
        "RULER, mean of 13 tasks in %; *effective*: the longest that is above 85.6, Llama 2 7B's at 4K",
        "Hsieh et al., 2024, *RULER* (arXiv:2404.06654), table of the README of github.com/NVIDIA/RULER at commit "
        "0193bdd0abf6.",
        ("claimed", "effective", "4K", "16K", "32K", "128K"),
        (
            ("Jamba-1.5-large (94B/398B)", "256K", "> 128K", "96.7", "96.4", "96.0", "95.1"),
            ("Gemini-1.5-pro", "1M", "> 128K", "96.7", "96.0", "95.9", "94.4"),
            ("GPT-4-1106-preview", "128K", "64K", "96.6", "95.2", "93.2", "81.2"),
            ("Llama 3.1 (70B)", "128K", "64K", "96.5", "95.4", "94.8", "66.6"),
            ("Llama 3.1 (8B)", "128K", "32K", "95.5", "91.6", "87.4", "77.0"),
            ("Qwen2 (72B)", "128K", "32K", "96.9", "94.9", "94.1", "53.7"),
            ("Mistral (7B)", "32K", "16K", "93.6", "87.2", "75.4", "13.8"),
        ),
    ),
)
