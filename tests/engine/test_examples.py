# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The example images of a test replace those of an earlier one, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from advice import advises, helps
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from PIL import Image

from mmseg_resnest.engine.hooks import ExamplesHook, SavePredictionsHook
from mmseg_resnest.evaluation import SegmentationMetric
from mmseg_resnest.evaluation.results_file import read_examples


def test_only_own_files_are_removed(tmp_path: Path) -> None:
    folder = tmp_path / "examples"
    folder.mkdir()
    ours = {"00012.jpg", "00012_label.png", "00012_pred.png", "examples.json"}
    others = {"photo.jpg", "00012.png", "12.jpg", "notes.txt", "part.json", "00012_mask.png"}
    for name in ours | others:
        (folder / name).write_text("[]")
    (folder / "00013.jpg").mkdir()

    class NoImages(list):
        metainfo = {"classes": ["a"], "palette": [[0, 0, 0]]}

    loader = SimpleNamespace(dataset=NoImages())
    runner = SimpleNamespace(test_dataloader=loader, model=None)
    hook = ExamplesHook(folder)
    hook.before_test_epoch(runner)
    assert set(os.listdir(folder)) == {*others, "00013.jpg"}
    hook.after_test_epoch(runner)
    assert set(os.listdir(folder)) == {*others, "00013.jpg", "examples.json"}


@pytest.mark.parametrize("ignored", [0, 250, 255])
def test_pixels_that_the_metric_ignores_are_of_no_example(tmp_path: Path, ignored: int) -> None:
    """Half of the pixels; of the others three quarters are right."""

    class Images(list):
        metainfo = {"classes": ["a", "b", "c"], "palette": [[n, 0, 0] for n in range(3)]}

        def get_data_info(self, index: int) -> dict[str, str]:
            return {"img_path": "a.png"}

    metric = SegmentationMetric(ignore_index=ignored)
    dataset, model = Images([0]), SimpleNamespace(multilabel=False)
    runner: Any = SimpleNamespace(
        test_dataloader=SimpleNamespace(dataset=dataset), model=model,
        test_evaluator=SimpleNamespace(metrics=[metric]),
    )  # fmt: skip
    label = torch.ones(1, 4, 4, dtype=torch.uint8)
    label[:, :2] = ignored
    pred = torch.ones(1, 4, 4, dtype=torch.int64)
    pred[:, 3, :2] = 2
    sample = SegDataSample(metainfo={"img_path": "a.png"})
    sample.gt_sem_seg, sample.pred_sem_seg = PixelData(data=label), PixelData(data=pred)
    examples, saving = ExamplesHook(tmp_path), SavePredictionsHook(show_dir=str(tmp_path / "shown"))
    for hook in (examples, saving):
        hook.before_test_epoch(runner)
        hook._picture = lambda path: np.zeros((4, 4, 3), np.uint8)
        hook.after_test_iter(runner, 0, None, [sample])
    examples.after_test_epoch(runner)
    (entry,) = read_examples(tmp_path / "examples.json")["images"]
    assert entry["pixAcc"] == 75 and entry["pairs"] == ((1, 2, 2),)
    assert entry["mIoU"] == pytest.approx(100 * (6 / 8 + 0) / 2)
    with Image.open(tmp_path / f"{entry['file']}_label.png") as kept:
        assert np.asarray(kept)[:2].tolist() == 2 * [4 * [255]]
    assert (tmp_path / "shown" / "a.png").is_file()


def test_more_sets_than_pictures_can_show_are_no_error_of_the_report(tmp_path: Path) -> None:
    class Images(list):
        metainfo = {"classes": list("abcdefgh"), "palette": [[n, 0, 0] for n in range(8)]}

    said: list[str] = []
    runner = SimpleNamespace(
        test_dataloader=SimpleNamespace(dataset=Images()),
        model=SimpleNamespace(multilabel=True),
        logger=SimpleNamespace(warning=lambda text, *parts: said.append(text % parts)),
    )
    hook = ExamplesHook(tmp_path)
    hook.before_test_epoch(runner)
    hook.after_test_iter(runner, 0, None, [{}])
    hook.after_test_epoch(runner)
    assert read_examples(tmp_path / "examples.json")["images"] == ()
    assert "at most 7 classes" in said[0]


def test_no_output_of_a_test_replaces_another_file(tmp_path: Path) -> None:
    folder = str(tmp_path / "labels")

    class Images(list):
        metainfo = {"classes": ["a"], "palette": [[1, 1, 1]]}

        def get_data_info(self, index: int) -> dict[str, str]:
            return {"img_path": "images/a.jpg", "seg_map_path": os.path.join(folder, "a.png")}

    runner: Any = SimpleNamespace(
        test_dataloader=SimpleNamespace(dataset=Images([0])), model=SimpleNamespace()
    )
    for out, show in ((folder, None), (None, folder)):
        with advises("engine/hooks/predictions.py:before_test_epoch", "name another folder"):
            SavePredictionsHook(out, show).before_test_epoch(runner)
    SavePredictionsHook(str(tmp_path)).before_test_epoch(runner)
    shown = [f"{tmp_path}/./labels"]
    helps("engine/hooks/predictions.py:__init__", "name another folder",
          call=lambda: SavePredictionsHook(folder, shown[-1]),
          remedy=lambda: shown.append(str(tmp_path)))  # fmt: skip
