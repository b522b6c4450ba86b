# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Finding labels that are likely wrong, by a model that did not learn them."""

from .find import find_label_errors
from .ranking import LabelErrors

__all__ = ["LabelErrors", "find_label_errors"]
