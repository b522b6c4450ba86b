# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from mmseg_resnest.io.text import printable


def test_what_is_printable_stays() -> None:
    assert printable("Straße 字") == "Straße 字"
    assert printable(Path("a/b")) == "a/b"
    assert printable("a\nb\x1b[2J\ud800") == "a\\nb\\x1b[2J\\ud800"


@given(st.text(st.characters()))
def test_everything_becomes_one_line(text: str) -> None:
    assert printable(text).isprintable()
