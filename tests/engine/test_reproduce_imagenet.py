# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""tools/reproduce.py on a made-up ImageNet: seeded weights, labels from a second implementation."""

from __future__ import annotations

import errno
import hashlib
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from advice import advises
from PIL import Image
from user_errors import raises_user_error

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))

from published_reference import Backbone, draw

from mmseg_resnest.datasets.imagenet import centre_crop, imagenet_samples, normalised, read_rgb
from mmseg_resnest.engine import imagenet
from mmseg_resnest.engine.imagenet import evaluate_classifier
from mmseg_resnest.inference import ImageNetClassifier
from mmseg_resnest.models import ARCHITECTURES
from mmseg_resnest.weights import find
from mmseg_resnest_cli import reproduce
from mmseg_resnest_cli.main import parser_of

SIZE = 64  # the stand-in's published crop
SHAPES = ((90, 120), (130, 80), (100, 100), (97, 131), (75, 240), (88, 91), (120, 90))


class Reference(Backbone):
    """ResNeSt-14 for ImageNet in float64, in plain torch."""

    STAGES = ((1, 1, 1), (2, 1, 1), (2, 1, 1), (2, 1, 1))

    def __init__(self) -> None:
        super().__init__(ARCHITECTURES["resnest14"])
        self.fc = torch.nn.Linear(2048, 1000)

    def logits(self, image: torch.Tensor) -> torch.Tensor:
        return self.fc(self(image.double()[None])[-1].mean((2, 3)))[0]


def published_crop(image: Image.Image) -> Image.Image:
    """``scripts/torch/verify.py`` of the authors, in whole pixels."""
    edge = SIZE / (SIZE + 32) * min(image.size)
    left, top = (round((length - edge) / 2) for length in image.size)
    box = (left, top, round(left + edge), round(top + edge))
    return image.crop(box).resize((SIZE, SIZE), Image.Resampling.BICUBIC)


class StandIn:
    """A data root with ``imagenet/val``, a catalogue, and what must be measured."""

    def __init__(self, root: Path) -> None:
        self.root, self.cache = root / "data", root / "cache"
        self.val = self.root / "imagenet" / "val"
        self.cache.mkdir()
        for number in range(1000):
            (self.val / f"n{number:08d}").mkdir(parents=True)
        model = Reference().double().eval()
        for name, tensor in model.state_dict().items():
            draw(name, tensor)
        rng = np.random.default_rng(0)
        self.logits: dict[str, torch.Tensor] = {}
        hits = np.zeros(2)
        for index, shape in enumerate(SHAPES):
            pixels = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
            image = Image.fromarray(pixels).resize(shape, Image.Resampling.BICUBIC)
            image.save(root / "image.png")
            with torch.no_grad():
                self.logits[f"{index}.png"] = model.logits(normalised(published_crop(image)))
            order = self.logits[f"{index}.png"].argsort(descending=True).tolist()
            label = order[(0, 0, 3, 0, 700, 4, 5)[index]]
            hits += label == order[0], label in order[:5]
            (root / "image.png").rename(self.val / f"n{label:08d}" / f"{index}.png")
        self.expected = dict(zip(("top1", "top5"), 100 * hits / len(SHAPES), strict=True))
        torch.save(model.float().state_dict(), root / "weights.pth")
        digest = hashlib.sha256((root / "weights.pth").read_bytes()).hexdigest()
        (root / "weights.pth").rename(self.cache / f"resnest14-{digest[:8]}.pth")
        entry = {
            "task": "classification", "layout": "published", "arch": "resnest14", "config": None,
            "file": f"resnest14-{digest[:8]}.pth", "algorithm": "sha256", "digest": digest,
            "urls": ["http://127.0.0.1:9/nobody-listens.pth"], "dataset": "ImageNet",
            "metrics": {"single crop": {"top1": 40.5, "crop": SIZE}},
            "source": "https://example.org/standin", "licence": None,
        }  # fmt: skip
        entries = {"standin": entry, "unmeasured": {**entry, "metrics": {}}}
        entries["missing"] = {**entry, "file": "elsewhere-00000000.pth", "digest": "00000000"}
        self.catalogue = root / "catalogue.json"
        self.catalogue.write_text(json.dumps(entries))


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> StandIn:
    return StandIn(tmp_path_factory.mktemp("imagenet"))


@pytest.fixture
def run(
    stand_in: StandIn,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> Iterator[Callable[..., str]]:
    data = importlib.import_module("mmseg_resnest.weights.catalogue")
    monkeypatch.setattr(data, "_DATA", stand_in.catalogue)
    data._entries.cache_clear()
    monkeypatch.setenv("MMSEG_RESNEST_CACHE", str(stand_in.cache))
    monkeypatch.chdir(tmp_path)

    def run_it(*words: str, name: str = "standin", root: Path = stand_in.root) -> str:
        args = parser_of("reproduce").parse_args([name, "--data-root", str(root), *words])
        assert reproduce.run(args) == 0
        return capsys.readouterr().out

    yield run_it
    data._entries.cache_clear()


def measured() -> dict[str, float]:
    report = json.loads(Path("work_dirs/reproduce/standin/reproduction.json").read_text())
    return report["protocols"]["single crop"]["measured"]


def test_end_to_end(run, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """The accuracy beside the published one; stopped in between, it continues."""
    assert 0 < stand_in.expected["top1"] < stand_in.expected["top5"] < 100
    seen: list[str] = []
    read = imagenet.read_rgb

    def stops(path: Path) -> Image.Image:
        if len(seen) == 5:
            raise KeyboardInterrupt
        seen.append(path.name)
        return read(path)

    monkeypatch.setattr(imagenet, "BATCH", 2)
    monkeypatch.setattr(imagenet, "_EVERY", 2)
    monkeypatch.setattr(imagenet.os, "cpu_count", lambda: 1)
    monkeypatch.setattr(imagenet, "read_rgb", stops)
    with pytest.raises(KeyboardInterrupt):
        run("--any-images")
    part = Path("work_dirs/reproduce/standin/single_crop.part.json")
    done = json.loads(part.read_text())["images"]
    assert done in (2, 4)

    again: list[str] = []
    monkeypatch.setattr(imagenet, "read_rgb", lambda path: (again.append(path.name), read(path))[1])
    out = run("--any-images")
    assert len(again) == len(SHAPES) - done and not part.exists()
    assert measured() == pytest.approx({"top1": stand_in.expected["top1"]})
    row = [cell.strip() for line in out.splitlines() if "top1" in line for cell in line.split("|")]
    found = stand_in.expected["top1"]
    assert row[1:-1] == ["single crop", "top1", "40.50", f"{found:.2f}", f"{found - 40.5:+.2f}"]
    assert "7 images instead of 50,000" in out
    assert "measured before" in run("--any-images") and len(again) == len(SHAPES) - done
    run("--any-images", "--again", root=stand_in.root / "imagenet")
    assert len(again) == 2 * len(SHAPES) - done


def test_logits_of_one_image(run, stand_in: StandIn) -> None:
    model = ImageNetClassifier("standin", "cpu")
    for path in stand_in.val.glob("*/*.png"):
        logits = stand_in.logits[path.name]
        found = model(path)
        assert float((found - logits).abs().max() / logits.abs().max()) < 1e-5
        classes = [label for label, _ in model.top(str(path))]
        assert classes == logits.argsort(descending=True)[:5].tolist()


def test_mistakes_are_reported_before_anything_is_written(run, tmp_path: Path) -> None:
    with raises_user_error("dataset", "val") as caught:
        run()
    assert "--any-images" in caught.value.message
    with advises("datasets/imagenet.py:imagenet_samples", "--data-root") as told:
        run(root=tmp_path / "nowhere")
    assert told.value.code == "not-found" and "nowhere/imagenet/val" in told.value.subject
    with raises_user_error("argument", "unmeasured"):
        run(name="unmeasured")
    for option, value in (("--cfg-options", "model.a=1"), ("--launcher", "pytorch")):
        with advises("engine/reproduce.py:reproduce", "leave", "out") as told:
            run(option, value)
        assert (told.value.code, told.value.subject) == ("argument", option)
    with raises_user_error("download", "checkpoint missing"):
        run("--any-images", name="missing")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_broken_image_is_copied_again(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    Image.new("L", (5, 4)).save(file)
    whole = file.read_bytes()
    file.write_bytes(whole[:40])
    with advises("datasets/imagenet.py:read_rgb", "copy it again") as told:
        read_rgb(file)
    assert told.value.code == "image"
    file.write_bytes(whole)
    assert read_rgb(file).size == (5, 4)


def test_a_flat_folder_with_a_list(tmp_path: Path) -> None:
    val = tmp_path / "val"
    val.mkdir()
    with raises_user_error("empty", "val"):
        imagenet_samples(tmp_path)
    for name in ("b.JPEG", "a.JPEG"):
        (val / name).write_bytes(b"not read")
    with raises_user_error("not-found", "val.txt"):
        imagenet_samples(tmp_path)
    labels = tmp_path / "val.txt"
    labels.write_text("b.JPEG 999\nval/a.JPEG 0\n\n")
    assert imagenet_samples(tmp_path) == (val, [(val / "b.JPEG", 999), (val / "a.JPEG", 0)])
    for text, said in (
        ("b.JPEG 1\n", "none for a.JPEG"),
        ("b.JPEG 1\na.JPEG n01440764\n", "line 2"),
        ("b.JPEG 1\nc.JPEG 2\n", "line 2"),
        ("b.JPEG 1\na.JPEG 2\nb.JPEG 3\n", "3 lines for 2 images"),
    ):
        labels.write_text(text)
        with raises_user_error("dataset", "val.txt") as caught:
            imagenet_samples(tmp_path)
        assert said in caught.value.message
    (val / "n00000000").mkdir()
    with raises_user_error("dataset", "val"):
        imagenet_samples(tmp_path)


@pytest.mark.parametrize("what", ["os.scandir", "os.listdir", "pathlib.Path.read_text"])
def test_what_cannot_be_read_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    val = tmp_path / "val"
    if what == "os.listdir":
        for number in range(1000):
            (val / f"n{number:08d}").mkdir(parents=True)
        (val / "n00000007" / "a.JPEG").touch()
    else:
        val.mkdir()
        (val / "a.JPEG").touch()
        (tmp_path / "val.txt").write_text("a.JPEG 7\n")

    def refuse(path=val, *_):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(what, refuse)
        with advises("datasets/imagenet.py:_reading", "change its permissions") as told:
            imagenet_samples(tmp_path)
    assert told.value.code == "unreadable" and str(tmp_path) in str(told.value.subject)
    ((_, label),) = imagenet_samples(tmp_path)[1]
    assert label == 7


def test_the_folder_is_checked_before_weights_are_fetched(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    entry = find("resnest50")
    with raises_user_error("not-writable", "the folder of the results"):
        evaluate_classifier(entry, [], torch.device("cpu"), tmp_path / "file" / "a.json", "")


@pytest.mark.parametrize(
    ("layout", "size", "first", "step"),
    [
        # Of 240x160 pixels: where column and row 0 of the crop begin, and the size of its pixels.
        ("published", 224, (50, 10), (140 / 224, 140 / 224)),
        ("published", 416, (46, 6), (149 / 416, 149 / 416)),
        ("gluoncv", 224, (80 * 0.625, 16 * 0.625), (0.625, 0.625)),
        ("gluoncv", 256, (91 * 240 / 439, 18 * 160 / 293), (240 / 439, 160 / 293)),
        ("gluoncv", 416, (46, 6), (149 / 416, 149 / 416)),
        ("timm", 224, (80 * 0.625, 16 * 0.625), (0.625, 0.625)),
        ("timm", 256, (91 * 240 / 438, 18 * 160 / 292), (240 / 438, 160 / 292)),
        ("timm", 320, (104 * 240 / 528, 16 * 160 / 352), (240 / 528, 160 / 352)),
    ],
)
@pytest.mark.parametrize("bicubic", [False, True])
def test_crops(layout: str, size: int, first: tuple, step: tuple, bicubic: bool) -> None:
    """On an image whose red is its column and whose green is its row."""
    rows, columns = np.mgrid[:160, :240]
    image = Image.fromarray(np.stack([columns, rows, 0 * rows], 2).astype(np.uint8))
    for turned in (False, True):
        source = image.transpose(Image.Transpose.TRANSPOSE) if turned else image
        crop = np.asarray(centre_crop(source, size, layout, bicubic)).astype(float)
        crop = crop.transpose(1, 0, 2) if turned else crop
        assert crop.shape == (size, size, 3)
        middle = np.arange(8, size - 8)
        for channel, line in ((0, crop[size // 2, 8:-8, 0]), (1, crop[8:-8, size // 2, 1])):
            expected = first[channel] + (middle + 0.5) * step[channel] - 0.5
            assert np.abs(line - expected).max() <= 1
