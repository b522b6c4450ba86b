# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Samples are listed as MMSegmentation lists them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mmengine.registry import init_default_scope
from mmseg.datasets import ADE20KDataset, BaseSegDataset

from mmseg_resnest.datasets import listing


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("b.jpg", "a.jpg", ".hidden.jpg", "a.png", "x/y/c.jpg", ".z/d.jpg", "a-1.jpg"):
        for folder in ("images", "labels"):
            file = tmp_path / folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
    (tmp_path / "images" / "folder.jpg").mkdir()
    (tmp_path / "images" / "link.jpg").symlink_to("a.jpg")
    (tmp_path / "images" / "nowhere.jpg").symlink_to("nothing")
    (tmp_path / "images" / "more").symlink_to("x")
    return tmp_path


def config(root: Path, **more: Any) -> dict[str, Any]:
    prefix = {"img_path": "images", "seg_map_path": "labels"}
    return {"type": "mmseg.ADE20KDataset", "data_root": str(root), "data_prefix": prefix, **more}


@pytest.mark.parametrize("prefix", ["images", "images/", "./images/../images", "images/x"])
def test_it_lists_as_the_stack_does(root: Path, prefix: str) -> None:
    for labels in ({"seg_map_path": "labels"}, {}):
        folders = {"img_path": prefix, **labels}
        dataset = ADE20KDataset(data_root=str(root), data_prefix=folders, lazy_init=True)
        expected = dataset.load_data_list()
        assert listing.list_samples(dataset) == expected and expected


def test_a_listing_is_used_once_and_only_for_its_data_set(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    init_default_scope("mmseg_resnest")
    calls = []
    real = BaseSegDataset.load_data_list
    monkeypatch.setattr(
        BaseSegDataset, "load_data_list", lambda self: [calls.append(1), real(self)][1]
    )
    plain = listing.build_dataset(config(root, pipeline=[]))
    assert calls == [1]
    lazy = ADE20KDataset(
        data_root=str(root),
        data_prefix={"img_path": "images", "seg_map_path": "labels"},
        lazy_init=True,
    )
    listing.remember(config(root, pipeline=[{"type": "X"}]), listing.list_samples(lazy))
    calls.clear()
    other = listing.build_dataset(config(root, test_mode=True, pipeline=[]))
    assert calls == [1] and len(other) == len(plain)
    remembered = listing.build_dataset(config(root, pipeline=[]))
    assert calls == [1] and "load_data_list" not in vars(remembered)
    assert [remembered.get_data_info(i) for i in range(len(remembered))] == [
        plain.get_data_info(i) for i in range(len(plain))
    ]
    assert len(listing.build_dataset(config(root, pipeline=[]))) == len(plain)
    assert calls == [1, 1]
