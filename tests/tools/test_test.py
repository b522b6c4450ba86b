# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""tools/test.py, run as a process."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import in_process
import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image
from tool_runs import RunTool, Toy, Trained


@pytest.fixture(scope="module")
def tested(trained: Trained, run_tool: RunTool) -> dict[str, Any]:
    """One evaluation with everything written."""
    folder = trained.toy.folder
    run = run_tool(
        "test.py", "toy.py", trained.checkpoint, "--out", "labels", "--show-dir", "pictures",
        cwd=folder,
    ).check()  # fmt: skip
    results = json.loads((folder / "work_dirs" / "toy" / "test" / "results.json").read_text())
    return {"folder": folder, "run": run, "results": results}


def test_numbers_are_those_of_the_validation(tested: dict[str, Any], trained: Trained) -> None:
    """The last checkpoint scores what training said at its iteration, to the last bit."""
    history = json.loads((trained.work_dir / "results.json").read_text())["history"]
    results = tested["results"]
    assert {k: results[k] for k in ("mIoU", "pixAcc", "mAcc")} == {
        k: history[-1][k] for k in ("mIoU", "pixAcc", "mAcc")
    }
    assert f"mIoU {results['mIoU']:.2f}" in tested["run"].stdout
    assert "| wall" in tested["run"].stdout
    assert tested["run"].stderr == ""


def test_the_runner_got_what_print_config_prints(
    tested: dict[str, Any], run_tool: RunTool, tmp_path: Path
) -> None:
    printed = run_tool("print_config.py", "toy.py", "--resolved", "test", cwd=tested["folder"])
    (tmp_path / "printed.py").write_text(printed.check().stdout, encoding="utf-8")
    used = Config.fromfile(tested["folder"] / "work_dirs" / "toy" / "test" / "toy.py")
    assert Config.fromfile(tmp_path / "printed.py").to_dict() == used.to_dict()


def test_label_maps_give_the_same_numbers(tested: dict[str, Any], scenes: Path) -> None:
    """The PNGs that --out wrote, counted with plain NumPy, against the labels on disk."""
    files = sorted((tested["folder"] / "labels").iterdir())
    truths = sorted((scenes / "annotations" / "validation").iterdir())
    assert [f.name for f in files] == [t.name for t in truths]
    correct = labelled = 0
    for file, truth in zip(files, truths, strict=True):
        with Image.open(file) as image:
            assert image.mode == "P"
            labels = np.asarray(image).astype(int)
        wanted = np.asarray(Image.open(truth)).astype(int) - 1
        assert labels.shape == wanted.shape
        correct += int((labels == wanted)[wanted >= 0].sum())
        labelled += int((wanted >= 0).sum())
    assert correct == tested["results"]["correct_pixels"]
    assert labelled == tested["results"]["labelled_pixels"]


def test_pictures_are_drawn(tested: dict[str, Any]) -> None:
    pictures = sorted((tested["folder"] / "pictures").iterdir())
    assert len(pictures) == 3
    with Image.open(pictures[0]) as picture:
        assert picture.width > 3 * 300


def test_tta_uses_the_configs_augmentation(trained: Trained, run_tool: RunTool) -> None:
    folder = trained.toy.folder
    run = run_tool("test.py", "toy.py", trained.checkpoint, "--tta", cwd=folder).check()
    assert "with augmentation" in run.stdout
    results = json.loads((folder / "work_dirs" / "toy" / "test_tta" / "results.json").read_text())
    assert results["tta"] is True
    assert results["images"] == 3


def test_two_processes_give_the_same_numbers(
    tested: dict[str, Any], trained: Trained, run_tool: RunTool
) -> None:
    """Three images over two processes: one of them gets an image twice, which counts once."""
    folder = trained.toy.folder
    args = ("toy.py", trained.checkpoint, "--work-dir", "two")
    for run in run_tool.ranks(2, "test.py", *args, cwd=folder):
        run.check()
    results = json.loads((folder / "two" / "results.json").read_text())
    assert results["confusion_matrix"] == tested["results"]["confusion_matrix"]


def test_weights_alone_are_enough_and_plain_layers_agree(
    tested: dict[str, Any], trained: Trained, toy: Toy, run_tool: RunTool
) -> None:
    """A bare state dict, as published weights are; what the folded model says but for rounding."""
    import torch

    state_dict = torch.load(trained.checkpoint, weights_only=False)["state_dict"]
    torch.save(state_dict, toy.folder / "weights.pth")
    args = ("toy.py", "weights.pth", "--work-dir", "w", "--cfg-options", "numerics.fused=False")
    run_tool("test.py", *args, cwd=toy.folder).check()
    results = json.loads((toy.folder / "w" / "results.json").read_text())
    assert results["folded"] is False
    assert tested["results"]["folded"] is not torch.cuda.is_available()
    plain, folded = (np.array(r["confusion_matrix"]) for r in (results, tested["results"]))
    assert np.abs(plain - folded).sum() <= 1e-4 * plain.sum()


def test_examples_and_the_report_of_them(tested: dict[str, Any], run_tool: RunTool) -> None:
    """What the test kept to look at is what it predicted, and stands in the report."""
    folder = tested["folder"]
    place = folder / "work_dirs" / "toy" / "test" / "examples"
    examples = json.loads((place / "examples.json").read_text())
    assert len(examples["images"]) == 3
    for entry in examples["images"]:
        stem = Path(entry["name"]).stem
        pred = np.asarray(Image.open(folder / "labels" / f"{stem}.png"))
        assert np.array_equal(np.asarray(Image.open(place / f"{entry['file']}_pred.png")), pred)
        label = np.asarray(Image.open(place / f"{entry['file']}_label.png"))
        right = (label == pred)[label != 255]
        assert entry["pixAcc"] == pytest.approx(100 * right.mean())
        i, j, count = entry["pairs"][0]
        assert count == ((label == i) & (pred == j)).sum() > 0
        assert {"best", "worst", "random"} <= set(entry["kinds"])
    run = run_tool("report.py", "work_dirs/toy", "--out", "out/r.html", cwd=folder).check()
    assert "examples    3" in run.stdout
    assert (folder / "out" / "r.html").stat().st_size < 10e6
    assert "nothing" in run_tool("report.py", "nothing", cwd=folder).error()


def test_an_evaluation_that_fails_leaves_none_of_an_earlier_one(
    trained: Trained, toy: Toy, run_tool: RunTool
) -> None:
    """Its examples would stand beside the other's scores."""
    data = toy.scenes.resolve()
    toy.scenes.unlink()
    shutil.copytree(data, toy.scenes)
    args = ("toy.py", trained.checkpoint, "--work-dir", "w")
    run_tool("test.py", *args, cwd=toy.folder).check()
    names = ("results.json", "images.npz", "examples/examples.json")
    assert all((toy.folder / "w" / name).is_file() for name in names)
    image = sorted((toy.scenes / "images" / "validation").iterdir())[-1]
    image.write_bytes(image.read_bytes()[:-200])
    assert "[image]" in run_tool("test.py", *args, cwd=toy.folder).error()
    assert not any((toy.folder / "w" / name).exists() for name in names)


def test_engines_score_the_same(
    tested: dict[str, Any], trained: Trained, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tested["folder"])
    monkeypatch.setenv("MMSEG_RESNEST_CACHE", str(tmp_path / "cache"))
    found = {}
    for name, options in {
        "engine": ["--engine", "onnxruntime"],
        "tta": ["--tta"],
        "engine, tta": ["--tta", "--engine", "onnxruntime"],
    }.items():
        words = ["test", "toy.py", trained.checkpoint, *options, "--work-dir", tmp_path / name]
        said = in_process.run(*words)
        assert ("engine      onnxruntime" in said) is ("engine" in name)
        found[name] = json.loads((tmp_path / name / "results.json").read_text())
    assert found["engine"]["mIoU"] == pytest.approx(tested["results"]["mIoU"], abs=0.02)
    assert found["engine, tta"]["mIoU"] == pytest.approx(found["tta"]["mIoU"], abs=0.02)
    numerics = found["engine"]["numerics"]
    assert numerics["engine"].startswith("onnxruntime ")
    assert numerics["labels_as_torch"] >= 0.9999
    assert (numerics["precision"], tested["results"]["numerics"]["engine"]) == ("float32", "torch")
    assert not found["engine"]["folded"]
    assert len(list((tmp_path / "cache" / "engines").iterdir())) == 1  # one network for both
