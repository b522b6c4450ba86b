# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""``torch.compile`` of a function of a module and images, or the function itself where that fails.

Compiling takes minutes, so sizes are put into few buckets. The first size of images has code of its
own; images of every other size share code whose sizes are free. In evaluation batches are cut and
filled up to the first one, which changes no image's result, and small images, for which torch would
compile code of their own again, are computed as they are.
"""

from __future__ import annotations

import threading
import types
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from ..errors import UserError
from ..io.cancel import Cancelled
from ..io.memory import ran_out_of_memory

__all__ = ["Compiled"]

Function = Callable[[Any, Tensor], Any]

#: Height and width that code of free sizes is compiled with in evaluation: torch takes edges that
#: are equal for always equal.
_SAMPLE = (160, 192)
#: Below these torch has other code for convolutions, and for maps of one pixel.
_LEAST_PIXELS, _LEAST_EDGE = 20480, 64
_NO_COMPILER = "InvalidCxxCompiler"  # the name of torch's error, which is private


class Compiled:
    """A compiled function, called as the function: ``compiled(module, images)``.

    It holds nothing of the module. Threads may call it.

    Args:
        function: Of a module and images (N, C, H, W). With ``batches`` it gives a tensor with N
            rows; it may depend on anything of an image, but not on the others of its batch.
        tell: Gets a line when a bucket is compiled, and one where that fails.
        batches: Whether batches may be cut and filled up.
        options: Of ``torch.compile``. With ``dynamic`` all sizes are one bucket.

    Attributes:
        failed: Why it is not compiled; None: it is, as far as it was called.
    """

    def __init__(
        self,
        function: Function,
        tell: Callable[[str], object],
        batches: bool = False,
        **options: Any,
    ) -> None:
        self.failed: str | None = None
        # torch keeps what it has compiled by code object, and bounds how much.
        own = cast(types.FunctionType, function)
        code = own.__code__.replace()
        self._plain = function
        self._own = types.FunctionType(
            code, own.__globals__, own.__name__, own.__defaults__, own.__closure__
        )
        self._tell, self._options, self._batches = tell, options, batches
        self._buckets: dict[str, Function] = {}
        self._ready: set[str] = set()
        self._first: tuple[int, ...] | None = None
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: Any) -> Compiled:
        return self

    def __call__(self, module: Any, images: Tensor) -> Any:
        """What the function gives."""
        if self.failed is not None:
            return self._plain(module, images)
        with self._lock:
            self._first = self._first or tuple(images.shape)
        batch, *size = self._first
        fixed = "dynamic" not in self._options
        if not self._batches:
            same = fixed and tuple(images.shape) == self._first
            return self._call("first" if same else "free", module, images)
        name = "first" if fixed and list(images.shape[1:]) == size else "free"
        height, width = images.shape[2:]
        small = min(height, width) < _LEAST_EDGE or height * width <= _LEAST_PIXELS
        if name == "free" and small:
            return self._plain(module, images)
        rows = []
        for part in images.contiguous().split(batch):
            whole = torch.cat([part, part[-1:].expand(batch - len(part), -1, -1, -1)])
            rows.append(self._call(name, module, whole)[: len(part)])
        return torch.cat(rows)

    def _call(self, name: str, module: Any, images: Tensor) -> Any:
        if name not in self._ready:
            with self._lock:  # other threads wait: they would compile the same
                if name not in self._ready and self.failed is None:
                    return self._compile(name, module, images)
        return self._run(name, module, images)

    def _compile(self, name: str, module: Any, images: Tensor) -> Any:
        size = f"{images.shape[3]}x{images.shape[2]}"
        what = "any other size" if name == "free" and len(self._ready) else f"{size} pixels"
        what = "any size" if "dynamic" in self._options else what
        self._tell(f"torch.compile: compiling for images of {what}, which may take minutes")
        if name == "free" and self._batches:
            self._run(name, module, images.new_zeros(*images.shape[:2], *_SAMPLE))
        result = self._run(name, module, images)
        if self.failed is None:
            self._ready.add(name)
        return result

    def _run(self, name: str, module: Any, images: Tensor) -> Any:
        if self.failed is not None:
            return self._plain(module, images)
        try:
            if name not in self._buckets:
                options = {"dynamic": name == "free", **self._options}
                self._buckets[name] = torch.compile(self._own, **options)
            return self._buckets[name](module, images)
        except (UserError, Cancelled):
            raise
        except Exception as error:
            if ran_out_of_memory(error):
                raise
            result = self._plain(module, images)  # or the fault is the model's
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            self.failed = f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]
            if _NO_COMPILER in str(error):
                self.failed = "it finds no C++ compiler, e.g. of apt install g++"
            self._tell(f"torch.compile failed ({self.failed}); plain torch computes instead")
            return result
