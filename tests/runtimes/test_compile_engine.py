# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The engine ``compile``: compiled once for all sizes, and before a service answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from small_models import balanced, blobs, small_config

from mmseg_resnest import load_segmentor
from mmseg_resnest.inference import Segmentor
from mmseg_resnest.inference.engine import choose_engine, prepare_engine
from mmseg_resnest.runtimes import Choice, engines


@pytest.mark.long
def test_a_pool_is_compiled_once_for_all_sizes() -> None:
    cfg = small_config(pixel=True)
    cfg.model.decode_head.update(type="PSPHead", pool_scales=(1, 3))
    for key in ("num_convs", "kernel_size", "concat_input"):
        cfg.model.decode_head.pop(key)
    model = balanced(load_segmentor(cfg, None, "cpu"))
    images = [blobs(150, 200, 1), blobs(200, 200, 2), blobs(231, 171, 3)]
    wanted = [result.labels for result in model(images)]
    said: list[str] = []
    choose_engine(model, Choice("compile"), said.append)
    prepare_engine(model)
    with torch.compiler.set_stance("fail_on_recompile"):
        found = [result.labels for result in model(images)]
    for a, b in zip(wanted, found, strict=True):
        assert (a == b).mean() >= 0.9999
    assert len(said) == 1
    assert model.engine is not None
    assert model.engine.computes == "compile"


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """``torch.compile`` without code of its own, which takes minutes."""
    compiled = engines.Compiled
    monkeypatch.setattr(
        engines, "Compiled",
        lambda *args, options, **more: compiled(*args, backend="eager", **more),
    )  # fmt: skip


@pytest.mark.usefixtures("eager")
def test_a_service_compiles_before_it_answers(small_segmentor: Segmentor) -> None:
    """Images of any size are answered then without compiling."""
    images = [blobs(200, 200, 1), blobs(150, 231, 2), blobs(9, 7, 3)]
    wanted = [result.labels for result in small_segmentor(images)]
    said: list[str] = []
    choose_engine(small_segmentor, Choice("compile"), said.append)
    prepare_engine(small_segmentor)
    assert len(said) == 1
    for image, labels in zip(images, wanted, strict=True):
        assert (small_segmentor(image).labels == labels).all()
    assert (small_segmentor([images[0]] * 3)[2].labels == wanted[0]).all()
    assert len(said) == 1


@pytest.mark.usefixtures("eager")
def test_compiling_keeps_nothing_and_holds_nothing(
    small_segmentor: Segmentor, pictures: list[NDArray[np.uint8]], cache: Path
) -> None:
    wanted = small_segmentor(pictures[0]).labels
    choose_engine(small_segmentor, Choice("compile"))
    assert (small_segmentor(pictures[0]).labels == wanted).all()
    assert not cache.exists()
