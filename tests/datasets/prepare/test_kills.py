# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Processes that are killed at any moment: the next run goes on and the result is the same."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from custom_sets import base, write_masks
from mmcv.transforms import LoadImageFromFile as PlainImage
from PIL import Image
from tiny_archives import Voc, jpeg, labels_of, small, tree, write_folder, write_tar
from tqdm import tqdm

from mmseg_resnest.datasets.cache import FOLDER, read_entry
from mmseg_resnest.datasets.prepare import (
    CustomOptions,
    archives,
    build_cache,
    outputs,
    places,
    prepare,
)
from mmseg_resnest.datasets.prepare.custom import prepare_custom
from mmseg_resnest.datasets.prepare.voc12aug import VOC12AUG
from mmseg_resnest.engine.config import load_config

ROOT = Path(__file__).resolve().parents[3]
Point = tuple[object, str]  # a function, by what it is in and its name


def strike(point: Point, calls: str, at: int) -> None:
    """In a process that will be killed: it dies in the ``at``-th of the calls that are counted.

    The length of the file ``calls`` is the count: no lock that is lost with who holds it.
    """
    main = os.getpid()
    plain = getattr(*point)

    def struck(*args: object, **options: object) -> object:
        file = os.open(calls, os.O_WRONLY | os.O_APPEND)
        os.write(file, b".")
        last = os.lseek(file, 0, os.SEEK_CUR) == at
        os.close(file)
        result = None if last and at % 2 else plain(*args, **options)  # before it, or after it
        if last:
            os.kill(main, signal.SIGKILL)
            time.sleep(60)  # a worker dies with its parent
        return result

    struck.__name__ = point[1]  # a bound method is sent to a process by its name
    setattr(*point, struck)


def killed(run: Callable[[], object], points: list[Point], at: int) -> tuple[bool, int]:
    """Runs a function in a process that is killed in the ``at``-th call of those counted.

    Returns:
        Whether it was, rather than coming to its end before; and how many calls there were.
    """
    context = multiprocessing.get_context("fork")
    with tempfile.NamedTemporaryFile() as calls:
        process = context.Process(target=_alone, args=(run, points, calls.name, at))
        process.start()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        return process.exitcode != 0, os.stat(calls.name).st_size


def _alone(run: Callable[[], object], points: list[Point], calls: str, at: int) -> None:
    # tqdm's lock is one with the parent's: who is killed with it would never give it back.
    tqdm.set_lock(threading.RLock())
    for point in points:
        strike(point, calls, at)
    run()


def kill_at_many_moments(run: Callable[[], object], points: list[Point]) -> int:
    """Kills a function a little later each time, until it comes to its end; returns how often."""
    at = 1
    for times in range(40):
        was_killed, calls = killed(run, points, at)
        if not was_killed:
            return times
        assert calls >= at
        at += times + 1
    raise AssertionError("never came to its end: it does not go on where it was")


def left_over(folder: Path) -> list[str]:
    """Half-made things, hidden ones too."""
    names = [path.name for path in folder.rglob("*")]
    return [n for n in names if n.endswith(".part") or n in ("tmp", "staging")]


def test_prepare(tmp_path: Path, voc: Voc) -> None:
    """While it unpacks, reads, converts and writes, with two processes of its own."""
    (tmp_path / "source").mkdir()
    files = [
        write_tar(tmp_path / "source/VOCtrainval.tar", voc[0]),
        write_tar(tmp_path / "source/sbd.tgz", voc[1]),  # one of those that are unpacked first
    ]
    dataset = small(VOC12AUG, trainaug=6, train=3, val=3)
    before = tree(tmp_path / "source")

    def run() -> None:
        prepare(dataset, tmp_path / "killed", files, jobs=2)

    points = [
        (archives, "_safe_members"),
        (places.Place, "read"),
        (outputs.Record, "note"),
        (outputs.Record, "save"),
    ]
    assert kill_at_many_moments(run, points) >= 3
    prepare(dataset, tmp_path / "whole", files, jobs=1)
    made, wanted = (
        {name: digest for name, (_, digest) in tree(tmp_path / root).items()}
        for root in ("killed", "whole")
    )
    assert made == wanted
    assert len(made) == 9 + 6 + 6 + 3
    assert not left_over(tmp_path / "killed")
    assert prepare(dataset, tmp_path / "killed", files, jobs=1).unchanged
    assert tree(tmp_path / "source") == before


def test_labels_of_ones_own(tmp_path: Path) -> None:
    masks = write_masks(tmp_path, [f"a_{n}" for n in range(40)])
    options = CustomOptions(name="mine", group_pattern="(.*)", **masks)

    def run() -> None:
        prepare_custom(options, tmp_path / "killed", tmp_path / "killed_configs", base(), jobs=2)

    assert kill_at_many_moments(run, [(outputs.Record, "note")]) >= 3
    config = load_config(tmp_path / "killed_configs/mine.py")
    assert config.num_classes == 3
    made = tree(tmp_path / "killed/mine")
    assert len(made) == 40 + 40 + 3
    for n in range(40):
        pixels = np.asarray(Image.open(tmp_path / f"killed/mine/annotations/a_{n}.png"))
        np.testing.assert_array_equal(pixels, labels_of(n, 3))
    assert not left_over(tmp_path / "killed")


def test_cache(tmp_path: Path) -> None:
    module = sys.modules[build_cache.__module__]
    images = write_folder(tmp_path / "data", {f"{n}.jpg": jpeg(n, (40, 30)) for n in range(40)})
    patterns = (("image", "*.jpg"),)

    def run() -> None:
        build_cache(images, patterns, jobs=2)

    assert kill_at_many_moments(run, [(module, "atomic_open"), (module, "read_entry")]) >= 3
    cache = images / FOLDER
    assert len(list(cache.rglob("*.raw"))) == 40
    assert not left_over(cache)
    for n in range(40):
        file = images / f"{n}.jpg"
        expected = PlainImage().transform(dict(img_path=str(file)))
        found = read_entry(cache / f"{n}.jpg.raw", file, check=True)
        assert found is not None
        np.testing.assert_array_equal(found, expected["img"])
    assert build_cache(images, patterns, jobs=1).done == {"made": 0, "kept": 40, "removed": 0}
