# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A model whose weights are loaded anew is another network for what computes it."""

from __future__ import annotations

import weakref
from typing import Any, Protocol

from ..models import EncoderDecoder

__all__ = ["forget_with_weights"]


class _Engine(Protocol):
    """What is used of :class:`.engines.Engine`, which stands above this file."""

    def forget(self) -> None: ...


def forget_with_weights(model: EncoderDecoder, engine: _Engine) -> None:
    """Have an engine forget its network once other weights are loaded into its model.

    A copy of the model, which the engine computes as well, computes itself from then on.
    """
    known = weakref.ref(engine)  # the model must not keep what another engine replaces
    own = weakref.ref(model)

    def loaded(module: Any, keys: Any) -> None:
        one = known()
        if one is None or module.runtime is not one:
            return
        if module is own():
            one.forget()
        else:
            module.runtime = None

    handle = model.register_load_state_dict_post_hook(loaded)
    weakref.finalize(engine, handle.remove)
