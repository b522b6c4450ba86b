# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
from __future__ import annotations

import multiprocessing

import cv2
import numpy as np

from mmseg_resnest.datasets.forking import opencv_on_one_thread


def _use_opencv() -> None:
    image = np.zeros((512, 512, 3), np.uint8)
    cv2.GaussianBlur(cv2.resize(image, (1024, 1024)), (9, 9), 2)
    raise SystemExit(cv2.getNumThreads())


def test_a_fork_uses_opencv_on_one_thread() -> None:
    before = cv2.getNumThreads()
    try:
        cv2.setNumThreads(4)
        cv2.GaussianBlur(np.zeros((2048, 2048, 3), np.uint8), (9, 9), 2)
        with opencv_on_one_thread():
            child = multiprocessing.get_context("fork").Process(target=_use_opencv)
            child.start()
            child.join(30)
            exit_code = child.exitcode
            child.kill()
        assert exit_code == 1
        assert cv2.getNumThreads() == 4
    finally:
        cv2.setNumThreads(before)
