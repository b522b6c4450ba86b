# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The argument parser of every command, and the arguments that several commands share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

__all__ = [
    "ArgumentParser",
    "UsageError",
    "add_config_options",
    "add_device_option",
    "add_engine_options",
    "add_launcher_option",
    "add_service_options",
    "add_testing_options",
    "add_training_options",
    "add_trust_option",
    "band_numbers",
    "engine_choice",
    "image_size",
    "number",
    "run_options",
    "whole",
]

#: The largest seed of NumPy's generators.
MOST_SEED = 2**32 - 1
_N = TypeVar("_N", int, float)


class UsageError(Exception):
    """A mistake on the command line; printed as one ``error:`` line, exit code 2."""


class ArgumentParser(argparse.ArgumentParser):
    """An argument parser that reports mistakes as :class:`UsageError`."""

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**kwargs)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's; an argument that may be left out is found behind options as well."""
        words = sys.argv[1:] if args is None else list(args)
        if "" in words:
            before = words[words.index("") - 1] if words.index("") else ""
            what = f"argument {before}" if before.startswith("-") else "an argument"
            self.error(f"{what}: is empty; leave it out, or name something")
        if any(action.nargs == "?" and not action.option_strings for action in self._actions):
            return self.parse_intermixed_args(args, namespace)
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Raise the message as UsageError."""
        raise UsageError(f"{message} (see: {self.prog} --help)")


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that change a config: ``--cfg-options`` and ``--data-root``."""
    parser.add_argument(
        "--cfg-options",
        action="extend",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="change config keys, e.g. train_cfg.max_iters=1000 model.backbone.norm_eval=True; "
        "lists as a,b or [a,b], dictionaries as {key: value} or dict(key=value), text with commas "
        "as KEY=\"'a, b'\"; +KEY=VALUE adds a key that neither the config nor its class knows; "
        "data_root=DIR makes DIR the root of every data set",
    )
    parser.add_argument(
        "--data-root",
        metavar="DIR",
        help="the folder that holds camvid/, ade20k/, ... (default: $MMSEG_RESNEST_DATA or data)",
    )


def add_device_option(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add ``--device``."""
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: the GPU if there is one)")


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--engine``, ``--compile`` and ``--precision``."""
    engine = parser.add_mutually_exclusive_group()
    engine.add_argument(
        "--engine",
        choices=["torch", "compile", "onnxruntime", "openvino", "auto"],
        default="torch",
        help="what computes the network; it is exported by itself, once for a checkpoint, and its "
        "labels are compared with torch's. auto: the fastest of torch, onnxruntime and openvino "
        "here (default: torch)",
    )
    engine.add_argument(
        "--compile",
        action="store_const",
        const="compile",
        dest="engine",
        help="the same as --engine compile: torch.compile, which takes minutes at the first image",
    )
    parser.add_argument(
        "--precision",
        choices=["float32", "bf16", "int8"],
        default="float32",
        help="of the network's products, where the processor has units for it; says how many "
        "labels change (bf16: torch, compile, openvino; int8: onnxruntime, openvino)",
    )


def engine_choice(args: argparse.Namespace, images: Sequence[str] = ()) -> Any:
    """What the arguments of :func:`add_engine_options` say; ``images`` to calibrate int8 on.

    Raises UserError where it does not fit the machine or a package is missing.
    """
    from mmseg_resnest.runtimes import Choice

    return Choice(args.engine, args.precision, tuple(images))


def add_service_options(parser: argparse.ArgumentParser, port: int) -> None:
    """Add ``--host`` and ``--port``, with its default, of commands that listen."""
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on (default: this machine only)",
    )
    parser.add_argument(
        "--port",
        type=whole(0, 65535),
        default=port,
        metavar="N",
        help=f"default: {port}; 0: a free one",
    )


def add_launcher_option(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add ``--launcher`` and the ``--local_rank`` that some launchers pass."""
    parser.add_argument(
        "--launcher",
        choices=["none", "pytorch", "slurm"],
        default="none",
        help="how the processes were started (pytorch: torchrun)",
    )
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)


def add_training_options(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add what decides the config of a training, beside the config options and the launcher."""
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="CHECKPOINT",
        help="continue from a checkpoint; without one, or with auto, from the newest of the run "
        "that was written last (put the option after the config)",
    )
    parser.add_argument(
        "--allow-changes",
        nargs="+",
        default=[],
        metavar="KEY",
        help="resuming: config keys that may differ from the run's, e.g. train_cfg param_scheduler "
        "to train longer; a key stands for those below it; also precision (--amp) and fused "
        "(numerics.fused)",
    )
    parser.add_argument("--amp", action="store_true", help="train in mixed precision")
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile the backbone's part of a step (torch.compile; config key compile), which "
        "takes minutes at the first one",
    )
    parser.add_argument(
        "--auto-scale-lr", action="store_true", help="scale the learning rate with the total batch"
    )
    parser.add_argument(
        "--seed", type=whole(0, MOST_SEED), help="random seed (default: the config's)"
    )
    parser.add_argument(
        "--epochs",
        type=number(0),
        metavar="N",
        help="passes over the training images; schedules and the intervals of validation and "
        "saving move with the length",
    )
    parser.add_argument(
        "--batch-size", type=whole(1), metavar="N", help="images of a step, over all processes"
    )
    parser.add_argument(
        "--lr", type=number(0), help="learning rate; those of schedules move with it"
    )
    parser.add_argument(
        "--image-size",
        metavar="WxH",
        help="of the training crops, e.g. 512x384, or 512 for a square; the sizes that images are "
        "resized to move with it",
    )
    parser.add_argument(
        "--teacher",
        metavar="NAME",
        help="learn from this model's scores as well: the work folder of a run, a checkpoint, a "
        "published name or folder (default: the config's distillation.teacher)",
    )
    parser.add_argument(
        "--log-to",
        nargs="+",
        default=[],
        choices=["tensorboard", "wandb", "mlflow"],
        metavar="SERVICE",
        help="show the curves there as well, while training: tensorboard, wandb, mlflow (put the "
        "option after the config)",
    )


def run_options(args: argparse.Namespace) -> Any:
    """What the arguments of :func:`add_training_options` change in the run of a config."""
    from mmseg_resnest.engine.run_options import RunOptions

    return RunOptions(args.epochs, args.batch_size, args.lr, image_size(args.image_size))


def image_size(text: str | None) -> tuple[int, int] | None:
    """Width and height of the value of ``--image-size``; None without one."""
    if text is None:
        return None
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise UsageError(f"--image-size {text}: must be WIDTHxHEIGHT or one number")
    return int(sides[0]), int(sides[-1])


def whole(least: int, most: int = 10**9) -> Callable[[str], int]:
    """The type of an argument that is a whole number in a range."""
    return _in_range(int, "a whole number", least, most)


def number(least: float, most: float = 1e30) -> Callable[[str], float]:
    """The type of an argument that is a number in a range."""
    return _in_range(float, "a number", least, most)


def _in_range(kind: Callable[[str], _N], what: str, least: _N, most: _N) -> Callable[[str], _N]:
    def convert(text: str) -> _N:
        try:
            if least <= (value := kind(text)) <= most:  # nan is in no range
                return value
        except ValueError:
            pass
        wanted = f"{what} from {least:,} to {most:,}"
        raise argparse.ArgumentTypeError(f"must be {wanted}, not {text!r}")

    return convert


def band_numbers(text: str) -> tuple[int, ...]:
    """The numbers of bands, from 1, in the value of ``--bands``: ``4,3,2``."""
    try:
        numbers = tuple(map(int, text.split(",")))
    except ValueError:
        message = f"must be numbers with commas, e.g. 3,2,1, not {text!r}"
        raise argparse.ArgumentTypeError(message) from None
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError("bands are numbered from 1")
    return numbers


def add_testing_options(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add what decides the config of an evaluation, beside the config options and the launcher."""
    parser.add_argument(
        "--tta", action="store_true", help="with the config's test-time augmentation"
    )
    parser.add_argument(
        "--format",
        choices=["cityscapes", "ade20k", "voc"],
        help="write into --out what this benchmark's server takes, check it and zip it; nothing "
        "is scored, so the images need no labels",
    )
    parser.add_argument(
        "--official",
        action="store_true",
        help="Cityscapes: run the official evaluation as well (IoU and iIoU)",
    )


def add_trust_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--trust``, for commands that load exported files."""
    parser.add_argument(
        "--trust",
        action="store_true",
        help="load .pt2 and .torchscript files, which are programs that run with your rights",
    )
