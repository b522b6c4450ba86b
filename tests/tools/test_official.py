# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""tools/test.py --official on Cityscapes prepared by prepare_data, from the files to the tables."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tool_runs import RunTool, Toy

from mmseg_resnest.datasets.prepare import DATA_SETS, prepare
from mmseg_resnest.engine.config import load_config
from mmseg_resnest.engine.model import build_model

REAL = Path(os.environ.get("MMSEG_RESNEST_DATA", "data"), "cityscapes")
CITYSCAPES = """
model = dict(decode_head=dict(num_classes=19))
test_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type="CityscapesDataset",
        data_root="cityscapes",
        data_prefix=dict(img_path="leftImg8bit/train", seg_map_path="gtFine/train"),
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="Resize", scale=(256, 256), keep_ratio=True),
            dict(type="LoadAnnotations"),
            dict(type="PackSegInputs"),
        ],
    )
)
"""
THINGS = range(24, 34)


def made(folder: Path) -> Path:
    """Three small images whose blocks hold every label id, with instances of things."""
    dice = np.random.default_rng(0)
    for number in range(3):
        ids = np.kron(dice.integers(0, 34, (8, 16)), np.ones((12, 12), int)).astype(np.uint8)
        block = np.kron(np.arange(128).reshape(8, 16), np.ones((12, 12), int))
        # A group of things that nobody told apart has no number of its own.
        alone = np.isin(ids, THINGS) & (block % 5 > 0)
        instances = np.where(alone, ids.astype(np.int32) * 1000 + block, ids).astype(np.int32)
        image = np.repeat((ids // 2 * 12)[..., None], 3, axis=2) + dice.integers(0, 9, (96, 192, 3))
        stem = f"aachen_{number:06d}_000019"
        for kind, name, pixels in (
            ("leftImg8bit", "leftImg8bit", image.astype(np.uint8)),
            ("gtFine", "gtFine_labelIds", ids),
            ("gtFine", "gtFine_instanceIds", instances.astype(np.uint16)),
        ):
            file = folder / kind / "train" / "aachen" / f"{stem}_{name}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file)
    return folder


@pytest.mark.long
@pytest.mark.parametrize("labels", ["made", "real"])
def test_official_evaluation_of_a_model(
    labels: str, toy: Toy, run_tool: RunTool, tmp_path: Path
) -> None:
    """A model of random weights: both mIoUs agree, and iIoU and categories are printed."""
    if labels == "real" and not REAL.is_dir():
        pytest.skip("needs Cityscapes in MMSEG_RESNEST_DATA")
    source = REAL if labels == "real" else made(tmp_path / "source")
    prepare(DATA_SETS["cityscapes"], toy.folder, [source], allow_incomplete=True, jobs=1)
    config = toy.variant("official", CITYSCAPES)
    model = build_model(load_config(config))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
        model.decode_head.conv_seg.weight.mul_(30)
    torch.save(model.state_dict(), toy.folder / "random.pth")
    run = run_tool("test.py", "official.py", "random.pth", "--official", cwd=toy.folder).check()
    result = json.loads((toy.folder / "work_dirs/official/test/results.json").read_text())
    official = result["official"]
    assert official["images"] == result["images"] == (5 if labels == "real" else 3)
    assert sum(row["IoU"] is not None and row["IoU"] > 0 for row in result["classes"]) >= 2

    assert official["mIoU"] == pytest.approx(result["mIoU"], rel=1e-13)
    ours = {row["name"]: row["IoU"] for row in result["classes"] if row["IoU"] is not None}
    assert {r["name"]: r["IoU"] for r in official["classes"]} == pytest.approx(ours, rel=1e-13)
    printed = re.search(r"^scores +mIoU (\d+\.\d+),", run.stdout, re.M)
    table = re.search(r"mean of classes *\| *(\d+\.\d+) *\| *(\d+\.\d+)", run.stdout)
    categories = re.search(r"mean of categories *\| *(\d+\.\d+) *\| *(\d+\.\d+)", run.stdout)
    assert printed is not None
    assert table is not None
    assert categories is not None
    assert printed[1] == table[1] == f"{result['mIoU']:.2f}"
    assert table[2] == f"{official['miIoU']:.2f}"
    assert categories[1] == f"{official['category_mIoU']:.2f}"
    assert categories[2] == f"{official['category_miIoU']:.2f}"
    for name in ("car", "vehicle", "human"):
        assert re.search(rf"\| {name} +\| +\d+\.\d+ +\| +\d+\.\d+ ", run.stdout), run.stdout
