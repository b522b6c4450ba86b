# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A whole evaluation of a checkpoint: resolve, preflight, build, run."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import get_world_size, is_main_process

from ..errors import UserError
from ..evaluation import FORMATS, CityscapesOfficialMetric, write_result
from ..models import fold_for_inference
from ..version import __version__
from ..weights import load_checkpoint
from .checkpoint import load_weights
from .config import require
from .hooks import (
    ExamplesHook,
    SavePredictionsHook,
    TestProgressHook,
    describe_dataset,
    describe_model,
    evaluation_result,
    print_header,
)
from .launch import Machine, describe_device, init_distributed, prepare_machine, timeout_of
from .logs import report_lost_lines
from .model import build_model
from .numerics import is_fused
from .preflight import check_checkpoint, check_data
from .process_state import restored_process
from .resolve import Resolved, TestingOptions, resolve
from .resume_changes import Note
from .run_folders import RunFolders
from .run_record import describe_model_state, record_run
from .runner import Runner
from .same_run import check_same_run, failing_together
from .watch import doing, lost_processes_explained


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
    official: bool = False,
) -> dict[str, Any]:
    """Evaluate a checkpoint on a config's test split, or predict it for a benchmark's server.

    The checkpoint is read and fitted into the model before anything is written. On a CPU the model
    is folded (:func:`~mmseg_resnest.models.fold_for_inference`) unless ``cfg.numerics.fused`` is
    False.

    Args:
        cfg: A checked config; not changed.
        checkpoint: Weights of the whole model, in any known layout.
        work_dir: Where ``results.json`` and the log go; default ``work_dirs/<config>/test``
            (``test_tta`` with test-time augmentation).
        tta: Evaluate with the config's ``tta_model`` (and ``tta_pipeline``).
        out_dir: Where label maps go, as palette PNGs of class indices.
        show_dir: Where pictures of image, label and prediction side by side go.
        launcher: ``none``, ``pytorch`` or ``slurm``.
        submission: ``cityscapes``, ``ade20k`` or ``voc``: write into ``out_dir`` what that server
            takes, check it and pack it. Nothing is scored and no labels are read.
        official: Run Cityscapes' official evaluation as well.

    Returns:
        What ``results.json`` holds, and ``work_dir``; on every process. With ``submission`` also
        ``archive``, on the first one.

    Raises:
        UserError: A mistake in the config, the checkpoint, the data or the arguments.
    """
    options = TestingOptions(work_dir, tta, official, submission, launcher)
    folders = {"--out": out_dir, "--show-dir": show_dir}
    with contextlib.ExitStack() as held:
        with failing_together(options.launcher, timeout_of(cfg)):
            # Resolve.
            machine = Machine.here(options.launcher)
            cfg, notes, _ = resolve_testing(cfg, options, machine)

            # Preflight.
            if options.submission is not None:
                _check_submission_folder(folders["--out"], options.submission)
            check_checkpoint(checkpoint, "checkpoint")
            check_data(cfg, ("test_dataloader",))  # before what may be a long download
            weights = load_checkpoint(os.fspath(checkpoint))
            prepare_machine(cfg, machine)

            # Build.
            model = build_model(cfg)
            load_weights(model, weights, name=checkpoint)
            del weights
            if machine.rank == 0:
                named = {"--work-dir": cfg.work_dir, **folders}.items()
                places = {Path(path): name for name, path in named if path is not None}
                notes += RunFolders(places, held).hold(make=True)
        init_distributed(options.launcher, timeout_of(cfg))
        state = describe_model_state(model)
        arguments = {"submission": options.submission}
        check_same_run(
            lambda: record_run(cfg, ("test_dataloader",), state, checkpoint, **arguments)
        )
        runner = Runner.from_cfg(cfg, model=model)
        runner.register_hook(TestProgressHook())
        if options.submission is None:
            runner.register_hook(ExamplesHook(Path(cfg.work_dir) / "examples"))
        out, show = (None if path is None else os.fspath(path) for path in folders.values())
        saving = SavePredictionsHook(out, show, options.submission)
        if out or show:
            runner.register_hook(saving)

        # Run.
        # On every process: a sampler that is built agrees on its seed with the others'.
        dataset = runner.test_loop.dataloader.dataset
        if is_main_process():
            _print_header(runner, checkpoint, options.tta, notes)
        folded = is_fused(cfg) and not machine.cuda
        if folded:
            fold_for_inference(runner.model.eval())
        start = time.monotonic()
        doing("testing")
        try:
            with lost_processes_explained("start the test again"):
                metrics = runner.test()
        finally:
            report_lost_lines(runner.logger)
        result = {
            "task": "test",
            "config": cfg.filename,
            "checkpoint": os.fspath(checkpoint),
            "tta": options.tta,
            "folded": folded,
            "numerics": runner.describe_numerics(folded),
            "version": __version__,
            "seconds": round(time.monotonic() - start, 3),
            **evaluation_result(runner.test_evaluator, metrics),
        }
        for metric in runner.test_evaluator.metrics:
            if isinstance(metric, CityscapesOfficialMetric):
                result["official"] = metric.last_official
        if options.submission is not None:
            archive = None if saving.archive is None else os.fspath(saving.archive)
            result.update(format=options.submission, images=len(dataset), archive=archive)
        if is_main_process():
            write_result(result, Path(cfg.work_dir) / "results.json")
        return {**result, "work_dir": cfg.work_dir}


def resolve_testing(cfg: Config, options: TestingOptions, machine: Machine) -> Resolved:
    """Decide an evaluation; UserError if a part of the config or an option does not fit."""
    require(cfg, ("model", "test_dataloader", "test_evaluator", "test_cfg"), "testing")
    return resolve(cfg, options, machine)


def _print_header(
    runner: Runner, checkpoint: str | os.PathLike[str], tta: bool, notes: list[Note]
) -> None:
    cfg, dataset = runner.cfg, runner.test_dataloader.dataset
    title = Path(cfg.filename).stem if cfg.filename else runner.experiment_name
    print_header(
        [
            ("testing", title + (" with augmentation" if tta else "")),
            ("config", str(cfg.filename)),
            ("checkpoint", os.fspath(checkpoint)),
            ("model", describe_model(runner.model, cfg, len(dataset.metainfo["classes"]))),
            ("data", describe_dataset(dataset)),
            ("device", describe_device(get_world_size())),
            *notes,
        ]
    )


def _check_submission_folder(out_dir: str | os.PathLike[str] | None, submission: str) -> None:
    """Check that the folder of a submission holds nothing else."""
    if out_dir is None:
        message = "name the folder for the predictions with --out DIR"
        raise UserError("argument-missing", "--format", message)
    folder = Path(out_dir)
    top = FORMATS[submission].folder.split("/")[0]
    for other in folder.iterdir() if folder.is_dir() else ():
        if other.suffix != ".png" and other.name != top:
            message = f"holds {other.name}; name an empty folder for the submission"
            raise UserError("output-exists", f"--out {folder}", message)
