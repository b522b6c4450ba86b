# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
import multiprocessing
import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest
from tiny_archives import tree

from mmseg_resnest.datasets.prepare import work
from mmseg_resnest.datasets.prepare.work import Item, Workspace, put_link
from mmseg_resnest.errors import UserError


def _content(number: int, pause: float = 0.0) -> bytes:
    time.sleep(pause)
    return b"%d" % number * 1000


def _items(count: int, endless: int | None = None) -> list[Item]:
    """``endless``: the first of those that are never made, within the test's time."""
    last = count if endless is None else endless
    return [
        Item(f"d/{n:03d}", f"k{n}", make=partial(_content, n, 0 if n < last else 600))
        for n in range(count)
    ]


def _run(folder: Path, items: list[Item], jobs: int = 2, link: str = "auto") -> dict[str, int]:
    with Workspace(folder) as space:
        done = space.run(items, jobs, link, "test")
        space.finish({"a": 1}, items, {})
    return dict(done)


def test_files_are_made_once(tmp_path: Path) -> None:
    items = _items(20)
    assert _run(tmp_path, items) == {"made": 20}
    before = tree(tmp_path)
    assert [(tmp_path / item.target).read_bytes() for item in items] == [
        _content(n) for n in range(20)
    ]
    assert _run(tmp_path, items) == {"kept": 20}
    assert tree(tmp_path) == before
    with Workspace(tmp_path) as space:
        assert space.is_as_recorded({"a": 1}) and not space.is_as_recorded({"a": 2})
    (tmp_path / "d/003").write_bytes(b"x")
    with Workspace(tmp_path) as space:
        assert not space.is_as_recorded({"a": 1})
    assert _run(tmp_path, items) == {"kept": 19, "made": 1}  # what was damaged is mended
    assert (tmp_path / "d/003").read_bytes() == _content(3)


def test_a_new_key_makes_a_file_anew(tmp_path: Path) -> None:
    items = _items(3)
    _run(tmp_path, items)
    items[1] = Item("d/001", "other", make=partial(_content, 77))
    assert _run(tmp_path, items) == {"kept": 2, "made": 1}
    assert (tmp_path / "d/001").read_bytes() == _content(77)


def test_killed_and_continued(tmp_path: Path) -> None:
    items = _items(60, endless=45)
    process = multiprocessing.get_context("fork").Process(target=_run, args=(tmp_path, items))
    process.start()
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("d/*"))) < 30:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    there = tree(tmp_path)
    assert 30 <= len(there) < 60
    # Whatever has its name is whole.
    whole = {item.target: _content(n) for n, item in enumerate(items)}
    assert all((tmp_path / name).read_bytes() == whole[name] for name in there)
    with open(tmp_path / ".prepare/journal.jsonl", "a") as journal:
        journal.write('["d/0')  # a line that was cut
    done = _run(tmp_path, _items(60))
    assert sum(done.values()) == 60 and done["kept"] >= 8
    after = tree(tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in after} == whole
    # Finished files were not touched again; workers of the dead process have ended with it.
    assert {name: after[name] for name in there} == there
    assert not (tmp_path / ".prepare/tmp").exists()


def test_two_processes_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "_PATIENCE", 0.1)
    with (
        Workspace(tmp_path),
        pytest.raises(UserError, match="another process"),
        Workspace(tmp_path),
    ):
        pass


def test_another_file_in_the_way_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/001").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"d/001: is there already"):
        _run(tmp_path, _items(3))
    assert (tmp_path / "d/001").read_bytes() == b"mine"
    (tmp_path / "d/001").write_bytes(_content(1))  # the same content is fine
    assert _run(tmp_path, _items(3))["kept"] >= 1


def test_one_name_for_two_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="two files of the source"):
        _run(tmp_path, [*_items(2), *_items(1)])


def test_no_room(tmp_path: Path) -> None:
    items = [Item("x", "k", make=partial(_content, 1), size=10**18)]
    with pytest.raises(UserError, match=r"1000000000\.0 GB are needed"):
        _run(tmp_path, items)


def test_not_writable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        _run(tmp_path / "file", _items(1))


@pytest.mark.parametrize("how", ["auto", "hard", "symlink", "copy"])
def test_links_leave_the_source_alone(tmp_path: Path, how: str) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"content")
    target = tmp_path / "target"
    assert put_link(source, target, how) == ("copied" if how == "copy" else "linked")
    assert target.read_bytes() == b"content"
    assert target.is_symlink() == (how == "symlink")
    if how == "hard":
        assert target.samefile(source)
    target.unlink()
    assert source.read_bytes() == b"content"


def test_auto_falls_back_to_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(1, "not here")

    (tmp_path / "source").write_bytes(b"content")
    monkeypatch.setattr(work.os, "link", refuse)
    monkeypatch.setattr(work, "_reflink", refuse)
    monkeypatch.setattr(Path, "symlink_to", refuse)
    assert put_link(tmp_path / "source", tmp_path / "target") == "copied"
    with pytest.raises(UserError, match="use --link auto"):
        put_link(tmp_path / "source", tmp_path / "other", "hard")
