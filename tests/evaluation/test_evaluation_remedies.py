# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What the errors of evaluations tell people to do is done, and then there is a score."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from advice import advises, helps
from PIL import Image
from test_image_counts import make as make_counts
from test_metric import make_metric, sample_of
from test_report import make_run
from test_submission import make as make_submission

from mmseg_resnest.evaluation import SegmentationMetric, Submission, confusion_matrix
from mmseg_resnest.evaluation.compare import compare_counts
from mmseg_resnest.evaluation.curves import read_scalars
from mmseg_resnest.evaluation.image_counts import ImageCounts
from mmseg_resnest.evaluation.report import read_run, write_report

LABELS = torch.tensor([[0, 1], [2, 3]])


def score(*samples: dict[str, Any], metric: SegmentationMetric | None = None) -> dict[str, float]:
    metric = metric or make_metric()
    metric._start_anew()
    metric.process(None, samples)
    return metric.evaluate(len(samples))


def test_labels_and_classes() -> None:
    good = sample_of(LABELS, LABELS)
    without = {key: value for key, value in good.items() if key != "gt_sem_seg"}
    with advises("evaluation/metric.py:_count", "LoadAnnotations", "seg_map_path"):
        score(without)
    with advises("evaluation/metric.py:_count", "after Resize"):
        score(sample_of(LABELS, LABELS.repeat(2, 2)))
    assert score(good)["mIoU"] == 100
    metric = make_metric()
    metric.dataset_meta = {}
    with advises("evaluation/counting.py:class_names", "metainfo=dict(classes=(...))"):
        score(good, metric=metric)
    metric.dataset_meta = dict(classes=("a", "b", "c", "d"))
    score(good, metric=metric)
    with advises("evaluation/counting.py:_summed", "data_root"):
        score(metric=metric)
    with advises("evaluation/metric.py:compute_metrics", "reduce_zero_label"):
        score(sample_of(LABELS, torch.full((2, 2), 255)))
    uncertain = make_metric(metrics=["ECE"])
    with advises("evaluation/per_image.py:_calibration", "do not ask for ECE"):
        score(good, metric=uncertain)
    score(good, metric=make_metric(metrics=[]))


def test_numbers_of_classes() -> None:
    """Labels from 1 on without reduce_zero_label, and a head with a class too many."""
    with advises("evaluation/confusion_matrix.py:_count_piece", "reduce_zero_label"):
        confusion_matrix(LABELS, LABELS + 1, 4)
    confusion_matrix(LABELS, LABELS + 1 - 1, 4)  # which reduce_zero_label does
    confusion_matrix(LABELS, LABELS + 1, 4, ignore_index=4)
    with advises("evaluation/confusion_matrix.py:_count_piece", "num_classes"):
        confusion_matrix(LABELS, LABELS % 3, 3)
    confusion_matrix(LABELS, LABELS % 3, 4)
    metric = make_metric()
    metric._count_later(LABELS, LABELS + 1, "a.png", 4)
    with advises("evaluation/metric.py:_check_counted", "num_classes", "reduce_zero_label"):
        metric._check_counted()
    metric._start_anew()
    metric._count_later(LABELS, LABELS, "a.png", 4)
    metric._check_counted()


def test_files_of_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with advises("evaluation/results.py:make_parent", "name a file"):
        make_metric(output_json=tmp_path)
    with advises("evaluation/results.py:make_parent", "cannot be made", "choose another place"):
        make_metric(output_json=tmp_path / "file/a.json")
    with monkeypatch.context() as patch:  # no permission counts for the superuser
        patch.setattr(os, "access", lambda *_: False)
        with advises("evaluation/results.py:make_parent", "written", "choose another place"):
            make_metric(output_json=tmp_path / "a.json")
    make_metric(output_json=tmp_path / "a.json")


def test_runs_that_are_compared() -> None:
    one, other = make_counts(), make_counts(seed=1)
    other.label[0, 0] += 1
    with advises("evaluation/compare.py:compare_counts", "use the same data"):
        compare_counts(one, other, draws=100)
    with advises("evaluation/compare.py:_same_images", "on the same split"):
        compare_counts(one, make_counts(images=20), draws=100)
    assert compare_counts(one, make_counts(seed=1), draws=100)


def test_folders_of_runs(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", images=4)
    with advises("evaluation/report.py:read_run", "give the work folder of a run"):
        read_run(run / "results.json")
    with advises("evaluation/curves.py:read_scalars", "give the work folder of a run"):
        read_scalars(run / "results.json")
    assert read_run(run) and read_scalars(run)
    with advises("evaluation/report.py:write_report", "name at least one work folder"):
        write_report([], tmp_path / "a.html")
    write_report([run], tmp_path / "a.html")
    picture = run / "test/examples/00000.jpg"
    kept = shutil.copy(picture, tmp_path)
    picture.write_bytes(b"x")
    helps("evaluation/report.py:_picture", "evaluate the run again",
          call=lambda: write_report([run], tmp_path / "a.html"),
          remedy=lambda: shutil.copy(kept, picture))  # fmt: skip


def test_counts_of_images(tmp_path: Path) -> None:
    file = tmp_path / "images.npz"
    file.write_bytes(b"x")
    helps("evaluation/image_counts.py:load", "does not hold", "evaluate the run again",
          call=lambda: ImageCounts.load(file), remedy=lambda: make_counts().save(file),
    )  # fmt: skip
    counts = make_counts()
    ImageCounts(counts.images[1:], counts.classes, counts.label, counts.label, counts.label).save(
        file
    )
    helps("evaluation/image_counts.py:load", "do not fit", "evaluate the run again",
          call=lambda: ImageCounts.load(file), remedy=lambda: make_counts().save(file),
    )  # fmt: skip


def test_submissions(tmp_path: Path) -> None:
    with advises("evaluation/submission.py:__init__", "choose from") as told:
        Submission("coco", [], 19)
    (name, *_) = told.value.message.partition("choose from ")[2].split(", ")
    assert Submission(name, [], 19).files == {}
    with advises("evaluation/submission.py:_cityscapes_name", "downloaded images"):
        Submission("cityscapes", ["berlin.png"], 19)
    Submission("cityscapes", ["berlin_000000_000019_leftImg8bit.png"], 19)
    with advises("evaluation/submission.py:__init__", "rename one of them"):
        Submission("ade20k", ["x/a.jpg", "y/a.jpg"], 150)
    Submission("ade20k", ["x/a.jpg", "y/b.jpg"], 150)
    submission, images, predictions = make_submission(tmp_path, "ade20k")
    stray = tmp_path / "out/other.png"
    Image.new("L", (20, 10)).save(stray)
    with advises("evaluation/submission.py:check", "empty the folder", "another --out"):
        submission.check(tmp_path / "out")
    stray.unlink()
    submission.check(tmp_path / "out")
    assert len(images) == len(predictions)
