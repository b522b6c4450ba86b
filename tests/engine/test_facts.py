# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Values as dotted keys and texts: equal where the values are, on any machine."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmseg_resnest.engine.facts import Difference, differences, flatten

_LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5))
_TREES = st.recursive(
    _LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=10),
        st.dictionaries(st.text("abcd", min_size=1, max_size=2), inner, max_size=3),
    ),
    max_leaves=20,
)


@given(_TREES, _TREES)
def test_values_have_equal_texts_only_when_they_are_equal(a: Any, b: Any) -> None:
    paths = [value for value in (a, b) if "/" in repr(value) or "~" in repr(value)]
    if paths:
        return
    same = dict(flatten(a, "key")) == dict(flatten(b, "key"))
    assert same == (json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True))
    assert dict(flatten(a, "key")) == dict(flatten(copy.deepcopy(a), "key"))


@pytest.mark.parametrize(
    ("value", "same", "other"),
    [
        (np.float64(0.5), 0.5, 0.25),
        (np.arange(3), np.arange(3), np.arange(3.0)),
        (torch.ones(2), torch.ones(2), torch.zeros(2)),
        (Path("/a/w.pth"), "/b/w.pth", "/b/v.pth"),
        ({"b", "a"}, {"a", "b"}, {"a"}),
        ((1, 2), [1, 2], (2, 1)),
        (object(), object(), Random()),
        (b"a", b"a", b"b"),
    ],
)
def test_values_of_other_kinds(value: Any, same: Any, other: Any) -> None:
    texts = [dict(flatten({"key": one})) for one in (value, same, other)]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


def test_of_a_list_of_another_length_the_list_alone_differs() -> None:
    ours, theirs = (dict(flatten({"a": list(range(n)), "b": n})) for n in (9, 12))
    assert differences(ours, theirs) == [
        Difference("a", "9 items", "12 items"),
        Difference("b", "9", "12"),
    ]
