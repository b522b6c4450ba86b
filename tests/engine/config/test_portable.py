# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Bases named by the package, from any folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from user_errors import raises_user_error

from mmseg_resnest.engine.config import config_folder, find_config, load_config, portable_name

NAME = "mmseg_resnest::fcn_resnest14_camvid"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_names_are_those_of_the_package() -> None:
    file = config_folder() / "fcn_resnest14_camvid.py"
    assert portable_name(file) == NAME
    assert portable_name("elsewhere.py") is None
    for name in (NAME, f"{NAME}.py"):
        assert find_config(name) == file
    for name in ("mmseg_resnest::../pyproject", "mmseg_resnest::/etc/passwd", "mmseg_resnest::"):
        assert not find_config(name).exists()


def test_a_config_inherits_by_name_from_any_folder(tmp_path: Path) -> None:
    plain = load_config(NAME)
    wide = tmp_path / "wide folder"
    wide.mkdir()
    (wide / "a.py").write_text(
        f'# é \x0c \x85 \u2028\n_base_ = "{NAME}"\n'
        "here = '{{ fileDirname }}/{{fileBasenameNoExtension}}'\n"
        "work_dir = here\nold = _base_.train_cfg.max_iters\n"
        "train_cfg = dict(max_iters=old + 1)\n"
    )
    (tmp_path / "b.py").write_text(
        '_base_ = [\n    "wide folder/"\n    "a.py",\n]\nrandomness = dict(seed={{_base_.old}})\n'
    )
    (tmp_path / "c.py").write_text('_base_ = ["b.py"]\n')
    for name in ("wide folder/a.py", "c.py"):
        cfg = load_config(name)
        assert cfg.train_cfg.max_iters == plain.train_cfg.max_iters + 1
        assert cfg.model.to_dict() == plain.model.to_dict()
        assert cfg.work_dir == f"{wide}/a"
        assert cfg.filename == name
        assert "mmseg_resnest_config_" not in cfg.text + cfg.pretty_text
        assert str(wide / "a.py") in cfg.text
    assert load_config("c.py").randomness.seed == plain.train_cfg.max_iters


def test_several_bases_and_both_endings(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("work_dir = 'mine'\n")
    (tmp_path / "a.py").write_text(f'_base_ = ["{NAME}.py", "own.py"]\n')
    cfg = load_config("a.py")
    assert cfg.work_dir == "mine"
    assert cfg.model.backbone.arch == "resnest14"


def test_json_inherits_by_the_same_name(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"_base_": NAME, "randomness": {"seed": 5}}))
    assert load_config("a.json").model.backbone.arch == "resnest14"


def test_mistakes_are_named_with_their_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text('x = 1\n_base_ = "mmseg_resnest::fcn_resnest14_camvit"\n')
    with raises_user_error("config-syntax", "a.py, line 2") as caught:
        load_config("a.py")
    assert "fcn_resnest14_camvid" in str(caught.value)
    (tmp_path / "b.py").write_text(f'_base_ = "{NAME}"\n\nx = 1 / 0\n')
    (tmp_path / "c.py").write_text('_base_ = "b.py"\n')
    for name in ("b.py", "c.py"):
        with raises_user_error("config-syntax", f"{tmp_path / 'b.py'}, line 3"):
            load_config(name)
    (tmp_path / "d.py").write_text(f'_base_ = ["{NAME}", "no.py"]\n')
    with raises_user_error("config-syntax", "d.py"):
        load_config("d.py")
