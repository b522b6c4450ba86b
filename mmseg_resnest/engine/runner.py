# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""MMEngine's runner with a quiet console that never executes what a checkpoint says."""

from __future__ import annotations

import copy
import inspect
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmengine.runner import Runner as MMEngineRunner
from torch import nn

from mmseg_resnest.engine.checkpoint import load_weights
from mmseg_resnest.engine.logs import quiet_console
from mmseg_resnest.errors import UserError
from mmseg_resnest.models import EncoderDecoder
from mmseg_resnest.registry import MODELS, RUNNERS
from mmseg_resnest.weights import load_training_checkpoint

__all__ = ["Runner", "build_model", "check_training_checkpoint", "predict_labels_only"]


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

    _resuming = False

    @classmethod
    def from_cfg(cls, cfg: Config, model: nn.Module | None = None) -> Runner:
        """Build a runner from a config.

        Args:
            cfg: The config; copied.
            model: A built model to use in place of ``cfg.model``.
        """
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

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """As MMEngine's, quiet on the console."""
        return quiet_console(super().build_logger(*args, **kwargs))

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
        self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        load_weights(self.model, checkpoint["state_dict"])
        return checkpoint


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
