# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The official Cityscapes evaluation of our predictions, on the real label maps."""

import os

import numpy as np
import pytest
import torch
from PIL import Image
from real_data import DATA, needs
from user_errors import raises_user_error

from mmseg_resnest.evaluation import CityscapesOfficialMetric
from mmseg_resnest.evaluation.cityscapes import label_ids, official_table

FILES = sorted((DATA / "cityscapes/gtFine").glob("*/*/*_gtFine_labelIds.png"))
needs_labels = needs("cityscapes/gtFine")


def train_ids(ids):
    from cityscapesscripts.helpers.labels import labels

    table = np.full(256, 255, np.uint8)
    for label in labels:
        if label.id >= 0:
            table[label.id] = label.trainId if 0 <= label.trainId < 255 else 255
    return table[ids]


def worsened(truth, seed):
    """A prediction: shifted, with patches of other classes, and something on ignored pixels."""
    dice = np.random.default_rng(seed)
    pred = np.roll(truth, (3, 9), axis=(0, 1))
    pred[pred == 255] = dice.integers(0, 19)
    height, width = pred.shape
    for _ in range(25):
        y, x = dice.integers(0, height), dice.integers(0, width)
        pred[y : y + height // 8, x : x + width // 10] = dice.integers(0, 19)
    return pred


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """The official metric on two real label maps at their own size, with instances."""
    root = tmp_path_factory.mktemp("gt")
    metric = CityscapesOfficialMetric(out_dir=root / "kept")
    for seed, file in enumerate(FILES[:2]):
        for kind in ("labelIds", "instanceIds"):
            source = file.with_name(file.name.replace("labelIds", kind))
            (root / source.name).symlink_to(source)
        truth = train_ids(np.array(Image.open(file)))
        sample = {
            "img_path": f"{file.stem}.png",
            "seg_map_path": str(root / file.name).replace("_labelIds", "_labelTrainIds"),
            "pred_sem_seg": {"data": torch.as_tensor(worsened(truth, seed))[None]},
        }
        metric.process(None, [sample])
    return root, metric.evaluate(2), metric.last_official


@needs_labels
def test_instance_weighted_and_category_scores(scored):
    """iIoU of cars and IoU of the vehicle category, from the files with plain NumPy."""
    from cityscapesscripts.helpers.labels import labels

    root, official, details = scored
    mean_car = 12794.0202738185  # pixels of a car, from the official script
    tp = fn = fp = 0.0
    both = union = 0
    vehicles = [la.id for la in labels if la.category == "vehicle" and not la.ignoreInEval]
    scored_ids = [la.id for la in labels if not la.ignoreInEval]
    for file in FILES[:2]:
        truth = np.array(Image.open(file)).astype(int)
        pred = np.array(Image.open(root / "kept" / file.name.replace("gtFine", "pred"))).astype(int)
        instances = np.array(
            Image.open(file.with_name(file.name.replace("labelIds", "instanceIds")))
        ).astype(int)
        for number in np.unique(instances):
            if number // 1000 == 26:
                mask = instances == number
                weight = mean_car / mask.sum()
                tp += weight * (pred[mask] == 26).sum()
                fn += weight * (pred[mask] != 26).sum()
        counted = np.isin(truth, scored_ids)
        fp += ((pred == 26) & (truth != 26) & counted).sum()
        t, p = np.isin(truth, vehicles), np.isin(pred, vehicles) & counted
        both += (t & p).sum()
        union += (t | p).sum()
    car = next(row for row in details["classes"] if row["name"] == "car")
    assert car["iIoU"] == pytest.approx(100 * tp / (tp + fn + fp), rel=1e-12)
    vehicle = next(row for row in details["categories"] if row["name"] == "vehicle")
    assert vehicle["IoU"] == pytest.approx(100 * both / union, rel=1e-12)
    table = official_table(details)
    assert f"{official['official/category_mIoU']:.2f}" in table
    assert f"{official['official/miIoU']:.2f}" in table


def small(root, name="aachen_000000_000019", shape=(4, 6)):
    """A label file of one road with its prediction's sample."""
    ids = np.full(shape, 7, np.uint8)
    Image.fromarray(ids).save(root / f"{name}_gtFine_labelIds.png")
    return {
        "img_path": f"{name}_leftImg8bit.png",
        "seg_map_path": str(root / f"{name}_gtFine_labelTrainIds.png"),
        "pred_sem_seg": {"data": torch.zeros(1, *shape, dtype=torch.int64)},
    }


def test_images_given_out_twice_count_once(tmp_path):
    metric = CityscapesOfficialMetric(instances=False)
    sample = small(tmp_path)
    metric.process(None, [sample, sample])
    assert metric.evaluate(1)["official/mIoU"] == 100
    assert metric.last_official["images"] == 1


def test_import_time_settings_of_the_script_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("CITYSCAPES_EXPORT_DIR", str(tmp_path / "nowhere"))
    metric = CityscapesOfficialMetric(instances=False)
    metric.process(None, [small(tmp_path)])
    metric.evaluate(1)
    assert os.environ["CITYSCAPES_EXPORT_DIR"] == str(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_what_is_missing_is_named(tmp_path):
    sample = small(tmp_path)
    metric = CityscapesOfficialMetric()
    metric.process(None, [sample])
    with raises_user_error("dataset", "official evaluation"):
        metric.evaluate(1)
    (tmp_path / "aachen_000000_000019_gtFine_labelIds.png").unlink()
    with raises_user_error("not-found", "labelIds.png"):
        CityscapesOfficialMetric().process(None, [sample])
    with raises_user_error("dataset"):
        CityscapesOfficialMetric().process(None, [{**sample, "seg_map_path": "a.png"}])


def test_sizes_that_differ_are_told(tmp_path):
    sample = small(tmp_path)
    sample["pred_sem_seg"]["data"] = torch.zeros(1, 4, 5, dtype=torch.int64)
    metric = CityscapesOfficialMetric(instances=False)
    metric.process(None, [sample])
    with raises_user_error("dataset", "official evaluation"):
        metric.evaluate(1)


def test_label_ids_are_those_of_the_scripts():
    from cityscapesscripts.helpers.labels import trainId2label

    got = label_ids(np.arange(19))
    assert got.tolist() == [trainId2label[k].id for k in range(19)]
    with raises_user_error("classes", "the prediction"):
        label_ids(np.array([[19]]))
