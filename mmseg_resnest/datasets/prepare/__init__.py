# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Preparing data sets: from what is published, or what one has, to what configs read."""

from .ade20k import ADE20K
from .build_cache import build_cache
from .camvid import CAMVID
from .cityscapes import CITYSCAPES
from .custom import CustomReport, prepare_custom
from .custom_options import CustomOptions
from .dataset import DataSet, Report, prepare
from .export import EXPORTS, export_labels
from .pascal_context import PASCAL_CONTEXT
from .recognise import recognise_options
from .scenes import SCENES_CACHED, prepare_scenes
from .split import similar_images
from .voc12aug import VOC12AUG

DATA_SETS: dict[str, DataSet] = {
    dataset.name: dataset for dataset in (ADE20K, CITYSCAPES, VOC12AUG, PASCAL_CONTEXT, CAMVID)
}

__all__ = [
    "DATA_SETS",
    "EXPORTS",
    "SCENES_CACHED",
    "CustomOptions",
    "CustomReport",
    "DataSet",
    "Report",
    "build_cache",
    "export_labels",
    "prepare",
    "prepare_custom",
    "prepare_scenes",
    "recognise_options",
    "similar_images",
]
