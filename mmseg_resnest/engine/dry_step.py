# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""One step of training and one of validation before a run, so that a mistake costs seconds.

Both are the run's own: its first batch, its model, losses, precision, optimizer and metrics. They
are made with a copy of the model, and all random states are put back, so that the run after them
computes what it would have computed without them. Nothing is written.

Each process does its steps alone, before the processes meet: one that fails ends them all
(:func:`~.same_run.failing_together`), and none waits in a collective.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import os
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.hooks import CheckpointHook, EarlyStoppingHook, EMAHook
from mmengine.logging import MessageHub, MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.model.efficient_conv_bn_eval import turn_on_efficient_conv_bn_eval
from mmengine.runner import autocast, get_priority, set_random_seed
from mmengine.runner.activation_checkpointing import turn_on_activation_checkpointing
from torch import nn

from .._stack import BatchNorm
from ..errors import UserError, reason
from ..evaluation import build_evaluator, evaluation_scores, score_name
from ..io.memory import give_back_freed_memory
from ..io.text import gigabytes
from ..models import SyncBN
from ..registry import HOOKS, MODELS, VISUALIZERS, building, type_name
from .facts import mappings
from .failing_parts import failing, failing_model, failing_part, have_labels
from .first_batches import FirstBatches
from .forecast import Step, batch_size_of, check_memory, forecast, free_memory, watched
from .hooks.console import duration
from .label_predictions import metrics_read_labels_only, predict_labels_only
from .launch import Machine
from .loop import validation_steps
from .model import SeededModel
from .optimization import build_optimization, check_cycles, schedule_key
from .process_state import restored_process
from .resume_changes import Note
from .run_length import VAL_INTERVAL, schedules_of

#: Loops whose steps are the model's ``train_step`` and ``val_step``.
_TRAIN_LOOPS = frozenset({"IterBasedTrainLoop", "EpochBasedTrainLoop"})
#: Options of metrics that name what they write.
_OUTPUTS = (
    *("output_json", "image_counts", "confusion_csv"),
    *("output_dir", "out_dir", "out_file_path", "outfile_prefix"),
)
_MOST_NAMED = 3
#: Keys that name parts of the model, and what changes these before the first step.
_CHANGES = {
    "activation_checkpointing": turn_on_activation_checkpointing,
    "efficient_conv_bn_eval": turn_on_efficient_conv_bn_eval,
}


def dry_step(cfg: Config, built: SeededModel, machine: Machine) -> list[Note]:
    """Make one training step and, where the run validates, one validation step.

    Before them two small steps say whether the memory suffices (:mod:`.forecast`). The run's model
    stays as it is.

    Returns:
        Rows for the header of the run: on what was found and does not stop it, and the memory and
        the time that the run will take.

    Raises:
        UserError: A step fails; the subject is the config key of what does. Data loading workers
            that hang or die raise what they raise in a run.
    """
    loop = cfg.train_cfg
    kind = type_name(loop.get("type", "EpochBasedTrainLoop"))
    if not cfg.get("dry_step", True) or kind not in _TRAIN_LOOPS:
        return []
    with (
        restored_process(),
        warnings.catch_warnings(),
        building(cfg.get("default_scope", "mmengine")),
        contextlib.ExitStack() as held,
    ):
        warnings.simplefilter("ignore")  # the run gives them
        MMLogger.get_instance("dry_step", log_level="CRITICAL")
        hub = MessageHub.get_instance("dry_step")
        for name, value in {"iter": 0, "epoch": 0, "loop_stage": "train", **loop}.items():
            if isinstance(value, int | str):
                hub.update_info(name, value)
        randomness = cfg.get("randomness") or {}
        set_random_seed(built.seed, deterministic=bool(randomness.get("deterministic")))
        notes = _Steps(cfg, built, machine, held).run()
    give_back_freed_memory()  # the copy of the model, and what its steps took
    return notes


class _Steps:
    def __init__(
        self, cfg: Config, built: SeededModel, machine: Machine, held: contextlib.ExitStack
    ) -> None:
        self.cfg, self.built, self.machine, self.held = cfg, built, machine, held
        self.data = FirstBatches(cfg, machine, built.seed)
        self.step = Step()

    def run(self) -> list[Note]:
        cfg = self.cfg
        hooks = self._build_hooks()
        train = self.data.loader("train_dataloader")
        if train is None:
            return []
        self.data.check_lengths(train)
        indices = next(self.data.batches(train))
        batch = self.data.load("train_dataloader", train, indices)
        val = None if cfg.get("val_cfg") is None else self.data.loader("val_dataloader")
        if val is not None:
            self.data.check_end(val, "val_dataloader", "a validation")
            val_indices = self.data.validated(val)
            val_batch = self.data.load("val_dataloader", val, val_indices)
        val_seconds = 0.0  # of an image
        try:
            model = self._copy_model()
            for key, hook in hooks.items():
                if self._by_iteration:
                    _check_unit(key, hook)
                if isinstance(hook, EMAHook):
                    _check_averaging(cfg, key, hook, model)
            notes, schedules = self._train(model, train, batch, indices)
            if val is not None and type_name(cfg.val_cfg.get("type", "ValLoop")) == "ValLoop":
                begin = time.perf_counter()
                scores = self._validate(model, val, val_batch)
                val_seconds = (time.perf_counter() - begin) / len(val_indices)
                _check_scores(cfg, hooks, schedules, scores)
            return notes + self._forecast_rows(train, val, val_seconds)
        except UserError as error:
            # A sharded run needs less memory than one process with all of the model.
            if error.code == "memory" and self._wrapper == "FSDP":
                return []
            raise
        finally:
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()

    @property
    def _by_iteration(self) -> bool:
        return type_name(self.cfg.train_cfg.get("type")) == "IterBasedTrainLoop"

    @property
    def _wrapper(self) -> str:
        return type_name((self.cfg.get("model_wrapper_cfg") or {}).get("type"))

    # --- training ---------------------------------------------------------------------------

    def _copy_model(self) -> Any:
        """A copy of the model where the run has it, to train on."""
        if self.machine.cuda and self.cfg.launcher != "none":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        with failing("model", "it cannot be copied to its device"):
            model = copy.deepcopy(self.built.model).to(get_device())
        for module in model.modules():
            _leave_out_pretrained(module)
        initialise: Any = getattr(model, "init_weights", None)
        if initialise is not None:
            with failing_part(self.cfg, model, "its weights cannot be initialised"):
                initialise()
        if self.cfg.launcher == "none":
            model = revert_sync_batchnorm(model)
        if metrics_read_labels_only(self.cfg):
            predict_labels_only(model)
        model.train()
        if self.machine.world_size > 1:
            # Batch norm over all processes would wait for the others.
            kinds = (BatchNorm,) if self.cfg.get("sync_bn") else (SyncBN, nn.SyncBatchNorm)
            for module in model.modules():
                if isinstance(module, kinds):
                    module.eval()
        return model

    def _train(
        self, model: Any, loader: Any, batch: Any, indices: Sequence[int]
    ) -> tuple[list[Note], list[Any]]:
        """One step; returns rows for the header and the schedules."""
        cfg = self.cfg
        if type_name(cfg.optim_wrapper.get("type")) == "AmpOptimWrapper" and not self.machine.cuda:
            message = "AmpOptimWrapper needs a GPU; on a CPU write BFloat16OptimWrapper, or leave "
            message += "it out and give --amp"
            raise UserError("config-value", "config key optim_wrapper.type", message)
        check_cycles(cfg, max(1, math.ceil(len(loader) / self.machine.world_size)))
        optim_wrapper, schedules = build_optimization(cfg, model)
        optim_wrapper.initialize_count_status(model, 0, 1)  # the first update is after this step
        _change_modules(cfg, model)
        used: set[str] = set()
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        watches = [
            p.register_hook(lambda gradient, name=name: used.add(name))
            for name, p in trained.items()
        ]
        step = functools.partial(model.train_step, optim_wrapper=optim_wrapper)
        with failing_model(cfg, model, batch, "train_dataloader", len(indices)):
            if self._wrapper != "FSDP":
                self._check_memory(model, optim_wrapper, batch)
            with watched(self.machine.cuda) as self.step:
                step(batch)
        for watch in watches:
            watch.remove()
        if self.machine.world_size > 1:
            self._check_unused([name for name in trained if name not in used])
        if self.data.leaves_one(loader):
            batch = self.data.load("train_dataloader", loader, indices[:1])
            try:
                step(batch)
            except Exception as error:
                size = loader.batch_size
                raise UserError(
                    "config-value",
                    "config key train_dataloader.drop_last",
                    f"the last batch of an epoch is a single image ({len(loader.dataset):,} images "
                    f"in batches of {size}), which the model cannot train on "
                    f"({reason(error).splitlines()[0]}); set train_dataloader.drop_last=True",
                ) from error
        every = schedules or []
        for index, schedule in enumerate(every):
            if hasattr(schedule, "monitor"):  # it waits for a score
                continue
            if self._by_iteration and getattr(schedule, "by_epoch", False):
                raise _by_epoch(schedule_key(cfg.param_scheduler, index))
            with failing("param_scheduler", f"{type(schedule).__name__} fails"):
                schedule.step()
        return [*_unmatched_keys(cfg, model), *_lost_rates(cfg)], every

    def _check_memory(self, model: Any, optim_wrapper: Any, batch: Any) -> None:
        """Refuse a step that would take more memory than there is, before the kernel ends it."""
        expected = forecast(model, optim_wrapper, batch, self.machine.cuda)
        found = batch_size_of(model, batch)
        if expected is not None and found is not None:
            check_memory(expected, *found, self.machine.world_size, self.machine.cuda)

    def _forecast_rows(self, train: Any, val: Any, val_seconds: float) -> list[Note]:
        """What the step took, and what the run will."""
        free = free_memory(self.machine.cuda)
        memory = f"{gigabytes(self.step.peak)} at the peak of the dry step"
        memory += "" if free is None else f", {gigabytes(free)} more are free"
        loop, each = self.cfg.train_cfg, self.step.seconds
        last, unit, every = loop.get("max_iters"), 1, VAL_INTERVAL
        if last is None:
            unit = math.ceil(len(train) / self.machine.world_size)
            last, every = loop.get("max_epochs", 1), 1
        total = last * unit * each
        if val is not None:
            every, begin = loop.get("val_interval", every), loop.get("val_begin", 1)
            validations = validation_steps(last, every, begin, loop.get("dynamic_intervals"))
            images = len(val.dataset) / self.machine.world_size
            total += len(validations) * images * val_seconds
        about = f"about {each:.3g} s an iteration and {duration(total)} in all, by the dry step"
        return [("memory", memory), ("time", about)]

    def _check_unused(self, unused: list[str]) -> None:
        """DistributedDataParallel waits for the gradient of every parameter."""
        wrapper = self.cfg.get("model_wrapper_cfg") or {}
        allowed = (
            self.cfg.get("find_unused_parameters")
            or wrapper.get("find_unused_parameters")
            or wrapper.get("static_graph")
            or self._wrapper == "FSDP"
        )
        if allowed or not unused:
            return
        own = wrapper and self.cfg.get("find_unused_parameters") is None and self.machine.cuda
        key = "model_wrapper_cfg.find_unused_parameters" if own else "find_unused_parameters"
        more = len(unused) - _MOST_NAMED
        names = ", ".join(unused[:_MOST_NAMED]) + (f" and {more:,} more" if more > 0 else "")
        raise UserError(
            "config-value",
            f"config key {key}",
            f"must be True for this model on {self.machine.world_size} processes: no loss depends "
            f"on its parameters {names}; or take out the part that nothing reads",
        )

    # --- validation -------------------------------------------------------------------------

    def _validate(self, model: Any, loader: Any, batch: Any) -> dict[str, Any]:
        """One step and its scores."""
        cfg = self.cfg
        model.eval()
        count = len(batch["inputs"]) if isinstance(batch, Mapping) and "inputs" in batch else 1
        with (
            failing_model(cfg, model, batch, "val_dataloader", count),
            torch.no_grad(),
            autocast(enabled=bool(cfg.val_cfg.get("fp16"))),
        ):
            outputs = model.val_step(batch)
        key = "val_evaluator"
        metrics = self._without_outputs(cfg.val_evaluator)
        with failing(key, "it cannot be built", metrics):
            evaluator = build_evaluator(metrics)
        if hasattr(loader.dataset, "metainfo"):
            evaluator.dataset_meta = loader.dataset.metainfo
        try:
            with failing(key, "the scores of the first images cannot be computed"):
                evaluator.process(data_samples=outputs, data_batch=batch)
                return evaluator.evaluate(len(outputs))
        except UserError as error:
            if have_labels(batch):
                raise
            key = "config key val_dataloader.dataset"
            message = "its samples have no labels to compare with; set data_prefix.seg_map_path, "
            message += f"and LoadAnnotations in its pipeline ({error.text})"
            raise UserError("config-value", key, message) from error

    def _without_outputs(self, evaluator: Any) -> Any:
        """The config of an evaluator that writes into a folder for temporary files."""
        evaluator = copy.deepcopy(evaluator)
        for _, node in mappings(evaluator):
            for name in _OUTPUTS:
                if isinstance(node.get(name), str):
                    folder = tempfile.TemporaryDirectory(prefix="dry_step_")
                    place = self.held.enter_context(folder)
                    node[name] = os.path.join(place, os.path.basename(node[name]))
        return evaluator

    # --- hooks ------------------------------------------------------------------------------

    def _build_hooks(self) -> dict[str, Any]:
        """The hooks of the config, by key."""
        cfg = self.cfg
        visualizer = cfg.get("visualizer") or {"type": "Visualizer"}
        with failing("visualizer", "it cannot be built"):  # some hooks take the newest
            VISUALIZERS.build({**visualizer, "name": "dry_step", "vis_backends": None})
        nodes = {f"default_hooks.{k}": v for k, v in (cfg.get("default_hooks") or {}).items()}
        nodes |= {f"custom_hooks.{i}": v for i, v in enumerate(cfg.get("custom_hooks") or [])}
        hooks = {}
        for key, node in nodes.items():
            if isinstance(node, dict):
                node = copy.deepcopy(node)
                with failing(f"{key}.priority", "there is no such priority"):
                    get_priority(node.pop("priority", "NORMAL"))
                with failing(key, "it cannot be built", node):
                    node = HOOKS.build(node)
            elif node is None and key == "default_hooks.runtime_info":
                message = "must not be None: it counts what the log and the schedules need"
                raise UserError("config-value", f"config key {key}", message)
            hooks[key] = node
        return hooks


def _leave_out_pretrained(module: Any) -> None:
    """Take weights to start from out of what initialises a module: they have been read before."""
    inits = getattr(module, "init_cfg", None)
    if inits:
        listed = [inits] if isinstance(inits, dict) else inits
        kept = [one for one in listed if not type_name(one.get("type")).startswith("Pretrained")]
        if len(kept) < len(listed):
            module.init_cfg = kept or None


def _change_modules(cfg: Config, model: nn.Module) -> None:
    """What the run does to the parts of its model that some keys name."""
    for key, change in _CHANGES.items():
        names = cfg.get(key)
        for name in [names] if isinstance(names, str) else names or ():
            parts = [part for part, _ in model.named_modules() if part]
            if name not in parts:
                known = ", ".join(part for part in parts if part.count(".") < 2)
                message = f"the model has no part {name}; it has {known:.200}"
                raise UserError("config-value", f"config key {key}", message)
            with failing(key, f"{name} cannot be changed"):
                change(model, name)


def _unmatched_keys(cfg: Config, model: nn.Module) -> list[Note]:
    """Keys of ``paramwise_cfg`` that are in no parameter's name: a base config may have more."""
    paramwise = cfg.optim_wrapper.get("paramwise_cfg") or {}
    names = [name for name, _ in model.named_parameters()]
    keys = [key for key in paramwise.get("custom_keys") or {} if not any(key in n for n in names)]
    if not keys:
        return []
    text = f"custom_keys {', '.join(keys)} of paramwise_cfg: in the name of no parameter"
    return [("optimizer", text)]


def _lost_rates(cfg: Config) -> list[Note]:
    """Whether a schedule takes from groups of parameters the rates that ``paramwise_cfg`` gives."""
    schedules = [one for one in schedules_of(cfg) if not isinstance(one.get("eta_max"), list)]
    kinds = [type_name(one.get("type")) for one in schedules]
    options = mappings(cfg.optim_wrapper.get("paramwise_cfg") or {})
    factors = [value for _, node in options for key, value in node.items() if "lr_mult" in key]
    if not any(kind.startswith("OneCycle") for kind in kinds) or set(factors) <= {1}:
        return []
    text = "OneCycleLR gives all parameters the same rate, eta_max; lr_mult has no effect"
    return [("optimizer", text)]


def _by_epoch(key: str) -> UserError:
    message = "counts epochs, which is the default, but train_cfg counts iterations and no epoch "
    message += "ends before the run does; set by_epoch=False"
    return UserError("config-conflict", f"config key {key}.by_epoch", message)


def _check_unit(key: str, hook: Any) -> None:
    """Whether a hook waits for epochs in a run that counts iterations."""
    if isinstance(hook, CheckpointHook) and hook.by_epoch and hook.interval > 0:
        raise _by_epoch(key)
    if isinstance(hook, EMAHook) and hook.begin_epoch > 0:
        message = "counts epochs, but train_cfg counts iterations; set begin_iter"
        raise UserError("config-conflict", f"config key {key}.begin_epoch", message)


def _check_averaging(cfg: Config, key: str, hook: EMAHook, model: nn.Module) -> None:
    with failing(key, "it cannot average the model"):
        MODELS.build(copy.deepcopy(hook.ema_cfg), default_args={"model": model})
    for option, length in (("begin_iter", "max_iters"), ("begin_epoch", "max_epochs")):
        begin, end = getattr(hook, option, 0), cfg.train_cfg.get(length)
        if end is not None and begin > end:
            message = f"is {begin:,}, after the end of the run, train_cfg.{length}={end:,}"
            raise UserError("config-conflict", f"config key {key}.{option}", message)


def _check_scores(
    cfg: Config, hooks: Mapping[str, Any], schedules: Sequence[Any], scores: Mapping[str, Any]
) -> None:
    """Check that the scores that hooks and schedules wait for are among those of a validation."""
    wanted: list[tuple[str, str]] = []
    for key, hook in hooks.items():
        if isinstance(hook, CheckpointHook):
            named = hook.save_best or []
            wanted += [(f"{key}.save_best", one) for one in named if one != "auto"]
            numbers = evaluation_scores(scores)
            if "auto" in named and numbers:
                with failing(f"{key}.save_best", "set it to the name of a score"):
                    type(hook)(save_best=next(iter(numbers)), rule=hook.rules[0])
        elif isinstance(hook, EarlyStoppingHook):
            wanted.append((f"{key}.monitor", hook.monitor))
    for index, schedule in enumerate(schedules):
        if hasattr(schedule, "monitor"):
            key = schedule_key(cfg.param_scheduler, index)
            wanted.append((f"{key}.monitor", schedule.monitor))
    for key, name in wanted:
        # Schedules take the name as it is.
        if name not in scores and (key.startswith("param") or score_name(scores, name) is None):
            known = ", ".join(scores) or "none"
            message = f"{name} is not a score of val_evaluator, which gives {known}"
            raise UserError("config-value", f"config key {key}", message)
