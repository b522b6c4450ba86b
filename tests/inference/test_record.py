# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Records hold what the package's configs need, and nothing that is not on the list."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mmengine.config import Config
from user_errors import raises_user_error

from mmseg_resnest.engine.config import load_config
from mmseg_resnest.inference.record import (
    check_exported,
    check_published,
    plain_model,
    plain_pipeline,
    read_exported,
)
from mmseg_resnest.io.checks import NotAllowed

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FILES = sorted([*CONFIGS.glob("*.py"), *(CONFIGS / "openmmlab").glob("*.py")])


def record_of(cfg: Config) -> dict[str, Any]:
    """What publishing writes for a config, through JSON."""
    dataset = cfg.test_dataloader.dataset
    while "pipeline" not in dataset:
        dataset = dataset.dataset
    model = Config(dict(model=cfg.model)).to_dict()["model"]
    if cfg.get("data_preprocessor") is not None:
        model.setdefault("data_preprocessor", Config(dict(cfg.data_preprocessor)).to_dict())
    steps = plain_pipeline(list(dataset.pipeline), cfg.default_scope)
    number = cfg.model.decode_head.num_classes
    record = {
        "format": 1,
        "sha256": "0" * 64,
        "classes": [f"c{i}" for i in range(number)],
        "palette": [[0, 0, 0]] * number,
        "model": plain_model(model, cfg.default_scope),
        "pipeline": [step for step in steps if not step["type"].split(".")[-1].startswith("Load")],
    }
    return json.loads(json.dumps(record))


def as_written(value: Any) -> Any:
    """Classes as their names and tuples as lists: the record again."""
    if isinstance(value, dict):
        return {k: as_written(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [as_written(item) for item in value]
    return value.__name__ if isinstance(value, type) else value


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_config_can_be_published(path: Path) -> None:
    record = record_of(load_config(path))
    checked = check_published(record)
    assert as_written(checked) == record
    model = checked["model"]
    assert all(isinstance(model[p]["type"], type) for p in ("backbone", "decode_head"))
    assert isinstance(model["type"], type)
    assert all(isinstance(step["type"], type) for step in checked["pipeline"])


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    return record_of(load_config(CONFIGS / "fcn_resnest14_camvid.py"))


def _objects(value: Any, path: str = "") -> list[tuple[str, dict[str, Any]]]:
    """All objects of a record with their paths."""
    found = [(path, value)] if isinstance(value, dict) else []
    for key, item in value.items() if isinstance(value, dict) else []:
        found += _objects(item, f"{path}.{key}" if path else key)
    for i, item in enumerate(value) if isinstance(value, list) else []:
        found += _objects(item, f"{path}[{i}]")
    return found


EVIL = {
    "_scope_": "evil", "_delete_": True, "__class__": "x", "init_cfg": {"type": "Pretrained"},
    "pretrained": "http://example.org/a.pth", "checkpoint": "a.pth", "imports": ["evil"],
    "custom_imports": {}, "filename": "a", "": 0, "type ": "ResNet", "plugins ": None,
}  # fmt: skip


@pytest.mark.parametrize("key", EVIL)
def test_no_object_takes_a_key_that_is_not_listed(key: str, record: dict[str, Any]) -> None:
    places = [path for path, _ in _objects(record)]
    assert len(places) >= 8  # of the record, the model and its parts, their norms, the steps
    for place in places:
        changed = json.loads(json.dumps(record))
        next(item for path, item in _objects(changed) if path == place)[key] = EVIL[key]
        with pytest.raises(NotAllowed) as caught:
            check_published(changed)
        assert caught.value.key.startswith(place)


BAD_VALUES = [  # place, value, and the key that the error names, where it is another one
    ("model.backbone.arch", {"blocks": [10**9, 1, 1, 1]}, "model.backbone.arch.blocks[0]"),
    ("model.backbone.arch", "resnest9", ""),
    ("model.backbone.output_stride", 8.0, ""),
    ("model.backbone.norm_cfg.eps", float("nan"), ""),
    ("model.backbone.norm_cfg.requires_grad", 1, ""),
    ("model.decode_head.channels", 10**12, ""),
    ("model.decode_head.channels", True, ""),
    ("model.decode_head.num_classes", 10**5, ""),
    ("model.decode_head.num_classes", 12, "classes"),
    ("model.decode_head.in_channels", [2048] * 100, ""),
    ("model.decode_head.num_convs", 10**6, ""),
    ("model.test_cfg", {"mode": "slide"}, ""),
    ("model.test_cfg", {"scales": [1e9]}, "model.test_cfg.scales[0]"),
    ("model.test_cfg", {"scales": [8.0], "base_size": 8192}, "model.test_cfg.scales"),
    ("model.data_preprocessor.std", [0, 0, 0], "model.data_preprocessor.std[0]"),
    ("model.data_preprocessor.size", [10**9, 1], "model.data_preprocessor.size[0]"),
    ("model.neck", {"type": "FPN"}, ""),
    ("pipeline", {}, ""),
    ("pipeline", [{"type": "PackSegInputs"}] * 100, ""),
    ("pipeline", [{"type": "Resize", "scale": [16384, 16384]}], "pipeline[0].scale"),
    ("pipeline", [{"type": "Resize", "scale_factor": 1000}], "pipeline[0].scale_factor"),
    ("pipeline", [{"type": "PackSegInputs", "meta_keys": ["x"]}], "pipeline[0].meta_keys[0]"),
    ("classes", "abcdefghijk", ""),
    ("classes", ["a"] * 10, ""),
    ("classes", ["a"] * 10**5, ""),
    ("classes", ["a" * 10**5] * 11, "classes[0]"),
    ("classes", ["\ud800"] * 11, "classes[0]"),
    ("palette", [[0, 0, 256]] * 11, "palette[0][2]"),
    ("palette", [[0, 0]] * 11, "palette[0]"),
    ("sha256", None, ""),
    ("format", 2, ""),
    ("format", True, ""),
]  # fmt: skip


@pytest.mark.parametrize(("place", "value", "key"), BAD_VALUES)
def test_values_out_of_bounds_are_refused(
    place: str, value: Any, key: str, record: dict[str, Any]
) -> None:
    changed = json.loads(json.dumps(record))
    *parents, last = place.split(".")
    target = changed
    for parent in parents:
        target = target[parent]
    target[last] = value
    with pytest.raises(NotAllowed) as caught:
        check_published(changed)
    assert caught.value.key == (key or place)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("value", [None, [], 3, "text", {}, {"format": 1}, {"format": "1"}])
def test_other_documents_are_refused(value: Any) -> None:
    for check in (check_published, check_exported):
        with pytest.raises(NotAllowed):
            check(value)


@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=10,
    ),
    data=st.data(),
)
def test_any_json_anywhere_is_refused_or_returned(value: Any, data: Any) -> None:
    record = record_of(SMALL)
    place = data.draw(st.sampled_from([item for _, item in _objects(record)]))
    place[data.draw(st.sampled_from([*place, "new"]))] = value
    try:
        checked = check_published(record)
    except NotAllowed:
        return
    written = json.loads(json.dumps(as_written(checked)))
    assert json.dumps(written, sort_keys=True) == json.dumps(record, sort_keys=True)


SMALL = load_config(CONFIGS / "fcn_resnest14_scenes.py")


def test_large_records_are_refused() -> None:
    with raises_user_error("too-large", "a.onnx"):
        read_exported('"' + "x" * (4 << 20) + '"', "a.onnx")
