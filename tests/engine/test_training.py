# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from mmseg_resnest.engine import training
from mmseg_resnest.engine.config import load_config
from mmseg_resnest.engine.preemption import Preempted
from mmseg_resnest.engine.runner import build_model
from mmseg_resnest.models import ARCHITECTURES

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def _format() -> None:
    try:
        raise KeyboardInterrupt
    except BaseException:
        raise SyntaxError("cannot be formatted")  # noqa: B904


def test_an_interrupt_that_a_library_turns_into_an_error_is_one() -> None:
    """As MMEngine does while it formats a config."""
    with pytest.raises(SyntaxError) as info:
        _format()
    assert isinstance(training._interrupt_behind(info.value), KeyboardInterrupt)
    assert isinstance(training._interrupt_behind(KeyboardInterrupt()), KeyboardInterrupt)
    assert training._interrupt_behind(SyntaxError("really")) is None


def test_a_signal_that_a_library_turns_into_an_error_is_a_signal() -> None:
    stop = Preempted("SIGTERM before the first iteration: nothing was trained")
    error = SyntaxError("Failed to format the config file")
    error.__context__ = stop
    assert training._interrupt_behind(error) is stop


def test_a_model_is_tried_without_random_weights() -> None:
    """Neither are they drawn, which takes most of the time, nor is the random state another."""
    cfg = load_config(CONFIGS / "deeplabv3_resnest26_camvid.py")
    cfg.model.backbone.update(init_cfg=None, arch={**ARCHITECTURES["resnest14"], "base_width": 8})
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with training._NoDraws():
        model = build_model(cfg)
        nn.init.xavier_normal_(nn.Linear(3, 4).weight)
        nn.init.trunc_normal_(tensor=nn.Embedding(3, 4).weight)
    assert torch.equal(torch.get_rng_state(), before)
    tried = training._try_model(cfg, None)
    assert torch.equal(torch.get_rng_state(), before)
    whole = build_model(cfg)
    assert not torch.equal(torch.get_rng_state(), before)
    for one in (model, tried):
        assert {name: value.shape for name, value in one.state_dict().items()} == {
            name: value.shape for name, value in whole.state_dict().items()
        }
    with training._NoDraws():
        assert nn.init.ones_(nn.Linear(3, 4).weight).sum() == 12
