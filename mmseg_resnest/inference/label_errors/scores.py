# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What is kept of the scores of each image, in a file each, to go on from."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from ...errors import UserError
from ...evaluation.label_quality import LabelEvidence, gather
from ...io.up_to_date import Journal, fingerprint
from ..segmentor import FOLD_FROM, Segmentor
from .samples import LabelledSample

__all__ = ["Scores"]


class Scores:
    """The evidence of each sample, in files of a folder.

    Attributes:
        files: One for each sample.
        ignore_index: The label that is left out.
        made_from: Fingerprints of the models, images and labels that they are of, by sample.
    """

    def __init__(self, folder: Path, samples: Sequence[LabelledSample], ignore_index: int) -> None:
        folder.mkdir(exist_ok=True)
        self._samples, self.ignore_index = samples, ignore_index
        self._journal = Journal(folder / "scores.jsonl")
        self.files = [folder / f"{index:06d}.npz" for index in range(len(samples))]
        self.made_from: dict[int, str] = {}

    def add(self, model: Segmentor, chosen: Sequence[int], bar: tqdm) -> int:
        """Score those of some samples that are not scored yet; returns how many.

        Raises:
            UserError: An image or a label map cannot be read, or they have different sizes.
        """
        done = 0
        same = model.fingerprint  # of the weights as they were loaded
        if len(chosen) >= FOLD_FROM:
            model.fold()
        for index in chosen:
            sample, file = self._samples[index], self.files[index]
            sources = [Path(p) if os.path.exists(p) else p for p in (sample.image, sample.label)]
            self.made_from[index] = made_from = fingerprint(*sources, same, self.ignore_index)
            if not self._journal.has({file: made_from}):
                self._score(model, sample).save(file)
                self._journal.add({file: made_from}, image=sample.image)
                done += 1
            bar.update()
        return done

    def _score(self, model: Segmentor, sample: LabelledSample) -> LabelEvidence:
        classes = len(model.classes)
        labels = sample.read_labels(classes, self.ignore_index)
        image = model.reader.load_sample(sample.info)
        if labels.shape != image.size:
            sizes = f"is {labels.shape}, its image {image.size} (height, width)"
            raise UserError("size-mismatch", sample.label, sizes)
        return gather(labels, model.score_bands(image), classes, self.ignore_index)

    def __iter__(self) -> Iterator[LabelEvidence]:
        return map(LabelEvidence.load, self.files)
