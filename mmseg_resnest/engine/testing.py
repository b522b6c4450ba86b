# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A whole evaluation of a checkpoint: checks, the runner, results."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import get_world_size, is_main_process

from mmseg_resnest.engine.checkpoint import load_weights
from mmseg_resnest.engine.config import require
from mmseg_resnest.engine.hooks import (
    SavePredictionsHook,
    TestProgressHook,
    describe_dataset,
    describe_model,
    duration,
    evaluation_result,
    print_header,
)
from mmseg_resnest.engine.launch import (
    default_work_dir,
    describe_device,
    fit_to_machine,
    init_distributed,
    join_launcher,
)
from mmseg_resnest.engine.logs import shown
from mmseg_resnest.engine.preflight import check_checkpoint, check_data, check_writable
from mmseg_resnest.engine.runner import Runner, build_model
from mmseg_resnest.errors import UserError
from mmseg_resnest.evaluation import class_table, write_result
from mmseg_resnest.version import __version__
from mmseg_resnest.weights import load_checkpoint

__all__ = ["evaluate", "print_test_summary"]


def evaluate(
    cfg: Config,
    checkpoint: str | os.PathLike[str],
    work_dir: str | os.PathLike[str] | None = None,
    tta: bool = False,
    out_dir: str | os.PathLike[str] | None = None,
    show_dir: str | os.PathLike[str] | None = None,
    launcher: str = "none",
) -> dict[str, Any]:
    """Evaluate a checkpoint on a config's test split.

    The checkpoint is read and fitted into the model before anything is written.

    Args:
        cfg: A checked config; changed in place.
        checkpoint: Weights of the whole model, in any known layout.
        work_dir: Where ``results.json`` and the log go; default ``work_dirs/<config>/test``
            (``test_tta`` with test-time augmentation).
        tta: Evaluate with the config's ``tta_model`` (and ``tta_pipeline``).
        out_dir: Where label maps go, as palette PNGs of class indices.
        show_dir: Where pictures of image, label and prediction side by side go.
        launcher: ``none``, ``pytorch`` or ``slurm``.

    Returns:
        What ``results.json`` holds, and ``work_dir``; on every process.

    Raises:
        UserError: A mistake in the config, the checkpoint, the data or the arguments.
    """
    require(cfg, ("model", "test_dataloader", "test_evaluator", "test_cfg"), "testing")
    folder = os.path.join(default_work_dir(cfg), "test_tta" if tta else "test")
    cfg.work_dir = os.fspath(work_dir or folder)
    cfg.load_from, cfg.resume = None, False
    if tta:
        _use_tta(cfg)
    check_checkpoint(checkpoint, "checkpoint")
    check_data(cfg, ("test_dataloader",))  # before what may be a long download
    weights = load_checkpoint(os.fspath(checkpoint))
    rank, _ = join_launcher(launcher)
    fit_to_machine(cfg, launcher)
    model = build_model(cfg)
    try:
        load_weights(model, weights)
    except UserError as error:
        raise UserError(str(error).replace("the state dict", str(checkpoint), 1)) from error
    del weights
    if rank == 0:
        check_writable(cfg.work_dir, "--work-dir")
        for path, argument in ((out_dir, "--out"), (show_dir, "--show-dir")):
            if path is not None:
                check_writable(path, argument)

    init_distributed(launcher)
    runner = Runner.from_cfg(cfg, model=model)
    runner.register_hook(TestProgressHook())
    if out_dir is not None or show_dir is not None:
        runner.register_hook(
            SavePredictionsHook(
                None if out_dir is None else os.fspath(out_dir),
                None if show_dir is None else os.fspath(show_dir),
            )
        )
    # On every process: a sampler that is built agrees on its seed with the others'.
    dataset = runner.test_loop.dataloader.dataset
    if is_main_process():
        print_header(
            [
                ("testing", Path(cfg.filename).stem + (" with augmentation" if tta else "")),
                ("config", str(cfg.filename)),
                ("checkpoint", os.fspath(checkpoint)),
                ("model", describe_model(runner.model, cfg, len(dataset.metainfo["classes"]))),
                ("data", describe_dataset(dataset)),
                ("device", describe_device(get_world_size())),
            ]
        )
    start = time.monotonic()
    metrics = runner.test()
    seconds = time.monotonic() - start
    result = {
        "task": "test",
        "config": cfg.filename,
        "checkpoint": os.fspath(checkpoint),
        "tta": tta,
        "version": __version__,
        "seconds": round(seconds, 3),
        **evaluation_result(runner.test_evaluator, metrics),
    }
    if is_main_process():
        write_result(result, Path(cfg.work_dir) / "results.json")
    return {**result, "work_dir": cfg.work_dir}


def _use_tta(cfg: Config) -> None:
    """Put the test-time augmentation around the model, as MMSegmentation does."""
    if cfg.get("tta_model") is None:
        raise UserError(
            f"--tta: {cfg.filename} has no tta_model; add e.g. "
            "tta_model=dict(type='MultiScaleGridTTA', scales=(0.75, 1.0, 1.25), flip=True)"
        )
    if cfg.get("tta_pipeline") is not None:
        cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    cfg.tta_model.module = cfg.model
    cfg.model = cfg.tta_model


def print_test_summary(
    result: dict[str, Any],
    out_dir: str | os.PathLike[str] | None = None,
    show_dir: str | os.PathLike[str] | None = None,
) -> None:
    """Print the scores and where things are.

    Args:
        result: What :func:`evaluate` returned.
        out_dir: The folder of label maps, if there is one.
        show_dir: The folder of pictures, if there is one.
    """
    if "classes" in result:
        print(class_table(result) + "\n")
    scores = [f"{k} {result[k]:.2f}" for k in ("mIoU", "pixAcc", "mAcc") if k in result]
    images = result.get("images")
    speed = f", {images / result['seconds']:.1f} images/s" if images else ""
    rows = [
        ("scores", ", ".join(scores)),
        ("results", shown(os.path.join(result["work_dir"], "results.json"))),
    ]
    if out_dir is not None:
        rows.append(("label maps", shown(out_dir)))
    if show_dir is not None:
        rows.append(("pictures", shown(show_dir)))
    rows.append(("took", duration(result["seconds"]) + speed))
    print_header(rows)
