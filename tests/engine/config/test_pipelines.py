# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Steps after which labels would not lie on their image are refused, wherever they stand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mmcv.transforms
import mmengine.dataset
import mmseg.datasets.transforms as stack
import pytest
from mmengine.dataset import BaseDataset
from user_errors import raises_user_error

from mmseg_resnest.datasets.transforms.kinds import REFUSED
from mmseg_resnest.engine.config.check import check_config

Steps = list[Any]
LOAD: Steps = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations")]
PACK = dict(type="PackSegInputs")
FLIP = dict(type="RandomFlip", prob=0.5)
MOSAIC = dict(type="RandomMosaic", prob=1.0)


def dataset(steps: Steps, **more: Any) -> dict[str, Any]:
    return dict(type="CustomDataset", pipeline=steps, **more)


def mixed(steps: Steps, inner: Steps | None = None) -> dict[str, Any]:
    inner = LOAD if inner is None else inner
    return dict(type="MultiImageMixDataset", dataset=dataset(inner), pipeline=steps)


def check(train: dict[str, Any], **more: Any) -> None:
    check_config({"default_scope": "mmseg_resnest", "train_dataloader": {"dataset": train}, **more})


#: Where a step can stand, and its key there.
PLACES: dict[str, tuple[Callable[[dict], dict[str, Any]], str]] = {
    "plain": (lambda step: dataset([*LOAD, step]), "pipeline.2"),
    "apply": (
        lambda step: dataset([*LOAD, dict(type="RandomApply", transforms=[step])]),
        "pipeline.2.transforms.0",
    ),
    "one": (
        lambda step: dataset([dict(type="RandomApply", transforms=step)]),
        "pipeline.0.transforms",
    ),
    "choice": (
        lambda step: dataset([dict(type="RandomChoice", transforms=[[FLIP], [FLIP, step]])]),
        "pipeline.0.transforms.1.1",
    ),
    "compose": (
        lambda step: dataset(
            [dict(type="Compose", transforms=[dict(type="KeyMapper", transforms=[step])])]
        ),
        "pipeline.0.transforms.0.transforms.0",
    ),
    "repeated": (
        lambda step: dict(type="RepeatDataset", times=2, dataset=dataset([step])),
        "dataset.pipeline.0",
    ),
    "joined": (
        lambda step: dict(type="ConcatDataset", datasets=[dataset([FLIP]), dataset([step])]),
        "datasets.1.pipeline.0",
    ),
    "mixed": (lambda step: mixed([step]), "pipeline.0"),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", REFUSED, ids=lambda kind: kind.__name__)
def test_refused_transforms(kind: type, place: str) -> None:
    make, key = PLACES[place]
    names: list[Any] = [kind, f"mmseg.{kind.__name__}"]
    for name in names:
        with raises_user_error("config-type") as caught:
            check(make(dict(type=name)))
        assert caught.value.subject == f"config key train_dataloader.dataset.{key}.type"
    with raises_user_error("config-type", "val_dataloader.dataset"):
        check_config(
            {"default_scope": "mmseg", "val_dataloader": {"dataset": make(dict(type=kind))}}
        )
    with raises_user_error("config-type", "config key tta_pipeline.0.transforms.1.0.type"):
        tta = [dict(type="TestTimeAug", transforms=[[FLIP], [dict(type=kind)]])]
        check(dataset([FLIP]), tta_pipeline=tta)


def test_ours_and_those_that_extend_them_are_taken() -> None:
    check(dataset([dict(type="RandomRotFlip")]))
    # In another scope by the name that the error gives.
    steps = [dict(type="mmseg_resnest.RandomRotFlip"), dict(type="mmseg_resnest.BioMedical3DPad")]
    inner = dict(type="BaseSegDataset", pipeline=steps)
    wrapped = dict(type="mmseg_resnest.ClassBalancedDataset", dataset=inner, oversample_thr=1)
    check_config({"default_scope": "mmseg", "train_dataloader": {"dataset": wrapped}})

    class Mine(stack.SegRescale):
        pass

    check(dataset([dict(type=Mine, scale_factor=0.5)]))


@pytest.mark.parametrize("place", ["plain", "apply", "choice", "repeated"])
def test_a_mosaic_needs_the_data_set_that_gives_it_images(place: str) -> None:
    make, key = PLACES[place]
    with raises_user_error("config-conflict", f"{key}.type"):
        check(make(MOSAIC))
    check(mixed([MOSAIC, FLIP, PACK]))
    with raises_user_error("config-conflict", "pipeline.1.transforms.0.type"):
        check(mixed([FLIP, dict(type="RandomApply", transforms=[MOSAIC])]))


def test_images_are_packed_after_they_are_mixed() -> None:
    with raises_user_error("config-conflict", "train_dataloader.dataset.dataset.pipeline.2.type"):
        check(mixed([MOSAIC], [*LOAD, PACK]))
    check(mixed([], [*LOAD, PACK]))


#: Steps after the loading ones, and the step that does not fit.
WRONG: dict[str, tuple[Steps, str]] = {
    "second image left behind": ([FLIP, dict(type="ConcatCDInput")], "3"),
    "edges left behind": ([dict(type="GenerateEdge"), FLIP], "3"),
    "edges left behind, inside": (
        [dict(type="GenerateEdge"), dict(type="RandomApply", transforms=[FLIP])],
        "3.transforms.0",
    ),
    "labels left behind": (
        [dict(type="KeyMapper", mapping=dict(img="img"), transforms=[FLIP])],
        "2",
    ),
    "labels left behind by several": (
        [
            dict(
                type="TransformBroadcaster",
                mapping=dict(img=["img", "img2"]),
                share_random_params=True,
                transforms=[dict(type="Resize", scale=(4, 4))],
            )
        ],
        "2",
    ),
    "each image by other numbers": (
        [
            dict(
                type="TransformBroadcaster",
                mapping=dict(img=["img", "img2"], gt_seg_map=["gt_seg_map", "gt_two"]),
                transforms=[FLIP],
            )
        ],
        "2",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_belongs_to_an_image_moves_with_it(what: str) -> None:
    steps, key = WRONG[what]
    with raises_user_error("config-conflict") as caught:
        check(dataset([*LOAD, *steps]))
    assert caught.value.subject == f"config key train_dataloader.dataset.pipeline.{key}.type"


RIGHT: dict[str, Steps] = {
    "joined first": [*LOAD, dict(type="ConcatCDInput"), FLIP],
    "albumentations move both": [
        *LOAD,
        dict(type="Albu", transforms=[]),
        dict(type="ConcatCDInput"),
    ],
    "edges last": [*LOAD, FLIP, dict(type="GenerateEdge"), PACK],
    "before labels are loaded": [
        LOAD[0],
        dict(type="KeyMapper", mapping=dict(img="img"), transforms=[dict(type="Resize", scale=9)]),
        LOAD[1],
    ],
    "colours alone": [
        *LOAD,
        dict(type="KeyMapper", mapping=dict(img="img"), transforms=[dict(type="CLAHE")]),
    ],
    "all are given back": [*LOAD, dict(type="KeyMapper", transforms=[FLIP])],
    "labels are mapped": [
        *LOAD,
        dict(
            type="TransformBroadcaster",
            mapping=dict(img=["img", "img2"], gt_seg_map=["gt_seg_map", "gt_two"]),
            share_random_params=True,
            transforms=[FLIP],
        ),
    ],
}


@pytest.mark.parametrize("what", RIGHT)
def test_what_moves_together_is_taken(what: str) -> None:
    check(dataset(RIGHT[what]))


def test_a_class_for_a_type_is_what_its_name_is() -> None:
    with raises_user_error("config-conflict", "pipeline.2.type"):
        check(dataset([*LOAD, dict(type=stack.RandomMosaic, prob=1.0)]))
    check(
        dataset(
            [dict(type=mmcv.transforms.LoadImageFromFile), dict(type=stack.RandomFlip, prob=0.5)]
        )
    )


@pytest.mark.parametrize(
    "name", ["mmengine.ClassBalancedDataset", mmengine.dataset.ClassBalancedDataset]
)
def test_a_balance_of_classes_that_nobody_counts(name: Any) -> None:
    inner = dataset(LOAD)
    wrapped = dict(
        type="RepeatDataset", times=2, dataset=dict(type=name, dataset=inner, oversample_thr=1)
    )
    with raises_user_error("config-type", "config key train_dataloader.dataset.dataset.type"):
        check(wrapped)

    class Counts(BaseDataset):
        def get_cat_ids(self, idx: int) -> list[int]:
            return [0]

    check(dict(type=name, dataset=dict(type=Counts), oversample_thr=1))
    check(dict(type="ClassBalancedDataset", dataset=inner, oversample_thr=1))


@pytest.mark.parametrize(
    ("wrapper", "code", "key"),
    [
        (mixed([MOSAIC]) | dict(skip_type_keys=["RandomMosaik"]), "config-value", "skip_type_keys"),
        (mixed([MOSAIC]) | dict(skip_types=["RandomMosaic"]), "config-key", "skip_types"),
        (mixed([dict(MOSAIC, image_scale=9)]), "config-key", "pipeline.0.image_scale"),
        (
            dict(type="ClassBalancedDataset", dataset=dataset(LOAD), oversample_th=1),
            "config-key",
            "oversample_th",
        ),
        (dict(type="RepeatDataset", dataset=dataset(LOAD), time=1), "config-key", "time"),
        (dict(type="RepeatDataset", dataset=dataset(LOAD), times="2"), "config-value", "times"),
        (
            dict(type="ClassBalancedDataset", dataset=dataset(LOAD), oversample_thr=0),
            "config-value",
            "oversample_thr",
        ),
        (
            dict(type="ConcatDataset", datasets=[dataset(LOAD)], ignore_key="a"),
            "config-key",
            "ignore_key",
        ),
    ],
)
def test_options_that_wrappers_do_not_have(wrapper: dict, code: str, key: str) -> None:
    with raises_user_error(code, f"config key train_dataloader.dataset.{key}"):
        check(wrapper)
    check(mixed([MOSAIC, FLIP]) | dict(skip_type_keys=["RandomMosaic"]))
