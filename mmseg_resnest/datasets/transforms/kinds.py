# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What transforms do to pixels and labels, by class: which move pixels, and which are refused."""

from __future__ import annotations

import mmcv.transforms
import mmseg.datasets.transforms as stack

from .long_edge import RandomLongEdgeResize

#: Transforms that move pixels of ``img`` and of the label maps, and of nothing else in a sample.
MOVING: tuple[type, ...] = (
    stack.BioMedical3DPad,
    stack.BioMedical3DRandomCrop,
    stack.BioMedical3DRandomFlip,
    mmcv.transforms.CenterCrop,
    mmcv.transforms.Pad,
    mmcv.transforms.RandomChoiceResize,
    mmcv.transforms.RandomFlip,
    mmcv.transforms.RandomResize,
    mmcv.transforms.Resize,
    stack.RandomCrop,
    stack.RandomMosaic,
    stack.RandomRotate,
    stack.RandomRotFlip,
    stack.ResizeShortestEdge,
    stack.ResizeToMultiple,
    RandomLongEdgeResize,
)

#: Transforms of the stack that no config may name, and why; subclasses of them are others.
REFUSED: dict[type, str] = {
    stack.SegRescale: "makes label maps of another size than their images; remove it, as losses "
    "resize the scores to the labels",
    stack.RandomRotFlip: "interpolates labels, which makes classes of others; write "
    "mmseg_resnest.RandomRotFlip",
    mmcv.transforms.MultiScaleFlipAug: "returns samples that models of MMSegmentation do not take; "
    "use TestTimeAug",
    stack.BioMedical3DPad: "loses the labels, and pads one axis by another's size; write "
    "mmseg_resnest.BioMedical3DPad",
}
