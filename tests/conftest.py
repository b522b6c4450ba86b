# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What holds for every test: no screen, one thread for each of several workers, GPU tests only
where there is one."""

import os

os.environ.setdefault("MPLBACKEND", "Agg")
if "PYTEST_XDIST_WORKER" in os.environ:  # before torch counts the cores, and for what tests start
    os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
