# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""How commands name a model: a config with its checkpoint, or one name that stands for both."""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from mmengine.config import Config

    from mmseg_resnest.inference import Segmentor

__all__ = ["Named", "add_model", "model_rows", "name_model", "open_model", "weights_file", "words"]


class Named(NamedTuple):
    """A config and its weights. ``weights``: what the checkpoint holds, where it has been read."""

    cfg: Config
    checkpoint: str | Path | None
    weights: Any = None


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the positional arguments ``config`` and ``checkpoint``, which may be left out."""
    parser.add_argument(
        "config",
        metavar="MODEL",
        help="a config file, with its checkpoint behind it; or alone the work folder of a run "
        "(its best checkpoint, or else its newest), a checkpoint of a run, an exported model, a "
        "published folder, one on a hub (hf://OWNER/NAME), or a name of mmseg-resnest weights list",
    )
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        nargs="?",
        help="with a config file: weights of the whole model, in any known layout: a file, an "
        "address, hf://OWNER/NAME, the work folder of a run, a published folder, or a name of "
        "mmseg-resnest weights list",
    )


def words(args: argparse.Namespace) -> str:
    """The model as the command line names it, to repeat in a command."""
    return shlex.join(filter(None, (args.config, args.checkpoint)))


def model_rows(args: argparse.Namespace) -> list[tuple[str, str]]:
    """Rows of a command's header that say which model was named."""
    if args.checkpoint is None:
        return [("from", args.config)]
    return [("config", args.config), ("checkpoint", args.checkpoint)]


def name_model(args: argparse.Namespace, refusal: str, weights: bool = True) -> Named:
    """The config and the weights that the arguments name.

    A line says which checkpoint of a run's folder is taken. ``refusal`` says why the command cannot
    take an exported file or a published folder. Without ``weights`` a config may stand alone.
    """
    from mmseg_resnest.errors import UserError

    named = _find(args, weights)
    if named is None:
        raise UserError("argument", args.config, refusal)
    return named


def open_model(args: argparse.Namespace, device: str | None = None) -> Segmentor:
    """Load the model that the arguments name; see :func:`name_model` for what is printed."""
    from mmseg_resnest.errors import UserError
    from mmseg_resnest.inference import load_segmentor
    from mmseg_resnest.inference.segmentor import load_config_model

    named = _find(args)
    if named is not None:
        return load_config_model(named.cfg, named.checkpoint, device, weights=named.weights)
    for option in ("cfg_options", "data_root"):
        if getattr(args, option, None):
            message = f"{args.config} is a model without a config file, of which nothing is changed"
            raise UserError("config-conflict", f"--{option.replace('_', '-')}", message)
    return load_segmentor(args.config, device=device, trust=getattr(args, "trust", False))


def weights_file(args: argparse.Namespace) -> str | Path:
    """The checkpoint that :func:`open_model` takes, as far as the arguments name one."""
    from mmseg_resnest.engine.trained import checkpoint_in
    from mmseg_resnest.inference.published import is_published

    named: str = args.checkpoint or args.config
    return checkpoint_in(named) if os.path.isdir(named) and not is_published(named) else named


def _find(args: argparse.Namespace, weights: bool = True) -> Named | None:
    """None: an exported file or a published folder."""
    from mmseg_resnest.engine.config import find_config, load_config, similar_configs
    from mmseg_resnest.engine.logs import display_path
    from mmseg_resnest.engine.trained import is_trained, load_trained
    from mmseg_resnest.errors import UserError
    from mmseg_resnest.inference.load import checkpoint_file, published_config
    from mmseg_resnest.inference.published import is_published
    from mmseg_resnest.inference.runtimes import is_exported
    from mmseg_resnest.weights import catalogue, did_you_mean

    config, checkpoint = args.config, args.checkpoint
    if checkpoint is not None:
        cfg = load_config(config, args.cfg_options, args.data_root)
        file = checkpoint_file(checkpoint)
        if os.path.isdir(checkpoint):
            _say(display_path(file), checkpoint)
        return Named(cfg, os.fspath(file))
    if is_published(config) or is_exported(config):
        return None
    if is_trained(config):
        found = load_trained(config, args.cfg_options, args.data_root)
        if os.path.isdir(config):
            _say(display_path(found.checkpoint), config)
        return Named(found.cfg, found.checkpoint, found.weights)
    if config in catalogue():
        file = published_config(config)
        return Named(load_config(file, args.cfg_options, args.data_root), config)
    if not weights:
        return Named(load_config(config, args.cfg_options, args.data_root), None)
    if find_config(config).exists():
        folder = os.path.dirname(config) or "."
        other = f"the folder {folder}" if is_published(folder) else "the work folder of a run"
        message = f"{config} needs its weights: name a checkpoint behind it, or instead of it "
        message += other
        raise UserError("argument-missing", "CHECKPOINT", message)
    message = "is neither a config nor a model: there is no such file, folder or published name"
    near = did_you_mean(config) or similar_configs(Path(config))
    raise UserError("not-found", config, f"{message}{near}")


def _say(checkpoint: str, folder: str) -> None:
    rank = os.environ.get("RANK") or os.environ.get("SLURM_PROCID", "0")
    if rank != "0":  # another process of a launcher says it
        return
    name = os.path.basename(checkpoint)
    kind = "best checkpoint" if name.startswith("best") else "newest checkpoint"
    kind = kind if name.endswith(".pth") else "published weights"
    print(f"taken       {checkpoint}, the {kind} in {folder}", flush=True)
