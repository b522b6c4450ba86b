# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""tools/reproduce.py end to end, on a stand-in for ADE20K with seeded weights.

The weights are those of the independent implementation in ``tests/models``, in the published
layout, in the cache; what the tool measures is compared with that implementation under the plain
text of the protocol.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import sys
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer
from PIL import Image
from user_errors import raises_user_error

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))

from published_reference import PublishedModel
from test_multi_scale import reference_scores

from mmseg_resnest.engine import reproduce as module
from mmseg_resnest.errors import UserError
from mmseg_resnest.models import ARCHITECTURES
from mmseg_resnest_cli import reproduce
from mmseg_resnest_cli.main import parser_of

NAME = "standin/fcn_ade"
PUBLISHED = {
    "single scale": {"pixAcc": 70.0, "mIoU": 30.5},
    "multi-scale + flip": {"pixAcc": 75.25, "mIoU": 31.0},
}
SHAPES = ((60, 80), (75, 50))
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)  # of the config: the test does not set them
BASE, CROP = 40, 36
OPTIONS = [
    "model.backbone.arch=resnest14",
    "test_dataloader.num_workers=0",
    "test_dataloader.persistent_workers=False",
    f"test_dataloader.dataset.pipeline.1.scale=({BASE},{BASE})",
    f"tta_model.base_size={BASE}",
    f"tta_model.crop_size={CROP}",
]


@dataclass
class StandIn:
    """A data set, a catalogue with one model of it, and what must be measured."""

    data_root: Path
    catalogue: Path
    cache: Path
    expected: dict[str, dict[str, float]]


def predictions(reference: torch.nn.Module, image: np.ndarray) -> dict[str, np.ndarray]:
    """Labels (H, W) of an RGB image by each protocol, computed in float64."""
    mean, std = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
    tensor = torch.from_numpy((image.astype(np.float64) - mean) / std).permute(2, 0, 1)[None]
    height, width = image.shape[:2]
    size = [int(edge * BASE / max(height, width) + 0.5) for edge in (width, height)]
    small = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    small = torch.from_numpy((small.astype(np.float64) - mean) / std).permute(2, 0, 1)[None]
    with torch.no_grad():
        whole = F.interpolate(
            reference(small)[0], (height, width), mode="bilinear", align_corners=True
        )
        multi = reference_scores(lambda x: reference(x)[0], tensor, SCALES, True, BASE, CROP)
    return {
        "single scale": whole[0].argmax(0).numpy(),
        "multi-scale + flip": multi[0].argmax(0).numpy(),
    }


def scores(pairs: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """pixAcc and mIoU in percent of (prediction, label map with 0 = unlabelled, 1..150)."""
    truth = np.concatenate([label.ravel() for _, label in pairs]).astype(int) - 1
    found = np.concatenate([p.ravel() for p, _ in pairs])[truth >= 0]
    truth = truth[truth >= 0]
    ious = []
    for c in range(150):
        union = ((truth == c) | (found == c)).sum()
        if union:
            ious.append(((truth == c) & (found == c)).sum() / union)
    return {"pixAcc": 100 * float((truth == found).mean()), "mIoU": 100 * float(np.mean(ious))}


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("reproduce")
    reference = PublishedModel("fcn", ARCHITECTURES["resnest14"], 150).eval()

    ade = root / "data" / "ade20k" / "ADEChallengeData2016"
    pairs: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {name: [] for name in PUBLISHED}
    rng = np.random.default_rng(0)
    for index, (height, width) in enumerate(SHAPES):
        files = [
            ade / folder / "validation" / f"ADE_val_{index:08d}.{suffix}"
            for folder, suffix in (("images", "jpg"), ("annotations", "png"))
        ]
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        cv2.imwrite(
            str(files[0]), cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        )
        found = predictions(reference, cv2.imread(str(files[0]))[:, :, ::-1].copy())
        # Labels that the model has mostly right, some wrong, some unlabelled.
        label = (found["multi-scale + flip"] + 1).astype(np.uint8)
        label[::4] = rng.integers(1, 151, label[::4].shape)
        label[:, ::7] = 0
        Image.fromarray(label).save(files[1])
        for protocol, prediction in found.items():
            pairs[protocol].append((prediction, label))

    torch.save(reference.float().state_dict(), root / "weights.pth")
    digest = hashlib.sha1((root / "weights.pth").read_bytes()).hexdigest()
    name = f"fcn_standin_ade-{digest[:8]}"
    (root / "cache").mkdir()
    (root / "weights.pth").rename(root / "cache" / f"{name}.pth")
    entry = {
        "task": "segmentation", "layout": "published", "file": f"{name}.pth", "arch": "resnest14",
        "urls": ["http://127.0.0.1:9/nobody-listens.zip"], "algorithm": "sha1", "digest": digest,
        "config": "configs/fcn_resnest50_ade20k.py", "dataset": "ADE20K", "metrics": PUBLISHED,
        "source": "https://example.org/standin", "licence": None,
    }  # fmt: skip
    backbone = {**entry, "task": "classification", "config": None}
    (root / "catalogue.json").write_text(json.dumps({NAME: entry, "standin/backbone": backbone}))
    expected = {protocol: scores(p) for protocol, p in pairs.items()}
    yield StandIn(root / "data", root / "catalogue.json", root / "cache", expected)
    torch.set_num_threads(threads)


@pytest.fixture
def run(stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    """Runs the tool in this process and an empty folder: its standard output."""
    data = importlib.import_module("mmseg_resnest.weights.catalogue")
    monkeypatch.setattr(data, "_DATA", stand_in.catalogue)
    data._entries.cache_clear()
    monkeypatch.setenv("MMSEG_RESNEST_CACHE", str(stand_in.cache))
    for manager in (MMLogger, MessageHub, Visualizer, DefaultScope):
        monkeypatch.setattr(manager, "_instance_dict", OrderedDict())
    # MMEngine formats the whole config twice for its log: most of the time of so short a run.
    monkeypatch.setattr("yapf.yapflib.yapf_api.FormatCode", lambda text, **_: (text, True))
    monkeypatch.chdir(tmp_path)

    def run_it(*words: str) -> str:
        args = parser_of("reproduce").parse_args(
            [NAME, "--data-root", str(stand_in.data_root), *words]
        )
        assert reproduce.run(args) == 0
        return capsys.readouterr().out

    yield run_it
    data._entries.cache_clear()


def test_end_to_end(run, stand_in: StandIn, tmp_path: Path, monkeypatch) -> None:
    """Evaluated by both protocols and compared; a second run keeps what is there."""
    out = run("--any-images", "--cfg-options", *OPTIONS)
    file = tmp_path / "work_dirs" / "reproduce" / "standin" / "fcn_ade" / "reproduction.json"
    report = json.loads(file.read_text())
    assert report["images"] == len(SHAPES) and report["as_published"] is False
    assert report["cfg_options"] == OPTIONS
    assert set(report["protocols"]) == set(PUBLISHED)
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines()]
    for protocol, row in report["protocols"].items():
        assert row["published"] == PUBLISHED[protocol]
        for metric, value in row["published"].items():
            measured = row["measured"][metric]
            # the tool computes in float32: a pixel between two labels may go to the other
            assert measured == pytest.approx(stand_in.expected[protocol][metric], abs=0.3)
            assert row["difference"][metric] == pytest.approx(measured - value)
            cells = [f"{number:.2f}" for number in (value, measured)]
            assert [protocol, metric, *cells, f"{measured - value:+.2f}"] in lines
    assert stand_in.expected["multi-scale + flip"]["pixAcc"] > 60
    assert "2 images instead of 2,000" in out and "not the published evaluation" in out

    # What is measured is kept; another set of options is another evaluation.
    def no_evaluation(*args: Any, **kwargs: Any) -> dict:
        raise AssertionError("evaluated again")

    monkeypatch.setattr(module, "evaluate", no_evaluation)
    again = run("--any-images", "--cfg-options", *OPTIONS)
    assert "measured before" in again and json.loads(file.read_text()) == report
    for args in (["--again"], ["--cfg-options", *OPTIONS[:-1]]):
        with pytest.raises(AssertionError, match="evaluated again"):
            run("--any-images", *args)

    place = stand_in.data_root / "ade20k" / "ADEChallengeData2016" / "annotations" / "validation"
    label = sorted(place.iterdir())[0]
    before = label.stat()
    os.utime(label, ns=(1, 1))  # another label map
    with pytest.raises(AssertionError, match="evaluated again"):
        run("--any-images", "--cfg-options", *OPTIONS)
    os.utime(label, ns=(before.st_atime_ns, before.st_mtime_ns))

    # After an interruption only the missing protocol is evaluated.
    del report["protocols"]["multi-scale + flip"]
    file.write_text(json.dumps(report))
    evaluated = []

    def other_numbers(cfg, checkpoint, work_dir, tta, launcher) -> dict:
        evaluated.append((tta, cfg.tta_model.crop_size, Path(checkpoint).name, Path(work_dir).name))
        return {"pixAcc": 1.0, "mIoU": 2.0, "seconds": 3.0}

    monkeypatch.setattr(module, "evaluate", other_numbers)
    run("--any-images", "--cfg-options", *OPTIONS, "--json", str(file))
    assert evaluated == [(True, CROP, report["checkpoint"], "multi-scale_flip")]
    row = json.loads(file.read_text())["protocols"]["multi-scale + flip"]
    assert row["difference"] == {"pixAcc": -74.25, "mIoU": -29.0}


def test_without_options_the_configs_protocol_is_used(run, monkeypatch, tmp_path) -> None:
    """As published: what the config says, and as many images as published."""
    monkeypatch.setitem(module.PUBLISHED_IMAGES, "ADE20K", len(SHAPES))
    seen = []

    def evaluate(cfg, checkpoint, work_dir, tta, launcher) -> dict:
        settings = cfg.tta_model
        seen.append((tta, tuple(settings.scales), settings.flip, settings.base_size))
        assert settings.crop_size == 480 and cfg.model.backbone.arch == "resnest50"
        return {"pixAcc": 1.0, "mIoU": 2.0, "seconds": 3.0}

    monkeypatch.setattr(module, "evaluate", evaluate)
    out = run("--work-dir", "w", "--json", "report.json")
    assert seen == [(False, SCALES, True, 520), (True, SCALES, True, 520)]
    assert "not the published" not in out
    assert json.loads(Path("report.json").read_text())["as_published"] is True


def test_mistakes_are_reported_before_anything_is_written(
    run, stand_in: StandIn, tmp_path: Path, monkeypatch
) -> None:
    with raises_user_error("dataset", "ADEChallengeData2016"):
        run()
    monkeypatch.setattr(sys.modules[__name__], "NAME", "standin/fcn_adee")
    with pytest.raises(UserError) as failure:
        run()
    assert "did you mean 'standin/fcn_ade'" in str(failure.value)
    monkeypatch.setattr(sys.modules[__name__], "NAME", "standin/backbone")
    with raises_user_error("argument", "standin/backbone"):
        run()
    monkeypatch.undo()
    assert not list(tmp_path.iterdir())


def test_a_missing_label_map_is_named(run, stand_in: StandIn, tmp_path: Path) -> None:
    folder = stand_in.data_root / "ade20k" / "ADEChallengeData2016" / "annotations" / "validation"
    label = sorted(folder.iterdir())[0]
    label.rename(tmp_path / "away.png")
    try:
        with raises_user_error("not-found", label.name):
            run("--any-images")
    finally:
        (tmp_path / "away.png").rename(label)


def test_a_file_of_another_kind_is_not_overwritten(run, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    for text in ("{}", "no json", "[1]"):
        other.write_text(text)
        with raises_user_error("output-exists", "other.json"):
            run("--any-images", "--json", str(other))
        assert other.read_text() == text
