# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Image classification on the runs of segmentation: the config, its classes and its images.

A config of ``configs/classification/`` goes through :func:`.training.train` and
:func:`.testing.evaluate` as any other; what is checked here is what only such a config has.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..datasets import ImageFolder
from ..datasets.image_folder import class_folders
from ..errors import UserError
from ..evaluation import metric_configs
from ..io.text import printable
from ..registry import type_name
from ..weights.load import load_record
from .config import load_config

_LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")


def load_classification(
    path: str | os.PathLike[str],
    cfg_options: Sequence[str] = (),
    data_root: str | os.PathLike[str] | None = None,
    images: str | os.PathLike[str] | None = None,
    splits: Sequence[str] = ("train", "val"),
) -> Config:
    """Read the config of a classifier, and look at its folders of images.

    Arguments are those of :func:`.load_config`, ``splits``, those of ``train``, ``val`` and
    ``test`` that are used, and ``images``: a folder with ``train/CLASS/*`` and ``val/CLASS/*`` in
    place of the config's, which the model gets the classes of.

    Raises:
        UserError: MMPretrain is not installed; the config is of another kind, or its head does not
            state the number of classes; a folder is missing or empty; or it has one class, or
            another number of classes than the model.
    """
    cfg = load_config(path, cfg_options, data_root)
    if cfg.get("model") is None or cfg.model.get("head") is None:
        message = (
            "has no model.head: it is not the config of a classifier; those are in "
            "configs/classification/"
        )
        raise UserError("config-key", f"config {path}", message)
    check_head(cfg, path)
    if images is not None:
        for name in _LOADERS:
            if cfg.get(name):
                cfg[name].dataset.data_root = os.fspath(images)
    if "train" not in splits and cfg.get("train_dataloader"):
        cfg.train_dataloader.num_workers = 0  # or room for its batches would be asked for
    for split in splits:
        dataset = (cfg.get(f"{split}_dataloader") or {}).get("dataset")
        if dataset is None or type_name(dataset.get("type")) != ImageFolder.__name__:
            continue
        names = _classes_in(dataset)
        if len(names) < 2:
            message = f"has one folder of a class alone, {printable(names[0])}, and a classifier "
            message += "tells two or more apart; add a folder for each class"
            raise UserError(
                "classes", Path(dataset.data_root, dataset.get("split", "train")), message
            )
        if images is not None:
            set_number_of_classes(cfg, len(names))
        elif len(names) != cfg.model.head.num_classes:
            root = dataset.data_root
            said = f"has {len(names)} folders of classes, and config key model.head.num_classes is "
            said += f"{cfg.model.head.num_classes}; to take its classes, add --images {root}"
            raise UserError("classes", Path(root, dataset.get("split", "train")), said)
    return cfg


def _classes_in(dataset: Any) -> list[str]:
    try:
        return class_folders(Path(dataset.data_root, dataset.get("split", "train")))
    except UserError as error:
        said = f"{error.message}; --images DIR names another folder"
        raise UserError(error.code, error.subject, said) from error


def check_head(cfg: Config, path: str | os.PathLike[str] | None) -> None:
    """UserError if the head of a classifier does not state how many classes there are."""
    head = cfg.model.get("head")
    if not isinstance(head, Mapping) or not isinstance(head.get("num_classes"), int):
        message = "config key model.head.num_classes is missing; set it to the number of classes, "
        message += "in a head that takes it, such as mmpretrain.LinearClsHead"
        raise UserError("config-key", f"config {path}", message)


def set_number_of_classes(cfg: Config, number: int) -> None:
    """Give a model another number of classes, and leave out scores that it then cannot have."""
    cfg.model.head.num_classes = number
    if "num_classes" in (cfg.model.get("data_preprocessor") or {}):
        cfg.model.data_preprocessor.num_classes = number
    for name in ("val_evaluator", "test_evaluator"):
        for metric in metric_configs(cfg.get(name) or ()):
            if isinstance(metric, dict) and isinstance(metric.get("topk"), list | tuple):
                metric["topk"] = [k for k in metric["topk"] if k <= number] or [1]


def classes_of(checkpoint: str | os.PathLike[str]) -> tuple[str, ...]:
    """The names of the classes that a checkpoint of a run was trained on; () if it lacks them."""
    return classes_in(load_record(os.fspath(checkpoint)).get("meta"))


def classes_in(meta: Any) -> tuple[str, ...]:
    """The same from the ``meta`` of a checkpoint, whatever it is."""
    data = meta.get("dataset_meta") if isinstance(meta, Mapping) else None
    names = data.get("classes") if isinstance(data, Mapping) else None
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return ()
    return tuple(names)


def check_classes(cfg: Config, checkpoint: str | os.PathLike[str]) -> None:
    """Check that a test split has the classes that a checkpoint was trained on, in their order.

    UserError names the first other one.
    """
    trained, dataset = classes_of(checkpoint), cfg.test_dataloader.dataset
    if not trained or type_name(dataset.get("type")) != ImageFolder.__name__:
        return
    folder = Path(dataset.data_root, dataset.get("split", "train"))
    there = class_folders(folder)
    if list(trained) != there:
        other = next(iter(sorted(set(trained) ^ set(there))), there[0])
        message = f"its folders are not the {len(trained)} classes of {checkpoint}: {other} is in "
        message += "one of them alone; test on images of the same classes"
        raise UserError("classes", folder, message)
