# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
from __future__ import annotations

import os
from pathlib import Path

import pytest
from user_errors import raises_user_error

from mmseg_resnest.engine.config import check_config, load_config, require

ROOT = Path(__file__).resolve().parents[3]
CAMVID = ROOT / "configs" / "fcn_resnest14_camvid.py"


def test_data_root_of_all_data_sets(tmp_path: Path) -> None:
    (tmp_path / "camvid").mkdir()
    before = dict(os.environ)
    cfg = load_config(CAMVID, data_root=tmp_path)
    loaders = (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader)
    assert {loader.dataset.data_root for loader in loaders} == {f"{tmp_path}/camvid"}
    assert dict(os.environ) == before

    cfg = load_config(CAMVID, ["data_root=/elsewhere"])
    loaders = (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader)
    assert {loader.dataset.data_root for loader in loaders} == {"/elsewhere"}


def test_data_root_that_the_config_does_not_read(tmp_path: Path) -> None:
    config = tmp_path / "c.py"
    config.write_text("model = dict(type='EncoderDecoder')\n")
    with raises_user_error("config-conflict", "--data-root"):
        load_config(config, data_root=tmp_path)


def test_near_names_are_suggested() -> None:
    with raises_user_error("not-found", "fcn_resnst14_camvid.py") as info:
        load_config("configs/fcn_resnst14_camvid.py")
    assert "fcn_resnest14_camvid.py" in info.value.message


def test_mistakes_in_a_base_are_found_there(tmp_path: Path) -> None:
    (tmp_path / "base.py").write_text("a = 1\nb = (\n")
    (tmp_path / "leaf.py").write_text("_base_ = 'base.py'\n")
    with raises_user_error("config-syntax", "base.py, line 2"):
        load_config(tmp_path / "leaf.py")
    (tmp_path / "base.py").write_text("a = 1\nb = a / 0\n")
    with raises_user_error("config-syntax", "base.py, line 2") as info:
        load_config(tmp_path / "leaf.py")
    assert info.value.message.startswith("ZeroDivisionError")


@pytest.mark.parametrize(
    "good",
    [
        # **kwargs handed to a base class, used by the class itself, and taken by the builder.
        dict(model=dict(type="EncoderDecoder", decode_head=dict(type="FCNHead", num_classes=2))),
        dict(tta_model=dict(type="MultiScaleGridTTA", scales=(1.0,))),
        dict(param_scheduler=[dict(type="PolyLR", power=0.9, convert_to_iter_based=True)]),
        dict(custom_hooks=[dict(type="EMAHook", momentum=0.1, priority="LOW")]),
        dict(model=dict(type="ResNeSt", norm_cfg=dict(type="BN", requires_grad=True, eps=1e-3))),
        dict(optim_wrapper=dict(optimizer=dict(type="SGD", lr=1), paramwise_cfg=dict(x=1))),
    ],
)
def test_what_the_stack_accepts_is_accepted(good: dict) -> None:
    check_config({"default_scope": "mmseg_resnest", **good})


def test_another_scope_is_checked_against_its_own_parts() -> None:
    """MMSegmentation's ResNeSt has a depth, ours has none."""
    model = dict(model=dict(type="ResNeSt", depth=50))
    check_config({"default_scope": "mmseg", **model})
    with raises_user_error("config-key", "model.depth"):
        check_config({"default_scope": "mmseg_resnest", **model})


def test_required_parts() -> None:
    cfg = load_config(CAMVID)
    require(cfg, ["model"], "training")
    cfg.model = None
    with raises_user_error("config-key", CAMVID):
        require(cfg, ["model"], "training")
