# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The table of what models cost is what the models give, and what a machine measured is kept."""

from __future__ import annotations

import copy
import json
import platform
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.registry import DefaultScope

from mmseg_resnest.engine.config import load_config
from mmseg_resnest.engine.model_costs import (
    COSTS_FILE,
    keep_benchmark,
    kept_for_backward,
    model_costs,
)
from mmseg_resnest.registry import MODELS
from mmseg_resnest_cli.package import list_configs, measured_here

TABLE = json.loads(COSTS_FILE.read_text(encoding="utf-8"))
QUICK = (
    "fcn_resnest14_camvid",
    "encnet_resnest50_ade20k",
    "segnext_mscant_ade20k",
    "segformer_mitb0_ade20k",
)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.long) for name in TABLE],
)
def test_a_row_is_what_the_model_gives(name: str) -> None:
    """Otherwise: ``mmseg-resnest make-model-zoo --costs``."""
    assert model_costs(load_config(name)) == TABLE[name]


def test_every_config_has_its_row() -> None:
    assert list(TABLE) == list_configs()


def test_the_figures_are_those_of_the_papers() -> None:
    """Parameters to the rounding of the authors' tables; theirs count multiply-adds."""
    for size, parameters, work in (("t", 4, 7), ("s", 14, 16), ("b", 28, 35), ("l", 49, 70)):
        row = TABLE[f"segnext_mscan{size}_ade20k"]
        assert row["parameters"] / 1e6 == pytest.approx(parameters, abs=0.6)
        assert row["flops"] / 2e9 == pytest.approx(work, rel=0.1)
    # arXiv 2105.15203, table 6: the backbones, whose heads are larger there
    for size, parameters in ((0, 3.4), (2, 24.2), (4, 60.8)):
        row = TABLE[f"segformer_mitb{size}_ade20k"]
        assert 0 < row["parameters"] / 1e6 - parameters < 0.8


@pytest.mark.parametrize("name", ["fcn_resnest14_camvid", "segformer_mitb0_camvid"])
def test_what_is_kept_is_what_a_real_pass_keeps(name: str) -> None:
    """By the addresses of the tensors that wait for a backward pass on the CPU."""
    cfg = copy.deepcopy(load_config(name))
    with DefaultScope.overwrite_default_scope("mmseg_resnest"):
        model: Any = MODELS.build(cfg.model)
    counted = kept_for_backward(model, (64, 96))
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    waiting: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        waiting[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        features = model.extract_feat(torch.randn(2, 3, 64, 96))
        scores = [model.decode_head(features)]
        if model.with_auxiliary_head:
            scores.append(model.auxiliary_head(features))
    real = sum(size for address, size in waiting.items() if address not in own)
    assert scores and counted == pytest.approx(real / 2, rel=0.02)


def test_measurements_are_kept_for_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMSEG_RESNEST_CACHE", str(tmp_path / "cache"))
    run = dict(images_per_second=4.0, memory_bytes=2**30, batch=1)
    result = dict(shape=[512, 512], device="CPU, 2 threads", testing=run, training=None)
    assert measured_here() == {}
    file = keep_benchmark("a", result)
    assert file is not None and measured_here()["a"]["testing"]["images_per_second"] == 4.0
    two = dict(run, batch=2)
    keep_benchmark("a", dict(result, testing=two, training=two))
    kept = measured_here()["a"]
    assert (kept["testing"]["batch"], kept["training"]["batch"]) == (1, 2)
    assert keep_benchmark("b", dict(result, shape=[64, 64])) is None
    assert keep_benchmark("b", dict(result, testing=two)) is None
    assert set(json.loads(file.read_text())) == {platform.node()}
    file.write_text("{")
    assert measured_here() == {}
    keep_benchmark("b", result)
    assert set(measured_here()) == {"b"}
    monkeypatch.setenv("MMSEG_RESNEST_CACHE", str(file / "below"))
    assert keep_benchmark("b", result) is None and measured_here() == {}
