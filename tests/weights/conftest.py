# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The golden folder, which lies beside the folder of real data."""

from __future__ import annotations

import importlib.util
import json
import logging
from collections import OrderedDict
from pathlib import Path
from types import ModuleType

import pytest
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer
from real_data import golden_folder_with


@pytest.fixture
def fresh_mmengine(monkeypatch: pytest.MonkeyPatch) -> None:
    """MMEngine's loggers and hubs that a test makes are forgotten after it."""
    for manager in (MMLogger, MessageHub, Visualizer, DefaultScope):
        monkeypatch.setattr(manager, "_instance_dict", OrderedDict())


@pytest.fixture
def logged(fresh_mmengine: None) -> list[str]:
    """The lines that go to the current log."""
    lines: list[str] = []
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    MMLogger.get_instance("weights", log_level="INFO").addHandler(handler)
    return lines


@pytest.fixture(scope="session")
def golden_folder() -> Path:
    return golden_folder_with("layouts.json")


@pytest.fixture(scope="session")
def seeded_weights(golden_folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "golden_seeded_weights", golden_folder / "seeded_weights.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def layouts(golden_folder: Path) -> dict[str, dict[str, list[int]]]:
    return json.loads((golden_folder / "layouts.json").read_text())
