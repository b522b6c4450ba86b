# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Tensors on a GPU that is not there: shapes, types and devices, without values.

What lies on the CPU is real and computed. What lies on the GPU is, with a CUDA build of torch, a
fake tensor on ``cuda``; with a build for CPUs, which has no such device, ``meta`` stands in.
Tensors of two devices in one operation are an error, as on a GPU. Each time the process would wait
for the GPU is noted with its place in the code, and answered with a made-up value.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import mmseg_resnest

DEVICE = torch.device("cuda", 0) if torch.backends.cuda.is_built() else torch.device("meta")
PACKAGE = Path(mmseg_resnest.__file__).parent
CPU = torch.device("cpu")
aten = torch.ops.aten
# What may have tensors of two devices; an index may lie on the CPU.
_MIXED = (aten.copy_, aten._to_copy, aten.index, aten.index_put, aten.index_put_)
_MIXED += (aten._index_put_impl_,)


class FakeGPU(TorchDispatchMode):
    """Runs operations; to be had from :func:`fake_gpu`.

    Attributes:
        waits: How often the GPU was waited for, by ``what, file.py:function``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":  # the device of a fake tensor
            return func(*args, **kwargs)
        with self:  # in inference mode operations come that are made of others
            made = func.decompose(*args, **kwargs)
        if made is not NotImplemented:
            return made
        tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        here = [one for one in tensors if one.device == CPU]
        target = kwargs.get("device")
        target = None if target is None else torch.device(target)
        if len(here) == len(tensors) and target in (None, CPU):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if len(here) == len(tensors):
            if func is aten._to_copy.default and not kwargs.get("non_blocking"):
                self._note("copy to the GPU")
        elif any(one.dim() for one in here) and func.overloadpacket not in _MIXED:
            raise RuntimeError(f"{func}: a tensor is on the CPU, and another one on the GPU")
        else:
            answer = self._waiting(func.overloadpacket, args, kwargs, target)
            if answer is not NotImplemented:
                return answer
        return func(*args, **kwargs)

    def _waiting(self, packet: Any, args: Any, kwargs: Any, target: torch.device | None) -> Any:
        """The made-up answer of what waits for the GPU; NotImplemented if it does not."""
        first = args[0]
        if packet is aten._local_scalar_dense:
            self._note("item")
            with unset_fake_temporarily():
                return first.dtype == torch.bool or torch.zeros((), dtype=first.dtype).item()
        if packet is aten.equal:
            self._note("equal")
            return True
        if packet is aten._to_copy and target == CPU:
            self._note("copy to the CPU")
            with unset_fake_temporarily():
                return torch.ones(first.shape, dtype=kwargs.get("dtype") or first.dtype)
        if packet is aten.copy_ and {first.device, args[1].device} == {CPU, DEVICE}:
            if args[1].device == CPU and args[1].dim() and not any(args[2:3]):
                self._note("copy to the GPU")
            elif first.device == CPU:
                self._note("copy to the CPU")
            return first
        if packet is aten.nonzero:
            self._note("nonzero")
            return first.new_zeros((0, first.dim()), dtype=torch.int64)
        if packet is aten.bincount:
            self._note("bincount")
            return first.new_zeros([*args[2:3], kwargs.get("minlength", 1)][0], dtype=torch.int64)
        if packet in (aten.index, aten.index_put, aten.index_put_) and any(
            one is not None and one.dtype == torch.bool for one in args[1]
        ):
            if packet is not aten.index and args[2].numel() == 1:
                return first if packet is aten.index_put_ else first.clone()  # it fills
            self._note("boolean index")
            index: list[Any] = []
            for one in args[1]:
                if one is None or one.dtype != torch.bool:
                    index.append(one)
                else:  # as if it were false everywhere
                    index += one.new_zeros((one.dim(), 0), dtype=torch.int64).unbind()
            return packet(first, index, *args[2:], **kwargs)
        return NotImplemented

    def _note(self, what: str) -> None:
        frame: Any = sys._getframe()
        while frame and PACKAGE not in Path(frame.f_code.co_filename).parents:
            frame = frame.f_back
        code = frame and frame.f_code
        where = f"{Path(code.co_filename).name}:{code.co_name}" if code else "elsewhere"
        self.waits[f"{what}, {where}"] += 1


def _to(module: nn.Module, device: Any) -> nn.Module:
    """``module.to(device)``, which torch does not do with fake tensors."""
    assert torch.device(device).type == DEVICE.type
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, one in tensors.items():
                if one is not None and one.device == CPU:
                    moved: Tensor = torch.empty_strided(
                        one.shape, one.stride(), dtype=one.dtype, device=DEVICE
                    )
                    if isinstance(one, nn.Parameter):
                        moved = nn.Parameter(moved, one.requires_grad)
                    tensors[name] = moved
    return module


@contextlib.contextmanager
def fake_gpu() -> Iterator[FakeGPU]:
    """A GPU for the length of a ``with``."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(patch.object(nn.Module, "to", _to))
        if DEVICE.type == "cuda":
            stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        yield stack.enter_context(FakeGPU())
