# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
from __future__ import annotations

import pytest
import torch
from mmengine.config import Config

from mmseg_resnest.engine import launch
from mmseg_resnest.engine.optim import BFloat16OptimWrapper
from mmseg_resnest.engine.preflight import check_device
from mmseg_resnest.errors import UserError


def _config(**loader: object) -> Config:
    return Config(dict(train_dataloader=dict(loader), optim_wrapper=dict(optimizer=dict())))


def test_the_batch_is_shared_out() -> None:
    cfg = _config(batch_size=16)
    assert launch.share_batch(cfg, 8) == "16 images a step = 8 processes x 2"
    assert cfg.train_dataloader.batch_size == 2
    assert launch.share_batch(_config(batch_size=16), 1) is None


@pytest.mark.parametrize(("batch", "world"), [(16, 3), (2, 4), (0, 1), ("16", 1), (None, 1)])
def test_batches_that_cannot_be_shared(batch: object, world: int) -> None:
    with pytest.raises(UserError, match=r"train_dataloader\.batch_size"):
        launch.share_batch(_config(batch_size=batch), world)


def test_workers_fit_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "cpu_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cfg = _config(num_workers=8, persistent_workers=True, pin_memory=True)
    launch.fit_to_machine(cfg, "none")
    assert cfg.train_dataloader.num_workers == 2
    assert cfg.train_dataloader.persistent_workers is True
    assert cfg.train_dataloader.pin_memory is False
    cfg = _config(num_workers=0, persistent_workers=True, prefetch_factor=2)
    launch.fit_to_machine(cfg, "none")
    assert "persistent_workers" not in cfg.train_dataloader
    assert "prefetch_factor" not in cfg.train_dataloader


def test_launchers_must_have_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    assert launch.join_launcher("none") == (0, 1)
    with pytest.raises(UserError, match="RANK is not set"):
        launch.join_launcher("pytorch")
    with pytest.raises(UserError, match="SLURM_PROCID is not set"):
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


def test_mixed_precision_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cfg = _config()
    assert "bfloat16" in launch.enable_amp(cfg)
    assert cfg.optim_wrapper.type == "BFloat16OptimWrapper"
    cfg.optim_wrapper.type = "OptimWrapperDict"
    with pytest.raises(UserError, match="OptimWrapperDict"):
        launch.enable_amp(cfg)


def test_bfloat16_wrapper_computes_in_bfloat16_and_learns_in_float32() -> None:
    model = torch.nn.Linear(4, 4)
    wrapper = BFloat16OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    before = model.weight.detach().clone()
    with wrapper.optim_context(model):
        output = model(torch.ones(2, 4))
    assert output.dtype == torch.bfloat16
    wrapper.update_params(output.float().sum())
    assert model.weight.dtype == torch.float32
    assert torch.allclose(model.weight, before - 0.2)


def test_devices() -> None:
    assert check_device("cpu") == torch.device("cpu")
    for name, message in (("cuda:77", "cuda:77"), ("abacus", "is none"), ("meta", "no values")):
        with pytest.raises(UserError, match=message):
            check_device(name)
