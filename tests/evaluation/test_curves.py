# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Reading MMEngine's scalar logs and drawing them."""

import sys

import numpy as np
import pytest
from mmengine.visualization import LocalVisBackend
from PIL import Image
from user_errors import raises_user_error

from mmseg_resnest.evaluation import plot_curves, read_scalars
from mmseg_resnest.evaluation.curves import Series, find_series

MIOU, PIX_ACC = (0xC2, 0x41, 0x0C), (0x1D, 0x4E, 0xD8)


def log(work_dir, timestamp, steps, loss=1.0, val=(), **scores):
    """Log a start of a run with MMEngine's own back end."""
    backend = LocalVisBackend(str(work_dir / timestamp / "vis_data"))
    for step in steps:
        backend.add_scalars({"lr": 0.1 / step, "loss": loss, "time": 2.5, "iter": step}, step=step)
        if step in val:
            backend.add_scalars({"mIoU": 10.0 + step, "pixAcc": 50.0, "time": 0.1}, step=step)


def points(series):
    return list(zip(series.steps.tolist(), series.values.tolist(), strict=True))


def has_colour(path, colour):
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return bool((np.abs(pixels - colour).max(-1) <= 2).any())


def test_reads_what_the_logger_wrote(tmp_path):
    log(tmp_path, "20260101_000000", [10, 20, 30, 40], val=(20, 40))
    series = read_scalars(tmp_path)
    assert points(series["loss"]) == [(10, 1.0), (20, 1.0), (30, 1.0), (40, 1.0)]
    assert points(series["mIoU"]) == [(20, 30.0), (40, 50.0)]
    assert series["lr"].values[0] == 0.01
    # Seconds of an iteration, also where a validation logged those of an image.
    assert points(series["time"]) == [(step, 2.5) for step in (10, 20, 30, 40)]
    assert "step" not in series and "iter" not in series
    assert series["loss"].steps.dtype == np.int64
    # One start's own folder will do as well.
    assert points(read_scalars(tmp_path / "20260101_000000")["mIoU"]) == points(series["mIoU"])


def test_times_of_an_iteration_are_found_under_their_prefix(tmp_path):
    """``log_with_hierarchy``; the validation is before the first line of the training."""
    backend = LocalVisBackend(str(tmp_path / "20260101_000000" / "vis_data"))
    backend.add_scalars({"val/mIoU": 10.0, "val/time": 0.1}, step=5)
    backend.add_scalars({"train/loss": 1.0, "train/time": 2.5, "iter": 10}, step=10)
    assert points(find_series(read_scalars(tmp_path), "time")) == [(10, 2.5)]


def test_joins_the_starts_of_a_resumed_run(tmp_path):
    # Killed at 50 with a checkpoint at 30; resumed from there.
    log(tmp_path, "20260102_000000", [40, 50, 60], loss=2.0, val=(60,))
    log(tmp_path, "20260101_000000", [10, 20, 30, 40, 50], val=(30, 50))
    series = read_scalars(tmp_path)
    assert points(series["loss"]) == [
        *((step, 1.0) for step in (10, 20, 30)),
        *((step, 2.0) for step in (40, 50, 60)),
    ]
    # The score at 50 belongs to weights that were lost.
    assert points(series["mIoU"]) == [(30, 40.0), (60, 70.0)]


def test_a_start_that_only_evaluated_is_no_point(tmp_path):
    log(tmp_path, "20260101_000000", [10, 20], val=(20,))
    only = LocalVisBackend(str(tmp_path / "20260102_000000" / "vis_data"))
    only.add_scalars({"mIoU": 99.0}, step=0)
    assert points(read_scalars(tmp_path)["mIoU"]) == [(20, 30.0)]


def test_survives_a_line_cut_off_and_nan(tmp_path):
    log(tmp_path, "20260101_000000", [10, 20])
    path = tmp_path / "20260101_000000" / "vis_data" / "scalars.json"
    with path.open("a", encoding="utf-8") as file:
        file.write('{"loss": NaN, "iter": 30, "step": 30}\n[1]\n{"loss": 0.5, "it')
    series = read_scalars(tmp_path)
    assert series["loss"].steps.tolist() == [10, 20, 30]
    assert np.isnan(series["loss"].values[-1])
    assert plot_curves(tmp_path, tmp_path / "curve.png").stat().st_size > 5000


def test_errors(tmp_path):
    with raises_user_error("not-found", "nowhere"):
        read_scalars(tmp_path / "nowhere")
    with raises_user_error("run", tmp_path):
        read_scalars(tmp_path)
    (tmp_path / "t" / "vis_data").mkdir(parents=True)
    (tmp_path / "t" / "vis_data" / "scalars.json").write_text("", encoding="utf-8")
    with raises_user_error("run", tmp_path):
        read_scalars(tmp_path)
    time = {"time": Series(np.array([1]), np.array([1.0]))}
    with raises_user_error("run", "the log"):
        plot_curves(time, tmp_path / "curve.png")
    log(tmp_path, "20260101_000000", [10, 20])
    (tmp_path / "file").write_text("", encoding="utf-8")
    with raises_user_error("not-writable", "curve.png"):
        plot_curves(tmp_path, tmp_path / "file" / "curve.png")


def test_draws_what_is_there(tmp_path):
    log(tmp_path, "20260101_000000", range(10, 810, 10), val=(20, 40, 60))
    path = plot_curves(tmp_path, tmp_path / "out" / "curve.png", title="a run")
    assert path == tmp_path / "out" / "curve.png"
    with Image.open(path) as image:
        width, height = image.size
    assert width > 1500 and 300 < height < 700
    assert has_colour(path, MIOU)
    assert has_colour(path, PIX_ACC)

    series = read_scalars(tmp_path)
    rate_only = plot_curves({"lr": series["lr"]}, tmp_path / "rate.png")
    with Image.open(rate_only) as image:
        assert image.width < width / 2
    assert not has_colour(rate_only, MIOU)
    prefixed = plot_curves({"val/mIoU": series["mIoU"]}, tmp_path / "prefixed.png")
    assert has_colour(prefixed, MIOU)


def test_same_log_same_bytes_and_no_pyplot_figure(tmp_path):
    log(tmp_path, "20260101_000000", [10, 20, 30], val=(30,))
    first = plot_curves(tmp_path, tmp_path / "1.png").read_bytes()
    assert plot_curves(tmp_path, tmp_path / "2.png").read_bytes() == first
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []


@pytest.mark.parametrize("values", [[0.0, 0.0], [np.nan, np.nan], [1.0]])
def test_degenerate_curves_are_drawn(tmp_path, values):
    series = Series(np.arange(len(values)), np.array(values))
    names = ("loss", "lr", "mIoU")
    path = plot_curves(dict.fromkeys(names, series), tmp_path / "curve.png")
    assert path.stat().st_size > 5000
