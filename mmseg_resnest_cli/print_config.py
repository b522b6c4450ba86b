# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Print what a config became: everything it inherits, filled in and checked.

    mmseg-resnest print-config configs/fcn_resnest50_ade20k.py
    mmseg-resnest print-config my_experiment.py --diff configs/fcn_resnest50_ade20k.py
    mmseg-resnest print-config CONFIG --cfg-options optim_wrapper.optimizer.lr=0.02
    mmseg-resnest print-config CONFIG --resolved --amp --diff CONFIG

The output without --diff is a config itself: redirect it to a .py file to keep it. With --resolved
it is what the runner gets: the config after the options of train or test, on this machine.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from typing import TYPE_CHECKING, Any

from .options import (
    UsageError,
    add_config_options,
    add_device_option,
    add_launcher_option,
    add_testing_options,
    add_training_options,
    run_options,
)
from .startup import use_device

if TYPE_CHECKING:
    from mmengine.config import Config

_TRAINING = (
    *("resume", "allow_changes", "amp", "compile", "auto_scale_lr", "seed", "log_to"),
    *("epochs", "batch_size", "lr", "image_size", "teacher", "device"),
)
_TESTING = ("tta", "format", "official")
_BOTH = ("work_dir", "launcher")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("config", help="config file")
    add_config_options(parser)
    parser.add_argument(
        "--diff",
        metavar="BASE",
        help="print only what differs from this config (as it is, without --cfg-options)",
    )
    parser.add_argument(
        "--resolved",
        nargs="?",
        const="train",
        choices=["train", "test"],
        help="print what the runner of train (the default) or test gets, with the options of that "
        "command (put the option after the config); nothing is written",
    )
    both = parser.add_argument_group("with --resolved")
    both.add_argument("--work-dir", metavar="DIR", help="as in train and test")
    add_launcher_option(both)
    training = parser.add_argument_group("with --resolved train, as there")
    add_training_options(training)
    add_device_option(training)
    add_testing_options(parser.add_argument_group("with --resolved test, as there"))
    parser.set_defaults(defaults={n: parser.get_default(n) for n in _TRAINING + _TESTING + _BOTH})


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    from pygments import highlight
    from pygments.formatters import TerminalFormatter
    from pygments.lexers import DiffLexer, PythonLexer

    from mmseg_resnest.engine.config import config_as_text, load_config

    _check_options(args)
    cfg: Config | None = load_config(args.config, args.cfg_options, args.data_root)
    if args.resolved:
        cfg = _resolve(cfg, args)
    if cfg is None:  # the first process of a launcher prints
        return 0
    text = config_as_text(cfg)
    lexer = PythonLexer()
    if args.diff is not None:
        base = config_as_text(load_config(args.diff, data_root=args.data_root))
        lines = difflib.unified_diff(
            base.splitlines(), text.splitlines(), args.diff, args.config, lineterm=""
        )
        text, lexer = "\n".join(lines), DiffLexer()
        if not text:
            print(f"no difference from {args.diff}", file=sys.stderr)
            return 0
    if sys.stdout.isatty() and "NO_COLOR" not in os.environ:
        text = highlight(text, lexer, TerminalFormatter())
    print(text.rstrip("\n"))
    return 0


def _check_options(args: argparse.Namespace) -> None:
    """Refuse options that would have no effect."""
    taken = {"train": _TRAINING + _BOTH, "test": _TESTING + _BOTH, None: ()}[args.resolved]
    for name, default in args.defaults.items():
        if name not in taken and getattr(args, name) != default:
            command = "train" if name not in _TESTING else "test"
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"{option}: needs --resolved {command} (see: print-config --help)")


def _resolve(cfg: Any, args: argparse.Namespace) -> Any:
    """The config that the runner gets; None on other processes than the first."""
    from mmseg_resnest.engine.launch import Machine
    from mmseg_resnest.engine.resolve import TestingOptions, TrainingOptions
    from mmseg_resnest.engine.run_folders import training_folder
    from mmseg_resnest.engine.testing import resolve_testing
    from mmseg_resnest.engine.training import resolve_training

    use_device(args.device, args.launcher)
    machine = Machine.here(args.launcher)
    if machine.rank:
        return None
    if args.resolved == "test":
        return resolve_testing(
            cfg,
            TestingOptions(args.work_dir, args.tta, args.official, args.format, args.launcher),
            machine,
        ).cfg
    options = TrainingOptions(
        work_dir=training_folder(cfg, args.work_dir, args.resume, machine.world_size),
        seed=args.seed,
        amp=args.amp,
        auto_scale_lr=args.auto_scale_lr,
        launcher=args.launcher,
        log_to=tuple(args.log_to),
        run=run_options(args),
        teacher=args.teacher,
        compiled=args.compile,
        allow_changes=tuple(args.allow_changes),
    )
    return resolve_training(cfg, options, machine, args.resume)[0].cfg
