# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Segmenting images with a trained model, from Python.

::

    from mmseg_resnest import load_segmentor

    model = load_segmentor("configs/fcn_resnest14_camvid.py", "work_dirs/.../best.pth")
    result = model("street.jpg")    # or an address, a PIL image, an array, a tensor
    result.labels                   # (H, W) class indices
    result.scores("Car")            # (H, W) probabilities
    result.uncertainty()            # (H, W), 0 (sure) to 1
    result.areas()                  # pixels and share of each class
    result.overlay()                # a PIL image; the result shows itself in a notebook
    result.save("street.png")
    results = model("photos/")      # a folder or a list: a list of results
"""

from ..datasets.reader import ImageInput
from .imagenet import ImageNetClassifier
from .images import find_images, read_image
from .load import load_segmentor
from .polygons import coco_json, geojson, region_polygons
from .result import Area, MultilabelSegmentation, Segmentation
from .segmentor import Segmentor

__all__ = [
    "Area",
    "ImageInput",
    "ImageNetClassifier",
    "MultilabelSegmentation",
    "Segmentation",
    "Segmentor",
    "coco_json",
    "find_images",
    "geojson",
    "load_segmentor",
    "read_image",
    "region_polygons",
]
