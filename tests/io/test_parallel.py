# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
from __future__ import annotations

import os

import cv2
import numpy as np
import pytest
from user_errors import raises_user_error

from mmseg_resnest.io.parallel import in_parallel


def _use_opencv(number: int) -> tuple[int, int]:
    image = np.zeros((512, 512, 3), np.uint8)
    cv2.GaussianBlur(cv2.resize(image, (1024, 1024)), (9, 9), 2)
    return number, cv2.getNumThreads()


def _die(number: int) -> int:
    os._exit(3)


@pytest.mark.parametrize("processes", [1, 2])
def test_every_job_is_done_once(processes: int) -> None:
    """In forks too, where OpenCV's thread pool has no threads."""
    before = cv2.getNumThreads()
    try:
        cv2.setNumThreads(4)
        cv2.GaussianBlur(np.zeros((2048, 2048, 3), np.uint8), (9, 9), 2)
        results = sorted(in_parallel(_use_opencv, list(range(40)), processes, "test"))
        assert [number for number, _ in results] == list(range(40))
        assert {threads for _, threads in results} == {1 if processes > 1 else 4}
        assert cv2.getNumThreads() == 4
    finally:
        cv2.setNumThreads(before)


def test_a_process_that_dies_is_an_error() -> None:
    with raises_user_error("memory", "test"):
        list(in_parallel(_die, list(range(40)), 2, "test"))
