# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What the published ImageNet training has and MMPretrain's parts lack: dropout and mixup.

Imports MMPretrain, the extra ``classify``; configs in ``configs/classification/`` name this module
in ``custom_imports``.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .._stack import quietly
from ..errors import UserError
from ..io.packages import needs_extra
from ..io.text import error_words
from ..registry import MODELS

try:
    with needs_extra("classify"), quietly():
        import mmpretrain.datasets  # noqa: F401, prints as mmseg does
        from mmpretrain.models import ClsDataPreprocessor, LinearClsHead
        from mmpretrain.models.utils.batch_augments import Mixup
except RuntimeError as error:  # of torchvision beside another PyTorch than it was built with
    message = f"cannot be loaded beside this PyTorch ({error_words(error)}); install a pair: pip "
    message += "install torch==2.14.1 torchvision==0.29.1"
    raise UserError("missing-package", "torchvision", message) from error

__all__ = ["DropoutClsHead", "MixupDataPreprocessor"]


@MODELS.register_module()
class DropoutClsHead(LinearClsHead):
    """MMPretrain's ``LinearClsHead`` behind a dropout.

    Args:
        dropout: Probability to drop one of the pooled features (N, in_channels).
        **kwargs: As of ``LinearClsHead``.
    """

    def __init__(self, dropout: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dropout = nn.Dropout(dropout)

    def pre_logits(self, feats: tuple[Tensor, ...]) -> Tensor:
        """Pooled features (N, in_channels) of the last stage, some of them dropped in training."""
        dropped: Tensor = self.dropout(super().pre_logits(feats))
        return dropped


@MODELS.register_module()
class MixupDataPreprocessor(ClsDataPreprocessor):
    """MMPretrain's ``ClsDataPreprocessor`` with mixup (arXiv 1710.09412) in training.

    Args:
        mixup: Both parameters of the Beta distribution that a batch's share is drawn from; 0: none.
        batch_augments: As of ``ClsDataPreprocessor``, in place of ``mixup``.
        **kwargs: As of ``ClsDataPreprocessor``.
    """

    def __init__(self, mixup: float = 0.0, batch_augments: Any = None, **kwargs: Any) -> None:
        if mixup and batch_augments is None:
            batch_augments = {"augments": [Mixup(float(mixup))]}
        super().__init__(batch_augments=batch_augments, **kwargs)
