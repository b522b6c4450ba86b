# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
from .camvid import CamVidDataset  # noqa: F401
from .scenes import ScenesDataset  # noqa: F401
from .transforms import RandomLongEdgeResize  # noqa: F401
