# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Models for other runtimes: ONNX, OpenVINO, torch.export, TorchScript, 8 bits, a hub's folder."""

from .check import Agreement, compare
from .files import export_model

__all__ = ["Agreement", "compare", "export_model"]
