# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""~ and $VARIABLE in paths: what they stand for, and what is said where they stand for nothing."""

from pathlib import Path

import pytest

from memformer.config.places import escaped, expanded


@pytest.fixture(autouse=True)
def variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    monkeypatch.setenv("ODD", "~/$HOME")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.delenv("NOT_SET", raising=False)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("~", str(Path.home())),
        ("~/runs/a", f"{Path.home()}/runs/a"),
        ("~root", str(Path("~root").expanduser())),
        ("a/~/b", "a/~/b"),
        ("./~", "./~"),
        ("$SCRATCH", "/scratch/me"),
        ("${SCRATCH}/$SCRATCH", "/scratch/me//scratch/me"),
        ("~/$SCRATCH", f"{Path.home()}//scratch/me"),
        ("s3://$SCRATCH/d", "s3:///scratch/me/d"),
        ("pipe:cat $NOT_SET ~/x", "pipe:cat $NOT_SET ~/x"),  # the shell's business
        ("a$$SCRATCH", "a$SCRATCH"),
        ("cost 5$", "cost 5$"),
        ("$1", "$1"),
        ("$ODD/x", "~/$HOME/x"),  # what a variable holds is not looked at again
    ],
)
def test_what_a_path_stands_for(text: str, path: str) -> None:
    assert expanded(text) == path


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("$NOT_SET/a", "is '$NOT_SET/a', but the environment variable NOT_SET is not set: set it"),
        ("a/${NOT_SET}", "the environment variable NOT_SET is not set"),
        ("$EMPTY/a", "the environment variable EMPTY is empty"),
        ("${SCRATCH:-x}", "${SCRATCH:-x} is no variable: write ${NAME}"),
        ("${SCRATCH/a", "${SCRATCH/a is no variable"),
        ("~no-such-user/a", "there is no user no-such-user"),
        ("", "is empty: write a path"),
        (" ", "is empty: write a path"),
    ],
)
def test_what_stands_for_nothing_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match="is ") as caught:
        expanded(text)
    assert words in str(caught.value)


@pytest.mark.parametrize("path", ["/a/b", "a$b", "$$", "${x", "a~", "pipe:echo $$", "x$"])
def test_a_path_that_is_written_down_is_read_as_the_same(path: str) -> None:
    assert expanded(escaped(path)) == path
