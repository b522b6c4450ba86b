# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A whole evaluation of a checkpoint: resolve, preflight, build, run."""

from __future__ import annotations

import contextlib
import copy
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.dist import get_world_size, is_main_process

from ..datasets import build_dataset, leaf_datasets
from ..datasets.pipelines import boxes_not_maps
from ..errors import UserError
from ..evaluation import FORMATS, CityscapesOfficialMetric, evaluation_result, write_result
from ..evaluation.image_counts import FILE_NAME as COUNTS_FILE
from ..evaluation.results_file import RESULTS_FILE
from ..io.memory import ran_out_of_memory
from ..io.remove import remove_file
from ..io.text import error_words
from ..models import EncoderDecoder, fold_for_inference, windows_of
from ..registry import building
from ..version import __version__
from ..weights import load_checkpoint, pinned, resolve_checkpoint
from .checkpoint import load_weights
from .config import require
from .failing_parts import wrong_channels
from .hooks import (
    ExamplesHook,
    SavePredictionsHook,
    TestProgressHook,
    describe_dataset,
    describe_model,
    print_header,
)
from .latest import written_by
from .launch import Machine, describe_device, init_distributed, prepare_machine, timeout_of
from .model import build_model
from .numerics import is_fused
from .preflight import check_checkpoint, check_data, check_outputs
from .process_state import restored_process
from .resolve import Resolved, TestingOptions, resolve, scores_nothing
from .resume_changes import Note
from .run_folders import RunFolders, evaluation_folder
from .run_record import describe_model_state, record_run
from .runner import Runner
from .same_run import check_same_run, failing_together, first_decides, together
from .watch import doing, lost_processes_explained

_UNSCORED = (
    "to predict images without labels, add --cfg-options test_evaluator=[] and --out DIR, or use "
    "mmseg-resnest predict"
)


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
    use_engine: partial[Any] | None = None,
) -> dict[str, Any]:
    """Evaluate a checkpoint on a config's test split, or predict it for a benchmark's server.

    The checkpoint is read and fitted into the model before anything is written. On a CPU the model
    is folded (:func:`~mmseg_resnest.models.fold_for_inference`) unless ``cfg.numerics.fused`` is
    False.

    Args:
        cfg: A checked config; not changed.
        checkpoint: Weights of the whole model, in any known layout. Of a model on a hub
            ``results.json`` has the commit.
        work_dir: Where ``results.json`` and the log go; default: ``test`` (``test_tta`` with
            test-time augmentation) in the work folder of the run that the checkpoint is of, or in
            ``work_dirs/<config>``, see :func:`.run_folders.evaluation_folder`.
        tta: Evaluate with the config's ``tta_model`` (and ``tta_pipeline``).
        out_dir: Where label maps go, as palette PNGs of class indices.
        show_dir: Where pictures of image, label and prediction side by side go.
        launcher: ``none``, ``pytorch`` or ``slurm``.
        submission: ``cityscapes``, ``ade20k`` or ``voc``: write into ``out_dir`` what that server
            takes, check it and pack it. Nothing is scored and no labels are read.
        official: Run Cityscapes' official evaluation as well.
        use_engine: Lets another runtime compute the network:
            :func:`mmseg_resnest.runtimes.use_engine` with its ``choice``. Of several processes the
            first one chooses for all. None: torch.

    Returns:
        What ``results.json`` holds, and ``work_dir``; on every process. With ``submission`` also
        ``archive``, on the first one.

    Raises:
        UserError: A mistake in the config, the checkpoint, the data or the arguments.
    """
    folders = {"--out": out_dir, "--show-dir": show_dir}
    with contextlib.ExitStack() as held:
        with failing_together(launcher, timeout_of(cfg)):
            # Resolve.
            machine = Machine.here(launcher)
            checkpoint = pinned(os.fspath(checkpoint))
            folder = evaluation_folder(cfg, checkpoint, work_dir, tta)
            options = TestingOptions(folder, tta, official, submission, launcher)
            cfg, notes, _ = resolve_testing(cfg, options, machine)

            # Preflight.
            if options.submission is not None:
                _check_submission_folder(folders["--out"], options.submission)
            check_checkpoint(checkpoint, "checkpoint")
            check_outputs(cfg, {"--work-dir": cfg.work_dir, **folders})
            check_test_data(cfg)  # before what may be a long download
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
        arguments |= {} if use_engine is None else use_engine.keywords
        check_same_run(
            lambda: record_run(cfg, ("test_dataloader",), state, checkpoint, **arguments)
        )
        runner = Runner.from_cfg(cfg, model=model)
        held.callback(runner.close)
        progress = TestProgressHook()
        runner.register_hook(progress)
        examples = ExamplesHook(Path(cfg.work_dir) / "examples")
        if options.submission is None:
            runner.register_hook(examples)
        out, show = (None if path is None else os.fspath(path) for path in folders.values())
        saving = SavePredictionsHook(out, show, options.submission)
        if out or show:
            runner.register_hook(saving)

        # Run.
        # On every process: a sampler that is built agrees on its seed with the others'.
        dataset = runner.test_loop.dataloader.dataset
        _name_images(dataset)
        engine = _prepare_engine(runner, use_engine, progress)
        if is_main_process():
            _print_header(
                runner, checkpoint, options.tta, [*(engine.rows if engine else ()), *notes]
            )
        folded = is_fused(cfg) and not machine.cuda and (engine is None or engine.folds)
        if folded:
            fold_for_inference(runner.model.eval())
        if is_main_process():  # so that none of an earlier evaluation's stays beside this one's
            for name in (RESULTS_FILE, COUNTS_FILE):
                remove_file(Path(cfg.work_dir) / name)
        start = time.monotonic()
        doing("testing")
        try:
            with lost_processes_explained("start the test again"):
                metrics = runner.test()
        except Exception as error:
            failure = _failure(error, progress, cfg)
            if failure is error:
                raise
            raise failure from error
        seconds = round(time.monotonic() - start, 3)
        if options.submission is None and not options.tta and is_main_process():
            examples.write_uncertainty(runner)
        written = written_by(resolve_checkpoint(os.fspath(checkpoint)))
        about = {
            "task": "test",
            "config": cfg.filename,
            "checkpoint": os.fspath(checkpoint),
            "run_id": written and written[0],
            "iteration": written and written[1],
            "tta": options.tta,
            "folded": folded,
            "numerics": {
                **runner.describe_numerics(folded),
                **(engine.describe() if engine else {"precision": "float32"}),
            },
            "version": __version__,
            "seconds": seconds,
        }
        result = {**about, **evaluation_result(runner.test_evaluator, metrics), **about}
        for metric in runner.test_evaluator.metrics:
            if isinstance(metric, CityscapesOfficialMetric):
                result["official"] = metric.last_official
        if options.submission is not None:
            archive = None if saving.archive is None else os.fspath(saving.archive)
            result.update(format=options.submission, images=len(dataset), archive=archive)
        if is_main_process():
            write_result(result, Path(cfg.work_dir) / RESULTS_FILE)
        return {**result, "work_dir": cfg.work_dir}


def resolve_testing(cfg: Config, options: TestingOptions, machine: Machine) -> Resolved:
    """Decide an evaluation; UserError if a part of the config or an option does not fit."""
    require(cfg, ("model", "test_dataloader", "test_evaluator", "test_cfg"), "testing")
    return resolve(cfg, options, machine)


def check_test_data(cfg: Config) -> None:
    """Check that the test split holds images, and a label map for each where something scores.

    ``cfg`` is what :func:`.resolve` returned: where nothing is scored no step loads labels.

    Raises:
        UserError: Something is missing; where labels are, it says how to predict without.
    """
    leaves = list(leaf_datasets(cfg.test_dataloader.dataset))
    folders = []
    scored = not (scores_nothing(cfg) or any(map(boxes_not_maps, leaves)))
    for leaf in leaves if scored else ():
        prefix = leaf.get("data_prefix")
        if prefix is not None and prefix.get("seg_map_path") is None:
            key = "config key test_dataloader.dataset.data_prefix.seg_map_path"
            said = f"is missing: test_evaluator scores, and needs labels; {_UNSCORED}"
            raise UserError("config-key", key, said)
        if prefix is not None and prefix.seg_map_path:
            folders.append(Path(leaf.get("data_root") or "", prefix.seg_map_path))
    try:
        check_data(cfg, ("test_dataloader",))
        if scored and not any(leaf.get("backend_args") for leaf in leaves):
            _check_label_files(cfg)
    except UserError as error:
        path = Path(error.subject)
        if any(folder == path or folder in path.parents for folder in folders):
            raise UserError(error.code, path, f"{error.message}; {_UNSCORED}") from error
        raise


def _prepare_engine(
    runner: Runner, use_engine: partial[Any] | None, progress: TestProgressHook
) -> Any:
    """Have the engine, if any, prepared on the first image; all processes use the first one's."""
    if use_engine is None:
        return None
    say = partial(print, flush=True) if is_main_process() else runner.logger.info
    model: Any = runner.model.eval()
    engine = together(lambda: use_engine(model, runner.cfg, tell=say))
    if engine is None:
        return None
    while not isinstance(model, EncoderDecoder):
        model = model.module

    def prepare(name: str | None = None) -> str:
        batch: Any = pseudo_collate([runner.test_dataloader.dataset[0]])
        if not torch.is_tensor(batch["inputs"][0]):  # the views of test-time augmentation
            batch = {key: value[0] for key, value in batch.items()}
        progress.before_test_iter(runner, 0, batch)
        try:
            inputs = model.data_preprocessor(batch, False)["inputs"]
            engine.prepare(windows_of(model, inputs), name)
        except Exception as error:
            failure = _failure(error, progress, runner.cfg)
            if failure is error:
                raise
            raise failure from error
        progress.current = ()
        return engine.computes

    doing("preparing the engine")
    with torch.no_grad():
        first_decides(prepare, prepare)
    return engine


class _Steps(Compose):
    """A pipeline whose failures name the image."""

    def __call__(self, data: dict[str, Any]) -> dict[str, Any] | None:
        image, results = data.get("img_path", "an image"), data
        for step in self.transforms:
            try:
                results = step(results)
            except UserError:
                raise
            except Exception as error:
                if ran_out_of_memory(error):
                    raise
                name = type(step).__name__
                said = f"{name} of the test pipeline cannot work on it ({error_words(error)})"
                raise UserError("image", image, said) from error
            if results is None:
                return None
        return results


def _name_images(dataset: Any) -> None:
    """Have the pipelines of a data set, also inside wrappers, name the image that they fail on."""
    for inner in (*getattr(dataset, "datasets", ()), getattr(dataset, "dataset", None)):
        if inner is not None:
            _name_images(inner)
    if type(getattr(dataset, "pipeline", None)) is Compose:
        dataset.pipeline = _Steps(dataset.pipeline.transforms)


def _failure(error: Exception, progress: TestProgressHook, cfg: Config) -> Exception:
    """An error that names the images, where they were being predicted and scored."""
    if isinstance(error, (UserError, OSError)) or not progress.current:
        return error
    images = ", ".join(progress.current)
    if ran_out_of_memory(error):
        said = f"predicting it takes more memory than there is ({error_words(error)}); set "
        said += "model.test_cfg to mode='slide', or leave it out of the test split"
        return UserError("memory", images, said)
    with building(cfg.get("default_scope", "mmseg")):
        channels = wrong_channels(cfg, progress.batch, "test_dataloader")
    if channels is not None:  # of all images, or of these
        return UserError("image", images, channels.text) if progress.batches else channels
    first = "" if progress.batches else "; it is the first, so the model may be at fault"
    said = f"predicting or scoring it failed ({error_words(error)}){first}"
    return UserError("image" if progress.batches else "model", images, said)


def _check_label_files(cfg: Config) -> None:
    with building(cfg.get("default_scope", "mmseg")):
        dataset = build_dataset(copy.deepcopy(cfg.test_dataloader.dataset), keep=True)
    paths = (dataset.get_data_info(i).get("seg_map_path") for i in range(len(dataset)))
    missing = [path for path in paths if path is not None and not os.path.isfile(path)]
    if missing:
        more = f" ({len(missing)} of {len(dataset)} images have none)" if len(missing) > 1 else ""
        raise UserError("not-found", missing[0], f"this label map does not exist{more}")


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
