# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Keeps example images of an evaluation for the report of the run."""

from __future__ import annotations

import heapq
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from mmengine.dist import all_gather_object, barrier, get_rank, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ...datasets.reader import ImageReader
from ...errors import UserError
from ...evaluation import (
    EXAMPLES_FILE,
    confusion_matrix,
    default_palette,
    palette_image,
    write_result,
)
from ...evaluation.evaluator import ignored_label
from ...evaluation.uncertainty import uncertainty_image, uncertainty_of
from ...io.bit_planes import pack, sets_of
from ...io.image_files import save_image
from ...io.memory import ran_out_of_memory
from ...io.remove import remove_file
from ...models import EncoderDecoder, overlaps, probabilities
from ...registry import HOOKS
from ..checkpoint import bare_model

# What an evaluation writes into its folder; other files there stay.
_OWN = re.compile(rf"[0-9]{{5,}}(\.jpg|_(label|pred|uncertainty)\.png)|{EXAMPLES_FILE}")

_UNSURE = ("worst", "random")  # kinds of images whose uncertainty is kept
_MOST_SCORES = 1 << 28  # of an image, or its uncertainty is left out
_EACH = 6  # images of each kind
_PAIRS = 24  # the confusions (label, prediction) with most pixels that get images
_EDGE = 480  # longest edge of the pictures, in pixels
_IGNORED = 255
_MOST_OVERLAPPING = 7  # classes: their bits are indices of a palette


@HOOKS.register_module()
class ExamplesHook(Hook):
    """Writes the best, the worst and some random images of a test, and images of confusions.

    ``folder/examples.json`` lists them with their scores; ``NUMBER.jpg``, ``NUMBER_label.png``
    and ``NUMBER_pred.png`` are image, label and prediction, reduced in size; after
    :meth:`write_uncertainty` ``NUMBER_uncertainty.png`` is that of some. Those of an earlier
    evaluation are replaced. Of classes that may overlap, up to 7, each set is shown as a class.
    """

    priority = "LOW"

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def before_test_epoch(self, runner: Runner) -> None:
        """Remove the files of an earlier evaluation."""
        if is_main_process():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._remove(lambda path: True)
        barrier()
        dataset = runner.test_dataloader.dataset
        self._classes = list(dataset.metainfo.get("classes") or [])
        palette = dataset.metainfo.get("palette") or []
        if len(palette) != len(self._classes):
            palette = default_palette(len(self._classes))
        self._palette = [list(map(int, colour)) for colour in palette]
        self._overlap = overlaps(runner.model)
        self._ignored = ignored_label(getattr(runner, "test_evaluator", None))
        if self._overlap and len(self._classes) > _MOST_OVERLAPPING:
            reason = f"the report shows sets of at most {_MOST_OVERLAPPING} classes that overlap"
            runner.logger.warning("no example images: %s", reason)
            self._classes, self._palette = [], []
        elif self._overlap:  # a palette index for each set
            sets = range(1 << len(self._classes))
            self._classes, self._palette = sets_of(sets, self._classes, self._palette)
        chosen = np.random.default_rng(0).permutation(len(dataset))[:_EACH]
        self._random = {dataset.get_data_info(int(i))["img_path"] for i in chosen}
        self._picture = ImageReader.pictures(dataset)
        self._best: list[float] = []
        self._worst: list[float] = []
        self._records: dict[tuple[int, int], int] = {}
        self._seen: dict[str, dict[str, Any]] = {}
        self._kept: list[dict[str, Any]] = []

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Write the images of a batch that are examples so far."""
        if not 0 < len(self._classes) <= 255:  # what a palette image can show
            return
        for sample in outputs or []:
            path = sample.get("img_path")  # PackSegInputs may leave it out
            if path is None or "gt_sem_seg" not in sample or path in self._seen:
                continue
            label, pred = sample.gt_sem_seg.data, sample.pred_sem_seg.data
            label = label.masked_fill(label == self._ignored, _IGNORED)
            score = None
            if self._overlap:
                score = _mean_iou(pred.cpu(), label.cpu())
                label, pred = (torch.from_numpy(pack(x.cpu().numpy()))[None] for x in (label, pred))
            label, pred = label[0], pred[0]
            matrix = confusion_matrix(pred, label, len(self._classes), _IGNORED)
            counts = matrix.cpu().numpy()
            if not counts.sum():
                continue
            entry = _entry(path, counts)
            if score is not None:
                entry["mIoU"] = score
            if self._is_example(entry):
                entry["file"] = f"{len(self._seen) * get_world_size() + get_rank():05d}"
                try:
                    self._write(entry, label.cpu().numpy(), pred.cpu().numpy())
                except UserError as error:  # not a reason to end an evaluation
                    runner.logger.warning("no example image: %s", error)
                    continue
                self._seen[path] = entry

    def _is_example(self, entry: dict[str, Any]) -> bool:
        """Whether an image is among the best or worst so far, random, or shows a confusion most."""
        example = entry["path"] in self._random
        for heap, score in ((self._best, entry["mIoU"]), (self._worst, -entry["mIoU"])):
            if len(heap) < _EACH:
                heapq.heappush(heap, score)
                example = True
            elif score > heap[0]:
                heapq.heapreplace(heap, score)
                example = True
        for i, j, count in entry["pairs"]:
            if count > self._records.get((i, j), 0):
                self._records[i, j] = count
                example = True
        return example

    def _write(self, entry: dict[str, Any], label: np.ndarray, pred: np.ndarray) -> None:
        height, width = label.shape
        scale = min(1.0, _EDGE / max(height, width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        pixels = Image.fromarray(self._picture(entry["path"]))
        picture = pixels.resize(size, Image.Resampling.LANCZOS)
        save_image(picture, self.folder / f"{entry['file']}.jpg")
        for name, values in (("label", label), ("pred", pred)):
            small = palette_image(values, self._palette).resize(size, Image.Resampling.NEAREST)
            save_image(small, self.folder / f"{entry['file']}_{name}.png")

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Choose among what every process wrote, and remove the rest."""
        seen = [e for some in all_gather_object([*self._seen.values()]) for e in some]
        if not is_main_process():
            return
        ranked = sorted(seen, key=lambda e: -e["mIoU"])
        most: dict[tuple[int, int], tuple[int, dict[str, Any]]] = {}
        for entry in seen:
            for i, j, count in entry["pairs"]:
                if count > most.get((i, j), (0, {}))[0]:
                    most[i, j] = (count, entry)
        confusions = sorted(most.values(), key=lambda m: -m[0])[:_PAIRS]
        chosen = {
            "best": ranked[:_EACH],
            "worst": ranked[::-1][:_EACH],
            "random": [entry for entry in seen if entry["path"] in self._random],
            "confusion": [entry for _, entry in confusions],
        }
        kinds: dict[str, list[str]] = {}
        for kind, entries in chosen.items():
            for entry in entries:
                kinds.setdefault(entry["file"], []).append(kind)
        self._remove(lambda path: path.stem.split("_")[0] not in kinds)
        self._kept = [
            entry | {"kinds": kinds[entry["file"]]} for entry in ranked if entry["file"] in kinds
        ]
        images = [{k: v for k, v in entry.items() if k != "path"} for entry in self._kept]
        result = {"classes": self._classes, "palette": self._palette, "images": images}
        write_result(result, self.folder / EXAMPLES_FILE)

    def write_uncertainty(self, runner: Runner) -> None:
        """Write ``NUMBER_uncertainty.png`` of the worst and the random images, reduced in size.

        Grey, as :func:`~mmseg_resnest.evaluation.uncertainty.uncertainty_image` makes it. An
        evaluation predicts labels without their scores, so each of these images is predicted once
        more. Nothing is written for a model of another class, or where memory does not suffice.
        """
        model: Any = bare_model(runner.model)
        dataset: Any = runner.test_dataloader.dataset
        entries = [one for one in self._kept if set(_UNSURE) & set(one["kinds"])]
        if not isinstance(model, EncoderDecoder) or not entries:
            return
        places = {dataset.get_data_info(i)["img_path"]: i for i in range(len(dataset))}
        keep = model.test_cfg.get("keep_scores", True)
        model.test_cfg.keep_scores = True
        try:
            for entry in tqdm(entries, "uncertainty", disable=None, leave=False):
                with Image.open(self.folder / f"{entry['file']}.jpg") as picture:
                    size = picture.size
                data = pseudo_collate([dataset[places[entry["path"]]]])
                height, width = data["data_samples"][0].ori_shape[:2]
                if height * width * model.out_channels > _MOST_SCORES:
                    continue
                with torch.no_grad():
                    (sample,) = model.test_step(data)
                scores = probabilities(model, sample.seg_logits.data).cpu().numpy()
                grey = uncertainty_image(uncertainty_of(scores, overlap=self._overlap))
                small = grey.resize(size, Image.Resampling.BILINEAR)
                save_image(small, self.folder / f"{entry['file']}_uncertainty.png")
        except Exception as error:  # not a reason to end an evaluation
            if not (isinstance(error, UserError) or ran_out_of_memory(error)):
                raise
            runner.logger.warning("no uncertainty of the example images: %s", error)
        finally:
            model.test_cfg.keep_scores = keep

    def _remove(self, unwanted: Any) -> None:
        for path in self.folder.iterdir():
            if _OWN.fullmatch(path.name) and unwanted(path):
                remove_file(path)


def _mean_iou(pred: Tensor, label: Tensor) -> float:
    """The mean IoU of masks (C, H, W) in percent, over classes that occur; 100 without any."""
    valid = label != _IGNORED
    guess, truth = (pred == 1) & valid, label == 1
    both, union = (guess & truth).sum((1, 2)), (guess | truth).sum((1, 2))
    present = union > 0
    return 100 * float((both[present] / union[present]).mean()) if present.any() else 100.0


def _entry(path: str, counts: np.ndarray) -> dict[str, Any]:
    """Scores of an image in percent, and its five largest confusions, from its matrix."""
    both = counts.diagonal()
    union = counts.sum(0) + counts.sum(1) - both
    present = union > 0
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    top = np.argsort(-wrong, axis=None)[:5]
    return {
        "path": path,
        "name": os.path.basename(path),
        "mIoU": 100 * float((both[present] / union[present]).mean()),
        "pixAcc": 100 * float(both.sum() / counts.sum()),
        "pairs": [(*divmod(int(k), len(counts)), int(wrong.flat[k])) for k in top if wrong.flat[k]],
    }
