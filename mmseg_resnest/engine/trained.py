# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A trained model by one name: the folder of its run, or one of its checkpoints.

The config is the one that the checkpoint holds. It is data (:mod:`.config.saved`), and its model
must be that of the weights beside it, so that a file of a stranger takes no more memory than it
has. The Python files in a run's folder are not read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor

from ..errors import UserError
from ..evaluation.results_file import RESULTS_FILE, read_results_file
from ..io.text import error_words
from ..weights import is_address, resolve_checkpoint
from ..weights.hub import WEIGHTS_FILE, is_hub
from ..weights.load import load_record, weights_in
from .checkpoint import load_weights
from .config import parse_cfg_options
from .config.data import CONFIG_SUFFIXES
from .config.saved import read_saved_config
from .latest import latest_valid_checkpoint, written_by
from .logs import display_path
from .model import build_model
from .saving import BEST_LINK, LAST_LINK

_WITH_CONFIG = "name the config file as well, in front of the checkpoint"


@dataclass(frozen=True)
class Trained:
    """The checked config that a checkpoint holds, its file, state dict and what it says besides."""

    cfg: Config
    checkpoint: Path
    weights: Mapping[str, Tensor]
    meta: Mapping[str, Any]


def is_trained(path: object) -> bool:
    """Whether a path is a folder or a checkpoint: a file or an address, and not a config file."""
    if not isinstance(path, str | os.PathLike):
        return False
    if is_address(os.fspath(path)):
        return True
    is_config = Path(path).suffix in CONFIG_SUFFIXES
    return os.path.isdir(path) or (os.path.lexists(path) and not is_config)


def checkpoint_in(folder: str | os.PathLike[str]) -> Path:
    """The checkpoint of a run to use: the best one, or else the newest; or a published folder's.

    Raises:
        UserError: The folder holds none.
    """
    for name in (BEST_LINK, LAST_LINK):
        link = Path(folder, name)
        if link.is_file():
            target = link.resolve()
            beside = link.parent / target.name
            return beside if beside.exists() and beside.samefile(target) else target
    best = [path for path in Path(folder).glob("best_*.pth") if path.is_file()]
    if best:  # of a file system without links
        return max(best, key=lambda path: (path.stat().st_mtime, path.name))
    published = Path(folder, WEIGHTS_FILE)
    if published.is_file():
        return published
    newest, _ = latest_valid_checkpoint(Path(folder))
    if newest is None:
        message = "is a folder without a checkpoint: it holds no best.pth, last.pth or iter_*.pth; "
        message += "name the work folder of a run, or a checkpoint"
        raise UserError("not-found", os.fspath(folder), message)
    return newest


def load_trained(
    path: str | os.PathLike[str],
    cfg_options: Sequence[str] | Mapping[str, Any] = (),
    data_root: str | os.PathLike[str] | None = None,
) -> Trained:
    """Load a run's folder, or a checkpoint of one, without its config file.

    Args:
        path: The work folder of a run, of which :func:`checkpoint_in` is taken; or a checkpoint.
        cfg_options: Changes to the config, as :func:`.load_config` takes them.
        data_root: As :func:`.load_config` has it; refused, since the config has its folders.

    Raises:
        UserError: There is no checkpoint, it is damaged, holds no config or one that is not plain
            data, or the config's model is not that of the weights.
    """
    file = checkpoint_in(path) if os.path.isdir(path) else resolve_checkpoint(os.fspath(path))
    shown = display_path(file)
    if data_root is not None:
        message = f"the config in {shown} names the folders of its run's data; use --cfg-options "
        message += "data_root=DIR, the folder of the data set itself"
        raise UserError("config-conflict", "--data-root", message)
    record = load_record(file)
    meta = record.get("meta")
    text = meta.get("cfg") if isinstance(meta, Mapping) else None
    options = cfg_options if isinstance(cfg_options, Mapping) else parse_cfg_options(cfg_options)
    cfg = read_saved_config(text, Path(shown), options, _config_file(file))
    weights = weights_in(record, shown)
    _check_model(cfg, weights, shown)
    return Trained(cfg, file, weights, meta if isinstance(meta, Mapping) else {})


def _config_file(checkpoint: Path) -> str | None:
    """The config that a run has left beside its checkpoints; for its name, it is not read."""
    found = list(checkpoint.parent.glob("*.py"))
    return os.fspath(found[0]) if len(found) == 1 else None


def _check_model(cfg: Config, weights: Mapping[str, Tensor], shown: str) -> None:
    """Compare the config's model, built without memory, with the weights."""
    if not isinstance(cfg.get("model"), Mapping):
        raise UserError("config-key", f"checkpoint {shown}", "its config has no model")
    try:
        with torch.device("meta"):
            network = build_model(cfg)
    except UserError as error:
        message = f"the model of its config cannot be built: {error.text}"
        raise UserError("config-value", f"checkpoint {shown}", message) from error
    except Exception as error:  # whatever arguments that do not fit, or parts without shapes, raise
        reason = error_words(error, 200)
        message = "the model of its config cannot be compared with the weights before it takes "
        message += f"memory ({reason}); {_WITH_CONFIG}"
        raise UserError("config-value", f"checkpoint {shown}", message) from error
    load_weights(network, weights, name=shown, check_only=True)


def evaluated_folder(path: str | os.PathLike[str]) -> Path:
    """The folder with the results of what a path names: a run's folder, or one of its checkpoints.

    Raises:
        UserError: It is another file or a model on a hub, or the evaluation beside a checkpoint is
            of other weights.
    """
    given = Path(path)
    if is_hub(path):
        message = (
            "is a model on a hub, without the results of a run; name the folder that "
            "mmseg-resnest train or test wrote"
        )
        raise UserError("run", path, message)
    if given.is_dir() or not given.is_file():
        return given
    written = written_by(given)
    if written is None:
        message = "is neither the folder of a run nor a checkpoint that says of which run it is; "
        message += "name the folder that mmseg-resnest train or test wrote"
        raise UserError("argument", given, message)
    folder = given.resolve().parent
    tested = folder / "test" / RESULTS_FILE
    if tested.is_file():
        result = read_results_file(tested)
        scored = result.get("run_id"), result.get("iteration")
        if None not in scored and scored != written:
            message = f"{display_path(tested)} is of iteration {scored[1]}, not of this checkpoint "
            message += f"of iteration {written[1]}; evaluate it: mmseg-resnest test {given}"
            raise UserError("config-conflict", given, message)
    return folder
