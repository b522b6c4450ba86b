# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Run by test_purity.py in a new process: what importing and using the library changes in it."""

from __future__ import annotations

import builtins
import concurrent.futures
import gc
import importlib
import io
import json
import locale
import logging
import os
import random
import resource
import signal
import sys
import tempfile
import threading
import types
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
import torch
from mmengine.registry import DefaultScope
from mmengine.runner.checkpoint import CheckpointLoader
from mmseg.utils import register_all_modules

# Everything that the library imports, so that only its own doing is left to be seen.
_OTHERS = """
setuptools cv2 PIL.Image PIL.ImageFile matplotlib.figure matplotlib.backends.backend_agg requests
concurrent.futures.process concurrent.futures.thread yaml tqdm scipy.ndimage torch torch.optim
torch.export torch._dynamo torch.utils.data safetensors filelock prettytable
mmengine mmengine.runner mmengine.hub mmengine.visualization mmcv mmcv.cnn mmcv.transforms
mmseg mmseg.apis mmseg.datasets mmseg.models mmseg.engine mmseg.evaluation mmseg.structures
mmseg.visualization mmseg.utils
"""
for _name in _OTHERS.split():
    importlib.import_module(_name)
register_all_modules(init_default_scope=False)
concurrent.futures.ProcessPoolExecutor  # noqa: B018 (found when it is asked for)
tempfile.gettempdir()  # is looked up once
# torch wraps an optimizer's step when the first one is made.
torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)


_PLAIN = (bool, int, float, str)


def _ours(name: str) -> bool:
    return name.split(".")[0] in ("mmseg_resnest", "mmseg_resnest_cli", "__main__")


def _counts(key: str, value: Any) -> bool:
    """Whether an attribute may not change: what is called, and public flags; caches may."""
    if isinstance(value, types.ModuleType):
        return False
    if callable(value) or isinstance(value, property | staticmethod | classmethod):
        return True
    return type(value) in _PLAIN and not key.startswith("_") and key != "next_id"


def attributes() -> dict[str, Any]:
    """Attributes of every module and class of other packages, kept alive."""
    found: dict[str, Any] = {}
    for name, module in list(sys.modules.items()):
        if _ours(name) or not isinstance(module, types.ModuleType):
            continue
        for key, value in list(vars(module).items()):
            if not _counts(key, value):
                continue
            found[f"{name}.{key}"] = value
            if isinstance(value, type) and value.__module__ == name:
                for attribute, inner in list(vars(value).items()):
                    if _counts(attribute, inner):
                        found[f"{name}.{key}.{attribute}"] = inner
            if isinstance(value, types.FunctionType):
                found[f"{name}.{key}.__defaults__"] = value.__defaults__
                found[f"{name}.{key}.__code__"] = value.__code__
    return found


def process() -> dict[str, Any]:
    """What belongs to the whole process."""
    import multiprocessing

    loggers = {None: logging.root, **logging.Logger.manager.loggerDict}
    return {
        "builtins": {key: id(value) for key, value in vars(builtins).items() if key != "_"},
        "filters": [str(entry) for entry in warnings.filters],
        "handlers": {
            str(name): [id(handler) for handler in logger.handlers]
            for name, logger in loggers.items()
            if isinstance(logger, logging.Logger) and logger.handlers
        },
        "streams": [id(sys.stdout), id(sys.stderr), id(sys.excepthook), id(sys.displayhook)],
        "collector": [gc.isenabled(), gc.get_threshold(), gc.get_freeze_count(), len(gc.callbacks)],
        "threads": [torch.get_num_threads(), torch.get_num_interop_threads(), cv2.getNumThreads()],
        "environment": dict(os.environ),
        "schemes": {key: id(value) for key, value in CheckpointLoader._schemes.items()},
        "scope": list(DefaultScope._instance_dict),
        "files": resource.getrlimit(resource.RLIMIT_NOFILE),
        "start method": multiprocessing.get_start_method(allow_none=True),
        "signals": [
            str(signal.getsignal(s)) for s in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
        ],
        "deterministic": [
            torch.are_deterministic_algorithms_enabled(),
            torch.backends.cudnn.benchmark,
            torch.backends.cudnn.deterministic,
        ],
        "precision": [torch.get_default_dtype(), torch.get_float32_matmul_precision()],
        "random": [
            hash(random.getstate()),
            hash(np.random.get_state()[1].tobytes()),
            hash(torch.get_rng_state().numpy().tobytes()),
        ],
        "folder": os.getcwd(),
        # tqdm starts one for all of its bars.
        "running": [
            sorted(t.name for t in threading.enumerate() if t.name != "tqdm_monitor"),
            [child.name for child in multiprocessing.active_children()],
        ],
        "levels": {
            str(name): logger.level
            for name, logger in loggers.items()
            if isinstance(logger, logging.Logger) and logger.level
        },
        "search": [list(sys.path), *map(id, [*sys.meta_path, *sys.path_hooks])],
        "hooks": [id(sys.unraisablehook), id(threading.excepthook), id(warnings.showwarning)],
        "limits": [logging.root.manager.disable, sys.getrecursionlimit()],
        "pictures": [matplotlib.get_backend(), str(matplotlib.rcParams)],
        "gradients": [torch.is_grad_enabled(), torch.is_inference_mode_enabled()],
        "TF32": [torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32],
        "oneDNN": torch.backends.mkldnn.enabled,
        "locale": locale.setlocale(locale.LC_ALL),
        "umask": (lambda mask: (os.umask(mask), mask)[1])(os.umask(0o022)),
        "image": __import__("PIL.Image").Image.MAX_IMAGE_PIXELS,
        "truncated": __import__("PIL.ImageFile").ImageFile.LOAD_TRUNCATED_IMAGES,
    }


def _is_same(one: Any, other: Any) -> bool:
    return one is other or (type(one) is type(other) and type(one) in _PLAIN and one == other)


def differences(before: tuple[dict, dict]) -> list[str]:
    old, now = before[0], attributes()
    said = [f"attribute {key}" for key in old if key in now and not _is_same(old[key], now[key])]
    said += [f"attribute {key} is gone" for key in old if key not in now]
    known = {key.rpartition(".")[0] for key in old}
    new = [key for key in now if key not in old and key.rpartition(".")[0] in known]
    said += [f"attribute {key} is new" for key in new]
    state = process()
    for key, value in before[1].items():
        if state[key] != value:
            said.append(f"{key}: {str(value)[:300]} became {str(state[key])[:300]}")
    return said


def main() -> None:
    folder, config = Path(sys.argv[1]), sys.argv[2]
    os.chdir(folder)
    result = {}
    before = attributes(), process()
    import mmseg_resnest

    result["import"] = differences(before)
    import mmseg_resnest.inference
    from mmseg_resnest.engine.config import load_config
    from mmseg_resnest.engine.testing import evaluate
    from mmseg_resnest.engine.training import train

    before = attributes(), process()
    with redirect_stdout(io.StringIO()):
        summary = train(load_config(config))
    result["train"] = differences(before)
    checkpoint = Path(summary["work_dir"]) / summary["last_checkpoint"]
    with redirect_stdout(io.StringIO()):
        evaluate(load_config(config), checkpoint)
    result["evaluate"] = differences(before)
    before[1].pop("random")  # a network that is built draws its weights
    model = mmseg_resnest.load_segmentor(config, checkpoint, "cpu")
    result["load_segmentor"] = differences(before)
    model(np.zeros((64, 96, 3), np.uint8)).overlay()
    result["predict"] = differences(before)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
