# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""configs/detection/openmmlab says what the configs that come with MMDetection say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mmdet
import pytest
from mmengine.config import Config

OURS = Path(__file__).parents[2] / "configs" / "detection" / "openmmlab"
THEIRS = Path(mmdet.__file__).parent / ".mim" / "configs" / "resnest"
IMAGES = 117266
#: Ours are written with a scope, without the default of a class, or as the same by another name.
SKIPPED = {"requires_grad", "backbone", "norm_eval", "backend_args", "mask_size", "clip_border"}


def flat(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every value by its dotted key; types without scope."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            if name not in SKIPPED:
                yield from flat(value, f"{key}.{name}")
    elif isinstance(node, list | tuple) and any(isinstance(one, Mapping) for one in node):
        for place, one in enumerate(node):
            yield from flat(one, f"{key}.{place}")
    else:
        value = list(node) if isinstance(node, tuple) else node
        yield key, value.removeprefix("mmdet.") if isinstance(value, str) else value


@pytest.mark.parametrize("name", sorted(path.stem for path in OURS.glob("*.py")))
def test_model_images_and_schedule(name: str) -> None:
    method, depth = name.split("_resnest")[0].replace("_", "-"), name.split("_resnest")[1][:-5]
    (file,) = THEIRS.glob(f"{method}_s{depth}_*.py")
    ours, theirs = Config.fromfile(OURS / f"{name}.py"), Config.fromfile(file)
    found, wanted = dict(flat(ours.model)), dict(flat(theirs.model))
    differing = {k: (found.get(k), v) for k, v in wanted.items() if found.get(k, v) != v}
    assert not differing
    # what theirs leaves to a class, and ours writes
    left = set(wanted) - set(found)
    assert {key.rpartition(".")[2] for key in left} <= {"norm_cfg"}, left

    assert ours.model.backbone.frozen_stages == theirs.model.backbone.frozen_stages == 1
    (resize,) = [s for s in ours.train_dataloader.dataset.pipeline if "Resize" in s.type]
    (other,) = [s for s in theirs.train_dataloader.dataset.pipeline if "Resize" in s.type]
    assert resize.type == other.type
    sizes = "scales" if "scales" in other else "scale"
    assert [tuple(one) for one in resize[sizes]] == [tuple(one) for one in other[sizes]]
    epoch = IMAGES // 16
    assert ours.train_cfg.max_iters == theirs.train_cfg.max_epochs * epoch
    (warm_up, steps), (their_warm_up, their_steps) = ours.param_scheduler, theirs.param_scheduler
    assert (warm_up.start_factor, warm_up.end) == (their_warm_up.start_factor, their_warm_up.end)
    assert steps.milestones == [one * epoch for one in their_steps.milestones]
    assert ours.optim_wrapper.optimizer == theirs.optim_wrapper.optimizer
    assert ours.optim_wrapper.get("paramwise_cfg") is None
