# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
from .transforms import RandomLongEdgeResize  # noqa: F401
