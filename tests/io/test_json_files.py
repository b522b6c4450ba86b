from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from user_errors import raises_user_error

from mmseg_resnest.io.json_files import MAX_DEPTH, parse_json, read_json

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()


@given(st.recursive(SCALARS, lambda x: st.lists(x) | st.dictionaries(st.text(), x), max_leaves=20))
def test_what_json_wrote_comes_back(value: object) -> None:
    assert parse_json(json.dumps(value), "file a.json") == value
    assert parse_json(json.dumps(value).encode("utf-8-sig"), "file a.json") == value


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000,
        "[" * 200_000 + "]" * 200_000,
        '{"a":' * 200_000 + "1" + "}" * 200_000,
        "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1),
        "1" * 5000,
        "",
        "{",
        b"\xff\xfe{",
        b"\x80",
    ],
)
def test_what_cannot_be_read_is_an_error_that_names_the_file(text: str | bytes) -> None:
    with raises_user_error("format", "file a.json"):
        parse_json(text, "file a.json")


def test_the_deepest_that_is_read() -> None:
    text = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert json.dumps(parse_json(text, "file a.json")) == text


def test_a_large_or_missing_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("[1, 2, 3]")
    assert read_json(path, "file a.json", max_bytes=9) == [1, 2, 3]
    with raises_user_error("too-large", "file a.json"):
        read_json(path, "file a.json", max_bytes=8)
    assert read_json(path, "file a.json", max_bytes=1 << 60) == [1, 2, 3]
    with raises_user_error("too-large", "file zero"):
        read_json("/dev/zero", "file zero", max_bytes=8)
    with raises_user_error("unreadable", "file b.json"):
        read_json(tmp_path / "b.json", "file b.json")
