# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What holds for every test: no screen, one thread for each of several workers, GPU tests only
where there is one."""

import os

os.environ.setdefault("MPLBACKEND", "Agg")
if "PYTEST_XDIST_WORKER" in os.environ:  # before torch counts the cores, and for what tests start
    os.environ["OMP_NUM_THREADS"] = "1"

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome")
                 if (path := shutil.which(name))), None)  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def memory_goes_back() -> Iterator[None]:
    """Trainings in this process keep no memory for the next step: it would be kept for good."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmseg_resnest.engine.launch.keep_freed_memory", lambda: False)
        yield


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window, driven by Playwright."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine (apt install chromium)")
    api = pytest.importorskip(
        "playwright.sync_api", reason="Playwright is not installed (make test-browser)"
    )
    with api.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
