# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Training, evaluating and using a classifier, as a user does; a killed run resumes bit by bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from advice import advises
from user_errors import printed_error

from mmseg_resnest.engine.classification import load_classification
from mmseg_resnest.engine.config import load_config
from mmseg_resnest.engine.training import train
from mmseg_resnest.inference.classifier import Classifier
from mmseg_resnest.weights import convert_state_dict, load_checkpoint

KILLER = """
import os, signal, sys
from mmseg_resnest.engine.hooks import DropBlockHook
from mmseg_resnest_cli import main

before = DropBlockHook.before_train_iter

def kill(self, runner, *args, **kwargs):
    if runner.iter == 5:
        runner.checkpoint_writer.wait()
        os.kill(os.getpid(), signal.SIGKILL)
    before(self, runner, *args, **kwargs)

DropBlockHook.before_train_iter = kill
main("classify", sys.argv[1:])
"""


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def run(tool, config: Path, imagenet: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work folder of a run in peace."""
    folder = tmp_path_factory.mktemp("peace") / "run"
    done = tool("classify", "train", config, "--images", imagenet, "--work-dir", folder)
    assert done.returncode == 0, done.stderr
    assert "8 iterations of 4 images" in done.stdout and "accuracy/top1" in done.stdout
    assert "OneDL" not in done.stdout
    return folder


def test_a_killed_run_resumes_bit_by_bit(
    tool, run: Path, config: Path, imagenet: Path, tmp_path: Path
) -> None:
    words = ["train", config, "--images", imagenet, "--work-dir", tmp_path / "run"]
    killed = subprocess.run(
        [sys.executable, "-c", KILLER, *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, timeout=500,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "run/iter_8.pth").exists()
    done = tool("classify", *words, "--resume")
    assert done.returncode == 0, done.stderr
    assert "at iteration 4" in done.stdout
    first, second = weights_of(run / "iter_8.pth"), weights_of(tmp_path / "run/iter_8.pth")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_top1_and_top5_are_those_of_the_predictions(
    tool, run: Path, config: Path, imagenet: Path, tmp_path: Path
) -> None:
    """The file of `test`, the JSON of `predict`, and this test's own counting agree."""
    done = tool("classify", "test", config, run, "--images", imagenet)
    assert done.returncode == 0, done.stderr
    result = json.loads((run / "test/results.json").read_text())
    out = tmp_path / "classes.json"
    words = ["classify", "predict", config, run, imagenet / "val", "--out", out]
    done = tool(*words, "--top", 5)
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    hits = {1: 0, 5: 0}
    for path, found in record["images"].items():
        names = [one["class"] for one in found]
        assert len(names) == 5 and sum(one["score"] for one in found) <= 1.0001
        for top in hits:
            hits[top] += Path(path).parent.name in names[:top]
    assert len(record["images"]) == 12
    for top, number in hits.items():
        assert result[f"accuracy/top{top}"] == pytest.approx(100 * number / 12, abs=1e-4)

    before = out.read_text()
    assert tool(*words, "--top", 5).returncode == 0 and out.read_text() == before
    code, text = printed_error(tool(*words, "--top", 2).stderr)
    assert code == "output-exists" and text.startswith(f"--out {out}: ")


def test_predictions_are_continued_where_they_were_stopped(
    run: Path, config: Path, imagenet: Path, tmp_path: Path
) -> None:
    from mmseg_resnest.inference.classifier import classify_files

    files = [str(path) for path in sorted(imagenet.glob("val/*/*"))]
    out = tmp_path / "classes.json"
    model = Classifier(load_classification(config, splits=()), run / "iter_8.pth", "cpu")
    stopped = classify_files(model, files, 3, out)
    for _ in range(3):
        next(stopped)
    stopped.close()  # as Ctrl-C does
    assert len(json.loads(out.read_text())["images"]) == 3
    model.best = None  # type: ignore[assignment,method-assign]
    assert len(list(classify_files(model, files[:3], 3, out))) == 3  # none is done again
    with advises("inference/classifier.py:_continued", "name another file"):
        next(classify_files(model, files, 2, out))
    with advises("inference/classifier.py:_continued", "name another file") as told:
        next(classify_files(model, files[1:], 3, out))
    assert f"other images, such as {files[0]}" in told.value.message


def test_the_trained_backbone_starts_a_segmentation(run: Path, tmp_path: Path) -> None:
    """As init_cfg of a segmentation config, which then trains a step."""
    from mmseg_resnest.datasets import write_scenes

    scenes = write_scenes(tmp_path / "scenes", 4, 2, progress=False)
    checkpoint = run / "iter_8.pth"
    small = dict(blocks=(1, 1, 1, 1), radix=2, groups=1, base_width=4, stem_width=4)
    cfg = load_config(
        "fcn_resnest14_scenes",
        {
            "data_root": str(scenes),
            "train_cfg.max_iters": 1,
            "train_dataloader.batch_size": 2,
            "train_dataloader.num_workers": 0,
            "val_dataloader": None,
            "val_cfg": None,
            "val_evaluator": None,
            "optim_wrapper.optimizer.lr": 0.0,
            "model.backbone.arch": small,
            "model.backbone.init_cfg": dict(type="Pretrained", checkpoint=str(checkpoint)),
        },
    )
    train(cfg, work_dir=tmp_path / "seg")
    (last,) = (tmp_path / "seg").glob("iter_1.pth")
    found, given = weights_of(last), weights_of(checkpoint)
    parameters = [k for k in given if k.startswith("backbone.") and k.endswith(("weight", "bias"))]
    assert len(parameters) > 50
    assert all(torch.equal(found[key], given[key]) for key in parameters)


def test_a_trained_classifier_converts_to_the_published_backbone(run: Path) -> None:
    ours = load_checkpoint(run / "iter_8.pth")
    converted = convert_state_dict(ours)
    backbone = {key.removeprefix("backbone.") for key in ours if key.startswith("backbone.")}
    assert converted.keys() == backbone


def test_a_published_file_is_a_classifier(
    run: Path, config: Path, imagenet: Path, tmp_path: Path
) -> None:
    """In the published layout, without the names of classes: the same scores."""
    image = next(imagenet.glob("val/*/*.JPEG"))
    ours = load_checkpoint(run / "iter_8.pth")
    names = {key: key.removeprefix("backbone.").removeprefix("head.") for key in ours}
    torch.save({names[key]: value for key, value in ours.items()}, tmp_path / "published.pth")
    scores = []
    for file in (run / "iter_8.pth", tmp_path / "published.pth"):
        model = Classifier(load_classification(config, splits=()), file, "cpu")
        scores.append(model(image))
    assert torch.equal(*scores)
    assert model.classes == tuple("012345")
    cfg = load_classification(config, ["model.head.num_classes=9"], splits=())
    assert len(Classifier(cfg, file, "cpu").classes) == 6
    assert cfg.model.head.num_classes == 9  # the caller's is left alone


def test_a_classifier_says_what_the_network_says(run: Path, config: Path, imagenet: Path) -> None:
    """Its probabilities are those of the plain network on the plainly prepared image."""
    model = Classifier(load_classification(config, splits=()), run / "iter_8.pth", "cpu")
    assert model.classes == tuple(sorted(path.name for path in (imagenet / "val").iterdir()))
    path = next(imagenet.glob("val/*/*.JPEG"))
    scores = model(path)
    pixels = model.reader.prepare(model.reader.read(path))["inputs"].numpy()
    assert pixels.shape == (3, 32, 32)
    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    image = (pixels[::-1].transpose(1, 2, 0) - mean) / std
    network = model._network.eval()
    with torch.no_grad():
        features = network.backbone(torch.tensor(image.transpose(2, 0, 1)[None]).float())[-1]
        logits = network.head.fc(features.mean((2, 3)))
    assert torch.allclose(scores, logits.softmax(1)[0], atol=1e-5)
