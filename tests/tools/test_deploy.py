# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""tools/export_onnx.py, publish_model.py and serve.py, run as processes."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from tool_runs import ROOT, RunTool, make_toy
from user_errors import printed_error

from mmseg_resnest import load_segmentor
from mmseg_resnest.inference import Segmentor


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, scenes: Path) -> Path:
    """``toy.py``, its data, and ``toy.pth``, untrained weights that use several classes."""
    toy = make_toy(tmp_path_factory.mktemp("deploy"), scenes)
    torch.manual_seed(0)
    model = load_segmentor(toy.config, None, "cpu")
    with torch.no_grad():
        torch.nn.init.normal_(model.model.decode_head.conv_seg.weight)
    torch.save(model.model.state_dict(), toy.folder / "toy.pth")
    return toy.folder


@pytest.fixture(scope="module")
def model(folder: Path) -> Segmentor:
    return load_segmentor(folder / "toy.py", folder / "toy.pth", "cpu")


def test_export_in_8_bits(folder: Path, run_tool: RunTool, model: Segmentor) -> None:
    images = folder / "scenes" / "images" / "validation"
    run = run_tool(
        "export_onnx.py", "toy.py", "toy.pth", "toy.onnx", "--int8", images, cwd=folder
    ).check()
    assert re.search(r"checked +(100\.0000|99\.99\d\d)% of the labels equal, prob", run.stdout)
    assert re.search(r"mIoU +[\d.]+ in float32, [\d.]+ in 8 bits: [+-][\d.]+", run.stdout)
    small = load_segmentor(folder / "toy.onnx")
    picture = next(images.iterdir())
    assert (small(picture).labels == model(picture).labels).mean() > 0.8
    full, quantised = re.search(r"([\d.]+) MiB became ([\d.]+) MiB", run.stdout).groups()
    assert float(quantised) < float(full)

    for options, code, subject in (
        (["toy.onnx"], "output-exists", "toy.onnx"),
        (["a.pt2", "--int8", "."], "argument", "--int8"),
    ):
        refused = run_tool("export_onnx.py", "toy.py", "toy.pth", *options, cwd=folder)
        found, text = printed_error(refused.error())
        assert found == code and subject in text


def test_publish(folder: Path, run_tool: RunTool, model: Segmentor) -> None:
    rows = [{"name": name, "IoU": 50.0} for name in model.classes]
    results = {"mIoU": 50.0, "pixAcc": 60.0, "classes": rows, "images": 3, "tta": False}
    (folder / "results.json").write_text(json.dumps(results))
    run = run_tool(
        "publish_model.py", "toy.py", "toy.pth", "hub/toy", "--results", "results.json",
        "--license", "cc-by-4.0", cwd=folder,
    ).check()  # fmt: skip
    assert "hub/toy/model.safetensors" in run.stdout
    image = np.random.default_rng(0).integers(0, 256, (96, 80, 3), np.uint8)
    again = load_segmentor(folder / "hub" / "toy", device="cpu")
    np.testing.assert_array_equal(again(image).labels, model(image).labels)
    assert "license: cc-by-4.0" in (folder / "hub" / "toy" / "README.md").read_text()


def test_serve(folder: Path, model: Segmentor, run_tool: RunTool, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", str(ROOT / "tools" / "serve.py"), "toy.py"]
    with subprocess.Popen(
        [*command, "toy.pth", "--port", "0", "--device", "cpu"],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as service:  # fmt: skip
        lines = iter(service.stdout.readline, "")
        try:
            address = next(line.split()[1] for line in lines if line.startswith("address"))
            pixels = np.random.default_rng(0).integers(0, 256, (96, 80, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "a.png")
            body = (tmp_path / "a.png").read_bytes()
            answer = httpx.post(f"{address}/predict", content=body, timeout=60)
            (tmp_path / "labels.png").write_bytes(answer.content)
            with Image.open(tmp_path / "labels.png") as labels:
                np.testing.assert_array_equal(np.asarray(labels), model(pixels).labels)
        finally:
            service.send_signal(signal.SIGINT)
            service.wait(120)
    assert service.returncode == 0
    refused = run_tool("serve.py", "toy.py", cwd=folder)
    assert "CHECKPOINT" in refused.error() and "[argument-missing]" in refused.error()
    (folder / "stranger.pt2").write_bytes(b"PK\x03\x04")
    for tool in ("serve.py", "demo_app.py"):
        refused = run_tool(tool, "stranger.pt2", cwd=folder)
        assert "stranger.pt2" in refused.error()
        assert "--trust" in refused.error()
