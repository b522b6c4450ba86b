# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Every command and every config of the pages runs through its tool, on stand-ins.

The config is read as the page names it, with the page's options; then its network and its images
are made small, and its run two steps long. The data set is made up in the layout of the config,
weights are random ones of the config's model. ``make docs-run`` runs all, the suite a part.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fake_services
import numpy as np
import pytest
import torch
from in_process import catch_services, run
from mmengine.config import Config
from PIL import Image
from test_docs import (
    BLOCKS,
    COMMANDS,
    FILE_NAME,
    PYTHON,
    Block,
    commands,
    folder,
    inline_commands,
    is_config,
    is_mention,
    tool_call,
)

from mmseg_resnest.datasets import leaf_datasets
from mmseg_resnest.engine.config import find_config, load_config
from mmseg_resnest.engine.model import build_model
from mmseg_resnest.registry import DATASETS, option_of
from mmseg_resnest.weights import catalogue

__all__ = ["folder"]  # a fixture

ALL = bool(os.environ.get("ALL_DOCS"))
LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")
ARCH = dict(blocks=(1, 1, 1, 1), radix=2, groups=1, base_width=4, stem_width=4, avd_first=False)
#: What does not run, by the start of its words: the reason.
NOT_RUN = {
    "fit": "tests/tools/test_fit.py",
    "classify": "needs MMPretrain; tests/classify/test_page.py",
    "train configs/fcn_resnest14_scenes.py --cfg-options model.backbone.init_cfg=": "the same",
    "prepare-data ade20k": "needs the internet or the archives; tests/datasets/prepare makes some",
    "prepare-data camvid": "the same",
    "prepare-data cityscapes": "the same",
    "prepare-data scenes": "paints 500 pictures; tests/tools/test_prepare_data.py",
    "prepare-data voc12aug": "the same",
    "prepare-data custom --name mine --format index --classes classes.txt --source labels": (
        "needs images of bands; tests/tools/test_images_of_bands.py"
    ),
    "prepare-data export --format labelme --classes camvid_classes.txt": "in the fixture",
    "convert-checkpoint openmmlab/": "needs published weights",
    "convert-checkpoint resnest50-bcfefe1d.params": "the same; tests/weights/test_mxnet_params.py",
    "convert-checkpoint detector.pth theirs.pth": "of a detector; tests/weights/test_detectors.py",
    "demo": "trains for minutes; it is make demo",
    "publish-model RUN --push": "needs a hub; tests/tools/test_named_models.py",
    "publish-model work_dirs/RUN --push": "needs a hub; tests/tools/test_named_models.py",
    "publish-model work_dirs/fit_streets": "the same",
    "reproduce": "needs published weights and the whole data set; tests/engine/test_reproduce.py",
    "weights fetch": "needs the internet; tests/weights/test_download.py",
    "weights verify": "the same",
    "prepare-data DATASET": "the same",
    "predict work_dirs/RUN photo.jpg --out predictions --engine openvino": (
        "OpenVINO is not among the pins; tests/runtimes/test_engines.py"
    ),
    "train CONFIG --compile": "compiles for minutes; tests/engine/test_compile.py",
    "models --measure": "measures whole models; tests/tools/test_models.py",
    "make-model-zoo": "tests/tools/test_make_model_zoo.py",
    "detect": "needs MMDetection; tests/detect",
    "prepare-data shapes": "draws 500 pictures; tests/datasets/test_drawn_shapes.py",
    "dist-train": "starts processes; tests/tools/test_distributed.py",
    "slurm-train": "needs Slurm; tests/tools/test_distributed.py",
    "train fcn_resnest50_ade20k --launcher pytorch": "is started by torchrun; test_distributed.py",
    "test configs/fcn_resnest50_cityscapes.py CHECKPOINT --official": "in test_official.py",
}
#: Words of the pages that stand for what the reader has.
STAND_INS = {
    "CONFIG": "configs/fcn_resnest14_scenes.py",
    "FILE": "configs/fcn_resnest14_scenes.py",
    "NAME": "deeplab_resnest101_ade",
    "INPUT": "photo.jpg",
    "DIR": "data",
    "DST": "converted.pth",
    "/path/to/data": "data",
    "my data/mine": "data/camvid",
    "IMAGES_AND_LABELS": "labelme/train",
    "CALIBRATION_IMAGES": "data/scenes/images/training",
    "work_dirs/RUN": "work_dirs/fcn_resnest14_scenes",
    "hf://me/streets": "work_dirs/fcn_resnest14_scenes",
}


def shrink(cfg: Config) -> Config:
    """The same config with a small network, small images and a short run; with data to read."""
    model = cfg.model
    model.backbone.init_cfg = None
    if model.backbone.type == "ResNeSt":
        model.backbone.arch = ARCH
    for key in ("decode_head", "auxiliary_head"):
        if model.get(key) is not None:
            model[key].channels = 16
    for node in nodes(cfg):
        if node.get("type") == "SyncBN":
            node["type"] = "BN"
        if "base_size" in node:
            node["base_size"] = 96
        if "crop_size" in node:
            node["crop_size"] = 64 if isinstance(node["crop_size"], int) else (64, 64)
        if node.get("type") == "Pad":
            node["size"] = (64, 64)
        if node.get("type") == "Resize":
            node["scale"] = (96, 96)
        if node.get("type") == "MultiScaleGridTTA":
            node["scales"] = (1.0,)
    for name in LOADERS:
        if cfg.get(name):
            cfg[name].update(num_workers=0, persistent_workers=False)
            cfg[name].pop("prefetch_factor", None)
            for leaf in leaf_datasets(cfg[name].dataset):
                make_data(leaf)
    if cfg.get("train_cfg"):
        cfg.train_cfg.update(max_iters=2, val_interval=2)
        cfg.train_dataloader.batch_size = 2
        cfg.default_hooks.checkpoint.interval = 2
        cfg.param_scheduler = [dict(type="PolyLR", begin=0, end=3, by_epoch=False)]
    return cfg


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, Config):
        value = dict(value.items())
    if isinstance(value, dict):
        yield value
        for item in value.values():
            yield from nodes(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from nodes(item)


def make_data(leaf: dict[str, Any]) -> None:
    """Images and label maps where a data set looks for them, unless there are some."""
    kind = dict(type=leaf["type"])
    root, prefix = Path(leaf.get("data_root") or ""), dict(leaf.get("data_prefix") or {})
    if leaf.get("ann_file") or (root / prefix.get("img_path", "")).is_dir():
        return
    image_end, label_end = (
        option_of(DATASETS, {**kind, **leaf}, name) for name in ("img_suffix", "seg_map_suffix")
    )
    image_end = image_end if isinstance(image_end, str) else image_end[0]
    low = int(bool(option_of(DATASETS, kind, "reduce_zero_label")))
    rng = np.random.default_rng(len(str(root / prefix["img_path"])))
    for name in ("img_path", "seg_map_path"):
        (root / prefix.get(name, prefix["img_path"])).mkdir(parents=True, exist_ok=True)
    for i in range(3):
        stem = f"made{i}"
        pixels = rng.integers(0, 256, (72, 96, 3), np.uint8)
        Image.fromarray(pixels).save(root / prefix["img_path"] / f"{stem}{image_end}")
        if "seg_map_path" in prefix:
            labels = rng.integers(low, low + 11, (72, 96), np.uint8)
            Image.fromarray(labels).save(root / prefix["seg_map_path"] / f"{stem}{label_end}")


@pytest.fixture(scope="module")
def place(folder: Path) -> Iterator[Path]:
    """The folder of the pages, in which configs are small when they are read."""
    small: dict[str, Callable[..., Config]] = {"load": lambda *a, **k: shrink(load_config(*a, **k))}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        patch.setenv("MMSEG_RESNEST_DATA", "data")
        patch.setenv("MMSEG_RESNEST_CACHE", "cache")
        patch.delenv("MMSEG_RESNEST_SCENES", raising=False)
        for module in ("mmseg_resnest.engine.config", "mmseg_resnest.inference.load"):
            patch.setattr(f"{module}.load_config", small["load"])
        catch_services(patch)
        for old in ("work_dirs", "configs/custom"):
            shutil.rmtree(old)
        for block in BLOCKS:
            if block.kind == "text" and "Bicyclist 0 128 192" in block.text:
                Path("camvid_classes.txt").write_text(block.text, encoding="utf-8")
        small["load"]("fcn_resnest14_camvid")  # makes data/camvid
        for split in ("train", "val"):
            for end in ("", "annot"):  # names differ between the splits
                for file in Path("data/camvid", split + end).iterdir():
                    file.rename(file.with_name(f"{split}{file.name}"))
            run(
                *("prepare-data", "export", "--format", "labelme", "--classes"),
                *("camvid_classes.txt", "--images", f"data/camvid/{split}"),
                *("--labels", f"data/camvid/{split}annot", "--out", f"labelme/{split}"),
            )
        yield folder


@pytest.fixture(autouse=True)
def own_config(place: Path) -> None:
    """``configs/custom/mine.py``."""
    if not Path("configs/custom/mine.py").is_file():
        run(
            *("prepare-data", "custom", "--name", "mine", "--format", "labelme"),
            *("--source", "labelme/train", "--val-source", "labelme/val"),
        )


def checkpoint_of(config: str) -> str:
    """Random weights of the small model of a config."""
    from mmseg_resnest.engine import config as configs

    path = Path("weights") / f"{Path(config).stem}.pth"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        model = build_model(configs.load_config(config))
        torch.save({"state_dict": model.state_dict()}, path)
    return str(path)


def weights_or(word: str, config: str) -> str:
    """A word, or weights in its place where it names some."""
    published = word in catalogue() or word.startswith(("https://host/", "hf://"))
    if published or word == "CHECKPOINT" or (word.endswith(".pth") and not Path(word).exists()):
        return checkpoint_of(config)
    return word


def calls(text: str) -> Iterator[list[str]]:
    """The words of a text's commands of this package, without assignments and options in []."""
    for words in commands(text):
        while words and re.match(r"\w+=", words[0]):
            words = words[1:]
        call = tool_call(words) if words else None
        if call is not None:
            line = re.sub(r"\[(?:--|[A-Z])[^]]*\]|\.\.\.", "", "\0".join([call[0], *call[1]]))
            yield [word for word in line.split("\0") if word.strip()]


def all_calls() -> dict[tuple[str, ...], str]:
    """The words of each command, and where it stands first."""
    found: dict[tuple[str, ...], str] = {}
    for block in COMMANDS:
        for number, words in enumerate(calls(block.text)):
            found.setdefault(tuple(words), f"{block.name}-{number}")
    for line in inline_commands():
        for words in calls(line):
            if not is_mention(words[0], words[1:]):
                found.setdefault(tuple(words), line)
    return found


CASES = [
    pytest.param([*words], id=name)
    for words, name in all_calls().items()
    if not {"--help", "--version", "COMMAND"} & {*words} and "|" not in " ".join(words)
]


def not_run(words: list[str]) -> str:
    return next((why for start, why in NOT_RUN.items() if " ".join(words).startswith(start)), "")


CHOSEN = [
    case for case in CASES if not not_run(case.values[0]) and "--log-to" not in case.values[0]
]


def test_services_that_show_curves(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = fake_services.install(monkeypatch)
    (words,) = (case.values[0] for case in CASES if "--log-to" in case.values[0])
    run(*(STAND_INS.get(word, word) for word in words), "--work-dir", "shown")
    names = {
        "tensorboard": {name for name, *_ in told["tensorboard"].named("add_scalar")},
        "wandb": {name for values, *_ in told["wandb"].named("log") for name in values},
        "mlflow": {name for values, *_ in told["mlflow"].named("log_metrics") for name in values},
    }
    assert all({"loss", "mIoU"} <= some for some in names.values())
    for service, last in (("tensorboard", "close"), ("wandb", "finish"), ("mlflow", "end_run")):
        assert len(told[service].named(last)) == 1


@pytest.mark.parametrize("words", CHOSEN if ALL else CHOSEN[::10])
def test_command(words: list[str], place: Path) -> None:
    name, *arguments = words
    if name == "configs" and "--copy" in arguments:
        arguments[-1] = "copied_configs"
    if name == "convert-checkpoint":
        arguments[0] = checkpoint_of(STAND_INS["CONFIG"])
    if name == "compare-runs":
        for run_name in arguments[:2]:
            config = STAND_INS["CONFIG"]
            run("test", config, checkpoint_of(config), "--work-dir", run_name)
    arguments = [STAND_INS.get(word, word) for word in arguments]
    config = next((word for word in arguments if find_config(word).is_file()), "")
    named = STAND_INS["work_dirs/RUN"] in arguments
    if named or name == "report" or {"--resume", "--results", "--teacher"} & set(arguments):
        ready(name, arguments)
    if config and name != "convert-checkpoint":
        arguments = [
            "load_from=" + weights_or(word.removeprefix("load_from="), config)
            if word.startswith("load_from=")
            else weights_or(word, config)
            for word in arguments
        ]
    if name == "export-onnx":
        arguments.append("--force")
    # The made-up labels do not show every class.
    run(name, *arguments, codes=(0, 1) if name == "check-data" else (0,))


def ready(name: str, arguments: list[str]) -> None:
    """The runs that a report shows, that go on, and whose results are published."""
    config = next((w for w in arguments if find_config(w).is_file()), STAND_INS["CONFIG"])
    for word in arguments:
        if word == STAND_INS["work_dirs/RUN"] or (
            word.startswith("work_dirs/") and (name == "report" or "--teacher" in arguments)
        ):
            config = f"configs/{Path(word).name}.py"
    done = Path("work_dirs", Path(config).stem)
    if name != "publish-model" and not any(done.glob("*.pth")):
        run("train", config)
    for word in arguments if name == "publish-model" else ():
        if word.endswith("results.json"):
            run("test", config, checkpoint_of(config), "--work-dir", Path(word).parent)


CONFIGS = [block for block in PYTHON if is_config(block) and not block.mark]


@pytest.mark.parametrize(
    "block",
    [pytest.param(b, id=b.name) for b in (CONFIGS if ALL else CONFIGS[::9])],
)
def test_config(block: Block, place: Path) -> None:
    first = FILE_NAME.match(block.text)
    path = Path(first[1]) if first else Path(f"config_{block.page.stem}_{block.line}.py")
    base = "" if "_base_" in block.text else f"_base_ = {STAND_INS['CONFIG']!r}\n"
    text = re.sub(r'load_from = "\w+"', "load_from = None", block.text)  # published weights
    path.write_text(base + text, encoding="utf-8")
    if teacher := re.search(r'teacher="(\S+)"', text):
        ready("train", ["--teacher", teacher[1]])
    run("train", path, "--work-dir", f"runs/{block.page.stem}_{block.line}")


def test_what_is_not_run_is_in_the_pages() -> None:
    lines = [" ".join(case.values[0]) for case in CASES]
    assert all(any(line.startswith(start) for line in lines) for start in NOT_RUN)
    assert len(CHOSEN) > 60 and len(CONFIGS) > 5
