# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Configs in MMEngine's Python style: read as what the same config with texts says, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mmcv.transforms
import mmseg.models
import pytest
from mmengine.config import Config
from two_classes import write_python_style
from user_errors import raises_user_error

from mmseg_resnest.engine.config import config_as_text, load_config, named_types
from mmseg_resnest.engine.config.check import registry_of
from mmseg_resnest.registry import DATASETS, MODELS, TRANSFORMS

INHERIT = """
from mmengine.config import read_base

with read_base():
    from .mine import *
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Holds ``mine.py``, files that go wrong, and a module to import from."""
    write_python_style(tmp_path)
    (tmp_path / "broken.py").write_text("x = (\n")
    (tmp_path / "fails.py").write_text("from torch import nn\nx = 1 / 0\n")
    (tmp_path / "text.py").write_text('_base_ = "plain.py"\n')
    (tmp_path / "plain.py").write_text("model = dict()\n")
    (tmp_path / "own_parts.py").write_text(
        "from mmseg.models import FCNHead\nclass Own(FCNHead): ...\ndef own(x):\n    return x\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def load(folder: Path, text: str, inherit: bool = True) -> Config:
    path = folder / "case.py"
    path.write_text((INHERIT if inherit else "") + text)
    return load_config(path)


def types_of(value: Any) -> set[Any]:
    if isinstance(value, dict):
        found = {value["type"]} if "type" in value else set()
        return found.union(*map(types_of, value.values()))
    if isinstance(value, list | tuple):
        return set().union(*map(types_of, value))
    return set()


def test_types_are_names_that_find_the_packages_parts(folder: Path, tmp_path: Path) -> None:
    cfg = load_config(folder / "mine.py")
    assert cfg.default_scope == "mmseg_resnest"
    assert all(isinstance(name, str) and "." not in name for name in types_of(cfg.to_dict()))
    assert cfg.model.backbone.norm_cfg.type == "BN"
    assert TRANSFORMS.get(cfg.train_pipeline[1].type).__module__.startswith("mmseg_resnest.")
    assert not {"part", "Unused", "nn"} & set(cfg)
    (tmp_path / "saved.py").write_text(config_as_text(cfg))
    assert load_config(tmp_path / "saved.py").to_dict() == cfg.to_dict()


def test_classes_in_a_config_that_was_made_in_python() -> None:
    model = dict(type=mmseg.models.EncoderDecoder, backbone=dict(type=mmseg.models.ResNetV1c))
    cfg = named_types(Config(dict(model=model)))
    assert types_of(cfg.to_dict()) == {"EncoderDecoder", "ResNetV1c"}
    plain = Config(dict(model=dict(type="EncoderDecoder")))
    assert named_types(plain) is plain


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("from own_parts import Own\nmodel['decode_head'].update(type=Own)",
         "model.decode_head.type", "own_parts.Own"),
        # Another network than the package's of that name.
        ("from mmseg.models.backbones import ResNeSt\nmodel.update(backbone=dict(type=ResNeSt))",
         "model.backbone.type", "mmseg.models.backbones.resnest.ResNeSt"),
        ("import torch\nmodel['backbone'].update(norm_cfg=dict(type=torch.nn.SyncBatchNorm))",
         "model.backbone.norm_cfg.type", "SyncBN"),
        ("import torch\nfrom mmengine.optim import AmpOptimWrapper\n"
         "optim_wrapper.update(type=AmpOptimWrapper, dtype=torch.bfloat16)",
         "optim_wrapper.dtype", "bfloat16"),
        ("from mmengine.optim import DefaultOptimWrapperConstructor\n"
         "optim_wrapper.update(constructor=DefaultOptimWrapperConstructor)",
         "optim_wrapper.constructor", "DefaultOptimWrapperConstructor"),
        ("default_scope = 'mmseg'",
         "train_dataloader.dataset.type", "mmseg_resnest.datasets.custom.CustomDataset"),
        ("default_scope = 'mmseg'", "model.type", "EncoderDecoder"),
        ("default_scope = 'mmengine'",
         "model.type", "mmseg.models.segmentors.encoder_decoder.EncoderDecoder"),
        ("default_scope = None", "default_scope", "mmseg_resnest"),
        ("import os\nmodel['decode_head'].update(channels=len(os.sep) + 7)",
         "model.decode_head.channels", 8),
        ("model['decode_head'].update(type='FCNHead')", "model.decode_head.type", "FCNHead"),
    ],
)  # fmt: skip
def test_names(folder: Path, text: str, key: str, value: Any) -> None:
    cfg = load(folder, text)
    found: Any = cfg
    for name in key.split("."):
        found = found[name]
    assert found == value


def test_every_registered_part_is_found_by_its_name() -> None:
    """By the name in the scope: the part itself, or one that extends or replaces it."""
    for family in (MODELS, DATASETS, TRANSFORMS):
        for registry in (family, family.parent, family.parent.parent):
            for kind in set(registry.module_dict.values()):
                if isinstance(kind, type) and "<locals>" not in kind.__qualname__:
                    cfg = named_types(Config(dict(part=dict(type=kind))))
                    found = family.get(cfg.part.type)
                    names = {name for name, one in registry.module_dict.items() if one is kind}
                    replaces = found.__module__.startswith("mmseg_resnest.")
                    replaces = replaces and cfg.part.type in names
                    assert issubclass(found, kind) or replaces, kind
    assert registry_of("TRANSFORMS", "mmengine").get("Resize") is mmcv.transforms.Resize


WRONG: dict[str, tuple[str, bool, str, str]] = {
    # what: text, whether it inherits from mine.py, code, subject
    "no base": (INHERIT.replace(".mine", ".nope"), False, "config-syntax", "case.py"),
    "no package of a base": (
        INHERIT.replace(".mine", "no_package.configs.x"), False, "config-syntax", "case.py"
    ),
    "a base that does not parse": (
        INHERIT.replace(".mine", ".broken"), False, "config-syntax", "broken.py, line 1"
    ),
    "a base that fails": (
        INHERIT.replace(".mine", ".fails"), False, "config-syntax", "fails.py, line 2"
    ),
    "a base in the other style": (
        INHERIT.replace(".mine", ".text"), False, "config-syntax", "case.py"
    ),
    "the other style over this one": ("_base_ = 'mine.py'", False, "config-syntax", "case.py"),
    "both styles": ("_base_ = 'plain.py'" + INHERIT, False, "config-syntax", "case.py"),
    "no such class": (
        "from mmseg.models import Nope\nmodel.update(type=Nope)", True, "config-syntax", "case.py"
    ),
    "no such module": (
        "from no_package import Nope\nmodel.update(type=Nope)", True, "config-syntax", "case.py"
    ),
    "a relative import": ("from .own_parts import Own", True, "config-syntax", "case.py, line 6"),
    "an import of everything": ("from torch.nn import *", False, "config-syntax", "case.py"),
    "another with": ("with open('x') as f:\n    pass", False, "config-syntax", "case.py, line 1"),
    "a class of its own": (
        "class Own:\n    pass\nmodel.update(type=Own)", True, "config-type", "model.type"
    ),
    "a partial function": (
        "from functools import partial\nmodel.update(type=partial(print, 1))",
        True, "config-type", "model.type",
    ),
    "a module": ("import torch\nmodel.update(type=torch)", True, "config-type", "model.type"),
    "a part of another kind": (
        "from mmseg.models import FCNHead\ntrain_dataloader['dataset'].update(type=FCNHead)",
        True, "config-type", "train_dataloader.dataset.type",
    ),
    "an unknown option": (
        "from mmseg.models import PSPHead\nmodel['decode_head'].update(type=PSPHead)",
        True, "config-key", "model.decode_head.num_convs",
    ),
    "a function for a value": (
        "from own_parts import own\ntrain_dataloader.update(collate_fn=own)",
        True, "config-value", "train_dataloader.collate_fn",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_refused(folder: Path, case: str) -> None:
    text, inherit, code, subject = WRONG[case]
    with raises_user_error(code, subject):
        load(folder, text, inherit)


def test_what_a_refusal_advises_helps(folder: Path) -> None:
    name = "from own_parts import own\ntrain_dataloader.update(collate_fn=dict(type=own))"
    assert load(folder, name).train_dataloader.collate_fn == dict(type="own_parts.own")
    assert load(folder, "from own_parts import Own").model.type == "EncoderDecoder"
