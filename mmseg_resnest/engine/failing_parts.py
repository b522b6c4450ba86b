# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Which part of a config an exception comes from, as a UserError about its key."""

from __future__ import annotations

import contextlib
import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from torch import nn

from ..datasets.channels import Channels
from ..errors import UserError
from ..io.memory import ran_out_of_memory
from .failing_keys import key_of_build
from .preemption import Preempted

_CHANNELS = re.compile(r"to have (\d+) channels, but got (\d+) channels")
_ONE_VALUE = "Expected more than 1 value per channel"


def loading_error(exception: Exception, key: str, step: str = "") -> UserError:
    """An exception that was raised while a batch was loaded, as a UserError without a traceback.

    A UserError comes back with its parts, another one as what it says and where: the part of the
    config at ``key``, and the transform that failed, if one did.
    """
    if isinstance(exception, UserError):
        return UserError(exception.code, exception.subject, exception.message)
    what = f"{step} fails on a sample" if step else "its samples fail"
    return UserError("data-loading", f"config key {key}", f"{what}: {describe(exception)}")


def describe(error: BaseException) -> str:
    """E.g. ``ValueError: bad pixel (steps.py:12)``."""
    if isinstance(error, KeyError) and 'must contain the key "type"' in str(error):
        return "it has no type"
    text, place = str(error).strip(), ""
    if frames := traceback.extract_tb(error.__traceback__):
        text = text or frames[-1].line or ""
        place = f" ({frames[-1].filename}:{frames[-1].lineno})"
    first = text.partition("\n")[0][:300] or "no message"
    return f"{type(error).__name__}: {first}{place}"


@contextlib.contextmanager
def failing(key: str, what: str, node: Any = None) -> Iterator[None]:
    """Raise a UserError about a config key in place of another exception.

    Its message begins with ``what`` cannot be done with the key. With ``node``, the value that is
    built, it names the part of that which fails.
    """
    try:
        yield
    except Preempted:
        raise
    except UserError as error:
        if node is not None:
            raise_of_its_key(key, node, error)
        raise
    except Exception as error:
        code = "memory" if ran_out_of_memory(error) else "config-value"
        found = key if node is None else key_of_build(key, node, error)
        raise UserError(code, f"config key {found}", f"{what}: {describe(error)}") from error


def raise_of_its_key(key: str, node: Any, error: UserError) -> None:
    """Raise an error about an option of a part as one about the part's key; not other errors."""
    about_a_key = error.subject.startswith(("config key ", "--"))
    if not about_a_key and error.code in ("argument", "config-value", "config-conflict"):
        place = f"config key {key_of_build(key, node, error)}"
        raise UserError("config-value", place, f"cannot be built; {error.text}") from error


@contextlib.contextmanager
def failing_part(cfg: Config, model: nn.Module, what: str) -> Iterator[None]:
    """Raise a UserError about the part of ``model`` in which an exception was raised."""
    try:
        yield
    except (UserError, Preempted):
        raise
    except Exception as error:
        raise _explain_part(cfg, model, error, what) from error


@contextlib.contextmanager
def failing_model(
    cfg: Config, model: nn.Module, batch: Any, loader: str, images: int
) -> Iterator[None]:
    """As :func:`failing_part`, or about the batch, of a model that is given one of so many images.

    ``loader`` is the key of the data loader.
    """
    sizes = _sizes(batch)
    labels = have_labels(batch)
    packed = isinstance(batch, Mapping) and "inputs" in batch
    try:
        yield
    except (UserError, Preempted):
        raise
    except Exception as error:
        explained = wrong_channels(cfg, batch, loader)
        explained = explained or _explain_batch(error, loader, images, sizes, labels)
        if explained is None and not packed:
            key = f"config key {loader}.dataset.pipeline"
            message = f"its samples have no inputs; end it in PackSegInputs ({describe(error)})"
            explained = UserError("config-value", key, message)
        which = "training" if loader == "train_dataloader" else "validation"
        what = f"fails on the first {which} batch"
        raise (explained or _explain_part(cfg, model, error, what)) from error


def wrong_channels(cfg: Config, batch: Any, loader: str) -> UserError | None:
    """Why a model cannot take a batch of the data loader at a key, if for its channels."""
    inputs = batch.get("inputs") if isinstance(batch, Mapping) else None
    images = [one for one in inputs if getattr(one, "ndim", 0) == 3] if inputs is not None else []
    conflicts = (Channels.of(cfg).conflict(image.shape[0], loader) for image in images)
    return next((one for one in conflicts if one is not None), None)


def _sizes(batch: Any) -> list[str]:
    inputs = batch.get("inputs") if isinstance(batch, Mapping) else None
    if not isinstance(inputs, Sequence):
        return []
    return sorted({"x".join(map(str, one.shape[-2:])) for one in inputs if hasattr(one, "shape")})


def have_labels(batch: Any) -> bool:
    """Whether all samples of a batch hold a label map."""
    samples = batch.get("data_samples") if isinstance(batch, Mapping) else None
    return not samples or all("gt_sem_seg" in sample for sample in samples)


def _explain_batch(
    error: Exception, loader: str, images: int, sizes: list[str], labels: bool
) -> UserError | None:
    """What is wrong with a batch, rather than with the model."""
    key = f"config key {loader}.batch_size"
    training = loader == "train_dataloader"
    if ran_out_of_memory(error):
        size = f" of {sizes[0]}" if len(sizes) == 1 else ""
        what = "use a smaller batch or crop, --amp, activation checkpointing "
        what += "(model.backbone.with_cp=True) or more GPUs"
        if not training:
            what = "use model.test_cfg.mode='slide' with a smaller crop_size, or smaller images"
        message = f"memory does not suffice for {images} images{size} in a process; {what}"
        return UserError("memory", key, f"{message} ({describe(error)})")
    if _ONE_VALUE in str(error) and training:
        return UserError(
            "config-value",
            key,
            f"gives a process {images} image{'s' if images > 1 else ''}, and batch norm cannot "
            "train on a single value for each channel; use at least 2 images for each process, or "
            "SyncBN on several processes",
        )
    if not training and len(sizes) > 1 and "image size in a batch" in str(error):
        return UserError(
            "config-conflict",
            key,
            f"is {images}, but images of one batch differ in size ({', '.join(sizes[:4])}); set "
            f"{loader}.batch_size=1",
        )
    if not labels and isinstance(error, AttributeError | KeyError | AssertionError):
        key = f"config key {loader}.dataset"
        message = (
            "its samples have no labels; set data_prefix.seg_map_path, and LoadAnnotations "
            f"in its pipeline ({describe(error)})"
        )
        return UserError("config-value", key, message)
    return None


def _explain_part(cfg: Config, model: nn.Module, error: Exception, what: str) -> UserError:
    for frame, _ in traceback.walk_tb(error.__traceback__):
        stepping = isinstance(frame.f_locals.get("self"), OptimWrapper | torch.optim.Optimizer)
        if stepping and frame.f_code.co_name == "step":
            message = f"the first update fails: {describe(error)}"
            return UserError("config-value", "config key optim_wrapper", message)
    name, module = _failing_module(model, error)
    path, node = _config_of(cfg, name)
    key = f"config key {path}"
    message = f"{what}: {describe(error)}"
    if "size_divisor" in (node or {}) or "size" in (node or {}):
        size, divisor = (getattr(module, one, None) for one in ("size", "size_divisor"))
        if size is not None and divisor is not None:
            message = f"is {size}, and size_divisor is {divisor}: only one of them can be set; set "
            message += "the other one to None"
            return UserError("config-conflict", f"{key}.size", message)
        if size is None and divisor is None:
            message = "is not set, nor is size_divisor; set one of them"
            return UserError("config-value", f"{key}.size", message)
    if channels := _CHANNELS.search(str(error)):
        message = f"its parts do not fit together: a layer takes {channels[1]} channels and gets "
        message += f"{channels[2]}; compare in_channels and in_index of the heads with the outputs "
        message += f"of model.backbone ({describe(error)})"
        return UserError("model", key, message)
    return UserError("config-value", key, message)


def _failing_module(model: nn.Module, error: Exception) -> tuple[str, nn.Module]:
    """Name and module of the innermost part of the model whose method failed."""
    names = {id(module): name for name, module in model.named_modules()}
    found = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        found = names.get(id(frame.f_locals.get("self")), "") or found
    return found, model.get_submodule(found)


def _config_of(cfg: Config, name: str) -> tuple[str, Mapping[str, Any] | None]:
    """The key of the config that a part of the model, by its name, is made from, and its value."""
    path: list[str] = ["model"]
    node: Any = cfg.model
    parts = name.split(".")
    if parts[0] == "data_preprocessor" and node.get("data_preprocessor") is None:
        return "data_preprocessor", cfg.get("data_preprocessor")
    for part in parts:
        if isinstance(node, Mapping) and isinstance(node.get(part), Mapping | list | tuple):
            node = node[part]
        elif isinstance(node, list | tuple) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        else:
            break
        path.append(part)
    return ".".join(path), node if isinstance(node, Mapping) else None
