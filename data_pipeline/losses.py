# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Counts the documents of a build whose text does not come back from its tokens, and refuses the tokenizer for them."""

from data_pipeline.errors import UserError
from data_pipeline.hf_tokenizer import HFTokenizer
from data_pipeline.tokenizer import TokenIds, Tokenizer

_MOST = 100  # so many say enough of a tokenizer
_SHOWN_CHARACTERS = 12


class Losses:
    """What a tokenizer does not give back.

    Args:
        tokenizer: The tokenizer.
        spec: What `--tokenizer` names.

    Attributes:
        count: Documents that do not come back whole. From the first on nothing is written: the build goes on only to
            count them.
    """

    def __init__(self, tokenizer: Tokenizer, spec: str) -> None:
        self._tokenizer, self._spec = tokenizer, spec
        self.count = 0
        self._documents = self._before = 0
        self._lost, self._first = False, ""

    def saw(self, name: str, text: str | bytes, ids: TokenIds, lost: int | None, last: bool) -> None:
        """Takes note of a document, or of a part of one.

        Args:
            name: The document's name for people.
            text: The document or part.
            ids: Its tokens.
            lost: The first character that they do not give back (`Tokenizer.first_loss`); None: there is none.
            last: Whether the document ends here.

        Raises:
            UserError: There are so many by now that it is no use to go on.
        """
        if lost is not None and isinstance(text, str):
            if not self._first:
                end = lost + _SHOWN_CHARACTERS
                self._first = (
                    f"{name}, where {text[lost:end]!r} at character {self._before + lost} comes back as "
                    f"{self._tokenizer.decode(ids)[lost:end]!r}"
                )
            self._lost = True
        self._before += len(text)
        if last:
            self._documents += 1
            self.count += self._lost
            self._before, self._lost = 0, False
        if self.count == _MOST:
            self.refuse()

    def refuse(self) -> None:
        """Raises UserError if a document was lost."""
        if not self.count:
            return
        kind = f" ({self._tokenizer.description})" if isinstance(self._tokenizer, HFTokenizer) else ""
        many = f"{self.count:,}" + (" or more" if self.count == _MOST else "")
        raise UserError(
            f"tokenizer {self._spec}{kind} does not give back {many} of {self._documents:,} documents: the first is "
            f"{self._first}; give a tokenizer that keeps all of a text, or leave these documents out"
        )
