# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What messages on files, devices and the launcher tell to do helps."""

from __future__ import annotations

import os
import re
import resource
import shutil
import socket
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from advice import advises, helps
from mmengine.config import Config
from torch import nn

from mmseg_resnest.engine import launch
from mmseg_resnest.engine.launch import Machine, join_launcher
from mmseg_resnest.engine.preflight import (
    check_device,
    check_disk_space,
    check_file,
    check_output_file,
    check_writable,
)

# --- files, devices, the launcher ------------------------------------------------------------


def test_files(tmp_path: Path) -> None:
    (tmp_path / "iter_1.pth").write_bytes(b"x")
    with advises("engine/preflight.py:check_file", "did you mean") as told:
        check_file(tmp_path, "checkpoint")
    check_file(told.value.message.rpartition("did you mean ")[2].rstrip("?"), "checkpoint")
    file = tmp_path / "file"
    file.touch()
    with advises("engine/preflight.py:check_writable", "choose another folder"):
        check_writable(file / "x", "--out")
    check_writable(tmp_path / "another", "--out")
    with advises("engine/preflight.py:check_output_file", "name a file in it"):
        check_output_file(tmp_path, "--json")
    with advises("engine/preflight.py:check_output_file", "choose another name"):
        check_output_file(tmp_path / ("a" * 5000), "--json")
    check_output_file(tmp_path / "a.json", "--json")


def test_files_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "iter_1.pth"
    file.write_bytes(b"x")
    file.chmod(0)
    # No permission counts for the superuser.
    monkeypatch.setattr(os, "access", lambda path, mode: bool(os.stat(path).st_mode & 0o400))
    helps("engine/preflight.py:check_file", "change its permissions",
          call=lambda: check_file(file, "checkpoint"), remedy=lambda: file.chmod(0o600),
    )  # fmt: skip


@pytest.mark.parametrize(("device", "words"), [("abacus", "is not"), ("meta", "compute")])
def test_devices(device: str, words: str) -> None:
    with advises("engine/preflight.py:check_device", "use cpu") as told:
        check_device(device)
    assert words in told.value.message
    check_device("cpu")


@pytest.mark.parametrize("count", [0, 2])
def test_gpus(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(count))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with advises("engine/preflight.py:check_device", "GPU", "use cpu") as told:
        check_device("cuda:7")
    check_device("cpu")
    assert ("a number below 2" in told.value.message) == bool(count)
    if count:
        check_device("cuda:1")


def test_room_for_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1, 1, 9_000_000))
    model = nn.Linear(1000, 1000)
    hook = dict(type="CheckpointHook", interval=10, by_epoch=False, max_keep_ckpts=-1)
    cfg = Config(dict(
        work_dir=str(tmp_path), train_cfg=dict(max_iters=40), default_hooks=dict(checkpoint=hook),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=1.0)),
    ))  # fmt: skip
    option = "default_hooks.checkpoint.max_keep_ckpts=1"
    helps("engine/preflight.py:check_disk_space", "max_keep_ckpts=1",
          call=lambda: check_disk_space(cfg, model),
          remedy=lambda: cfg.merge_from_dict({option[:-2]: 1}))  # fmt: skip
    cfg.default_hooks.checkpoint.max_keep_ckpts = -1
    helps("engine/preflight.py:check_disk_space", "make room",
          call=lambda: check_disk_space(cfg, model), remedy=lambda: monkeypatch.setattr(
              shutil, "disk_usage", lambda path: usage(1, 1, 90_000_000)))  # fmt: skip


LAUNCHED = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}


def test_what_a_launcher_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*LAUNCHED, "MASTER_PORT", "SLURM_PROCID", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)

    def launch_it(**changes: str) -> None:  # what torchrun, and so dist-train, does
        for name, value in {**LAUNCHED, "MASTER_PORT": "29500", **changes}.items():
            monkeypatch.setenv(name, value)

    helps("engine/launch.py:join_launcher", "dist-train", "torchrun",
          call=lambda: join_launcher("pytorch"), remedy=launch_it)  # fmt: skip
    launch_it(RANK="first")
    helps("engine/launch.py:_number", "set it to one", call=lambda: join_launcher("pytorch"),
          remedy=lambda: monkeypatch.setenv("RANK", "0"))  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    launch_it(RANK="1", LOCAL_RANK="1", WORLD_SIZE="2")
    helps("engine/launch.py:join_launcher", "start one process for each",
          call=lambda: join_launcher("pytorch"), remedy=launch_it)  # fmt: skip


def test_what_slurm_sets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (*LAUNCHED, "MASTER_PORT", "SLURM_PROCID", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)

    def srun() -> None:  # which slurm-train calls
        sets = dict(SLURM_PROCID="0", SLURM_LOCALID="0", SLURM_NTASKS="1", SLURM_NODELIST="n[1-2]")
        for name, value in sets.items():
            monkeypatch.setenv(name, value)

    monkeypatch.setenv("PATH", str(tmp_path))  # without scontrol
    with advises("engine/launch.py:_set_slurm_environment", "slurm-train"):
        join_launcher("slurm")
    srun()
    helps("engine/launch.py:_set_slurm_environment", "MASTER_ADDR",
          call=lambda: join_launcher("slurm"),
          remedy=lambda: monkeypatch.setenv("MASTER_ADDR", "n1"))  # fmt: skip


def test_the_port_of_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for name, value in {**LAUNCHED, "MASTER_PORT": str(port)}.items():
            monkeypatch.setenv(name, value)
        with advises("engine/launch.py:init_distributed", "choose another one", "PORT="):
            launch.init_distributed("pytorch", 5)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            monkeypatch.setenv("MASTER_PORT", str(free.getsockname()[1]))
        try:
            launch.init_distributed("pytorch", 5)
        finally:
            torch.distributed.destroy_process_group()


def test_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [(24, 24)]
    monkeypatch.setattr(resource, "getrlimit", lambda kind: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda kind, pair: None)
    loader = dict(num_workers=4, batch_size=2)
    cfg = Config(dict(train_dataloader=loader, launcher="none"))
    with advises("engine/launch.py:_allow_open_files", "num_workers=0", "ulimit -n") as told:
        launch.prepare_machine(cfg, Machine())
    found = re.search(r"ulimit -n (\d+)", told.value.message)
    assert found is not None
    limits.append((int(found[1]), int(found[1])))
    launch.prepare_machine(cfg, Machine())
    limits.append((24, 24))
    cfg.train_dataloader.num_workers = 0
    launch.prepare_machine(cfg, Machine())
