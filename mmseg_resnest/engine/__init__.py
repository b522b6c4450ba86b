# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What keeps a run going: configs, launching, checks before a run, the runner and its hooks."""

from . import (  # noqa: F401  (register their parts)
    epoch_loop,
    hooks,
    loop,
    optim,
    runner,
    sampler,
    sharding,
    tracking,
)
from .config import load_config
from .runner import Runner

__all__ = ["Runner", "load_config"]
