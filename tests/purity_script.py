# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Run by test_purity.py in a new process: what importing and using the library changes in it."""

from __future__ import annotations

import builtins
import gc
import importlib
import io
import json
import logging
import os
import random
import resource
import signal
import sys
import threading
import types
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.registry import DefaultScope
from mmengine.runner.checkpoint import CheckpointLoader
from mmseg.utils import register_all_modules

# Everything that the library imports, so that only its own doing is left to be seen.
_OTHERS = """
cv2 PIL.Image PIL.ImageFile matplotlib.figure matplotlib.backends.backend_agg requests yaml tqdm
scipy.ndimage torch torch.optim torch.export torch._dynamo torch.utils.data safetensors filelock
prettytable mmengine mmengine.runner mmengine.hub mmengine.visualization mmcv mmcv.cnn
mmcv.transforms mmseg mmseg.apis mmseg.datasets mmseg.models mmseg.engine mmseg.evaluation
mmseg.structures mmseg.visualization mmseg.utils
"""
for _name in _OTHERS.split():
    importlib.import_module(_name)
register_all_modules(init_default_scope=False)
# torch wraps an optimizer's step when the first one is made.
torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)


def _ours(name: str) -> bool:
    return name.split(".")[0] in ("mmseg_resnest", "mmseg_resnest_cli", "__main__")


def attributes() -> dict[str, int]:
    """The identity of every attribute of every module and class of other packages."""
    found: dict[str, int] = {}
    for name, module in list(sys.modules.items()):
        if _ours(name) or not isinstance(module, types.ModuleType):
            continue
        for key, value in list(vars(module).items()):
            if isinstance(value, types.ModuleType) or key in ("__warningregistry__", "__path__"):
                continue
            if callable(value) or isinstance(value, type):
                found[f"{name}.{key}"] = id(value)
            if isinstance(value, type) and value.__module__ == name:
                for attribute, inner in list(vars(value).items()):
                    if callable(inner) or isinstance(inner, property | staticmethod | classmethod):
                        found[f"{name}.{key}.{attribute}"] = id(inner)
                defaults = getattr(value, "__defaults__", None)
                found[f"{name}.{key}.__defaults__"] = id(defaults)
            if isinstance(value, types.FunctionType):
                found[f"{name}.{key}.__defaults__"] = id(value.__defaults__)
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
        "umask": (lambda mask: (os.umask(mask), mask)[1])(os.umask(0o022)),
        "image": __import__("PIL.Image").Image.MAX_IMAGE_PIXELS,
        "truncated": __import__("PIL.ImageFile").ImageFile.LOAD_TRUNCATED_IMAGES,
    }


KEPT: dict[str, Any] = {}


def differences(before: tuple[dict, dict]) -> list[str]:
    old, now = before[0], attributes()
    said = [f"attribute {key}" for key, value in old.items() if now.get(key, value) != value]
    said += [f"attribute {key} is gone" for key in old if key not in now]
    state = process()
    for key, value in before[1].items():
        if state[key] != value:
            said.append(f"{key}: {str(value)[:300]} became {str(state[key])[:300]}")
    return said


def main() -> None:
    folder, config = Path(sys.argv[1]), sys.argv[2]
    os.chdir(folder)
    # Objects stay alive, so that no identity is given to another one.
    KEPT["modules"] = [dict(vars(m)) for m in list(sys.modules.values()) if hasattr(m, "__dict__")]
    KEPT["classes"] = [dict(vars(c)) for c in object.__subclasses__()]
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
