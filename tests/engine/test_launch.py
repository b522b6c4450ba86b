# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
from __future__ import annotations

import os
import resource

import pytest
import torch
from mmengine.config import Config
from user_errors import raises_user_error

from mmseg_resnest.engine import launch
from mmseg_resnest.engine.process_state import restored_process


def test_launchers_must_have_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    assert launch.join_launcher("none") == (0, 1)
    with raises_user_error("environment", "--launcher pytorch"):
        launch.join_launcher("pytorch")
    with raises_user_error("environment", "--launcher slurm"):
        launch.join_launcher("slurm")


def test_slurm_says_who_is_who(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    values = {
        "SLURM_PROCID": "5",
        "SLURM_LOCALID": "1",
        "SLURM_NTASKS": "8",
        "SLURM_NTASKS_PER_NODE": "4",
        "SLURM_NODELIST": "node[1-2]",
        "SLURM_JOB_ID": "123",
        "MASTER_ADDR": "node1",
    }
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # so that it is put back afterwards
        monkeypatch.delenv(name)
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    assert launch.join_launcher("slurm") == (5, 8)
    assert launch.local_world_size() == 4


def test_the_machine_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(launch, "cpu_count", lambda: 6)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    here = launch.Machine.here("none")
    assert (here.rank, here.world_size, here.cores, here.cuda) == (0, 1, 1, False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert launch.Machine.here("none").cores == 6


def test_a_machine_is_prepared_for_a_config_that_stays_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cfg = Config(dict(launcher="pytorch", train_dataloader=dict(num_workers=2, batch_size=4)))
    before = cfg.to_dict()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    with restored_process():
        launch.prepare_machine(cfg, launch.Machine(world_size=2, cores=3))
        assert os.environ["OMP_NUM_THREADS"] == os.environ["MKL_NUM_THREADS"] == "3"
        assert torch.get_num_threads() == 3
    assert cfg.to_dict() == before


def test_too_few_open_files_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (100, 100))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: None)
    cfg = Config(dict(launcher="none", train_dataloader=dict(num_workers=9, batch_size=4)))
    with raises_user_error("environment", "train_dataloader.num_workers"):
        launch.prepare_machine(cfg, launch.Machine())
