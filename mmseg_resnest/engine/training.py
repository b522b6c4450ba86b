# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A whole training run: resolve, preflight, build, run."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import is_main_process

from ..datasets import build_dataset, check_start, forget_listed, numbers_of_classes
from ..errors import UserError
from ..evaluation import SCORES, other_scores, plot_curves, read_scalars
from ..models import use_channels_last
from ..models.pretrained import check_pretrained
from ..registry import building, type_name
from ..version import __version__
from .config import require
from .dry_step import dry_step
from .hooks import ConsoleHook, ResultsHook
from .launch import Machine, init_distributed, prepare_machine, timeout_of
from .model import build_seeded_model
from .numerics import is_fused, numerics_of
from .pins import find_pins
from .preemption import Preempted, StopSignals
from .preflight import check_checkpoint, check_compile, check_data, check_disk_space, check_outputs
from .process_state import restored_process
from .resolve import Resolved, TrainingOptions, resolve, work_dir_of
from .resume_changes import Note, describe_data, rounding_notes
from .run_folders import (
    NewRunFolders,
    RunFolders,
    check_checkpoint_hook,
    check_free,
    folders_of_training,
    this_launch,
    training_folder,
)
from .run_options import RunOptions, counts_images
from .run_record import describe_model_state, record_run
from .runner import Runner
from .same_run import check_same_run, failing_together, together
from .sharding import check_sharding
from .start import Start, find_start, restarted_by_launcher, wish_to_resume
from .teacher import OpenModel, find_teacher, teach
from .tracking import check_services
from .watch import lost_processes_explained

_LOADERS = ("train_dataloader", "val_dataloader")


def train(
    cfg: Config,
    work_dir: str | os.PathLike[str] | None = None,
    resume: str | None = None,
    amp: bool = False,
    auto_scale_lr: bool = False,
    seed: int | None = None,
    launcher: str = "none",
    log_to: Sequence[str] = (),
    allow_changes: Sequence[str] = (),
    run: RunOptions | None = None,
    teacher: str | None = None,
    open_model: OpenModel | None = None,
    compiled: bool = False,
) -> dict[str, Any]:
    """Train as a config says; everything that can be checked is checked before anything is written.

    Args:
        cfg: A checked config; not changed. Its training batch is the total over all processes.
        work_dir: Where checkpoints, logs and results go; default: the config's, or
            ``work_dirs/<name of the config>``, or that with a number (:mod:`.run_folders`).
        resume: ``auto``: continue from the latest valid checkpoint of the work folder, or start
            without one; any other value names the checkpoint to continue from. None starts, or,
            when a launcher has started the run again, is as ``auto``.
        amp: Mixed precision.
        auto_scale_lr: Scale the learning rate with the total batch, by the config's
            ``auto_scale_lr.base_batch_size``.
        seed: In place of the config's.
        launcher: ``none``, ``pytorch`` or ``slurm``.
        log_to: Services that show the curves as well, see :data:`.tracking.SERVICES`.
        allow_changes: Keys of the config, ``precision`` or ``fused``, that may differ from those of
            the run that is resumed; a key stands for those below it as well. Without
            ``randomness.seed`` the run keeps its seed.
        run: Length, batch, learning rate and image size in place of the config's.
        teacher: Name of the model to learn from, in place of the config's
            ``distillation.teacher``.
        open_model: Loads it on the CPU by its name, needed where the run has one:
            :func:`mmseg_resnest.load_segmentor`.
        compiled: Compile the backbone's part of a step (config key ``compile``).

    Returns:
        On every process ``work_dir`` and ``seconds``; on the first one also what ``results.json``
        holds, and ``curves``, the path of the picture (None without a log).

    Raises:
        UserError: A mistake in the config, the data or the arguments, or what ended the run.
        Preempted: SIGTERM, SIGUSR1 or Ctrl-C asked the run to stop; it was saved.
    """
    with (
        restored_process(),
        StopSignals() as signals,
        contextlib.ExitStack() as held,
        unwrapped_interrupts(),
        failing_together(launcher, timeout_of(cfg)),
    ):
        held.callback(forget_listed)
        begin = time.monotonic()
        machine = Machine.here(launcher)

        # Resolve. The folders are held before the latest checkpoint is looked for.
        folder = training_folder(cfg, work_dir, resume, machine.world_size)
        folders: RunFolders | None = None
        new = work_dir is None and wish_to_resume(cfg, resume) is None
        if new and machine.world_size == 1 and not restarted_by_launcher():
            folders = NewRunFolders(cfg, folder, held)
        elif machine.rank == 0:
            folders = RunFolders(folders_of_training(cfg, folder), held)
        notes = folders.hold(make=False) if folders else []
        if isinstance(folders, NewRunFolders):
            folder = folders.work_dir
        options = TrainingOptions(
            *(folder, seed, amp, auto_scale_lr, launcher, tuple(log_to)),
            run=run or RunOptions(),
            teacher=teacher,
            compiled=compiled,
            allow_changes=tuple(allow_changes),
        )
        written = cfg
        resolved, start = resolve_training(cfg, options, machine, resume)
        if work_dir is not None:  # behind what says that there is no such checkpoint
            check_free(cfg, folder, resume)
        cfg = resolved.cfg

        # Preflight.
        check_services(options.log_to, cfg.get("visualizer"))
        check_sharding(cfg)
        check_checkpoint_hook(cfg)
        check_compile(cfg)
        check_outputs(cfg, {"--work-dir": cfg.work_dir})
        check_data(cfg, _LOADERS)
        check_start(cfg, ["train", "val"])
        prepare_machine(cfg, machine)
        numerics = numerics_of(cfg, machine.world_size)
        found = find_teacher(cfg, open_model)
        values = {**resolved.values, **(found.values if found else {})}
        data = describe_data(_training_data(cfg)) if start.resume else {}
        start.compare({**values, **data}, numerics, allow_changes)

        # Build.
        built = build_seeded_model(cfg, machine.rank)
        if start.resume is None:
            notes += _check_pretrained(built.model)
        notes += teach(found, cfg, built.model) if found else []
        start.fit(cfg, built.model)
        state = describe_model_state(built.model)
        if folders:
            check_disk_space(cfg, built.model)
        if not restarted_by_launcher():
            notes += dry_step(cfg, built, machine)
        init_distributed(options.launcher, timeout_of(cfg))
        same = {"allow_changes": sorted(allow_changes), "teacher": found and found.sha256}
        check_same_run(lambda: record_run(cfg, _LOADERS, state, cfg.get("load_from"), **same))
        notes += together(lambda: folders.hold(make=True) if folders else [])
        if (
            isinstance(folders, NewRunFolders) and folders.work_dir != folder
        ):  # another run began in it meanwhile
            options = replace(options, work_dir=folders.work_dir)
            resolved, _ = resolve_training(written, options, machine, resume)
            cfg = resolved.cfg
        runner = Runner.from_cfg(cfg, built)
        del built
        notes += [*start.notes, *resolved.notes]
        runner.start_record, start.record = start.record, None
        runner.config_values, runner.numerics = values, numerics
        runner.changes = start.changes
        if folders:
            runner.before_saving = folders.check
        if machine.world_size == 1 and is_fused(cfg) and use_channels_last(runner.model):
            numerics["memory_order"] = "channels_last"
        notes += rounding_notes(runner.describe_numerics(), start.numerics)
        title = Path(cfg.filename).stem if cfg.filename else runner.experiment_name
        results = ResultsHook(
            extra={"task": "train", "config": cfg.filename, "version": __version__},
            launch=this_launch(),
        )
        runner.register_hook(ConsoleHook(title=title, config=str(cfg.filename), notes=notes))
        runner.register_hook(results)

        # Run.
        signals.training()
        with contextlib.closing(runner), lost_processes_explained():
            runner.train()
        summary: dict[str, Any] = {"work_dir": cfg.work_dir, "seconds": time.monotonic() - begin}
        if is_main_process():
            summary.update(_read_results(runner, results))
            summary["curves"] = _draw_curves(cfg.work_dir, title, runner, results)
        return summary


def resolve_training(
    cfg: Config, options: TrainingOptions, machine: Machine, resume: str | None = None
) -> tuple[Resolved, Start]:
    """Look up what a training starts from, and decide it; nothing is written.

    Takes what :func:`train` does, in ``options`` what is not looked up here. Both results have rows
    for the header of the run.

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
    if counts_images(cfg, options.run):
        check_data(cfg, ("train_dataloader",))
        options = replace(options, run=replace(options.run, images=len(_training_data(cfg))))
    pins = find_pins(cfg, options.teacher, start.resume is not None)
    options = replace(options, resume=start.resume, classes=classes, pins=pins)
    return resolve(cfg, options, machine), start


def _training_data(cfg: Config) -> Any:
    with building(cfg.get("default_scope", "mmengine")):
        return build_dataset(copy.deepcopy(cfg.train_dataloader.dataset), keep=True)


@contextlib.contextmanager
def unwrapped_interrupts() -> Iterator[None]:
    """Raise the signal or Ctrl-C behind an error: libraries turn what interrupts them into one."""
    try:
        yield
    except Exception as error:
        behind: BaseException | None = error
        while behind is not None and not isinstance(behind, KeyboardInterrupt | Preempted):
            behind = behind.__cause__ or behind.__context__
        if behind is None or behind is error:
            raise
        if isinstance(behind, Preempted):
            raise behind from None
        raise KeyboardInterrupt("before the first iteration: nothing was trained") from None


def _check_pretrained(model: torch.nn.Module) -> list[Note]:
    """Read the file of every ``init_cfg`` of type ``Pretrained``: it may be corrupt, or not fit.

    Returns rows that say what will be loaded.
    """
    rows: list[Note] = []
    for name, module in model.named_modules():
        configs: Any = getattr(module, "init_cfg", None)
        for init in configs if isinstance(configs, list | tuple) else [configs]:
            if not (isinstance(init, Mapping) and isinstance(init.get("checkpoint"), str)):
                continue
            if type_name(init.get("type")) == "Pretrained":
                key = ".".join(filter(None, ("model", name, "init_cfg.checkpoint")))
                check_checkpoint(init["checkpoint"], f"config key {key}")
                said = check_pretrained(module, init)
                rows.append(("weights", f"{name or 'model'}: {said}, from {init['checkpoint']}"))
    return rows


def _read_results(runner: Runner, results: ResultsHook) -> dict[str, Any]:
    """What ``results.json`` holds; without a validation only where the last checkpoint is."""
    if not results.history:
        last = runner.message_hub.runtime_info.get("last_ckpt")
        return {**results.extra, "last_checkpoint": last and os.path.basename(str(last))}
    return json.loads(Path(runner.work_dir, results.file).read_text(encoding="utf-8"))


def _draw_curves(work_dir: str, title: str, runner: Runner, results: ResultsHook) -> str | None:
    try:
        series = read_scalars(work_dir, runner.run_id)
    except UserError:  # too short a run to have logged anything
        return None
    try:
        scores = [*SCORES, *other_scores(results.best)]
        return os.fspath(plot_curves(series, Path(work_dir) / "curves.png", title, scores))
    except UserError as error:
        runner.logger.warning("no picture of the curves: %s", error.text)
        return None
