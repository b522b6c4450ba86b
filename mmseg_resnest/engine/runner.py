# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""MMEngine's runner with a quiet console that never executes what a checkpoint says."""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import mmengine
import torch
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.logging import MMLogger
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import init_default_scope
from mmengine.runner import BaseLoop
from mmengine.runner import Runner as MMEngineRunner
from mmengine.visualization import Visualizer
from torch import nn
from torch.utils.data import DataLoader

from mmseg_resnest._late import stand_ins
from mmseg_resnest.datasets import build_dataset, compile_pipeline
from mmseg_resnest.datasets.decode import tell_what_unpacks
from mmseg_resnest.engine.checkpoint import load_weights
from mmseg_resnest.engine.checkpoint_writer import CheckpointWriter, Unsaved
from mmseg_resnest.engine.logs import quiet_console, tell_lost_lines
from mmseg_resnest.engine.loop import IterBasedTrainLoop
from mmseg_resnest.engine.preemption import spare_workers
from mmseg_resnest.engine.quick_start import start_quickly
from mmseg_resnest.engine.sampler import ExactSampler, SeededDataset
from mmseg_resnest.engine.saving import restore_histories, snapshot, write_checkpoint
from mmseg_resnest.engine.sharding import is_sharded, shard_optimizer_state, whole
from mmseg_resnest.errors import UserError
from mmseg_resnest.kernels.compiled import WORTHWHILE_FROM, load_loops
from mmseg_resnest.models import EncoderDecoder
from mmseg_resnest.registry import DATA_SAMPLERS, MODEL_WRAPPERS, MODELS, RUNNERS
from mmseg_resnest.version import __version__
from mmseg_resnest.weights import load_training_checkpoint

__all__ = ["Runner", "build_model", "check_training_checkpoint", "predict_labels_only"]

_numbers = itertools.count(1)
# Samples of a run from which on loading Numba, for a second, is made up for.
_MANY_SAMPLES = 20_000


def build_model(cfg: Config) -> nn.Module:
    """Build the model of a config, on the CPU, without initialising or loading weights.

    Args:
        cfg: A checked config, see :func:`~mmseg_resnest.engine.config.load_config`.

    Raises:
        UserError: A value in ``model`` does not fit.
    """
    # A copy: building takes keys out of the dictionaries it is given.
    model = copy.deepcopy(cfg.model)
    if cfg.get("data_preprocessor") is not None:
        model.setdefault("data_preprocessor", copy.deepcopy(cfg.data_preprocessor))
    init_default_scope(cfg.get("default_scope", "mmseg"))
    try:
        return MODELS.build(model)
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        message = error.args[0] if error.args else "no reason given"
        raise UserError(
            f"config key model: cannot be built; {type(error).__name__}: {message} "
            f"({frame.filename}:{frame.lineno})"
        ) from error


def predict_labels_only(model: nn.Module) -> None:
    """Let a segmentor predict labels without score maps of the image's size.

    A config that sets ``model.test_cfg.keep_scores`` decides for itself. A model of another class,
    such as test-time augmentation, which adds scores up, stays as it is.

    Args:
        model: The model; changed in place.
    """
    if isinstance(model, EncoderDecoder):
        model.test_cfg.setdefault("keep_scores", False)


def _metrics_read_labels_only(cfg: Mapping[str, Any]) -> bool:
    """Whether every metric of a config is one that is known to need no scores."""
    for name in ("val_evaluator", "test_evaluator"):
        metrics = cfg.get(name) or []
        for metric in metrics if isinstance(metrics, list | tuple) else [metrics]:
            if not isinstance(metric, Mapping):
                return False
            kind = metric.get("type", "")
            kind = kind if isinstance(kind, str) else kind.__name__
            if kind.split(".")[-1] not in ("SegmentationMetric", "IoUMetric"):
                return False
            # The one part of SegmentationMetric that reads probabilities.
            if "ECE" in (metric.get("metrics") or ()):
                return False
    return True


@RUNNERS.register_module()
class Runner(MMEngineRunner):
    """A runner that tells the log file everything and the console only warnings.

    Checkpoints are read as tensors and plain data: nothing in one is executed, in ``resume``
    neither. ``load_from`` takes weights of any layout that
    :func:`mmseg_resnest.weights.convert_state_dict` knows.
    """

    #: Whether compiled loops may make the labels of many images, and read and colour many samples.
    may_compile: bool = True
    #: Called before each checkpoint; an error of its ends the run.
    before_saving: Callable[[], None] | None = None
    _resuming = False
    _writer: CheckpointWriter | None = None
    _validation_pending = False

    @classmethod
    def from_cfg(cls, cfg: Config, model: nn.Module | None = None) -> Runner:
        """Build a runner from a config.

        Args:
            cfg: The config; copied.
            model: A built model to use in place of ``cfg.model``.
        """
        start_quickly()
        cfg = copy.deepcopy(cfg)
        names = set(inspect.signature(MMEngineRunner.__init__).parameters) - {"self", "cfg"}
        arguments = {name: cfg[name] for name in names if name in cfg}
        if model is not None:
            arguments["model"] = model
        return cls(cfg=cfg, **arguments)

    def build_model(self, model: nn.Module | dict) -> nn.Module:
        """As MMEngine's; predicts labels only where no metric reads the scores."""
        built = super().build_model(model)
        if _metrics_read_labels_only(self.cfg):
            predict_labels_only(built)
        return built

    def build_train_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        """As MMEngine's; compiled loops read and colour the images of many samples.

        They are loaded before the workers of the data loader are forked, which then share them.
        """
        built = super().build_train_loop(loop)
        loader = built.dataloader
        # By the length of the run, which is that of the run it is resumed from as well.
        samples = built.max_iters * (getattr(loader, "batch_size", None) or 1)
        forked = not loader.num_workers or torch.multiprocessing.get_start_method() == "fork"
        if self.may_compile and forked and samples >= _MANY_SAMPLES and load_loops() is not None:
            compile_pipeline(loader.dataset)
            tell_what_unpacks()
        return built

    def build_val_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        """As MMEngine's; compiled loops make the labels of many images."""
        return self._compile_labels(super().build_val_loop(loop))

    def build_test_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        """As MMEngine's; compiled loops make the labels of many images."""
        return self._compile_labels(super().build_test_loop(loop))

    def _compile_labels(self, loop: BaseLoop) -> BaseLoop:
        # By the number of images, which is that of the run it is resumed from as well.
        model = self.model.module if is_model_wrapper(self.model) else self.model
        many = len(getattr(loop.dataloader, "dataset", ())) >= WORTHWHILE_FROM
        if many and self.may_compile and isinstance(model, EncoderDecoder):
            model.compiled_labels = True
        return loop

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """As MMEngine's, quiet on the console."""
        return quiet_console(super().build_logger(*args, **kwargs))

    def build_visualizer(self, visualizer: Visualizer | dict | None = None) -> Visualizer:
        """As MMEngine's, but never that of an earlier runner in this process, nor its folder."""
        if isinstance(visualizer, dict):
            name = visualizer.get("name", "visualizer")
            visualizer = {**visualizer, "name": f"{name}_{next(_numbers)}"}
        return super().build_visualizer(visualizer)

    @staticmethod
    def build_dataloader(
        dataloader: DataLoader | dict, seed: int | None = None, diff_rank_seed: bool = False
    ) -> DataLoader:
        """As MMEngine's; workers leave signals to the run.

        With :class:`~mmseg_resnest.engine.sampler.ExactSampler` each sample is made with random
        numbers of its own.
        """
        if isinstance(dataloader, DataLoader):
            return dataloader
        cfg = copy.deepcopy(dataloader)
        if isinstance(cfg["dataset"], dict):
            cfg["dataset"] = build_dataset(cfg["dataset"])
        sampler = cfg.get("sampler")
        kind = sampler.get("type") if isinstance(sampler, dict) else type(sampler)
        kind = DATA_SAMPLERS.get(kind) if isinstance(kind, str) else kind
        if isinstance(kind, type) and issubclass(kind, ExactSampler):
            cfg["dataset"] = SeededDataset(cfg["dataset"])
        loader = MMEngineRunner.build_dataloader(cfg, seed, diff_rank_seed)
        loader.worker_init_fn = functools.partial(spare_workers, loader.worker_init_fn)
        return loader

    @functools.cached_property
    def sharded(self) -> bool:
        """Whether the processes share out the model (:mod:`mmseg_resnest.engine.sharding`)."""
        return is_sharded(self.model)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """As MMEngine's, which does not look for the wrapper in the default scope."""
        kind = (model_wrapper_cfg or {}).get("type")
        if model_wrapper_cfg and isinstance(kind, str):
            found = MODEL_WRAPPERS.get(kind)
            model_wrapper_cfg = {**model_wrapper_cfg, "type": found or kind}
        return super().wrap_model(model_wrapper_cfg, model)

    def _log_env(self, env_cfg: dict) -> None:
        with stand_ins():
            super()._log_env(env_cfg)

    def _init_model_weights(self) -> None:
        if not self.sharded:  # that was done while the weights were whole
            super()._init_model_weights()

    @property
    def checkpoint_writer(self) -> CheckpointWriter:
        """Writes this run's checkpoints in the background."""
        if self._writer is None:
            self._writer = CheckpointWriter(self.logger.warning, self.logger.info)
        return self._writer

    def close(self) -> None:
        """End the background work of this process: writing, and data loading that still runs."""
        self.visualizer.close()  # what services have not been sent yet; a second time does nothing
        if self._writer is not None:
            for unsaved in self._writer.wait():
                self.logger.warning(unsaved.text)
        for hook in self.hooks:
            if isinstance(lost := getattr(hook, "not_written", None), str):
                self.logger.warning(lost)
        tell_lost_lines(self.logger)
        for loop in (self._train_loop, self._val_loop):
            loader = getattr(loop, "dataloader", None)
            for source in (loader, loop):
                batches: Any = getattr(source, "_iterator", None)
                if hasattr(batches, "_shutdown_workers"):
                    batches._shutdown_workers()
                    for worker in batches._workers:
                        if worker.is_alive():  # it hangs
                            worker.kill()

    @functools.cached_property
    def _failures(self) -> list[Unsaved]:
        return []

    def train(self) -> nn.Module:
        """As MMEngine's.

        Raises:
            UserError: Training is complete, and something of it could not be written.
        """
        self._failures.clear()
        model = super().train()
        texts = "; ".join(failure.text for failure in self._failures)
        if any(failure.checkpoint for failure in self._failures):
            raise UserError(
                f"{texts}: make room or mend the access, then the same command with --resume goes "
                "on from the newest checkpoint that is whole"
            )
        if texts:
            raise UserError(
                f"training is complete and its checkpoints are whole. {texts}: make room or mend "
                "the access, then the same command with --resume writes what is missing"
            )
        return model

    def report_unsaved(self, unsaved: Iterable[Unsaved]) -> None:
        """Say at the end of the training what could not be written, and fail if it is needed."""
        for one in unsaved:
            if one.needed:
                self._failures.append(one)
            else:
                self.logger.warning(one.text)

    def finish_saving(self) -> list[Unsaved]:
        """Wait, on every process, until what was to be saved is; returns what could not be."""
        problems = [] if self._writer is None else self._writer.wait()
        if self.world_size > 1:
            every: list[Any] = [None] * self.world_size
            torch.distributed.all_gather_object(every, problems)
            problems = [problem for some in every for problem in some]
        return problems

    def checkpoint_record(
        self,
        meta: Mapping[str, Any],
        save_optimizer: bool = False,
        save_param_scheduler: bool = False,
    ) -> dict[str, Any]:
        """What a checkpoint of this moment holds; tensors are the run's own, not copies.

        With a sharded model all processes must call it.

        Args:
            meta: Holds ``iter`` and ``epoch``.
            save_optimizer: Put in the optimizer, with the scale of mixed precision.
            save_param_scheduler: Put in the schedules.

        Returns:
            What MMEngine's runner would save, and the total batch.
        """
        hub = self.message_hub
        about = {
            "cfg": hub.runtime_info.get("cfg") or self.cfg.pretty_text,
            "seed": self.seed,
            "experiment_name": self.experiment_name,
            "time": time.strftime("%Y%m%d_%H%M%S", time.localtime()),
            "mmengine_version": hub.runtime_info.get("mmengine_version") or mmengine.__version__,
            "mmseg_resnest_version": __version__,
            "world_size": self.world_size,
            "total_batch": total_batch(self.train_dataloader, self.world_size),
        }
        metainfo = getattr(self.train_dataloader.dataset, "metainfo", None)
        if metainfo is not None:
            about["dataset_meta"] = metainfo
        model = self.model.module if is_model_wrapper(self.model) else self.model
        record: dict[str, Any] = {
            "meta": {**meta, **about},
            "state_dict": model.state_dict(),
            "message_hub": hub.state_dict(),
        }
        # The hub's number is that of the last step or, in a run resumed there, of the next one.
        record["message_hub"]["runtime_info"]["iter"] = meta["iter"]
        if save_optimizer:
            record["optimizer"] = self.optim_wrapper.state_dict()
        if save_param_scheduler and self.param_schedulers is not None:
            schedulers = self.param_schedulers
            record["param_schedulers"] = (
                {name: [s.state_dict() for s in some] for name, some in schedulers.items()}
                if isinstance(schedulers, dict)
                else [s.state_dict() for s in schedulers]
            )
        self.call_hook("before_save_checkpoint", checkpoint=record)
        return whole(record) if self.sharded else record

    def save_checkpoint(
        self,
        out_dir: str,
        filename: str,
        file_client_args: dict | None = None,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        meta: dict | None = None,
        by_epoch: bool = True,
        backend_args: dict | None = None,
    ) -> None:
        """As MMEngine's, but the file appears whole or not at all; on the first process only."""
        if not (is_main_process() or self.sharded):
            return
        meta = dict(meta or {})
        meta.setdefault("epoch", self.epoch + 1 if by_epoch else self.epoch)
        meta.setdefault("iter", self.iter if by_epoch else self.iter + 1)
        record = self.checkpoint_record(meta, save_optimizer, save_param_scheduler)
        if is_main_process():
            write_checkpoint(snapshot(record), Path(out_dir) / filename)

    def resume(self, filename: str, *args: Any, **kwargs: Any) -> None:
        """Continue from a training checkpoint.

        Raises:
            UserError: The file cannot be read safely, or is no training checkpoint.
        """
        self._resuming = True
        try:
            super().resume(filename, *args, **kwargs)
        finally:
            self._resuming = False
        if isinstance(self.train_loop, IterBasedTrainLoop):
            self.train_loop.validation_pending = self._validation_pending

    def load_checkpoint(
        self,
        filename: str,
        map_location: str | Callable = "cpu",
        strict: bool = False,
        revise_keys: list | None = None,
    ) -> Mapping[str, Any]:
        """Load weights to start from, or when resuming the state of a run.

        Args:
            filename: The checkpoint.
            map_location: Not used: weights go to where the model is.
            strict: Not used: every tensor of the file must find its place.
            revise_keys: Not used: the layout is recognised from the keys.

        Returns:
            When resuming the checkpoint, otherwise nothing.

        Raises:
            UserError: The file cannot be read, or does not fit the model.
        """
        if not self._resuming:
            done = load_weights(self.model, filename, start_training=True)
            self.logger.info("loaded %s", done)
            return {}
        checkpoint = check_training_checkpoint(filename)
        restore_histories(checkpoint["message_hub"])
        self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        load_weights(self.model, checkpoint["state_dict"])
        if self.sharded and isinstance(self.optim_wrapper, OptimWrapper):
            shard_optimizer_state(checkpoint["optimizer"], self.optim_wrapper.optimizer)
        self._validation_pending = bool(checkpoint["meta"].get("validation_pending", False))
        return checkpoint


def total_batch(loader: DataLoader, world_size: int) -> int:
    """Images of a training step over all processes."""
    if loader.batch_size is not None:
        return loader.batch_size * world_size
    return getattr(loader.batch_sampler, "batch_size", 0) * world_size


def check_training_checkpoint(filename: str) -> dict[str, Any]:
    """Read a checkpoint that training can continue from.

    Raises:
        UserError: It cannot be read, or something that resuming needs is not in it.
    """
    checkpoint = load_training_checkpoint(filename)
    needed = ("meta", "state_dict", "optimizer", "message_hub")
    missing = [key for key in needed if key not in checkpoint]
    if missing:
        raise UserError(
            f"--resume {filename}: holds no {missing[0]}, so training cannot continue from it; "
            "to start from its weights use --cfg-options load_from=FILE"
        )
    return checkpoint
