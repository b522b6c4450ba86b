# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What was scored as a ranking of images and regions, and as files for people to go through."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ...evaluation import write_result
from ...evaluation.label_page import region_card, write_page
from ...evaluation.label_quality import (
    LabelEvidence,
    WrongRegion,
    confident_thresholds,
    find_regions,
)
from ...io.image_files import unique_stems
from ...io.remove import remove_file
from ...io.up_to_date import Record, fingerprint
from ...version import __version__
from ..segmentor import Segmentor
from .samples import LabelledSample
from .scores import Scores
from .tasks import ImageTask, write_cvat, write_labelme

__all__ = ["LabelErrors", "Ranking"]

_MOST_REGIONS = 100  # of an image


@dataclass(frozen=True)
class LabelErrors:
    """What was found; this is also what ``label_errors.json`` holds.

    Attributes:
        images: Of each image, the one of the lowest score first, ``image`` and ``label`` (paths),
            ``score`` (soft minimum of the probabilities of its labels, 0..1; None without a
            labelled pixel), ``wrong_pixels``, ``labelled_pixels``, ``worst_region`` (the lowest
            score of its regions, or None) and ``fold`` (from 1, or None).
        regions: Of each region, the most likely wrong first, ``image``, ``label``, ``given`` and
            ``predicted`` (names of classes), ``area`` in pixels, ``box`` (x, y, width, height),
            ``score``, ``p_given`` and ``p_predicted``: see
            :class:`~mmseg_resnest.evaluation.label_quality.WrongRegion`. At most 100 an image.
        thresholds: For each class the mean probability of its own pixels, None without any.
        out: The folder with the files.
        scored: How many images were scored by this call; the scores of the others were there.
        written: Whether the files were written by this call; otherwise they were up to date.
    """

    images: list[dict[str, Any]]
    regions: list[dict[str, Any]]
    thresholds: dict[str, float | None]
    out: Path
    scored: int = 0
    written: bool = False


class Ranking:
    """The ranking of samples that were scored; one image is held at a time.

    Args:
        model: Which scored them.
        samples: The images.
        scores: Theirs.
        facts: How they were scored, plain data; ``min_area`` is that of regions.
        folds: The fold of each sample, from 0.
    """

    def __init__(
        self,
        model: Segmentor,
        samples: Sequence[LabelledSample],
        scores: Scores,
        facts: dict[str, Any],
        folds: Sequence[int] | None,
    ) -> None:
        self._model, self._samples, self._scores = model, samples, scores
        self._facts, self._folds = facts, folds
        classes = len(model.classes)
        confidence, pixels = np.zeros(classes), np.zeros(classes, np.int64)
        for evidence in scores:
            confidence += evidence.confidence
            pixels += evidence.pixels
        self._thresholds = confident_thresholds(confidence, pixels)

    def find(self, folder: Path) -> LabelErrors:
        """Rank them."""
        images: list[dict[str, Any]] = []
        regions: list[dict[str, Any]] = []
        names = self._model.classes
        for index, evidence in enumerate(self._scores):
            sample = self._samples[index]
            found, wrong = self._regions(evidence)
            files = {"image": sample.image, "label": sample.label}
            images.append(
                {
                    **files,
                    "score": None if math.isnan(evidence.quality) else evidence.quality,
                    "wrong_pixels": wrong,
                    "labelled_pixels": int(evidence.pixels.sum()),
                    "worst_region": found[0].score if found else None,
                    "fold": None if self._folds is None else self._folds[index] + 1,
                }
            )
            regions += [
                {
                    **files,
                    "given": names[region.given],
                    "predicted": names[region.predicted],
                    "area": region.area,
                    "box": list(region.box),
                    "score": region.score,
                    "p_given": region.p_given,
                    "p_predicted": region.p_predicted,
                }
                for region in found
            ]
        images.sort(key=lambda one: (one["score"] is None, one["score"], one["image"]))
        regions.sort(key=lambda one: (one["score"], one["image"], one["label"], one["box"]))
        limits = [None if math.isnan(limit) else float(limit) for limit in self._thresholds]
        return LabelErrors(images, regions, dict(zip(names, limits, strict=True)), folder)

    def _regions(self, evidence: LabelEvidence) -> tuple[list[WrongRegion], int]:
        found, wrong = find_regions(evidence, self._thresholds, self._facts["min_area"])
        return found[:_MOST_REGIONS], wrong

    def write(self, folder: Path, top: int) -> LabelErrors:
        """Rank them and write the files, unless they are up to date; ``top`` regions are drawn."""
        found = self.find(folder)
        record = Record(folder / "written.json", folder)
        made_from = sorted(self._scores.made_from.items())
        wanted = fingerprint(__version__, self._facts, top, made_from)
        if record.outputs and all(record.is_current(name, wanted) for name in record.outputs):
            return found
        shown = found.regions[:top]
        ranks: dict[tuple[str, str], list[int]] = {}
        for rank, region in enumerate(shown):
            ranks.setdefault((region["image"], region["label"]), []).append(rank)
        tasks: list[ImageTask] = []
        cards = dict(self._draw(found, ranks, tasks))
        files = [
            write_page(
                folder / "label_errors.html", [cards[rank] for rank in sorted(cards)], found.images,
                len(found.regions), self._facts,
            ),
            *write_cvat(folder, tasks, self._model.classes, self._model.palette),
            *write_labelme(folder / "labelme", tasks, self._model.classes),
        ]  # fmt: skip
        result = {**self._facts, "version": __version__, "thresholds": found.thresholds}
        result |= {"images": found.images, "regions": found.regions}
        write_result(result, folder / "label_errors.json")
        names = [file.relative_to(folder).as_posix() for file in files] + ["label_errors.json"]
        for old in set(record.outputs) - set(names):
            if Path(old).parts[0] == "labelme" and ".." not in Path(old).parts:
                remove_file(folder / old)
            del record.outputs[old]
        for name in names:
            record.note(name, wanted, "")
        record.save()
        return replace(found, written=True)

    def _draw(
        self, found: LabelErrors, ranks: dict[tuple[str, str], list[int]], tasks: list[ImageTask]
    ) -> Iterator[tuple[int, str]]:
        """The rank and the card of each region that is shown; fills in ``tasks``."""
        stems = unique_stems([image for image, _ in ranks])
        by_image: dict[str, ImageTask] = {}
        for index, sample in enumerate(
            tqdm(self._samples, "drawing", disable=None, leave=False, dynamic_ncols=True)
        ):
            mine = ranks.get((sample.image, sample.label))
            if mine is None:
                continue
            evidence = LabelEvidence.load(self._scores.files[index])
            # Those of an image are in the same order in both rankings.
            regions = self._regions(evidence)[0][: len(mine)]
            task = by_image.setdefault(
                sample.image, ImageTask(sample.image, stems[sample.image], evidence.size, [])
            )
            task.regions.extend(regions)
            picture = self._model.reader.load_sample(sample.info).picture
            labels = sample.read_labels(len(self._model.classes), self._scores.ignore_index)
            ignored = (labels >= len(self._model.classes)) | (labels == self._scores.ignore_index)
            given = np.where(ignored, -1, labels.astype(np.int64))
            predicted = given.copy()
            predicted.reshape(-1)[evidence.positions()] = evidence.predicted
            for rank, region in zip(mine, regions, strict=True):
                facts = found.regions[rank]
                palette = self._model.palette
                yield rank, region_card(rank, facts, region, picture, given, predicted, palette)
        tasks.extend(sorted(by_image.values(), key=lambda task: task.stem))
