# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What holds for every test: no screen, one thread for each of several workers, GPU tests only
where there is one."""

import os

os.environ.setdefault("MPLBACKEND", "Agg")
if "PYTEST_XDIST_WORKER" in os.environ:  # before torch counts the cores, and for what tests start
    os.environ["OMP_NUM_THREADS"] = "1"

import gc
import importlib
import importlib.util
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import settings

# An example may take as long as a busy machine takes for it; make test-long draws more of them.
settings.register_profile("suite", settings(deadline=None, max_examples=30))
settings.register_profile("long", settings(deadline=None, max_examples=200))
settings.load_profile("suite")

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome")
                 if (path := shutil.which(name))), None)  # fmt: skip

# `make test-classify` and `make test-detect` have these toolboxes and run the tests of these
# folders; where one is missing there is nothing to run.
TOOLBOXES = {"classify": "mmpretrain", "detect": "mmdet"}
collect_ignore = [name for name, tool in TOOLBOXES.items() if not importlib.util.find_spec(tool)]


@pytest.fixture(scope="session", autouse=True)
def commands_leave_the_process() -> Iterator[None]:
    """Commands that run in the tests' own process do not set it up for good."""
    with pytest.MonkeyPatch.context() as patch:
        main = importlib.import_module("mmseg_resnest_cli.main")
        patch.setattr(main, "prepare_process", lambda: None)
        yield


@pytest.fixture(scope="module", autouse=True)
def old_objects_are_not_searched() -> None:
    """Every data set collects garbage when it is made; what the imports left is none."""
    gc.collect()
    gc.freeze()


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


# What takes longest comes first, or one worker would be busy with it when the others are done.
LONG = ("test_distributed", "test_configs", "test_resnest", "test_bad_input", "test_chaos",
        "test_command", "test_docs", "test_stack")  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.stem, len(LONG)))
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
