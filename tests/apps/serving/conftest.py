# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Services to talk to."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "inference"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "io"))

from services import running
from small_models import balanced, small_config

from mmseg_resnest import load_segmentor
from mmseg_resnest.apps.serving import Limits
from mmseg_resnest.inference import Segmentor


@pytest.fixture
def service() -> Iterator[Callable[..., httpx.Client]]:
    with contextlib.ExitStack() as stack:
        yield lambda model, **limits: stack.enter_context(running(model, Limits(**limits)))


@pytest.fixture(scope="session")
def small_model() -> Segmentor:
    return balanced(load_segmentor(small_config(), None, "cpu"))


@pytest.fixture(scope="module")
def client(small_model: Segmentor) -> Iterator[httpx.Client]:
    limits = Limits(bytes=200_000, pixels=100_000, seconds=20)
    with running(small_model, limits) as found:
        yield found
