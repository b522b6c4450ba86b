# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""One self-contained HTML file about a run, or several beside each other."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import UserError
from ..io.atomic import atomic_write
from ..io.image_files import data_uri
from ..io.text import printable
from ..version import __version__
from ..weights import catalogue
from .curves import START_FILE, NoLog, Series, find_series, find_starts, read_scalars, read_start
from .results import other_scores
from .results_file import EXAMPLE_KINDS, RESULTS_FILE, own_file, read_examples, read_results_file
from .uncertainty import heat_image

__all__ = ["EXAMPLES_FILE", "MAX_BYTES", "read_run", "write_report"]

EXAMPLES_FILE = "examples.json"
MAX_BYTES = 9_500_000  # of the file
_TEMPLATE = Path(__file__).with_name("report.html")
_MOST_SCORES = 8  # of other metrics
_MOST_POINTS = 600  # of a curve: more cannot be told apart
_MAX_CONFIG = 1 << 20  # characters
_MAX_PICTURE = 16 << 20  # bytes of an example's file
_MAX_EDGE = 4096  # of an example's picture, pixels
_PROTOCOLS = ("single scale", "multi-scale + flip")


def _results(root: Path, path: Path) -> dict[str, Any]:
    """The results in a file, or nothing where there is no file."""
    return read_results_file(own_file(root, path)) if os.path.lexists(path) else {}


def read_run(work_dir: str | os.PathLike[str]) -> dict[str, Any]:
    """Everything that a report shows of a run, ready to be written as JSON.

    Scores, curves and pictures are of one run: an evaluation of other weights than the training's
    is left out, and ``left_out`` names its folder.

    Args:
        work_dir: The work folder of a training (with its ``test`` and ``test_tta`` folders, where
            it was evaluated), or that of an evaluation alone.

    Raises:
        UserError: The folder is missing, or holds neither a log nor results; a file in it is not
            what a run writes, or is a link to outside of the folder.
    """
    folder = Path(work_dir)
    if not folder.is_dir():
        raise UserError("not-found", folder, "is not a folder; give the work folder of a run")
    train = _results(folder, folder / RESULTS_FILE)
    tests, left_out = {}, []
    if train.get("task") == "test":
        tests["test"], train = (folder, train), {}
    else:
        for place in ("test", "test_tta"):
            result = _results(folder, folder / place / RESULTS_FILE)
            if result:
                tests[place] = (folder / place, result)
    starts = find_starts(folder, train.get("run_id"))
    try:
        series = read_scalars(folder, train.get("run_id"))
    except NoLog:
        series = {}
    start = read_start(starts[-1] / START_FILE) if starts else None
    run = train.get("run_id") or (start and start.run_id)
    for place, (where, result) in list(tests.items()):
        if run and result.get("run_id", run) != run:
            left_out.append(os.fspath(where))
            del tests[place]
    if not train and not tests and not series:
        raise UserError("run", folder, "holds neither results.json nor a training log")
    evaluations = [
        _evaluation("test with augmentation" if r.get("tta") else "test", r)
        for _, r in tests.values()
        if r.get("mIoU") is not None or r.get("scores")
    ]
    if train.get("mIoU") is not None or train.get("scores"):
        note = f"best validation, iteration {train.get('iteration', '?')}"
        evaluations.append(_evaluation(note, train))
    config = str((train or next((r for _, r in tests.values()), {})).get("config") or "")
    return {
        "name": Path(config).stem or folder.name,
        "folder": os.fspath(work_dir),
        "evaluations": evaluations,
        "published": _published(config),
        "curves": _curves(series, train),
        "speed": _speed(series, train, tests),
        "config": _config_text(folder, starts),
        "environment": _environment(folder, starts),
        "examples": _examples(folder, [place for place, _ in tests.values()]),
        "left_out": left_out,
    }


def _evaluation(title: str, result: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("mIoU", "pixAcc", "mAcc", "mIoU_interval", "images", "checkpoint")
    rows = result.get("classes", ())
    # Of classes that overlap the sum is more.
    labelled = result.get("labelled_pixels") or sum(row.get("label") or 0 for row in rows)
    return {
        "title": title,
        "tta": bool(result.get("tta")),
        **{k: result[k] for k in keys if result.get(k) is not None},
        "others": dict(list(other_scores(result).items())[:_MOST_SCORES]),
        "classes": [
            {k: row.get(k) for k in ("name", "IoU", "Acc")}
            | {"share": (row.get("label") or 0) / max(labelled, 1)}
            for row in rows
        ],
        "confusion": result.get("confusion_matrix"),
    }


def _published(config: str) -> list[dict[str, Any]]:
    """The published numbers of the models of a config, by protocol."""
    stem = Path(config).stem
    return [
        {"name": entry.name, "protocol": protocol, "source": entry.source, **numbers}
        for entry in catalogue().values()
        if stem and entry.config is not None and Path(entry.config).stem == stem
        for protocol, numbers in entry.metrics.items()
        if protocol in _PROTOCOLS
    ]


def _curves(series: Mapping[str, Any], train: Mapping[str, Any]) -> dict[str, Any]:
    curves = {}
    for name in ("loss", "lr", "mIoU", "pixAcc", *list(other_scores(train))[:_MOST_SCORES]):
        points = find_series(series, name)
        if points is None and name == "lr":
            points = find_series(series, "base_lr")
        if points is None:
            continue
        steps, values = points.steps, points.values
        if len(steps) > _MOST_POINTS:  # the mean of each piece
            pieces = np.array_split(np.arange(len(steps)), _MOST_POINTS)
            values = np.array([values[p].mean() for p in pieces])
            steps = np.array([steps[p[-1]] for p in pieces])
        values = np.array([float(f"{v:.5g}") for v in values])
        good = np.isfinite(values)
        curves[name] = {"x": steps[good].tolist(), "y": values[good].tolist()}
    history = [e for e in train.get("history") or () if e.get("mIoU") is not None]
    if "mIoU" not in curves and history:
        curves["mIoU"] = {
            "x": [e["iteration"] for e in history],
            "y": [round(e["mIoU"], 3) for e in history],
        }
    return curves


def _finite(series: Mapping[str, Series], name: str) -> Series | None:
    """The points of a series that have a finite value, if there are any."""
    points = find_series(series, name)
    if points is None:
        return None
    good = np.isfinite(points.values)
    return Series(points.steps[good], points.values[good]) if good.any() else None


def _speed(
    series: Mapping[str, Any], train: Mapping[str, Any], tests: Mapping[str, Any]
) -> list[list[str]]:
    rows = []
    times, data, memory = (_finite(series, name) for name in ("time", "data_time", "memory"))
    if times is not None:
        rows.append(["seconds an iteration, median", f"{np.median(times.values):.3f}"])
    if data is not None:
        rows.append(["of these waiting for data", f"{np.median(data.values):.3f}"])
    if times is not None:
        # The last validation may come behind the last line of the training.
        known = [int(points.steps[-1]) for points in series.values()]
        known += [one["iteration"] for one in train.get("history") or ()]
        iterations = max(known)
        total = float(np.median(times.values)) * iterations
        rows.append(["iterations", f"{iterations:,}"])
        rows.append(["hours of training, without validation", f"{total / 3600:.2f}"])
    if memory is not None:
        rows.append(["GPU memory in training, largest", f"{memory.values.max():,.0f} MiB"])
    for place, (_, result) in tests.items():
        if result.get("seconds") and result.get("images"):
            what = "images/s, " + ("test with augmentation" if place == "test_tta" else "test")
            rows.append([what, f"{result['images'] / result['seconds']:.2f}"])
    return rows


def _newest(folder: Path, pattern: str) -> Path | None:
    found = sorted(folder.glob(pattern))
    return own_file(folder, found[-1]) if found else None


def _head(path: Path, most: int) -> str:
    """The first ``most`` characters of a text file."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(most)
    except OSError as error:
        raise UserError("unreadable", path, f"cannot be read ({error.strerror})") from error


def _config_text(folder: Path, starts: Sequence[Path]) -> str:
    found = [file for start in starts if os.path.lexists(file := start / "vis_data" / "config.py")]
    path = own_file(folder, found[-1]) if found else _newest(folder, "*.py")
    return "" if path is None else _head(path, _MAX_CONFIG)


def _environment(folder: Path, starts: Sequence[Path]) -> str:
    """The block that the runner writes at the head of its log."""
    found = [log for start in starts for log in sorted(start.glob("*.log"))]
    path = own_file(folder, found[-1]) if found else _newest(folder, "*/*.log")
    head = "" if path is None else _head(path, 20_000)
    match = re.search(r"System environment:\n(.*?)\n-{20,}", head, re.S)
    return match[1].strip("\n") if match else ""


def _examples(root: Path, folders: Sequence[Path]) -> dict[str, Any] | None:
    for folder in folders:
        file = folder / "examples" / EXAMPLES_FILE
        if os.path.lexists(file):
            data = read_examples(own_file(root, file))
            return data | {"folder": folder / "examples", "root": root}
    return None


@contextmanager
def _picture(root: Path, path: Path, kind: str) -> Iterator[Image.Image]:
    """An example's picture, decoded; UserError where it is not one or lies elsewhere."""
    own_file(root, path)
    try:
        if path.stat().st_size > _MAX_PICTURE:
            raise ValueError(f"it has more than {_MAX_PICTURE:,} bytes")
        with Image.open(path, formats=[kind]) as image:
            if max(image.size) > _MAX_EDGE:
                raise ValueError(f"it has more than {_MAX_EDGE} pixels along an edge")
            if kind == "PNG" and image.mode not in ("P", "L"):
                raise ValueError("it has colours, not classes")
            image.load()
            yield image
    except UserError:
        raise
    except Exception as error:  # the decoder's many kinds
        message = f"is not an example image ({error}); evaluate the run again"
        raise UserError("image", path, message) from error


def _layers(root: Path, folder: Path, entry: Mapping[str, Any], edge: int) -> dict[str, str]:
    """What is shown of an example as data URIs of at most ``edge`` pixels."""
    layers, maps = {}, {}
    with _picture(root, folder / f"{entry['file']}.jpg", "JPEG") as image:
        scale = min(1.0, edge / max(image.size))
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        small = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
        layers["image"] = data_uri(small, "JPEG", quality=80)
    for name in ("label", "pred"):
        with _picture(root, folder / f"{entry['file']}_{name}.png", "PNG") as image:
            small = image.resize(size, Image.Resampling.NEAREST)
            maps[name] = np.asarray(small)
            layers[name] = data_uri(small, "PNG", optimize=True)
    error = (maps["label"] != maps["pred"]).astype(np.uint8)
    error[maps["label"] == 255] = 2
    picture = Image.fromarray(error)
    picture.putpalette([222, 226, 230, 214, 40, 40, 40, 44, 52])
    layers["error"] = data_uri(picture, "PNG", optimize=True)
    unsure = folder / f"{entry['file']}_uncertainty.png"
    if os.path.lexists(unsure):
        with _picture(root, unsure, "PNG") as image:
            small = image.convert("L").resize(size, Image.Resampling.BILINEAR)
        layers["uncertainty"] = data_uri(heat_image(small), "PNG", optimize=True)
    return layers


def _embed(runs: Sequence[dict[str, Any]], room: int) -> None:
    """Put the examples' pictures into the runs, smaller or fewer where there is little room."""
    wanted = [run for run in runs if run["examples"]]
    for run in wanted:
        examples = run["examples"]
        root, folder = examples.pop("root"), examples.pop("folder")
        order = sorted(examples["images"], key=lambda e: min(map(EXAMPLE_KINDS.index, e["kinds"])))
        kept, used = [], 0
        for entry in order:
            layers = _layers(root, folder, entry, 480 if len(wanted) == 1 else 360)
            used += sum(len(v) for v in layers.values())
            if used > room // len(wanted):
                break
            kept.append({**entry, **layers})
        examples["images"] = kept


def write_report(
    work_dirs: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]
) -> dict[str, Any]:
    """Write the report of one or several runs.

    Args:
        work_dirs: See :func:`read_run`; the first is the one that others are compared with.
        out: The file, ``.html``; its folder is made.

    Returns:
        ``runs`` (their names), ``bytes``, ``examples`` (number of images), ``left_out`` (folders
        of evaluations of other weights than the runs').

    Raises:
        UserError: A folder holds no run, or the file cannot be written.
    """
    if not work_dirs:
        raise UserError("argument-missing", "work_dirs", "name at least one work folder")
    if Path(out).suffix.lower() not in (".html", ".htm"):
        raise UserError("argument", f"--out {out}", "must end in .html")
    runs = [read_run(folder) for folder in work_dirs]
    names = [run["name"] for run in runs]
    for run in runs:
        if names.count(run["name"]) > 1:
            run["name"] = f"{run['name']} ({Path(run['folder']).resolve().name})"
    left_out = [folder for run in runs for folder in run.pop("left_out")]
    bare = [{**run, "examples": None} for run in runs]
    room = MAX_BYTES - len(_page(bare).encode())
    _embed(runs, max(room, 0))
    page = _page(runs)
    atomic_write(out, page)
    return {
        "runs": [run["name"] for run in runs],
        "bytes": len(page.encode()),
        "examples": sum(len(run["examples"]["images"]) for run in runs if run["examples"]),
        "left_out": left_out,
    }


def _page(runs: Sequence[Mapping[str, Any]]) -> str:
    data = json.dumps({"runs": runs, "version": __version__}, allow_nan=False, default=str)
    # "</script>" within the data would end the element; "<!--" would change how it is read.
    data = data.replace("<", "\\u003c")
    title = ", ".join(str(run["name"]) for run in runs)
    safe = printable(title).replace("&", "&amp;").replace("<", "&lt;")
    template = _TEMPLATE.read_text(encoding="utf-8")
    return template.replace("{{title}}", safe).replace("{{data}}", data)
