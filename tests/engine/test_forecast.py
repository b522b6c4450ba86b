# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A run that does not fit into memory is refused with what fits; others say what they take."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mmengine.config import Config
from PIL import Image
from small_runs import run, small_config
from user_errors import raises_user_error

from mmseg_resnest.datasets.scenes import write_scenes
from mmseg_resnest.engine import dry_step, forecast
from mmseg_resnest.engine.forecast import Forecast, batch_size_of
from mmseg_resnest.engine.hooks import duration
from mmseg_resnest.engine.launch import Machine
from mmseg_resnest.engine.run_options import RunOptions

EDGE = 160


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of 320 x 256, twice the size of scenes."""
    root = write_scenes(tmp_path_factory.mktemp("data") / "scenes", 6, 2, progress=False)
    for path in root.glob("*/training/*.png"):
        with Image.open(path) as image:
            large = image.resize((320, 256), Image.Resampling.NEAREST)
        large.save(path)
    return root


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Forecast | None]:
    """The forecasts that are made; by the tensors alone, since this process has memory to spare."""
    found: list[Forecast | None] = []
    original = forecast.forecast

    def kept(*args):
        found.append(original(*args))
        return found[-1]

    monkeypatch.setattr(forecast, "peak_memory", lambda: 0)
    monkeypatch.setattr(dry_step, "forecast", kept)
    return found


def _config(scenes: Path) -> Config:
    cfg = small_config(scenes, iterations=2)
    cfg.train_dataloader.batch_size = 4
    (crop,) = [s for s in cfg.train_dataloader.dataset.pipeline if s.type == "RandomCrop"]
    crop.crop_size = (EDGE, EDGE)
    return cfg


def test_a_run_that_does_not_fit_is_refused_with_what_does(
    scenes: Path, made: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    cfg = _config(scenes)
    result = run(cfg, tmp_path / "fits")
    said = capsys.readouterr().out
    assert re.search(r"^memory +.* at the peak of the dry step", said, re.M)
    assert re.search(r"^time +about \S+ s an iteration and .* in all", said, re.M)
    assert "last_checkpoint" in result
    (expected,) = made
    size = (EDGE, EDGE)
    free = round(expected.bytes(4, size) * 0.7)
    for module in (forecast, dry_step):
        monkeypatch.setattr(module, "free_memory", lambda cuda=False: free)
    with raises_user_error("memory", "train_dataloader.batch_size") as caught:
        run(cfg, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    text = str(caught.value)
    batch = int(re.search(r"--batch-size (\d+)", text)[1])
    width, height = map(int, re.search(r"--image-size (\d+)x(\d+)", text).groups())
    assert 2 <= batch < 4 and 128 <= height == width < EDGE
    for number, change in enumerate((RunOptions(batch_size=batch),
                                     RunOptions(image_size=(width, height)))):  # fmt: skip
        run(cfg, tmp_path / str(number), run=change)
    with raises_user_error("memory"):
        run(cfg, tmp_path / "more", run=RunOptions(batch_size=5))


def test_where_nothing_fits_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "free_memory", lambda cuda=False: 1000)
    with raises_user_error("memory") as caught:
        forecast.check_memory(Forecast(2000, 1), 8, (512, 512), 1)
    assert "--batch-size" not in str(caught.value)
    monkeypatch.setattr(forecast, "free_memory", lambda cuda=False: None)
    forecast.check_memory(Forecast(2000, 1), 8, (512, 512), 1)


def test_what_is_suggested_fits() -> None:
    line, size = Forecast(1e9, 12_000), (512, 1024)
    for free in (8e9, 20e9, 60e9):
        batch = line.fitting_batch(16, size, round(free))
        if batch is not None:
            assert line.bytes(batch, size) <= free
            assert line.bytes(batch + 1, size) > 0.9 * free or batch == 15
        smaller = line.fitting_size(16, size, round(free))
        assert line.bytes(16, smaller) <= free
        assert smaller[0] % 32 == 0 == smaller[1] % 32
    assert line.fitting_batch(16, size, round(1.1e9)) is None
    assert line.fitting_size(16, size, round(1e9)) is None


def test_a_small_batch_needs_no_forecast(scenes: Path, made: list, tmp_path: Path) -> None:
    cfg = small_config(scenes, iterations=2)
    run(cfg, tmp_path / "small")
    assert made == [None]
    assert batch_size_of(None, {"inputs": [1]}) is None


@pytest.mark.parametrize(
    ("loop", "validations"),
    [
        (dict(max_iters=100, val_interval=40), 3),  # after 40, 80 and 100
        (dict(max_iters=100), 1),
        (dict(max_iters=100, val_interval=40, val_begin=50), 2),
        (dict(max_iters=100, val_interval=40, dynamic_intervals=[(81, 5)]), 6),
        (dict(max_epochs=10, val_interval=4), 3),
    ],
)
def test_the_time_of_a_run_is_that_of_all_its_validations(
    loop: dict[str, int], validations: int
) -> None:
    """Hundred iterations of 2 s, ten an epoch, and validations of 20 images of 30 s."""
    steps: Any = SimpleNamespace(
        cfg=Config(dict(train_cfg=loop)), machine=Machine(), step=forecast.Step(seconds=2.0)
    )
    val = SimpleNamespace(dataset=range(20))
    rows = dict(dry_step._Steps._forecast_rows(steps, range(10), val, 30.0))
    total = duration(100 * 2 + validations * 20 * 30)
    assert rows["time"] == f"about 2 s an iteration and {total} in all, by the dry step"
