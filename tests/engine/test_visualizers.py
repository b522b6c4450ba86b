# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine.visualization import LocalVisBackend
from mmengine.visualization import Visualizer as MMEngineVisualizer
from mmseg.visualization import SegLocalVisualizer as MMSegVisualizer
from tiny_runs import make_runner

from mmseg_resnest.engine.visualizers import SegLocalVisualizer, Visualizer
from mmseg_resnest.registry import VISUALIZERS, building

IMAGE = np.arange(40 * 60 * 3, dtype=np.uint8).reshape(40, 60, 3)
LOCAL = {"type": "LocalVisBackend"}


def _draw(visualizer: Any) -> Any:
    visualizer.set_image(IMAGE)
    visualizer.draw_bboxes(np.array([5, 5, 30, 20]), edge_colors="r")
    visualizer.draw_texts("text", np.array([20, 20]))
    return visualizer.get_image()


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(Visualizer, MMEngineVisualizer), (SegLocalVisualizer, MMSegVisualizer)],
)
def test_what_is_drawn_is_the_stacks(ours: type, theirs: type) -> None:
    options = {"fig_save_cfg": {"frameon": False, "dpi": 50}}
    drawn = _draw(ours(**options))
    np.testing.assert_array_equal(drawn, _draw(theirs(**options)))
    assert (drawn != IMAGE).any()
    np.testing.assert_array_equal(_draw(ours()), _draw(theirs()))
    np.testing.assert_array_equal(ours(image=IMAGE).get_image(), theirs(image=IMAGE).get_image())


def test_a_run_that_draws_nothing_makes_no_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise AssertionError("a figure is made")

    monkeypatch.setattr(MMEngineVisualizer, "_initialize_fig", fail)
    runner = make_runner(tmp_path / "default", iterations=1, interval=-1)
    runner.train()
    (scalars,) = (tmp_path / "default").glob("*/vis_data/scalars.json")
    assert scalars.stat().st_size
    with building("mmseg_resnest"):
        made = VISUALIZERS.build(
            {
                "type": "SegLocalVisualizer",
                "name": "draws",
                "vis_backends": [LOCAL],
                "save_dir": str(tmp_path),
            }
        )
    made.add_scalar("loss", 1.0)
    assert (tmp_path / "vis_data" / "scalars.json").is_file()
    with pytest.raises(AssertionError, match="a figure is made"):
        made.set_image(IMAGE)


def test_back_ends_are_found_as_by_mmengine(tmp_path: Path) -> None:
    named = {**LOCAL, "name": "second"}
    for backends in ([LOCAL, named], LOCAL, None, [dict(LOCAL, save_dir=str(tmp_path))]):
        ours, theirs = (
            list(kind(vis_backends=_copied(backends), save_dir=str(tmp_path))._vis_backends)
            for kind in (Visualizer, MMEngineVisualizer)
        )
        assert ours == theirs
    with pytest.warns(UserWarning, match="save_dir"):
        assert not Visualizer(vis_backends=[{"type": LocalVisBackend}])._vis_backends
    with pytest.raises(RuntimeError, match="LocalVisBackend already exists"):
        Visualizer(vis_backends=[LOCAL, LOCAL], save_dir=str(tmp_path))
    with pytest.raises(TypeError, match="vis_backends"):
        Visualizer(vis_backends=["LocalVisBackend"])


def _copied(backends: Any) -> Any:
    """MMEngine's takes keys out of what it is given."""
    if isinstance(backends, list):
        return [dict(one) for one in backends]
    return backends and dict(backends)
