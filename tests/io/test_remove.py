# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Only files are removed."""

from __future__ import annotations

import os
from pathlib import Path

from mmseg_resnest.io.remove import remove_file


def test_only_files_are_removed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "folder").mkdir()
    found = [remove_file(tmp_path / name) for name in ("none", "folder", "link", "file")]
    assert found == [False, False, False, True]
    assert sorted(os.listdir(tmp_path)) == ["folder", "link"]
