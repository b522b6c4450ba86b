# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Memory and time of a run: predicted before its first step, and measured in it.

On a CPU the kernel kills a process that takes too much memory, without a word. So two small steps
are made first, of 64 x 64 and 128 x 128 pixels: the memory of a step grows in a straight line with
its pixels. What they grow by is taken from the peak of the process, or of the tensors on a GPU; and
from the tensors that wait for the backward pass, where the process has freed memory to use again.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.structures import PixelData
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from ..errors import UserError
from ..io.memory import available_memory, forget_peak_memory, peak_memory, ran_out_of_memory
from ..io.text import gigabytes
from .launch import local_world_size
from .preemption import Preempted

#: Edges and images of the small steps; batch norm needs two images.
_EDGES, _IMAGES = (64, 128), 2
#: A step's memory by that of the tensors that wait for its backward pass: 1.4 to 1.7 with ResNeSt
#: on a CPU.
_BY_SAVED = 1.6
#: Share of the free memory that a suggestion takes.
_FILLED = 0.9
_LEAST_EDGE, _EDGE_STEP = 64, 32


@dataclass
class Step:
    """What a step took: seconds, and bytes of memory before it and at the peak.

    They are of the process, or of tensors on the GPU.
    """

    seconds: float = 0.0
    before: int = 0
    peak: int = 0


@contextlib.contextmanager
def watched(cuda: bool = False, device: torch.device | None = None) -> Iterator[Step]:
    """Measure the memory and the time of what is done inside, on a GPU or in this process.

    ``device`` is the GPU, None the current one.
    """
    step = Step()
    if cuda:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        step.before = torch.cuda.memory_allocated(device)
    else:
        forget_peak_memory()
        step.before = peak_memory()
    begin = time.perf_counter()
    yield step
    if cuda:
        torch.cuda.synchronize(device)
    step.seconds = time.perf_counter() - begin
    step.peak = torch.cuda.max_memory_allocated(device) if cuda else peak_memory()


def free_memory(cuda: bool = False) -> int | None:
    """Bytes that this process may take more, its share where several are on the machine.

    None where the system does not tell.
    """
    if cuda:
        kept = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return torch.cuda.mem_get_info()[0] + kept
    found = available_memory()
    return None if found is None else found // local_world_size()


@dataclass(frozen=True)
class Forecast:
    """What a training step takes beyond the memory in use: ``fixed + per_pixel * pixels`` bytes.

    ``pixels`` are those of all images of the step.
    """

    fixed: float
    per_pixel: float

    def bytes(self, images: int, size: tuple[int, int]) -> int:
        """Of a step with so many images of (height, width)."""
        return round(self.fixed + self.per_pixel * images * size[0] * size[1])

    def fitting_batch(self, images: int, size: tuple[int, int], free: int) -> int | None:
        """The most images, at least two and fewer than ``images``, that fit."""
        one = self.per_pixel * size[0] * size[1]
        most = min(images - 1, math.floor((_FILLED * free - self.fixed) / one))
        return most if most >= _IMAGES else None

    def fitting_size(self, images: int, size: tuple[int, int], free: int) -> tuple[int, int] | None:
        """The largest (height, width) of about the same shape that fits, of multiples of 32."""
        area = (_FILLED * free - self.fixed) / (self.per_pixel * images)
        if area <= 0:
            return None
        scale = min(1.0, math.sqrt(area / (size[0] * size[1])))
        height, width = (int(edge * scale) // _EDGE_STEP * _EDGE_STEP for edge in size)
        return (height, width) if min(height, width) >= _LEAST_EDGE else None


def batch_size_of(model: nn.Module, batch: Any) -> tuple[int, tuple[int, int]] | None:
    """Images and (height, width) of a batch, as the model's preprocessor pads it; None: unknown."""
    inputs = batch.get("inputs") if isinstance(batch, Mapping) else None
    if not isinstance(inputs, Sequence) or not all(_is_image(one) for one in inputs) or not inputs:
        return None
    height, width = (max(int(one.shape[axis]) for one in inputs) for axis in (-2, -1))
    padded = getattr(getattr(model, "data_preprocessor", None), "size", None)
    if isinstance(padded, Sequence) and len(padded) == 2:
        height, width = max(height, int(padded[0])), max(width, int(padded[1]))
    return len(inputs), (height, width)


def _is_image(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 3


def forecast(model: Any, optim_wrapper: Any, batch: Any, cuda: bool = False) -> Forecast | None:
    """Predict the memory of a training step from two small ones; the weights stay as they are.

    Args:
        model: The model, on its device and in training mode; statistics of its batch norms change.
        optim_wrapper: Its optimizer wrapper, for the precision; nothing is updated.
        batch: A batch of the training, as its loader gives it.
        cuda: Whether the model is on a GPU.

    Returns:
        None where the batch is not larger than the small ones, or the model cannot make them.
    """
    found = batch_size_of(model, batch)
    if found is None or found[0] * math.prod(found[1]) <= _IMAGES * _EDGES[-1] ** 2:
        return None
    if any(min(one.shape[-2:]) < _EDGES[-1] for one in batch["inputs"]):
        return None
    points: list[tuple[int, int, int]] = []
    try:
        for edge in _EDGES:
            with _padding_to(model, edge), watched(cuda) as step, saved_tensors(model) as saved:
                model.train_step(_small(batch, edge), _WithoutUpdate(optim_wrapper))
            points.append((_IMAGES * edge**2, step.peak, saved.bytes))
    except Preempted:
        raise
    except Exception as error:  # of a model that needs larger images; the first step shows it
        if ran_out_of_memory(error):
            raise
        return None
    finally:
        model.zero_grad(set_to_none=True)
    (few, low, _), (many, high, kept) = points
    with watched(cuda) as now:
        pass
    per_pixel = max((high - low) / (many - few), _BY_SAVED * kept / many)
    states = _states(model, optim_wrapper)
    return Forecast(states + max(0, high - now.before) - per_pixel * many, per_pixel)


class _WithoutUpdate:
    """An optimizer wrapper that computes gradients in another one's precision, and no more."""

    def __init__(self, wrapper: Any) -> None:
        self._wrapper = wrapper

    def optim_context(self, model: nn.Module) -> Any:
        return self._wrapper.optim_context(model)

    def update_params(self, loss: Tensor, **kwargs: Any) -> None:
        loss.backward()


def _states(model: nn.Module, optim_wrapper: Any) -> int:
    """Bytes of what an optimizer keeps of the trained parameters: two numbers of each, or one."""
    name = type(getattr(optim_wrapper, "optimizer", None)).__name__
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return trained * (1 if name == "SGD" else 2)


def _small(batch: Any, edge: int) -> dict[str, Any]:
    """Two images of a batch, cut to their upper left corner, with what belongs to them."""
    size = (edge, edge)
    picked = [index % len(batch["inputs"]) for index in range(_IMAGES)]
    small: dict[str, Any] = {"inputs": [batch["inputs"][i][:, :edge, :edge] for i in picked]}
    if batch.get("data_samples") is not None:
        samples = []
        for index in picked:
            sample = batch["data_samples"][index].clone()
            for name, value in list(sample.items()):
                if isinstance(value, PixelData):
                    sample.set_data({name: value[:edge, :edge]})
            sample.set_metainfo({"img_shape": size, "pad_shape": size})
            samples.append(sample)
        small["data_samples"] = samples
    return small


@contextlib.contextmanager
def _padding_to(model: Any, edge: int) -> Iterator[None]:
    """Let the preprocessor pad images to squares where it pads them to a size."""
    preprocessor: Any = getattr(model, "data_preprocessor", None)
    before = getattr(preprocessor, "size", None)
    if before is not None:
        preprocessor.size = (edge, edge)
    try:
        yield
    finally:
        if before is not None:
            preprocessor.size = before


@dataclass
class Saved:
    """What :func:`saved_tensors` has counted so far."""

    bytes: int = 0


@contextlib.contextmanager
def saved_tensors(model: nn.Module) -> Iterator[Saved]:
    """Count the bytes of the tensors that are kept for the backward pass, without the weights."""
    own = [*model.parameters(), *model.buffers()]
    seen = {StorageWeakRef(tensor.untyped_storage()) for tensor in own}
    total = Saved()

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if (known := StorageWeakRef(storage)) not in seen:  # without values all are at address 0
            seen.add(known)
            total.bytes += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield total


def check_memory(
    expected: Forecast, images: int, size: tuple[int, int], processes: int, cuda: bool = False
) -> None:
    """Raise UserError, with what would fit, if a step takes more memory than there is.

    ``images`` are those of a process, of (height, width); ``--batch-size`` counts those of all
    processes.
    """
    free = free_memory(cuda)
    needed = expected.bytes(images, size)
    if free is None or needed <= free:
        return
    fits = []
    if fewer := expected.fitting_batch(images, size, free):
        fits.append(f"--batch-size {fewer * processes}")
    if smaller := expected.fitting_size(images, size, free):
        fits.append(f"--image-size {smaller[1]}x{smaller[0]}")
    advice = f"would fit: {' or '.join(fits)}" if fits else "take a smaller model"
    where = "on the GPU" if cuda else "on this machine"
    raise UserError(
        "memory",
        "config key train_dataloader.batch_size",
        f"a step with {images} images of {size[1]}x{size[0]} would take about {gigabytes(needed)} "
        f"more, an estimate from two small steps, and {gigabytes(free)} are free {where}; {advice} "
        "(dry_step=False starts without asking)",
    )
