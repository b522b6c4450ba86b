# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Runs of a tiny model in this process: a linear layer with batch norm and dropout."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from torch import nn
from torch.utils.data import DataLoader, Dataset, SequentialSampler

from mmseg_resnest.engine import Runner


class Model(BaseModel):
    """Every kind of state that a run has: weights, running statistics, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 1)
        )

    def forward(self, inputs: list, mode: str = "loss", **rest: Any) -> Any:
        out = self.layers(torch.stack(list(inputs)))
        return {"loss": out.square().mean()} if mode == "loss" else list(out)


class Data(Dataset):
    """Samples with noise from all three generators; remembers which were made."""

    metainfo = {"classes": ("a",)}

    def __init__(self, size: int = 10, bad: int | None = None) -> None:
        self.size, self.bad, self.made = size, bad, []

    def __len__(self) -> int:
        return self.size

    def __deepcopy__(self, memo: dict) -> Data:
        return self  # building a loader copies its config

    def get_data_info(self, index: int) -> dict[str, str]:
        return {"img_path": f"{index}.png"}

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.made.append(index)
        noise = torch.tensor([random.random(), np.random.rand(), float(torch.rand(())), index])
        if index == self.bad:
            noise = noise * float("nan")
        return {"inputs": noise, "data_samples": Sample(index)}


class Sample:
    def __init__(self, index: int) -> None:
        self.img_path = f"{index}.png"

    def __contains__(self, name: str) -> bool:
        return False


class Mean(BaseMetric):
    """The mean output, as ``score``."""

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results += [float(value) for value in data_samples]

    def compute_metrics(self, results: list) -> dict[str, float]:
        return {"score": float(np.mean(results))}


_count = 0


class Patient(Hook):
    """Waits for the checkpoints of a step."""

    priority = "LOWEST"

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        assert runner.checkpoint_writer.wait() == []


def make_runner(
    work_dir: Path,
    iterations: int = 12,
    interval: int = 3,
    data: Data | None = None,
    workers: int = 0,
    resume: Path | None = None,
    accumulate: int = 1,
    hooks: list | None = None,
    on_nonfinite: str = "stop",
    visualizer_name: str | None = None,
    patient: bool = False,
    **checkpoint: Any,
) -> Runner:
    """A runner of a tiny model.

    ``patient`` waits after each step until its checkpoint is written: of those that wait for the
    disk only the newest is, so that a busy machine would leave others than a quiet one.
    """
    global _count
    _count += 1
    torch.manual_seed(0)  # the model is made before the runner seeds anything
    return Runner(
        model=Model(),
        work_dir=str(work_dir),
        train_dataloader={
            "dataset": data or Data(),
            "batch_size": 4,
            "num_workers": workers,
            "sampler": {"type": "ExactSampler"},
        },
        train_cfg={"type": "IterBasedTrainLoop", "max_iters": iterations, "val_interval": 4},
        val_dataloader=DataLoader(
            Data(), 2, sampler=SequentialSampler(range(10)), collate_fn=pseudo_collate
        ),
        val_cfg={"type": "ValLoop"},
        val_evaluator=[Mean()],
        optim_wrapper={
            "type": "OptimWrapper",
            "optimizer": {"type": "AdamW", "lr": 0.01},
            "accumulative_counts": accumulate,
        },
        param_scheduler={"type": "PolyLR", "power": 0.9, "end": 12, "by_epoch": False},
        default_hooks={
            "checkpoint": {
                "type": "CheckpointHook", "interval": interval, "by_epoch": False,
                "max_keep_ckpts": 2, "save_best": "score", "rule": "less", **checkpoint,
            },
            "logger": {"type": "LoggerHook", "interval": 1},
            "nonfinite": {"type": "NonFiniteHook", "on_nonfinite": on_nonfinite},
        },
        custom_hooks=[
            {"type": "EMAHook", "momentum": 0.1}, *(hooks or []), *([Patient()] if patient else [])
        ],
        randomness={"seed": 5},
        resume=resume is not None,
        load_from=None if resume is None else str(resume),
        visualizer=visualizer_name and {
            "type": "Visualizer", "vis_backends": [{"type": "LocalVisBackend"}],
            "name": visualizer_name,
        },
        log_level="ERROR",
        default_scope="mmseg_resnest",
        experiment_name=f"tiny_{_count}",
    )  # fmt: skip


def make_plain_runner(
    work_dir: Path, data: Data, batch: int, rate: float, resume: Path | None, **parts: Any
) -> Runner:
    """A runner of the same model with SGD and the parts of a config that are given."""
    # A loop by iterations sleeps for two seconds where its samples end; ExactSampler has no end.
    by_epoch = parts["train_cfg"]["type"] == "EpochBasedTrainLoop"
    sampler = {"type": "DefaultSampler", "shuffle": True} if by_epoch else {"type": "ExactSampler"}
    return Runner(
        model=Model(),
        work_dir=str(work_dir),
        train_dataloader={
            "dataset": data, "batch_size": batch, "num_workers": 0, "sampler": sampler,
        },
        optim_wrapper={"type": "OptimWrapper", "optimizer": {"type": "SGD", "lr": rate}},
        load_from=None if resume is None else str(resume),
        resume=resume is not None,
        randomness={"seed": 1},
        log_level="ERROR",
        default_scope="mmseg_resnest",
        experiment_name=work_dir.name,
        **parts,
    )  # fmt: skip


def state(path: Path) -> dict[str, Any]:
    """A checkpoint, read by torch alone, without what may differ between equal runs."""
    record = torch.load(path, weights_only=True)
    record["meta"] = {key: record["meta"][key] for key in ("iter", "seed", "total_batch")}
    return record
