# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What the errors of configs tell people to do is done, and then the config is taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from advice import advises
from mmengine.config import Config
from mmengine.hooks import CheckpointHook, EMAHook
from small_runs import small_config

from mmseg_resnest.datasets.scenes import write_scenes
from mmseg_resnest.engine.config.check import check_config
from mmseg_resnest.engine.dry_step import _check_unit, dry_step
from mmseg_resnest.engine.launch import Machine
from mmseg_resnest.engine.model import build_seeded_model
from mmseg_resnest.engine.preflight import check_outputs
from mmseg_resnest.engine.resolve import TrainingOptions, resolve

HERE = Machine()


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("data") / "scenes", 4, 1, progress=False)


def test_options_with_other_names() -> None:
    def check(**paramwise: Any) -> None:
        check_config({"optim_wrapper": dict(paramwise_cfg=paramwise)})

    with advises("engine/config/numbers.py:_known", "did you mean") as told:
        check(norm_decay_mul=0)
    check(**{told.value.message.rpartition("did you mean ")[2].rstrip("?"): 0})
    with advises("engine/config/numbers.py:_check_optimizer", "did you mean") as told:
        check(custom_keys=dict(head=dict(lr_mul=1)))
    name = told.value.message.rpartition("did you mean ")[2].rstrip("?")
    check(custom_keys=dict(head={name: 1}))


def test_hooks_that_wait_for_epochs() -> None:
    with advises("engine/dry_step.py:_by_epoch", "set by_epoch=False"):
        _check_unit("default_hooks.checkpoint", CheckpointHook(interval=1))
    _check_unit("default_hooks.checkpoint", CheckpointHook(interval=1, by_epoch=False))
    with advises("engine/dry_step.py:_check_unit", "set begin_iter"):
        _check_unit("custom_hooks.0", EMAHook(begin_epoch=1))
    _check_unit("custom_hooks.0", EMAHook(begin_iter=1))


def test_mixed_precision_of_a_gpu_on_a_cpu(scenes: Path) -> None:
    def step(amp: bool = False, **options: Any) -> None:
        cfg = resolve(small_config(scenes, **options), TrainingOptions("work", amp=amp), HERE).cfg
        dry_step(cfg, build_seeded_model(cfg), HERE)

    with advises("engine/dry_step.py:_train", "write BFloat16OptimWrapper", "give --amp"):
        step(optim_wrapper__type="AmpOptimWrapper")
    step(optim_wrapper__type="BFloat16OptimWrapper")
    step(amp=True)


def test_pictures_among_the_images(scenes: Path) -> None:
    cfg: Config = small_config(scenes)
    with advises("engine/preflight.py:check_outputs", "name a folder elsewhere"):
        check_outputs(cfg, {"--out": scenes / "images" / "training" / "pictures"})
    check_outputs(cfg, {"--out": scenes / "pictures"})
