# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""MMEngine's runner with exact resume, atomic checkpoints and a quiet console."""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import mmengine
from mmengine.config import Config
from mmengine.dist import all_gather_object, is_main_process, master_only
from mmengine.evaluator import Evaluator
from mmengine.hooks import CheckpointHook
from mmengine.logging import MMLogger
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import IterBasedTrainLoop as MMEngineIterLoop
from mmengine.runner import Runner as MMEngineRunner
from mmengine.visualization import Visualizer
from mmseg.models.segmentors import EncoderDecoder as StockEncoderDecoder
from torch import nn
from torch.utils.data import DataLoader

from .._stack import set_progress, stop_workers
from ..datasets import build_dataset
from ..errors import UserError
from ..evaluation import build_evaluator
from ..io.atomic import atomic_write
from ..kernels.compiled import Compiled
from ..models import EncoderDecoder
from ..registry import DATA_SAMPLERS, MODEL_WRAPPERS, RUNNERS
from ..version import __version__
from .checkpoint import load_weights
from .checkpoint_names import CheckpointNames
from .checkpoint_schema import check_training_checkpoint
from .checkpoint_values import Refusal
from .checkpoint_writer import CheckpointWriter, Unsaved
from .config import FormattedOnce, config_as_text
from .label_predictions import metrics_read_labels_only, predict_labels_only
from .latest import latest_valid_checkpoint, next_start
from .logs import quiet_console, report_lost_lines
from .loop import IterBasedTrainLoop
from .model import SeededModel
from .numerics import fused_steps_of, numerics_of
from .preemption import ignore_signals_in_worker
from .resume import fit_to_run, follows_config, keep_own_names
from .resume_changes import SEED, Changes, covers, describe_images
from .resume_schedules import advance_schedules, restore_schedules, states_of_schedules
from .run_length import schedules_of
from .run_options import scale_rates
from .sampler import ExactSampler, SeededDataset, batch_of
from .saving import snapshot, write_checkpoint
from .sharding import gathered, is_sharded, shard_optimizer_state

_numbers = itertools.count(1)


@RUNNERS.register_module()
class Runner(MMEngineRunner):
    """MMEngine's runner with exact resume and safe checkpoints; the console gets warnings only.

    Checkpoints are read as tensors and plain data: nothing in one is executed. ``load_from`` takes
    weights of any layout that :func:`mmseg_resnest.weights.convert_state_dict` knows.
    """

    #: What the run's config says (``describe_config``), for its checkpoints; None is not known.
    config_values: Mapping[str, str] | None = None
    #: What was decided of the run's numerics (``numerics_of``); None: what the config says.
    numerics: dict[str, Any] | None = None
    #: What may differ from the run that is resumed.
    changes: Changes = Changes()
    #: Called before each checkpoint; an error ends the run.
    before_saving: Callable[[], None] | None = None
    #: The number of this start of the run; those of later starts in a folder are higher.
    start: int = 0
    _writer: CheckpointWriter | None = None
    #: The content of ``load_from``, so that it is not read again: what
    #: ``check_training_checkpoint`` returned where the run resumes, otherwise the state dict; None:
    #: read the file. Freed once loaded.
    start_record: Mapping[str, Any] | None = None
    _has_loaded: bool
    _load_from: str | None
    optim_wrapper: Any
    param_schedulers: Any

    @classmethod
    def from_cfg(cls, cfg: Config, model: nn.Module | SeededModel | None = None) -> Runner:
        """Build a runner from a config, which is copied.

        ``model`` is a built model in place of ``cfg.model``. After a seeded one, random numbers go
        on as if the runner had built it.
        """
        cfg = FormattedOnce.of(copy.deepcopy(cfg))
        names = set(inspect.signature(MMEngineRunner.__init__).parameters) - {"self", "cfg"}
        arguments = {name: cfg[name] for name in names if name in cfg}
        if model is not None:
            arguments["model"] = model
        if isinstance(model, SeededModel):
            model.agree_on_seed()
            arguments["randomness"] = {**(cfg.get("randomness") or {}), "seed": model.seed}
        return cls(cfg=cfg, **arguments)

    @master_only
    def dump_config(self) -> None:
        """Write the config to the work folder."""
        name = Path(self.cfg.filename or f"{self.timestamp}.py").name
        if name.endswith(".py"):
            atomic_write(Path(self.work_dir) / name, config_as_text(self.cfg))
        else:
            super().dump_config()

    def build_model(self, model: nn.Module | SeededModel | dict) -> nn.Module:
        """As MMEngine's; predicts labels only where no metric reads the scores."""
        if isinstance(model, SeededModel):
            model.continue_draws()
            model = model.model
        built = super().build_model(model)
        if metrics_read_labels_only(self.cfg):
            predict_labels_only(built)
        return built

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """As MMEngine's, quiet on the console."""
        return quiet_console(super().build_logger(*args, **kwargs))

    def build_evaluator(self, evaluator: Any) -> Evaluator:
        """See :func:`mmseg_resnest.evaluation.build_evaluator`."""
        return build_evaluator(evaluator)

    def build_visualizer(self, visualizer: Visualizer | dict | None = None) -> Visualizer:
        """As MMEngine's, but not that of an earlier runner in this process."""
        if isinstance(visualizer, dict):
            name = visualizer.get("name", "visualizer")
            visualizer = {**visualizer, "name": f"{name}_{next(_numbers)}"}
        return super().build_visualizer(visualizer)

    @staticmethod
    def build_dataloader(
        dataloader: DataLoader | dict, seed: int | None = None, diff_rank_seed: bool = False
    ) -> DataLoader:
        """As MMEngine's; workers ignore signals, and ``ExactSampler``'s samples are seeded."""
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
        loader.worker_init_fn = functools.partial(ignore_signals_in_worker, loader.worker_init_fn)
        return loader

    def scale_lr(self, optim_wrapper: OptimWrapper, auto_scale_lr: dict | None = None) -> None:
        """As MMEngine's; the rates of schedules, and the one that is shown, move with it."""
        if not (auto_scale_lr or {}).get("enable"):
            return
        super().scale_lr(optim_wrapper, auto_scale_lr)
        batch = batch_of(self.train_dataloader) * self.world_size
        factor = batch / auto_scale_lr["base_batch_size"]  # type: ignore[index]
        if optim_wrapper.base_param_settings is not None:
            optim_wrapper.base_param_settings["lr"] *= factor
        self.param_schedulers = copy.deepcopy(self.param_schedulers)
        scale_rates(schedules_of({"param_scheduler": self.param_schedulers}), factor)

    @functools.cached_property
    def run_id(self) -> str:
        """Identity of the run, 32 hex digits; resuming sets that of the checkpoint."""
        return secrets.token_hex(16)

    @functools.cached_property
    def sharded(self) -> bool:
        """Whether the model is sharded (:mod:`mmseg_resnest.engine.sharding`)."""
        return is_sharded(self.model)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """As MMEngine's; the wrapper may be one of ours."""
        kind = (model_wrapper_cfg or {}).get("type")
        if model_wrapper_cfg and isinstance(kind, str):
            found = MODEL_WRAPPERS.get(kind)
            model_wrapper_cfg = {**model_wrapper_cfg, "type": found or kind}
        return super().wrap_model(model_wrapper_cfg, model)

    def _maybe_compile(self, target: str) -> None:
        """Compile the features of training steps (config key ``compile``).

        The rest of a step is small, or sets free what is compiled. In testing an engine computes;
        models of other classes are compiled as MMEngine does it.
        """
        options = self.cfg.get("compile")
        model: Any = self.model.module if is_model_wrapper(self.model) else self.model
        if not isinstance(model, EncoderDecoder):
            super()._maybe_compile(target)
        elif options and target == "train_step":
            settings = options if isinstance(options, Mapping) else {}
            say = functools.partial(print, flush=True) if is_main_process() else self.logger.info
            model.compiled = Compiled(StockEncoderDecoder.extract_feat, say, **settings)

    def _init_model_weights(self) -> None:
        if not self.sharded:  # otherwise done before they were sharded
            super()._init_model_weights()

    @property
    def checkpoint_writer(self) -> CheckpointWriter:
        """Writes this run's checkpoints in the background."""
        if self._writer is None:
            self._writer = CheckpointWriter(self.logger.warning, self.logger.info)
        return self._writer

    def close(self) -> None:
        """End the background work of this process: writing, and data loading that still runs."""
        self.visualizer.close()  # sends what services have not got yet
        if self._writer is not None:
            for unsaved in self._writer.close():
                self.logger.warning(unsaved.text)
        for hook in self.hooks:
            if isinstance(lost := getattr(hook, "not_written", None), str):
                self.logger.warning(lost)
        report_lost_lines(self.logger)
        for loop in (self._train_loop, self._val_loop, self._test_loop):
            for name in ("dataloader", "dataloader_iterator"):
                stop_workers(getattr(loop, name, None))
            stop_workers(loop)

    @functools.cached_property
    def _images(self) -> dict[str, str]:
        return describe_images(self.train_dataloader.dataset)

    @functools.cached_property
    def _failures(self) -> list[Unsaved]:
        return []

    def train(self) -> nn.Module:
        """As MMEngine's; a UserError if training is complete, but could not all be written."""
        self._failures.clear()
        model = super().train()
        if self._failures:
            lost = any(failure.checkpoint for failure in self._failures)
            then = "continues the run" if lost else "writes what is missing"
            raise UserError(
                "storage",
                self.work_dir,
                f"training is complete, but {'; '.join(f.text for f in self._failures)}; make room "
                f"or fix the permissions, then the same command with --resume {then}",
            )
        return model

    def report_unsaved(self, unsaved: Iterable[Unsaved]) -> None:
        """Report at the end of the training what could not be written; fail if it is needed."""
        for one in unsaved:
            if one.needed:
                self._failures.append(one)
            else:
                self.logger.warning(one.text)

    def finish_saving(self) -> list[Unsaved]:
        """Wait, on every process, until what was to be saved is; returns what could not be."""
        problems = [] if self._writer is None else self._writer.wait()
        return [problem for some in all_gather_object(problems) for problem in some]

    def describe_numerics(self, folded_layers: bool = False) -> dict[str, Any]:
        """The numerics of this run, with the fused steps that it uses; see :mod:`.numerics`."""
        known = self.numerics or numerics_of(self.cfg, self.world_size)
        steps = fused_steps_of(self.model, self.cfg, folded_layers)
        model: Any = self.model.module if is_model_wrapper(self.model) else self.model
        compiled = getattr(model, "compiled", None)
        engine = "torch" if compiled is not None and compiled.failed else known["engine"]
        return {**known, "engine": engine, "fused_steps": steps}

    def checkpoint_record(
        self,
        meta: Mapping[str, Any],
        save_optimizer: bool = False,
        save_param_scheduler: bool = False,
    ) -> dict[str, Any]:
        """What a checkpoint holds now; tensors are the run's own, not copies.

        With a sharded model all processes must call it. ``meta`` holds ``iter`` and ``epoch``.
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
            "total_batch": batch_of(self.train_dataloader) * self.world_size,
            "run_id": self.run_id,
            "start": self.start,
            "numerics": self.describe_numerics(),
        }
        dataset = self.train_dataloader.dataset
        if self.config_values is not None:
            about["config_values"] = {**self.config_values, **self._images}
        metainfo = getattr(dataset, "metainfo", None)
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
            record["param_schedulers"] = states_of_schedules(self.param_schedulers)
        self.call_hook("before_save_checkpoint", checkpoint=record)
        return gathered(record) if self.sharded else record

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
        """As MMEngine's, but atomic; on the first process only."""
        if not (is_main_process() or self.sharded):
            return
        meta = dict(meta or {})
        meta.setdefault("epoch", self.epoch + 1 if by_epoch else self.epoch)
        meta.setdefault("iter", self.iter if by_epoch else self.iter + 1)
        record = self.checkpoint_record(meta, save_optimizer, save_param_scheduler)
        if is_main_process():
            write_checkpoint(snapshot(record), Path(out_dir) / filename)

    def load_or_resume(self) -> None:
        """Load what the run starts from, and number this start."""
        if self._has_loaded:
            return
        folder = self.checkpoint_folder
        source = self._load_from
        if self._resume and source is None:
            newest, skipped = latest_valid_checkpoint(folder, Path(self.work_dir))
            for path, reason in skipped:
                self.logger.warning("%s is skipped: it %s", path, reason)
            source = self._load_from = None if newest is None else str(newest)
        if source is not None and self._resume:
            self.resume(source)
        elif source is not None:
            self.load_checkpoint(source)
        self.start = max(self.start + 1, next_start(folder))
        self._has_loaded = True

    def resume(
        self,
        filename: str,
        resume_optimizer: bool = True,
        resume_param_scheduler: bool = True,
        map_location: str | Callable = "default",
    ) -> None:
        """Continue from a training checkpoint, of which nothing is parsed or executed.

        Arguments are MMEngine's; tensors go to where the run's own are, not to ``map_location``.

        Raises:
            UserError: The file cannot be read safely, is not a training checkpoint, or does not
                fit this run; nothing has been loaded then.
        """
        loop: Any = self.train_loop
        record, self.start_record = self.start_record, None
        self.optim_wrapper = self.build_optim_wrapper(self.optim_wrapper)
        if self.param_schedulers is not None:
            self.param_schedulers = self.build_param_scheduler(self.param_schedulers)
        checkpoint = check_training_checkpoint(filename) if record is None else dict(record)
        meta, refuse = checkpoint["meta"], Refusal(filename)
        follows = follows_config(self.changes, self.param_schedulers, refuse)
        iteration = meta["iter"]
        if follows:
            epochs = 0 if isinstance(loop, MMEngineIterLoop) else meta["epoch"]
            if epochs:  # those of a run with this batch and these data
                iteration = epochs * len(loop.dataloader)
            advance_schedules(self.param_schedulers, iteration, epochs)
        checkpoint = fit_to_run(
            *(checkpoint, refuse, self.model, self.optim_wrapper, self.param_schedulers),
            self.changes,
        )
        self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        load_weights(self.model, checkpoint["state_dict"], name=filename)
        set_progress(loop, meta["epoch"], iteration)
        if isinstance(loop, IterBasedTrainLoop):
            loop.validation_pending = meta.get("validation_pending", False)
        if not covers(self.changes.keys, SEED):
            self._resume_seed(meta.get("seed"))
        hub = checkpoint["message_hub"]
        template = getattr(self._checkpoint_hook, "filename_tmpl", "iter_{}.pth")
        names = CheckpointNames(template)
        keep_own_names(hub["runtime_info"], self.checkpoint_folder, names)
        self.message_hub.load_state_dict(hub)
        if resume_optimizer:
            if self.sharded and isinstance(self.optim_wrapper, OptimWrapper):
                shard_optimizer_state(checkpoint["optimizer"], self.optim_wrapper.optimizer)
            self.optim_wrapper.load_state_dict(checkpoint["optimizer"])
        if resume_param_scheduler and self.param_schedulers and not follows:
            restore_schedules(self.param_schedulers, checkpoint["param_schedulers"])
        self.run_id = meta.get("run_id", self.run_id)
        self.start = meta.get("start", 0)
        self._has_loaded = True
        self.logger.info("resumed at iteration %d, epoch %d", self.iter, self.epoch)

    def _resume_seed(self, seed: int | None) -> None:
        """Use the seed of the run that is resumed."""
        ours = self._randomness_cfg.get("seed")
        if seed is None or seed == ours:
            return
        if ours is not None:
            self.logger.warning("the seed is %d, as in the resumed run, not %s", seed, ours)
        self._randomness_cfg.update(seed=seed)
        self.set_randomness(**self._randomness_cfg)

    @functools.cached_property
    def _checkpoint_hook(self) -> CheckpointHook | None:
        return next((hook for hook in self.hooks if isinstance(hook, CheckpointHook)), None)

    @functools.cached_property
    def checkpoint_folder(self) -> Path:
        """Where this run saves its checkpoints."""
        # Once: when training begins, MMEngine puts the name of the work folder behind out_dir.
        out_dir = getattr(self._checkpoint_hook, "out_dir", None)
        if not out_dir or out_dir == self.work_dir:
            return Path(self.work_dir)
        return Path(out_dir) / Path(self.work_dir).name

    def load_checkpoint(
        self,
        filename: str,
        map_location: str | Callable = "cpu",
        strict: bool = False,
        revise_keys: list | None = None,
    ) -> Mapping[str, Any]:
        """Load weights to start from; every tensor must find its place, in any known layout.

        MMEngine's other arguments are not used. Returns an empty mapping: what else the file holds
        is not read. A UserError says that it cannot be read or does not fit the model.
        """
        record, self.start_record = self.start_record, None
        source = filename if record is None else record
        done = load_weights(self.model, source, start_training=True, name=filename)
        self.logger.info("loaded %s", done)
        return {}
