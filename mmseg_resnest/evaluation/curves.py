# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The curves of a training run, read from its log and drawn to a PNG."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from ..io.atomic import atomic_open
from ..io.json_files import parse_json, read_json
from .results import SCORES, score
from .results_file import own_file

__all__ = [
    "START_FILE", "NoLog", "Series", "StartNote", "find_series", "find_starts", "plot_curves",
    "read_scalars", "read_start",
]  # fmt: skip

#: In the folder of each start of a training (``<work_dir>/<timestamp>``): which run it is of.
START_FILE = "run.json"

#: Of a log; a line has some hundred bytes.
MAX_LOG_BYTES = 1 << 30
_MAX_LINE = 1 << 20
_MAX_STEP = 1 << 53
_logger = logging.getLogger(__name__)
_INK, _FAINT = "#202124", "#d7dadd"
_COLOURS = {"mIoU": "#c2410c", "pixAcc": "#1d4ed8", "mAcc": "#7c8798", "loss": "#1d4ed8"}
_OTHER_COLOURS = ("#0f766e", "#9333ea", "#ca8a04", "#db2777", "#65a30d")


class NoLog(UserError):
    """A folder holds no line of a training log."""


class Series(NamedTuple):
    """One logged quantity: (n,) iterations, ascending, and (n,) values, NaN where it was NaN."""

    steps: NDArray[np.int64]
    values: NDArray[np.float64]


class StartNote(NamedTuple):
    """What ``run.json`` says: the identity of the run, and the launch that started it."""

    run_id: str
    launch: str


def read_start(path: Path) -> StartNote | None:
    """Read a ``run.json``; None where it is missing, or holds something else."""
    try:
        note = read_json(path, str(path), _MAX_LINE) if path.is_file() else None
    except UserError:
        return None
    run_id, launch = (note.get(k) if isinstance(note, dict) else None for k in StartNote._fields)
    if not (isinstance(run_id, str) and isinstance(launch, str)):
        return None
    return StartNote(run_id, launch)


def find_starts(work_dir: Path, run_id: str | None = None) -> list[Path]:
    """The folders of a run's starts (``<work_dir>/<timestamp>``), in the order of time.

    Of the run with this identity; None: that of the newest start that says it (``run.json``). All
    where none does.
    """
    # Timestamps are YYYYMMDD_hhmmss, so the order of names is that of time.
    starts = [log.parent.parent for log in sorted(work_dir.glob("*/vis_data/scalars.json"))]
    notes = [read_start(start / START_FILE) for start in starts]
    runs = [None if note is None else note.run_id for note in notes]
    wanted = run_id or next((run for run in reversed(runs) if run is not None), None)
    return [start for start, run in zip(starts, runs, strict=True) if run == wanted]


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """``step`` and numbers of each line, but for lines that a killed run cut off."""
    lines, left_out = [], 0
    try:
        if path.stat().st_size > MAX_LOG_BYTES:
            raise UserError("too-large", path, f"is larger than {MAX_LOG_BYTES:,} bytes")
        with path.open("rb") as file:
            for line in file:
                if not line.strip():
                    continue
                entry = _entry(line)
                if entry is None:
                    left_out += 1
                else:
                    lines.append(entry)
    except OSError as error:
        raise UserError("unreadable", path, f"cannot be read ({error.strerror})") from error
    if left_out:
        _logger.warning("%s: lines left out that are not whole lines of a log: %d", path, left_out)
    return lines


def _entry(line: bytes) -> dict[str, Any] | None:
    """What a line of a log says, or None."""
    if len(line) > _MAX_LINE:
        return None
    try:
        entry = parse_json(line, "line")
    except UserError:
        return None
    step = _number(entry.get("step")) if isinstance(entry, dict) else None
    if step is None or not 0 <= step <= _MAX_STEP:
        return None
    numbers = {name: _number(value) for name, value in entry.items()}
    return {**{k: v for k, v in numbers.items() if v is not None}, "step": int(step)}


def _number(value: Any) -> float | None:
    """A value as a float, NaN and infinity among them; None if it is not a number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def read_scalars(work_dir: str | os.PathLike[str], run_id: str | None = None) -> dict[str, Series]:
    """Read what MMEngine's LoggerHook wrote into a work folder.

    Every start of a run writes ``<work_dir>/<timestamp>/vis_data/scalars.json``. Starts are
    joined in the order of time: from the first training step that a later one logged, it takes
    the place of the earlier ones, whose steps from there on were lost to the restart.

    Args:
        work_dir: The work folder of the run, or one of its timestamp folders.
        run_id: Of which run, see :func:`find_starts`.

    Returns:
        Series by name: ``loss``, ``lr``, ``mIoU`` ... as they were logged, over the iterations.
        ``time`` and ``data_time`` are the seconds of an iteration; those of a validation's images
        are left out.

    Raises:
        UserError: The folder does not exist or holds no such log; or the log is a link to outside
            of the folder.
    """
    folder = Path(work_dir)
    if not folder.is_dir():
        raise UserError("not-found", folder, "is not a folder; give the work folder of a run")
    places = find_starts(folder, run_id) or [folder]
    logs = [path for one in places if os.path.lexists(path := one / "vis_data" / "scalars.json")]
    starts = [lines for log in logs if (lines := _read_lines(own_file(folder, log)))]
    if not starts:
        raise NoLog("run", folder, "holds no training log (<timestamp>/vis_data/scalars.json)")

    # A line of the training loop has "iter" (or a loss).
    def is_training(entry: dict[str, Any]) -> bool:
        return "iter" in entry or "loss" in entry

    def train_steps(lines: list[dict[str, Any]]) -> list[int]:
        return [entry["step"] for entry in lines if is_training(entry)]

    trained = any(train_steps(lines) for lines in starts)
    if trained:
        # Starts that only evaluated log at step 0: not a point of the curve.
        starts = [lines for lines in starts if train_steps(lines)]

    merged: dict[str, dict[int, float]] = {}
    for lines in starts:
        first = min(train_steps(lines), default=None)
        if first is not None:
            for points in merged.values():
                for step in [s for s in points if s >= first]:
                    del points[step]
        for entry in lines:
            left_out = ["step", "iter", "epoch"]
            if trained and not is_training(entry):
                left_out += ["time", "data_time"]  # a validation's, of an image
            for name, value in entry.items():
                if name.rsplit("/", 1)[-1] not in left_out:
                    merged.setdefault(name, {})[entry["step"]] = value
    series = {}
    for name, points in merged.items():
        if points:
            steps, values = zip(*sorted(points.items()), strict=True)
            series[name] = Series(np.array(steps, np.int64), np.array(values, np.float64))
    return series


def find_series(series: Mapping[str, Series], name: str) -> Series | None:
    """The series ``name``, or the one logged under a prefix, as ``val/mIoU``."""
    if name in series:
        return series[name]
    return next((s for key, s in series.items() if key.rsplit("/", 1)[-1] == name), None)


def _smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Centred running mean over about a twentieth of the points, leaving NaN out."""
    half = max(1, len(values) // 40)
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    low = np.maximum(np.arange(len(values)) - half, 0)
    high = np.minimum(np.arange(len(values)) + half + 1, len(values))
    number = counts[high] - counts[low]
    return np.where(number > 0, (sums[high] - sums[low]) / np.maximum(number, 1), np.nan)


def plot_curves(
    work_dir_or_series: str | os.PathLike[str] | Mapping[str, Series],
    out_png: str | os.PathLike[str],
    title: str | None = None,
    scores: Sequence[str] = SCORES,
) -> Path:
    """Draw loss, learning rate and validation scores over the iterations.

    Args:
        work_dir_or_series: The work folder of a run, or what :func:`read_scalars` returned.
        out_png: The picture to write; its folder is made.
        title: Written above the curves.
        scores: Names of the validation scores to draw. Those in percent have a panel of their own.

    Returns:
        The path of the picture.

    Raises:
        UserError: There is no log, nothing in it to draw, or the picture cannot be written.
    """
    # Here and not above: training need not load it. The objects of matplotlib's own API leave
    # pyplot's global figures and backend alone, so this works without a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    if isinstance(work_dir_or_series, Mapping):
        series: Mapping[str, Series] = work_dir_or_series
    else:
        series = read_scalars(work_dir_or_series)
    loss = find_series(series, "loss")
    rate = find_series(series, "lr") or find_series(series, "base_lr")
    drawn = {name: s for name in scores if (s := find_series(series, name)) is not None}
    percent = {name: s for name, s in drawn.items() if _in_percent(name, s)}
    others = {name: s for name, s in drawn.items() if name not in percent}
    every = [s for s in (loss, rate, *drawn.values()) if s is not None]
    if not every:
        raise UserError("run", "the log", "holds no loss, learning rate or validation score")

    last_step = max(int(s.steps[-1]) for s in every)
    panels: list[Callable[[Any], None]] = []
    if loss is not None:
        panels.append(functools.partial(_draw_loss, loss=loss))
    if rate is not None:
        panels.append(functools.partial(_draw_rate, rate=rate))
    for group in filter(None, (percent, others)):
        panels.append(functools.partial(_draw_scores, scores=group, last_step=last_step))
    figure = Figure(figsize=(4.6 * len(panels), 3.5), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, fontsize=12, fontweight="bold", color=_INK)
    for n, draw in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), n + 1)
        draw(axes)
        axes.set_xlabel("iteration", fontsize=9, color=_INK)
        axes.set_xlim(0, max(1.03 * last_step, 1))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.grid(color=_FAINT, lw=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=8.5, colors=_INK, length=0)
        for side, spine in axes.spines.items():
            spine.set_visible(side == "bottom")
            spine.set_color(_FAINT)

    out = Path(out_png)
    with atomic_open(out) as file:
        # No date or version inside: the same log draws the same bytes.
        figure.savefig(file, format="png", metadata={"Software": None})
    return out


def _draw_loss(axes: Any, loss: Series) -> None:
    """Every logged value, faint where there are many, and the trend over them."""
    long = len(loss.steps) >= 40
    width, alpha = (0.8, 0.3) if long else (1.6, 1.0)
    marker = "o" if len(loss.steps) == 1 else ""
    axes.plot(*loss, color=_COLOURS["loss"], lw=width, alpha=alpha, marker=marker)
    if long:
        axes.plot(loss.steps, _smooth(loss.values), color=_COLOURS["loss"], lw=1.8)
    axes.set_title("training loss", loc="left", fontsize=10.5, color=_INK)
    if np.isfinite(loss.values).any():
        # The first iterations may be far above the rest; show 99% of the values well.
        top = np.percentile(loss.values[np.isfinite(loss.values)], 99)
        axes.set_ylim(0, 1.15 * top if top > 0 else None)


def _draw_rate(axes: Any, rate: Series) -> None:
    axes.plot(*rate, color="#0f766e", lw=1.8, marker="o" if len(rate.steps) == 1 else "")
    axes.set_title("learning rate", loc="left", fontsize=10.5, color=_INK)
    highest = np.nanmax(rate.values, initial=0.0)
    axes.set_ylim(0, 1.08 * highest if highest > 0 else None)
    axes.yaxis.set_major_formatter("{x:g}")  # no common factor above the axis


def _in_percent(name: str, points: Series) -> bool:
    """Whether a score is one of :data:`SCORES`, or its values look like percentages."""
    finite = points.values[np.isfinite(points.values)]
    return name in SCORES or bool(len(finite) and finite.min() >= 0 and 1 < finite.max() <= 100)


def _draw_scores(axes: Any, scores: Mapping[str, Series], last_step: int) -> None:
    others = [name for name in scores if name not in _COLOURS]
    for name, points in scores.items():
        colour = _COLOURS.get(name)
        if colour is None:
            colour = _OTHER_COLOURS[others.index(name) % len(_OTHER_COLOURS)]
        width = 2.2 if name == "mIoU" else 1.5
        marker = "o" if len(points.steps) <= 30 else ""
        finite = points.values[np.isfinite(points.values)]
        label = f"{name} {score(finite[-1])}" if len(finite) else f"{name} nan"
        axes.plot(*points, color=colour, lw=width, marker=marker, ms=4, label=label)
    percent = all(_in_percent(*one) for one in scores.items())
    title = "validation, %" if percent else "validation"
    axes.set_title(title, loc="left", fontsize=10.5, color=_INK)
    above: dict[str, Any] = dict(loc="lower right", bbox_to_anchor=(1.02, 0.985), ncols=len(scores))
    axes.legend(
        **(above if set(scores) <= set(SCORES) else dict(loc="best", ncols=2)), frameon=False,
        fontsize=8.5, handlelength=0.9, handletextpad=0.5, columnspacing=1.0, labelcolor=_INK,
    )  # fmt: skip
    if percent:
        axes.set_ylim(0, 100)
    miou = scores.get("mIoU")
    if miou is None or not np.isfinite(miou.values).any():
        return
    # Ring the best mIoU where it is not the last one, whose value the legend shows.
    best = int(np.nanargmax(miou.values))
    if best == len(miou.values) - 1:
        return
    step, value = int(miou.steps[best]), float(miou.values[best])
    axes.plot([step], [value], "o", ms=9, mfc="none", mec=_COLOURS["mIoU"], mew=1.4)
    axes.annotate(
        f"best {value:.2f}",
        (step, value),
        xytext=(0, -17 if value > 20 else 10),
        textcoords="offset points",
        ha="right" if step > 0.8 * last_step else "center",
        fontsize=9,
        color=_COLOURS["mIoU"],
    )
