# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What a person sees of a run: a header, aligned lines and a progress bar."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from tqdm import tqdm

from ...registry import HOOKS
from ..checkpoint import bare_model
from ..launch import describe_device
from ..logs import display_path

__all__ = [
    "ConsoleHook",
    "describe_dataset",
    "describe_model",
    "duration",
    "print_header",
    "progress_bar",
]

_HEADER_WIDTH = 11
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
    whole = round(seconds)
    minutes, s = divmod(whole, 60)
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

    A line covers the iterations since the line before: their mean loss, the learning rate, seconds
    per iteration and the time left (validations included). Lines come at the logger's interval,
    but no more than 50 in all, or one a minute. On a terminal a bar below them shows the loss,
    images per second, the latest mIoU and the time left.

    Args:
        title: What is trained, for the header.
        config: The config's path, for the header.
        notes: More rows of the header.
    """

    # After the learning rate was logged and before ParamSchedulerHook steps it.
    priority = "BELOW_NORMAL"

    def __init__(
        self, title: str = "", config: str = "", notes: Sequence[tuple[str, str]] = ()
    ) -> None:
        self.title = title
        self.config = config
        self.notes = list(notes)
        self._bar: tqdm | None = None
        self._on = False

    def before_train(self, runner: Runner) -> None:
        """Print the header and the names of the columns."""
        self._on = is_main_process()
        self._iterations = 0
        self._train_seconds = 0.0
        self._val_seconds: float | None = None
        self._pending = 0
        self._since = self._last_line = self._last_text = time.monotonic()
        self._miou: float | None = None
        if not self._on:
            return
        train = runner.train_dataloader
        rows = [
            ("training", self.title or runner.experiment_name),
            ("config", self.config or str(runner.cfg.filename)),
            ("model", describe_model(runner.model, runner.cfg, _num_classes(train.dataset))),
            ("data", f"{describe_dataset(train.dataset)} to train on"),
        ]
        if runner.val_loop is not None:
            rows.append(("", f"{describe_dataset(runner.val_dataloader.dataset)} to validate on"))
        batch = (train.batch_size or train.batch_sampler.batch_size) * runner.world_size
        self._batch = batch
        epochs = runner.max_iters * batch / max(len(train.dataset), 1)
        optimizer = type(runner.optim_wrapper.optimizer).__name__
        rows += [
            ("device", describe_device(runner.world_size)),
            (
                "schedule",
                f"{runner.max_iters:,} iterations of {batch} images ({epochs:.1f} epochs), "
                f"{optimizer}, learning rate {_initial_learning_rate(runner):g}",
            ),
            *self.notes,
            ("work dir", display_path(runner.work_dir)),
        ]
        backends = getattr(runner.visualizer, "_vis_backends", {}).values()
        rows += [("curves", where) for b in backends if (where := getattr(b, "where", ""))]
        if runner.iter:
            rows.append(("resumed", f"at iteration {runner.iter:,}"))
        print_header(rows)
        self._width = max(len("iteration"), 2 * len(str(runner.max_iters)) + 1)
        print(
            f"{'iteration':>{self._width}}  {'loss':>8}  {'lr':>9}  {'s/iter':>7}  "
            f"{'left':>12}  {'mIoU':>6}  {'pixAcc':>6}",
            flush=True,
        )
        self._bar = progress_bar(runner.max_iters, runner.iter, "training", form=_TRAINING_BAR)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict | None = None,
    ) -> None:
        """Advance the bar; print a line when one is due."""
        now = time.monotonic()
        self._train_seconds += now - self._since
        self._since = now
        self._iterations += 1
        self._pending += 1
        if not self._on:
            return
        assert self._bar is not None
        self._bar.update()
        done = runner.iter + 1
        step = max(_logger_interval(runner), math.ceil(runner.max_iters / 50))
        late = now - self._last_line > SECONDS_BETWEEN_LINES
        if done % step == 0 or (late and done % _logger_interval(runner) == 0):
            self._line(runner, done)
        elif now - self._last_text > _SECONDS_BETWEEN_TEXTS and not self._bar.disable:
            # Seldom: reading the loss waits for the GPU.
            loss = None if outputs is None or "loss" not in outputs else float(outputs["loss"])
            self._bar.set_postfix_str(self._text(runner, done, loss), refresh=False)
            self._last_text = now

    def before_val(self, runner: Runner) -> None:
        """Start the clock of the validation."""
        self._val_start = time.monotonic()
        if self._on and self._pending:
            self._line(runner, runner.iter)
        if self._on:
            self._val_bar = progress_bar(len(runner.val_dataloader), 0, "validation", leave=False)

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Advance the bar of the validation."""
        if self._on:
            self._val_bar.update()

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Print the scores."""
        self._since = time.monotonic()
        self._val_seconds = self._since - self._val_start
        if not self._on:
            return
        self._val_bar.close()
        best = runner.message_hub.runtime_info.get("best_score")
        shown = {k.rsplit("/", 1)[-1]: v for k, v in (metrics or {}).items()}
        miou, accuracy = shown.get("mIoU", math.nan), shown.get("pixAcc", math.nan)
        self._miou = miou
        mark = "  best so far" if best is None or miou > float(best) else ""
        blank = "  ".join(" " * n for n in (8, 9, 7))
        took = f"took {duration(self._val_seconds)}"
        self._write(
            f"{_position(runner.iter, runner.max_iters):>{self._width}}  {blank}  "
            f"{took:>12}  {miou:6.2f}  {accuracy:6.2f}{mark}"
        )

    def after_train(self, runner: Runner) -> None:
        """Close the bar."""
        if self._on and self._bar is not None:
            if self._pending:
                self._line(runner, runner.iter)
            self._bar.close()
            print(flush=True)

    def _text(self, runner: Runner, done: int, loss: float | None) -> str:
        """E.g. ``loss 0.412, 31.5 images/s, mIoU 48.12, 3 min 05 s left``."""
        each = self._train_seconds / self._iterations
        parts = [] if loss is None else [f"loss {loss:.3f}"]
        parts.append(f"{self._batch / each:.1f} images/s")
        if self._miou is not None:
            parts.append(f"mIoU {self._miou:.2f}")
        return ", ".join([*parts, f"{duration(self._left(runner, done))} left"])

    def _left(self, runner: Runner, done: int) -> float:
        """Seconds until the end, validations included."""
        each = self._train_seconds / self._iterations
        left = each * (runner.max_iters - done)
        if runner.val_loop is not None:
            # Until the first validation has shown, each of its images counts as one of training.
            every = runner.train_loop.val_interval
            once = self._val_seconds
            if once is None:
                batch = runner.train_dataloader.batch_size or 1
                once = each * len(runner.val_dataloader.dataset) / batch / 3
            left += once * (math.ceil(runner.max_iters / every) - done // every)
        return left

    def _line(self, runner: Runner, done: int) -> None:
        loss = runner.message_hub.get_scalar("train/loss").mean(self._pending)
        each = self._train_seconds / self._iterations
        rate = _learning_rate(runner)
        self._write(
            f"{_position(done, runner.max_iters):>{self._width}}  {float(loss):8.4f}  "
            f"{rate:9.3e}  {each:7.3f}  {duration(self._left(runner, done)):>12}"
        )
        self._pending = 0
        self._last_line = time.monotonic()

    def _write(self, line: str) -> None:
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()


def _position(done: int, total: int) -> str:
    return f"{done}/{total}"


def _learning_rate(runner: Runner) -> float:
    rates = runner.optim_wrapper.get_lr()
    return float((rates.get("base_lr") or rates["lr"])[0])


def _initial_learning_rate(runner: Runner) -> float:
    """The config's learning rate: schedulers keep it in the groups; the last has no factor."""
    group = runner.optim_wrapper.param_groups[-1]
    return float(group.get("initial_lr", group["lr"]))


def _logger_interval(runner: Runner) -> int:
    intervals = [h.interval for h in runner.hooks if type(h).__name__ == "LoggerHook"]
    return max(1, intervals[0]) if intervals else 50


def _num_classes(dataset: Any) -> int | None:
    classes = getattr(dataset, "metainfo", {}).get("classes")
    return len(classes) if classes else None


def progress_bar(
    total: int, initial: int, what: str, leave: bool = False, form: str | None = None
) -> tqdm:
    """A progress bar on stderr, when that is a terminal."""
    return tqdm(
        total=total,
        initial=initial,
        desc=what,
        leave=leave,
        disable=None if is_main_process() else True,
        dynamic_ncols=True,
        bar_format=form,
        file=sys.stderr,
    )
