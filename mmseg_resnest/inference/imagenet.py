# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What the published ImageNet classifiers say of an image."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from ..datasets.imagenet import normalised
from ..datasets.reader import ImageInput
from ..engine.imagenet import check_classifier, crop_of, load_classifier
from ..engine.preflight import check_device
from ..weights import find
from .images import read_image

__all__ = ["ImageNetClassifier"]


class ImageNetClassifier:
    """A published ImageNet classifier: ``model(image)`` returns logits.

    The names of the 1,000 classes are not in this package; numbers are their places in the sorted
    list of WNIDs, as everywhere.

    Args:
        name: Of the catalogue: ``resnest50``, ``gluoncv/resnest269``, ``timm/resnest14d``, ...
        device: E.g. ``cpu`` or ``cuda:1``; None is the GPU if there is one.

    Raises:
        UserError: There is no such name, device or file, or it is no ResNeSt for ImageNet.
    """

    def __init__(self, name: str, device: str | torch.device | None = None) -> None:
        entry = find(name)
        check_classifier(entry)
        self.device = check_device(device)
        self.network = load_classifier(entry, self.device)
        self._crop = crop_of(entry)

    def __call__(self, image: ImageInput) -> Tensor:
        """Logits (1000,), float32 on the CPU, of the published crop of one image.

        Raises:
            UserError: It cannot be read or decoded.
        """
        pixels = normalised(self._crop(Image.fromarray(read_image(image)[0])))
        with torch.no_grad():
            scores: Tensor = self.network(pixels[None].to(self.device))[0]
        return scores.cpu()

    def top(self, image: ImageInput, number: int = 5) -> list[tuple[int, float]]:
        """The likeliest classes of an image: (class, probability), the first one first."""
        found = self(image).softmax(0).topk(number)
        return list(zip(found.indices.tolist(), found.values.tolist(), strict=True))
