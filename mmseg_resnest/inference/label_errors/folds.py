# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Models that have not seen the labels they judge: each is trained on the other folds."""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmengine.config import Config

from ...datasets import leaf_datasets
from ...datasets.prepare import similar_images
from ...engine.facts import flatten
from ...engine.hooks import print_header
from ...engine.trained import checkpoint_in
from ...engine.training import train
from ...errors import UserError
from ...io.atomic import atomic_write
from ...io.processes import cpu_count
from ...io.up_to_date import Record, fingerprint
from .samples import LabelledSample

__all__ = ["assign_folds", "group_samples", "train_folds"]

_SEED = 0
_DONE = "trained.json"


def group_samples(
    samples: Sequence[LabelledSample], pattern: str | None = None, frames: bool | None = None
) -> tuple[list[list[str]], list[str]]:
    """The images that must not be in two folds, as ``prepare-data custom`` keeps them together.

    Args:
        samples: The training images.
        pattern: Images whose names below their common folder match it with an equal first group
            are a group; None goes by the numbers at the end of their names.
        frames: Whether numbered images are frames of videos; None measures it.

    Returns:
        The files of each group, in the order of the frames, and notes for the user.

    Raises:
        UserError: The pattern cannot be used.
    """
    images = sorted({sample.image for sample in samples})
    top = os.path.commonpath([os.path.dirname(os.path.abspath(image)) for image in images])
    paths = [Path(os.path.relpath(image, top)) for image in images]
    stems = [path.with_suffix("").as_posix() for path in paths]
    counts = Counter(stems)
    named = {
        stem if counts[stem] == 1 else path.as_posix(): image
        for stem, path, image in zip(stems, paths, images, strict=True)
    }
    files = {name: Path(image) for name, image in named.items()}
    groups, notes = similar_images(files, pattern, frames, cpu_count())
    return [[named[name] for name in some] for _, some in sorted(groups.items())], notes


def assign_folds(
    samples: Sequence[LabelledSample], folds: int, groups: Sequence[Sequence[str]] = ()
) -> list[int]:
    """The fold of each sample, 0 to ``folds`` - 1: about equal parts, drawn from one seed.

    All label maps of an image are in one fold, and so are the images of a group. Fewer groups than
    folds are cut, into parts of neighbours.

    Args:
        samples: The training images.
        folds: How many.
        groups: Images that stay together; others stand alone.

    Raises:
        UserError: There are fewer than 2 folds, or more than images, or a data set of the split
            would have no image left to train on.
    """
    names = sorted({sample.image for sample in samples})
    if not 2 <= folds <= len(names):
        said = f"must lie between 2 and the number of training images, {len(names)}"
        raise UserError("argument", f"--folds {folds}", said)
    grouped = {name for group in groups for name in group}
    parts = [list(group) for group in groups] + [[n] for n in names if n not in grouped]
    if len(parts) < folds:
        parts = [
            group[len(group) * n // number : len(group) * (n + 1) // number]
            for group in parts
            for number in [min(len(group), folds)]
            for n in range(number)
        ]
    order = [parts[index] for index in np.random.default_rng(_SEED).permutation(len(parts))]
    sizes, fold_of = [0] * folds, dict[str, int]()
    for part in sorted(order, key=len, reverse=True):
        smallest = sizes.index(min(sizes))
        sizes[smallest] += len(part)
        fold_of |= dict.fromkeys(part, smallest)
    assigned = [fold_of[sample.image] for sample in samples]
    found: dict[int, set[int]] = {}
    for sample, fold in zip(samples, assigned, strict=True):
        found.setdefault(sample.place[0], set()).add(fold)
    for number, some in found.items():
        if len(some) == 1:
            said = f"would leave data set {number + 1} of the config without images to train on; "
            said += "where they are frames of one video, see --no-frames"
            raise UserError("argument", f"--folds {folds}", said)
    return assigned


def train_folds(
    cfg: Config, samples: Sequence[LabelledSample], assigned: Sequence[int], out: Path
) -> list[Path]:
    """Train a model for each fold on the images of the others, by the run's own config.

    A fold that is trained is not trained again, and one that was interrupted goes on.

    Args:
        cfg: The config; not changed.
        samples: The training images.
        assigned: The fold of each.
        out: Their work folders are ``out/fold1``, ``out/fold2``, ...

    Returns:
        The checkpoint of each fold: its best, or else its newest.

    Raises:
        UserError: The folder holds the folds of another config or of other images; or as
            :func:`~mmseg_resnest.engine.training.train` has them.
    """
    if cfg.get("resume") or cfg.get("launcher", "none") != "none":
        said = "the run was resumed or distributed, so that the config in its checkpoint does not "
        said += "say which weights it started from or its whole batch; name the config file in "
        raise UserError("config-conflict", "--folds", f"{said}front of the run")
    count = max(assigned) + 1
    wanted = fingerprint(dict(flatten(dict(cfg.items()))), [s.place for s in samples], assigned)
    record = Record(out / "folds.json", out)
    if record.about.setdefault("folds", wanted) != wanted:
        said = (
            "holds the folds of another config or of other images; name another folder with "
            "--out, or remove it"
        )
        raise UserError("output-exists", out, said)
    record.save()
    for fold in range(count):
        name = f"fold{fold + 1}"
        if record.is_current(f"{name}/{_DONE}", wanted):
            continue
        kept = [s.place for s, f in zip(samples, assigned, strict=True) if f != fold]
        title = f"{fold + 1} of {count}, trained on {len(kept):,} of {len(samples):,} images"
        print_header([("fold", title)])
        train(_without(cfg, kept), work_dir=out / name, resume="auto")
        atomic_write(out / name / _DONE, f'{{"fold": {fold + 1}, "images": {len(kept)}}}\n')
        record.note(f"{name}/{_DONE}", wanted, "trained")
        record.save()
    return [checkpoint_in(out / f"fold{fold + 1}") for fold in range(count)]


def _without(cfg: Config, kept: Sequence[tuple[int, int]]) -> Config:
    """The config whose training data sets hold only the samples at these places."""
    changed = copy.deepcopy(cfg)
    saving = (changed.get("default_hooks") or {}).get("checkpoint") or {}
    saving.pop("out_dir", None)  # where the run's own checkpoints are
    changed.pop("distillation", None)  # a teacher may have learned the labels that are left out
    for number, leaf in enumerate(leaf_datasets(changed.train_dataloader.dataset)):
        leaf["indices"] = [index for part, index in kept if part == number]  # type: ignore[index]
    return changed
