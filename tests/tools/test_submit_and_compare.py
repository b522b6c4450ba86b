# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""tools/test.py --format and --official, tools/compare_runs.py, run as processes."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmseg.models import SegDataPreProcessor
from PIL import Image
from tool_runs import RunTool, Trained
from user_errors import printed_error, raises_user_error

from mmseg_resnest import load_segmentor
from mmseg_resnest.engine.config import load_config
from mmseg_resnest.engine.testing import evaluate
from mmseg_resnest.errors import UserError

VOC = """
test_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type="PascalVOCDataset",
        data_root="voc",
        ann_file="test.txt",
        data_prefix=dict(img_path="JPEGImages", seg_map_path="SegmentationClass"),
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="Resize", scale=(96, 96), keep_ratio=True),
            dict(type="LoadAnnotations"),
            dict(type="PackSegInputs"),
        ],
    )
)
model = dict(decode_head=dict(num_classes=21))
"""


@pytest.fixture(scope="module")
def voc(trained: Trained) -> Path:
    """Images without labels in VOC's layout, and weights of 21 classes."""
    folder = trained.toy.folder
    trained.toy.variant("voc", VOC)
    images = folder / "voc" / "JPEGImages"
    images.mkdir(parents=True)
    dice = np.random.default_rng(0)
    for i in range(3):
        pixels = dice.integers(0, 256, (60 + i, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"2008_00000{i}.jpg")
    (folder / "voc" / "test.txt").write_text(
        "\n".join(f"2008_00000{i}" for i in range(3)), encoding="utf-8"
    )
    weights = torch.load(trained.checkpoint, weights_only=False)["state_dict"]
    for key in ("decode_head.conv_seg.weight", "decode_head.conv_seg.bias"):
        weights[key] = weights[key].repeat(2, *[1] * (weights[key].ndim - 1))[:21].clone()
    torch.save(weights, folder / "voc.pth")
    return folder


UNLABELLED = {
    "nothing is scored": "test_evaluator = []",
    "the stack writes files": (
        "test_evaluator = dict("
        "_delete_=True, type='IoUMetric', format_only=True, output_dir='stack', prefix='a')"
    ),
    "several": """
test_evaluator = [dict(type="IoUMetric", format_only=True, output_dir="stack")]
test_dataloader = dict(dataset=dict(data_prefix=dict(_delete_=True, img_path="JPEGImages")))
""",
    "a wrapper": """
test_evaluator = []
test_dataloader = dict(dataset=dict(_delete_=True, type="ConcatDataset", datasets=[
    dict(type="CustomDataset", data_root="voc", metainfo=dict(classes=list(map(str, range(21)))),
         data_prefix=dict(img_path="JPEGImages", seg_map_path="nowhere"), pipeline=[
        dict(type="LoadImageFromFile"),
        dict(type="Resize", scale=(96, 96), keep_ratio=True),
        dict(type="LoadAnnotations"),
        dict(type="PackSegInputs"),
    ])]))
""",
}


@pytest.mark.parametrize("case", UNLABELLED)
def test_predictions_of_images_without_labels(
    voc: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, case: str
) -> None:
    monkeypatch.chdir(voc)
    config = voc / "unlabelled.py"
    config.write_text(f"_base_ = 'voc.py'\n{UNLABELLED[case]}\n", encoding="utf-8")
    out, show = tmp_path / "out", tmp_path / "show"
    result = evaluate(load_config(config), "voc.pth", tmp_path / "w", out_dir=out, show_dir=show)
    assert "mIoU" not in result
    expected = load_segmentor("voc.py", "voc.pth", "cpu").fold()
    for i in range(3):
        name = f"2008_00000{i}"
        with Image.open(out / f"{name}.png") as labels:
            wanted = expected(f"voc/JPEGImages/{name}.jpg").labels
            assert np.array_equal(np.asarray(labels), wanted)
        assert (show / f"{name}.png").is_file()
        if "stack" in UNLABELLED[case]:
            with Image.open(voc / "stack" / f"{name}.png") as labels:
                assert np.array_equal(np.asarray(labels), wanted)


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (None, "image"),  # nothing is left of it after Resize
        (RuntimeError("size mismatch"), "image"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "memory"),
    ],
)
def test_an_image_that_cannot_be_predicted_is_named(
    voc: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: Exception | None, code: str
) -> None:
    monkeypatch.chdir(voc)
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(np.full((60, 80, 3), 90, np.uint8)).save(folder / "a.jpg")
    Image.new("RGB", (80, 60) if fault else (3000, 2)).save(folder / "b.jpg")
    config = voc / "unlabelled.py"
    data = f"data_root='', ann_file='', data_prefix=dict(_delete_=True, img_path={str(folder)!r})"
    text = (
        f"test_evaluator = []\ntest_dataloader = dict(dataset=dict({data}, type='ADE20KDataset'))"
    )
    config.write_text(f"_base_ = 'voc.py'\n{text}\n", encoding="utf-8")
    if fault is not None:
        real = SegDataPreProcessor.forward

        def forward(self: Any, data: dict[str, Any], training: bool = False) -> Any:
            if not any(image.any() for image in data["inputs"]):
                raise fault
            return real(self, data, training)

        monkeypatch.setattr(SegDataPreProcessor, "forward", forward)
    with raises_user_error(code, folder / "b.jpg"):
        evaluate(load_config(config), "voc.pth", tmp_path / "w", out_dir=tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").glob("*.png")] == ["a.png"]


@pytest.mark.parametrize(
    ("change", "code", "subject"),
    [
        ("", "not-found", "SegmentationClass"),
        ("data_prefix=dict(_delete_=True, img_path='JPEGImages')", "config-key", "seg_map_path"),
        ("data_prefix=dict(seg_map_path='JPEGImages')", "empty", "JPEGImages"),
        ("data_prefix=dict(seg_map_path='some')", "not-found", "2008_000001.png"),
        (
            "type='CustomDataset', ann_file='', metainfo=dict(classes=['a']),"
            " data_prefix=dict(seg_map_path='some')",
            "not-found", "2008_000001.png",
        ),
    ],
)  # fmt: skip
def test_scores_of_images_without_labels_are_refused_before_the_run(
    voc: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, change: str, code: str, subject: str
) -> None:
    monkeypatch.chdir(voc)
    (voc / "voc" / "some").mkdir(exist_ok=True)
    Image.new("L", (80, 60)).save(voc / "voc" / "some" / "2008_000000.png")
    config = voc / "unlabelled.py"
    text = f"test_dataloader = dict(dataset=dict({change}))"
    config.write_text(f"_base_ = 'voc.py'\n{text}\n", encoding="utf-8")
    with raises_user_error(code, subject) as error:
        evaluate(load_config(config), "voc.pth", tmp_path / "w", out_dir=tmp_path / "out")
    assert "test_evaluator=[]" in error.value.message
    assert not list(tmp_path.iterdir())


def test_submission_without_labels(voc: Path, run_tool: RunTool) -> None:
    args = ("voc.py", "voc.pth", "--format", "voc")
    run = run_tool("test.py", *args, "--out", "sub", cwd=voc).check()
    assert "to submit" in run.stdout
    with zipfile.ZipFile(voc / "sub.zip") as archive:
        names = archive.namelist()
        assert names == [
            f"results/VOC2012/Segmentation/comp6_test_cls/2008_00000{i}.png" for i in range(3)
        ]
        for i, name in enumerate(names):
            with archive.open(name) as stream, Image.open(stream) as picture:
                assert picture.mode == "P"
                assert picture.size == (80, 60 + i)
                assert np.asarray(picture).max() <= 20
    results = json.loads((voc / "work_dirs" / "voc" / "test" / "results.json").read_text())
    assert results["format"] == "voc"
    assert results["images"] == 3
    assert "mIoU" not in results
    # Again: the same zip.
    before = (voc / "sub.zip").read_bytes()
    run_tool("test.py", *args, "--out", "sub", cwd=voc).check()
    assert (voc / "sub.zip").read_bytes() == before


def test_what_is_refused_before_anything_is_computed(
    voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process: none of it comes as far as the model."""
    monkeypatch.chdir(voc)
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")

    def refused(**options: Any) -> str:
        with pytest.raises(UserError) as caught:
            evaluate(load_config("voc.py"), "voc.pth", **options)
        return f"{caught.value.code}: {caught.value.subject}"

    assert "--out" in refused(submission="voc", out_dir=tmp_path)
    assert refused(submission="voc").startswith("argument-missing")
    assert refused(submission="coco", out_dir="x") == "argument: --format coco"
    assert "--official" in refused(official=True)
    assert not (voc / "x").exists()


def test_two_runs_compared(trained: Trained, run_tool: RunTool) -> None:
    folder = trained.toy.folder
    weights = torch.load(trained.checkpoint, weights_only=False)["state_dict"]
    generator = torch.Generator().manual_seed(0)
    key = "decode_head.conv_seg.weight"
    weights[key] = weights[key] + torch.randn(weights[key].shape, generator=generator)
    torch.save(weights, folder / "other.pth")
    run_tool("test.py", "toy.py", trained.checkpoint, "--work-dir", "a", cwd=folder).check()
    run_tool("test.py", "toy.py", "other.pth", "--work-dir", "b", cwd=folder).check()
    args = ("a", "b", "--draws", "200", "--json", "difference.json")
    run = run_tool("compare_runs.py", *args, cwd=folder).check()
    found = json.loads((folder / "difference.json").read_text(encoding="utf-8"))
    a, b = (json.loads((folder / x / "results.json").read_text()) for x in "ab")
    assert found["images"] == 3
    assert found["scores"][0]["name"] == "mIoU"
    assert found["scores"][0]["a"] == pytest.approx(a["mIoU"], rel=1e-12)
    assert found["scores"][0]["b"] == pytest.approx(b["mIoU"], rel=1e-12)
    for row, one, two in zip(found["scores"][1:], a["classes"], b["classes"], strict=True):
        assert row["name"] == one["name"]
        assert row["a"] == pytest.approx(one["IoU"])
        assert row["b"] == pytest.approx(two["IoU"])
    assert f"{a['mIoU']:.2f}" in run.stdout
    missing = run_tool("compare_runs.py", "a", "nowhere", cwd=folder).error()
    code, text = printed_error(missing)
    assert code == "not-found" and text.startswith("nowhere")
