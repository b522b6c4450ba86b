# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""SegmentationMetric: values, processes, errors, table and JSON."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from mmseg.evaluation import IoUMetric
from mmseg.structures import SegDataSample
from user_errors import raises_user_error

from mmseg_resnest.evaluation import SegmentationMetric, class_table, write_result

SCRIPT = Path(__file__).with_name("run_in_processes.py")
CASES = runpy.run_path(str(SCRIPT))
NAMES = CASES["NAMES"]
make_sample = CASES["make_sample"]


def make_metric(**kwargs):
    metric = SegmentationMetric(**kwargs)
    metric.dataset_meta = {"classes": NAMES}
    return metric


def sample_of(pred, label, **more):
    return {
        "img_path": "a/b.png",
        "pred_sem_seg": {"data": torch.as_tensor(pred)},
        "gt_sem_seg": {"data": torch.as_tensor(label)},
        **more,
    }


def slow_result(samples, num_classes=4):
    """Metrics in percent and the matrix, pixel by pixel."""
    matrix = [[0] * num_classes for _ in range(num_classes)]
    for sample in samples:
        pred = sample["pred_sem_seg"]["data"].flatten().tolist()
        label = sample["gt_sem_seg"]["data"].flatten().tolist()
        for p, t in zip(pred, label, strict=True):
            if t != 255:
                matrix[t][p] += 1
    ious, accs, correct = [], [], 0
    for c in range(num_classes):
        label, pred = sum(matrix[c]), sum(row[c] for row in matrix)
        correct += matrix[c][c]
        if label + pred:
            ious.append(matrix[c][c] / (label + pred - matrix[c][c]))
        if label:
            accs.append(matrix[c][c] / label)
    metrics = {
        "mIoU": 100 * sum(ious) / len(ious),
        "pixAcc": 100 * correct / sum(map(sum, matrix)),
        "mAcc": 100 * sum(accs) / len(accs),
    }
    return metrics, matrix


@pytest.fixture(scope="module")
def process_results(tmp_path_factory):
    """What each of 2 and each of 3 processes computed, by (world size, rank)."""
    out = tmp_path_factory.mktemp("processes")
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(out)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {
        (world, rank): json.loads((out / f"{world}_{rank}.json").read_text(encoding="utf-8"))
        for world in CASES["WORLDS"]
        for rank in range(world)
    }


@pytest.mark.parametrize("size", CASES["SIZES"])
def test_equal_on_any_number_of_processes(process_results, size):
    samples = [make_sample(i) for i in range(size)]
    metric = make_metric(metrics=["image_mIoU", "boundary_IoU"], bootstrap=20)
    metric.process(None, samples)
    alone = metric.evaluate(size)
    expected, matrix = slow_result(samples)
    assert {k: alone[k] for k in expected} == pytest.approx(expected, rel=1e-13)
    assert metric.last_result["confusion_matrix"] == matrix
    assert metric.last_result["images"] == size
    for (world, rank), results in process_results.items():
        for round_up in (True, False):
            got = results[f"{size} {round_up}"]
            assert got["metrics"] == alone, (world, rank, round_up)
            assert got["result"] == metric.last_result, (world, rank, round_up)
            assert got["images"] == [f"{i}.png" for i in range(size)]


def test_counts_above_two_to_the_31st_are_exact_over_processes(process_results):
    for (world, _), results in process_results.items():
        right = sum(2 * (CASES["HUGE"] + rank) for rank in range(world))
        result = results["huge"]["result"]
        assert result["confusion_matrix"][0][:2] == [right, 2 * world]
        assert result["correct_pixels"] == right
        assert result["pixAcc"] == 100 * (right / (right + 2 * world))


def test_agrees_with_mmseg():
    samples = [make_sample(i) for i in range(6)]
    theirs = IoUMetric(iou_metrics=["mIoU"], prefix="theirs")
    theirs.dataset_meta = {"classes": NAMES}
    ours = make_metric()
    for metric in (theirs, ours):
        metric.process(None, samples)
    expected = theirs.evaluate(6)
    got = ours.evaluate(6)
    assert round(got["mIoU"], 2) == pytest.approx(expected["theirs/mIoU"], abs=1e-5)
    assert round(got["pixAcc"], 2) == pytest.approx(expected["theirs/aAcc"], abs=1e-5)
    assert round(got["mAcc"], 2) == pytest.approx(expected["theirs/mAcc"], abs=1e-5)


def test_through_the_evaluator_with_data_samples():
    # What MMEngine's loops do: build from a config, hand over SegDataSamples.
    with DefaultScope.overwrite_default_scope("mmseg_resnest"):
        evaluator = Evaluator({"type": "SegmentationMetric", "prefix": "val"})
    evaluator.dataset_meta = {"classes": NAMES}
    plain = [make_sample(i) for i in range(3)]
    elements = []
    for sample in plain:
        element = SegDataSample(metainfo={"img_path": sample["img_path"]})
        element.pred_sem_seg = PixelData(data=sample["pred_sem_seg"]["data"])
        element.gt_sem_seg = PixelData(data=sample["gt_sem_seg"]["data"])
        elements.append(element)
    evaluator.process(elements[:2])
    evaluator.process(elements[2:])
    expected, _ = slow_result(plain)
    got = evaluator.evaluate(3)
    assert got == pytest.approx({f"val/{k}": v for k, v in expected.items()}, rel=1e-13)
    assert type(evaluator.metrics[0]) is SegmentationMetric


def test_starts_anew_after_each_evaluation():
    metric = make_metric()
    first, second = make_sample(0), make_sample(1)
    metric.process(None, [first, second])
    metric.evaluate(2)
    metric.process(None, [second])
    assert metric.evaluate(1) == pytest.approx(slow_result([second])[0], rel=1e-13)
    assert metric.last_result["images"] == 1


def test_ignore_index_can_be_another():
    metric = make_metric(ignore_index=0)
    metric.process(None, [sample_of([[1, 1, 2]], [[0, 1, 1]])])
    metrics = metric.evaluate(1)
    assert metrics["pixAcc"] == 50
    assert metric.last_result["labelled_pixels"] == 2
    assert metric.last_result["ignore_index"] == 0


def test_table():
    metric = make_metric()
    metric.process(None, [sample_of([[0, 0, 1, 2]], [[0, 0, 0, 255]])])
    metric.evaluate(1)
    lines = class_table(metric.last_result).splitlines()
    assert len({len(line) for line in lines}) == 1  # aligned
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "|" in line]
    assert cells[1:] == [
        ["road", "66.67", "66.67", "100.00"],
        ["sky", "0.00", "-", "0.00"],
        ["car", "-", "-", "0.00"],
        ["cat", "-", "-", "0.00"],
        ["mean", "33.33", "66.67", ""],
        ["all pixels (pixAcc)", "", "66.67", "100.00"],
    ]


def test_json_reads_back(tmp_path):
    path = tmp_path / "new" / "result.json"
    metric = make_metric(output_json=str(path))
    samples = [make_sample(i) for i in range(3)]
    metric.process(None, samples)
    metrics = metric.evaluate(3)

    def refuse(name):
        raise AssertionError(f"{name} is not strict JSON")

    result = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    assert result == metric.last_result
    assert {k: result[k] for k in ("mIoU", "pixAcc", "mAcc")} == metrics  # full precision
    _, matrix = slow_result(samples)
    assert result["confusion_matrix"] == matrix
    assert result["images"] == 3
    assert result["pixels"] == sum(s["gt_sem_seg"]["data"].numel() for s in samples)
    assert result["labelled_pixels"] == sum(map(sum, matrix))
    assert [row["name"] for row in result["classes"]] == NAMES
    cat = result["classes"][3]
    assert cat["label"] == 0
    assert cat["IoU"] == 0  # predicted, never labelled
    assert cat["Acc"] is None
    road = result["classes"][0]
    assert road["IoU"] == 100 * road["intersection"] / road["union"]
    assert list(path.parent.iterdir()) == [path]  # nothing temporary stays


def test_json_is_strict_and_replaced_whole(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_result({"a": float("nan"), "b": [np.inf, {"c": float("nan")}], "d": "höhe"}, path)
    assert json.loads(path.read_text(encoding="utf-8")) == {
        "a": None,
        "b": [None, {"c": None}],
        "d": "höhe",
    }
    before = path.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with raises_user_error("not-writable", "result.json"):
        write_result({"a": 1}, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_unwritable_json_is_refused_at_the_start(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with raises_user_error("not-writable", "result.json"):
        SegmentationMetric(output_json=tmp_path / "file" / "result.json")
    with raises_user_error("wrong-path-type"):
        SegmentationMetric(output_json=tmp_path)


SMALL, LARGE = torch.zeros(1, 4, 6), torch.zeros(1, 8, 12)
OUT_OF_RANGE = sample_of([[0, 0]], [[0, 4]], seg_map_path="a/label.png")


@pytest.mark.parametrize(
    ("sample", "code", "subject"),
    [
        ({"img_path": "x.png", "pred_sem_seg": {"data": SMALL}}, "dataset", "x.png"),
        ({"img_path": "x.png", "gt_sem_seg": {"data": SMALL}}, "model-output", "x.png"),
        (sample_of(SMALL, LARGE), "size-mismatch", "a/b.png"),
        (sample_of(torch.zeros(3, 4, 6), SMALL), "size-mismatch", "a/b.png"),
        (OUT_OF_RANGE, "label", "a/b.png (label a/label.png)"),
        (sample_of([[0, 7]], [[0, 1]]), "classes", "a/b.png"),
    ],
)
def test_samples_that_cannot_be_scored(sample, code, subject):
    with raises_user_error(code, subject):
        make_metric().process(None, [sample])


def test_data_sets_that_cannot_be_scored():
    with raises_user_error("empty", "the data set"):
        make_metric().evaluate(0)
    metric = make_metric()
    metric.process(None, [sample_of(torch.zeros(2, 2), torch.full((2, 2), 255))])
    with raises_user_error("label", "the data set"):
        metric.evaluate(1)
    with raises_user_error("classes", "the data set"):
        SegmentationMetric().process(None, [make_sample(0)])


def scored_sample(index):
    """A sample with logits, whose arg max is the prediction."""
    sample = make_sample(index)
    shape = sample["gt_sem_seg"]["data"].shape[1:]
    logits = torch.randn(4, *shape, generator=torch.Generator().manual_seed(50 + index)) * 2
    sample["seg_logits"] = {"data": logits}
    sample["pred_sem_seg"] = {"data": logits.argmax(dim=0, keepdim=True)}
    return sample


def test_more_metrics_are_those_of_their_parts(tmp_path):
    """All options at once, image by image, against the functions that have tests of their own."""
    from mmseg_resnest.evaluation.boundary import boundary_counts

    samples = [scored_sample(i) for i in range(4)]
    metric = make_metric(
        metrics=["precision", "recall", "F1", "fwIoU", "boundary_IoU", "image_mIoU", "ECE"],
        bootstrap=200,
        boundary_ratio=0.1,
        calibration_bins=10,
        image_counts=tmp_path / "images.npz",
        confusion_csv=tmp_path / "confusion.csv",
    )
    metric.process(None, samples)
    got = metric.evaluate(4)
    result = metric.last_result
    plain, matrix = slow_result(samples)
    assert {k: got[k] for k in plain} == pytest.approx(plain, rel=1e-13)
    assert got["recall"] == pytest.approx(got["mAcc"])

    both, union = np.zeros(4), np.zeros(4)
    means, confidences, right = [], [], []
    for sample in samples:
        pred, label = (sample[k]["data"][0].numpy() for k in ("pred_sem_seg", "gt_sem_seg"))
        b, u = boundary_counts(pred, label, 4, ratio=0.1)
        both, union = both + b, union + u
        means.append(slow_result([sample])[0]["mIoU"])
        keep = label != 255
        probability = sample["seg_logits"]["data"].double().softmax(dim=0).amax(dim=0).numpy()
        confidences += probability[keep].tolist()
        right += (pred == label)[keep].tolist()
    assert got["boundary_IoU"] == pytest.approx(100 * np.mean(both[union > 0] / union[union > 0]))
    assert got["image_mIoU"] == pytest.approx(np.mean(means))
    error = 0.0
    for b in range(10):
        inside = [i for i, c in enumerate(confidences) if b / 10 < c <= (b + 1) / 10]
        error += abs(sum(right[i] - confidences[i] for i in inside)) / len(confidences)
    assert got["ECE"] == pytest.approx(100 * error, abs=1e-4)
    assert sum(row["pixels"] for row in result["calibration"]) == len(confidences)
    assert got["mIoU_low"] < got["mIoU"] < got["mIoU_high"]
    assert result["mIoU_interval"] == [got["mIoU_low"], got["mIoU_high"]]
    table = class_table(result)
    assert "boundary_IoU" in table
    assert "with 95% confidence" in table

    rows = (tmp_path / "confusion.csv").read_text(encoding="utf-8").splitlines()
    assert rows[0].split(",")[1:] == NAMES
    assert [[int(v) for v in row.split(",")[1:]] for row in rows[1:]] == matrix
    from mmseg_resnest.evaluation import ImageCounts

    counts = ImageCounts.load(tmp_path)
    assert counts.images == [f"{i}.png" for i in range(4)]
    assert counts.intersection.sum(axis=0).tolist() == [matrix[k][k] for k in range(4)]
    assert counts.predicted.sum(axis=0).tolist() == np.sum(matrix, axis=0).tolist()


def test_wrong_options_are_refused():
    for name, value in (("metrics", ["mDice"]), ("bootstrap", -1), ("scores", "probabilities")):
        with raises_user_error("argument", f"SegmentationMetric, {name}"):
            SegmentationMetric(**{name: value})
    metric = make_metric(metrics="ECE")
    with raises_user_error("model-output"):
        metric.process(None, [make_sample(0)])


def test_counting_without_waiting_names_the_first_wrong_image(monkeypatch):
    """What happens on a GPU: the mistake is kept until the end."""
    monkeypatch.setattr(
        SegmentationMetric,
        "_count",
        lambda self, sample, num_classes: (
            self._count_later(
                sample["pred_sem_seg"]["data"],
                sample["gt_sem_seg"]["data"],
                sample["img_path"],
                num_classes,
            ),
            sample["pred_sem_seg"]["data"].numel(),
        ),
    )
    good, bad = torch.tensor([[0, 1]]), torch.tensor([[0, 77]])
    metric = make_metric()
    metric.process(None, [sample_of(good, good, img_path=f"{i}.png") for i in range(2)])
    assert metric.evaluate(2)["pixAcc"] == 100
    metric.process(
        None,
        [
            sample_of(good, good, img_path="0.png"),
            sample_of(bad, good, img_path="1.png"),
            sample_of(good, bad, img_path="2.png"),
        ],
    )
    with raises_user_error("classes", "1.png"):
        metric.evaluate(3)


@pytest.mark.gpu
def test_on_a_gpu_nothing_is_waited_for():
    metric = make_metric()
    label = torch.randint(0, 4, (64, 64), device="cuda")
    metric.process(None, [sample_of(label, label)])
    torch.cuda.set_sync_debug_mode("error")
    try:
        metric.process(None, [sample_of(label, label)])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert metric.evaluate(2)["pixAcc"] == 100
