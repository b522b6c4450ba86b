# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What holds for every test: no screen, and GPU tests only where there is one."""

import os

os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
