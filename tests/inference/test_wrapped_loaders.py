# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Each loader inside each wrapper of data sets, through the tools: the same inputs and labels."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loader_cases import CASES, FILE, World, evaluated, samples_of
from mmengine.config import Config
from user_errors import raises_user_error

from mmseg_resnest import load_segmentor
from mmseg_resnest.datasets.check import check_data
from mmseg_resnest.datasets.file_loading import decoded_by, received
from mmseg_resnest.datasets.reader import ImageReader
from mmseg_resnest.engine.browse import browse
from mmseg_resnest.export.publish import publish
from mmseg_resnest.registry import building


def _halves(dataset: Any) -> list[Any]:
    """Two data sets with one image and two images of a data set."""
    folder = Path(dataset.data_prefix.img_path).parent
    (folder / "first.txt").write_text("1\n")
    (folder / "others.txt").write_text("0\n2\n")
    return [dict(dataset, ann_file=str(folder / name)) for name in ("first.txt", "others.txt")]


def _split_pipeline(dataset: Any) -> Any:
    """A wrapper that goes on where its data set's pipeline ends."""
    inner = dict(dataset, pipeline=dataset.pipeline[:1])
    return dict(type="MultiImageMixDataset", dataset=inner, pipeline=dataset.pipeline[1:])


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "concat": lambda d: dict(type="ConcatDataset", datasets=_halves(d)),
    "repeat": lambda d: dict(type="RepeatDataset", times=1, dataset=d),
    "balanced": lambda d: dict(type="ClassBalancedDataset", oversample_thr=0.5, dataset=d),
    "mix": _split_pipeline,
    "nested": lambda d: dict(
        type="RepeatDataset", times=2,
        dataset=dict(type="ConcatDataset", datasets=[
            dict(type="ClassBalancedDataset", oversample_thr=2.0, dataset=_halves(d)[0]),
            dict(type="RepeatDataset", times=1, dataset=_split_pipeline(Config(_halves(d)[1]))),
        ]),
    ),
    "parts in other words": lambda d: dict(type="ConcatDataset", datasets=[
        _halves(d)[0],
        {**_halves(d)[1], "pipeline": [
            {**step, "type": f"mmseg.{step['type']}"} for step in d.pipeline
        ]},
    ]),
}  # fmt: skip


#: Loaders whose names mmseg has.
IN_MMSEG = [name for name, case in CASES.items()
            if isinstance(case.loader["type"], str) and case.loader["type"] != "LoadBands"
            and not case.own and case.suffix != ".npy"]  # fmt: skip


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_every_loader_in_every_wrapper(world: Callable[[str], World], wrapper: str) -> None:
    """What the network is given is the same, and so are labels: no network runs here."""
    for name in IN_MMSEG if wrapper == "parts in other words" else CASES:
        tested = world(name)
        cfg = copy.deepcopy(tested.cfg)
        cfg.test_dataloader.dataset = WRAPPERS[wrapper](cfg.test_dataloader.dataset)
        with building("mmseg_resnest"):
            reader = ImageReader.of(cfg.test_dataloader.dataset, "test_dataloader.dataset")
        seen = set()
        for path, sample in samples_of(cfg):
            seen.add(path)
            single = reader.prepare(reader.read(path))["inputs"]
            plain = tested.model.reader.prepare(tested.model.reader.read(path))["inputs"]
            assert torch.equal(single, sample["inputs"]), (name, path)
            assert torch.equal(single, plain), (name, path)
        assert seen == set(tested.labels), name


#: Each wrapper with another loader, through the tools: a covering of the product above.
COVERED = {
    "concat": "grey", "repeat": "npy", "balanced": "bands", "mix": "own",
    "nested": "16-bit colours",
}  # fmt: skip


@pytest.mark.parametrize("wrapper", [
    pytest.param(name, marks=pytest.mark.long if name == "nested" else ()) for name in COVERED
])  # fmt: skip
def test_tools_take_wrapped_data_sets(
    world: Callable[[str], World], wrapper: str, tmp_path: Path
) -> None:
    tested = world(COVERED[wrapper])
    cfg = copy.deepcopy(tested.cfg)
    cfg.test_dataloader.dataset = WRAPPERS[wrapper](cfg.test_dataloader.dataset)
    wrapped = World(tested.case, cfg, load_segmentor(cfg, None, "cpu"), tested.labels)
    wrapped.model.model.load_state_dict(tested.model.model.state_dict())
    assert wrapped.model.classes == tested.model.classes
    labels = evaluated(wrapped, tmp_path)
    publish(wrapped.model, tmp_path / "published")
    published = load_segmentor(tmp_path / "published", device="cpu")
    function = decoded_by(wrapped.model.reader)
    for path, expected in tested.labels.items():
        assert np.array_equal(labels[path], expected)
        assert np.array_equal(wrapped.model(path).labels, expected)
        sent = received(wrapped.model.reader, function(Path(path).read_bytes()))
        assert np.array_equal(wrapped.model(sent).labels, expected)
        loaded = path if wrapper != "mix" else wrapped.model.reader.read(path)  # its own loader
        assert np.array_equal(published(loaded).labels, expected)
    assert browse(cfg, tmp_path / "sheets", "test", images=3, draws=1)["images"] == 3
    report = check_data(cfg, ["test"], workers=1, progress=False)
    assert {problem.rule for problem in report.problems} <= {"class_never", "rotated_image"}


def test_pipelines_that_no_single_image_can_go_through(world: Callable[[str], World]) -> None:
    def refused(code: str, change: Callable[[Any], Any], subject: str = "pipeline") -> None:
        cfg = copy.deepcopy(world("default").cfg)
        cfg.test_dataloader = dict(dataset=change(cfg.test_dataloader.dataset))
        with raises_user_error(code, subject):
            load_segmentor(cfg, None, "cpu")

    def steps(*new: Any) -> Callable[[Any], Any]:
        return lambda d: dict(d, pipeline=[*new, dict(type="PackSegInputs")])

    refused("config-value", lambda d: dict(d, pipeline=[dict(type="LoadImageFromFile")]))
    refused("config-value", steps(dict(type="LoadMultipleRSImageFromFile")))
    refused("config-value", steps(dict(type=FILE, color_type="bgr")))
    refused("config-value", steps(dict(type=FILE, imdecode_backend="turbojpeg")))
    refused("config-value", steps(dict(type=FILE), dict(type="Pad")))
    mosaic = dict(type="RandomMosaic", prob=1.0, img_scale=(32, 32))
    refused("config-value", lambda d: dict(
        type="MultiImageMixDataset", dataset=dict(d, pipeline=d.pipeline[:1]),
        pipeline=[mosaic, *d.pipeline[1:]],
    ))  # fmt: skip
    other = [dict(type=FILE, to_float32=True), dict(type="PackSegInputs")]
    refused("config-conflict", lambda d: dict(
        type="ConcatDataset", datasets=[d, dict(d, pipeline=other)],
    ), "test_dataloader.dataset")  # fmt: skip
