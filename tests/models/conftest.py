# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The golden outputs of the published code, beside the folder of real data."""

from __future__ import annotations

import importlib.util
import json
from types import SimpleNamespace

import pytest
from real_data import golden_folder_with


@pytest.fixture(scope="session")
def golden() -> SimpleNamespace:
    """``manifest`` (dict) and ``load_case(name)`` of the golden folder."""
    folder = golden_folder_with("manifest.json")
    spec = importlib.util.spec_from_file_location("seeded_weights", folder / "seeded_weights.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    manifest = json.loads((folder / "manifest.json").read_text())
    return SimpleNamespace(manifest=manifest, load_case=module.load_case, folder=folder)
