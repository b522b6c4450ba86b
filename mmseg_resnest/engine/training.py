# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A whole training run: checks, the runner, results."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import is_main_process

from mmseg_resnest.datasets import numbers_of_classes
from mmseg_resnest.engine.config import require
from mmseg_resnest.engine.hooks import ConsoleHook, ResultsHook
from mmseg_resnest.engine.launch import Machine, init_distributed, prepare_machine, timeout_of
from mmseg_resnest.engine.model import build_seeded_model
from mmseg_resnest.engine.numerics import numerics_of
from mmseg_resnest.engine.preemption import Preempted, StopSignals
from mmseg_resnest.engine.preflight import (
    check_checkpoint,
    check_data,
    check_disk_space,
    check_labels,
)
from mmseg_resnest.engine.process_state import restored_process
from mmseg_resnest.engine.resolve import Resolved, TrainingOptions, resolve, work_dir_of
from mmseg_resnest.engine.resume_changes import rounding_notes
from mmseg_resnest.engine.run_folders import RunFolders, check_checkpoint_hook, folders_of_training
from mmseg_resnest.engine.run_record import describe_model_state, record_run
from mmseg_resnest.engine.runner import Runner
from mmseg_resnest.engine.same_run import check_same_run, failing_together
from mmseg_resnest.engine.sharding import check_sharding
from mmseg_resnest.engine.start import Start, find_start
from mmseg_resnest.engine.tracking import check_services
from mmseg_resnest.engine.watch import explain_lost_processes
from mmseg_resnest.errors import UserError
from mmseg_resnest.evaluation import plot_curves, read_scalars
from mmseg_resnest.models import use_channels_last
from mmseg_resnest.version import __version__
from mmseg_resnest.weights import load_checkpoint

__all__ = ["resolve_training", "train"]

_LOADERS = ("train_dataloader", "val_dataloader")


def train(
    cfg: Config,
    work_dir: str | os.PathLike[str] | None = None,
    resume: str | None = None,
    amp: bool = False,
    auto_scale_lr: bool = False,
    seed: int | None = None,
    launcher: str = "none",
    plain: bool = False,
    log_to: Sequence[str] = (),
    allow_changes: Sequence[str] = (),
) -> dict[str, Any]:
    """Train as a config says; everything that can be checked is checked before anything is written.

    Args:
        cfg: A checked config; not changed. Its training batch is the total over all processes.
        work_dir: Where checkpoints, logs and results go; default: the config's, or
            ``work_dirs/<name of the config>``.
        resume: ``auto``: continue from the newest whole checkpoint of the work folder, or start
            when there is none; otherwise the checkpoint to continue from. None starts, or, when a
            launcher has started the run again, is as ``auto``.
        amp: Mixed precision.
        auto_scale_lr: Scale the learning rate with the total batch, by the config's
            ``auto_scale_lr.base_batch_size``.
        seed: In place of the config's.
        launcher: ``none``, ``pytorch`` or ``slurm``.
        plain: Neither lay the model channels last, nor use matrix products, merged steps of the
            pipeline and compiled loops; docs/performance.md says what those are.
        log_to: Services that show the curves as well, some of
            :data:`~mmseg_resnest.engine.tracking.SERVICES`.
        allow_changes: Keys of the config, ``precision`` or ``fused``, that may differ from those of
            the run that is resumed; a key stands for those below it as well.

    Returns:
        On every process: ``work_dir``, ``seconds``; on the first one also what
        ``results.json`` holds, and ``curves``, the path of the picture (None without a log).

    Raises:
        UserError: A mistake in the config, the data or the arguments; or something that ended the
            run, in words.
        Preempted: SIGTERM, SIGUSR1 or Ctrl-C asked the run to stop; it was saved.
    """
    options = TrainingOptions(work_dir, seed, amp, auto_scale_lr, launcher, plain, tuple(log_to))
    with restored_process(), StopSignals() as signals, contextlib.ExitStack() as held:
        try:
            with failing_together(launcher, timeout_of(cfg)):
                return _train(cfg, options, resume, allow_changes, signals, held)
        except Exception as error:
            behind = _interrupt_behind(error)
            if behind is None or behind is error:
                raise
            if isinstance(behind, Preempted):
                raise behind from None
            raise KeyboardInterrupt("before the first iteration: nothing was trained") from None


def _train(
    cfg: Config,
    options: TrainingOptions,
    resume: str | None,
    allow_changes: Sequence[str],
    signals: StopSignals,
    held: contextlib.ExitStack,
) -> dict[str, Any]:
    begin = time.monotonic()
    machine = Machine.here(options.launcher)

    # Resolve. The folders are held before it is looked which checkpoint is the newest.
    folders = _folders(cfg, options, held) if machine.rank == 0 else None
    notes = folders.hold(make=False) if folders else []
    resolved, start = resolve_training(cfg, options, machine, resume)
    cfg = resolved.cfg

    # Preflight.
    _preflight(cfg, options, start)
    prepare_machine(cfg, machine)
    numerics = numerics_of(cfg, machine.world_size, options.plain)
    start.compare(resolved.values, numerics, allow_changes)
    notes += [*start.notes, *resolved.notes]

    # Build.
    built = build_seeded_model(cfg, machine.rank)
    start.fit(cfg, built.model)
    state = describe_model_state(built.model)
    if folders:
        notes += folders.hold(make=True)
        check_disk_space(cfg, built.model)
    init_distributed(options.launcher, timeout_of(cfg))
    source = cfg.get("load_from")
    arguments = {"plain": options.plain, "allow_changes": sorted(allow_changes)}
    check_same_run(lambda: record_run(cfg, _LOADERS, state, source, **arguments))
    runner = Runner.from_cfg(cfg, built)
    before = start.numerics
    runner.start_from(start.hand_over())
    runner.config_values, runner.numerics = resolved.values, numerics
    runner.changes = start.changes
    del built
    runner.plain = options.plain
    if folders:
        runner.before_saving = folders.check
    if machine.world_size == 1 and not options.plain and use_channels_last(runner.model):
        numerics["memory_order"] = "channels_last"
    notes += rounding_notes(numerics, before)
    title = Path(cfg.filename).stem if cfg.filename else runner.experiment_name
    results = ResultsHook(extra={"task": "train", "config": cfg.filename, "version": __version__})
    runner.register_hook(ConsoleHook(title=title, config=str(cfg.filename), notes=notes))
    runner.register_hook(results)

    # Run.
    signals.training()
    _run(runner)
    summary: dict[str, Any] = {"work_dir": cfg.work_dir, "seconds": time.monotonic() - begin}
    if is_main_process():
        summary.update(_read_results(runner, results))
        summary["curves"] = _draw_curves(cfg.work_dir, title, runner)
    return summary


def _folders(cfg: Config, options: TrainingOptions, held: contextlib.ExitStack) -> RunFolders:
    return RunFolders(folders_of_training(cfg, work_dir_of(cfg, options)), held)


def resolve_training(
    cfg: Config, options: TrainingOptions, machine: Machine, resume: str | None = None
) -> tuple[Resolved, Start]:
    """Look up what a training starts from, and decide it; nothing is written.

    Args:
        cfg: A checked config; not changed.
        options: What the command line says, without what is looked up here.
        machine: What the run has to compute on.
        resume: As in :func:`train`.

    Returns:
        What was decided, and what the run starts from; each with rows for the header of the run.

    Raises:
        UserError: The config lacks a part, an option does not go with it, or the checkpoint to
            resume from cannot be continued.
    """
    require(cfg, ("model", "train_dataloader", "train_cfg", "optim_wrapper"), "training")
    start = find_start(cfg, resume, work_dir_of(cfg, options))
    classes = {
        name: numbers_of_classes(cfg[name].dataset)
        for name in _LOADERS
        if isinstance((cfg.get(name) or {}).get("dataset"), Mapping)
    }
    options = replace(options, resume=start.resume, classes=classes)
    resolved = resolve(cfg, options, machine)
    return resolved, start


def _preflight(cfg: Config, options: TrainingOptions, start: Start) -> None:
    """Check what can be checked before the model is built; nothing is written."""
    check_services(options.log_to)
    check_sharding(cfg)
    check_checkpoint_hook(cfg)
    check_data(cfg, _LOADERS)
    check_labels(cfg, ("train", "val"))
    if start.record is None:
        _fetch_pretrained(cfg.model, "model")


def _run(runner: Runner) -> None:
    """Train to the end, and tell in words which process was lost."""
    # torch imports its profiler in the first step; that import would report a worker that dies
    # just then, too.
    with torch.autograd.profiler.record_function("start"):
        pass
    try:
        runner.train()
    except Exception as error:
        told = explain_lost_processes(error)
        if told is None:
            raise
        raise told from error
    finally:
        runner.close()


def _interrupt_behind(error: BaseException) -> BaseException | None:
    """A signal or Ctrl-C behind an error: libraries turn what interrupts them into errors."""
    chain: BaseException | None = error
    while chain is not None and not isinstance(chain, KeyboardInterrupt | Preempted):
        chain = chain.__cause__ or chain.__context__
    return chain


def _fetch_pretrained(node: Any, key: str) -> None:
    """Fetch and read the file of every ``init_cfg`` of type ``Pretrained``."""
    if isinstance(node, dict):
        for name, value in node.items():
            _fetch_pretrained(value, f"{key}.{name}")
        checkpoint = node.get("checkpoint")
        if node.get("type") == "Pretrained" and isinstance(checkpoint, str):
            check_checkpoint(checkpoint, f"config key {key}.checkpoint")
            load_checkpoint(checkpoint)
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            _fetch_pretrained(value, f"{key}[{index}]")


def _read_results(runner: Runner, results: ResultsHook) -> dict[str, Any]:
    """What ``results.json`` holds; without a validation only where the last checkpoint is."""
    path = Path(runner.work_dir) / results.file
    if not results.history:
        last = runner.message_hub.runtime_info.get("last_ckpt")
        return {**results.extra, "last_checkpoint": last and os.path.basename(str(last))}
    return json.loads(path.read_text(encoding="utf-8"))


def _draw_curves(work_dir: str, title: str, runner: Runner) -> str | None:
    try:
        series = read_scalars(work_dir)
    except UserError:  # too short a run to have logged anything
        return None
    try:
        return os.fspath(plot_curves(series, Path(work_dir) / "curves.png", title))
    except UserError as error:
        runner.logger.warning("no picture of the curves: %s", error)
        return None
