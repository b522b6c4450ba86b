# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
import multiprocessing
import os
import signal
import time
from functools import partial
from pathlib import Path

from advice import advises
from tiny_archives import tree
from user_errors import raises_user_error

from mmseg_resnest.datasets.prepare.outputs import Item, Outputs
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
    with Outputs(folder) as outputs:
        done = outputs.run(items, jobs, link, "test")
        outputs.finish({"a": 1}, items, {})
    return {how: number for how, number in done.items() if number}


def test_files_are_made_once(tmp_path: Path) -> None:
    items = _items(20)
    assert _run(tmp_path, items) == {"made": 20}
    before = tree(tmp_path)
    assert [(tmp_path / i.target).read_bytes() for i in items] == [_content(n) for n in range(20)]
    assert _run(tmp_path, items) == {"kept": 20}
    assert tree(tmp_path) == before
    with Outputs(tmp_path) as outputs:
        assert outputs.is_as_recorded({"a": 1}) and not outputs.is_as_recorded({"a": 2})
    (tmp_path / "d/003").write_bytes(b"x")
    with Outputs(tmp_path) as outputs:
        assert not outputs.is_as_recorded({"a": 1})
    assert _run(tmp_path, items) == {"kept": 19, "made": 1}  # the damaged file
    assert (tmp_path / "d/003").read_bytes() == _content(3)


def test_other_inputs_or_settings_make_a_file_again(tmp_path: Path) -> None:
    items = _items(3)
    _run(tmp_path, items)
    items[1] = Item("d/001", "other", make=partial(_content, 77))
    assert _run(tmp_path, items) == {"kept": 2, "made": 1}
    assert (tmp_path / "d/001").read_bytes() == _content(77)


def test_a_link_becomes_a_copy_and_back(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"image")
    items = [Item("d/x.png", "k", link=tmp_path / "source", size=5)]
    folder = tmp_path / "out"
    for link, how, is_link in (
        ("symlink", "linked", True), ("symlink", "kept", True), ("copy", "copied", False),
        ("auto", "kept", False), ("hard", "linked", False), ("symlink", "linked", True),
    ):  # fmt: skip
        assert _run(folder, items, link=link) == {how: 1}
        assert (folder / "d/x.png").is_symlink() == is_link
        assert (folder / "d/x.png").samefile(tmp_path / "source") == (link in ("symlink", "hard"))
        assert (folder / "d/x.png").read_bytes() == b"image"


def test_files_of_an_earlier_run_may_come_back(tmp_path: Path) -> None:
    made = lambda name, key: Item(name, key, make=partial(_content, len(key)))  # noqa: E731
    _run(tmp_path, [made("d/x.jpg", "k"), made("d/y.jpg", "k"), made("d/z.jpg", "k")])
    _run(tmp_path, [made("d/x.png", "kk")])
    assert sorted(tree(tmp_path)) == ["d/x.png", "d/y.jpg", "d/z.jpg"]  # which x it is is clear
    (tmp_path / "d/z.jpg").write_bytes(b"mine now")
    _run(tmp_path, [made("d/x.png", "kk"), made("d/y.jpg", "other")])
    assert (tmp_path / "d/y.jpg").read_bytes() == _content(5)
    with raises_user_error("output-exists", "d/z.jpg"):
        _run(tmp_path, [made("d/z.jpg", "other")])


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
    # Whatever has its name is complete.
    complete = {item.target: _content(n) for n, item in enumerate(items)}
    assert all((tmp_path / name).read_bytes() == complete[name] for name in there)
    # What was made with other settings just before the crash is replaced.
    other = [Item("d/000", "other", make=partial(_content, 77)), *_items(60)[1:]]
    _run(tmp_path, other)
    assert (tmp_path / "d/000").read_bytes() == _content(77)
    after = tree(tmp_path)
    assert len(after) == 60
    # Finished files were not touched again; workers of the dead process have ended with it.
    assert {name: after[name] for name in there if name != "d/000"} == {
        name: state for name, state in there.items() if name != "d/000"
    }
    assert not (tmp_path / ".prepare/tmp").exists()


def test_two_processes_do_not_meet(tmp_path: Path) -> None:
    with Outputs(tmp_path), raises_user_error("in-use", tmp_path), Outputs(tmp_path):
        pass


def test_another_file_in_the_way_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/001").write_bytes(b"mine")
    with raises_user_error("output-exists", "d/001"):
        _run(tmp_path, _items(3))
    assert (tmp_path / "d/001").read_bytes() == b"mine"
    (tmp_path / "d/001").write_bytes(_content(1))  # the same content is fine
    assert sum(_run(tmp_path, _items(3)).values()) == 3


def test_a_run_that_is_refused_leaves_no_folder(tmp_path: Path) -> None:
    with raises_user_error("dataset", "source"), Outputs(tmp_path / "root" / "set"):
        raise UserError("dataset", "source", "holds nothing")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_made(tmp_path: Path) -> None:
    with advises("datasets/prepare/outputs.py:run", "rename one of them") as told:
        _run(tmp_path, [*_items(2), *_items(1)])
    assert told.value.code == "dataset" and "d/000" in str(told.value.subject)
    with raises_user_error("not-writable", tmp_path):  # no room
        _run(tmp_path, [Item("x", "k", make=partial(_content, 1), size=10**18)])
    (tmp_path / "file").write_text("")
    with raises_user_error("not-writable", tmp_path / "file"):
        _run(tmp_path / "file", _items(1))
