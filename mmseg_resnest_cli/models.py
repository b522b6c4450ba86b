# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Compare the models that come with the package, to choose one.

    mmseg-resnest models
    mmseg-resnest models ade20k segformer              (with all of these words in their name)
    mmseg-resnest models --measure segnext_mscant_ade20k fcn_resnest50_ade20k
    mmseg-resnest models --measure segnext_mscant_camvid --train

Parameters are those of the whole model. FLOPs, of an image of 512x512, count a multiplication and
an addition as two: halve them to compare with papers that call multiply-adds FLOPs. "training" is
the memory of the feature maps that a training step keeps for each such image. mIoU is the published
one, single scale / multi-scale and mirrored. The licence is that of the published weights, or else,
in brackets, of the ImageNet weights that training starts from. The last columns are what this
machine has measured, by --measure or mmseg-resnest benchmark: time and peak memory of testing an
image and, with --train, of a training step.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from .console import print_table
from .options import UsageError, number
from .package import catalogue, list_configs, measured_here, model_costs, near_names

__all__ = ["TITLES", "cells", "model_rows"]

TITLES = ("model", "parameters", "FLOPs", "training", "mIoU", "licence")
_PROTOCOLS = ("single scale", "multi-scale + flip")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("words", nargs="*", metavar="WORD", help="list only names that hold these")
    parser.add_argument("--json", action="store_true", help="everything about them, for machines")
    parser.add_argument(
        "--measure", nargs="+", metavar="NAME", help="measure these here first, one after another"
    )
    parser.add_argument("--train", action="store_true", help="with --measure: training steps too")
    parser.add_argument("--device", help="with --measure: e.g. cpu or cuda:1")
    parser.add_argument(
        "--seconds", type=number(0), default=10, metavar="S",
        help="with --measure: how long each is measured (default: 10)",
    )  # fmt: skip


def model_rows() -> list[dict[str, Any]]:
    """What is known of each config's model, by data set and amount of work; without the library.

    ``name``, ``dataset`` (as in the name), ``parameters``, ``flops``, ``kept`` (bytes for each
    image in training), ``published`` (protocol to mIoU), ``weights`` (a name of the catalogue),
    ``start`` (of training), ``licence`` of the weights or else the start, and ``measured``.
    """
    costs, here = model_costs(), measured_here()
    published: dict[str, tuple[str, dict[str, Any]]] = {}
    entries = catalogue()
    for name, entry in entries.items():
        if entry["config"]:
            published.setdefault(entry["config"], (name, entry))
    rows = []
    for name, cost in costs.items():
        weights, entry = published.get(f"configs/{name}.py", ("", {}))
        start = cost["start"]
        source = entry or entries.get(start, {})
        rows.append(
            {
                "name": name,
                "dataset": _dataset(name),
                **{key: cost[key] for key in ("parameters", "flops", "kept")},
                "published": {
                    p: numbers["mIoU"] for p, numbers in entry.get("metrics", {}).items()
                },
                "weights": weights or None,
                "start": start,
                "licence": source.get("licence"),
                "measured": here.get(name, {}),
            }
        )
    return sorted(rows, key=lambda row: (row["dataset"], row["flops"]))


def _dataset(name: str) -> str:
    """The data set in a config's name."""
    if name.startswith("openmmlab/"):
        return "cityscapes" if "cityscapes" in name else "ade20k"
    return name.split("_", 2)[2]


def cells(row: Mapping[str, Any]) -> list[str]:
    """The columns :data:`TITLES` of a row of :func:`model_rows`."""
    numbers = [row["published"].get(protocol) for protocol in _PROTOCOLS]
    scores = " / ".join("-" if value is None else f"{value:.2f}" for value in numbers)
    licence = row["licence"] or ("" if row["start"] is None else "not stated")
    return [
        row["name"],
        f"{row['parameters'] / 1e6:.1f} M",
        f"{row['flops'] / 1e9:.0f} G",
        f"{row['kept'] / 2**20:,.0f} MiB",
        scores if row["published"] else "",
        licence if row["weights"] else f"({licence})" if licence else "",
    ]


def _measured(row: Mapping[str, Any]) -> list[str]:
    """Times and memory of testing and of training on this machine."""
    found = []
    for what in ("testing", "training"):
        run = row["measured"].get(what)
        if run is None:
            found.append("")
            continue
        took = 1000 * run["batch"] / run["images_per_second"]
        batch = f" (batch {run['batch']})" if what == "training" else ""
        found.append(f"{took:,.0f} ms, {run['memory_bytes'] / 2**20:,.0f} MiB{batch}")
    return found


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    if not args.measure and (args.train or args.device):
        option = "--train" if args.train else "--device"
        raise UsageError(f"{option}: goes with --measure NAME")
    failed = measure(args) if args.measure else []
    rows = [
        row
        for row in model_rows()
        if all(word in row["name"] for word in args.words)
        and (args.words or not args.measure or row["name"] in args.measure)
    ]
    if not rows:
        near = near_names(args.words, list(model_costs()))
        raise UsageError(f"no model has {' and '.join(args.words)} in its name{near}")
    if args.json:
        print(json.dumps(rows, indent=2))
    else:
        _print(rows)
    for name in failed:
        print(f"not measured: {name}", file=sys.stderr)
    return 1 if failed else 0


def _print(rows: Sequence[Mapping[str, Any]]) -> None:
    here = [_measured(row) for row in rows]
    kinds = [i for i in (0, 1) if any(row[i] for row in here)]
    titles = [*TITLES, *(("an image here", "a step here")[i] for i in kinds)]
    print_table(
        [titles, *([*cells(r), *(h[i] for i in kinds)] for r, h in zip(rows, here, strict=True))]
    )
    devices = {run["device"] for row in rows for run in row["measured"].values()}
    if devices:
        print(f"\nhere: {', '.join(sorted(devices))}")
    else:
        print("\nhow long on this machine: mmseg-resnest models --measure NAME...")


def measure(args: argparse.Namespace) -> list[str]:
    """Measure models, each in a process of its own; returns the names of those that failed."""
    known = list_configs()
    for name in args.measure:
        if name not in known:
            near = near_names([name], known)
            message = f"--measure {name}: no such model{near}; mmseg-resnest models lists them"
            raise UsageError(message)
    options = ["--shape", "512", "512", "--seconds", f"{args.seconds:g}"]
    options += ["--device", args.device] if args.device else []
    ways = [[], ["--train", "--batch-size", "2"]] if args.train else [[]]
    failed = []
    for name in args.measure:
        for way in ways:
            words = ["benchmark", name, *options, *way]
            print(f"mmseg-resnest {shlex.join(words)}", file=sys.stderr, flush=True)
            command = [sys.executable, "-m", "mmseg_resnest", *words]
            done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
            if done.returncode and name not in failed:
                failed.append(name)
    return failed
