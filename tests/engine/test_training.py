# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
from __future__ import annotations

from pathlib import Path

import pytest
from small_runs import run, small_config
from user_errors import raises_user_error

from mmseg_resnest.datasets import build_dataset
from mmseg_resnest.datasets.scenes import write_scenes
from mmseg_resnest.engine.preemption import Preempted
from mmseg_resnest.engine.training import unwrapped_interrupts
from mmseg_resnest.registry import building


@pytest.mark.parametrize("behind", [KeyboardInterrupt(), Preempted("SIGTERM: nothing was trained")])
def test_an_interrupt_that_a_library_turned_into_an_error_is_raised(behind: BaseException) -> None:
    """As MMEngine does while it formats a config."""
    error = SyntaxError("cannot be formatted")
    error.__context__ = behind
    with pytest.raises(type(behind)), unwrapped_interrupts():
        raise error


def test_other_errors_stay() -> None:
    with pytest.raises(SyntaxError), unwrapped_interrupts():
        raise SyntaxError("really")


def test_corrupt_pretrained_weights_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", 4, 1, progress=False)
    (tmp_path / "weights.pth").write_bytes(b"PK\3\4" + bytes(100))
    cfg = small_config(tmp_path / "scenes")
    cfg.model.backbone.init_cfg = dict(type="Pretrained", checkpoint=str(tmp_path / "weights.pth"))
    with raises_user_error("corrupt", tmp_path / "weights.pth"):
        run(cfg, tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_a_run_that_was_refused_leaves_no_list_of_images(tmp_path: Path) -> None:
    """The next one in this process sees what has changed since."""
    scenes = write_scenes(tmp_path / "scenes", 4, 1, progress=False)
    cfg = small_config(scenes)
    cfg.model.backbone.init_cfg = dict(type="Pretrained", checkpoint=str(tmp_path / "none.pth"))
    with raises_user_error("not-found", "init_cfg.checkpoint"):
        run(cfg, tmp_path / "work")
    for kind in ("images", "annotations"):
        min((scenes / kind / "training").iterdir()).unlink()
    with building("mmseg_resnest"):
        assert len(build_dataset(cfg.train_dataloader.dataset, keep=True)) == 3
