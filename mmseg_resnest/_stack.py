# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Imports the OpenMMLab stack quietly; and all private names of dependencies that are used.

Stream and warning filters are put back after the import. tests/test_stack.py says which name of
:data:`PRIVATE_NAMES` has moved in another version.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

# Imported so that each of MMSegmentation's parts is registered. The original packages and their
# maintained continuations agree on these names.
_MODULES = (
    *("mmengine.runner", "mmcv.cnn", "mmcv.transforms", "mmseg.datasets", "mmseg.engine"),
    *("mmseg.evaluation", "mmseg.models", "mmseg.structures", "mmseg.visualization"),
)

# Lines printed (not logged) at import: mmseg.datasets and mmseg.datasets.transforms, once each, and
# mmdet's two.
_NOISE_LINES = frozenset(
    {"Could not import OneDL", "Could not import OneDL. Skipping OneDL datasets."}
)

# Warnings of the import: (start of the message as a regular expression, category, module as a
# regular expression). mmcv without compiled operators, which no model of ours uses, and with them.
_TRANSFORMER = r"mmcv\.cnn\.bricks\.transformer$"
_NOISE_WARNINGS: tuple[tuple[str, type[Warning], str], ...] = (
    (r"Fail to import ``MultiScaleDeformableAttention``", UserWarning, _TRANSFORMER),
    (r"``MultiScaleDeformableAttention`` has been moved to", ImportWarning, _TRANSFORMER),
    (r"faster_coco_eval is not installed", UserWarning, r"mmdet\.evaluation\.metrics\..*"),
)

_INSTALL = "pip install onedl-mmsegmentation onedl-mmengine onedl-mmcv"


@contextlib.contextmanager
def _without_printed_noise() -> Iterator[None]:
    """What is printed meanwhile appears at the end, without the noise."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    finally:
        lines = printed.getvalue().splitlines(keepends=True)
        if sys.stdout is not None:  # as in pythonw and some daemons
            sys.stdout.write("".join(line for line in lines if line.strip() not in _NOISE_LINES))


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Import parts of the stack meanwhile, without what they print and warn of each time."""
    with _without_printed_noise(), warnings.catch_warnings():
        for message, category, source in _NOISE_WARNINGS:
            warnings.filterwarnings("ignore", message, category, source)
        yield


def import_operators() -> Any:
    """``mmcv.ops``; None where mmcv was installed without its compiled operators."""
    try:
        with quietly():
            return importlib.import_module("mmcv.ops")
    except ImportError:
        return None


def _advice(error: ImportError) -> str:
    """What to install so that an import of the stack works."""
    name = error.name or ""
    root = name.partition(".")[0]
    if root in ("mmseg", "mmengine", "mmcv"):
        if name.startswith(("mmcv._ext", "mmcv.ops")):
            return (
                "This mmcv lacks the compiled operators that this mmseg asks for: install mmcv "
                f"with them, or in a new environment `{_INSTALL}`."
            )
        return (
            f"Install the OpenMMLab stack: `{_INSTALL}`. An installation of mmsegmentation 1.x "
            "with mmengine and mmcv 2.x does as well."
        )
    if "libGL" in str(error):
        return (
            "This cv2 needs a library for screens: `pip uninstall opencv-python`, then "
            "`pip install --force-reinstall opencv-python-headless`."
        )
    if root in ("ftfy", "regex"):
        return "mmsegmentation 1.2 does not name what it needs: `pip install ftfy regex`."
    return (
        f"Install it: `pip install {root}`." if root else "Check the installation of that package."
    )


@contextlib.contextmanager
def _without(module: str) -> Iterator[None]:
    """Have a module that is not loaded yet count as missing meanwhile."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.modules.pop(module, None)


def import_stack() -> None:
    """Import mmengine, mmcv and mmseg, registering every part of MMSegmentation.

    Raises:
        ImportError: One of them, or something that one of them needs, is missing; the message
            says what to install.
    """
    # mmseg's data set of a service, OneDL, would load MMPretrain, and torchvision with it: seconds,
    # and an error where torchvision does not go with PyTorch. Hidden is that module alone: what
    # else is loaded meanwhile, such as MMDetection, keeps what it finds for good.
    with quietly(), _without("mmseg.datasets.onedl"):
        for module in _MODULES:
            try:
                importlib.import_module(module)
            except ImportError as error:
                raise ImportError(
                    f"mmseg-resnest cannot import {module}: {error}. {_advice(error)}",
                    name=error.name,
                    path=error.path,
                ) from error


import_stack()

# --- private names of dependencies -----------------------------------------------------------

import torch  # noqa: E402
from mmengine.logging import HistoryBuffer  # noqa: E402
from torch.nn.modules._functions import SyncBatchNorm as SyncBatchNormFunction  # noqa: E402
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm  # noqa: E402

__all__ = ["BatchNorm", "SyncBatchNormFunction"]

# Module to the names that the functions below, and subclasses of its classes, rely on.
PRIVATE_NAMES = {
    "mmengine.config.config": ("_cfg_dict", "_env_variables", "_imported_names"),
    "mmengine.utils.manager": ("_instance_dict",),
    "mmengine.logging.history_buffer": ("_log_history", "_count_history"),
    "mmengine.dataset.base_dataset": ("_metainfo",),
    "mmengine.dataset.dataset_wrapper": ("_get_repeat_factors",),
    "mmengine.hooks.checkpoint_hook": (
        *("_default_greater_keys", "_default_less_keys", "_init_rule"),
        *("_save_best_checkpoint", "_save_checkpoint", "_save_checkpoint_with_step"),
    ),
    "mmengine.hooks.early_stopping_hook": ("_default_greater_keys", "_default_less_keys"),
    "mmengine.hooks.ema_hook": ("_swap_ema_parameters",),
    "mmengine.runner.runner": (
        *("_has_loaded", "_init_model_weights", "_load_from", "_maybe_compile", "_randomness_cfg"),
        *("_resume", "_test_loop", "_train_loop", "_val_loop"),
    ),
    "mmengine.runner.loops": ("_decide_current_val_interval", "_epoch", "_iter", "_max_iters"),
    "mmengine.optim.scheduler.param_scheduler": ("_global_step", "_last_value"),
    "mmengine.visualization.vis_backend": ("_dump", "_env_initialized", "_init_env"),
    "mmengine.visualization.visualizer": ("_vis_backends",),
    "mmengine.model.base_model.data_preprocessor": ("_channel_conversion", "_enable_normalize"),
    "mmcv.transforms.processing": ("_crop_seg_map", "_random_scale"),
    "mmseg.datasets.dataset_wrappers": ("_skip_type_keys",),
    "mmseg.models.decode_heads.ham_head": ("_build_bases",),
    "mmseg.models.decode_heads.decode_head": ("_transform_inputs",),
    "mmseg.datasets.transforms.transforms": ("_adjust_gamma",),
    "torch": ("_C", "_foreach_copy_", "_foreach_norm", "_shape_as_tensor"),
    "torch.distributed.distributed_c10d": ("_get_default_store",),
    "torch.distributed.elastic.agent.server.api": ("_monitor_workers", "_remaining_restarts"),
    "torch.nn.modules.batchnorm": ("_BatchNorm", "_check_input_dim"),
    "torch.nn.modules._functions": ("SyncBatchNorm",),
    "torch.nn.modules.module": ("_metadata", "_register_load_state_dict_pre_hook"),
    "torch._tensor": ("_version",),
    "torch.onnx._internal.torchscript_exporter.utils": ("_jit_set_onnx_log_enabled",),
    "torch.utils.data.dataloader": (
        *("_iterator", "_rcvd_idx", "_shutdown_workers", "_task_info", "_workers"),
    ),
}

foreach_copy_: Any = torch._foreach_copy_
foreach_norm: Any = torch._foreach_norm


def config_tree(cfg: Any) -> Any:
    """The nested values of an MMEngine config."""
    return cfg._cfg_dict


def config_environment(cfg: Any) -> dict[str, Any]:
    """The environment variables that a config file read."""
    return cfg._env_variables


def config_imports(cfg: Any) -> set[str]:
    """The top-level names that a config in Python style imports."""
    return cfg._imported_names


def global_instances(kind: Any) -> dict[str, Any]:
    """MMEngine's table of the instances of a class (loggers, message hubs) by name."""
    return kind._instance_dict


def make_history(log: Any, count: Any, max_length: int) -> HistoryBuffer:
    """A log's history of these values and counts."""
    buffer = HistoryBuffer(max_length=max_length)
    buffer._log_history, buffer._count_history = log, count
    return buffer


def copy_metadata(source: Any, target: Any) -> None:
    """Give a copy of a state dict the versions of its modules."""
    if hasattr(source, "_metadata"):
        target._metadata = source._metadata


def default_store() -> Any:
    """The key-value store of the process group."""
    return torch.distributed.distributed_c10d._get_default_store()


def swap_averaged_weights(hook: Any) -> None:
    """Exchange the model's weights with those of an ``EMAHook``."""
    hook._swap_ema_parameters()


def set_progress(loop: Any, epoch: int, iteration: int) -> None:
    """Set where a training loop continues."""
    loop._epoch, loop._iter = epoch, iteration


def loads_from(runner: Any) -> str | None:
    """The checkpoint that a runner starts from."""
    return runner._load_from


def visualization_backends(visualizer: Any) -> list[Any]:
    """What a visualizer writes to."""
    return list(visualizer._vis_backends.values())


def mixing_transforms(dataset: Any) -> list[Any]:
    """The transforms of a ``MultiImageMixDataset`` that it does not skip."""
    skipped = dataset._skip_type_keys or ()
    pairs = zip(dataset.pipeline, dataset.pipeline_types, strict=True)
    return [transform for transform, kind in pairs if kind not in skipped]


def mark_stepped(optimizer: Any) -> None:
    """Let schedules take an optimizer for one that has been stepped; otherwise they warn."""
    optimizer._global_step = max(optimizer._global_step, 0)


def waiting_worker(batches: Any) -> tuple[int, Any] | None:
    """Number and process of the worker that the next batch is waited for; None if not known."""
    inner = getattr(batches, "_iterator", batches)
    task = getattr(inner, "_task_info", {}).get(getattr(inner, "_rcvd_idx", None))
    return (task[0], inner._workers[task[0]]) if task else None


def stop_workers(source: Any) -> None:
    """End the workers of a data loader, or of what iterates over it, also those that hang."""
    batches: Any = getattr(source, "_iterator", None)
    if hasattr(batches, "_shutdown_workers"):
        batches._shutdown_workers()
        for worker in batches._workers:
            if worker.is_alive():
                worker.kill()


def normalisation(preprocessor: Any) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Mean and standard deviation, (C, 1, 1), of a data preprocessor; None if it has none."""
    if not getattr(preprocessor, "_enable_normalize", False):
        return None
    return preprocessor.mean, preprocessor.std


def set_normalisation(preprocessor: Any, mean: Sequence[float], std: Sequence[float]) -> None:
    """Give a data preprocessor mean and standard deviation for any number of channels."""
    preprocessor._enable_normalize = True
    for name, values in (("mean", mean), ("std", std)):
        tensor = torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)
        preprocessor.register_buffer(name, tensor, persistent=False)


def converts_channels(preprocessor: Any) -> bool:
    """Whether a data preprocessor swaps RGB and BGR."""
    return bool(getattr(preprocessor, "converts_channels", preprocessor._channel_conversion))


def take_channel_conversion(preprocessor: Any) -> bool:
    """Whether a data preprocessor was to swap RGB and BGR, which it does not do from now on."""
    wanted, preprocessor._channel_conversion = bool(preprocessor._channel_conversion), False
    return wanted


def shape_as_tensor(x: torch.Tensor) -> torch.Tensor:
    """The shape of a tensor as a tensor, which exporters follow."""
    return torch._shape_as_tensor(x)


def print_no_graphs() -> None:
    """Keep the ONNX exporter from printing thousands of lines when it fails.

    It allows itself to print when it begins, so this is called by the network that it follows.
    """
    torch._C._jit_set_onnx_log_enabled(False)


def times_changed(tensor: torch.Tensor) -> int:
    """How often a tensor was changed in place; 0 for those of inference mode, which count none."""
    return 0 if tensor.is_inference() else tensor._version
