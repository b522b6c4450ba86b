# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The labels of a split that are likely wrong: scored image by image, ranked, written."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mmengine.config import Config
from torch import Tensor
from tqdm import tqdm

from ...engine.hooks import print_header
from ...engine.preflight import check_device, check_outputs
from ...engine.run_folders import RunFolders
from ...errors import UserError
from ..segmentor import Segmentor, load_config_model
from .folds import assign_folds, group_samples, train_folds
from .ranking import LabelErrors, Ranking
from .samples import labelled_samples
from .scores import Scores

__all__ = ["find_label_errors"]


def find_label_errors(
    cfg: Config,
    checkpoint: str | os.PathLike[str] | None,
    out: str | os.PathLike[str],
    split: str = "val",
    folds: int | None = None,
    top: int = 100,
    min_area: int = 16,
    device: str | None = None,
    weights: Mapping[str, Tensor] | None = None,
    group_pattern: str | None = None,
    frames: bool | None = None,
) -> LabelErrors:
    """Rank the images and regions of a split by how likely their labels are wrong.

    Each image is read and scored once. Of its scores only
    :class:`~mmseg_resnest.evaluation.label_quality.LabelEvidence` is kept, in ``out/scores``, from
    where a call that is repeated goes on. Written are ``label_errors.json`` and
    ``label_errors.html``, and for the regions on the page ``cvat.xml``, ``cvat_labels.json`` and
    LabelMe's files in ``labelme``; files that are up to date are left alone.

    Args:
        cfg: A checked config.
        checkpoint: Weights of the whole model; not used with ``folds``, which needs none.
        out: The folder to write to.
        split: ``val`` or ``train``.
        folds: Judge each training image by a model that was trained on the other folds; so many
            are trained into ``out``.
        top: Regions on the page and in the tasks.
        min_area: Regions of fewer pixels are left out.
        device: Of the model; None is the GPU if there is one.
        weights: What ``checkpoint`` holds, where that has been read.
        group_pattern: With ``folds``: the first group of this pattern, matched with the whole name
            of an image below the folder of all, is what images of one fold share; None goes by the
            number at the end of the name.
        frames: With ``folds``: whether numbered images are frames of videos; None measures it.

    Raises:
        UserError: An argument, the config or the data is wrong, or another process uses ``out``.
    """
    folder = Path(out)
    for name, value in (("--top", top), ("--min-area", min_area)):
        if value < 1:
            raise UserError("argument", name, f"must be at least 1, not {value}")
    if folds is not None and split != "train":
        said = (
            "divides the training images; the model has not learnt the validation images: leave "
            "--folds out, or take --split train"
        )
        raise UserError("config-conflict", "--folds", said)
    samples, ignored = labelled_samples(cfg, split)
    check_outputs(cfg, {"--out": folder})
    assigned = [0] * len(samples)
    if folds is not None:
        groups, notes = group_samples(samples, group_pattern, frames)
        assigned = assign_folds(samples, folds, groups)
        if notes:
            print_header([("note", note) for note in notes])
    loaded: Segmentor | None = None
    if folds is None:  # before anything is written
        loaded = load_config_model(cfg, checkpoint, device, weights=weights)
    else:
        check_device(device)
    with contextlib.ExitStack() as held:
        RunFolders({folder: "--out"}, held).hold(make=True)
        checkpoints: Sequence[str | os.PathLike[str] | None] = [checkpoint]
        if folds is not None:
            checkpoints = train_folds(cfg, samples, assigned, folder)
        scores = Scores(folder / "scores", samples, ignored)
        scored = 0
        model: Segmentor | None = None
        with tqdm(
            total=len(samples), desc="scoring", disable=None, leave=False, dynamic_ncols=True
        ) as bar:
            for fold, file in enumerate(checkpoints):
                model = None  # gives its memory to the next one
                model = loaded or load_config_model(cfg, file, device)
                chosen = [i for i, number in enumerate(assigned) if number == fold]
                scored += scores.add(model, chosen, bar)
        assert model is not None
        facts = {
            "split": split,
            "folds": folds,
            "checkpoint": None if folds or checkpoint is None else os.fspath(checkpoint),
            "min_area": min_area,
        }
        ranking = Ranking(model, samples, scores, facts, assigned if folds else None)
        return replace(ranking.write(folder, top), scored=scored)
