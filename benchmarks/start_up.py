# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""From the command to the end of the first iteration of training, on 20,000 images.

The same small model (FCN on ResNet-18, crops of 64, batch 2, two workers) and data set in ADE20K's
layout in both ways. The stack's way is what its tools/train.py does, this package's is
tools/train.py, which looks through the data and tries the model first. Each turn is a new process;
it is ended after the first iteration. Python may keep what it compiles: an installed package, as
the stack's are, comes compiled. "Imports alone" is a process that imports torch, the stack's
runner, models, data sets and metrics, and ends: the stack's way cannot be quicker. "import torch"
is a process that does that: nothing can be quicker.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from harness import ROOT, Comparison, Work
from PIL import Image

IMAGES = 20_000
DONE = "first iteration done"
CONFIG = """
custom_imports = dict(imports=["start_up_hook"])
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
work_dir = "{work_dir}"
"""
STACK = """
import sys
from mmengine.config import Config
from mmengine.runner import Runner
Runner.from_cfg(Config.fromfile(sys.argv[1])).train()
"""
IMPORTS = "import mmengine.runner, mmseg.models, mmseg.datasets, mmseg.evaluation"


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


def _only(code: str) -> Work:
    command = [sys.executable, "-W", "ignore", "-c", code]

    def work() -> None:
        subprocess.run(command, capture_output=True, check=True)

    return work


def _work(ours: bool) -> Work:
    holder = tempfile.TemporaryDirectory()
    folder = Path(holder.name)
    _data(folder)
    config, work_dir = folder / "config.py", folder / "work"
    scope = "mmseg_resnest" if ours else "mmseg"
    text = CONFIG.format(scope=scope, root=folder.as_posix(), work_dir=work_dir.as_posix())
    config.write_text(text, encoding="utf-8")
    command = [sys.executable, "-W", "ignore"]
    command += [str(ROOT / "tools" / "train.py")] if ours else ["-c", STACK]
    # Where this is set, only the checkout would be compiled again in every process.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]

    def work() -> None:
        shutil.rmtree(work_dir, ignore_errors=True)
        process = subprocess.Popen(
            [*command, str(config)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=holder.name,
            env={**environment, "PYTHONPATH": os.pathsep.join(paths)},
            start_new_session=True,
        )
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if DONE in line:
                break
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if not lines or DONE not in lines[-1]:
            raise RuntimeError("".join(lines[-5:]) or "no word from the run")

    return work


COMPARISON = Comparison(
    title="Start-up to the first iteration",
    reference="MMSegmentation",
    cases={"20,000 images": "one image and one label map under 20,000 names"},
    ways={
        "MMSegmentation": lambda case: _work(False),
        "mmseg-resnest": lambda case: _work(True),
        "imports alone": lambda case: _only(IMPORTS),
        "import torch": lambda case: _only("import torch"),
    },
    least={"mmseg-resnest": 2.0},
    repeats=5,
    note=(__doc__ or "").split("\n\n", 1)[1].replace("\n", " ").strip(),
)
