# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Other toolboxes find our parts by name, and ours theirs, on a stand-in for a toolbox.

It has what mmdet and mmpretrain have: a module ``registry`` with a child of each registry of
MMEngine's root. The toolboxes themselves: tests/classify, tests/detect.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator

import mmengine.registry as root
import mmseg.registry as mmseg_registry
import pytest
from mmengine.registry import DefaultScope, Registry
from torch import nn

import mmseg_resnest.registry as ours
from mmseg_resnest.models import ResNeSt

NAMES = [name for name, value in vars(ours).items() if isinstance(value, Registry)]
BACKBONE = dict(arch="resnest14", out_indices=(0,))


class Detector(nn.Module):
    """A part of another toolbox that builds its backbone, as all of its kind do."""

    def __init__(self, backbone: dict) -> None:
        super().__init__()
        self.backbone = sys.modules["toolbox.registry"].MODELS.build(backbone)  # type: ignore[attr-defined]


@pytest.fixture
def toolbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    module = types.ModuleType("toolbox.registry")
    for name in NAMES:
        parent = getattr(root, name)
        setattr(module, name, Registry(parent.name, parent=parent, scope="toolbox"))
    monkeypatch.setitem(sys.modules, "toolbox", types.ModuleType("toolbox"))
    monkeypatch.setitem(sys.modules, "toolbox.registry", module)
    module.MODELS.register_module(module=Detector)
    module.MODELS.register_module("ResNeSt", module=nn.Identity)  # mmdet and mmpretrain have theirs
    yield module
    for name in NAMES:
        del getattr(root, name).children["toolbox"]


@pytest.mark.parametrize("scope", [None, "toolbox", "mmseg", "mmengine", "mmseg_resnest"])
def test_our_backbone_has_one_name_everywhere(toolbox: types.ModuleType, scope: str | None) -> None:
    registries = (toolbox.MODELS, root.MODELS, mmseg_registry.MODELS, ours.MODELS)
    with DefaultScope.overwrite_default_scope(scope):
        for registry in registries:
            assert registry.get("mmseg_resnest.ResNeSt") is ResNeSt
            assert isinstance(registry.build(dict(BACKBONE, type="mmseg_resnest.ResNeSt")), ResNeSt)
        assert root.MODELS.get("mmseg.mmseg_resnest.ResNeSt") is ResNeSt  # as configs had to write


def test_a_model_of_another_toolbox_has_our_backbone(toolbox: types.ModuleType) -> None:
    config = dict(type="Detector", backbone=dict(BACKBONE, type="mmseg_resnest.ResNeSt"))
    with DefaultScope.overwrite_default_scope("toolbox"):
        assert isinstance(root.MODELS.build(config).backbone, ResNeSt)
    config = dict(type="toolbox.Detector", backbone=dict(BACKBONE, type="ResNeSt"))
    with DefaultScope.overwrite_default_scope("mmseg_resnest"):
        assert isinstance(root.MODELS.build(config).backbone, ResNeSt)
        assert toolbox.MODELS.build(dict(type="toolbox.ResNeSt")).__class__ is nn.Identity


def test_in_our_scope_our_parts_come_before_those_of_mmseg(toolbox: types.ModuleType) -> None:
    with (
        DefaultScope.overwrite_default_scope("mmseg_resnest"),
        root.MODELS.switch_scope_and_registry(None) as found,
    ):
        assert found is ours.MODELS
        assert found.get("ResNeSt") is ResNeSt
        assert found.get("FCNHead").__module__.startswith("mmseg.")
        assert found.get("mmseg.ResNeSt") is mmseg_registry.MODELS.get("ResNeSt") is not ResNeSt


@pytest.mark.parametrize("name", NAMES)
def test_every_registry_is_reached_from_the_root(toolbox: types.ModuleType, name: str) -> None:
    registry = getattr(ours, name)
    registry.import_from_location()
    assert getattr(root, name).children["mmseg_resnest"] is registry
    assert registry.parent is getattr(mmseg_registry, name)
    for part, kind in registry.module_dict.items():
        assert getattr(toolbox, name).get(f"mmseg_resnest.{part}") is kind
