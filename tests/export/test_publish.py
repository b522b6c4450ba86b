# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A published folder has the weights and records that it lists, and loads back."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from advice import advises
from export_models import head_config
from mmcv.transforms import BaseTransform
from mmengine.config import Config
from mmseg.models.backbones import ResNetV1c
from mmseg.models.decode_heads import FCNHead
from safetensors import safe_open
from small_models import balanced, blobs
from user_errors import raises_user_error

from mmseg_resnest import UserError, load_segmentor
from mmseg_resnest.engine.saving import write_checkpoint
from mmseg_resnest.export import export_model
from mmseg_resnest.export.publish import check_loads_back, publish, read_results
from mmseg_resnest.inference import Segmentor
from mmseg_resnest.registry import MODELS, TRANSFORMS

RESULTS = {
    "mIoU": 45.29,
    "pixAcc": 78.75,
    "images": 101,
    "tta": False,
    "classes": [{"name": f"c{i}", "IoU": iou} for i, iou in enumerate([92.04, None, 0.1, 50.0])],
}


@pytest.fixture(scope="module")
def model() -> Segmentor:
    cfg = head_config("psp")
    resize = dict(type="Resize", scale=(90, 90), keep_ratio=True, backend="pillow")
    cfg.test_dataloader.dataset.pipeline.insert(1, resize)
    cfg.model.auxiliary_head = dict(
        type="FCNHead", in_channels=16, channels=8, num_convs=1, num_classes=4, in_index=2,
        norm_cfg=dict(type="BN"), align_corners=False,
    )  # fmt: skip
    return balanced(load_segmentor(cfg, None, "cpu"))


@pytest.fixture
def folder(model: Segmentor, tmp_path: Path) -> Path:
    (tmp_path / "results.json").write_text(json.dumps(RESULTS))
    results = read_results(tmp_path / "results.json")
    done = publish(model, tmp_path / "my-model", licence="apache-2.0", results=results)
    assert done["files"].keys() == {
        "README.md", "SHA256SUMS", "config.json", "model.safetensors", "training_config.py"
    }  # fmt: skip
    return tmp_path / "my-model"


def test_it_loads_back(model: Segmentor, folder: Path) -> None:
    again = load_segmentor(folder, device="cpu")
    assert (again.classes, again.palette) == (model.classes, model.palette)
    image = blobs(97, 133, 3)
    np.testing.assert_array_equal(again(image).labels, model(image).labels)
    np.testing.assert_array_equal(again(image).scores(), model(image).scores())
    check_loads_back(model, folder)


def test_weights_for_inference_are_hashed(model: Segmentor, folder: Path) -> None:
    record = json.loads((folder / "config.json").read_text())
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert record["sha256"] == digest
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, check=True)
    with safe_open(folder / "model.safetensors", "np") as file:
        names = set(file.keys())
    own = set(model.model.state_dict())
    assert names == {n for n in own if not n.startswith("auxiliary_head.")} < own
    assert "auxiliary_head" not in record["model"]
    assert not [k for k in record["model"]["decode_head"] if k.startswith("loss_")]


def test_the_card_is_what_hubs_read(folder: Path) -> None:
    text = (folder / "README.md").read_text()
    _, front, page = text.split("---\n", 2)
    meta = yaml.safe_load(front)
    assert meta["license"] == "apache-2.0"
    assert meta["pipeline_tag"] == "image-segmentation"
    metrics = meta["model-index"][0]["results"][0]["metrics"]
    assert {m["name"]: m["value"] for m in metrics} == {"mIoU": 45.29, "pixAcc": 78.75}
    assert "| 0 | c0 | `#" in page
    assert "| 92.04 |" in page
    assert hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() in page


@MODELS.register_module(force=True)
class OwnHead(FCNHead):
    """A head of a user's package."""


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (dict(decode_head=dict(type="OwnHead")), "model.decode_head.type"),
        (dict(decode_head=dict(type=OwnHead)), "model.decode_head.type"),
        (dict(decode_head=dict(act_cfg=dict(type="PReLU"))), "model.decode_head.act_cfg.type"),
        (dict(backbone=dict(stage_with_dcn=(False,) * 4)), "model.backbone.stage_with_dcn"),
    ],
)
def test_parts_of_other_packages_are_refused(
    change: dict[str, Any], key: str, tmp_path: Path
) -> None:
    cfg = head_config("fcn")
    cfg.model.decode_head.type = "FCNHead"
    for part, options in change.items():
        cfg.model[part].update(options)
    with raises_user_error("export", f"config key {key}"):
        publish(load_segmentor(cfg, None, "cpu"), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


@TRANSFORMS.register_module(force=True)
class OwnStep(BaseTransform):
    """A step of a user's package."""

    def transform(self, results: dict) -> dict:
        return results


def test_steps_of_other_packages_are_refused(tmp_path: Path) -> None:
    cfg = head_config("fcn")
    cfg.test_dataloader.dataset.pipeline.insert(1, dict(type="OwnStep"))
    model = load_segmentor(cfg, None, "cpu")
    with raises_user_error("export", "config key test_dataloader.dataset.pipeline"):
        publish(model, tmp_path / "model")
    with raises_user_error("export", "config key test_dataloader.dataset.pipeline"):
        export_model(model, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_classes_and_scoped_names_are_written_as_plain_names(tmp_path: Path) -> None:
    cfg = head_config("fcn")
    cfg.default_scope = "mmseg"
    cfg.model.type = "mmseg.EncoderDecoder"
    cfg.model.backbone.type = ResNetV1c
    cfg.model.decode_head = dict(cfg.model.decode_head, type="mmseg_resnest.PublishedFCNHead")
    cfg.model.decode_head["_scope_"] = "mmseg_resnest"
    model = balanced(load_segmentor(cfg, None, "cpu"))
    publish(model, tmp_path / "model")
    record = json.loads((tmp_path / "model" / "config.json").read_text())["model"]
    names = [record["type"], record["backbone"]["type"], record["decode_head"]["type"]]
    assert names == ["EncoderDecoder", "ResNetV1c", "PublishedFCNHead"]
    assert "_scope_" not in record["decode_head"]
    check_loads_back(model, tmp_path / "model")


def test_a_loaded_model_is_published_again(folder: Path, tmp_path: Path) -> None:
    again = load_segmentor(folder, device="cpu")
    publish(again, tmp_path / "again")
    check_loads_back(again, tmp_path / "again")
    first, second = (
        json.loads((path / "config.json").read_text()) for path in (folder, tmp_path / "again")
    )
    for key in ("model", "pipeline", "classes", "palette", "sha256"):
        assert first[key] == second[key]


def test_broken_folders_are_told(model: Segmentor, folder: Path, tmp_path: Path) -> None:
    with raises_user_error("output-exists", folder):
        publish(model, folder)
    publish(model, folder, force=True)
    (folder / ".git").mkdir()  # of a repository that was cloned
    with advises("export/publish.py:publish", "holds", "move it, or give another name"):
        publish(model, folder, force=True)
    (folder / ".git").rename(folder.parent / ".git")
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    for break_it in (weights.unlink, (folder / "config.json").unlink):
        with pytest.raises(UserError):
            load_segmentor(folder)
        break_it()
    (folder / "config.json").write_text("{}")
    with pytest.raises(UserError) as caught:
        load_segmentor(folder)
    assert "config.json" in caught.value.subject
    (tmp_path / "other").mkdir()
    with raises_user_error("output-exists", tmp_path / "other"):
        publish(model, tmp_path / "other", force=True)
    with raises_user_error("run", folder / "config.json"):
        read_results(folder / "config.json")


@pytest.mark.parametrize(
    ("run", "iteration", "fits"), [("a", 4, True), ("a", 5, False), ("b", 4, False)]
)
def test_scores_of_other_weights_are_refused(
    tmp_path: Path, run: str, iteration: int, fits: bool
) -> None:
    checkpoint = tmp_path / "iter_4.pth"
    meta = {"run_id": "a" * 32, "start": 1, "iter": 4}
    write_checkpoint({"meta": meta, "state_dict": {}}, checkpoint)
    file = tmp_path / "results.json"
    file.write_text(json.dumps({**RESULTS, "run_id": run * 32, "iteration": iteration}))
    with contextlib.nullcontext() if fits else raises_user_error("config-conflict", "--results"):
        assert read_results(file, checkpoint)["mIoU"] == RESULTS["mIoU"]
    file.write_text(json.dumps(RESULTS))  # says of no run
    read_results(file, checkpoint)


def test_names_stay_texts_in_the_card(model: Segmentor, tmp_path: Path) -> None:
    names = ["a | b", "`c`", "<img src=x>\n# d", "[e](http://f)\x1b[2J"]
    names = names[: len(model.classes)] + list(model.classes[len(names) :])
    before = model.classes
    model.classes = tuple(names)
    try:
        title = "x\n---\n<script> | [y](z)"
        publish(model, tmp_path / "hub", name=title, licence="other\n---\n# z")
    finally:
        model.classes = before
    card = (tmp_path / "hub" / "README.md").read_text()
    lines = card.splitlines()
    assert lines.count("---") == 2 and not {"# d", "# z", "---<script>"} & set(lines)
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["license"].startswith("other")
    rows = [line for line in lines if line.startswith(("| 0 |", "| 1 |", "| 2 |", "| 3 |"))]
    assert len(rows) == min(4, len(names))
    for row in rows:
        assert len(re.findall(r"(?<!\\)\|", row)) == 5, "cells of a table"
    page = card.partition("# ")[2]
    assert not re.search(r"(?<!\\)[<\[]", page.partition("## Classes")[2].partition("## Limits")[0])
    assert "\x1b" not in card


def test_the_training_config_reads_back_with_braces(model: Segmentor, tmp_path: Path) -> None:
    before = model.cfg
    model.cfg = Config({**before.to_dict(), "note": "{{$HOME:x}} {{ fileDirname }}"})
    try:
        publish(model, tmp_path / "hub")
    finally:
        model.cfg = before
    again = Config.fromfile(tmp_path / "hub" / "training_config.py")
    assert again.note == "{{$HOME:x}} {{ fileDirname }}"
