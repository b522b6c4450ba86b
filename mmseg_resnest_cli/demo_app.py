# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A web page on this machine to try models on images: drop one, see its classes.

    mmseg-resnest demo-app configs/fcn_resnest14_camvid.py work_dirs/.../best.pth
    mmseg-resnest demo-app work_dirs/my_run model.onnx
    mmseg-resnest demo-app fcn_resnest50_ade deeplab_resnest101_ade
    mmseg-resnest demo-app deeplab_resnest50_ade --port 8080

MODEL is a name of mmseg-resnest weights list, the work folder of a run, a checkpoint of one, an
exported model, a published folder, or a config file followed by its checkpoint. The page can be
reached from this machine only, unless --host says otherwise. Images are not kept.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from .options import add_device_option, add_service_options, add_trust_option, whole


def find_choices(
    arguments: Sequence[str], device: str | None, trust: bool = False
) -> dict[str, Any]:
    """Name -> what loads the model, of names and of configs with checkpoints behind them."""
    from mmseg_resnest.engine.config.data import CONFIG_SUFFIXES
    from mmseg_resnest.errors import UserError
    from mmseg_resnest.inference import load_segmentor

    loaders: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        first = rest.pop(0)
        checkpoint = None
        name = first
        if first.endswith(CONFIG_SUFFIXES):
            if not rest or rest[0].endswith(CONFIG_SUFFIXES):
                raise UserError("argument-missing", first, "name its checkpoint after the config")
            checkpoint = rest.pop(0)
            name = f"{Path(first).stem} ({Path(checkpoint).name})"
            name = f"{first} ({checkpoint})" if name in loaders else name
        if name in loaders:
            raise UserError("argument", name, "is named twice")
        loaders[name] = partial(load_segmentor, first, checkpoint, device, trust=trust)
    return loaders


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="a run, a checkpoint, a name, ..., or CONFIG CHECKPOINT",
    )
    add_service_options(parser, 7860)
    add_trust_option(parser)
    add_device_option(parser)
    parser.add_argument(
        "--max-mib",
        type=whole(1, 65536),
        default=20,
        metavar="N",
        help="largest image file, MiB (default: 20)",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    from mmseg_resnest.engine.hooks import print_header
    from mmseg_resnest.io.packages import needs_extra

    with needs_extra("app"):
        from mmseg_resnest.apps.demo import Choice, Limits, run_app
        from mmseg_resnest.apps.demo.server import is_local

    loaders = find_choices(args.models, args.device, args.trust)
    choices = [Choice(name, load) for name, load in loaders.items()]
    choices[0].model()  # so that errors in its files come now

    def ready(address: str, server: object) -> None:
        rows = [("models", choices[0].name), *(("", c.name) for c in choices[1:])]
        print_header([*rows, ("page", address), ("stop", "Ctrl-C")])
        if not is_local(args.host):
            print(
                f"warning: --host {args.host} lets everyone who reaches this machine use the page, "
                "without a password\n",
                flush=True,
            )

    run_app(choices, args.host, args.port, Limits(bytes=args.max_mib << 20), ready)
    return 0
