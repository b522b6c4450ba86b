# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A run is decided once: config, options and machine become the config that the runner gets.

:func:`resolve` is the only place where a config is changed. It is pure: it works on a copy and
reads nothing of the process. What has to be looked up first is an argument: the checkpoint to
resume from (:mod:`~mmseg_resnest.engine.start`), the numbers of classes, and the machine
(:class:`~mmseg_resnest.engine.launch.Machine`).
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config, ConfigDict

from ..datasets import guard_labels, loss_ignore_index, merge_steps
from ..datasets.pipelines import loads_labels, pipelines, step_name, with_loading
from ..errors import UserError, check_value
from ..evaluation import FORMATS, metric_configs
from ..registry import type_name
from .config import named_types
from .config.kinds import DATALOADERS
from .config.numbers import is_whole
from .facts import mappings
from .launch import Machine
from .multilabel import check_overlap, is_multilabel
from .optimization import check_schedules
from .pins import set_pins
from .resume_changes import SEED, Note, covers, describe_config
from .run_length import batch_holder
from .run_options import RunOptions, schedule_note, set_run_options
from .teacher import set_distillation

#: Seconds after which a data loading worker counts as hung.
WORKER_TIMEOUT = 600
_LARGEST_SEED = 2**32 - 1
#: Optimizer wrappers of mixed precision.
_MIXED = ("AmpOptimWrapper", "BFloat16OptimWrapper")


@dataclass(frozen=True)
class ResumePoint:
    """The checkpoint that a training continues from, and the seed of the run that wrote it."""

    path: str
    seed: int | None = None


@dataclass(frozen=True)
class TrainingOptions:
    """What the command line of a training says (:func:`.training.train`), and what was looked up.

    ``classes`` holds what :func:`~mmseg_resnest.datasets.numbers_of_classes` says of the data sets
    of some data loaders, ``pins`` what :func:`.find_pins` found.
    """

    work_dir: str | os.PathLike[str] | None = None
    seed: int | None = None
    amp: bool = False
    auto_scale_lr: bool = False
    launcher: str = "none"
    log_to: Sequence[str] = ()
    resume: ResumePoint | None = None
    classes: Mapping[str, Sequence[int | None]] = field(default_factory=dict)
    pins: Mapping[str, str] = field(default_factory=dict)
    run: RunOptions = field(default_factory=RunOptions)
    teacher: str | None = None
    compiled: bool = False
    allow_changes: Sequence[str] = ()


@dataclass(frozen=True)
class TestingOptions:
    """What the command line of an evaluation says (:func:`.testing.evaluate`)."""

    __test__ = False  # pytest: not a test

    work_dir: str | os.PathLike[str] | None = None
    tta: bool = False
    official: bool = False
    submission: str | None = None
    launcher: str = "none"


class Resolved(NamedTuple):
    """What :func:`resolve` returns.

    Attributes:
        cfg: The config that the runner gets.
        notes: Rows for the header of the run, on decisions that the user should see.
        values: Of a training, what :func:`.describe_config` says before it fits the machine.
    """

    cfg: Config
    notes: list[Note]
    values: dict[str, str]


def resolve(cfg: Config, options: TrainingOptions | TestingOptions, machine: Machine) -> Resolved:
    """Decide a run.

    Args:
        cfg: A checked config; not changed. Its training batch is the total over all processes.
        options: What the command line says.
        machine: What the run has to compute on.

    Returns:
        The config that the runner gets; the training batch in it is that of one process.

    Raises:
        UserError: An option does not go with the config or the machine.
    """
    cfg = named_types(copy.deepcopy(cfg))
    values: dict[str, str] = {}
    notes: list[Note | None] = []
    for split in ("val", "test"):
        keys = [f"{split}_dataloader", f"{split}_cfg", f"{split}_evaluator"]
        missing = [key for key in keys if cfg.get(key) is None]
        if 0 < len(missing) < len(keys):
            message = f"is None or missing; give all of {', '.join(keys)}, or none"
            raise UserError("config-conflict", f"config key {missing[0]}", message)
        if isinstance(cfg.get(keys[-1]), tuple):  # MMEngine's loops take lists alone
            cfg[keys[-1]] = list(cfg[keys[-1]])
    check_overlap(cfg)
    if isinstance(options, TrainingOptions):
        cfg.work_dir = work_dir_of(cfg, options)
        _name_loop(cfg)
        _check_length(cfg)
        notes += set_run_options(cfg, options.run, options.auto_scale_lr, machine.memory)
        check_schedules(cfg)
        notes.append(schedule_note(cfg))
        _set_start(cfg, options)
        notes.append(_set_seed(cfg, options))
        _set_numerics(cfg)
        if options.compiled:
            cfg.compile = cfg.get("compile") or True
        if options.amp:
            notes.append(("precision", enable_amp(cfg, machine.cuda)))
        notes.append(_slow_precision(cfg, machine))
        if options.auto_scale_lr:
            _scale_learning_rate(cfg)
        set_distillation(cfg, options.teacher)
        set_pins(cfg, options.pins)
        _guard_numbers(cfg)
        _log_over_iterations(cfg)
        _log_to_services(cfg, options)
        # What follows fits the run to the machine; it changes no result.
        values = describe_config(cfg)
        notes.append(_share_batch(cfg, machine))
        if cfg.numerics.fused:
            _merge_pipelines(cfg.train_dataloader.get("dataset"))
        for name, numbers in options.classes.items():  # LoadAnnotations refuses other labels
            guard_labels(cfg[name].dataset, numbers, loss_ignore_index(cfg))
    else:
        _set_test_folder(cfg, options)
        cfg.load_from, cfg.resume = None, False  # the weights are those of the command line
        cfg.pop("compile", None)  # of training; in testing an engine is chosen
        _set_numerics(cfg)
        if options.tta:
            _use_tta(cfg)
        if options.official:
            _add_official_metric(cfg)
        if options.submission is not None and is_multilabel(cfg):
            message = f"{options.submission} takes one class a pixel, and model.multilabel is True"
            raise UserError("config-conflict", "--format", message)
        if options.submission is not None:
            _use_submission(cfg, options.submission)
        if scores_nothing(cfg):
            _drop_labels(cfg.test_dataloader.dataset)
        _keep_image_counts(cfg, options)
    _fit_loaders(cfg, machine)
    _set_launcher(cfg, options, machine)
    return Resolved(cfg, [note for note in notes if note is not None], values)


def default_work_dir(cfg: Config) -> str:
    """``work_dirs/<name of the config>``; UserError for a config without a file."""
    if not cfg.filename:
        raise UserError("argument-missing", "work_dir", "name a folder: the config has no file")
    return os.path.join("work_dirs", Path(cfg.filename).stem)


# --- training -------------------------------------------------------------------------------


def work_dir_of(cfg: Config, options: TrainingOptions) -> str:
    """The work folder of a training."""
    return os.fspath(options.work_dir or cfg.get("work_dir") or default_work_dir(cfg))


def _set_start(cfg: Config, options: TrainingOptions) -> None:
    """Resume, or start; a start may load weights (``load_from``)."""
    cfg.resume = options.resume is not None
    if options.resume is not None:
        cfg.load_from = options.resume.path
        _drop_pretrained(cfg.model)


def _name_loop(cfg: Config) -> None:
    """Name the loop of a config that says ``by_epoch``, or nothing: MMEngine takes its own."""
    loop = cfg.train_cfg
    if "type" not in loop:
        by_epoch = loop.pop("by_epoch", "max_epochs" in loop)
        loop["type"] = "EpochBasedTrainLoop" if by_epoch else "IterBasedTrainLoop"


def _check_length(cfg: Config) -> None:
    for name in ("max_iters", "max_epochs", "val_interval"):
        value = cfg.train_cfg.get(name, 1)
        check_value(f"train_cfg.{name}", value, "a whole number from 1 on", is_whole(value, 1))
    begin = cfg.train_cfg.get("val_begin", 0)
    end = cfg.train_cfg.get("max_iters", cfg.train_cfg.get("max_epochs"))
    if cfg.get("val_cfg") is not None and end is not None and begin > end:
        message = f"is {begin:,}, after the end of the run, {end:,}: nothing would be validated"
        raise UserError("config-conflict", "config key train_cfg.val_begin", message)


def _set_numerics(cfg: Config) -> None:
    """Whether steps may be fused, which changes rounding; see :mod:`.numerics`."""
    cfg.numerics = {"fused": True, **(cfg.get("numerics") or {})}
    fused = cfg.numerics.fused
    check_value("numerics.fused", fused, "True or False", isinstance(fused, bool))


def _drop_pretrained(model: Any) -> None:
    """Take out weights to start from: when resuming they would be loaded for nothing."""
    for _, node in mappings(model):
        init = node.get("init_cfg")
        if isinstance(init, dict) and init.get("type") == "Pretrained":
            node["init_cfg"] = None


def _set_seed(cfg: Config, options: TrainingOptions) -> Note | None:
    """The seed of the resumed run unless it may change, that of the options, or the config's."""
    randomness = dict(cfg.get("randomness") or {})
    wanted = randomness.get("seed") if options.seed is None else options.seed
    if wanted is not None:
        if not is_whole(wanted, 0) or wanted > _LARGEST_SEED:
            message = f"must be an integer from 0 to 2**32 - 1, not {wanted!r}"
            if options.seed is None:
                raise UserError("config-value", "config key randomness.seed", message)
            raise UserError("argument", "--seed", message)
        wanted = int(wanted)
    resumed = None if options.resume is None else options.resume.seed
    if wanted is not None and covers(options.allow_changes, SEED):
        resumed = None
    seed = wanted if resumed is None else resumed
    if seed is not None or "randomness" in cfg:
        cfg.randomness = {**randomness, "seed": seed}
    if resumed is not None and wanted not in (None, resumed):
        return "seed", f"{resumed}, the resumed run's, not {wanted}"
    return None


def enable_amp(cfg: Config, cuda: bool) -> str:
    """Train in mixed precision: float16 with loss scaling on a GPU (``cuda``), bfloat16 on a CPU.

    Changes ``cfg`` in place and returns what was chosen, for the console.

    Raises:
        UserError: The config's optimizer wrapper is of a kind that ``--amp`` cannot replace.
    """
    wrapper = cfg.optim_wrapper
    kind = type_name(wrapper.get("type", "OptimWrapper"))
    if kind in _MIXED:
        return "mixed precision as the config says"
    if kind != "OptimWrapper":
        message = f"replaces OptimWrapper, but config key optim_wrapper.type is {kind}"
        raise UserError("config-conflict", "--amp", message)
    if cuda:
        wrapper["type"] = "AmpOptimWrapper"
        wrapper["loss_scale"] = "dynamic"
        return "mixed precision (float16)"
    wrapper["type"] = "BFloat16OptimWrapper"
    return "mixed precision (bfloat16)"


def _slow_precision(cfg: Config, machine: Machine) -> Note | None:
    """That a processor would train more slowly in mixed precision than without."""
    kind = type_name(cfg.optim_wrapper.get("type", "OptimWrapper"))
    if kind not in _MIXED or machine.cuda or machine.bfloat16 is not False:
        return None
    said = (
        "this processor has no units for bfloat16 or float16: steps take several times as long as "
        "in float32"
    )
    return "precision", said


def _scale_learning_rate(cfg: Config) -> None:
    scaling = cfg.get("auto_scale_lr") or {}
    if not scaling.get("base_batch_size"):
        raise UserError(
            "config-key",
            "--auto-scale-lr",
            "the config does not say for which batch its learning rate is; add that number: "
            "auto_scale_lr=dict(base_batch_size=...)",
        )
    cfg.auto_scale_lr = {**scaling, "enable": True}


def _guard_numbers(cfg: Config) -> None:
    """Keep losses that are not finite from the weights, unless the config says otherwise."""
    if cfg.get("default_hooks") is None:
        cfg.default_hooks = {}
    cfg.default_hooks.setdefault("nonfinite", dict(type="NonFiniteHook"))


def _log_over_iterations(cfg: Config) -> None:
    """Log scores at their iteration, as losses are, where the config does not ask for epochs."""
    logger = cfg.default_hooks.setdefault("logger", dict(type="LoggerHook"))
    if isinstance(logger, dict) and type_name(logger.get("type")) == "LoggerHook":
        logger.setdefault("log_metric_by_epoch", False)


def _log_to_services(cfg: Config, options: TrainingOptions) -> None:
    for service in dict.fromkeys(options.log_to):
        if cfg.get("visualizer") is None:
            cfg.visualizer = dict(type="SegLocalVisualizer")
        backends = cfg.visualizer.get("vis_backends") or [dict(type="LocalVisBackend")]
        tracker = dict(type="Tracker", name=service, service=service)  # names must differ
        if tracker not in backends:
            cfg.visualizer.vis_backends = [*backends, tracker]


def _share_batch(cfg: Config, machine: Machine) -> Note | None:
    """Divide the training batch, which is the total one, over the processes."""
    holder = batch_holder(cfg)
    total: Any = holder.get("batch_size")
    key, wanted = "train_dataloader.batch_size", "the images of a training step over all processes"
    check_value(key, total, wanted, is_whole(total, 1))
    processes = machine.world_size
    if total % processes:
        raise UserError(
            "config-conflict",
            f"config key {key}",
            f"the total batch of {total} cannot be divided over {processes} processes; use a "
            f"number of processes that divides it, or a multiple of {processes} (and "
            "--auto-scale-lr)",
        )
    holder["batch_size"] = total // processes
    if processes == 1:
        return None
    return "batch", f"{total} images a step = {processes} processes x {total // processes}"


def _merge_pipelines(dataset: Any) -> None:
    """Do resize and crop of the training images in one step; the samples stay the same."""
    for _, node in mappings(dataset):
        if isinstance(node.get("pipeline"), list) and not node.get("skip_type_keys"):
            node["pipeline"] = merge_steps(node["pipeline"])


# --- testing --------------------------------------------------------------------------------


def _set_test_folder(cfg: Config, options: TestingOptions) -> None:
    folder = options.work_dir
    if folder is None:
        folder = os.path.join(default_work_dir(cfg), "test_tta" if options.tta else "test")
    cfg.work_dir = os.fspath(folder)


def _use_tta(cfg: Config) -> None:
    """Put the test-time augmentation around the model, as MMSegmentation does."""
    if cfg.get("tta_model") is None:
        raise UserError(
            "config-key",
            "--tta",
            f"{cfg.filename} has no tta_model; add e.g. "
            "tta_model=dict(type='MultiScaleGridTTA', scales=(0.75, 1.0, 1.25), flip=True)",
        )
    if cfg.get("tta_pipeline") is not None:
        for leaf, steps in list(pipelines(cfg.test_dataloader.dataset)):
            leaf["pipeline"] = with_loading(cfg.tta_pipeline, steps, "tta_pipeline")
        for _, node in mappings(cfg.test_dataloader.dataset):
            if "pipeline" in node and (node.get("datasets") or node.get("dataset")):
                node["pipeline"] = []  # of a wrapper
    cfg.tta_model.module = cfg.model
    cfg.model = cfg.tta_model


def _add_official_metric(cfg: Config) -> None:
    """Put Cityscapes' official evaluation beside the config's metrics."""
    kind = cfg.test_dataloader.dataset.get("type")
    if type_name(kind) != "CityscapesDataset":
        message = f"is for Cityscapes; the config's test split is {kind}"
        raise UserError("config-conflict", "--official", message)
    metric = ConfigDict(type="CityscapesOfficialMetric")
    cfg.test_evaluator = [*metric_configs(cfg.test_evaluator), metric]


def _use_submission(cfg: Config, submission: str) -> None:
    """Make the test split one of images alone, which nothing scores."""
    if submission not in FORMATS:
        name = f"--format {submission}"
        raise UserError("argument", name, f"must be one of {', '.join(FORMATS)}")
    dataset: Any = cfg.test_dataloader.dataset
    if dataset.get("datasets") or dataset.get("dataset"):
        message = "needs a data set in test_dataloader.dataset, not a wrapper"
        raise UserError("config-conflict", "--format", message)
    cfg.test_evaluator = []


def scores_nothing(cfg: Config) -> bool:
    """Whether an evaluation has no metric, or only such that write files (``format_only``)."""
    metrics = metric_configs(cfg.test_evaluator)
    return all(isinstance(one, Mapping) and one.get("format_only") for one in metrics)


def _drop_labels(dataset: Any) -> None:
    """Make a data set, or those in a wrapper, one of images alone."""
    for _, node in mappings(dataset):
        if node.get("pipeline"):
            node["pipeline"] = _without_labels(node["pipeline"])
        if type_name(node.get("type")) == "TestTimeAug":
            groups = [_without_labels(some) for some in node["transforms"]]
            node["transforms"] = [group for group in groups if group]
        if "data_prefix" in node:
            # A prefix that is not there, rather than none: some data sets have one by default.
            node["data_prefix"] = dict(node["data_prefix"] or {})
            node["data_prefix"].pop("seg_map_path", None)


def _without_labels(steps: Sequence[Any]) -> list[Any]:
    """The steps of a pipeline that load no labels."""
    return [step for step in steps if not loads_labels(step_name(step))]


def _keep_image_counts(cfg: Config, options: TestingOptions) -> None:
    """Have the counts of each image written beside results.json, for comparisons."""
    ours = [
        one
        for one in metric_configs(cfg.test_evaluator)
        if isinstance(one, dict) and type_name(one.get("type")) == "SegmentationMetric"
    ]
    for one in ours:
        if one is ours[0] and one.get("image_counts") is None:
            one["image_counts"] = os.path.join(cfg.work_dir, "images.npz")
        adds_up = options.tta and cfg.model.get("type") == "MultiScaleGridTTA"
        if adds_up and one.get("scores") is None:
            one["scores"] = "sums"


# --- the machine ----------------------------------------------------------------------------


def _fit_loaders(cfg: Config, machine: Machine) -> None:
    """Make the data loaders fit the machine, in place; changes no result.

    No more workers than the cores of one process. A worker that delivers no batch for ten minutes
    counts as hung, unless ``timeout`` says otherwise. ``pin_memory`` only with a GPU;
    ``persistent_workers``, ``prefetch_factor`` and ``timeout`` only with workers.
    """
    for name in DATALOADERS:
        loader = cfg.get(name)
        if loader is None:
            continue
        loader["num_workers"] = min(loader.get("num_workers", 0), machine.cores)
        if not loader["num_workers"]:
            for key in ("persistent_workers", "prefetch_factor", "timeout"):
                loader.pop(key, None)
        else:
            loader.setdefault("timeout", WORKER_TIMEOUT)
        loader["pin_memory"] = bool(loader.get("pin_memory", machine.cuda)) and machine.cuda


def _set_launcher(cfg: Config, options: Any, machine: Machine) -> None:
    """Name the launcher; on CPUs wrap the model for CPU tensors."""
    cfg.launcher = options.launcher
    if options.launcher == "none" or machine.cuda or cfg.get("model_wrapper_cfg") is not None:
        return
    cfg.model_wrapper_cfg = dict(
        type="MMDistributedDataParallel",
        broadcast_buffers=False,
        find_unused_parameters=cfg.get("find_unused_parameters", False),
        device_ids=None,  # MMEngine would name a GPU
    )
