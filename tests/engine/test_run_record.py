# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What must be the same in every process of a run, and what may differ."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from torch import nn
from torch.utils.data import Subset
from user_errors import raises_user_error

from mmseg_resnest.engine.run_record import (
    RunRecord,
    describe_dataset,
    describe_differences,
    describe_model_state,
    record_run,
)

_CLASSES = ("road", "sky")


def _make_files(root: Path, names: tuple[str, ...] = ("a", "b", "deep/c")) -> Path:
    for name in names:
        for folder, suffix in (("img", ".jpg"), ("lab", ".png")):
            path = root / folder / f"{name}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return root


def _dataset(root: Path, **options: Any) -> dict[str, Any]:
    return dict(
        type="BaseSegDataset",
        data_root=str(root),
        data_prefix=dict(img_path="img", seg_map_path="lab"),
        metainfo=dict(classes=_CLASSES, palette=[[0, 0, 0], [9, 9, 9]]),
        pipeline=[],
        **options,
    )


def _config(root: Path) -> Config:
    return Config(
        dict(
            default_scope="mmseg_resnest",
            work_dir=str(root / "work"),
            model=dict(type="Anything", layers=(1, 2), norm_cfg=dict(type="BN")),
            train_dataloader=dict(
                batch_size=2, num_workers=4, sampler=dict(type="InfiniteSampler"),
                dataset=_dataset(root),
            ),
            val_dataloader=dict(batch_size=1, dataset=_dataset(root)),
            optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.01)),
            randomness=dict(seed=3),
        )
    )  # fmt: skip


def _record(cfg: Config, **options: Any) -> RunRecord:
    model = describe_model_state(nn.Linear(2, 3))
    return record_run(cfg, ("train_dataloader", "val_dataloader"), model, **options)


def _set(key: str, value: Any) -> Callable[[Config], None]:
    return lambda cfg: cfg.merge_from_dict({key: value})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_set("optim_wrapper.optimizer.lr", 0.02), "optim_wrapper.optimizer.lr is 0.02, not 0.01"),
        (_set("model.layers", (1, 3)), "key model.layers is [1, 3], not [1, 2]"),
        (_set("model.norm_cfg.eps", 0.1), "key model.norm_cfg.eps is 0.1, not missing"),
        (lambda cfg: cfg.model.pop("norm_cfg"), "key model.norm_cfg.type is missing, not 'BN'"),
        (_set("model.type", nn.Linear), "is torch.nn.modules.linear.Linear, not 'Anything'"),
        (_set("model.text", "x" * 100), "key model.text is 'xxx"),
    ],
)  # fmt: skip
def test_a_key_that_differs_is_named(
    change: Callable[[Config], None], said: str, tmp_path: Path
) -> None:
    cfg = _config(_make_files(tmp_path))
    other = copy.deepcopy(cfg)
    change(other)
    mine, theirs = _record(other), _record(cfg)
    assert mine.digest() != theirs.digest()
    found = describe_differences(mine, theirs)
    assert found[0].startswith("config key "), found
    assert said in found[0]
    assert describe_differences(theirs, mine)


def test_the_place_of_data_and_files_may_differ(tmp_path: Path) -> None:
    records = []
    for name in ("here", "there"):
        root = _make_files(tmp_path / name)
        cfg = _config(root)
        cfg.val_dataloader.dataset.data_root = None  # the folders are absolute paths
        prefix = dict(img_path=str(root / "img"), seg_map_path=str(root / "lab"))
        cfg.val_dataloader.dataset.data_prefix = prefix
        cfg.model.teacher = str(root / "teacher.pth")
        cfg.model.cache = str(root)
        records.append(_record(cfg))
    assert describe_differences(*records) == []
    assert records[0].digest() == records[1].digest()
    cfg.model.teacher = str(root / "another.pth")
    assert describe_differences(_record(cfg), records[0]) == [
        "config key model.teacher is a file another.pth, not a file teacher.pth"
    ]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("a", "b"), "train_dataloader.dataset has 2 images, not 3, without deep/c.jpg"),
        (("a", "b", "deep/c", "d"), "has 4 images, not 3, with d.jpg"),
        (("a", "b", "c"), "has other images, without deep/c.jpg, with c.jpg"),
    ],
)
def test_samples_that_differ_are_named(names: tuple[str, ...], said: str, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    cfg, other = _config(_make_files(there)), _config(_make_files(here, names))
    other.val_dataloader = cfg.val_dataloader
    (found,) = describe_differences(_record(other), _record(cfg))
    assert said in found


def test_label_maps_and_the_order_of_samples(tmp_path: Path) -> None:
    cfg = _config(_make_files(tmp_path))
    theirs, mine = _record(cfg), _record(cfg)
    labels, images = (("train_dataloader.dataset", kind) for kind in ("label maps", "images"))
    mine.files[labels][1] = "other.png"
    (found,) = describe_differences(mine, theirs)
    assert "has other label maps, without b.png, with other.png" in found
    mine.files[labels] = theirs.files[labels]
    mine.files[images] = [theirs.files[images][i] for i in (0, 2, 1)]
    (found,) = describe_differences(mine, theirs)
    assert "another order" in found


def _wrapped(kind: str, dataset: dict[str, Any]) -> Any:
    if kind == "mix":
        return dict(type="MultiImageMixDataset", dataset=dataset, pipeline=[])
    both = dict(type="ConcatDataset", datasets=[copy.deepcopy(dataset), dataset])
    return dict(type="RepeatDataset", dataset=both, times=2)


@pytest.mark.parametrize("kind", ["mix", "repeat of concat"])
def test_wrappers_are_looked_into(kind: str, tmp_path: Path) -> None:
    roots = [_make_files(tmp_path / "1"), _make_files(tmp_path / "2", ("a", "b", "x"))]
    records = []
    for root in (roots[0], roots[0], roots[1]):
        cfg = _config(root)
        cfg.train_dataloader.dataset = _wrapped(kind, _dataset(root))
        cfg.val_dataloader = None
        records.append(_record(cfg))
    assert records[0].digest() == records[1].digest()
    assert any("with x.jpg" in text for text in describe_differences(records[2], records[0]))


def test_data_sets_that_are_objects(tmp_path: Path) -> None:
    """Without names their length counts; of a selection which samples it takes."""

    def facts(dataset: Any) -> RunRecord:
        record = RunRecord()
        describe_dataset(dataset, "set", record)
        return record

    assert describe_differences(facts([1, 2, 3]), facts([1])) == ["set length is 3, not 1"]
    some = [facts(Subset(range(9), chosen)) for chosen in ([1, 2], [1, 2], [1, 3])]
    assert some[0].digest() == some[1].digest()
    assert "set indices" in describe_differences(some[0], some[2])[0]
    assert describe_differences(facts(range(3)), facts([1, 2, 3]))


def test_code_versions_model_and_checkpoint(tmp_path: Path) -> None:
    cfg = _config(_make_files(tmp_path))
    weights = [tmp_path / str(i) / "w.pth" for i in range(3)]
    for i, path in enumerate(weights):
        path.parent.mkdir()
        path.write_bytes(b"same" if i < 2 else b"other")
    theirs = _record(cfg, checkpoint=weights[0], submission=True)
    assert _record(cfg, checkpoint=weights[1], submission=True).digest() == theirs.digest()
    mine = _record(cfg, checkpoint=weights[2], submission=False)
    mine.facts["torch"] = "1.0"
    for name in ("mmseg_resnest.engine.loop", "mmseg.models.builder", "mmseg.loaded_here_alone"):
        mine.facts[f"source of module {name}"] = "content x"
    mine.facts |= {"model weight": "float32 (4, 2)", "model more": "float32 ()"}
    found = "\n".join(describe_differences(mine, theirs))
    for text in (
        "argument submission is False, not True",
        "the checkpoint's SHA-256 is ",
        f"torch is 1.0, not {torch.__version__}",
        "source of module mmseg_resnest.engine.loop is ",
        "source of module mmseg.models.builder is ",
        "model weight is float32 (4, 2), not float32 (3, 2)",
        "model more is float32 (), not missing",
    ):
        assert text in found
    assert "loaded_here_alone" not in found and "source of module torch" not in theirs.facts
    with raises_user_error("not-found", "nothing.pth"):
        _record(cfg, checkpoint=tmp_path / "nothing.pth")
