# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Visualizers that make their figure, and import matplotlib, when something is drawn.

Most runs write numbers only; with MMEngine's, each waits for matplotlib before its first iteration.
"""

from __future__ import annotations

import functools
import inspect
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.registry import VISBACKENDS
from mmengine.visualization import Visualizer as MMEngineVisualizer
from mmengine.visualization.vis_backend import BaseVisBackend
from mmseg.visualization import SegLocalVisualizer as MMSegVisualizer
from numpy.typing import NDArray

from .._stack import backend_folder
from ..registry import VISUALIZERS


@VISUALIZERS.register_module()
class Visualizer(MMEngineVisualizer):
    """MMEngine's visualizer of this name; its figure is made when something is drawn.

    Args:
        name: Name of the instance.
        image: (H, W, 3) RGB of uint8 to draw on; None leaves it to ``set_image``.
        vis_backends: Where to write, back ends or their configs, of different names.
        save_dir: Folder of those that write files, into ``vis_data`` in it; None leaves out those
            that need it.
        fig_save_cfg: Options of the figure to draw in.
        fig_show_cfg: Options of the window to show it in.

    Raises:
        TypeError: ``vis_backends`` is something else.
        RuntimeError: Two back ends have the same name.
    """

    def __init__(
        self,
        name: str = "visualizer",
        image: NDArray[Any] | None = None,
        vis_backends: Sequence[Any] | Mapping[str, Any] | BaseVisBackend | None = None,
        save_dir: str | None = None,
        fig_save_cfg: Mapping[str, Any] | None = None,
        fig_show_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super(MMEngineVisualizer, self).__init__(name)  # MMEngine's makes the figure
        self.fig_save_cfg = {"frameon": False} if fig_save_cfg is None else fig_save_cfg
        self.fig_show_cfg = {"frameon": False} if fig_show_cfg is None else fig_show_cfg
        self._dataset_meta = None
        self._vis_backends: dict[str, BaseVisBackend] = {}
        folder = None if save_dir is None else os.path.join(save_dir, "vis_data")
        backends = [] if vis_backends is None else vis_backends
        backends = [backends] if isinstance(backends, Mapping | BaseVisBackend) else backends
        for backend in backends:
            self._add_backend(backend, folder)
        if image is not None:
            self.set_image(image)

    def _add_backend(self, backend: Any, folder: str | None) -> None:
        name = None
        if isinstance(backend, Mapping):
            options = {"save_dir": folder, **backend}
            name = options.pop("name", None)
            backend = VISBACKENDS.build(options)
        if not isinstance(backend, BaseVisBackend):
            raise TypeError("vis_backends must be back ends or their configs")
        kind = type(backend)
        needed = inspect.signature(kind.__init__).parameters.get("save_dir")
        if (
            needed is not None
            and needed.default is needed.empty
            and backend_folder(backend) is None
        ):
            warnings.warn(f"{kind} is left out: it needs a save_dir", stacklevel=2)
            return
        name = name or kind.__name__
        if name in self._vis_backends:
            raise RuntimeError(f"vis_backend name {name} already exists")
        self._vis_backends[name] = backend

    @functools.cached_property
    def _figure(self) -> tuple[Any, Any, Any]:
        return self._initialize_fig(self.fig_save_cfg)

    @property
    def fig_save_canvas(self) -> Any:
        """The canvas of the figure."""
        return self._figure[0]

    @property
    def fig_save(self) -> Any:
        """The figure to draw in."""
        return self._figure[1]

    @property
    def ax_save(self) -> Any:
        """The axes of the figure."""
        return self._figure[2]

    @property
    def dpi(self) -> float:
        """Dots per inch of the figure."""
        return self.fig_save.get_dpi()


@VISUALIZERS.register_module()
class SegLocalVisualizer(MMSegVisualizer, Visualizer):
    """MMSegmentation's visualizer of this name; its figure is made when something is drawn."""
