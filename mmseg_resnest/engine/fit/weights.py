# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The weights that a training starts from: which they are, and the rows of heads that are kept."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmengine.config import Config
from torch import Tensor

from ...errors import UserError
from ...io.json_files import read_json
from ...registry import DATASETS, building
from ...weights import (
    catalogue,
    download,
    load_checkpoint,
    pinned,
    resolve_checkpoint,
    save_state_dict,
)
from ...weights.cache import cache_path, verify
from ...weights.catalogue import Entry
from ...weights.download import Limits
from ...weights.hub import CONFIG_FILE, hub_folder, is_hub
from ...weights.partial import CLASSIFIER, fit_parts
from ..classification import classes_in, classes_of
from ..config import load_config
from ..model import build_seeded_model
from ..trained import checkpoint_in, load_trained

#: Published weights that are tried where nobody names any, by the size of the model.
_SMALL = ("gluoncv/resnest14", "timm/resnest14d")
_LARGE = ("deeplab_resnest50_ade", "gluoncv/deeplab_resnest50_ade")
_BASES = {
    "resnest14": "fcn_resnest14_camvid",
    "resnest50": "deeplabv3plus_resnest50_camvid",
    "mscan_t": "segnext_mscant_camvid",
    "mit_b0": "segformer_mitb0_camvid",
}
_NOTHING = "nothing"
_CACHED = "published weights, in the cache"


@dataclass(frozen=True)
class Origin:
    """What a training starts from.

    Attributes:
        name: A name of the catalogue, a file, or ``nothing``.
        reason: Why it is that.
        base: Name of the config whose model it is of; None where that is not known.
        model: That config, where a checkpoint holds it.
        backbone: Whether it is weights of a backbone alone.
        classes: Names of the classes that its heads know; empty where that is not known.
        there: Whether its file is there; False where a dry run leaves it to be fetched.
    """

    name: str = _NOTHING
    reason: str = "--from none"
    base: str | None = None
    model: Config | None = None
    backbone: bool = False
    classes: tuple[str, ...] = ()
    there: bool = True

    @property
    def starts(self) -> bool:
        """Whether there are weights."""
        return self.name != _NOTHING

    @property
    def published(self) -> bool:
        """Whether they are of a long training, which steps as large as from scratch would undo.

        A run of one's own is short, and its images may be of another kind: all of it goes on
        learning at the rate of a training from scratch.
        """
        return self.starts and self.model is None

    @property
    def usual_rate(self) -> float:
        """AdamW's usual learning rate from there."""
        return 1e-3 if self.published else 3e-3

    @property
    def backbone_share(self) -> float:
        """The learning rate of the backbone, as a share of the other parts'."""
        return 0.1 if self.published else 1.0


def find_origin(
    wish: str | None, large: bool, fetch: bool = True, base: str | None = None
) -> Origin:
    """Decide what to start from.

    Args:
        wish: A name of the catalogue or of a hub, a file, ``none``, or None to decide.
        large: Whether the training may take a large model (:func:`.takes_large`).
        fetch: Whether published weights may be fetched; without it they are only looked for.
        base: Name or file of the config whose model is taken, if that is decided.

    Raises:
        UserError: What is wished for does not exist or cannot be fetched.
    """
    if wish == "none":
        return Origin()
    if wish is None:
        return _usual(large, fetch) if base is None else Origin(reason="--from names no weights")
    entry = catalogue().get(wish)
    if entry is None or Path(wish).exists():
        return _trained(wish, base)
    origin = _published(entry, "--from", base)
    if fetch:
        resolve_checkpoint(wish)
    elif not cache_path(entry).is_file():
        reason = f"{origin.reason}; would be fetched, it is measured without"
        return replace(origin, reason=reason, there=False)
    return origin


def _trained(wish: str, base: str | None) -> Origin:
    """A checkpoint, or the folder of a run, with the model that it is of."""
    file = os.fspath(checkpoint_in(wish) if os.path.isdir(wish) else pinned(wish))
    if base is not None and is_hub(file):
        about = read_json(hub_folder(file) / CONFIG_FILE, file)
        classes = classes_in({"dataset_meta": about})
        return Origin(file, "--from", base, classes=classes)
    if base is not None:
        return Origin(file, "--from", base, classes=classes_of(file))
    try:
        trained = load_trained(file)
    except UserError as error:
        if not error.code.startswith("config"):
            raise
        reason = error.message.partition(";")[0]  # without advice for other commands
        message = f"does not say which model it is of ({reason}); name its config: --base"
        raise UserError("checkpoint", f"--from {wish}", message) from error
    name = Path(trained.cfg.filename or file).name
    return Origin(file, "--from", name, trained.cfg, classes=classes_in(trained.meta))


def _usual(large: bool, fetch: bool) -> Origin:
    entries = [catalogue()[name] for name in (_LARGE if large else _SMALL)]
    for entry in entries:
        if cache_path(entry).is_file() and verify(entry) is None:
            return _published(entry, _CACHED)
    first = entries[0]
    where = f"put {first.file} into {cache_path(first).parent}, or give --from none"
    if not fetch:
        return Origin(reason=f"{first.name} is not in the cache: would be fetched, or else {where}")
    try:
        download(first.name, Limits(timeout=10, tries=1))
    except UserError as error:
        if error.code != "download":
            raise
        return Origin(reason=f"{first.name} cannot be fetched; to start from it {where}")
    # The reason stands in the config, which a repeated command must write in the same words.
    return _published(first, _CACHED)


def _published(entry: Entry, reason: str, base: str | None = None) -> Origin:
    reason = f"{reason}; trained on {entry.dataset}"
    if entry.config is not None and entry.task == "segmentation":
        config = Path(entry.config)
        name = config.stem if config.parent.name == "configs" else f"openmmlab/{config.stem}"
        return Origin(entry.name, reason, name, classes=_classes_of_config(name))
    known = base or _BASES.get(entry.arch)
    if known is None:
        message = f"is a backbone ({entry.arch}) that no small config has; name one with --base"
        raise UserError("argument", f"--from {entry.name}", message)
    return Origin(entry.name, reason, known, backbone=True)


def _classes_of_config(name: str) -> tuple[str, ...]:
    """The classes that the data set of a config has without its files."""
    dataset = load_config(name).train_dataloader.dataset
    with building():
        kind: Any = DATASETS.get(dataset.type)
    return tuple((getattr(kind, "METAINFO", None) or {}).get("classes") or ())


def write_start(origin: Origin, cfg: Config, classes: Sequence[str], path: Path) -> str:
    """Write weights that a training starts from, with the heads' rows of classes that match.

    Rows of other classes are drawn as the model of ``cfg``, the config of the training, draws them.
    A file that is there is replaced.

    Returns:
        What was kept, in words.

    Raises:
        UserError: The weights do not fit the model: other channels, another network.
    """
    model: Any = build_seeded_model(cfg).model
    model.init_weights()
    found, _ = fit_parts(load_checkpoint(origin.name), model, origin.name)
    state: dict[str, Tensor] = dict(found.loaded)
    drawn = model.state_dict()
    places = {name.strip().casefold(): row for row, name in enumerate(origin.classes)}
    pairs = [
        (row, places[key])
        for row, name in enumerate(classes)
        if (key := name.strip().casefold()) in places
    ]
    kept = 0
    for name, value in found.placed.items():
        if not CLASSIFIER.search(name):
            continue
        named = len(value) == len(origin.classes)
        if named or name not in state:
            kept = len(pairs) if named else kept
            rows = drawn[name].clone()
            for ours, theirs in pairs if named else ():
                rows[ours] = value[theirs]
            state[name] = rows
    save_state_dict(state, path, force=True)
    known = f"{kept} of {len(classes)} classes keep their rows of the heads"
    if not origin.classes:
        known = "it does not name its classes, so that no row of the heads is kept"
    return f"{found.say(model)}; {known}"
