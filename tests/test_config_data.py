# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The configs' data sets find a stand-in of each layout and make samples of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mmengine.registry import DefaultScope
from PIL import Image

from mmseg_resnest.engine.config import load_config
from mmseg_resnest.registry import DATASETS

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.fixture(autouse=True)
def _scope():
    with DefaultScope.overwrite_default_scope("mmseg_resnest"):
        yield


# Per data set: image and label file, {split file: contents}, and what a label file's values
# become. 0 and 255 are in every map.
STAND_INS = {
    "ade20k": (
        "ade20k/ADEChallengeData2016/images/{ade}/a.jpg",
        "ade20k/ADEChallengeData2016/annotations/{ade}/a.png",
        (),
        {0: 255, 1: 0, 150: 149},
    ),
    "cityscapes": (
        "cityscapes/leftImg8bit/{split}/town/a_leftImg8bit.png",
        "cityscapes/gtFine/{split}/town/a_gtFine_labelTrainIds.png",
        (),
        {0: 0, 18: 18, 255: 255},
    ),
    "voc12aug": (
        "voc2012/VOCdevkit/VOC2012/JPEGImages/a.jpg",
        "voc2012/VOCdevkit/VOC2012/SegmentationClass{voc}/a.png",
        ("voc2012/VOCdevkit/VOC2012/ImageSets/Segmentation/{voc_list}.txt",),
        {0: 0, 20: 20, 255: 255},
    ),
    "pascal_context": (
        "pascal_context/VOCdevkit/VOC2010/JPEGImages/a.jpg",
        "pascal_context/VOCdevkit/VOC2010/SegmentationClassContext/a.png",
        ("pascal_context/VOCdevkit/VOC2010/ImageSets/SegmentationContext/{split}.txt",),
        {0: 255, 1: 0, 59: 58},
    ),
    "camvid": ("camvid/{split}/a.png", "camvid/{split}annot/a.png", (), {0: 0, 10: 10, 11: 255}),
    "scenes": (
        "scenes/images/{ade}/a.png",
        "scenes/annotations/{ade}/a.png",
        (),
        {0: 255, 1: 0, 12: 11},
    ),
}


def write_stand_in(root: Path, data: str, width: int, height: int) -> None:
    """One image a split, in the data set's layout: a picture of noise and stripes of labels."""
    image_path, label_path, lists, values = STAND_INS[data]
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    stripes = np.resize(np.array(list(values), np.uint8), (width, height)).T.copy()
    for split, ade, voc, voc_list in (
        ("train", "training", "Aug", "trainaug"),
        ("val", "validation", "", "val"),
    ):
        words = dict(split=split, ade=ade, voc=voc, voc_list=voc_list)
        for path, array in ((image_path, noise), (label_path, stripes)):
            file = root / path.format(**words)
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(file)
        for path in lists:
            file = root / path.format(**words)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("a\n")


DATA_CONFIGS = {
    "fcn_resnest50_ade20k": "ade20k",
    "fcn_resnest50_cityscapes": "cityscapes",
    "fcn_resnest50_voc12aug": "voc12aug",
    "fcn_resnest50_pascal_context": "pascal_context",
    "fcn_resnest14_camvid": "camvid",
    "deeplabv3_resnest26_camvid": "camvid",
    "deeplabv3plus_resnest50_camvid": "camvid",
    "fcn_resnest14_scenes": "scenes",
    "openmmlab/resnest_s101-d8_fcn_4xb4-160k_ade20k-512x512": "ade20k",
    "openmmlab/resnest_s101-d8_fcn_4xb2-80k_cityscapes-512x1024": "cityscapes",
}


@pytest.mark.parametrize("name", DATA_CONFIGS)
def test_samples(name, tmp_path):
    """The data loaders' data sets find a stand-in and make samples of the right size and values."""
    data = DATA_CONFIGS[name]
    width, height = (160, 128) if data == "scenes" else (480, 360)
    write_stand_in(tmp_path, data, width, height)
    cfg = load_config(CONFIGS / f"{name}.py", data_root=tmp_path)
    expected = set(STAND_INS[data][3].values())

    np.random.seed(0)
    train = DATASETS.build(cfg.train_dataloader.dataset)
    assert len(train) == 1
    crop = tuple(cfg.crop_size)
    seen = set()
    for _ in range(6):
        sample = train[0]
        size = sample["inputs"].shape[1:]
        assert size == sample["data_samples"].gt_sem_seg.shape
        if name.startswith("openmmlab/"):  # the model pads what is smaller
            assert max(size) <= max(crop)
        else:
            assert size == crop
        seen |= set(sample["data_samples"].gt_sem_seg.data.unique().tolist())
    assert expected <= seen <= expected | {255}

    for dataloader in (cfg.val_dataloader, cfg.test_dataloader):
        sample = DATASETS.build(dataloader.dataset)[0]
        labels = sample["data_samples"].gt_sem_seg
        assert labels.shape == (height, width)  # untouched: scores go to the image's own size
        assert set(labels.data.unique().tolist()) == expected
        if name.startswith("openmmlab/"):
            long_edge = int(width / height * min(cfg.scale) + 0.5)
        else:
            long_edge = cfg.base_size
        assert sample["inputs"].shape[2] == long_edge

    # Test-time augmentation: the image at its own size, or one sample a scale and mirroring.
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    sample = DATASETS.build(cfg.test_dataloader.dataset)[0]
    if name.startswith("openmmlab/"):
        widths = [int(width * ratio + 0.5) for ratio in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)]
        assert [image.shape[2] for image in sample["inputs"]] == [w for w in widths for _ in "lr"]
    else:
        assert sample["inputs"].shape == (3, height, width)


def test_padding_of_labels(tmp_path):
    """Ignored everywhere but on Pascal VOC, whose published padding is background."""
    for name, padding in (("fcn_resnest50_ade20k", 255), ("fcn_resnest50_voc12aug", 0)):
        data = DATA_CONFIGS[name]
        write_stand_in(tmp_path, data, 200, 20)
        cfg = load_config(CONFIGS / f"{name}.py", data_root=tmp_path)
        sample = DATASETS.build(cfg.train_dataloader.dataset)[0]
        # 20 rows become at most 104: the last of 480 are padding.
        assert (sample["data_samples"].gt_sem_seg.data[0, 110:] == padding).all()
        assert (sample["inputs"][:, 110:] == 0).all()
