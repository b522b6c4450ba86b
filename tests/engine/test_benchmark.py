# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What a model costs: counted in a second way, and measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from user_errors import raises_user_error

from mmseg_resnest.engine.benchmark import (
    benchmark,
    count_flops,
    count_parameters,
    default_shape,
    print_benchmark,
)
from mmseg_resnest.engine.config import load_config
from mmseg_resnest.engine.model import build_model

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def multiply_adds(model: nn.Module, shape: tuple[int, int]) -> int:
    """By the formula of each convolution and linear layer, from the sizes it sees."""
    total = 0

    def note(module: Any, inputs: Any, output: torch.Tensor) -> None:
        nonlocal total
        per_output = module.weight[0].numel()  # of its group's inputs
        total += output.numel() * per_output

    hooks = [
        m.register_forward_hook(note)
        for m in model.modules()
        if isinstance(m, nn.Conv2d | nn.Linear)
    ]
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, *shape), mode="tensor")
    for hook in hooks:
        hook.remove()
    return total


@pytest.mark.parametrize("head", ["fcn", "deeplabv3"])
def test_flops_and_parameters(head: str) -> None:
    cfg = load_config(CONFIGS / "fcn_resnest14_scenes.py")
    if head != "fcn":
        other = load_config(CONFIGS / "deeplabv3_resnest50_ade20k.py")
        cfg.model.decode_head = other.model.decode_head
    model = build_model(cfg)
    assert count_flops(model, (64, 96)) == 2 * multiply_adds(model, (64, 96))
    counts = count_parameters(model)
    assert counts["backbone"] == 8_562_688  # published, without the classifier
    assert counts["all"] == sum(v for k, v in counts.items() if k not in ("all", "trained"))
    assert next(model.parameters()).device.type == "cpu"


def test_measuring(capsys: pytest.CaptureFixture[str]) -> None:
    cfg = load_config(CONFIGS / "fcn_resnest14_scenes.py")
    assert default_shape(cfg) == (96, 96)
    result = benchmark(cfg, (64, 64), batch_size=2, device="cpu", training=True, seconds=0)
    for what in ("testing", "training"):
        run = result[what]
        assert (run["batch"], run["runs"]) == (2, 3)
        assert (
            0
            < run["slowest_images_per_second"]
            <= run["images_per_second"]
            <= run["fastest_images_per_second"]
        )
        # The process holds torch and the weights at least.
        assert run["memory_bytes"] > 4 * result["parameters"]["all"]
    print_benchmark(result)
    out = capsys.readouterr().out
    assert f"{result['flops'] / 1e9:.2f} G for an image of 64 x 64" in out
    assert "images/s in batches of 2" in out


def test_mistakes() -> None:
    cfg = load_config(CONFIGS / "fcn_resnest14_scenes.py")
    with raises_user_error("argument", "--batch-size 0"):
        benchmark(cfg, batch_size=0)
    with raises_user_error("argument", "--shape 16 64"):
        benchmark(cfg, (16, 64))
    with raises_user_error("argument", "--train"):
        benchmark(cfg, training=True)
