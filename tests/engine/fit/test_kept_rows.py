# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What a training starts from, and the rows of its heads that are kept."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import serving
from user_errors import raises_user_error

from mmseg_resnest.engine.config import load_config
from mmseg_resnest.engine.fit import Origin, find_origin, write_start
from mmseg_resnest.engine.fit import weights as module
from mmseg_resnest.engine.model import build_seeded_model
from mmseg_resnest.errors import UserError
from mmseg_resnest.weights import save_state_dict
from mmseg_resnest.weights.cache import cache_path
from mmseg_resnest.weights.catalogue import catalogue

ARCH = dict(blocks=(1, 1, 1, 1), radix=2, groups=1, base_width=4, stem_width=4, avd_first=False)


@pytest.fixture
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An empty cache and no network; the names that were asked for."""
    asked: list[str] = []

    def refuse(name: str, limits: Any = None) -> None:
        asked.append(name)
        raise UserError("download", name, "there is no network")

    monkeypatch.setenv("MMSEG_RESNEST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "download", refuse)
    monkeypatch.setattr(module, "resolve_checkpoint", refuse)
    return asked


def test_without_a_network_a_line_says_which_file_to_put_where(no_network: list[str]) -> None:
    for fetch in (False, True):
        origin = find_origin(None, large=False, fetch=fetch)
        entry = catalogue()["gluoncv/resnest14"]
        assert not origin.starts
        for part in (entry.file, str(cache_path(entry).parent), "--from none"):
            assert part in origin.reason
    assert no_network == ["gluoncv/resnest14"]


def test_weights_that_were_fetched_are_named_as_those_in_the_cache(
    no_network: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "download", lambda name, limits: None)
    fetched = find_origin(None, large=False)
    monkeypatch.setattr(module, "verify", lambda entry: None)
    file = cache_path(catalogue()[fetched.name])
    file.parent.mkdir(parents=True)
    file.touch()
    assert find_origin(None, large=False) == fetched


def test_what_is_asked_for_must_be_had(no_network: list[str]) -> None:
    with raises_user_error("download", "fcn_resnest50_ade"):
        find_origin("fcn_resnest50_ade", large=False)
    with raises_user_error("not-found", "nowhere.pth"):
        find_origin("nowhere.pth", large=False)
    with raises_user_error("argument", "resnest269"):
        find_origin("resnest269", large=False)
    assert find_origin("none", large=True) == Origin()


def test_published_weights_bring_their_model_and_classes(no_network: list[str]) -> None:
    origin = find_origin("deeplab_resnest50_ade", large=False, fetch=False)
    assert (origin.base, origin.backbone) == ("deeplabv3_resnest50_ade20k", False)
    assert origin.classes[:3] == ("wall", "building", "sky")
    backbone = find_origin("resnest50", large=True, fetch=False)
    assert (backbone.base, backbone.backbone) == ("deeplabv3plus_resnest50_camvid", True)
    assert not (origin.there or backbone.there)


def small(classes: int, channels: int = 3) -> Any:
    cfg = load_config("fcn_resnest14_camvid")
    cfg.model.backbone.update(arch=ARCH, norm_cfg=dict(type="BN"), in_channels=channels)
    for head in (cfg.model.decode_head, cfg.model.auxiliary_head):
        head.update(norm_cfg=dict(type="BN"), channels=16, num_classes=classes)
        head.loss_decode.pop("class_weight", None)
    return cfg


def test_rows_of_classes_with_the_same_name_are_kept(tmp_path: Path) -> None:
    model = build_seeded_model(small(3)).model
    theirs = tmp_path / "theirs.pth"
    torch.save(model.state_dict(), theirs)
    origin = Origin(str(theirs), classes=("sky", "road", "car"))
    ours, file = small(4), tmp_path / "start.pth"
    said = write_start(origin, ours, ["Car", "bus", "sky", "person"], file)
    assert "2 of 4 classes" in said
    start, old = torch.load(file, weights_only=True), model.state_dict()
    drawn = build_seeded_model(ours).model
    drawn.init_weights()
    for head in ("decode_head", "auxiliary_head"):
        for name in (f"{head}.conv_seg.weight", f"{head}.conv_seg.bias"):
            new = drawn.state_dict()[name]
            expected = torch.stack([old[name][2], new[1], old[name][0], new[3]])
            assert torch.equal(start[name], expected)
    assert torch.equal(start["backbone.conv1.0.weight"], old["backbone.conv1.0.weight"])


def test_as_many_classes_of_other_names_are_not_taken_for_the_same(tmp_path: Path) -> None:
    model = build_seeded_model(small(2)).model
    torch.save(model.state_dict(), tmp_path / "theirs.pth")
    origin = Origin(str(tmp_path / "theirs.pth"), classes=("sky", "road"))
    write_start(origin, small(2), ["road", "dog"], tmp_path / "start.pth")
    start, old = torch.load(tmp_path / "start.pth", weights_only=True), model.state_dict()
    name = "decode_head.conv_seg.weight"
    assert torch.equal(start[name][0], old[name][1])
    assert not torch.equal(start[name][1], old[name][1])


def test_weights_that_name_no_classes_start_with_new_rows(tmp_path: Path) -> None:
    """A file that ``load_from`` takes: the rows are there, as the model draws them."""
    file, start = tmp_path / "theirs.pth", tmp_path / "start.pth"
    torch.save(build_seeded_model(small(3)).model.state_dict(), file)
    write_start(Origin(str(file)), small(4), ["a", "b", "c", "d"], start)
    drawn: Any = build_seeded_model(small(4)).model
    drawn.init_weights()
    found = torch.load(start, weights_only=True)
    assert found.keys() == drawn.state_dict().keys()
    name = "decode_head.conv_seg.weight"
    assert torch.equal(found[name], drawn.state_dict()[name])


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "theirs.pth"
    torch.save(build_seeded_model(small(2, channels=5)).model.state_dict(), file)
    with raises_user_error("checkpoint", file):
        write_start(Origin(str(file)), small(2), ["a", "b"], tmp_path / "start.pth")
    assert not (tmp_path / "start.pth").exists()
    with raises_user_error("checkpoint", file):
        find_origin(str(file), large=False)  # it does not say which model it is of


def test_a_model_on_a_hub_brings_its_classes(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    weights = save_state_dict({"a": torch.ones(1)}, tmp_path / "net" / "model.safetensors")
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    about = {"sha256": digest, "classes": ["c0", "c1"]}
    (tmp_path / "net" / "config.json").write_text(json.dumps(about))
    with serving(tmp_path) as hub:
        commit = hub.add("me/net", tmp_path / "net")
        origin = find_origin("hf://me/net", False, base="fcn_resnest14_camvid")
        assert (origin.name, origin.classes) == (f"hf://me/net@{commit}", ("c0", "c1"))
        with raises_user_error("checkpoint", "--from hf://me/net"):
            find_origin("hf://me/net", False)
        with raises_user_error("download", "hf://me/no"):
            find_origin("hf://me/no", False)
