# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A detector that is resumed has the bits of one that was trained in peace."""

from __future__ import annotations

from pathlib import Path

import torch

from mmseg_resnest.datasets.shapes import write_shapes
from mmseg_resnest.engine.config import load_config
from mmseg_resnest.engine.training import train


def test_a_resumed_detector_is_the_same(tmp_path: Path) -> None:
    """With precise batch norm, whose batches are those that training sees next."""
    write_shapes(tmp_path / "shapes", 6, 2, progress=False)
    options = {
        "model.backbone.arch": dict(blocks=(1, 1, 1, 1), base_width=4, stem_width=4),
        "train_cfg": dict(max_iters=4, val_interval=2),
        "default_hooks.checkpoint.interval": 2,
        "custom_hooks": [dict(type="PreciseBNHook", num_iters=2)],
        "param_scheduler": [dict(type="LinearLR", start_factor=0.1, end=4, by_epoch=False)],
        "dry_step": False,
    }
    for loader in ("train_dataloader", "val_dataloader"):
        options[f"{loader}.num_workers"] = 0
        options[f"{loader}.persistent_workers"] = False
    options["train_dataloader.batch_size"] = 2
    cfg = load_config("detection/faster_rcnn_resnest14_shapes", options, tmp_path)
    train(cfg, work_dir=tmp_path / "peace", seed=0)
    (tmp_path / "resumed").mkdir()
    middle = tmp_path / "peace" / "iter_2.pth"
    train(cfg, work_dir=tmp_path / "resumed", resume=str(middle))
    first, second = (
        torch.load(tmp_path / name / "iter_4.pth", weights_only=True)["state_dict"]
        for name in ("peace", "resumed")
    )
    before = torch.load(middle, weights_only=True)["state_dict"]
    assert any(not torch.equal(before[key], first[key]) for key in first)
    assert [key for key in first if not torch.equal(first[key], second[key])] == []
