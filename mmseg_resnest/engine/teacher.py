# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The teacher of a distillation: found, compared with its student, and given to it.

The config key ``distillation`` names the teacher and the losses; ``--teacher`` names it in place of
the config. The teacher is a model of the run, not a part of the student: checkpoints hold a digest
of its weights, by which a resumed run is compared.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.config import Config
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.segmentors import BaseSegmentor
from torch import nn

from .._stack import converts_channels
from ..datasets import leaf_datasets
from ..datasets.label_map import dataset_metainfo
from ..datasets.pipelines import pipelines
from ..datasets.reader import ImageReader
from ..errors import UserError
from ..io.text import printable
from ..models import Distillation, EncoderDecoder, fold_for_inference, input_channels, overlaps
from ..models.losses import build_distillation
from ..registry import building
from .hooks import describe_model
from .numerics import is_fused
from .resume_changes import Note

#: Loads a model by its name: :func:`mmseg_resnest.inference.load_segmentor`, on the CPU.
OpenModel = Callable[[str], Any]
_LOSSES = (
    dict(type="ChannelWiseDivergence", temperature=4.0, loss_weight=3.0),
    dict(type="KLDivergence", temperature=4.0, loss_weight=1.0),
)
_SHOWN = 4  # names of classes in a message


@dataclass(frozen=True)
class Teacher:
    """A model to learn from: its name, what loaded it, and a digest of its weights."""

    name: str
    loaded: Any
    sha256: str

    @property
    def subject(self) -> str:
        """What errors are about."""
        return f"teacher {self.name}"

    @property
    def values(self) -> dict[str, str]:
        """What a checkpoint says of it, beside what :func:`.describe_config` says."""
        return {"distillation.weights": self.sha256[:16]}


def set_distillation(cfg: Config, teacher: str | None) -> None:
    """Put ``teacher`` and the default losses into ``cfg.distillation``, where there is to be one.

    Raises:
        UserError: The key names no teacher, or something that is not a loss.
    """
    if teacher is None and cfg.get("distillation") is None:
        return
    chosen: dict[str, Any] = {**(cfg.get("distillation") or {})}
    if teacher is not None:
        chosen["teacher"] = teacher
    if not chosen.get("teacher"):
        message = "is missing: name the teacher there, or with --teacher NAME"
        raise UserError("config-key", "config key distillation.teacher", message)
    chosen.setdefault("losses", [dict(one) for one in _LOSSES])
    build_distillation(chosen["losses"], "distillation.losses")
    cfg.distillation = chosen


def find_teacher(cfg: Config, open_model: OpenModel | None) -> Teacher | None:
    """Load the teacher of the resolved config of a student; None where nothing is distilled.

    Raises:
        UserError: It cannot be loaded, or is no network with the scores of classes.
    """
    if cfg.get("distillation") is None:
        return None
    name = os.fspath(cfg.distillation.teacher)
    if open_model is None:
        message = "no way to load it was given: pass train(open_model=load_segmentor)"
        raise UserError("argument-missing", f"teacher {name}", message)
    try:
        found = open_model(name)
    except UserError as error:
        raise UserError(error.code, f"teacher {name}", error.text) from error
    model = found.model
    if not isinstance(model, BaseSegmentor) or not hasattr(model, "decode_head"):
        message = "is an exported file, whose scores are not known; name the run, the checkpoint "
        message += "or the published model that it was made from"
        raise UserError("model", f"teacher {name}", message)
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy())
    return Teacher(name, found, digest.hexdigest())


def teach(teacher: Teacher, cfg: Config, student: nn.Module) -> list[Note]:
    """Let a student learn from a teacher, in place; returns rows for the header of the run.

    The teacher's network is folded where the run's steps are fused.

    Raises:
        UserError: They have other classes or other images, or the student is of a kind that
            cannot be taught.
    """
    model = teacher.loaded.model
    if not isinstance(student, EncoderDecoder) or not _is_plain(student.decode_head):
        message = "cannot be taught: the student must be an EncoderDecoder with one head whose "
        message += "losses are those of its scores, such as FCNHead or DeepLabV3Head"
        raise UserError("config-conflict", "config key model", message)
    if overlaps(model) != student.multilabel:
        words = "exclude each other", "may overlap"
        message = f"its classes {words[overlaps(model)]}, the student's {words[student.multilabel]}"
        message += "; name a teacher with the student's model.multilabel"
        raise UserError("config-conflict", teacher.subject, message)
    order = _order(teacher, cfg, int(student.num_classes))
    reverses = _reverses(teacher, cfg, student)
    said = describe_model(model, teacher.loaded.cfg, int(model.decode_head.num_classes))
    if order is not None:
        said += ", in another order"
    if is_fused(cfg) and not torch.cuda.is_available():
        fold_for_inference(model.eval())
    losses = build_distillation(cfg.distillation.losses, "distillation.losses")
    student.distillation = Distillation(
        model, losses, student.data_preprocessor, reverses, order, student.multilabel
    )
    return [("teacher", f"{teacher.name}: {said}")]


def _is_plain(head: Any) -> bool:
    return isinstance(head, BaseDecodeHead) and type(head).loss is BaseDecodeHead.loss


def _order(teacher: Teacher, cfg: Config, count: int) -> list[int] | None:
    """The teacher's index of each class of the student; None: the same, as far as names are known.

    UserError says that they have other classes.
    """
    found = int(teacher.loaded.model.decode_head.num_classes)
    if found != count:
        message = (
            f"has {found} classes, and the student {count}; name a teacher of the student's classes"
        )
        raise UserError("classes", teacher.subject, message)
    ours, theirs = _names(cfg, "train_dataloader"), _names(teacher.loaded.cfg, "test_dataloader")
    if not all(len(set(names)) == len(names) == count for names in (ours, theirs)):
        return None
    if set(ours) != set(theirs):
        message = f"has {_shown(theirs, ours)}, which the student has not, and lacks its "
        message += f"{_shown(ours, theirs)}; name a teacher of the student's classes"
        raise UserError("classes", teacher.subject, message)
    order = [theirs.index(name) for name in ours]
    return None if order == sorted(order) else order


def _shown(names: Sequence[str], others: Sequence[str]) -> str:
    found = [name for name in names if name not in others]
    more = f" and {len(found) - _SHOWN:,} more" if len(found) > _SHOWN else ""
    return ", ".join(map(printable, found[:_SHOWN])) + more


def _names(cfg: Mapping[str, Any], loader: str) -> list[str]:
    """The names of the classes of a loader's data; none where they were made up."""
    dataset = (cfg.get(loader) or {}).get("dataset")
    if not isinstance(dataset, Mapping):
        return []
    with building(cfg.get("default_scope", "mmseg")):
        found = dataset_metainfo(next(leaf_datasets(dataset))).get("classes") or ()
    names = [str(name) for name in found]
    return [] if names == [f"class {i}" for i in range(len(names))] else names


def _reverses(teacher: Teacher, cfg: Config, student: Any) -> bool:
    """Whether the teacher's network takes red and blue the other way round than the student's.

    UserError says that it takes other images.
    """
    model, theirs = teacher.loaded.model, teacher.loaded.reader
    taken, wanted = input_channels(model), input_channels(student)
    if None not in (taken, wanted) and taken != wanted:
        message = (
            f"takes images of {taken} channels, and the student of {wanted}; name a teacher "
            "of the same images"
        )
        raise UserError("config-conflict", teacher.subject, message)
    with building(cfg.get("default_scope", "mmseg")):
        _, steps = next(pipelines(cfg.train_dataloader.dataset))
        ours = ImageReader(steps, "train_dataloader.dataset.pipeline")
    ways = [one.describe_loading() for one in (ours, theirs)]
    bands = any("type" in (way or {}) for way in ways)
    if None not in ways and (ours.eight_bit != theirs.eight_bit or (bands and ways[0] != ways[1])):
        message = (
            f"reads images by {ways[1]}, and the student by {ways[0]}; name a teacher that "
            "reads them in the same way"
        )
        raise UserError("config-conflict", teacher.subject, message)
    first = [
        bool(reader.rgb) != converts_channels(one.data_preprocessor)
        for reader, one in ((ours, student), (theirs, model))
    ]
    return wanted == 3 and first[0] != first[1]
