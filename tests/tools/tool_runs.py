# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Runs the tools as processes of their own, without importing torch anew for each.

A helper process imports the package once and computes nothing; each run of a tool is a fork of
it, with its own arguments, folder, environment, exit code and signals.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / "tools"

_HELPER = """
import json, os, runpy, signal, sys
sys.path.insert(0, sys.argv[1])
import mmseg_resnest, mmseg_resnest.inference, matplotlib.figure, mmseg_resnest.engine.training
print("ready", flush=True)
for line in sys.stdin:
    job = json.loads(line)
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        # a shell's background jobs ignore Ctrl-C, and so would what they start
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(job["cwd"])
        os.environ.update(job["env"])
        for number, name in ((1, job["stdout"]), (2, job["stderr"])):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.argv = [job["tool"], *job["args"]]
        sys.path[0] = os.path.dirname(job["tool"])
        sys.path[1:1] = [p for p in [job["env"].get("PYTHONPATH")] if p]
        before = {}  # stays as long as the tool runs, and what was opened with it
        exec(job["before"], before)
        runpy.run_path(job["tool"], run_name="__main__")
        sys.exit(0)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@dataclass
class Run:
    """What a run of a tool left."""

    returncode: int
    stdout: str
    stderr: str

    def check(self) -> Run:
        """Fail the test unless the tool succeeded."""
        assert self.returncode == 0, self.stdout[-3000:] + self.stderr[-3000:]
        return self

    def error(self) -> str:
        """The one error of a tool that refused its input; anything else fails the test."""
        said = self.stdout[-2000:] + self.stderr[-4000:]
        assert self.returncode == 2, said
        assert "Traceback" not in self.stderr, said
        lines = [line for line in self.stderr.splitlines() if line.startswith("error")]
        assert len(lines) == 1, said
        return self.stderr[self.stderr.index("error") :]


RunTool = Callable[..., Run]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def tool_runner(root: Path = ROOT) -> Iterator[RunTool]:
    """Yields ``run_tool("train.py", *args, cwd=..., env={...})``, which returns a :class:`Run`.

    ``when(pid, stdout)`` is called every 0.1 s while it runs; ``before`` is Python that its process
    executes first. The package is that of ``root``.
    """
    helper = subprocess.Popen(
        [sys.executable, "-c", _HELPER, str(root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
    )
    assert helper.stdin is not None
    assert helper.stdout is not None
    for line in helper.stdout:
        if line == "ready\n":
            break

    def run(
        tool: str,
        *args: Any,
        cwd: Path,
        env: dict[str, str] | None = None,
        timeout: float = 400,
        when: Callable[[int, str], None] | None = None,
        before: str = "",
    ) -> Run:
        with tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder, "out"), Path(folder, "err")
            job = {
                "tool": str(TOOLS / tool),
                "args": [str(a) for a in args],
                "cwd": str(cwd),
                "env": env or {},
                "before": before,
                "stdout": str(out),
                "stderr": str(err),
            }
            helper.stdin.write(json.dumps(job) + "\n")
            helper.stdin.flush()
            pid = int(helper.stdout.readline())
            deadline = time.monotonic() + timeout
            while _alive(pid):
                if time.monotonic() > deadline:
                    os.killpg(pid, signal.SIGKILL)
                    helper.stdout.readline()
                    pytest.fail(f"{tool} ran longer than {timeout} s: {out.read_text()[-2000:]}")
                if when is not None and out.exists():
                    when(pid, out.read_text())
                time.sleep(0.1)
            code = int(helper.stdout.readline())
            return Run(code, out.read_text(), err.read_text())

    yield run
    helper.kill()  # it is between two runs, and has nothing to finish
    helper.wait()


TOY = """
default_scope = "mmseg_resnest"
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomCrop", crop_size=(64, 64)),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]
tta_pipeline = test_pipeline


def part(split, pipeline):
    return dict(
        type="ScenesDataset",
        data_root="{{$MMSEG_RESNEST_SCENES:scenes}}",
        data_prefix=dict(img_path=f"images/{split}", seg_map_path=f"annotations/{split}"),
        pipeline=pipeline,
    )


train_dataloader = dict(
    batch_size=4,
    num_workers=1,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=part("training", train_pipeline),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=part("validation", test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="SegmentationMetric")
test_evaluator = val_evaluator
norm_cfg = dict(type="SyncBN", requires_grad=True)
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(64, 64),
    ),
    backbone=dict(
        type="ResNetV1c",
        depth=18,
        base_channels=4,
        stem_channels=4,
        strides=(1, 2, 2, 2),
        dilations=(1, 1, 1, 1),
        norm_cfg=norm_cfg,
    ),
    decode_head=dict(
        type="FCNHead",
        in_channels=32,
        channels=8,
        num_convs=1,
        concat_input=False,
        num_classes=12,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", avg_non_ignore=True),
    ),
    test_cfg=dict(mode="whole"),
)
tta_model = dict(
    type="MultiScaleGridTTA", scales=(0.5, 1.0), flip=True, base_size=96, crop_size=64
)
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="SGD", lr=0.01, momentum=0.9))
auto_scale_lr = dict(enable=False, base_batch_size=4)
param_scheduler = [
    dict(type="PolyLR", power=0.9, eta_min=0.0, begin=0, end=7, by_epoch=False),
]
train_cfg = dict(type="IterBasedTrainLoop", max_iters=6, val_interval=3)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
default_hooks = dict(
    logger=dict(type="LoggerHook", interval=1, log_metric_by_epoch=False),
    checkpoint=dict(
        type="CheckpointHook",
        by_epoch=False,
        interval=3,
        max_keep_ckpts=2,
        save_best="mIoU",
        rule="greater",
    ),
)
log_processor = dict(by_epoch=False)
randomness = dict(seed=0)
"""


@dataclass(frozen=True)
class Toy:
    """A small data set and a config of a tiny model, in a folder to run tools in."""

    folder: Path
    config: Path
    scenes: Path

    def variant(self, name: str, text: str) -> Path:
        """A config that inherits from the toy one and adds ``text``."""
        path = self.folder / f"{name}.py"
        path.write_text(f'_base_ = "toy.py"\n{text}\n', encoding="utf-8")
        return path


def make_toy(folder: Path, scenes: Path) -> Toy:
    (folder / "scenes").symlink_to(scenes, target_is_directory=True)
    config = folder / "toy.py"
    config.write_text(TOY, encoding="utf-8")
    return Toy(folder, config, folder / "scenes")


@dataclass(frozen=True)
class Trained:
    """A finished run of the toy config."""

    toy: Toy
    run: Run
    work_dir: Path
    checkpoint: Path
