# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Whatever asks MMEngine for a checkpoint gets tensors and plain data, or an error."""

from __future__ import annotations

import hashlib
import importlib
import os
from dataclasses import replace
from pathlib import Path

import mmseg.models  # noqa: F401  (registers the baselines)
import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModule
from mmengine.registry import DefaultScope
from mmengine.runner import load_checkpoint as stack_load_checkpoint
from mmengine.runner.checkpoint import CheckpointLoader, _load_checkpoint_with_prefix
from user_errors import raises_user_error

from mmseg_resnest.engine.preflight import check_checkpoint
from mmseg_resnest.errors import UserError
from mmseg_resnest.inference import load_segmentor
from mmseg_resnest.models import ResNeSt
from mmseg_resnest.registry import MODELS
from mmseg_resnest.weights import Entry, catalogue, save_state_dict, use_safe_loaders

TINY = dict(blocks=(1, 1, 1, 1), base_width=4, stem_width=4)


class Evil:
    """Pickled, it writes a file when it is read."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def resnet(**init_cfg) -> BaseModule:
    """The stack's own backbone, as the baselines have it."""
    return MODELS.build(
        dict(
            type="mmseg.ResNetV1c",
            depth=18,
            base_channels=4,
            stem_channels=4,
            init_cfg=dict(type="Pretrained", **init_cfg) if init_cfg else None,
        )
    )


def resnest(checkpoint: str) -> ResNeSt:
    return ResNeSt(TINY, init_cfg=dict(type="Pretrained", checkpoint=checkpoint))


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Makes a file of the cache an entry of the catalogue, by the name ``tiny``."""
    monkeypatch.setenv("MMSEG_RESNEST_CACHE", str(tmp_path / "cache"))

    def add(state_dict, **changes) -> Entry:
        (tmp_path / "cache").mkdir()
        path = tmp_path / "cache" / "tiny.pth"
        torch.save(state_dict, path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        entry = replace(
            catalogue()["resnest50"], name="tiny", file=path.name, digest=digest, **changes
        )
        module = importlib.import_module("mmseg_resnest.weights.catalogue")
        monkeypatch.setattr(module, "_entries", lambda: {"tiny": entry})
        return entry

    return add


@pytest.fixture(autouse=True)
def safe_process(monkeypatch):
    """As in the application: MMEngine's loaders are ours, for this test."""
    monkeypatch.setattr(CheckpointLoader, "_schemes", dict(CheckpointLoader._schemes))
    use_safe_loaders()


@pytest.mark.parametrize("prefix", [None, "backbone"])
def test_the_scope_s_initialiser_is_safe_without_them(tmp_path, monkeypatch, prefix):
    monkeypatch.undo()
    loader = CheckpointLoader._get_checkpoint_loader("a.pth")
    assert loader.__module__ == "mmengine.runner.checkpoint"
    marker, path = tmp_path / "marker", tmp_path / "evil.pth"
    torch.save({"state_dict": resnet().state_dict(), "meta": Evil(marker)}, path)
    more = {} if prefix is None else {"prefix": prefix}
    with DefaultScope.overwrite_default_scope("mmseg_resnest"):
        with raises_user_error("checkpoint-unsafe", "evil.pth"):
            resnet(checkpoint=str(path), **more).init_weights()
        assert not marker.exists()
        source = resnet()
        state = {f"{prefix}.{k}" if prefix else k: v for k, v in source.state_dict().items()}
        good = save_state_dict(state, tmp_path / "good.pth")
        model = resnet(checkpoint=str(good), **more)
        model.init_weights()
        for key, tensor in source.state_dict().items():
            assert torch.equal(model.state_dict()[key], tensor), key
        if prefix:
            with raises_user_error("checkpoint", "good.pth"):
                resnet(checkpoint=str(good), prefix="neck").init_weights()
        with raises_user_error("argument", "s3://a/b.pth"):
            resnet(checkpoint="s3://a/b.pth").init_weights()


def test_every_scheme_is_ours():
    for scheme, loader in CheckpointLoader._schemes.items():
        assert loader.__module__ == "mmseg_resnest.weights.mmengine_loaders", scheme


ENTRIES = {
    "load_checkpoint": lambda path: stack_load_checkpoint(resnet(), path),
    "CheckpointLoader": CheckpointLoader.load_checkpoint,
    "a prefix": lambda path: _load_checkpoint_with_prefix("backbone", path),
    "a baseline": lambda path: resnet(checkpoint=path).init_weights(),
    "a part for a baseline": lambda path: resnet(checkpoint=path, prefix="backbone").init_weights(),
    "ResNeSt": lambda path: resnest(path).init_weights(),
    "load_segmentor": lambda path: load_segmentor("configs/fcn_resnest14_scenes.py", path, "cpu"),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_nothing_is_run(tmp_path, monkeypatch, name):
    monkeypatch.chdir(Path(__file__).parents[2])
    marker, path = tmp_path / "marker", tmp_path / "evil.pth"
    torch.save({"state_dict": resnet().state_dict(), "meta": Evil(marker)}, path)
    with raises_user_error("checkpoint-unsafe", "evil.pth"):
        ENTRIES[name](str(path))
    assert not marker.exists()


@pytest.mark.parametrize(
    "address", ["s3://a/b.pth", "pavi://a/b", "petrel://a/b", "x:s3://a/b.pth"]
)
def test_storage_services_are_refused(address):
    with raises_user_error("argument", address):
        resnet(checkpoint=address).init_weights()


def test_plain_data_beside_the_weights_is_kept(tmp_path):
    record = {
        "state_dict": {"a": torch.ones(2)},
        "meta": {"iter": 3},
        "message_hub": {"log_scalars": {"loss": HistoryBuffer([1.0], [1])}},
        "array": np.arange(3),
    }
    torch.save(record, tmp_path / "iter_3.pth")
    loaded = CheckpointLoader.load_checkpoint(str(tmp_path / "iter_3.pth"), map_location="cpu")
    assert list(loaded) == list(record) and loaded["meta"] == {"iter": 3}
    assert type(loaded["message_hub"]["log_scalars"]["loss"]) is HistoryBuffer
    assert torch.equal(loaded["array"], torch.arange(3))


@pytest.mark.parametrize("kind", ["resnest", "baseline"])
def test_names_in_init_cfg(published, kind):
    source = ResNeSt(TINY) if kind == "resnest" else resnet()
    published(source.state_dict())
    model = resnest("tiny") if kind == "resnest" else resnet(checkpoint="tiny")
    model.init_weights()
    for key, tensor in source.state_dict().items():
        assert torch.equal(model.state_dict()[key], tensor), key


def test_a_segmentor_by_its_name(published, monkeypatch):
    config = "configs/fcn_resnest14_scenes.py"
    monkeypatch.chdir(Path(__file__).parents[2])
    source = load_segmentor(config, weights=None, device="cpu")
    published(source.model.state_dict(), config=config, task="segmentation")
    monkeypatch.chdir("/")  # found wherever one is
    model = load_segmentor("tiny", device="cpu")
    assert model.classes == source.classes and len(model.classes) == 12
    assert model.palette == source.palette
    found = model.model.state_dict()
    for key, tensor in source.model.state_dict().items():
        assert torch.equal(found[key], tensor), key


@pytest.mark.parametrize("config", [None, "configs/no_such.py"])
def test_a_name_without_an_installed_config_is_not_a_segmentor(published, config):
    published({}, config=config)
    with pytest.raises(UserError, match="tiny"):
        load_segmentor("tiny")


@pytest.mark.parametrize(
    "state_dict",
    [{1: torch.ones(2)}, {None: 1}, {"a" * 2000: torch.ones(2)}, [torch.ones(2)], None],
)
@pytest.mark.parametrize("wrapper", ["state_dict", "model", None])
def test_keys_that_are_no_names_are_refused(
    state_dict: object, wrapper: str | None, tmp_path: Path
) -> None:
    if wrapper != "state_dict" and not isinstance(state_dict, dict):
        return  # a file of another kind, whose loader says so
    torch.save(state_dict if wrapper is None else {wrapper: state_dict}, tmp_path / "a.pth")
    with raises_user_error("checkpoint", "a.pth"):
        stack_load_checkpoint(torch.nn.Linear(2, 2), str(tmp_path / "a.pth"))


def test_what_is_beside_the_state_dict_does_not_matter(tmp_path: Path) -> None:
    record = {"state_dict": torch.nn.Linear(2, 2).state_dict(), "model": "linear", "meta": {1: 2}}
    torch.save(record, tmp_path / "a.pth")
    stack_load_checkpoint(torch.nn.Linear(2, 2), str(tmp_path / "a.pth"), strict=True)


def test_checkpoints_are_checked_by_name(tmp_path):
    for name in ("gluoncv/resnest14", "https://host/a.pth", "open-mmlab://resnet50_v1c"):
        check_checkpoint(name, "checkpoint")
    for name in ("deeplab_resnest101_ad", "https://host/", "open-mmlab://resnet7", "a.pth"):
        with pytest.raises(UserError, match=r"^--resume"):
            check_checkpoint(name, "--resume")
