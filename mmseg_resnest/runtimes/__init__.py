# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A network computed by another runtime: the same function, and a check that it is."""

from .engines import ENGINES, PRECISIONS, Choice, Engine, use_engine

__all__ = ["ENGINES", "PRECISIONS", "Choice", "Engine", "use_engine"]
