# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Measures a training by some of its own steps: memory, seconds, and a learning rate range test.

Meant for a process of its own, which the system may kill in place of the run's: what has been
measured until then is yielded already. Nothing is written.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.model import revert_sync_batchnorm

from ...models import use_channels_last
from ...registry import building
from .. import forecast
from ..checkpoint import load_weights
from ..failing_parts import failing_model
from ..launch import Machine, prepare_machine
from ..model import build_seeded_model
from ..numerics import is_fused
from ..optimization import build_optimization
from ..process_state import restored_process
from ..resolve import TrainingOptions
from ..runner import Runner
from ..training import resolve_training
from .budget import Budget

_MOST_RANGE_STEPS, _LEAST_RANGE_STEPS = 60, 20
_STEPS = 3  # of which the first one warms up
_RATES = 1e-5, 1e-1  # of the range test
_SMOOTHING = 0.8
_FILLED = 0.9  # share of the free memory that a step may be expected to take
_DIVERGED = 3.0  # times the lowest loss


@dataclass(frozen=True)
class Step:
    """A step with so many images: its peak of memory in bytes, and its seconds."""

    batch: int
    bytes: int
    seconds: float


@dataclass(frozen=True)
class Measured:
    """What steps of a training take, with batches from small to large.

    ``load_seconds`` are to load one training image, in one process; ``val_seconds`` to load one
    validation image and predict it. ``lr`` is what a range test of so many steps chose, None
    without one. ``killed`` says that the process was killed before it was done.
    """

    steps: tuple[Step, ...] = ()
    load_seconds: float = 0.0
    val_seconds: float = 0.0
    lr: float | None = None
    range_steps: int = 0
    killed: bool = False

    @classmethod
    def of(cls, messages: Iterable[dict[str, Any]], killed: bool = False) -> Measured:
        """Put together what :func:`measure` yielded."""
        values: dict[str, Any] = {"killed": killed}
        steps = []
        for message in messages:
            if "batch" in message:
                steps.append(Step(**message))
            else:
                values |= message
        return cls(steps=tuple(sorted(steps, key=lambda one: one.batch)), **values)

    def messages(self) -> list[dict[str, Any]]:
        """What :meth:`of` makes this of, as plain data."""
        plain = asdict(self)
        return [*plain.pop("steps"), plain]

    def memory(self, batch: int) -> int:
        """Bytes of a step with so many images, on the line through what was measured."""
        return round(self._at(batch, [(one.batch, one.bytes) for one in self.steps]))

    def seconds(self, batch: int) -> float:
        """Seconds of a step with so many images, on the line through what was measured."""
        return self._at(batch, [(one.batch, one.seconds) for one in self.steps])

    @staticmethod
    def _at(batch: int, points: Sequence[tuple[int, float]]) -> float:
        (few, low), (many, high) = points[0], points[-1]
        slope = max(0.0, (high - low) / (many - few)) if many > few else low / few
        return low + slope * (batch - few) if batch >= few else low * batch / few


def range_steps(budget: Budget, seconds: float) -> int:
    """Steps of a range test: a twentieth of the training, at most 60; 0 where that is under 20.

    ``seconds`` are those of an iteration.
    """
    length = budget.iterations or (budget.seconds or 0) / max(seconds, 1e-9)
    steps = min(_MOST_RANGE_STEPS, int(length / 20))
    return steps if steps >= _LEAST_RANGE_STEPS else 0


def measure(cfg: Config, batches: Sequence[int], budget: Budget) -> Iterator[dict[str, Any]]:
    """Make some steps of a training and yield what they take, for :meth:`Measured.of`.

    Steps of ``batches`` images are measured, from small to large; ``budget`` is that of the
    training, which decides how long the range test is. Raises as a training before its first step.
    """
    machine = Machine.here("none")
    with restored_process(), building(cfg.get("default_scope", "mmseg_resnest")):
        cfg = resolve_training(cfg, TrainingOptions("unused"), machine)[0].cfg
        prepare_machine(cfg, machine)
        built = build_seeded_model(cfg)
        model: Any = built.model
        model.init_weights()
        if cfg.get("load_from"):
            load_weights(model, cfg.load_from, start_training=True)
        model = revert_sync_batchnorm(model.to(get_device()))
        if is_fused(cfg):
            use_channels_last(model)
        start = {name: value.detach().clone() for name, value in model.state_dict().items()}
        size, *larger = batches
        while True:
            free = forecast.free_memory(machine.cuda)
            step, load = _measure_step(cfg, model, built.seed, size, machine.cuda)
            yield {"load_seconds": load / size}
            yield {"batch": size, "bytes": step.peak, "seconds": step.seconds}
            if not larger:
                break
            growth = (step.peak - step.before) / size
            size = larger.pop(0)
            while free is not None and size > batches[0] and size * growth >= _FILLED * free:
                size = max(batches[0], size // 2)  # or the system would kill this process
            if size == batches[0]:
                break
        yield {"val_seconds": _validation_seconds(cfg, model, built.seed)}
        if steps := range_steps(budget, step.seconds + load):
            model.load_state_dict(start)
            loader = _loader(cfg, "train_dataloader", built.seed, size)
            yield {"lr": range_test(cfg, model, loader, steps), "range_steps": steps}


def _measure_step(
    cfg: Config, model: Any, seed: int, size: int, cuda: bool
) -> tuple[forecast.Step, float]:
    """The median of some steps with one batch, and the seconds that it took to load."""
    model.train()
    optim_wrapper, _ = build_optimization(cfg, model)
    begin = time.perf_counter()
    batch = next(iter(_loader(cfg, "train_dataloader", seed, size)))
    load = time.perf_counter() - begin
    taken = []
    with failing_model(cfg, model, batch, "train_dataloader", size):
        for _ in range(_STEPS):
            with forecast.watched(cuda) as step:
                model.train_step(batch, optim_wrapper)
            taken.append(step)
    seconds = statistics.median(step.seconds for step in taken)
    return forecast.Step(seconds, taken[0].before, max(step.peak for step in taken)), load


def _loader(cfg: Config, name: str, seed: int, batch: int) -> Any:
    """A data loader of the config in this process."""
    changes = {"num_workers": 0, "persistent_workers": False, "timeout": 0, "prefetch_factor": None}
    return Runner.build_dataloader({**cfg[name], "batch_size": batch, **changes}, seed=seed)


def _validation_seconds(cfg: Config, model: Any, seed: int) -> float:
    """Seconds of a validation image; the first one warms up."""
    model.eval()
    images = iter(_loader(cfg, "val_dataloader", seed, 1))
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        batch = next(images, None)
        if batch is None:
            break
        with failing_model(cfg, model, batch, "val_dataloader", 1), torch.no_grad():
            model.val_step(batch)
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def range_test(cfg: Config, model: Any, loader: Any, steps: int) -> float:
    """A quarter of the learning rate at which the loss was lowest while that rate rose.

    After Smith, "Cyclical Learning Rates for Training Neural Networks" (2017): one step at each
    rate from 1e-5 to 0.1, in equal ratios; the loss is smoothed, and the test ends where it
    diverges. The model, in the state that the run starts from, is trained meanwhile; a loader that
    ends is started anew. The rate that is returned has two digits.
    """
    model.train()
    optim_wrapper, _ = build_optimization(cfg, model)
    groups = optim_wrapper.optimizer.param_groups
    shares = [group["lr"] / cfg.optim_wrapper.optimizer.lr for group in groups]
    low, high = _RATES
    best, smooth, lowest = low, 0.0, math.inf
    batches = iter(loader)
    for number in range(steps):
        rate = low * (high / low) ** (number / max(1, steps - 1))
        for group, share in zip(groups, shares, strict=True):
            group["lr"] = rate * share
        if (batch := next(batches, None)) is None:
            batches = iter(loader)
            batch = next(batches)
        loss = float(model.train_step(batch, optim_wrapper)["loss"].detach())
        smooth = _SMOOTHING * smooth + (1 - _SMOOTHING) * loss
        now = smooth / (1 - _SMOOTHING ** (number + 1))
        if not math.isfinite(now) or now > _DIVERGED * lowest:
            break
        if now < lowest:
            best, lowest = rate, now
    return float(f"{best / 4:.1e}")
