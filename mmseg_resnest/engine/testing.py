# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A whole evaluation of a checkpoint: checks, the runner, results."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.dist import get_world_size, is_main_process

from mmseg_resnest.engine.checkpoint import load_weights
from mmseg_resnest.engine.config import require
from mmseg_resnest.engine.examples import ExamplesHook
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
    timeout_of,
)
from mmseg_resnest.engine.logs import shown, tell_lost_lines
from mmseg_resnest.engine.preflight import check_checkpoint, check_data
from mmseg_resnest.engine.process_state import restored_process
from mmseg_resnest.engine.run_folders import RunFolders
from mmseg_resnest.engine.run_record import describe_model_state, record_run
from mmseg_resnest.engine.runner import Runner, build_model
from mmseg_resnest.engine.same_run import check_same_run, failing_together
from mmseg_resnest.engine.watch import doing, explain_lost_processes
from mmseg_resnest.errors import UserError
from mmseg_resnest.evaluation import (
    FORMATS,
    CityscapesOfficialMetric,
    class_table,
    official_table,
    write_result,
)
from mmseg_resnest.models import fold_for_inference
from mmseg_resnest.version import __version__
from mmseg_resnest.weights import load_checkpoint

__all__ = ["add_official_metric", "evaluate", "print_test_summary"]


@restored_process()
def evaluate(
    cfg: Config,
    checkpoint: str | os.PathLike[str],
    work_dir: str | os.PathLike[str] | None = None,
    tta: bool = False,
    out_dir: str | os.PathLike[str] | None = None,
    show_dir: str | os.PathLike[str] | None = None,
    launcher: str = "none",
    submission: str | None = None,
    plain: bool = False,
) -> dict[str, Any]:
    """Evaluate a checkpoint on a config's test split, or predict it for a benchmark's server.

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
        submission: ``cityscapes``, ``ade20k`` or ``voc``: write into ``out_dir`` what that server
            takes, check it and pack it. Nothing is scored and no labels are read.
        plain: Compute with the model's layers as they are, and make labels by torch; otherwise on
            a CPU the model is folded, see :func:`~mmseg_resnest.models.fold_for_inference`, and
            compiled loops make the labels (:mod:`mmseg_resnest.kernels.compiled`).

    Returns:
        What ``results.json`` holds, and ``work_dir``; on every process. With ``submission`` also
        ``archive``, on the first one.

    Raises:
        UserError: A mistake in the config, the checkpoint, the data or the arguments.
    """
    with contextlib.ExitStack() as held:
        return _evaluate(
            cfg, checkpoint, work_dir, tta, out_dir, show_dir, launcher, submission, plain, held
        )


def _evaluate(
    cfg: Config,
    checkpoint: str | os.PathLike[str],
    work_dir: str | os.PathLike[str] | None,
    tta: bool,
    out_dir: str | os.PathLike[str] | None,
    show_dir: str | os.PathLike[str] | None,
    launcher: str,
    submission: str | None,
    plain: bool,
    held: contextlib.ExitStack,
) -> dict[str, Any]:
    notes: list[tuple[str, str]] = []
    with failing_together(launcher, timeout_of(cfg)):
        require(cfg, ("model", "test_dataloader", "test_evaluator", "test_cfg"), "testing")
        folder = os.path.join(default_work_dir(cfg), "test_tta" if tta else "test")
        cfg.work_dir = os.fspath(work_dir or folder)
        cfg.load_from, cfg.resume = None, False
        if tta:
            _use_tta(cfg)
        if submission is not None:
            _use_submission(cfg, submission, out_dir)
        else:
            _keep_image_counts(cfg, tta)
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
            arguments = {"--work-dir": cfg.work_dir, "--out": out_dir, "--show-dir": show_dir}
            folders = {Path(path): name for name, path in arguments.items() if path is not None}
            notes = RunFolders(folders, held).hold(make=True)

    init_distributed(launcher, timeout_of(cfg))
    state = describe_model_state(model)
    options = dict(plain=plain, submission=submission)
    check_same_run(lambda: record_run(cfg, ("test_dataloader",), state, checkpoint, **options))
    runner = Runner.from_cfg(cfg, model=model)
    runner.may_compile = not plain
    runner.register_hook(TestProgressHook())
    if submission is None:
        runner.register_hook(ExamplesHook(Path(cfg.work_dir) / "examples"))
    saving = SavePredictionsHook(
        None if out_dir is None else os.fspath(out_dir),
        None if show_dir is None else os.fspath(show_dir),
        submission,
    )
    if out_dir is not None or show_dir is not None:
        runner.register_hook(saving)
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
                *notes,
            ]
        )
    folded = not plain and not torch.cuda.is_available()
    if folded:
        fold_for_inference(runner.model.eval())
    start = time.monotonic()
    doing("testing")
    try:
        metrics = runner.test()
    except Exception as error:
        told = explain_lost_processes(error, "start the test again")
        if told is None:
            raise
        raise told from error
    finally:
        tell_lost_lines(runner.logger)
    seconds = time.monotonic() - start
    result = {
        "task": "test",
        "config": cfg.filename,
        "checkpoint": os.fspath(checkpoint),
        "tta": tta,
        "folded": folded,
        "numerics": runner.describe_numerics(folded),
        "version": __version__,
        "seconds": round(seconds, 3),
        **evaluation_result(runner.test_evaluator, metrics),
    }
    for metric in runner.test_evaluator.metrics:
        if isinstance(metric, CityscapesOfficialMetric):
            result["official"] = metric.last_official
    if submission is not None:
        result.update(
            format=submission,
            images=len(dataset),
            archive=None if saving.archive is None else os.fspath(saving.archive),
        )
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


def add_official_metric(cfg: Config) -> None:
    """Put Cityscapes' official evaluation beside the config's metrics.

    Raises:
        UserError: The test split is not one of Cityscapes.
    """
    require(cfg, ("test_dataloader", "test_evaluator"), "testing")
    kind = cfg.test_dataloader.dataset.get("type")
    if str(getattr(kind, "__name__", kind)).rsplit(".", 1)[-1] != "CityscapesDataset":
        raise UserError(f"--official: is for Cityscapes; the config's test split is {kind}")
    before = cfg.test_evaluator
    metrics = list(before) if isinstance(before, list | tuple) else [before]
    cfg.test_evaluator = [*metrics, ConfigDict(type="CityscapesOfficialMetric")]


def _use_submission(cfg: Config, submission: str, out_dir: str | os.PathLike[str] | None) -> None:
    """Make the test split one of images alone, which nothing scores."""
    if submission not in FORMATS:
        raise UserError(f"--format {submission}: is none of {', '.join(FORMATS)}")
    if out_dir is None:
        raise UserError("--format: name the folder for the predictions with --out DIR")
    folder = Path(out_dir)
    top = FORMATS[submission].folder.split("/")[0]
    for other in folder.iterdir() if folder.is_dir() else ():
        if other.suffix != ".png" and other.name != top:
            raise UserError(
                f"--out {folder}: holds {other.name}; name an empty folder for the submission"
            )
    dataset: Any = cfg.test_dataloader.dataset
    if dataset.get("datasets") or dataset.get("dataset"):
        raise UserError("--format: test_dataloader.dataset must be a data set, not a wrapper")
    dataset.pipeline = [step for step in dataset.pipeline if not _loads_labels(step.get("type"))]
    for step in dataset.pipeline:
        if step.get("type") == "TestTimeAug":
            step.transforms = [
                [inner for inner in group if not _loads_labels(inner.get("type"))]
                for group in step.transforms
            ]
            step.transforms = [group for group in step.transforms if group]
    # A prefix that is not there, rather than none: some data sets have one by default.
    dataset.data_prefix = {
        key: value
        for key, value in (dataset.get("data_prefix") or {}).items()
        if key != "seg_map_path"
    }
    cfg.test_evaluator = []


def _loads_labels(kind: Any) -> bool:
    name = kind if isinstance(kind, str) else getattr(kind, "__name__", "")
    return name.rsplit(".", 1)[-1] == "LoadAnnotations"


def _keep_image_counts(cfg: Config, tta: bool) -> None:
    """Have the counts of each image written beside results.json, for comparisons."""
    evaluators = cfg.test_evaluator
    for one in evaluators if isinstance(evaluators, list | tuple) else [evaluators]:
        if str(one.get("type")).rsplit(".", 1)[-1] != "SegmentationMetric":
            continue
        if one.get("image_counts") is None:
            one["image_counts"] = os.path.join(cfg.work_dir, "images.npz")
        if tta and one.get("scores") is None and cfg.model.get("type") == "MultiScaleGridTTA":
            one["scores"] = "sums"


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
    if result.get("official"):
        print(official_table(result["official"]) + "\n")
    scores = [f"{k} {result[k]:.2f}" for k in ("mIoU", "pixAcc", "mAcc") if k in result]
    images = result.get("images")
    speed = f", {images / result['seconds']:.1f} images/s" if images else ""
    rows = [("scores", ", ".join(scores))] if scores else []
    rows.append(("results", shown(os.path.join(result["work_dir"], "results.json"))))
    if result.get("archive"):
        rows.append(("to submit", f"{shown(result['archive'])} ({images:,} predictions, checked)"))
    if out_dir is not None:
        rows.append(("label maps", shown(out_dir)))
    if show_dir is not None:
        rows.append(("pictures", shown(show_dir)))
    rows.append(("took", duration(result["seconds"]) + speed))
    print_header(rows)
