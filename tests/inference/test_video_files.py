# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Videos whose names, places and disks are difficult."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import cv2
import numpy as np
import pytest
from advice import advises
from PIL import Image
from small_models import blobs
from user_errors import raises_user_error

from mmseg_resnest.inference import Segmentor
from mmseg_resnest.inference.video import predict_video


def make_film(path: Path, size: tuple[int, int] = (48, 32)) -> str:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 12, size)
    for i in range(4):
        writer.write(blobs(size[1], size[0], seed=i))
    writer.release()
    return str(path)


def test_names_with_colons(
    small_model: Segmentor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_film(tmp_path / "12:30.avi")
    monkeypatch.chdir(tmp_path)
    done = predict_video(small_model, "12:30.avi", "out:1", ["overlay"])
    assert done["frames"] == 4
    assert sorted(os.listdir("out:1")) == ["12:30_overlay.mp4", "predictions.jsonl"]


def test_a_full_disk_leaves_no_video(small_model: Segmentor, tmp_path: Path) -> None:
    film, out = make_film(tmp_path / "film.avi"), tmp_path / "out"
    most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, most[1]))  # files end there
    try:
        with advises("inference/video.py:finish", "free space", "choose another folder"):
            predict_video(small_model, film, out, ["overlay"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, most)
    assert not list(out.glob("*.mp4")) + list(out.glob(".*"))
    assert predict_video(small_model, film, out, ["overlay"])["frames"] == 4


def test_a_long_name_is_told_before_the_work(
    small_model: Segmentor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    film = make_film(tmp_path / f"{'a' * 245}.avi")
    monkeypatch.setattr(Segmentor, "attempts", None)
    with advises("inference/video.py:_check_name", "shorten the name of the video"):
        predict_video(small_model, film, tmp_path / "out", ["labels", "overlay"])
    monkeypatch.undo()
    shorter = make_film(tmp_path / "a.avi")
    assert predict_video(small_model, shorter, tmp_path / "out", ["overlay"])["frames"] == 4


def test_frames_in_tiles(small_model: Segmentor, tmp_path: Path) -> None:
    film, out = make_film(tmp_path / "film.avi", (160, 128)), tmp_path / "out"
    for tile in (0, 64, 64):
        done = predict_video(small_model, film, out, ["labels"], tile=tile)
        frame = cv2.VideoCapture(film).read()[1][:, :, ::-1]
        with Image.open(out / "film" / "000001.png") as labels:
            expected = small_model(np.ascontiguousarray(frame), tile=tile).labels
            assert np.array_equal(np.asarray(labels), expected)
    assert done["skipped"]


def test_a_video_of_others_is_not_replaced(small_model: Segmentor, tmp_path: Path) -> None:
    film, other = make_film(tmp_path / "film.avi"), tmp_path / "film_overlay.mp4"
    other.write_bytes(b"cut by a person")
    with raises_user_error("output-exists", other.name):
        predict_video(small_model, film, tmp_path, ["overlay"])
    assert other.read_bytes() == b"cut by a person"


def test_a_folder_in_the_place_of_a_video(small_model: Segmentor, tmp_path: Path) -> None:
    film, out = make_film(tmp_path / "film.avi"), tmp_path / "out"
    (out / "film_overlay.mp4").mkdir(parents=True)
    with advises("inference/video.py:finish", "cannot be written", "choose another folder"):
        predict_video(small_model, film, out, ["overlay"])
    assert predict_video(small_model, film, tmp_path / "other", ["overlay"])["frames"] == 4
