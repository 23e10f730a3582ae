# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What stands between the facts of a document: excerpts of texts, or sentences that are repeated; whole words."""

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from data_pipeline.errors import UserError
from data_pipeline.records import Corpus
from data_pipeline.sources import BOOKS, find_files
from data_pipeline.tasks.task import Random, Task

Stream = Callable[[int], str]
"""At most so many characters of one endless text, whole words; fewer are the beginning of more."""

_BLANK = re.compile(r"\s")
_NEAR = 1 << 12  # characters in which a blank is looked for


class Texts:
    """Texts of the user, excerpts of which are the haystack.

    Args:
        sources: Files and directories, as `data build` takes them; none: the books that ship with the project.

    Raises:
        UserError: They cannot be read, or hold hardly a word.
    """

    def __init__(self, sources: Sequence[str | Path] = ()) -> None:
        if not sources and not BOOKS.is_dir():
            raise UserError("the books that ship with the project are not here: name a text with --text FILE")
        parts = Corpus(find_files(sources or [BOOKS]).files).parts()
        texts = (part.content + "\n" * part.last for part in parts if isinstance(part.content, str))
        self.text = "".join(texts).strip()
        if len(self.text.split(maxsplit=2)) < 2:
            shown = ", ".join(map(str, sources))
            raise UserError(f"--text {shown}: holds no two words to stand between facts: name a longer text")

    def stream(self, random: Random) -> Stream:
        """An excerpt from a random word on; past the end it goes on at the beginning."""
        start = int(random.integers(len(self.text)))
        blank = _BLANK.search(self.text, start)
        return _endless(self.text, blank.end() if blank else 0)


def texts_for(tasks: Iterable[Task], lengths: Iterable[int], sources: Sequence[str | Path]) -> Texts | None:
    """The texts that documents of these tasks and lengths need; None: they need none.

    Raises:
        UserError: See `Texts`; or there are sources that no task takes anything from.
    """
    if any(task.filler == "text" for task in tasks) and any(lengths):
        return Texts(sources)
    if sources:
        raise UserError(f"--text {sources[0]}: none of these tasks hides anything in a text: leave it out")
    return None


def repeated(sentences: str) -> Stream:
    """These sentences again and again."""
    return _endless(sentences, 0)


def _endless(text: str, start: int) -> Stream:
    def first(characters: int) -> str:
        pieces, left, at = [], characters + 1, start  # with one more character, a word is seen to end
        while left > 0:
            piece = text[at : at + left]
            pieces.append(piece)
            left -= len(piece) + (1 if at + len(piece) == len(text) else 0)
            at = 0
        found = " ".join(pieces)[: max(0, characters) + 1]
        return found[: last_blank(found, len(found))].strip()

    return first


def last_blank(text: str, end: int) -> int:
    """Place of the last blank before `end`; 0: there is none."""
    reach = _NEAR
    while True:
        begin = max(0, end - reach)
        for at in range(end - 1, begin - 1, -1):
            if text[at].isspace():
                return at
        if begin == 0:
            return 0
        end = begin
