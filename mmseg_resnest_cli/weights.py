# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Published weights: what there is, and what of it is on this machine.

    mmseg-resnest weights list
    mmseg-resnest weights info deeplab_resnest101_ade
    mmseg-resnest weights fetch resnest50 deeplab_resnest101_ade
    mmseg-resnest weights verify                     (everything in the cache)
    mmseg-resnest weights verify resnest50 some/folder/resnest101-22405ba7.pth

Downloads go to $MMSEG_RESNEST_CACHE (default: ~/.cache/mmseg_resnest). Exit code: 0; 1 when verify
finds a file corrupt or missing; 2 for any other error.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import print_table
from .package import cache_folder, catalogue

if TYPE_CHECKING:
    from mmseg_resnest.weights import Entry


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    jobs = parser.add_subparsers(dest="job", required=True, metavar="list|info|fetch|verify")
    sub = jobs.add_parser("list", help="all published weights")
    sub.add_argument("--json", action="store_true", help="everything about them, for machines")
    sub = jobs.add_parser("info", help="everything about one")
    sub.add_argument("name", metavar="NAME")
    sub.add_argument("--json", action="store_true", help="for machines")
    sub = jobs.add_parser("fetch", help="download, check, print the path")
    sub.add_argument("names", nargs="+", metavar="NAME")
    sub = jobs.add_parser("verify", help="hash files again")
    sub.add_argument("names", nargs="*", metavar="NAME|FILE", help="default: all in the cache")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    if args.job == "list":
        return show_list(args.json)
    if args.job == "info":
        return show_info(args.name, args.json)
    if args.job == "fetch":
        return fetch(args.names)
    return check(args.names)


def describe(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """What the catalogue says of a name, and where it is on this machine (or None)."""
    path = cache_folder() / values["file"]
    return {"name": name, **values, "cached": str(path) if path.is_file() else None}


def best_metric(values: Mapping[str, Any]) -> str:
    """The published number that a table has room for."""
    if not values["metrics"]:
        return "-"
    numbers = list(values["metrics"].values())[-1]
    key = next(key for key in ("mIoU", "box AP", "top1") if key in numbers)
    return f"{key} {numbers[key]:.2f}"


def show_list(as_json: bool) -> int:
    """Print the catalogue; nothing of it needs the library, whose import takes seconds."""
    entries = [describe(name, values) for name, values in catalogue().items()]
    if as_json:
        print(json.dumps(entries, indent=2))
        return 0
    rows = [("name", "data set", "published", "layout", "licence", "in cache")]
    for entry in entries:
        cached = "yes" if entry["cached"] else "no"
        row = entry["name"], entry["dataset"], best_metric(entry), entry["layout"]
        rows.append((*row, entry["licence"] or "not stated", cached))
    print_table(rows)
    return 0


def show_info(name: str, as_json: bool) -> int:
    """Print all that is known of one."""
    from mmseg_resnest.weights import cache_path, find

    entry = find(name)
    if as_json:
        print(json.dumps(describe(name, catalogue()[name]), indent=2))
        return 0
    rows = [
        ("name", entry.name),
        ("what", f"{entry.task}, {entry.arch}, {entry.dataset}"),
        ("layout", entry.layout),
        ("config", entry.config or "none: a backbone for init_cfg"),
    ]
    for protocol, numbers in entry.metrics.items():
        text = ", ".join(f"{key} {value:g}" for key, value in numbers.items())
        rows.append(("published", f"{text} ({protocol})"))
    path = cache_path(entry)
    rows += [
        ("source", entry.source),
        ("licence", entry.licence or "not stated"),
        ("file", entry.file),
        (entry.algorithm or "hash", entry.digest + ("..." if len(entry.digest) == 8 else "")),
        *(("address", url) for url in entry.urls),
        ("in cache", str(path) if path.is_file() else f"no; it would be {path}"),
    ]
    print_table(rows)
    return 0


def fetch(names: Sequence[str]) -> int:
    """Download files and print their paths."""
    from mmseg_resnest.errors import UserError
    from mmseg_resnest.weights import check_remote, download

    for name in names:
        check_remote(name)  # before the first long download
    failed: list[UserError] = []
    for name in names:
        try:
            print(download(name), flush=True)
        except UserError as error:
            failed.append(error)
    if len(failed) == 1:
        raise failed[0]
    if failed:
        subject = f"{len(failed)} of {len(names)} files"
        raise UserError("download", subject, "; ".join(error.text for error in failed))
    return 0


def check(names: Sequence[str]) -> int:
    """Hash the files again; returns 1 if one is not what the catalogue says."""
    from mmseg_resnest import weights
    from mmseg_resnest.errors import UserError

    by_file = {entry.file: entry for entry in weights.catalogue().values()}
    chosen: list[tuple[Entry, Path]] = []
    for name in names:
        path = Path(name)
        if weights.is_remote(name) or not path.is_file():
            chosen.append((weights.find(name), weights.cache_path(weights.find(name))))
        elif path.name in by_file:
            chosen.append((by_file[path.name], path))
        else:
            raise UserError("not-found", name, "the catalogue does not list a file of this name")
    if not names:
        # timm's entries share files with the published ones
        chosen = [
            (e, weights.cache_path(e)) for e in by_file.values() if weights.cache_path(e).is_file()
        ]
        if not chosen:
            print(f"{cache_folder()} holds no published weights")
    bad = 0
    for entry, path in chosen:
        line = f"missing  {path}"
        if path.is_file():
            wrong = weights.verify(entry, path)
            line = f"ok       {path} ({entry.algorithm or 'hash'} {entry.digest})"
            line = f"corrupt  {path}: {wrong}" if wrong else line
        bad += not line.startswith("ok")
        print(line, flush=True)
    if bad:
        print(f"{bad} of {len(chosen)} corrupt or missing", file=sys.stderr)
    return 1 if bad else 0
