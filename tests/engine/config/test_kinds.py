# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A value of any kind in any key of a config is a config that reads, or one error."""

from __future__ import annotations

from pathlib import Path

import pytest
from two_classes import write_python_style
from user_errors import raises_user_error

from mmseg_resnest.engine.config import load_config
from mmseg_resnest.engine.config.check import EFFECTIVE_KEYS
from mmseg_resnest.errors import UserError


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_python_style(tmp_path_factory.mktemp("kinds"))


VALUES = ("3", "x", "[1]", "{a: 1}", "None", "[]", "''")
DEEP = (
    *("default_hooks.checkpoint", "model.backbone.type", "val_evaluator.metrics"),
    *("train_dataloader.dataset.pipeline.0", "val_evaluator.type", "model.backbone"),
)


@pytest.mark.long
def test_any_value_of_any_key(config: Path) -> None:
    elsewhere = []
    for key in sorted(EFFECTIVE_KEYS) + list(DEEP):
        for value in VALUES:
            try:
                load_config(config, [f"{key}={value}"])
            except UserError as error:
                # Without a scope the stack's parts are not found, wherever they are.
                if key != "default_scope" and key.split(".")[0] not in error.subject:
                    elsewhere.append(str(error))
    assert not elsewhere


@pytest.mark.parametrize(
    ("option", "key"),
    [
        ("custom_hooks=3", "custom_hooks"),
        ("custom_hooks=[1]", "custom_hooks.0"),
        ("default_hooks={a: 1}", "default_hooks.a"),
        ("default_hooks=[]", "default_hooks"),
        ("env_cfg=x", "env_cfg"),
        ("load_from=3", "load_from"),
        ("log_level=loud", "log_level"),
        ("visualizer=[]", "visualizer"),
        ("log_processor={_delete_: true, a: 1}", "log_processor.a"),
        ("compile=x", "compile"),
        ("default_scope=[1]", "default_scope"),
        ("default_scope=nowhere", "default_scope"),
        ("test_dataloader=[]", "test_dataloader"),
        ("train_dataloader.dataset.pipeline=None", "train_dataloader.dataset.pipeline"),
        ("train_dataloader.dataset.pipeline.1=None", "train_dataloader.dataset.pipeline.1"),
        ("train_dataloader.dataset.data_root=3", "train_dataloader.dataset.data_root"),
        ("val_dataloader.dataset.data_prefix.img_path=2024",
         "val_dataloader.dataset.data_prefix.img_path"),
        ("train_dataloader.dataset.metainfo.classes=3",
         "train_dataloader.dataset.metainfo.classes"),
        ("val_evaluator.metrics=3", "val_evaluator.metrics"),
    ],
)  # fmt: skip
def test_the_key_is_named(config: Path, option: str, key: str) -> None:
    with raises_user_error(("config-value", "config-key")) as info:
        load_config(config, [option])
    assert info.value.subject == f"config key {key}"
