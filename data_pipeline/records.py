# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Reads the documents of source files, and deals with records that cannot be read: the build stops, or counts them.

A file that is damaged or cannot be opened, or that is of another kind than it was taken for, always stops the build:
nobody can tell how much of it would be missing.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from difflib import get_close_matches
from typing import Any, BinaryIO

from data_pipeline.errors import UserError
from data_pipeline.large_files import (
    UTF16_MARKS,
    UTF16_MEND,
    NotText,
    image_documents,
    parquet_rows,
    text_parts,
)
from data_pipeline.loss_weights import USUAL_KEY, WeightedRange, parse_ranges
from data_pipeline.packed import damage_errors, open_unpacked, packing_of
from data_pipeline.sources import SourceFile, printable

_PLACES_KEPT = 10
_KEYS_SHOWN = 8
_KEY_CHARACTERS = 40
_ALIKE = 0.8  # difflib's ratio, from which on a key is another one mistyped
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_MEND = "mend it, or leave such records out with --on-bad-record skip"


@dataclass(frozen=True)
class RecordKeys:
    """Where a record of JSON or a row of Parquet has what is read of it.

    Attributes:
        text: Key of the text.
        id: Key of the document's name for people; None: `id`, in records that have one.
        loss_weights: Key of the text's loss weights, in JSON's records that have it; None: they are not read.
    """

    text: str = "text"
    id: str | None = None
    loss_weights: str | None = None


@dataclass(frozen=True)
class Part:
    """A document, or a part of a long one: parts of a document follow each other, and the last says so.

    `name` is for people (relative path, or `id`) and not always unique; `content` is text, or raw bytes of an image;
    `weights` are the loss weights of a whole document, None where it has none; `unread_weights`: it seems to have some,
    and they were not asked for.
    """

    name: str
    content: str | bytes
    last: bool = True
    weights: tuple[WeightedRange, ...] | None = None
    unread_weights: bool = False


class BadRecords:
    """What becomes of records that cannot be read.

    Args:
        skip: Leave them out, rather than stop at the first.

    Attributes:
        count: Records left out.
        places: The first of them: file, line and what is wrong.
    """

    def __init__(self, skip: bool = False) -> None:
        self.skip = skip
        self.count = 0
        self.places: list[str] = []

    def found(self, file: SourceFile, place: str, problem: str) -> None:
        """Counts one.

        Raises:
            UserError: They are not to be left out.
        """
        if not self.skip:
            raise UserError(f"source {file.shown}{place}: {problem}; {_MEND}")
        self.count += 1
        if len(self.places) < _PLACES_KEPT:
            self.places.append(f"{file.name}{place}: {problem}")


class Corpus:
    """The source files of a build, to be read as often as wanted, the same way each time.

    Args:
        files: In the order in which they are read.
        keys: Where records have their text.
        skip_bad: Leave out records that cannot be read, rather than stop at the first.

    Attributes:
        bad: What the reading under way, or the last one, has left out.
        weighted: Documents with loss weights in it.
        unread_weights: Documents in it that seem to have some, which were not asked for.
    """

    def __init__(self, files: Sequence[SourceFile], keys: RecordKeys | None = None, skip_bad: bool = False) -> None:
        self.files = files
        self.bad = BadRecords(skip_bad)
        self.weighted = self.unread_weights = 0
        self._keys = keys or RecordKeys()

    def parts(self) -> Iterator[Part]:
        """Every document, one file at a time and long texts part by part; an empty document is yielded too.

        Raises:
            UserError: A file cannot be read, or has a bad record where these stop a build; names the file and the
                place.
        """
        self.bad = BadRecords(self.bad.skip)
        self.weighted = self.unread_weights = 0
        for file in self.files:
            try:
                for part in _documents(file, self._keys, self.bad):
                    self.weighted += part.weights is not None
                    self.unread_weights += part.unread_weights
                    yield part
            except damage_errors() as error:
                packing = packing_of(file.path) or "source"
                if "too much memory" in str(error):
                    reason = f"its {packing} window is longer than 2 GiB; pack it again with --long=31 or less"
                    raise UserError(f"source {file.shown}: {reason}") from None
                raise UserError(f"source {file.shown}: damaged {packing} file ({error}); fetch it again") from None
            except OSError as error:
                raise UserError(f"source {file.shown}: cannot be read ({error.strerror or error})") from None


def _documents(file: SourceFile, keys: RecordKeys, bad: BadRecords) -> Iterator[Part]:
    if file.kind == "parquet":
        yield from _rows(file, keys, bad)
    elif file.kind == "images":
        with open_unpacked(file.path) as stream:
            images = image_documents(stream, file.shown)
            yield from (Part(f"{file.name}:{number}", pixels) for number, pixels in enumerate(images))
    elif file.kind == "json":
        with open_unpacked(file.path) as stream:
            yield from _json_documents(file, stream, keys, bad)
    else:
        yield from _text(file, bad)


def _text(file: SourceFile, bad: BadRecords) -> Iterator[Part]:
    if bad.skip:  # no part of a document may be given away before it is known that all of it is text
        try:
            with open_unpacked(file.path) as stream:
                for _ in text_parts(stream):
                    pass
        except NotText as error:
            bad.found(file, "", str(error))
            return
    try:
        with open_unpacked(file.path) as stream:
            for text, last in text_parts(stream):
                yield Part(file.name, text, last)
    except NotText as error:
        raise UserError(f"source {file.shown}: {error}; {_MEND}") from None


def _rows(file: SourceFile, keys: RecordKeys, bad: BadRecords) -> Iterator[Part]:
    for number, name, content in parquet_rows(file.path, file.shown, keys.text, keys.id, keys.loss_weights):
        place = f" row {number}"
        if content is None:
            bad.found(file, place, f'needs a string in the column "{keys.text}", not null')
            continue
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError as error:
            bad.found(file, place, f'its "{keys.text}" is not UTF-8 at byte {error.start}')
            continue
        yield Part(f"{file.name}:{number}" if name is None else printable(name), text)


def _json_documents(file: SourceFile, stream: BinaryIO, keys: RecordKeys, bad: BadRecords) -> Iterator[Part]:
    """The records of JSON lines, or of a file that is one array or one object over several lines."""
    whole: bytes | None = None
    first = True
    for number, line in enumerate(stream, start=1):
        line = line.removeprefix(_BYTE_ORDER_MARK)  # in the middle, too, where files were put together
        if first and line.startswith(UTF16_MARKS):
            raise UserError(f"source {file.shown}: not UTF-8 at byte 0: {UTF16_MEND}")
        if not line.strip():
            continue
        if first and (line.strip() == b"{" or line.lstrip().startswith(b"[")):
            whole = line + stream.read()
            break
        first = False
        place, default_name = f" line {number}", f"{file.name}:{number}"
        try:
            record = _parsed(line)
        except ValueError as error:
            bad.found(file, place, str(error))
            continue
        yield from _record(file, place, record, default_name, keys, bad)
    if whole is not None:
        try:
            content = _parsed(whole)
        except ValueError as error:
            raise UserError(f"source {file.shown}: neither JSON lines nor one JSON value, {error}") from None
        records = content if isinstance(content, list) else [content]
        for number, record in enumerate(records, start=1):
            yield from _record(file, f" record {number}", record, f"{file.name}:{number}", keys, bad)


def _parsed(content: bytes) -> Any:
    """A JSON value.

    Raises:
        ValueError: It is none; the message says so for people.
    """
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}; convert the file to UTF-8") from None
    try:
        return _loads(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in text.strip() else ""
        raise ValueError(f"not JSON ({error.msg}: {line}column {error.colno})") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except ValueError:
        return json.loads(text, parse_int=_whole)


def _whole(digits: str) -> int | Decimal:
    """A number; very long digits, which Python refuses to turn into an integer, are none that anything here needs."""
    try:
        return int(digits)
    except ValueError:
        return Decimal(digits)


def _record(
    file: SourceFile, place: str, record: Any, default_name: str, keys: RecordKeys, bad: BadRecords
) -> Iterator[Part]:
    text = record.get(keys.text) if isinstance(record, dict) else None
    if not isinstance(text, str):
        bad.found(file, place, f'needs a string under "{keys.text}"{_instead(record, keys.text, "--text-key")}')
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        bad.found(file, place, f'"{keys.text}" has half a surrogate pair at character {error.start}')
        return
    name = record.get(keys.id or "id")
    if name is None or name == "" or isinstance(name, dict | list):
        if keys.id:
            bad.found(file, place, f'needs a name under "{keys.id}"{_instead(record, keys.id, "--id-key")}')
            return
        name = default_name
    weights = None
    if keys.loss_weights is not None and record.get(keys.loss_weights) is not None:
        try:
            weights = parse_ranges(record[keys.loss_weights], len(text))
        except ValueError as error:
            bad.found(file, place, f'"{keys.loss_weights}" {error}')
            return
    elif keys.loss_weights is not None and (meant := _mistyped(record, keys.loss_weights)) is not None:
        raise UserError(
            f'source {file.shown}{place}: --loss-weights-key is "{keys.loss_weights}", which the record does not have, '
            f'but "{printable(meant)}": name that key, or take it out of the records'
        )
    unread = keys.loss_weights is None and record.get(USUAL_KEY) is not None
    yield Part(printable(str(name)), text, weights=weights, unread_weights=unread)


def _mistyped(record: dict[str, Any], key: str) -> str | None:
    """The key that was probably meant by one that a record does not have: its weights would be lost without a word."""
    if key in record:
        return None
    lists = [name for name, value in record.items() if isinstance(value, list)]
    return USUAL_KEY if USUAL_KEY in lists else next(iter(get_close_matches(key, lists, 1, _ALIKE)), None)


def _instead(record: Any, key: str, option: str) -> str:
    """What a record has instead of a string under this key."""
    if not isinstance(record, dict):
        return ', as in {"text": "...", "id": "..."}'
    if key in record:
        kinds = {dict: "an object", list: "an array", type(None): "null", bool: "true or false"}
        return f", not {kinds.get(type(record[key]), 'a number')}"
    shown = [printable(name)[:_KEY_CHARACTERS] for name in list(record)[:_KEYS_SHOWN]]
    listed = ", ".join(shown) + (", ..." if len(record) > _KEYS_SHOWN else "")
    return f" (its keys are {listed or 'none'}; {option} names another)"
