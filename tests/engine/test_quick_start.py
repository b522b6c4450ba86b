# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What is put off at the start of a run comes when it is needed, and changes nothing."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.visualization import Visualizer
from mmseg.visualization import SegLocalVisualizer

from mmseg_resnest.engine.quick_start import start_quickly

STEPS = """
import json, sys, torch
plain = sys.argv[1] == "plain"
if not plain:
    from mmseg_resnest.engine.quick_start import start_quickly
    start_quickly()
said = []
for kind, options in ((torch.optim.SGD, dict(lr=0.1, momentum=0.9)),
                      (torch.optim.AdamW, dict(lr=0.1)),
                      (torch.optim.SGD, dict(lr=0.1, differentiable=True))):
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(3))
    optimizer = kind([weight], **options)
    for step in range(3):
        optimizer.zero_grad()
        (weight.tanh().sum() ** 2).backward()
        if options.get("differentiable"):
            weight = weight.detach().requires_grad_()
            optimizer.param_groups[0]["params"] = [weight]
        else:
            optimizer.step()
        if step == 1 and not plain and kind is torch.optim.AdamW:
            assert "torch._dynamo" not in sys.modules
            import torch._dynamo
    saved = optimizer.state_dict()
    optimizer.load_state_dict(saved)
    said.append([weight.tolist(), torch.is_grad_enabled(), str(saved)])
if not plain:
    compiled = torch.compile(lambda x: x * 2, backend="eager")
    assert compiled(torch.ones(1)).item() == 2
print(json.dumps(said))
"""


def test_optimizers_step_alike_without_the_compiler_and_when_it_comes() -> None:
    said = []
    for way in ("plain", "quick"):
        done = subprocess.run([sys.executable, "-c", STEPS, way], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        said.append(json.loads(done.stdout))
    assert said[0] == said[1]


@pytest.mark.parametrize("kind", [Visualizer, SegLocalVisualizer])
def test_a_visualizer_draws_without_having_made_a_figure_before(kind: type[Visualizer]) -> None:
    start_quickly()
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    late, at_once = kind(), kind(image=image)
    assert "fig_save" not in vars(late) and "fig_save" in vars(at_once)
    late.set_image(image)
    assert np.array_equal(late.get_image(), at_once.get_image())
    assert late.dpi == at_once.dpi
    assert vars(late).keys() == vars(at_once).keys()
    with pytest.raises(AttributeError, match="no attribute 'figure'"):
        late.figure  # noqa: B018


def test_a_config_is_formatted_again_when_it_has_changed() -> None:
    start_quickly()
    cfg = Config({"model": {"type": "A", "depth": 3}})
    first = cfg.pretty_text
    assert cfg.pretty_text is first
    cfg.model.depth = 4
    assert cfg.pretty_text == first.replace("depth=3", "depth=4") != first
    assert Config.pretty_text.__doc__ and torch.is_grad_enabled()
