# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Runs the tools as processes of their own, without importing torch anew for each.

A helper process imports the package once and computes nothing; each run of a tool is a fork of
it, with its own arguments, folder, environment, exit code and signals.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / "tools"

_HELPER = """
import gc, json, os, runpy, signal, sys
sys.path.insert(0, sys.argv[1])
import mmseg_resnest, mmseg_resnest.inference, matplotlib.figure, mmseg_resnest.engine.training
import matplotlib.backends.backend_agg, setuptools, torch._dynamo, yapf
gc.collect()
gc.freeze()
print("ready", flush=True)
for line in sys.stdin:
    job = json.loads(line)
    pids = []
    for env, stdout, stderr in job["processes"]:
        pid = os.fork()
        if pid == 0:
            os.setpgid(0, 0)
            # a shell's background jobs ignore Ctrl-C, and so would what they start
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.chdir(job["cwd"])
            os.environ.update(env)
            for number, name in ((1, stdout), (2, stderr)):
                os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            sys.argv = [job["tool"], *job["args"]]
            sys.path[0] = os.path.dirname(job["tool"])
            sys.path[1:1] = [p for p in [env.get("PYTHONPATH")] if p]
            before = {}  # stays as long as the tool runs, and what was opened with it
            exec(job["before"], before)
            runpy.run_path(job["tool"], run_name="__main__")
            sys.exit(0)
        pids.append(pid)
    print(json.dumps(pids), flush=True)
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]) for p in pids]), flush=True)
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


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _ranks(world: int) -> list[dict[str, str]]:
    """What a launcher tells each of its processes on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    return [
        dict(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world),
            LOCAL_WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=port,
            OMP_NUM_THREADS="1",
        )
        for rank in range(world)
    ]  # fmt: skip


class RunTool:
    """Runs tools; the package is that of ``root``."""

    def __init__(self, root: Path = ROOT) -> None:
        self._helper = subprocess.Popen(
            [sys.executable, "-c", _HELPER, str(root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={"OMP_NUM_THREADS": "2", **os.environ},  # 1 beside other workers: conftest.py
        )
        assert self._helper.stdin is not None
        assert self._helper.stdout is not None
        while self._helper.stdout.readline() != "ready\n":
            assert self._helper.poll() is None

    def __call__(self, tool: str, *args: Any, **options: Any) -> Run:
        """One process of a tool, ``run_tool("train.py", *args, cwd=..., env={...})``.

        ``when(pid, said)`` is called every 0.1 s while it runs, with all its output; ``before`` is
        Python that its process executes first; after ``timeout`` seconds the test fails.
        """
        return self._run(tool, args, [{}], **options)[0]

    def ranks(self, world: int, tool: str, *args: Any, **options: Any) -> list[Run]:
        """Several processes of one run; ``when`` has the last one and what the first said."""
        if world > 1:
            args = (*args, "--launcher", "pytorch")
        return self._run(tool, args, _ranks(world), **options)

    def _run(
        self,
        tool: str,
        args: tuple[Any, ...],
        ranks: list[dict[str, str]],
        *,
        cwd: Path,
        env: dict[str, str] | None = None,
        timeout: float = 400,
        when: Callable[[int, str], None] | None = None,
        before: str = "",
    ) -> list[Run]:
        with tempfile.TemporaryDirectory() as folder:
            files = [
                (Path(folder, f"{n}.out"), Path(folder, f"{n}.err")) for n in range(len(ranks))
            ]
            processes = [
                ({**(env or {}), **rank}, *map(str, pair))
                for rank, pair in zip(ranks, files, strict=True)
            ]
            job = {
                "tool": str(TOOLS / tool),
                "args": [str(a) for a in args],
                "cwd": str(cwd),
                "before": before,
                "processes": processes,
            }
            self._helper.stdin.write(json.dumps(job) + "\n")
            self._helper.stdin.flush()
            pids = json.loads(self._helper.stdout.readline())
            deadline = time.monotonic() + timeout
            while any(_alive(pid) for pid in pids):
                if time.monotonic() > deadline:
                    for pid in filter(_alive, pids):
                        os.killpg(pid, signal.SIGKILL)
                    self._helper.stdout.readline()
                    said = [path.read_text()[-2000:] for pair in files for path in pair]
                    pytest.fail(f"{tool} ran longer than {timeout} s: {said}")
                if when is not None and all(p.exists() for p in (*files[0], *files[-1])):
                    when(pids[-1], "".join(p.read_text() for p in files[0]))
                time.sleep(0.1)
            codes = json.loads(self._helper.stdout.readline())
            return [
                Run(code, out.read_text(), err.read_text())
                for code, (out, err) in zip(codes, files, strict=True)
            ]

    def close(self) -> None:
        """The helper is between two runs, and has nothing to finish."""
        self._helper.kill()
        self._helper.wait()


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
        max_keep_ckpts=-1,
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
