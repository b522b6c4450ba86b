# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
import functools
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from mmseg_resnest.io.up_to_date import Journal, Record, fingerprint


@dataclass(frozen=True)
class _Setting:
    colour: tuple[int, int, int]
    file: Path | None = None


def test_a_fingerprint_tells_values_apart(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"1")
    values = [
        None, 1, "1", b"1", [1], [[1]], {"1": 1}, {1: "1"}, {1}, {"a": 1, "b": 2}, {"a": 2, "b": 1},
        _Setting((1, 2, 3)), _Setting((1, 3, 2)), _Setting((1, 2, 3), tmp_path / "a"),
        tmp_path / "a", tmp_path / "b", str(tmp_path / "a"), fingerprint, bytes,
        functools.partial(fingerprint, 1), functools.partial(fingerprint, 2), [1, 2], [2, 1],
    ]  # fmt: skip
    assert len({fingerprint(value) for value in values}) == len(values)
    assert fingerprint({"a": 1, "b": 2}, {3, 1}) == fingerprint({"b": 2, "a": 1}, {1, 3})
    before = fingerprint(tmp_path / "a")
    os.utime(tmp_path / "a", ns=(1, 1))
    assert fingerprint(tmp_path / "a") != before
    with pytest.raises(TypeError, match="object has no fingerprint"):
        fingerprint(object())


def test_an_output_is_current_until_it_or_its_inputs_change(tmp_path: Path) -> None:
    record = Record(tmp_path / "record.json", tmp_path)
    record.claim(["x"])
    assert not record.is_current("x") and not record.is_current("y")
    (tmp_path / "x").write_bytes(b"content")
    record.note("x", "made from this", "made")
    record.save()
    record = Record(tmp_path / "record.json", tmp_path)
    assert record.is_current("x") and record.is_current("x", "made from this")
    assert not record.is_current("x", "made from that")
    os.utime(tmp_path / "x", ns=(1, 1))
    assert not record.is_current("x")
    (tmp_path / "x").unlink()
    assert not record.is_current("x")


@pytest.mark.parametrize(
    "text", ["", "[]", '{"outputs": [], "about": 1}', '{"outputs": {"x": ["", 1, 2]}}', "no"]
)
def test_a_damaged_record_is_empty(tmp_path: Path, text: str) -> None:
    (tmp_path / "record.json").write_text(text)
    record = Record(tmp_path / "record.json", tmp_path)
    assert record.outputs == {} and record.about == {}


def test_a_journal_knows_outputs_by_what_they_were_made_from(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"content")
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "1").write_bytes(b"a map")
    journal = Journal(tmp_path / "journal.jsonl")
    made = {tmp_path / "x": "this", tmp_path / "maps": "that"}
    assert not journal.has(made) and not journal.names(tmp_path / "x")
    journal.add(made, input="a", seconds=1)
    with journal.file.open("ab") as file:
        file.write(b'[1]\n{"outputs": {"x": 3}, \n{"outputs": 1}\nhalf \xff a line')
    other = Journal(tmp_path / "journal.jsonl")
    for one in (journal, other):
        assert one.has(made) and one.has({tmp_path / "x": "this"}) and one.names(tmp_path / "maps")
        assert not one.has({tmp_path / "x": "that"}) and not one.has({tmp_path / "y": "this"})
    (tmp_path / "maps" / "2").write_bytes(b"one more")
    assert not other.has(made) and other.has({tmp_path / "x": "this"})
    other.add({tmp_path / "x": "another"}, input="b")  # the last one made it
    assert not other.has({tmp_path / "x": "this"})
    os.utime(tmp_path / "x", ns=(1, 1))
    assert not Journal(journal.file).has({tmp_path / "x": "another"})
