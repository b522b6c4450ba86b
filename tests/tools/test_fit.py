# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""From a folder of labels to a published model, with a tiny network."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from advice import advises, refused
from in_process import catch_services, run
from mmengine.model import BaseModel
from PIL import Image
from tool_runs import RunTool
from user_errors import printed_error, raises_user_error

import mmseg_resnest_cli.fit as fit_command
from mmseg_resnest.datasets.prepare import CustomOptions
from mmseg_resnest.engine.config import load_config
from mmseg_resnest.engine.fit import Budget, Measured, Step, measure, prepare_labels
from mmseg_resnest.inference import load_segmentor

MEASURED = Measured((Step(2, 1 << 29, 30.0), Step(8, 1 << 30, 60.0)), 0.01, 0.1)
BASE = """
_base_ = {parent!r}
model = dict(backbone=dict(arch=dict(
    _delete_=True, blocks=(1, 1, 1, 1), radix=2, groups=1, base_width=4, stem_width=4,
    avd_first=False,
)))
"""


def write_photos(folder: Path, count: int = 20, classes: int = 3) -> Path:
    """Images of 64x48 with index masks beside them; names without numbers."""
    random = np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        labels = np.zeros((48, 64), np.uint8)
        x, y = random.integers(4, 40), random.integers(10, 30)
        labels[y : y + 14, x : x + 20] = 1
        labels[:6] = 2
        labels = np.minimum(labels, classes - 1)
        colours = np.array([[40, 60, 80], [200, 80, 60], [90, 200, 90]], np.uint8)[labels]
        noise = random.integers(0, 30, colours.shape).astype(np.uint8)
        name = f"{chr(97 + number)}_photo.png"
        Image.fromarray(colours + noise).save(folder / "images" / name)
        Image.fromarray(labels).save(folder / "masks" / name)
    (folder / "classes.txt").write_text("\n".join(["ground", "box", "sky"][:classes]) + "\n")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with photos and a tiny model's config; measurements are made up."""
    folder = tmp_path_factory.mktemp("fit")
    write_photos(folder / "photos")
    parent = Path(__file__).parents[2] / "configs" / "fcn_resnest14_camvid.py"
    (folder / "tiny.py").write_text(BASE.format(parent=str(parent)))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MMSEG_RESNEST_DATA", raising=False)
        patch.chdir(folder)
        patch.setattr(fit_command, "measure_in_child", lambda *given: MEASURED)
        yield folder


def words_of(out: str, data: str = "photos") -> list[str]:
    words = ["--budget", "6it", "--from", "none", "--base", "tiny.py", "--jobs", "1"]
    return [data, "--out", out, *words]


def fit(out: str = "done", *more: object, data: str = "photos", **how: Any) -> str:
    return run("fit", *words_of(out, data), *more, **how)


@pytest.fixture(scope="module")
def said(place: Path) -> str:
    """What a whole fit printed."""
    return fit()


def listing(folder: Path) -> dict[str, int]:
    return {str(p): p.lstat().st_mtime_ns for p in folder.rglob("*") if not p.is_dir()}


def weights(out: Path) -> dict[str, torch.Tensor]:
    return torch.load(out / "run" / "iter_6.pth", weights_only=True)["state_dict"]


def test_decisions_are_printed_and_stand_in_the_config(place: Path, said: str) -> None:
    assert "labels: masks of label numbers (20)" in said
    assert "16 images to train, 4 to validate on" in said
    cfg = load_config(place / "done" / "config.py")
    text = (place / "done" / "config.py").read_text()
    lines = dict(re.findall(r"^([a-z ]+): (.*)$", said, re.M))
    for name in ("batch_size", "crop_size", "lr", "max_iters", "class_weights", "save_interval"):
        value, reason = lines[name.replace("_", " ")].split(" (", 1)
        assert f"# {reason[:-1]}\n{name} = " in text
        assert value.split(",")[0].strip("[(") in str(cfg[name])
    assert cfg.train_dataloader.batch_size == cfg.batch_size == 8
    assert cfg.model.decode_head.loss_decode.class_weight == cfg.class_weights
    assert cfg.model.decode_head.num_classes == 3
    assert "_base_" not in text


def test_the_commands_that_it_names_work(
    place: Path, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = [shlex.split(line) for line in said.split("\nnext\n")[1].splitlines()]
    assert [words[1] for words in commands] == ["predict", "test", "serve"]
    served = catch_services(monkeypatch)
    for words in commands:
        named = {"IMAGE_OR_FOLDER": "photos/images/a_photo.png"}
        run(*(named.get(word, word) for word in words[1:]))
    assert (place / "done" / "predictions" / "a_photo.png").is_file()
    assert list((place / "done" / "pictures").iterdir())
    assert list(served[0].classes) == ["ground", "box", "sky"]
    assert (place / "done" / "report.html").stat().st_size > 10_000


def test_again_it_has_nothing_to_do(place: Path, said: str) -> None:
    before = listing(place / "done")
    again = fit()
    assert again.split("\nnext\n")[1] == said.split("\nnext\n")[1]
    after = listing(place / "done")
    changed = {Path(name).name for name in after if after[name] != before.get(name)}
    assert changed <= {"record.json", ".lock"} | {n for n in changed if n.startswith(".")}


_KILLED_IN_TRAINING = """
import os, signal
import torch
import mmseg_resnest_cli.fit as fit_command
from mmseg_resnest.engine.fit import Measured, Step
from mmseg_resnest.engine.hooks import CheckpointHook

os.environ.pop("MMSEG_RESNEST_DATA", None)
torch.set_num_threads({threads})
fit_command.measure_in_child = lambda *given: {measured}
saved = CheckpointHook.after_train_iter

def kill(hook, runner, *args, **kwargs):
    saved(hook, runner, *args, **kwargs)
    if runner.iter == 3:
        assert not runner.checkpoint_writer.wait()
        os.kill(os.getpid(), signal.SIGKILL)

CheckpointHook.after_train_iter = kill
"""


@pytest.mark.long
def test_killed_while_it_trains_it_goes_on_and_ends_with_the_same(
    place: Path, said: str, run_tool: RunTool
) -> None:
    before = _KILLED_IN_TRAINING.format(threads=torch.get_num_threads(), measured=MEASURED)
    killed = run_tool("fit.py", *words_of("killed"), cwd=place, before=before)
    assert killed.returncode == -signal.SIGKILL, killed.stdout + killed.stderr
    assert (place / "killed" / "run" / "iter_2.pth").is_file()
    assert not (place / "killed" / "model").exists()
    assert "continue from" in fit("killed")
    ours, theirs = weights(place / "killed"), weights(place / "done")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert (place / "killed" / "model" / "model.safetensors").is_file()


def test_other_decisions_do_not_replace_a_training(place: Path, said: str) -> None:
    before = listing(place / "done" / "run")
    code, text = printed_error(fit("done", "--lr", "0.1", codes=(2,)))
    assert (code, "--out done" in text) == ("output-exists", True)
    assert listing(place / "done" / "run") == before


def test_other_images_are_not_taken_for_those_of_a_training(
    place: Path, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where every decision is the same."""
    shutil.copytree(place / "done", place / "copied", symlinks=True)
    memory = json.loads((place / "done/measured.json").read_text())["memory"]
    monkeypatch.setattr("mmseg_resnest.engine.fit.facts.free_memory", lambda cuda: memory)
    photo = place / "photos/images/a_photo.png"
    before, status = photo.read_bytes(), photo.stat()
    try:
        Image.open(photo).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(photo)
        assert printed_error(fit("copied", codes=(2,)))[0] == "output-exists"
    finally:
        photo.write_bytes(before)
        os.utime(photo, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_config_that_was_changed_by_hand_is_kept(place: Path, said: str) -> None:
    shutil.copytree(place / "done", place / "edited", symlinks=True)
    config = place / "edited" / "config.py"
    config.write_text(config.read_text() + "\nlog_level = 'ERROR'\n")
    code, text = printed_error(fit("edited", codes=(2,)))
    assert (code, "config.py" in text) == ("output-exists", True)


@pytest.mark.long
def test_a_dry_run_measures_in_a_process_of_its_own_and_writes_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    before = listing(place)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_command, "measure_in_child", REAL)
        said = fit("dry", "--dry-run", "--image-size", "64", "--cfg-options", "log_level=ERROR")
    assert listing(place) == before
    assert not (place / "dry").exists()
    peak = re.search(r"^memory: ([\d.]+) (MB|GB) at the peak", said, re.M)
    assert peak
    assert 100 < float(peak[1]) * {"MB": 1, "GB": 1000}[peak[2]] < 20_000
    assert re.search(r"^iteration: [\d.]+ s .*\ntraining: \d", said, re.M)
    assert "crop size: 64, 64 (height, width; --image-size)" in said


REAL = fit_command.measure_in_child


def not_begun(place: Path, *words: object, data: str = "photos") -> tuple[str, str]:
    """Code and text of the one error of a fit that must not begin to train."""
    found = printed_error(fit("refused", *words, data=data, codes=(2,)))
    assert not (place / "refused" / "run").exists()
    return found


@pytest.mark.parametrize(
    ("words", "code", "subject"),
    [
        (["--budget", "soon"], "argument", "--budget soon"),
        (["--budget", "3min"], "argument", "--budget 3 min"),  # of steps that take a minute
        (["--batch-size", "0"], "argument", "--batch-size"),
        (["--image-size", "16"], "argument", "--image-size"),
        (["--lr", "nan"], "argument", "--lr"),
        (["--class-weights", "nowhere.txt"], "not-found", "nowhere.txt"),
        (["--format", "coco"], "dataset", "photos"),
        (["--from", "nowhere.pth"], "not-found", "nowhere.pth"),
        (["--cfg-options", "no_such_key=1"], "config-key", "no_such_key"),
    ],
)
def test_mistakes_in_the_options(place: Path, words: list[str], code: str, subject: str) -> None:
    found = not_begun(place, *words)
    assert found[0] == code
    assert subject in found[1]


def test_mistakes_that_need_no_labels_come_before_them(place: Path) -> None:
    for words in (["--lr", "0"], ["--base", "no.py"], ["--from", "no"], ["--class-weights", "no"]):
        assert "labels:" not in fit("early", *words, codes=(2,))
        assert not (place / "early").exists()


def test_results_lie_apart_from_the_images(place: Path) -> None:
    """Next time they would be images and labels themselves."""
    own, outside = Path("photos"), Path("fit_photos")
    for inside in (own, own / "work_dirs/x", own / ".." / "photos"):
        with advises("cli/fit.py:_check_apart", "name a folder outside: --out"):
            fit_command._check_apart(own, inside)
    fit_command._check_apart(own, outside)
    with advises("cli/fit.py:_check_apart", "name another folder"):
        fit_command._check_apart(Path("x/data"), Path("x"))
    fit_command._check_apart(Path("x/data"), Path("y"))
    assert printed_error(fit("photos/out", codes=(2,)))[0] == "argument"
    assert not (place / "photos/out").exists()


def test_starting_from_a_published_folder(place: Path, said: str) -> None:
    words = ["--from", "done/model", "--dry-run"]
    refused(
        "engine/fit/steps.py:check_wishes", "give --from", "and --base",
        command=("fit", *words_of("dry"), *words),
    )  # fmt: skip
    words = ["--from", "done/model/model.safetensors", "--base", "done/model/training_config.py"]
    assert "weights: " in fit("dry", *words, "--dry-run")


def test_merged_classes(place: Path) -> None:
    said = fit("merged", "--label-map", "ground=ignore", "box=thing", "--dry-run")
    assert "check: every file" in said


def test_folders_that_hold_no_labels_or_two_forms(place: Path) -> None:
    shutil.copytree(place / "photos" / "images", place / "unlabelled" / "images")
    assert not_begun(place, data="unlabelled")[0] == "empty"
    shutil.copytree(place / "photos", place / "mixed")
    shapes = [{"label": "box", "points": [[0, 0], [9, 0], [9, 9]]}]
    for image in (place / "mixed" / "images").iterdir():
        record = {"shapes": shapes, "imagePath": image.name, "imageData": None}
        image.with_suffix(".json").write_text(json.dumps(record))
    code, text = not_begun(place, data="mixed")
    assert code == "dataset"
    assert "--format" in text
    assert not_begun(place, data="nowhere")[0] == "not-found"


def test_labels_of_one_class_and_classes_that_are_new_in_validation(place: Path) -> None:
    write_photos(place / "single", 6, classes=3)
    for mask in (place / "single" / "masks").iterdir():
        Image.fromarray(np.zeros((48, 64), np.uint8)).save(mask)
    assert not_begun(place, data="single")[0] == "classes"
    for part, classes in (("train", 2), ("val", 3)):
        write_photos(place / "parts" / part, 4, classes)
    shutil.move(place / "parts" / "val" / "classes.txt", place / "parts" / "classes.txt")
    (place / "parts" / "train" / "classes.txt").unlink()
    code, text = not_begun(place, data="parts")
    assert code == "classes"
    assert "sky" in text


def test_folders_of_parts_are_trained_and_validated_on(place: Path) -> None:
    for part, count in (("train", 5), ("valid", 3), ("test", 2)):
        write_photos(place / "roboflow" / part, count)
    options = CustomOptions("", "auto", (place / "roboflow",))
    prepared = prepare_labels(options, place / "parts_out", 1)
    assert (prepared.facts.train_images, prepared.facts.val_images) == (5, 3)
    assert (prepared.facts.width, prepared.facts.height) == (64, 48)
    assert any("left out" in note and "test" in note for note in prepared.notes)


def test_a_machine_with_too_little_memory(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmseg_resnest.engine.fit.facts.free_memory", lambda cuda: 1 << 20)
    assert not_begun(place)[0] == "memory"


def fake_child(folder: Path, patch: pytest.MonkeyPatch, lines: Sequence[str], end: str) -> None:
    script = folder / "python"
    script.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines) + end + "\n")
    script.chmod(0o755)
    patch.setattr(fit_command, "sys", SimpleNamespace(executable=str(script)))


def test_what_was_measured_before_a_kill_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ['{"batch": 2, "bytes": 100, "seconds": 1.5}', "noise"]
    fake_child(tmp_path, monkeypatch, lines, "kill -9 $$")
    found = REAL(tmp_path / "config.py", [2, 8], Budget(iterations=6))
    assert found == Measured((Step(2, 100, 1.5),), killed=True)


def test_errors_of_the_other_process_are_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ['{"error": ["checkpoint", "w.pth", "does not fit"]}']
    fake_child(tmp_path, monkeypatch, lines, "exit 0")
    with raises_user_error("checkpoint", "w.pth"):
        REAL(tmp_path / "config.py", [2], Budget(iterations=6))
    fake_child(tmp_path, monkeypatch, [], "echo a bug >&2; exit 1")
    with pytest.raises(RuntimeError, match="a bug"):
        REAL(tmp_path / "config.py", [2], Budget(iterations=6))


def test_a_step_that_fails_names_its_key(
    place: Path, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(*_: Any, **__: Any) -> None:
        raise ValueError("Expected more than 1 value per channel when training, got [1, 4, 1, 1]")

    monkeypatch.setattr(BaseModel, "train_step", step)
    with raises_user_error("config-value", "train_dataloader.batch_size"):
        list(measure(load_config(place / "done" / "config.py"), [1], Budget(iterations=6)))


def test_measuring_makes_a_range_test_and_leaves_the_process(place: Path, said: str) -> None:
    torch.manual_seed(3)
    random = torch.get_rng_state()
    found = Measured.of(measure(load_config("done/config.py"), [2, 4], Budget(iterations=400)))
    assert torch.equal(torch.get_rng_state(), random)
    assert [one.batch for one in found.steps] == [2, 4]
    assert all(one.bytes > 1 << 20 and one.seconds > 0 for one in found.steps)
    assert found.range_steps == 20
    assert found.lr is not None
    assert 2.5e-6 <= found.lr <= 0.1
    assert found.val_seconds > 0
    assert found.load_seconds > 0


def test_a_step_that_cannot_fit_is_not_made(
    place: Path, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmseg_resnest.engine.forecast.available_memory", lambda: 0)
    found = Measured.of(measure(load_config("done/config.py"), [2, 8], Budget(iterations=6)))
    assert [one.batch for one in found.steps] == [2]
    assert found.val_seconds > 0


def write_bands(folder: Path, masks: str, count: int = 8) -> Path:
    """Five bands of 16 bits, the second one partly without data; masks of two classes.

    ``masks`` is where the mask of a class is; ``masks/{n}.png``: of labels instead.
    """
    random = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    for name in "abcdefgh"[:count]:
        planes = np.zeros((2, 48, 64), np.uint16)
        x, y = random.integers(4, 40), random.integers(4, 30)
        planes[0, y : y + 14, x : x + 20] = planes[1, y + 7 : y + 18, x + 5 : x + 24] = 1
        means = np.array([100, 900, 3000, 5000, 20])
        bands = random.normal(means, means / 9, (48, 64, 5)) * (1 + planes.sum(0)[..., None])
        bands[:3, :5, 1] = 0
        np.save(folder / "images" / f"{name}.npy", bands.round().astype(np.uint16))
        of_classes = {"box": planes[0] * 255, "shade": planes[1] * 255}
        for label, mask in of_classes.items() if "{c}" in masks else [("", planes[0])]:
            file = folder / masks.format(c=label, n=name)
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask.astype(np.uint8)).save(file)
    return folder


def finished(place: Path, out: str, said: str) -> Any:
    """The model of a fit; its commands work, and the same command has nothing to do."""
    for line in said.split("\nnext\n")[1].splitlines()[:2]:
        image = next((place / out / "data" / "images").iterdir())
        run(*(str(image) if w == "IMAGE_OR_FOLDER" else w for w in shlex.split(line)[1:]))
    assert list((place / out / "pictures").iterdir())
    cfg = load_config(place / out / "config.py")
    assert json.loads((place / out / "check.json").read_text())["counts"] == {}
    return cfg, load_segmentor(place / out / "model", device="cpu")


def test_images_of_bands(place: Path) -> None:
    write_bands(place / "bands", "masks/{n}.png")
    words = ("--bands", "4,2,1,5", "--nodata", "0")
    said = fit("of_bands", *words, data="bands")
    assert "bands: 4" in said
    cfg, model = finished(place, "of_bands", said)
    names = (place / "of_bands/data/splits/train.txt").read_text().split()
    for channel, band in enumerate((4, 2, 1, 5)):
        values = [np.load(place / f"bands/images/{name}.npy")[:, :, band - 1] for name in names]
        known = np.concatenate(values)[np.concatenate(values) != 0].astype(np.float64)
        assert cfg.model.data_preprocessor.mean[channel] == pytest.approx(known.mean(), rel=1e-5)
        assert cfg.model.data_preprocessor.std[channel] == pytest.approx(known.std(), rel=1e-5)
    assert (cfg.model.backbone.in_channels, model.classes) == (4, ["class_0", "class_1"])
    assert cfg.train_pipeline[4].pad_val.img == cfg.model.data_preprocessor.mean
    before = listing(place / "of_bands" / "run")
    assert "measure" not in fit("of_bands", *words, data="bands").split("next")[0].splitlines()
    assert listing(place / "of_bands" / "run") == before
    assert printed_error(fit("of_bands", *words[:2], data="bands", codes=(2,)))[0] == (
        "output-exists"
    )


@pytest.mark.parametrize("data", ["bands", pytest.param("photos", marks=pytest.mark.long)])
def test_classes_that_overlap(place: Path, data: str) -> None:
    layers = write_bands(place / f"layers_of_{data}", "masks/{c}/{n}.png")
    for file in (layers / "images").iterdir() if data == "photos" else ():
        photo = np.load(file)[:, :, :3] // np.array([2, 16, 64])
        Image.fromarray(photo.clip(0, 255).astype(np.uint8)).save(file.with_suffix(".png"))
        file.unlink()
    said = fit(f"overlap_{data}", "--multilabel", data=layers.name)
    assert "labels: one mask a class (16)" in said
    cfg, model = finished(place, f"overlap_{data}", said)
    assert cfg.model.backbone.get("in_channels") == (5 if data == "bands" else None)
    result = json.loads((place / f"overlap_{data}/run/test/results.json").read_text())
    assert [row["name"] for row in result["classes"]] == ["box", "shade"]
    assert "mAP" in result["scores"]
    image = next((layers / "images").iterdir())
    assert model(image).masks.shape == (2, 48, 64)
    code, text = not_begun(place, data=layers.name)
    assert code == "argument-missing"
    assert "--multilabel" in text
