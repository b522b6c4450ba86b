# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""From the command to the end of the first iteration of training, on 20,000 images.

The same small model (FCN on ResNet-18, crops of 64, batch 2, two workers) and data set in ADE20K's
layout. MMSegmentation's variant does what its tools/train.py does; this package's is its
tools/train.py, which checks the data and the model first. Each turn is a new process, ended after
the first iteration; Python keeps compiled modules. "Imports alone" imports torch and the stack's
runner, models, data sets and metrics, the least that the stack needs; "import torch" is the least
that anything needs. The loss of the first iteration is compared. Memory is what the process and its
two workers hold after it, pages that several share counted once.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import ROOT, Comparison
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from PIL import Image

IMAGES = 20_000
DONE = re.compile(r"first iteration done, loss (\S+)")
CONFIG = """
custom_imports = dict(imports=["start_up"])
custom_hooks = [dict(type="EndAfterFirstIteration")]
default_scope = "{scope}"
norm_cfg = dict(type="BN")
crop_size = (64, 64)
model = dict(
    type="{scope}.EncoderDecoder",
    data_preprocessor=dict(
        type="mmseg.SegDataPreProcessor", mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375], bgr_to_rgb=True, pad_val=0, seg_pad_val=255, size=crop_size),
    backbone=dict(type="mmseg.ResNetV1c", depth=18, norm_cfg=norm_cfg),
    decode_head=dict(
        type="mmseg.FCNHead", in_channels=512, in_index=3, channels=32, num_convs=1,
        concat_input=False, num_classes=150, norm_cfg=norm_cfg, align_corners=False,
        loss_decode=dict(type="mmseg.CrossEntropyLoss")),
    test_cfg=dict(mode="whole"))
train_dataloader = dict(
    batch_size=2, num_workers=2, persistent_workers=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        type="mmseg.ADE20KDataset", data_root="{root}",
        data_prefix=dict(img_path="images", seg_map_path="annotations"),
        pipeline=[
            dict(type="LoadImageFromFile"), dict(type="LoadAnnotations"),
            dict(type="RandomCrop", crop_size=crop_size), dict(type="PackSegInputs")]))
train_cfg = dict(type="IterBasedTrainLoop", max_iters=10, val_interval=100)
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="SGD", lr=0.01))
param_scheduler = []
default_hooks = dict(checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=100))
log_processor = dict(by_epoch=False)
env_cfg = dict(mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0))
randomness = dict(seed=0)
work_dir = "{work_dir}"
"""
STACK = """
import sys
from mmengine.config import Config
from mmengine.runner import Runner
Runner.from_cfg(Config.fromfile(sys.argv[1])).train()
"""
IMPORTS = "import mmengine.runner, mmseg.models, mmseg.datasets, mmseg.evaluation"


@HOOKS.register_module(force=True)
class EndAfterFirstIteration(Hook):
    """Prints a line with the loss after the first iteration; whoever reads it ends the process."""

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Prints the line."""
        print(f"first iteration done, loss {float(outputs['loss']):.8f}", flush=True)


def _data(folder: Path) -> None:
    """One image and one label map under 20,000 names each."""
    rng = np.random.default_rng(0)
    for part, suffix, shape in (
        ("images", ".jpg", (96, 128, 3)),
        ("annotations", ".png", (96, 128)),
    ):
        (folder / part).mkdir()
        first = folder / part / f"0{suffix}"
        # Labels as ADE20K's, 0 to 150: without the last, the check before training doubts
        # reduce_zero_label and reads five times as many files.
        Image.fromarray(rng.integers(0, 151, shape, dtype=np.uint8)).save(first)
        for i in range(1, IMAGES):
            os.link(first, folder / part / f"{i}{suffix}")


class _Command:
    """A process that is ended when it has said that it is there."""

    def __init__(self, command: list[str]) -> None:
        self.command = [sys.executable, "-W", "ignore", *command]
        self.holder = tempfile.TemporaryDirectory()  # kept as long as this
        self.folder = Path(self.holder.name)

    def __call__(self) -> None:
        self._run(lambda pid: None)

    def measured(self) -> tuple[torch.Tensor | None, int | None]:
        """The loss that it told, if any, and its memory in bytes."""
        found: list[int | None] = []
        loss = self._run(lambda pid: found.append(_resident(pid)))
        return (None if loss is None else torch.tensor([loss])), found[0]

    def _run(self, there: Callable[[int], None]) -> float | None:
        shutil.rmtree(self.folder / "work", ignore_errors=True)
        # Where this is set, only the checkout would be compiled again in every process.
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        process = subprocess.Popen(
            self.command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.folder,
            env={**environment, "PYTHONPATH": os.pathsep.join(paths)},
            start_new_session=True,
        )
        assert process.stdout is not None
        lines = []
        done = None
        for line in process.stdout:
            lines.append(line)
            done = DONE.search(line)
            if done:
                there(process.pid)
                break
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if not done:
            raise RuntimeError("".join(lines[-5:]) or "no word from the process")
        return None if done[1] == "none" else float(done[1])


def _resident(pid: int) -> int | None:
    """Bytes that a process and its children hold, what n processes share counted 1/n of."""
    total = 0
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for one in [str(pid), *children]:
            rollup = Path(f"/proc/{one}/smaps_rollup").read_text()
            total += 1024 * int(re.search(r"^Pss: +(\d+) kB", rollup, re.M)[1])
    except OSError:
        return None
    return total


def _only(code: str) -> _Command:
    # It waits to be ended, as a run does.
    wait = "print('first iteration done, loss none', flush=True); time.sleep(60)"
    return _Command(["-c", f"import time; {code}; {wait}"])


def _training(ours: bool) -> _Command:
    work = _Command([str(ROOT / "tools" / "train.py")] if ours else ["-c", STACK])
    _data(work.folder)
    scope = "mmseg_resnest" if ours else "mmseg"
    config = work.folder / "config.py"
    config.write_text(
        CONFIG.format(
            scope=scope, root=work.folder.as_posix(), work_dir=(work.folder / "work").as_posix()
        ),
        encoding="utf-8",
    )
    work.command.append(str(config))
    return work


def _agree(expected: torch.Tensor, loss: torch.Tensor) -> float:
    return float(torch.isclose(expected, loss, rtol=1e-4).float().mean())


COMPARISON = Comparison(
    title="Start-up to the first iteration",
    reference="MMSegmentation",
    cases={"20,000 images": "one image and one label map under 20,000 names"},
    variants={
        "MMSegmentation": lambda case: _training(False),
        "mmseg-resnest": lambda case: _training(True),
        "imports alone": lambda case: _only(IMPORTS),
        "import torch": lambda case: _only("import torch"),
    },
    agree=_agree,
    least={"mmseg-resnest": 2.0},
    repeats=5,
    note=(__doc__ or "").split("\n\n", 1)[1].replace("\n", " ").strip(),
)
