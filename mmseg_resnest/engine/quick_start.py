# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What torch and MMEngine do at the start of a run for things that most runs never need."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch
from mmengine.config import Config
from mmengine.visualization import Visualizer
from torch.optim import Optimizer

__all__ = ["start_quickly"]


@functools.cache
def start_quickly() -> None:
    """Put off, for this process, what a run may never need; results stay the same.

    * torch's compiler, which torch's optimizers import to mark places for it, until something else
      imports it;
    * Matplotlib and a figure, which MMEngine's visualizer makes, until something is drawn;
    * formatting the config a second, third and fourth time.
    """
    _spare_compiler()
    _spare_figures()
    _remember_config_text()


# --- torch's compiler


def _spare_compiler() -> None:
    if "torch._dynamo" in sys.modules:
        return
    for name in ("add_param_group", "load_state_dict", "state_dict", "zero_grad"):
        _unless_compiled(getattr(Optimizer, name))
    for kind in vars(torch.optim).values():
        step: Any = vars(kind).get("step") if isinstance(kind, type) else None
        if getattr(getattr(step, "__code__", None), "co_name", "") == "_use_grad":
            kind.step = _step(step)


def _unless_compiled(marked: Any) -> None:
    """Let a method that is closed to the compiler be called without importing the compiler.

    Args:
        marked: What ``torch._disable_dynamo`` made. It calls what it finds as an attribute of the
            method, and puts it there, with the compiler, when there is nothing.
    """
    method = getattr(marked, "__wrapped__", None)
    if method is None or hasattr(method, "__dynamo_disable"):
        return

    def call(*args: Any, **kwargs: Any) -> Any:
        if "torch._dynamo" in sys.modules:
            vars(method).pop("__dynamo_disable", None)
            return marked(*args, **kwargs)
        return method(*args, **kwargs)

    vars(method)["__dynamo_disable"] = call


def _step(marked: Callable[..., Any]) -> Callable[..., Any]:
    """An optimizer's step that breaks the compiler's graph only where there is a compiler."""
    method: Any = marked.__wrapped__  # type: ignore[attr-defined]

    @functools.wraps(marked)
    def step(self: Optimizer, *args: Any, **kwargs: Any) -> Any:
        if "torch._dynamo" in sys.modules:
            return marked(self, *args, **kwargs)
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            return method(self, *args, **kwargs)

    return step


# --- figures


class _Later(Exception):
    """A visualizer is to make its figure when it needs one."""


_FIGURE = ("fig_save_canvas", "fig_save", "ax_save")


def _later(cfg: dict[str, Any]) -> None:
    raise _Later


def _spare_figures() -> None:
    initialise = Visualizer.__init__

    @functools.wraps(initialise)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        image = args[1] if len(args) > 1 else kwargs.get("image")
        if image is not None or not hasattr(self, "_initialize_fig"):
            initialise(self, *args, **kwargs)  # it draws
            return
        self._initialize_fig = _later
        try:
            initialise(self, *args, **kwargs)
        except _Later:
            vars(self).pop("fig_save", None)  # None so far
        finally:
            del self._initialize_fig

    def missing(self: Any, name: str) -> Any:
        if name not in (*_FIGURE, "dpi") or "fig_save_cfg" not in vars(self):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        vars(self).update(zip(_FIGURE, self._initialize_fig(self.fig_save_cfg), strict=True))
        self.dpi = self.fig_save.get_dpi()
        return vars(self)[name]

    init.__signature__ = inspect.signature(initialise)  # type: ignore[attr-defined]
    Visualizer.__init__ = init
    Visualizer.__getattr__ = missing


# --- the config's text


def _remember_config_text() -> None:
    write = Config.pretty_text.fget
    texts: dict[str, str] = {}

    def pretty_text(self: Config) -> str:
        key = f"{self._format_python_code} {self.to_dict()!r}"
        if key not in texts:
            texts.clear()  # the last one is the one that is asked for again
            texts[key] = write(self)
        return texts[key]

    pretty_text.__doc__ = Config.pretty_text.__doc__
    Config.pretty_text = property(pretty_text)
