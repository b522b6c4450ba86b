# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A whole training run: checks, the runner, results."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import is_main_process
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mmseg_resnest.datasets import merge_steps
from mmseg_resnest.engine.checkpoint import load_weights
from mmseg_resnest.engine.checkpoint_schema import check_training_checkpoint
from mmseg_resnest.engine.checkpoint_values import Refusal
from mmseg_resnest.engine.config import require
from mmseg_resnest.engine.hooks import ConsoleHook
from mmseg_resnest.engine.latest import latest_valid_checkpoint, verify_checkpoint
from mmseg_resnest.engine.launch import (
    default_work_dir,
    enable_amp,
    fit_to_machine,
    init_distributed,
    join_launcher,
    share_batch,
    timeout_of,
)
from mmseg_resnest.engine.logs import shown
from mmseg_resnest.engine.numerics import numerics_of
from mmseg_resnest.engine.optimization import build_optimization, check_schedule_ends
from mmseg_resnest.engine.preemption import Preempted, StopSignals
from mmseg_resnest.engine.preflight import (
    check_checkpoint,
    check_data,
    check_disk_space,
    check_labels,
    checkpoint_folder,
)
from mmseg_resnest.engine.process_state import restored_process
from mmseg_resnest.engine.results_hook import ResultsHook
from mmseg_resnest.engine.resume import fit_to_run
from mmseg_resnest.engine.resume_changes import (
    Changes,
    compare_with_run,
    describe_config,
    rounding_notes,
)
from mmseg_resnest.engine.run_folders import RunFolders, check_checkpoint_hook, folders_of_training
from mmseg_resnest.engine.run_record import describe_model_state, record_run
from mmseg_resnest.engine.runner import Runner, build_model
from mmseg_resnest.engine.same_run import check_same_run, failing_together
from mmseg_resnest.engine.saving import POINTER
from mmseg_resnest.engine.sharding import check_sharding
from mmseg_resnest.engine.watch import explain_lost_processes
from mmseg_resnest.errors import UserError
from mmseg_resnest.evaluation import plot_curves, read_scalars
from mmseg_resnest.models import lay_channels_last
from mmseg_resnest.version import __version__
from mmseg_resnest.weights import is_remote, load_checkpoint, resolve_checkpoint

__all__ = ["train"]


def train(
    cfg: Config,
    work_dir: str | os.PathLike[str] | None = None,
    resume: str | None = None,
    amp: bool = False,
    auto_scale_lr: bool = False,
    seed: int | None = None,
    launcher: str = "none",
    plain: bool = False,
    allow_changes: Sequence[str] = (),
) -> dict[str, Any]:
    """Train as a config says; everything that can be checked is checked before anything is written.

    Args:
        cfg: A checked config; changed in place. Its training batch is the total over all
            processes.
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
    with restored_process(), StopSignals() as signals, contextlib.ExitStack() as held:
        try:
            with failing_together(launcher, timeout_of(cfg)):
                return _train(
                    *(cfg, work_dir, resume, amp, auto_scale_lr, seed, launcher, plain),
                    *(allow_changes, signals, held),
                )
        except Exception as error:
            behind = _interrupt_behind(error)
            if behind is None or behind is error:
                raise
            if isinstance(behind, Preempted):
                raise behind from None
            raise KeyboardInterrupt("before the first iteration: nothing was trained") from None


def _train(
    cfg: Config,
    work_dir: str | os.PathLike[str] | None,
    resume: str | None,
    amp: bool,
    auto_scale_lr: bool,
    seed: int | None,
    launcher: str,
    plain: bool,
    allow_changes: Sequence[str],
    signals: StopSignals,
    held: contextlib.ExitStack,
) -> dict[str, Any]:
    start = time.monotonic()
    require(cfg, ("model", "train_dataloader", "train_cfg", "optim_wrapper"), "training")
    cfg.work_dir = os.fspath(work_dir or cfg.get("work_dir") or default_work_dir(cfg))
    notes: list[tuple[str, str]] = []
    if seed is not None:
        cfg.randomness = {**(cfg.get("randomness") or {}), "seed": seed}
    if amp:
        notes.append(("precision", enable_amp(cfg)))
    if auto_scale_lr:
        _enable_auto_scale_lr(cfg)
    cfg.setdefault("default_hooks", {}).setdefault("nonfinite", dict(type="NonFiniteHook"))
    check_sharding(cfg)
    check_checkpoint_hook(cfg)
    check_data(cfg, ("train_dataloader", "val_dataloader"))
    rank, world_size = join_launcher(launcher)
    folders = RunFolders(folders_of_training(cfg), held) if rank == 0 else None
    if folders is not None:  # before it is looked which checkpoint is the newest
        notes += folders.hold(make=False)
    values = describe_config(cfg)
    checkpoint = _set_start(cfg, resume, notes)
    note = share_batch(cfg, world_size)
    if note:
        notes.append(("batch", note))
    fit_to_machine(cfg, launcher)
    if not plain:
        _merge_pipelines(cfg.train_dataloader.dataset)
    numerics = numerics_of(cfg, world_size, plain)
    changes = Changes()
    before = None
    if checkpoint is not None:
        meta = checkpoint["meta"]
        changes = compare_with_run(cfg.load_from, meta, values, numerics, allow_changes)
        before = meta.get("numerics")
        notes += changes.notes
    elif allow_changes:
        notes.append(("changes", "--allow-changes: no run is resumed"))
    check_labels(cfg, ("train", "val"))
    if checkpoint is None:
        _fetch_pretrained(cfg.model, "model")
    model = _try_model(cfg, checkpoint, changes)
    del checkpoint
    if folders is not None:
        notes += folders.hold(make=True)
        check_disk_space(cfg, model)
    state = describe_model_state(model)
    del model

    init_distributed(launcher, timeout_of(cfg))
    loaders = ("train_dataloader", "val_dataloader")
    start_from = cfg.get("load_from")
    options = {"plain": plain, "allow_changes": sorted(allow_changes)}
    check_same_run(lambda: record_run(cfg, loaders, state, start_from, **options))
    runner = Runner.from_cfg(cfg)
    runner.may_compile = not plain
    runner.config_values, runner.numerics, runner.changes = values, numerics, changes
    if folders is not None:
        runner.before_saving = folders.check
    if world_size == 1 and not plain and lay_channels_last(runner.model):
        numerics["memory_order"] = "channels_last"
    notes += rounding_notes(numerics, before)
    name = Path(cfg.filename).stem if cfg.filename else runner.experiment_name
    extra = {"task": "train", "config": cfg.filename, "version": __version__}
    results = ResultsHook(extra=extra)
    runner.register_hook(ConsoleHook(title=name, config=str(cfg.filename), notes=notes))
    runner.register_hook(results)
    # torch imports its profiler in the first step; that import would report a worker that dies
    # just then, too.
    with torch.autograd.profiler.record_function("start"):
        pass
    signals.training()
    try:
        runner.train()
    except Exception as error:
        told = explain_lost_processes(error)
        if told is None:
            raise
        raise told from error
    finally:
        runner.close()
    summary: dict[str, Any] = {"work_dir": cfg.work_dir, "seconds": time.monotonic() - start}
    if is_main_process():
        summary.update(_read_results(runner, results))
        summary["curves"] = _draw_curves(cfg.work_dir, name, runner)
    return summary


def _interrupt_behind(error: BaseException) -> BaseException | None:
    """A signal or Ctrl-C behind an error: libraries turn what interrupts them into errors."""
    chain: BaseException | None = error
    while chain is not None and not isinstance(chain, KeyboardInterrupt | Preempted):
        chain = chain.__cause__ or chain.__context__
    return chain


def _merge_pipelines(node: Any) -> None:
    """Have every data set's resize and crop done in one step; the samples stay the same."""
    if isinstance(node, dict):
        for value in node.values():
            _merge_pipelines(value)
        if isinstance(node.get("pipeline"), list):
            node["pipeline"] = merge_steps(node["pipeline"])
    elif isinstance(node, (list, tuple)):
        for value in node:
            _merge_pipelines(value)


def _enable_auto_scale_lr(cfg: Config) -> None:
    scaling = cfg.get("auto_scale_lr") or {}
    if not scaling.get("base_batch_size"):
        raise UserError(
            "--auto-scale-lr: the config does not say for which batch its learning rate is; add "
            "auto_scale_lr=dict(base_batch_size=16)"
        )
    cfg.auto_scale_lr = {**scaling, "enable": True}


def _set_start(
    cfg: Config, resume: str | None, notes: list[tuple[str, str]]
) -> dict[str, Any] | None:
    """Decide what the run starts from, set it in the config, and check that it is there.

    Args:
        cfg: Changed in place.
        resume: As in :func:`train`.
        notes: Gets a line on what was decided.

    Returns:
        The checkpoint to resume from, if there is one.
    """
    if resume is None and cfg.get("resume"):
        resume = cfg.get("load_from") or "auto"
    if resume is None and _restarted_by_launcher():
        # Only what this very run has saved: its first start took away an older pointer.
        resume = "auto" if (Path(cfg.work_dir) / POINTER).is_file() else None
    if resume == "auto":
        folder = checkpoint_folder(cfg)
        latest, skipped = latest_valid_checkpoint(folder, Path(cfg.work_dir))
        notes += [("skipped", f"{shown(path)} {reason}") for path, reason in skipped]
        if latest is None:
            cfg.resume = False
            what = "whole checkpoint" if skipped else "checkpoint"
            notes.append(("start", f"from the beginning: {folder} holds no {what} to resume from"))
            return None
        resume = str(latest)
    elif resume is not None:
        check_checkpoint(resume, "--resume", content=False)
        if is_remote(resume):
            resume = str(resolve_checkpoint(resume))
        wrong = verify_checkpoint(Path(resume))
        if wrong:
            raise UserError(
                f"--resume {resume}: {wrong}; --resume without a file takes the newest whole "
                "checkpoint"
            )
    if resume is not None:
        checkpoint = check_training_checkpoint(resume)
        cfg.resume, cfg.load_from = True, str(resume)
        _drop_pretrained(cfg.model)
        notes.append(("start", f"continue from {shown(resume)}"))
        _compare_with_run(cfg, checkpoint["meta"], notes)
        return checkpoint
    if cfg.get("load_from"):
        check_checkpoint(cfg.load_from, "config key load_from")
        notes.append(("start", f"from the weights of {cfg.load_from}"))
    return None


def _restarted_by_launcher() -> bool:
    """Whether torchrun or Slurm has started this run again."""
    return any(
        os.environ.get(name, "0") not in ("", "0")
        for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
    )


def _compare_with_run(cfg: Config, meta: dict[str, Any], notes: list[tuple[str, str]]) -> None:
    """Take over the seed of the run that is resumed, and tell where it will go on differently."""
    seed = (cfg.get("randomness") or {}).get("seed")
    if meta.get("seed") is not None:
        if seed not in (None, meta["seed"]):
            notes.append(("seed", f"{meta['seed']}, the resumed run's, not {seed}"))
        cfg.randomness = {**(cfg.get("randomness") or {}), "seed": meta["seed"]}
    loader = cfg.train_dataloader
    total = loader.get("batch_size") or (loader.get("batch_sampler") or {}).get("batch_size")
    if meta.get("total_batch") and total != meta["total_batch"]:
        notes.append(
            ("batch", f"{total} images a step; the resumed run had {meta['total_batch']}, so the "
             "data go on at another place")
        )  # fmt: skip


def _drop_pretrained(node: Any) -> None:
    """Take out weights to start from: when resuming they would be loaded for nothing."""
    if isinstance(node, dict):
        init = node.get("init_cfg")
        if isinstance(init, dict) and init.get("type") == "Pretrained":
            node["init_cfg"] = None
        for value in node.values():
            _drop_pretrained(value)


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


class _NoDraws(TorchFunctionMode):
    """Leaves out drawing random numbers for weights, most of the time of building a large model."""

    _NAMES = (
        *("normal_", "uniform_", "trunc_normal_", "kaiming_normal_", "kaiming_uniform_"),
        *("xavier_normal_", "xavier_uniform_"),
    )
    _DRAWS = frozenset([Tensor.normal_, Tensor.uniform_, *map(vars(nn.init).get, _NAMES)])

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self._DRAWS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def _try_model(
    cfg: Config, checkpoint: dict[str, Any] | None, changes: Changes | None = None
) -> nn.Module:
    """Build the model once, and load what it starts from, before the run writes anything.

    The random state is put back, so that the run itself is as if this had not been. The weights
    that are not loaded are no numbers to compute with.
    """
    with torch.random.fork_rng():
        with _NoDraws():
            model = build_model(cfg)
        if checkpoint is not None:
            try:
                load_weights(model, checkpoint["state_dict"])
            except UserError as error:
                text = str(error).replace("the state dict", str(cfg.load_from), 1)
                raise UserError(text) from error
            optimization = build_optimization(cfg, model)
            refuse = Refusal(cfg.load_from)
            fit_to_run(checkpoint, refuse, model, *optimization, changes or Changes())
        elif cfg.get("load_from"):
            load_weights(model, cfg.load_from, start_training=True)
        check_schedule_ends(cfg, model)
    return model


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
