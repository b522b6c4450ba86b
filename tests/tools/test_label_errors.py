# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""label-errors on a run: numbers against a second implementation, files read back, going on."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from advice import advises, refused
from in_process import run
from outlines import rasterize
from PIL import Image
from tool_runs import Toy, make_toy
from user_errors import printed_error, raises_user_error

from mmseg_resnest import load_segmentor
from mmseg_resnest.datasets import build_dataset
from mmseg_resnest.engine.config import load_config
from mmseg_resnest.engine.preemption import Preempted
from mmseg_resnest.evaluation.label_quality import LabelEvidence
from mmseg_resnest.inference.label_errors import folds
from mmseg_resnest.inference.label_errors.samples import labelled_samples
from mmseg_resnest.registry import building

SHORT = """
train_cfg = dict(max_iters=2, val_interval=2)
param_scheduler = [dict(type="PolyLR", power=0.9, eta_min=0.0, begin=0, end=3, by_epoch=False)]
train_dataloader = dict(batch_size=2, num_workers=0)
default_hooks = dict(checkpoint=dict(interval=1))
"""
RUN = Path("work_dirs/a")
VAL = RUN / "label_errors" / "val"


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory, scenes: Path) -> Iterator[Toy]:
    """A short run with labels of its own, of which some pixels are ignored."""
    own = shutil.copytree(scenes, tmp_path_factory.mktemp("scenes") / "scenes")
    toy = make_toy(tmp_path_factory.mktemp("labels"), own)
    toy.variant("a", SHORT)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(toy.folder)
        run("train", "a.py")
        yield toy


def read(out: Path) -> dict[str, Any]:
    return json.loads((out / "label_errors.json").read_text())


def given(path: str) -> np.ndarray:
    """The classes of a label file, 255 where it is unlabelled."""
    return np.asarray(Image.open(path)).astype(np.int64) - 1 & 255


def test_a_run_is_scored_and_written(toy: Toy) -> None:
    said = run("label-errors", RUN, "--top", 30, "--min-area", 9)
    found = read(VAL)
    assert len(found["images"]) == 3 and "30 regions" in said and "written" in said
    assert found["split"] == "val" and found["folds"] is None

    model = load_segmentor(RUN, device="cpu")
    images = [entry["image"] for entry in found["images"]]
    scores = [model(image).scores() for image in images]
    labels = [given(entry["label"]) for entry in found["images"]]
    for k, name in enumerate(model.classes):
        mine = [s[k][g == k] for s, g in zip(scores, labels, strict=True)]
        mean = np.concatenate(mine).mean() if sum(map(len, mine)) else None
        limit = found["thresholds"][name]
        assert limit == (mean if mean is None else pytest.approx(float(mean), rel=1e-4))
    for entry, score, label in zip(found["images"], scores, labels, strict=True):
        kept = label < 12
        own = np.take_along_axis(score, np.where(kept, label, 0)[None], 0)[0][kept].astype("f8")
        weights = np.exp((1 - own) / 0.1)
        assert entry["score"] == pytest.approx((own @ weights) / weights.sum(), rel=1e-4)
        assert entry["labelled_pixels"] == kept.sum()
    assert [e["score"] for e in found["images"]] == sorted(e["score"] for e in found["images"])
    assert [r["score"] for r in found["regions"]] == sorted(r["score"] for r in found["regions"])
    assert min(region["area"] for region in found["regions"]) >= 9
    _check_tasks(found, dict(zip(images, zip(scores, labels, strict=True), strict=True)))
    page = (VAL / "label_errors.html").read_text()
    assert page.count("<article>") == 30 and page.count("data:image/jpeg") == 120
    assert "<script" not in page and "http" not in page.replace("http-equiv", "")


def _check_tasks(found: dict[str, Any], made_from: dict[str, Any]) -> None:
    """The polygons of both kinds of tasks, filled, are the regions of the JSON file."""
    classes = list(found["thresholds"])
    shown = found["regions"][:30]
    xml = ElementTree.parse(VAL / "cvat.xml").getroot()
    assert [e.text for e in xml.findall("meta/task/labels/label/name")] == classes
    listed = [entry["name"] for entry in json.loads((VAL / "cvat_labels.json").read_text())]
    assert listed == classes
    in_xml = {image.get("name"): image for image in xml.findall("image")}
    assert list(in_xml) == sorted(in_xml) and set(in_xml) == {
        os.path.basename(region["image"]) for region in shown
    }
    files = sorted((VAL / "labelme").iterdir())
    assert len(files) == len(in_xml)
    seen = 0
    for file in files:
        task = json.loads(file.read_text())
        path = os.path.normpath(file.parent / task["imagePath"])
        (image,) = [one for one in made_from if os.path.samefile(one, path)]
        scores, labels = made_from[image]
        assert (task["imageHeight"], task["imageWidth"]) == labels.shape
        polygons = in_xml[os.path.basename(image)].findall("polygon")
        regions = [region for region in shown if region["image"] == image]
        for shape, polygon, region in zip(task["shapes"], polygons, regions, strict=True):
            points = [[float(v) for v in p.split(",")] for p in polygon.get("points").split(";")]
            assert points == shape["points"]
            inside = rasterize([(1, [points])], *labels.shape, fill=0) == 1
            ys, xs = np.nonzero(inside)
            x, y = int(xs.min()), int(ys.min())
            assert region["box"] == [x, y, int(xs.max()) + 1 - x, int(ys.max()) + 1 - y]
            assert region["area"] == inside.sum()
            assert set(labels[inside]) == {classes.index(region["given"])}
            assert set(scores.argmax(0)[inside]) == {classes.index(region["predicted"])}
            assert shape["label"] == polygon.get("label") == region["predicted"]
            about = {a.get("name"): a.text for a in polygon.findall("attribute")}
            assert about == {"given": region["given"], "score": f"{region['score']:.4f}"}
            own, other = (
                scores[classes.index(region[key])][inside] for key in ("given", "predicted")
            )
            assert region["p_given"] == pytest.approx(own.mean(), abs=1e-4)
            assert region["p_predicted"] == pytest.approx(other.mean(), abs=1e-4)
            seen += 1
    assert seen == 30


def test_what_is_done_is_not_done_again(toy: Toy, tmp_path: Path) -> None:
    again = ("label-errors", RUN, "--out", tmp_path / "out", "--top", 5)
    run(*again)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*") if p.is_file()}
    said = run(*again)
    assert "skipped     3 images" in said and "up to date" in said
    changed = [p.name for p, time in before.items() if p.stat().st_mtime_ns != time]
    assert changed == []
    label = Path(read(tmp_path / "out")["images"][0]["label"])
    values = np.asarray(Image.open(label)).copy()
    values[:40] = 0
    Image.fromarray(values).save(label)
    assert "skipped     2 images" in run(*again)
    pixels = {e["label"]: e["labelled_pixels"] for e in read(tmp_path / "out")["images"]}
    assert pixels[str(label)] == (given(str(label)) < 12).sum()
    run(*again[:-1], 1)  # fewer regions leave no file of the others
    assert len(list((tmp_path / "out" / "labelme").iterdir())) == 1
    next((tmp_path / "out" / "labelme").iterdir()).unlink()
    assert "written" in run(*again[:-1], 1)

    (scored, *_) = sorted((tmp_path / "out" / "scores").glob("*.npz"))
    scored.write_bytes(b"")
    with advises("evaluation/label_quality.py:load", "remove it"):
        LabelEvidence.load(scored)
    scored.unlink()
    assert "skipped     2 images" in run(*again)


def test_each_fold_is_judged_by_a_model_that_did_not_learn_it(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    saved = tmp_path / "of the run"
    option = f"default_hooks.checkpoint.out_dir={saved}"
    words = ("label-errors", "a.py", "--folds", 2, "--out", out, "--cfg-options", option)
    trained = []
    real = folds.train

    def train(cfg: Any, work_dir: Path, resume: str) -> Any:
        trained.append(work_dir.name)
        if trained == ["fold1", "fold2"]:
            raise Preempted("saved; the same command with --resume continues from it")
        return real(cfg, work_dir=work_dir, resume=resume)

    monkeypatch.setattr(folds, "train", train)
    assert "the same command continues from it" in run(*words, codes=(75,))
    assert not (out / "label_errors.json").exists()
    run(*words)
    assert trained == ["fold1", "fold2", "fold2"]  # the first one is done
    found = read(out)
    assert found["split"] == "train" and len(found["images"]) == 6
    listed = sorted(str(p) for p in (toy.scenes / "images" / "training").iterdir())
    for fold in (1, 2):
        held = {os.path.basename(e["image"]) for e in found["images"] if e["fold"] == fold}
        assert len(held) == 3
        cfg = torch.load(out / f"fold{fold}" / "iter_2.pth", weights_only=True)["meta"]["cfg"]
        (tmp_path / "fold.py").write_text(cfg)
        kept = load_config(tmp_path / "fold.py").train_dataloader.dataset.indices
        assert held.isdisjoint(os.path.basename(listed[index]) for index in kept)
        assert len(kept) == 3
    model = load_segmentor("a.py", out / "fold2", device="cpu")
    entry = next(e for e in found["images"] if e["fold"] == 2)
    label = given(entry["label"])
    own = np.take_along_axis(
        model(entry["image"]).scores(), np.where(label < 12, label, 0)[None], 0
    )[0][label < 12].astype("f8")
    weights = np.exp((1 - own) / 0.1)
    assert entry["score"] == pytest.approx((own @ weights) / weights.sum(), rel=1e-4)
    assert "up to date" in run(*words)
    assert len(trained) == 3

    assert not saved.exists()
    other = (*words, "optim_wrapper.optimizer.lr=0.5")
    refused("inference/label_errors/folds.py:train_folds", "name another folder", command=other)


@pytest.mark.long
def test_folds_of_another_config_go_into_another_folder(toy: Toy, tmp_path: Path) -> None:
    words = ("label-errors", "a.py", RUN, "--folds", 2, "--out")
    run(*words, tmp_path / "out")
    other = ("--cfg-options", "optim_wrapper.optimizer.lr=0.5")
    run(*words, tmp_path / "other", *other)
    shutil.rmtree(tmp_path / "out")
    run(*words, tmp_path / "out", *other)
    assert read(tmp_path / "out")["images"] == read(tmp_path / "other")["images"]


def test_folds_need_training_images_and_a_config_that_says_all(toy: Toy, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out")
    command = ("label-errors", "a.py", RUN, "--folds", 2, "--split", "val", *out)
    refused(
        "inference/label_errors/find.py:find_label_errors", "leave --folds out", command=command
    )
    assert "images" in run("label-errors", "a.py", RUN, "--split", "val", *out)
    assert printed_error(run("label-errors", "a.py", *out, codes=(2,)))[0] == "argument-missing"
    for number in (0, 1, 7):
        said = run("label-errors", RUN, "--folds", number, *out, codes=(2,))
        assert printed_error(said)[0] == "argument"
    for words in (("--group-pattern", "(.)."), ("--no-frames",)):
        assert printed_error(run("label-errors", RUN, *words, *out, codes=(2,)))[0] == "argument"
    for option in ("--top", "--min-area"):
        code, text = printed_error(run("label-errors", RUN, option, 0, *out, codes=(2,)))
        assert code == "argument" and option in text
    cfg = load_config("a.py")
    samples, _ = labelled_samples(cfg, "train")
    cfg.resume = True  # as a checkpoint of a resumed run has it
    with advises("inference/label_errors/folds.py:train_folds", "name the config file in front"):
        folds.train_folds(cfg, samples, folds.assign_folds(samples, 2), tmp_path)


def test_what_is_refused_leaves_nothing(toy: Toy, tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("no checkpoint")
    out = ("--out", tmp_path / "out")
    for words in (
        ("a.py", tmp_path / "text.pth"), (RUN, "--device", "cuda:99"),
        (RUN, "--folds", 2, "--device", "mps"),
    ):  # fmt: skip
        run("label-errors", *words, *out, codes=(2,))
        assert not (tmp_path / "out").exists()


def test_labels_are_those_that_the_pipeline_loads(toy: Toy) -> None:
    """Through wrappers, with merged and left out classes and with some of the images."""
    changes = {"label_map": {"car": "vehicle", "sign": "vehicle", "lamp": "ignore"}}
    cfg = load_config("a.py")
    leaf = {**cfg.val_dataloader.dataset, **changes, "indices": [2, 0]}
    other = {**cfg.val_dataloader.dataset, **changes, "indices": -1}
    cfg.val_dataloader.dataset = dict(
        type="RepeatDataset", times=3, dataset=dict(type="ConcatDataset", datasets=[leaf, other])
    )
    samples, ignored = labelled_samples(cfg, "val")
    assert ignored == 255 and len(samples) == 2  # the last of three is in both
    with building("mmseg_resnest"):
        dataset = build_dataset(cfg.val_dataloader.dataset)
    for index, sample in enumerate(samples):
        packed = dataset[index]["data_samples"]
        assert packed.img_path == sample.image
        classes = len(dataset.metainfo["classes"])
        labels = sample.read_labels(classes, ignored)
        assert classes == 10 and np.array_equal(labels, packed.gt_sem_seg.data[0])
        assert labels.max() == 255
    with raises_user_error("label", samples[0].label):
        samples[0].read_labels(5, ignored)
    below = replace(samples[0], loaders=(lambda x: {**x, "gt_seg_map": np.array([[0, -1]])},))
    with raises_user_error("label", samples[0].label):
        below.read_labels(10, ignored)
    cfg.model.multilabel = True
    with raises_user_error("model"):
        labelled_samples(cfg, "val")
    cfg.model.multilabel = False
    cfg.val_dataloader = None
    with raises_user_error("config-key", "a.py"):
        labelled_samples(cfg, "val")
