# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Configs in JSON and YAML run nothing, whatever is in them."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from user_errors import raises_user_error

from mmseg_resnest.engine.config import load_config
from mmseg_resnest.engine.config.data import PARTS, registered_parts
from mmseg_resnest.errors import UserError
from mmseg_resnest_cli.package import list_configs

SMALL = "fcn_resnest14_scenes"


def refused(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_config(path)
    assert str(path) in caught.value.subject and "\n" not in str(caught.value)
    assert caught.value.code in ("config-syntax", "config-key", "config-value", "too-large")
    return str(caught.value)


@pytest.mark.parametrize("suffix", [".json", ".yaml", ".yml"])
def test_a_config_inherits_and_changes(tmp_path, suffix):
    path = tmp_path / f"mine{suffix}"
    base = tmp_path / "base.json"
    base.write_text(json.dumps({"_base_": SMALL, "train_cfg": {"max_iters": 7, "val_interval": 3}}))
    path.write_text(
        json.dumps(
            {
                "_base_": "base.json",
                "train_cfg": {"max_iters": 3},
                "model": {"decode_head": {"loss_decode": {"_delete_": True, "type": "DiceLoss"}}},
            }
        )
    )
    cfg = load_config(path, ["model.decode_head.num_classes=5"])
    assert cfg.train_cfg.max_iters == 3 and cfg.train_cfg.val_interval == 3
    assert cfg.model.decode_head.loss_decode == dict(type="DiceLoss")
    assert cfg.model.decode_head.num_classes == 5
    assert cfg.model.backbone == load_config(SMALL).model.backbone
    assert cfg.filename == str(path)


@pytest.mark.parametrize("name", [n for n in list_configs() if "50" in n][::4])
def test_what_the_package_ships_can_be_written_as_data(tmp_path, name):
    whole = load_config(name)
    path = tmp_path / "whole.json"
    path.write_text(json.dumps(whole.to_dict()))
    assert load_config(path).to_dict() == json.loads(json.dumps(whole.to_dict()))


def test_bases_lie_in_the_folder_of_the_config(tmp_path):
    folder = tmp_path / "got" / "sub"
    folder.mkdir(parents=True)
    for place in (tmp_path, tmp_path / "got", folder):
        (place / "base.json").write_text('{"work_dir": "x"}')
    (folder / "middle.json").write_text('{"_base_": "../base.json"}')
    (tmp_path / "got" / "link.json").symlink_to(tmp_path / "base.json")
    (tmp_path / "got" / "linked").symlink_to(tmp_path)
    path = tmp_path / "got" / "mine.json"
    for base in ("base.json", "sub/base.json", "sub/middle.json", "sub/../base.json"):
        path.write_text(json.dumps({"_base_": base}))
        assert load_config(path).work_dir == "x"
    outside = ("../base.json", str(tmp_path / "base.json"), "link.json", "linked/base.json",
               "../got/../base.json", "a\0b.json", "a" * 5000 + ".json")  # fmt: skip
    for base in outside:
        refused(path, json.dumps({"_base_": base}))


@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object/apply:os.system ['true']",
        "a: {x: &x [1, *x]}",
        "base: &b {a: 1}\nmodel: {<<: *b}",
        "work_dir: a\nwork_dir: b",
        "a: 2026-11-21",
        "a: !!set {b, c}",
        "a: .inf",
        "1: 2",
        "- 1",
        "a: 1\n---\na: 2",
        "a: " + "[" * 5000,
        "? " * 3000,
    ],
)
def test_yaml_is_data(tmp_path, text):
    """tests/security tries that nothing runs; here each is an error."""
    refused(tmp_path / "mine.yaml", text)


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"custom_imports": {"imports": ["evil"]}}, "custom_imports"),
        ({"model": {"_scope_": "evil_package"}}, "_scope_"),
        ({"model": {"decode_head": {"type": "evil"}}}, "model.decode_head.type"),
        ({"model": {"type": "mmseg.models.EncoderDecoder"}}, "model.type"),
        ({"model": {"type": ["evil"]}}, "model.type"),
        ({"somewhere": [{"deep": {"type": "os"}}]}, "somewhere.0.deep.type"),
        ({"optim_wrapper": {"constructor": "evil"}}, "optim_wrapper.constructor"),
        ({"custom_hooks": [{"type": "ProfilerHook"}]}, "ProfilerHook"),
        ({"test_evaluator": {"type": "DumpResults", "out_file_path": "a.pkl"}}, "DumpResults"),
        ({"train_pipeline": [{"type": "Albu", "transforms": []}]}, "Albu"),
        ({"model": {"backbone": {"type": "VPD"}}}, "VPD"),
        ({"visualizer": {"vis_backends": [{"type": "WandbVisBackend"}]}}, "WandbVisBackend"),
        ({"compile": {"options": {"cpp.cxx": ["touch"]}}}, "compile"),
        ({"train_pipeline": [{"backend_args": {"backend": "petrel"}}]}, "backend_args"),
        ({"data_root": "{{$HOME:x}}"}, "data_root"),
        ({"a');__import__('evil')#": 1}, "key"),
        ({"model": {"a\nb": 1}}, "key"),
        ({"model": {"__class__": 1}}, "__class__"),
        ({"model": {"_delete_": "yes"}}, "_delete_"),
        ({"model": "EncoderDecoder", "_base_": 3}, "_base_"),
        ({"_base_": "missing.json"}, "missing.json"),
        ({"_base_": "evil.py"}, "evil.py"),
        ({"_base_": "/etc/passwd"}, "passwd"),
        ({"_base_": "mine.json"}, "circle"),
        ({"_base_": [SMALL, SMALL]}, "_base_"),
        (
            {"_base_": SMALL, "work_dir": {"x": 1}, "train_cfg": {"max_iters": {"a": 1}}},
            "max_iters",
        ),
        ({"a": float("nan")}, "finite"),
    ],
)
def test_a_config_that_is_data_reaches_nothing_else(tmp_path, values, key):
    assert key in refused(tmp_path / "mine.json", json.dumps(values))


def test_a_python_config_does_not_inherit_from_data(tmp_path):
    """MMEngine's YAML loader would run it."""
    marker = tmp_path / "marker"
    (tmp_path / "base.yaml").write_text(f"a: !!python/object/apply:os.system ['touch {marker}']")
    (tmp_path / "middle.py").write_text("_base_ = ['base.yaml']\n")
    (tmp_path / "leaf.py").write_text("_base_ = './middle.py'\n")
    for name in ("middle.py", "leaf.py"):
        with raises_user_error("config-syntax", "middle.py"):
            load_config(tmp_path / name)


@pytest.mark.parametrize("suffix", [".py", ".json", ".yaml"])
def test_what_is_no_regular_file_or_has_no_size_of_a_config(tmp_path, suffix):
    path = tmp_path / f"mine{suffix}"
    path.mkdir()
    with raises_user_error("wrong-path-type", path):
        load_config(path)
    path.rmdir()
    os.mkfifo(path)
    with raises_user_error("wrong-path-type", path):
        load_config(path)
    path.unlink()
    with path.open("wb") as file:
        file.truncate(10 << 30)
    with raises_user_error("too-large", path):
        load_config(path)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["type", "_base_", "_scope_", "model", "default_scope", "_delete_", "a.b"]
            )
            | st.text(max_size=4),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(values=values, suffix=st.sampled_from([".json", ".yaml"]))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_data_is_read_or_refused_in_words(tmp_path, values, suffix):
    path = tmp_path / f"any{suffix}"
    path.write_text(json.dumps(values), encoding="utf-8")
    with contextlib.suppress(UserError):
        load_config(path)


def test_the_parts_that_data_may_name_exist():
    """A module that the stack has moved would silently be refused."""
    modules = {part.__module__ for found in registered_parts().values() for part in found}
    for module in PARTS:
        assert any(m == module or m.startswith(f"{module}.") for m in modules), module
