# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A whole training run: checks, the runner, results."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.runner import find_latest_checkpoint

from mmseg_resnest.engine.checkpoint import load_weights
from mmseg_resnest.engine.config import require
from mmseg_resnest.engine.hooks import ConsoleHook, ResultsHook, duration, print_header
from mmseg_resnest.engine.launch import (
    default_work_dir,
    enable_amp,
    fit_to_machine,
    init_distributed,
    join_launcher,
    share_batch,
)
from mmseg_resnest.engine.logs import shown
from mmseg_resnest.engine.preflight import (
    check_checkpoint,
    check_data,
    check_labels,
    check_writable,
)
from mmseg_resnest.engine.runner import Runner, build_model, check_training_checkpoint
from mmseg_resnest.errors import UserError
from mmseg_resnest.evaluation import class_table, plot_curves
from mmseg_resnest.version import __version__
from mmseg_resnest.weights import load_checkpoint

__all__ = ["print_training_summary", "train"]


def train(
    cfg: Config,
    work_dir: str | os.PathLike[str] | None = None,
    resume: str | None = None,
    amp: bool = False,
    auto_scale_lr: bool = False,
    seed: int | None = None,
    launcher: str = "none",
) -> dict[str, Any]:
    """Train as a config says; everything that can be checked is checked before anything is written.

    Args:
        cfg: A checked config; changed in place. Its training batch is the total over all
            processes.
        work_dir: Where checkpoints, logs and results go; default: the config's, or
            ``work_dirs/<name of the config>``.
        resume: ``auto``: continue from the newest checkpoint of the work folder, or start when
            there is none; otherwise the checkpoint to continue from.
        amp: Mixed precision.
        auto_scale_lr: Scale the learning rate with the total batch, by the config's
            ``auto_scale_lr.base_batch_size``.
        seed: In place of the config's.
        launcher: ``none``, ``pytorch`` or ``slurm``.

    Returns:
        On every process: ``work_dir``, ``seconds``; on the first one also what
        ``results.json`` holds, and ``curves``, the path of the picture (None without a log).

    Raises:
        UserError: A mistake in the config, the data or the arguments.
    """
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
    check_data(cfg, ("train_dataloader", "val_dataloader"))
    note = _set_start(cfg, resume)
    if note:
        notes.append(("start", note))
    _fetch_pretrained(cfg.model, "model")
    rank, world_size = join_launcher(launcher)
    note = share_batch(cfg, world_size)
    if note:
        notes.append(("batch", note))
    fit_to_machine(cfg, launcher)
    check_labels(cfg, ("train", "val"))
    _try_model(cfg)
    if rank == 0:
        check_writable(cfg.work_dir, "--work-dir")

    init_distributed(launcher)
    runner = Runner.from_cfg(cfg)
    name = Path(cfg.filename).stem if cfg.filename else runner.experiment_name
    extra = {"task": "train", "config": cfg.filename, "version": __version__}
    results = ResultsHook(extra=extra)
    runner.register_hook(ConsoleHook(title=name, config=str(cfg.filename), notes=notes))
    runner.register_hook(results)
    # torch imports its profiler in the first step; that import would report a worker that dies
    # just then, too.
    with torch.autograd.profiler.record_function("start"):
        pass
    try:
        runner.train()
    except BaseException as error:
        if not _is_interrupt(error):
            raise
        saved = find_latest_checkpoint(cfg.work_dir) if os.path.isdir(cfg.work_dir) else None
        raise KeyboardInterrupt(
            f"the newest checkpoint is {shown(saved)}; the same command with --resume "
            "continues from it"
            if saved
            else "no checkpoint had been saved"
        ) from None
    summary: dict[str, Any] = {"work_dir": cfg.work_dir, "seconds": time.monotonic() - start}
    if is_main_process():
        summary.update(_read_results(runner, results))
        summary["curves"] = _draw_curves(cfg.work_dir, name)
    return summary


def _is_interrupt(error: BaseException) -> bool:
    """Whether Ctrl-C is behind an error: libraries turn what interrupts them into errors."""
    chain: BaseException | None = error
    while chain is not None and not isinstance(chain, KeyboardInterrupt):
        chain = chain.__cause__ or chain.__context__
    return chain is not None


def _enable_auto_scale_lr(cfg: Config) -> None:
    scaling = cfg.get("auto_scale_lr") or {}
    if not scaling.get("base_batch_size"):
        raise UserError(
            "--auto-scale-lr: the config does not say for which batch its learning rate is; add "
            "auto_scale_lr=dict(base_batch_size=16)"
        )
    cfg.auto_scale_lr = {**scaling, "enable": True}


def _set_start(cfg: Config, resume: str | None) -> str | None:
    """Decide what the run starts from, set it in the config, and check that it is there."""
    if resume is None and cfg.get("resume"):
        resume = cfg.get("load_from") or "auto"
    if resume == "auto":
        latest = find_latest_checkpoint(cfg.work_dir) if os.path.isdir(cfg.work_dir) else None
        if latest is None:
            cfg.resume = False
            return f"from the beginning: {cfg.work_dir} holds no checkpoint to resume from"
        resume = latest
    if resume is not None:
        check_checkpoint(resume, "--resume")
        check_training_checkpoint(resume)
        cfg.resume, cfg.load_from = True, str(resume)
        _drop_pretrained(cfg.model)
        return f"continue from {shown(resume)}"
    if cfg.get("load_from"):
        check_checkpoint(cfg.load_from, "config key load_from")
        return f"from the weights of {cfg.load_from}"
    return None


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


def _try_model(cfg: Config) -> None:
    """Build the model once, and load what it starts from, before the run writes anything.

    The random state is put back, so that the run itself is as if this had not been.
    """
    with torch.random.fork_rng():
        model = build_model(cfg)
        if cfg.get("load_from"):
            if cfg.get("resume"):
                load_weights(model, check_training_checkpoint(cfg.load_from)["state_dict"])
            else:
                load_weights(model, cfg.load_from, start_training=True)


def _read_results(runner: Runner, results: ResultsHook) -> dict[str, Any]:
    """What ``results.json`` holds; without a validation only where the last checkpoint is."""
    path = Path(runner.work_dir) / results.file
    if not results.history:
        last = runner.message_hub.runtime_info.get("last_ckpt")
        return {**results.extra, "last_checkpoint": last and os.path.basename(str(last))}
    return json.loads(path.read_text(encoding="utf-8"))


def _draw_curves(work_dir: str, title: str) -> str | None:
    try:
        return os.fspath(plot_curves(work_dir, Path(work_dir) / "curves.png", title))
    except UserError:  # too short a run to have logged anything
        return None


def print_training_summary(summary: dict[str, Any], options: str = "") -> None:
    """Print the results of a run, where they are and what to do next.

    Args:
        summary: What :func:`train` returned on the first process.
        options: Arguments to repeat in the commands to run next, e.g. ``--data-root DIR``.
    """
    folder = Path(shown(summary["work_dir"]))
    rows = []
    if "classes" in summary:
        print(f"best validation, at iteration {summary['iteration']:,}")
        print(class_table(summary) + "\n")
    if "mIoU" in summary:
        scores = ", ".join(
            f"{k} {summary[k]:.2f}" for k in ("mIoU", "pixAcc", "mAcc") if k in summary
        )
        rows.append(("best", f"{scores} at iteration {summary['iteration']:,}"))
    checkpoint = summary.get("best_checkpoint") or summary.get("last_checkpoint")
    if checkpoint:
        rows.append(("checkpoint", str(folder / checkpoint)))
    if "mIoU" in summary:
        rows.append(("results", str(folder / "results.json")))
    if summary.get("curves"):
        rows.append(("curves", shown(summary["curves"])))
    rows.append(("took", duration(summary["seconds"])))
    print_header(rows)
    if checkpoint:
        command = f"{summary['config']} {folder / checkpoint}"
        more = f" {options}" if options else ""
        print("next")
        print(f"  python tools/test.py {command} --show-dir {folder / 'pictures'}{more}")
        print(f"  python tools/predict.py {command} IMAGE_OR_FOLDER --out {folder / 'predictions'}")
