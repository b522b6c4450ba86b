# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The text of a config in a checkpoint is read back as the values that it was made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mmengine.config import Config
from user_errors import raises_user_error

from mmseg_resnest.engine.config import config_as_text
from mmseg_resnest.engine.config.saved import parse_literals

_TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=6)
_NAMES = st.sampled_from(["type", "lr", "custom_keys", "label_map"])
_KEYS = st.one_of(_NAMES, st.sampled_from(["backbone.layer1", "a-b", ""]), st.integers(-3, 300))
_PLAIN = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), _TEXT)
_VALUES = st.recursive(
    _PLAIN,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_KEYS, inner, max_size=3)),
    max_leaves=8,
)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(_NAMES, _VALUES, max_size=3))
@example({"lr": [-float("inf"), -1, -0.5]})
def test_values_survive_the_text(values: dict[str, Any]) -> None:
    text = config_as_text(Config(values))
    assert parse_literals(text, Path("last.pth")) == values


def test_learning_rates_by_module_and_maps_of_labels_survive() -> None:
    rates = {"backbone.stem": {"lr_mult": 0.1}, "decode_head": {"lr_mult": 10.0}}
    values = {
        "optim_wrapper": {"paramwise_cfg": {"custom_keys": rates}},
        "train_dataloader": {"dataset": {"label_map": {11: 255, 0: 1}}},
    }
    assert parse_literals(config_as_text(Config(values)), Path("last.pth")) == values


@pytest.mark.parametrize(
    "text",
    [
        "1" + "-1" * 9000, "True" + "-True" * 9000, "a" + "()" * 9000, "a" + ".b" * 9000,
        "-" * 9000 + "1", "[" * 9000, "not " * 9000 + "1", "{**{}}", "dict(**{})", "dict(a=1, a=2)",
        "{1: 2, 1: 3}", "{1.5: 2}", "[1][0]", "1; b = 2", "{1, 2}", "b'x'", "1j", "-True", "...",
        "[1 for x in y]", "open('x')", "float('1')", "a", "",
    ],
)  # fmt: skip
def test_anything_else_is_refused(text: str) -> None:
    with raises_user_error("config-syntax", "last.pth"):
        parse_literals(f"a = {text}", Path("last.pth"))
