# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""mmseg-resnest: ResNeSt for semantic segmentation on MMSegmentation.

Importing the package registers its parts in scope ``mmseg_resnest`` and changes nothing else in
the process.
"""

from . import (
    _stack,  # noqa: F401  (first: imports the OpenMMLab stack quietly)
    datasets,
    engine,
    evaluation,
    models,
    weights,
)
from .errors import UserError
from .inference import load_segmentor  # (last: it stands on all of them)
from .version import __version__

__all__ = [
    "UserError",
    "__version__",
    "datasets",
    "engine",
    "evaluation",
    "load_segmentor",
    "models",
    "weights",
]
