# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
from pathlib import Path

import pytest
from user_errors import raises_user_error

from mmseg_resnest.io import linking
from mmseg_resnest.io.linking import put_link


@pytest.mark.parametrize("how", ["auto", "hard", "symlink", "copy"])
def test_links_leave_the_source_alone(tmp_path: Path, how: str) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"content")
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
    monkeypatch.setattr(linking.os, "link", refuse)
    monkeypatch.setattr(linking, "_reflink", refuse)
    monkeypatch.setattr(Path, "symlink_to", refuse)
    assert put_link(tmp_path / "source", tmp_path / "target") == "copied"
    with raises_user_error("not-writable", tmp_path / "source"):
        put_link(tmp_path / "source", tmp_path / "other", "hard")
