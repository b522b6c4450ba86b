# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What is written and shown while a model is tested."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dist import barrier, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ...datasets.reader import ImageReader
from ...errors import UserError
from ...evaluation import Submission, palette_image, side_by_side
from ...evaluation.evaluator import ignored_label
from ...io.bit_planes import index_sets, pack, to_file
from ...io.image_files import save_image, unique_stems
from ...models import overlaps
from ...registry import HOOKS
from .console import SECONDS_BETWEEN_LINES, duration, progress_bar


@HOOKS.register_module()
class SavePredictionsHook(Hook):
    """Writes what a model predicts while it is tested.

    Args:
        out_dir: For label maps: palette PNGs whose pixels are class indices, or grey PNGs of bit
            planes where classes may overlap, named and nested as the images are.
        show_dir: For pictures of image, label and prediction side by side.
        submission: Write into ``out_dir`` what this server takes (``cityscapes``, ``ade20k``,
            ``voc``), check it at the end and pack it into ``out_dir.zip``.

    Raises:
        UserError: Both folders are one, in which outputs of an image have one name.
    """

    def __init__(
        self, out_dir: str | None = None, show_dir: str | None = None, submission: str | None = None
    ) -> None:
        self.format = submission
        self.submission: Submission | None = None
        self.archive: Path | None = None
        self.out_dir = None if out_dir is None else Path(out_dir)
        self.show_dir = None if show_dir is None else Path(show_dir)
        if out_dir and show_dir and os.path.realpath(out_dir) == os.path.realpath(show_dir):
            said = "is also the folder of --out, and both write NAME.png; name another folder"
            raise UserError("argument", f"--show-dir {show_dir}", said)
        self.written = 0

    def before_test_epoch(self, runner: Runner) -> None:
        """Choose a unique name for the outputs of every image; UserError: one is of the data."""
        dataset = runner.test_dataloader.dataset
        infos = [dataset.get_data_info(i) for i in range(len(dataset))]
        paths = [info["img_path"] for info in infos]
        self._stems = unique_stems(paths)
        files = [info.get(key) for info in infos for key in ("img_path", "seg_map_path")]
        data = {os.path.realpath(file) for file in files if isinstance(file, str)}
        for option, folder in (("--out", self.out_dir), ("--show-dir", self.show_dir)):
            for file in self._files(folder):
                if os.path.realpath(file) in data:
                    said = f"would replace {file}, a file of the data set; name another folder"
                    raise UserError("output-exists", f"{option} {folder}", said)
        self._picture = ImageReader.pictures(dataset)
        self._overlap = overlaps(runner.model)
        self._ignored = ignored_label(getattr(runner, "test_evaluator", None))
        self._classes = list(dataset.metainfo["classes"])
        self._palette = [list(map(int, colour)) for colour in dataset.metainfo["palette"]]
        if self.format is not None:
            self.submission = Submission(self.format, paths, len(self._classes))

    def _files(self, folder: Path | None) -> list[Path]:
        return [] if folder is None else [folder / f"{name}.png" for name in self._stems.values()]

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Write the images of a batch."""
        for sample in outputs or []:
            path = sample.get("img_path")
            if path is None:
                said = (
                    "its samples have no img_path, by which outputs are named; keep it among the "
                )
                said += "meta_keys of PackSegInputs"
                raise UserError("config-value", "config key test_dataloader.dataset.pipeline", said)
            stem = self._stems[path]
            labels = self._labels(sample.pred_sem_seg.data)
            if self.out_dir is not None and self.submission is not None:
                converted = self.submission.picture(labels)
                save_image(converted, self.out_dir / self.submission.files[path])
            elif self.out_dir is not None:
                file = self.out_dir / f"{stem}.png"
                if self._overlap:
                    save_image(Image.fromarray(to_file(labels, len(self._classes))), file)
                else:
                    save_image(palette_image(labels, self._palette), file)
            if self.show_dir is not None:
                truth = None
                if "gt_sem_seg" in sample:
                    data = sample.gt_sem_seg.data
                    truth = self._labels(data.masked_fill(data == self._ignored, 255))
                save_image(self._panel(path, truth, labels), self.show_dir / f"{stem}.png")
            self.written += 1

    def _labels(self, found: Tensor) -> NDArray[np.integer]:
        """(H, W) class indices, or bits of classes that may overlap, of a sample's data."""
        data = found.cpu().numpy()
        return pack(data) if self._overlap else data[0].astype(np.uint8)

    def _panel(
        self, path: str, truth: NDArray | None, labels: NDArray[np.integer]
    ) -> NDArray[np.uint8]:
        maps, classes, palette = [labels, truth], self._classes, self._palette
        if self._overlap:
            both = [one for one in maps if one is not None]
            found, classes, palette = index_sets(both, classes, palette)
            maps = [*found, None]
        return side_by_side(self._picture(path), maps[1], maps[0], palette, classes)  # type: ignore[arg-type]

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Check the submission and pack it."""
        if self.submission is None or self.out_dir is None:
            return
        barrier()  # until every process has written its share
        if is_main_process():
            self.submission.check(self.out_dir)
            # Beside the folder: absolute() gives "." a name.
            folder = self.out_dir.absolute()
            self.archive = self.submission.pack(folder, folder.with_name(f"{folder.name}.zip"))


@HOOKS.register_module()
class TestProgressHook(Hook):
    """A progress bar over the images that a model is tested on.

    It knows the paths of the images that are predicted and scored at the moment, the batch that the
    model is given, and how many batches are done.
    """

    __test__ = False  # pytest: not a test

    current: Sequence[str] = ()
    batch: Any = None
    batches = 0

    def before_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Note the images of a batch."""
        samples = (data_batch or {}).get("data_samples") or []
        views = [one[0] if isinstance(one, list) else one for one in samples]  # as augmented
        self.current = [str(view.img_path) for view in views if "img_path" in view]
        self.batch, self.batches = data_batch, batch_idx

    def before_test_epoch(self, runner: Runner) -> None:
        """Show the bar."""
        self._bar = progress_bar(len(runner.test_dataloader.dataset), 0, "images")
        self._on = is_main_process()
        self._start = self._last = time.monotonic()

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Advance the bar; without a terminal print a line a minute."""
        self.current, self.batch = (), None
        total = len(runner.test_dataloader.dataset)
        step = len(outputs or []) * runner.world_size
        self._bar.update(min(step, total - self._bar.n))
        now = time.monotonic()
        if self._on and self._bar.disable and now - self._last > SECONDS_BETWEEN_LINES:
            batches = len(runner.test_dataloader)
            left = (now - self._start) / (batch_idx + 1) * (batches - batch_idx - 1)
            print(f"batch {batch_idx + 1}/{batches}, {duration(left)} left", flush=True)
            self._last = now

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Close the bar."""
        self._bar.close()
