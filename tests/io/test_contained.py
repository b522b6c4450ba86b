# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from user_errors import raises_user_error

from mmseg_resnest.errors import UserError
from mmseg_resnest.io.contained import (
    check_inside,
    check_real_folder,
    contained,
    is_contained_member,
)


@pytest.mark.parametrize(
    ("name", "start", "expected"),
    [
        ("a.jpg", "", "a.jpg"),
        ("./b//a.jpg", "", "b/a.jpg"),
        ("..\\imgs\\a.jpg", "ann", "imgs/a.jpg"),
        ("../../a.jpg", "x/y", "a.jpg"),
        ("b/../a.jpg", "", "a.jpg"),
        ("a:b.jpg/c", "", None),
        ("..a/...", "", "..a/..."),
    ],
)
def test_names_inside(name: str, start: str, expected: str | None) -> None:
    if expected is None:
        with raises_user_error("unsafe-path", "x.json"):
            contained(name, "x.json", start)
    else:
        assert contained(name, "x.json", start).as_posix() == expected


@pytest.mark.parametrize(
    "name",
    ["/a", "\\a", "C:a", "c:\\a", "\\\\host\\a", "..", "../a", "a/../..", "a\\..\\..\\b", "", ".",
     "a/..", "a\0b", "x" * 256, "é" * 200, None, 1, b"a", ["a"]],
)  # fmt: skip
def test_names_outside(name: object) -> None:
    with raises_user_error("unsafe-path", "x.json: imagePath") as error:
        contained(name, "x.json: imagePath", hint="move it")
    assert len(str(error.value)) < 500


@given(st.lists(st.sampled_from(["..", ".", "a", "b", "/", "\\", "C:", ""]), max_size=8))
def test_whatever_is_accepted_stays_inside(parts: list[str]) -> None:
    top = Path("/top/of/all")
    try:
        found = contained("/".join(parts), "x", "deep/er")
    except UserError:
        return
    assert Path(os.path.normpath(top / found)).is_relative_to(top)
    assert not {"..", "."} & set(found.parts)


def test_links_stay_inside(tmp_path: Path) -> None:
    (tmp_path / "top").mkdir()
    (tmp_path / "out.jpg").touch()
    top = tmp_path / "link"
    top.symlink_to("top", target_is_directory=True)
    (top / "a.jpg").touch()
    (top / "b.jpg").symlink_to("a.jpg")
    (top / "up.jpg").symlink_to("../out.jpg")
    (top / "gone.jpg").symlink_to(tmp_path / "topmost")
    (top / "loop").symlink_to("loop")
    for name in ("a.jpg", "b.jpg", "new.jpg", "loop"):
        check_inside(top / name, top, "x.json")
    for name in ("up.jpg", "gone.jpg"):
        with raises_user_error("unsafe-path", "x.json"):
            check_inside(top / name, top, "x.json", "move it")


def test_real_folders(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(".", target_is_directory=True)
    (tmp_path / "nowhere").symlink_to("gone")
    check_real_folder(tmp_path, "move it")
    check_real_folder(tmp_path / "new", "move it")
    for name, code in (
        ("file", "wrong-path-type"),
        ("link", "unsafe-path"),
        ("nowhere", "unsafe-path"),
    ):
        with raises_user_error(code, name):
            check_real_folder(tmp_path / name, "move it")


def test_members_of_archives() -> None:
    assert all(map(is_contained_member, ("a", "a/b.txt", "a b/é", "..a", "./a")))
    assert not any(map(is_contained_member, ("/a", "a/../b", "a\\b", "C:/a", "a\nb", "a\0")))
