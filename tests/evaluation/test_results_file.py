# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Results of a stranger are read as what an evaluation writes, or refused with the key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmseg_resnest.errors import UserError
from mmseg_resnest.evaluation import write_result
from mmseg_resnest.evaluation.results_file import read_examples, read_results_file

RESULTS: dict[str, Any] = {
    "task": "test", "config": "configs/a.py", "checkpoint": "b.pth", "tta": False,
    "folded": True, "version": "1.0", "seconds": 1.5, "mIoU": 50.0, "pixAcc": 100.0,
    "mAcc": float("nan"), "mIoU_interval": [40.0, 60.0], "images": 3, "labelled_pixels": 10,
    "classes": [
        {"name": "a", "IoU": 50.0, "Acc": 60.0, "label": 10, "predicted": 3},
        {"name": "b", "IoU": float("nan"), "Acc": None, "label": 0, "predicted": 0},
    ],
    "confusion_matrix": [[5, 5], [0, 0]],
    "history": [{"iteration": 10, "mIoU": 40.0}],
}  # fmt: skip
EXAMPLES: dict[str, Any] = {
    "classes": ["a", "b"], "palette": [[0, 0, 0], [255, 255, 255]],
    "images": [{"file": "00000", "name": "x.jpg", "mIoU": 50.0, "pixAcc": 60.0,
                "pairs": [[0, 1, 7]], "kinds": ["worst", "confusion"]}],
}  # fmt: skip
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return [
        found
        for key, item in items
        for found in (
            (*place, key),
            *(places(item, (*place, key)) if isinstance(item, dict | list) else ()),
        )
    ]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_result(RESULTS, path)
    results = read_results_file(path)
    assert results["mIoU"] == 50.0 and results["mAcc"] is None
    assert results["classes"][1] == {"name": "b", "IoU": None, "Acc": None, "label": 0}
    assert results["confusion_matrix"] == ((5, 5), (0, 0))
    assert "version" not in results, "other keys are left out"
    write_result(EXAMPLES, path)
    assert read_examples(path)["images"][0]["pairs"] == ((0, 1, 7),)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mIoU", float("inf")),
        ("mIoU", float("nan")),
        ("pixAcc", "50"),
        ("mAcc", 101),
        ("images", True),
        ("images", -1),
        ("images", 10**400),
        ("seconds", 10**400),
        ("classes", None),
        ("classes", [{"name": 1, "IoU": 5}]),
        ("classes", [{"name": "a"}]),
        ("confusion_matrix", [[1]]),
        ("confusion_matrix", [[1, 2], [3]]),
        ("history", [{"mIoU": 5}]),
        ("history", [{"iteration": 1.5}]),
        ("mIoU_interval", [1]),
    ],
)
def test_the_key_is_named(tmp_path: Path, key: str, value: Any) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps({**RESULTS, "mAcc": 1.0, "classes": [], key: value}))
    if key == "confusion_matrix":
        path.write_text(json.dumps({"classes": RESULTS["classes"][:1] * 2, key: value}))
    with pytest.raises(UserError, match=rf"results\.json: .*key {key}"):
        read_results_file(path)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), which=st.booleans())
def test_any_value_anywhere(data: st.DataObject, which: bool, tmp_path: Path) -> None:
    record = json.loads(json.dumps(RESULTS if which else EXAMPLES))
    *above, last = data.draw(st.sampled_from(places(record)))
    part = record
    for key in above:
        part = part[key]
    part[last] = data.draw(ANYTHING)
    path = tmp_path / "record.json"
    path.write_text(json.dumps(record))
    message = str(path)
    try:
        checked = (read_results_file if which else read_examples)(path)
        json.dumps(checked, allow_nan=False).encode()
    except UserError as error:
        message = str(error)
    assert str(path) in message and "\n" not in message
