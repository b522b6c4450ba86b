# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The command ``mmseg-resnest``: the table of its subcommands, and the way to each.

A subcommand is a module of this package with ``add_arguments(parser)`` and ``run(args)``. Modules
import the library inside ``run``, so that help and completion do not wait for it.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import NoReturn

from .options import ArgumentParser, UsageError
from .package import package_folder, version
from .process import run_and_exit
from .startup import prepare_process

__all__ = ["COMMANDS", "SCRIPTS", "main", "parser_of"]

PROGRAM = "mmseg-resnest"
#: Title of a group -> its subcommands, each with what it does.
GROUPS: dict[str, dict[str, str]] = {
    "Start": {
        "fit": "From a folder of images and labels to a trained model",
        "demo": "Train, evaluate and draw on the built-in data",
        "configs": "List the configs that come with the package, or copy them",
        "models": "Compare the models: size, work, memory, time here, published mIoU, licence",
    },
    "Data": {
        "prepare-data": "Bring a data set into the layout that the configs read",
        "check-data": "Check every file of a config's data as training loads it",
        "browse-data": "Show images and labels after the config's augmentation",
        "label-errors": "Rank images and regions by how likely their labels are wrong",
    },
    "Train and evaluate": {
        "train": "Train a model",
        "dist-train": "Train on several GPUs or in several processes",
        "slurm-train": "Train on a Slurm cluster",
        "test": "Evaluate a checkpoint on the config's test split",
        "dist-test": "Evaluate on several GPUs or in several processes",
        "reproduce": "Evaluate published weights by their published protocol",
        "compare-runs": "Compare two evaluated runs class by class",
        "report": "Write a self-contained HTML page about one or several runs",
        "classify": "Train, evaluate and use classifiers: ImageNet, or images of your own",
        "detect": "Train and evaluate detectors: COCO, or data of your own in its form",
        "benchmark": "Measure parameters, FLOPs, memory and speed of a config's model",
    },
    "Use a model": {
        "predict": "Segment images, videos and streams",
        "demo-app": "Try models on images, on a web page of this machine",
        "export-onnx": "Export a model to ONNX, OpenVINO, torch.export or TorchScript",
        "publish-model": "Pack a trained model into a folder for a model hub",
        "serve": "Serve a model over HTTP",
    },
    "Weights and configs": {
        "weights": "List, fetch and verify published weights",
        "convert-checkpoint": "Turn a checkpoint of any known layout into another one",
        "print-config": "Print a config with everything it inherits",
        "completion": "Print a completion script for a shell",
    },
}
COMMANDS = {name: about for group in GROUPS.values() for name, about in group.items()}
#: Subcommands that are shell scripts of the folder tools/.
SCRIPTS = {
    "dist-train": "dist_train.sh",
    "slurm-train": "slurm_train.sh",
    "dist-test": "dist_test.sh",
}
_WITHOUT_LIBRARY = {"configs", "completion", "models", "weights"}
_OF_THE_REPOSITORY = {"make-model-zoo": "Write the model zoo's pages from the catalogue"}


def usage() -> str:
    """The list of commands."""
    width = max(map(len, COMMANDS))
    lines = [
        f"usage: {PROGRAM} COMMAND [arguments]",
        "",
        "ResNeSt for semantic segmentation: the published models, recipes and protocol.",
    ]
    for title, group in GROUPS.items():
        lines += ["", title, *(f"  {name:<{width}}  {about}" for name, about in group.items())]
    return "\n".join(
        [
            *lines,
            "",
            f"{PROGRAM} COMMAND --help     arguments and examples of one",
            f"{PROGRAM} completion bash    completion of commands and options: bash, zsh, tcsh",
            f"{PROGRAM} --version",
            "",
            f"First steps: {PROGRAM} demo",
        ]
    )


def _module(name: str) -> ModuleType:
    return importlib.import_module(f".{name.replace('-', '_')}", __package__)


def parser_of(name: str) -> ArgumentParser:
    """The argument parser of a subcommand that is not a shell script."""
    module = _module(name)
    parser = ArgumentParser(prog=f"{PROGRAM} {name}", description=module.__doc__)
    module.add_arguments(parser)
    return parser


def _run(argv: Sequence[str]) -> int:
    """Run what the arguments say; returns the exit code."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if argv[0] in ("--version", "-V"):
        print(f"{PROGRAM} {version()}")
        return 0
    name, rest = argv[0].replace("_", "-"), list(argv[1:])
    if name in SCRIPTS:
        script = package_folder() / ".mim" / "tools" / SCRIPTS[name]
        environment = {"PYTHON": sys.executable, **os.environ}
        os.execvpe("bash", ["bash", str(script), *rest], environment)
    if name not in {**COMMANDS, **_OF_THE_REPOSITORY}:
        near = difflib.get_close_matches(name, COMMANDS, n=2, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise UsageError(f"there is no command {argv[0]}{hint} (see: {PROGRAM} --help)")
    args = parser_of(name).parse_args(rest)
    if name not in _WITHOUT_LIBRARY:
        prepare_process()
    code: int = _module(name).run(args)
    return code


def main(command: str | None = None, argv: Sequence[str] | None = None) -> NoReturn:
    """Run a command line and exit with its code.

    Args:
        command: The subcommand; None takes it from the arguments.
        argv: The arguments; None are those of the process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    run_and_exit(functools.partial(_run, words if command is None else [command, *words]))
