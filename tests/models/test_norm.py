# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The synchronised batch norm, alone and over processes, against plain batch norm."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from user_errors import raises_user_error

from mmseg_resnest.models import SyncBN
from mmseg_resnest.models.norm import build_norm, frozen_batch_statistics


def test_one_process_is_plain_batch_norm():
    torch.manual_seed(0)
    plain, synced = nn.BatchNorm2d(5), SyncBN(5)
    synced.load_state_dict(plain.state_dict())
    for shape in ((4, 5, 3, 7), (2, 5, 1, 1)):
        x = torch.randn(shape)
        assert torch.equal(plain(x), synced(x))
    assert torch.equal(plain.running_var, synced.running_var)
    assert torch.equal(plain.eval()(x), synced.eval()(x))


def test_one_value_a_channel_is_refused_in_training_only():
    norm = SyncBN(5)
    with raises_user_error("config-value", "train_dataloader.batch_size"):
        norm(torch.randn(1, 5, 1, 1))
    assert norm.eval()(torch.randn(1, 5, 1, 1)).shape == (1, 5, 1, 1)


def _layers() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), build_norm(dict(type="SyncBN"), 4), nn.ReLU(), nn.Conv2d(4, 2, 1)
    )


def _train_part(rank: int, world_size: int, sizes: list[int], folder: str) -> None:
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=world_size)
    torch.manual_seed(2)
    images = torch.randn(sum(sizes), 3, 9, 8)
    start = sum(sizes[:rank])
    model = DistributedDataParallel(_layers())
    for _ in range(3):
        # the sum over all images, whatever the split (DDP averages over processes)
        loss = model(images[start : start + sizes[rank]]).square().sum() * world_size
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 1e-3 * parameter.grad
                parameter.grad = None
    torch.save(model.module.state_dict(), f"{folder}/{rank}.pth")
    # Before the group: a reducer that lets the last one go waits, holding the GIL, for a thread of
    # Gloo that waits for the GIL.
    del model
    dist.destroy_process_group()


@pytest.mark.long
@pytest.mark.parametrize("sizes", [pytest.param([2, 2], marks=pytest.mark.long), [1, 3]])
def test_two_processes_train_as_one(tmp_path, sizes):
    """Uneven parts of a batch on two CPU processes give the weights of the whole batch on one."""
    mp.spawn(_train_part, args=(2, sizes, str(tmp_path)), nprocs=2)
    torch.manual_seed(2)
    images = torch.randn(sum(sizes), 3, 9, 8)
    model = _layers().double()
    for _ in range(3):
        model(images.double()).square().sum().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 1e-3 * parameter.grad
                parameter.grad = None
    for rank in range(2):
        state = torch.load(tmp_path / f"{rank}.pth", weights_only=True)
        for key, value in model.state_dict().items():
            torch.testing.assert_close(
                state[key].double(), value.double(), rtol=1e-4, atol=1e-6, msg=key
            )


def test_frozen_statistics_come_back():
    norm = nn.BatchNorm2d(3)
    norm(torch.randn(4, 3, 2, 2))
    before = {k: v.clone() for k, v in norm.state_dict().items()}
    buffer = norm.running_mean
    with frozen_batch_statistics(nn.Sequential(norm)):
        norm(torch.randn(4, 3, 2, 2) + 5)
    assert norm.running_mean is buffer
    for key, value in norm.state_dict().items():
        assert torch.equal(value, before[key])
    norm(torch.randn(4, 3, 2, 2) + 5)
    assert not torch.equal(norm.running_mean, before["running_mean"])


@pytest.mark.parametrize("cfg", [dict(), dict(type="nope"), dict(type="GN", num_groups=3)])
def test_bad_norm_cfg(cfg):
    with raises_user_error("argument", "norm_cfg"):
        build_norm(cfg, 4)
