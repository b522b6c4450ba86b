# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A log on a disk that is full for a while has whole lines, in their order."""

from __future__ import annotations

import os
import resource
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from mmseg_resnest.io import line_file
from mmseg_resnest.io.line_file import LineFile


def test_texts_wait_while_they_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "log"
    file = LineFile(path)
    file.write("one\n")
    file.write("two\n")
    assert file.reason == os.strerror(2)
    path.parent.mkdir()
    file.write("höhe \udcff\n")
    assert path.read_text() == "one\ntwo\nhöhe \\udcff\n"
    assert file.give_up() == 0


def test_what_is_lost_is_counted_once(tmp_path: Path) -> None:
    file = LineFile(tmp_path)  # a folder
    for _ in range(3):
        file.write("text\n")
    assert file.give_up() == 3
    assert file.reason == os.strerror(21)
    assert file.give_up() == 0


def test_what_waits_is_bounded(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(line_file, "_MOST_WAITING", 10)
    file = LineFile(tmp_path / "later" / "log")
    for number in range(5):
        file.write(f"{number:03}\n")
    file.path.parent.mkdir()
    file.flush()
    assert file.path.read_text() == "003\n004\n"
    assert file.give_up() == 3


@settings(deadline=None, max_examples=30)
@given(limit=st.integers(0, 60), lengths=st.lists(st.integers(1, 12), min_size=1, max_size=10))
def test_no_line_is_cut(tmp_path_factory, limit: int, lengths: list[int]) -> None:
    """A quota that ends in the middle of a line."""
    file = LineFile(tmp_path_factory.mktemp("log") / "log")
    texts = [f"{number}{'x' * length}\n" for number, length in enumerate(lengths)]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        for text in texts:
            file.write(text)
            written = file.path.read_text()
            assert "".join(texts).startswith(written)
            assert not written or written.endswith("\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    file.flush()
    assert file.path.read_text() == "".join(texts)


def test_a_fork_leaves_to_its_parent_what_waits(tmp_path: Path) -> None:
    file = LineFile(tmp_path / "later" / "log")
    file.write("parent\n")
    file.path.parent.mkdir()
    pid = os.fork()
    if pid == 0:
        file.write("child\n")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    file.flush()
    assert file.path.read_text() == "child\nparent\n"
