# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""tools/predict.py, run as a process, and the Python functions behind it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from in_process import catch_services, run
from PIL import Image
from tool_runs import RunTool, Trained
from user_errors import raises_user_error

from mmseg_resnest.errors import UserError
from mmseg_resnest.inference import load_segmentor
from mmseg_resnest.models.folding import FoldedConv2d
from mmseg_resnest.runtimes import engines


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of images in several formats, with files that are none."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 255, (40, 56, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "a.jpg")
    Image.fromarray(pixels).save(folder / "a.png")
    Image.fromarray(pixels[:, :, 0]).save(folder / "grey.PNG")
    Image.fromarray(np.dstack([pixels, pixels[:, :, 0]])).save(folder / "sub" / "alpha.png")
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_text("no image either")
    return folder


def _predict(trained: Trained, run_tool: RunTool, source: Path, out: Path, *more: str):
    return run_tool(
        "predict.py", "toy.py", trained.checkpoint, source, "--out", out, *more,
        cwd=trained.toy.folder,
    )  # fmt: skip


def test_a_folder(trained: Trained, run_tool: RunTool, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = _predict(trained, run_tool, photos, out, "--opacity", "0.8").check()
    written = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    assert written == {
        "a.jpg.png", "a.jpg_overlay.jpg", "a.png.png", "a.png_overlay.png", "grey.png",
        "grey_overlay.png", "predictions.jsonl", "sub/alpha.png", "sub/alpha_overlay.png",
    }  # fmt: skip
    assert "skipped     1 file that is not an image" in run.stdout
    assert "notes.txt" in run.stdout
    with Image.open(out / "grey.png") as label:
        assert label.mode == "P"
        assert label.size == (56, 40)
        assert np.asarray(label).max() < 12


def test_one_image_equals_the_function(
    trained: Trained, run_tool: RunTool, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    _predict(trained, run_tool, photos / "a.png", out).check()
    result = load_segmentor(trained.toy.config, trained.checkpoint, "cpu")(photos / "a.png")
    assert np.array_equal(np.asarray(Image.open(out / "a.png")), result.labels)
    assert np.array_equal(np.asarray(Image.open(out / "a_overlay.png")), result.overlay())
    assert result.classes[0] == "sky"
    assert result.path == str(photos / "a.png")
    saved = result.save(tmp_path / "new" / "labels.png")
    assert np.array_equal(np.asarray(Image.open(saved)), result.labels)
    with raises_user_error("argument", "labels.jpg"):
        result.save(tmp_path / "labels.jpg")
    with pytest.raises(UserError):
        result.overlay(1.5)


def test_a_broken_image_does_not_stop_the_others(
    trained: Trained, run_tool: RunTool, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (photos / "b.png").write_bytes((photos / "a.png").read_bytes()[:60])
    (photos / "new\nline.png").write_bytes(b"")
    (photos / os.fsdecode(b"\xff.png")).symlink_to("missing.png")
    (photos / os.fsdecode(b"\xff.txt")).write_bytes(b"")
    Image.new("RGB", (3000, 2)).save(photos / "wide.png")
    steps = [
        dict(type="LoadImageFromFile"),
        dict(type="Resize", scale=(64, 48), keep_ratio=True),
        dict(type="PackSegInputs"),
    ]
    text = f"test_dataloader = dict(dataset=dict(pipeline={steps}))"
    config = trained.toy.variant("resizing", text)
    run = run_tool(
        "predict.py", config.name, trained.checkpoint, photos, "--out", out, cwd=trained.toy.folder
    )
    error = run.error()
    assert "4 of 8 images are done" in error
    failed = [line for line in run.stdout.splitlines() if line.startswith("failed")]
    assert len(failed) == 4
    for name in ("b.png", "new\\nline.png", "\\udcff.png", "wide.png"):
        assert any(name in line for line in failed), name
    assert "\\udcff.txt" in run.stdout
    assert (out / "grey.png").is_file()
    assert not (out / "b.png").exists()


def test_inputs_are_never_overwritten(trained: Trained, run_tool: RunTool, photos: Path) -> None:
    before = (photos / "a.png").read_bytes()
    error = _predict(trained, run_tool, photos / "a.png", photos).error()
    assert "a_overlay.png" in error or "a.png" in error
    assert "[output-exists]" in error
    assert (photos / "a.png").read_bytes() == before


def test_patterns_outlines_and_going_on(
    trained: Trained, run_tool: RunTool, photos: Path, tmp_path: Path
) -> None:
    out, pattern = tmp_path / "out", Path(f"{photos}/a.*")
    more = ("--save", "labels", "coco", "--tile", "64")
    first = _predict(trained, run_tool, pattern, out, *more).check()
    assert "labels + coco of 2 images" in first.stdout
    (out / "a.jpg.png").unlink()
    second = _predict(trained, run_tool, pattern, out, *more).check()
    assert "skipped     1 images that are done" in second.stdout
    assert "labels + coco of 1 images" in second.stdout
    names = {i["file_name"] for i in json.loads((out / "coco.json").read_text())["images"]}
    assert names == {"a.jpg", "a.png"}
    error = _predict(trained, run_tool, photos / "none.mp4", out).error()
    assert "none.mp4" in error and "[not-found]" in error


def test_another_precision_is_another_prediction(
    trained: Trained, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "has_bfloat16", lambda: None)
    monkeypatch.chdir(trained.toy.folder)
    (photos / "_broken.png").write_bytes(b"no image")  # the first one, which prepares nothing
    words = ("predict", "toy.py", trained.checkpoint, photos, "--out", tmp_path / "out")
    for more in ([], ["--precision", "bf16"]):
        assert " of 4 images in " in run(*words, "--device", "cpu", *more, codes=(2,))
        said = run(*words, "--device", "cpu", *more, codes=(2,))
        assert "skipped     4 images that are done" in said
    assert "bfloat16; as torch in float32" in said


def test_a_service_runs_what_auto_measured(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "_MEASURED", ("torch",))
    monkeypatch.chdir(trained.toy.folder)
    served = catch_services(monkeypatch)
    for engine in ("torch", "auto"):
        run("serve", "toy.py", trained.checkpoint, "--device", "cpu", "--engine", engine)
    folded = [
        any(isinstance(part, FoldedConv2d) for part in model.model.modules()) for model in served
    ]
    assert folded == [False, True]
