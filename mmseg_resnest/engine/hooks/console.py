# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What a person sees of a run: a header, aligned lines and a progress bar."""

from __future__ import annotations

import bisect
import math
import sys
import time
from collections.abc import Sequence
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from tqdm import tqdm

from ..._stack import visualization_backends
from ...evaluation import SCORES, SegmentationMetric, evaluation_result, score
from ...registry import HOOKS
from ..checkpoint import bare_model
from ..launch import describe_device
from ..logs import display_path
from ..loop import validation_steps
from ..sampler import batch_of
from .monitor import monitored
from .results import ResultsHook

_HEADER_WIDTH = 11
_COLUMNS = ("mIoU", "pixAcc")
SECONDS_BETWEEN_LINES = 60.0
_SECONDS_BETWEEN_TEXTS = 0.3
# Without tqdm's own estimate of the time left, which ignores validations.
_TRAINING_BAR = "{desc} {percentage:3.0f}% {bar} {n_fmt}/{total_fmt}{postfix}"


def print_header(rows: Sequence[tuple[str, str]]) -> None:
    """Print ``name  value`` rows with the values aligned, and an empty line."""
    for name, value in rows:
        print(f"{name:<{_HEADER_WIDTH}} {value}")
    print(flush=True)


def duration(seconds: float) -> str:
    """``42 s``, ``3 min 05 s``, ``7 h 12 min`` or ``3 d 04 h``."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    if days:
        return f"{days} d {h:02d} h"
    if hours:
        return f"{hours} h {m:02d} min"
    return f"{m} min {s:02d} s" if minutes else f"{s} s"


def describe_model(model: Any, cfg: Any, num_classes: int | None) -> str:
    """E.g. ``PublishedFCNHead on resnest14, 12 classes, 9.1 M parameters``."""
    model = bare_model(model)
    parameters = sum(p.numel() for p in model.parameters())
    size = f"{parameters / 1e6:.1f} M" if parameters >= 1e5 else f"{parameters:,}"
    backbone = getattr(model, "backbone", None)
    head = getattr(model, "decode_head", None)
    parts = type(model).__name__
    if backbone is not None and head is not None:
        settings = cfg.model.get("module", cfg.model).get("backbone", {})
        arch, depth = settings.get("arch"), settings.get("depth", "")
        name = arch if isinstance(arch, str) else f"{type(backbone).__name__}{depth}"
        parts = f"{type(head).__name__} on {name}"
    classes = f", {num_classes} classes" if num_classes else ""
    return f"{parts}{classes}, {size} parameters"


def describe_dataset(dataset: Any) -> str:
    """E.g. ``367 images in data/camvid``."""
    root = getattr(dataset, "data_root", None)
    return f"{len(dataset):,} images" + (f" in {display_path(root)}" if root else "")


@HOOKS.register_module()
class ConsoleHook(Hook):
    """Shows a training run on the console: a header, aligned lines, a progress bar.

    A line covers the iterations since the line before. The first one is of the first iteration;
    others come at the logger's interval, but no more than 50 in all, or one a minute. The time left
    includes validations, and is by the iterations after the first one, which loads and compiles.
    ``title``, ``config`` and ``notes`` are for the header.
    """

    # After the learning rate was logged and before ParamSchedulerHook steps it.
    priority = "BELOW_NORMAL"

    def __init__(
        self, title: str = "", config: str = "", notes: Sequence[tuple[str, str]] = ()
    ) -> None:
        self.title = title
        self.config = config
        self.notes = list(notes)
        self._on = False

    def before_train(self, runner: Runner) -> None:
        """Print the header and the names of the columns."""
        self._on = is_main_process()
        if not self._on:
            return
        self._iterations = self._pending = 0
        self._train_seconds = self._line_seconds = 0.0
        self._val_seconds: float | None = None
        self._validations = [] if runner.val_loop is None else _validations(runner.train_loop)
        self._score: tuple[str, float] | None = None
        self._results = next((h for h in runner.hooks if isinstance(h, ResultsHook)), None)
        self._since = self._last_line = self._last_text = time.monotonic()
        intervals = [h.interval for h in runner.hooks if type(h).__name__ == "LoggerHook"]
        self._interval = max(1, intervals[0]) if intervals else 50
        self._batch = batch_of(runner.train_dataloader) * runner.world_size
        print_header(self._header(runner))
        self._width = max(len("iteration"), 2 * len(str(runner.max_iters)) + 1)
        metrics = [] if runner.val_loop is None else runner.val_loop.evaluator.metrics
        ours = any(isinstance(metric, SegmentationMetric) for metric in metrics)
        self._columns = _COLUMNS if ours or not metrics else ()
        columns = "  ".join(f"{name:>6}" for name in self._columns or ["validation"])
        self._print("iteration", "loss", "lr", "s/iter", "left", columns)
        self._bar = progress_bar(runner.max_iters, runner.iter, "training", form=_TRAINING_BAR)

    def _header(self, runner: Runner) -> list[tuple[str, str]]:
        dataset = runner.train_dataloader.dataset
        classes = getattr(dataset, "metainfo", {}).get("classes")
        rows = [
            ("training", self.title or runner.experiment_name),
            ("config", self.config or str(runner.cfg.filename)),
            ("model", describe_model(runner.model, runner.cfg, len(classes) if classes else None)),
            ("data", f"{describe_dataset(dataset)} to train on"),
        ]
        if runner.val_loop is not None:
            rows.append(("", f"{describe_dataset(runner.val_dataloader.dataset)} to validate on"))
        epochs = f"{runner.max_iters * self._batch / max(len(dataset), 1):.1f}"
        if not isinstance(runner.train_loop, IterBasedTrainLoop):
            epochs = f"{runner.max_epochs:,}"
        optimizer = runner.optim_wrapper.optimizer
        # Schedulers keep the config's rate in the groups, of which the last has no factor.
        group = optimizer.param_groups[-1]
        rows += [
            ("device", describe_device(runner.world_size)),
            ("schedule",
             f"{runner.max_iters:,} iterations of {self._batch} images ({epochs} epochs), "
             f"{type(optimizer).__name__}, learning rate {group.get('initial_lr', group['lr']):g}"),
            *self.notes,
            ("work dir", display_path(runner.work_dir)),
        ]  # fmt: skip
        backends = visualization_backends(runner.visualizer)
        rows += [("curves", where) for b in backends if (where := getattr(b, "where", ""))]
        if not runner.iter:
            return rows
        said = f"at iteration {runner.iter:,}"
        if runner.iter >= runner.max_iters:
            said += f", and the run ends at {runner.max_iters:,}: nothing is left to train"
        return [*rows, ("resumed", said)]

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Advance the bar; print a line when one is due."""
        if not self._on:
            return
        now = time.monotonic()
        if self._iterations == 1:
            self._train_seconds = 0.0
        self._line_seconds += now - self._since
        self._train_seconds += now - self._since
        self._since = now
        self._iterations += 1
        self._pending += 1
        self._bar.update()
        done = runner.iter + 1
        step = max(self._interval, math.ceil(runner.max_iters / 50))
        late = now - self._last_line > SECONDS_BETWEEN_LINES
        first = self._iterations == 1  # so that a wrong setting shows within seconds
        if first or done % step == 0 or (late and done % self._interval == 0):
            self._print_line(runner, done)
        elif now - self._last_text > _SECONDS_BETWEEN_TEXTS and not self._bar.disable:
            # Seldom: reading the loss waits for the GPU.
            loss = None if outputs is None or "loss" not in outputs else float(outputs["loss"])
            self._bar.set_postfix_str(self._text(runner, done, loss), refresh=False)
            self._last_text = now

    def before_val(self, runner: Runner) -> None:
        """Start the clock of the validation."""
        if self._on:
            self._val_start = time.monotonic()
            self._print_pending(runner)
            self._val_bar = progress_bar(len(runner.val_dataloader), 0, "validation")

    def after_val_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Advance the bar of the validation."""
        if self._on:
            self._val_bar.update()

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Print the scores."""
        if not self._on:
            return
        self._since = time.monotonic()
        self._val_seconds = self._since - self._val_start
        self._val_bar.close()
        result = evaluation_result(runner.val_loop.evaluator, metrics or {})
        shown = [f"{result.get(name, math.nan):6.2f}" for name in self._columns]
        scores = result["scores"]
        hidden = (*SCORES, "mIoU_low", "mIoU_high") if self._columns else ()
        chosen = monitored(runner, scores)
        for name, value in scores.items():
            by_name = chosen is not None and name == chosen.name and name not in _COLUMNS
            if by_name or name.rsplit("/", 1)[-1] not in hidden:
                shown.append(f"{name} {score(value)}")
        if chosen is not None:
            self._score = chosen.name, chosen.value
            if self._results is not None and self._results.is_best(chosen):
                shown.append("best so far")
        position = f"{runner.iter}/{runner.max_iters}"
        took = f"took {duration(self._val_seconds)}"
        self._print(position, "", "", "", took, "  ".join(shown))

    def after_train(self, runner: Runner) -> None:
        """Close the bar."""
        if self._on:
            self._print_pending(runner)
            self._bar.close()
            print(flush=True)

    def _text(self, runner: Runner, done: int, loss: float | None) -> str:
        """E.g. ``loss 0.412, 31.5 images/s, mIoU 48.12, 3 min 05 s left``."""
        parts = [] if loss is None else [f"loss {loss:.3f}"]
        parts.append(f"{self._batch / self._each():.1f} images/s")
        if self._score is not None:
            parts.append(f"{self._score[0]} {score(self._score[1])}")
        return ", ".join([*parts, f"{duration(self._left(runner, done))} left"])

    def _each(self) -> float:
        """Seconds an iteration; the first one counts only while there is no other."""
        return self._train_seconds / max(1, self._iterations - 1)

    def _left(self, runner: Runner, done: int) -> float:
        """Seconds until the end, validations included, also that which follows these iterations."""
        each = self._each()
        left = each * (runner.max_iters - done)
        validations = len(self._validations) - bisect.bisect_left(self._validations, done)
        if validations:
            once = self._val_seconds
            if once is None:  # an estimate until the first validation
                once = each * len(runner.val_dataloader.dataset) / max(1, self._batch) / 3
            left += once * validations
        return left

    def _print_pending(self, runner: Runner) -> None:
        if self._pending:
            self._print_line(runner, runner.iter)

    def _print_line(self, runner: Runner, done: int) -> None:
        loss = float(runner.message_hub.get_scalar("train/loss").mean(self._pending))
        each = self._line_seconds / self._pending
        # As logged before the iteration: the schedule may have made its next step.
        name = "base_lr" if "base_lr" in runner.optim_wrapper.get_lr() else "lr"
        rate = float(runner.message_hub.get_scalar(f"train/{name}").current())
        left = duration(self._left(runner, done))
        position = f"{done}/{runner.max_iters}"
        self._print(position, f"{loss:.4f}", f"{rate:.3e}", f"{each:.3f}", left)
        self._pending, self._line_seconds = 0, 0.0
        self._last_line = time.monotonic()

    def _print(
        self, position: str, loss: str, rate: str, each: str, left: str, scores: str = ""
    ) -> None:
        line = f"{position:>{self._width}}  {loss:>8}  {rate:>9}  {each:>7}  {left:>12}  {scores}"
        tqdm.write(line.rstrip(), file=sys.stdout)
        sys.stdout.flush()


def _validations(loop: Any) -> list[int]:
    """After which iterations a training loop validates; none of a loop of another kind."""
    if not isinstance(loop, IterBasedTrainLoop | EpochBasedTrainLoop):
        return []
    unit = 1 if isinstance(loop, IterBasedTrainLoop) else max(1, len(loop.dataloader))
    dynamic = [*zip(loop.dynamic_milestones, loop.dynamic_intervals, strict=True)]
    steps = validation_steps(loop.max_iters // unit, dynamic[0][1], loop.val_begin, dynamic[1:])
    return [step * unit for step in steps]


def progress_bar(total: int, initial: int, what: str, form: str | None = None) -> tqdm:
    """A progress bar on stderr, when that is a terminal."""
    return tqdm(
        total=total,
        initial=initial,
        desc=what,
        leave=False,
        disable=None if is_main_process() else True,
        dynamic_ncols=True,
        bar_format=form,
        file=sys.stderr,
    )
