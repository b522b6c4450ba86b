# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Checkpoint files: every format, and everything that may be wrong with one."""

from __future__ import annotations

import collections
import hashlib
import io
import os
import pickle
import random
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from test_mxnet_params import write_params
from torch import nn
from user_errors import raises_user_error
from weight_names import backbone, to_gluon

from mmseg_resnest.errors import UserError
from mmseg_resnest.models import ResNeSt
from mmseg_resnest.weights import archive as archive_module
from mmseg_resnest.weights import (
    convert_state_dict,
    load_backbone,
    load_checkpoint,
    load_training_checkpoint,
)

WEIGHTS = {
    "a.weight": torch.arange(6.0).reshape(2, 3),
    "a.counter": torch.tensor(5),
    "b": torch.ones(2, dtype=torch.bfloat16),
}


@pytest.fixture(autouse=True)
def clean_up_is_checked(tmp_path, monkeypatch):
    """Whatever a test loads, no file is left in the folder for temporary files."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    yield
    # (PyTorch's compiler makes a folder of its own when optimisers are imported)
    assert [p for p in scratch.iterdir() if not p.name.startswith("torchinductor")] == []


def assert_same(result, expected=WEIGHTS):
    assert list(result) == list(expected)
    for key, tensor in expected.items():
        assert result[key].dtype == tensor.dtype
        assert torch.equal(result[key], tensor)


def torch_bytes(record, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save(record, buffer, **options)
    return buffer.getvalue()


# --- formats --------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [True, False], ids=["zip format", "old format"])
@pytest.mark.parametrize("suffix", [".pth", ""])
def test_torch_files(tmp_path, suffix, zipped):
    path = tmp_path / f"weights{suffix}"
    torch.save(WEIGHTS, path, _use_new_zipfile_serialization=zipped)
    assert_same(load_checkpoint(path))
    assert_same(load_checkpoint(str(path), map_location=torch.device("cpu")))


def test_modules_state_dict_with_metadata(tmp_path):
    """An nn.Module's state dict is an OrderedDict with an attribute; it may hold Parameters."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    path = tmp_path / "weights.pth"
    torch.save(model.state_dict(keep_vars=True), path)
    result = load_checkpoint(path)
    assert_same(result, {k: v.detach() for k, v in model.state_dict().items()})
    assert all(type(tensor) is torch.Tensor for tensor in result.values())


def test_mxnet_params(tmp_path):
    source = to_gluon(backbone())
    path = tmp_path / "weights.params"
    path.write_bytes(write_params({key: v.numpy() for key, v in source.items()}))
    result = load_checkpoint(path)
    assert_same(result, source)
    assert list(convert_state_dict(result)) == list(backbone())


MEMBERS = {
    ".pth": lambda: torch_bytes(WEIGHTS),
    ".pt": lambda: torch_bytes(WEIGHTS, _use_new_zipfile_serialization=False),
    ".params": lambda: write_params({k: v.float().reshape(-1).numpy() for k, v in WEIGHTS.items()}),
}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("suffix", MEMBERS)
@pytest.mark.parametrize("folder", ["", "models/"])
def test_zip_with_one_checkpoint(tmp_path, suffix, method, folder):
    path = tmp_path / "weights.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        if folder:
            archive.mkdir(folder[:-1])
        archive.writestr(f"{folder}weights{suffix}", MEMBERS[suffix]())
        archive.writestr("__MACOSX/._weights.pth", b"junk that one system adds")
    result = load_checkpoint(path)
    if suffix == ".params":
        assert torch.equal(result["a.weight"], WEIGHTS["a.weight"].flatten())
    else:
        assert_same(result)


# --- the checksum in a name -----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sha256", "sha1"])
@pytest.mark.parametrize("suffix", [".pth", ".params"])
def test_name_with_checksum(tmp_path, kind, suffix):
    data = MEMBERS[suffix]()
    digest = hashlib.new(kind, data).hexdigest()[:8]
    path = tmp_path / f"net-{digest}{suffix}"
    path.write_bytes(data)
    assert len(load_checkpoint(path)) == 3
    wrong = tmp_path / f"net-{'0' if digest[0] != '0' else '1'}{digest[1:]}{suffix}"
    wrong.write_bytes(data)
    with raises_user_error("corrupt", wrong):
        load_checkpoint(wrong)
    # the published zips: the checksum is that of the file inside
    for name, good in ((path.name, True), (wrong.name, False)):
        archive = tmp_path / "net.zip"
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr(name, data)
        if good:
            assert len(load_checkpoint(archive)) == 3
        else:
            with raises_user_error("corrupt", f"net.zip ({wrong.name})"):
                load_checkpoint(archive)


@pytest.mark.parametrize("name", ["run-20261121.pth", "run-1234567.pth", "run-0123456z.pth"])
def test_names_that_promise_nothing(tmp_path, name):
    torch.save(WEIGHTS, tmp_path / name)
    assert_same(load_checkpoint(tmp_path / name))


# --- training checkpoints -------------------------------------------------------------------


def test_what_mmengines_runner_writes(tmp_path, fresh_mmengine):
    """A run with MMEngine's own checkpoint hook: histories, optimiser, schedulers, meta."""
    from mmengine.dataset import DefaultSampler
    from mmengine.model import BaseModel
    from mmengine.runner import Runner
    from torch.utils.data import DataLoader

    class Model(BaseModel):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 1)

        def forward(self, inputs, mode="loss"):
            return dict(loss=self.layer(inputs).sum())

    class Data(torch.utils.data.Dataset):
        metainfo = dict(classes=("road", "sky"), palette=[[1, 2, 3], [4, 5, 6]])

        def __len__(self):
            return 4

        def __getitem__(self, index):
            return dict(inputs=torch.ones(2) * index)

    data = Data()
    runner = Runner(
        model=Model(),
        work_dir=str(tmp_path / "run"),
        train_dataloader=DataLoader(data, 2, sampler=DefaultSampler(data, shuffle=False)),
        train_cfg=dict(by_epoch=False, max_iters=3),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.1, momentum=0.9)),
        param_scheduler=dict(type="PolyLR", power=0.9, end=3, by_epoch=False),
        default_hooks=dict(
            checkpoint=dict(type="CheckpointHook", interval=3, by_epoch=False),
            logger=dict(type="LoggerHook", interval=1),
        ),
        custom_hooks=[dict(type="EMAHook")],
        randomness=dict(seed=3),
        log_level="ERROR",
        experiment_name="safe",
    )
    runner.train()
    path = tmp_path / "run" / "iter_3.pth"
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)  # there is something to allow
    record = load_training_checkpoint(path)
    full = torch.load(path, weights_only=False)  # our own file
    assert set(record) == set(full)
    assert record["meta"]["dataset_meta"] == full["meta"]["dataset_meta"]
    assert record["meta"]["iter"] == 3
    assert record["param_schedulers"] == full["param_schedulers"]
    state, full_state = (r["optimizer"]["state"][0]["momentum_buffer"] for r in (record, full))
    assert torch.equal(state, full_state)
    scalars = record["message_hub"]["log_scalars"]
    assert list(scalars) == list(full["message_hub"]["log_scalars"])
    assert "train/loss" in scalars
    for name, history in full["message_hub"]["log_scalars"].items():
        assert type(scalars[name]) is HistoryBuffer
        assert np.array_equal(scalars[name].data[0], history.data[0])
        assert np.array_equal(scalars[name].data[1], history.data[1])
        assert scalars[name].max_length == history.max_length
    scalars["train/loss"].update(1.5)
    assert scalars["train/loss"].current() == 1.5 and scalars["train/loss"].mean() is not None
    assert record["message_hub"]["runtime_info"] == full["message_hub"]["runtime_info"]
    assert_same(load_checkpoint(path), dict(full["state_dict"]))


def test_plain_data_of_all_kinds(tmp_path):
    record = {
        "state_dict": WEIGHTS,
        "numbers": [1, 2.5, True, None, 2**40, -1, "text", b"bytes", (1, (2, [3]))],
        "set": {1, 2},
        "ordered": collections.OrderedDict(a=1),
        "size": torch.Size([1, 2]),
        "dtype": torch.float16,
        "array": np.arange(6, dtype=np.float32).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "strings": np.array(["one", "three"]),
        "bools": np.array([True, False]),
        "empty": np.zeros((0, 3)),
        "scalar": np.float64(3.5),
        "half": np.float16(0.5),
        "zero dims": np.array(4),
        "kind": np.dtype("float32"),
        "rng": (np.random.get_state(), random.getstate(), torch.get_rng_state()),
    }
    record["twice"] = record["array"]
    path = tmp_path / "run.pth"
    torch.save(record, path)
    result = load_training_checkpoint(path)
    assert list(result) == list(record)
    for key in ("numbers", "set", "ordered", "size", "dtype", "scalar", "half", "kind"):
        assert result[key] == record[key], key
        assert type(result[key]) is type(record[key])
    for key in ("array", "fortran", "strings", "bools", "empty", "zero dims"):
        assert type(result[key]) is np.ndarray
        assert result[key].dtype == record[key].dtype
        assert np.array_equal(result[key], record[key]), key
        assert result[key].flags.writeable
    assert result["twice"] is result["array"]
    assert np.array_equal(result["rng"][0][1], record["rng"][0][1])
    assert result["rng"][1] == record["rng"][1]
    assert torch.equal(result["rng"][2], record["rng"][2])


@pytest.mark.parametrize("record", [WEIGHTS, {"model": WEIGHTS}, [1, 2]])
def test_nothing_to_resume_from(tmp_path, record):
    torch.save(record, tmp_path / "weights.pth")
    with raises_user_error("resume", "weights.pth"):
        load_training_checkpoint(tmp_path / "weights.pth")


# --- archives -------------------------------------------------------------------------------


def zip_of(path: Path, entries: dict[str, bytes], method=zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in entries.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return path


def test_bombs(tmp_path, monkeypatch):
    monkeypatch.setattr(archive_module, "RATIO_FLOOR", 1 << 10)
    path = zip_of(tmp_path / "ratio.zip", {"weights.pth": bytes(1 << 20)})
    with raises_user_error("too-large", path):
        load_checkpoint(path)
    monkeypatch.setattr(archive_module, "MAX_UNPACKED_BYTES", 1 << 12)
    path = zip_of(tmp_path / "size.zip", {"weights.pth": os.urandom(1 << 13)})
    with raises_user_error("too-large", path):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "entries",
    [
        {},
        {"readme.txt": b"hello"},
        {"a.pth": b"1", "b.pth": b"2"},
        {"a.pth": b"1", "setup.py": b"2"},
        {"a.zip": b"PK"},
    ],
)
def test_not_exactly_one_checkpoint(tmp_path, entries):
    path = zip_of(tmp_path / "weights.zip", entries)
    with raises_user_error("format", path) as caught:
        load_checkpoint(path)
    assert all(name in caught.value.message for name in entries)


def test_a_locked_archive(tmp_path):
    path = zip_of(tmp_path / "weights.zip", {"weights.pth": torch_bytes(WEIGHTS)})
    data = bytearray(path.read_bytes())
    data[data.find(b"PK\x01\x02") + 8] |= 1
    data[6] |= 1
    path.write_bytes(data)
    with raises_user_error("format", path):
        load_checkpoint(path)


# --- damage ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["w.pth", "w.zip", "w.params", "w.safetensors"])
@pytest.mark.parametrize(
    ("data", "codes"),
    [
        (b"", ("empty",)),
        (b"<!DOCTYPE html><html>404</html>", ("format", "corrupt")),
        (b"\n <html>", ("format", "corrupt")),
        (b"version https://git-lfs.github.com/spec/v1\noid", ("format", "corrupt")),
        (b"Not found", ("corrupt",)),
        (bytes(1000), ("corrupt",)),
        (b"PK\x03\x04", ("corrupt",)),
        (b"\x80\x02", ("corrupt",)),
    ],
)
def test_not_a_checkpoint(tmp_path, name, data, codes):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(UserError) as caught:
        load_checkpoint(path)
    assert caught.value.code in codes
    assert str(path) in caught.value.subject and "\n" not in str(caught.value)


def test_no_file(tmp_path):
    for name in ("resnest51", str(tmp_path / "missing.pth"), "a\0b", "x" * 5000):
        with raises_user_error("not-found", "checkpoint"):
            load_checkpoint(name)
    with raises_user_error("wrong-path-type", tmp_path):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("record", "code"),
    [
        ([1, 2], "checkpoint"),
        ({}, "empty"),
        ({"state_dict": {}}, "empty"),
        ({"a": 1, "b": "x", "c": torch.zeros(1)}, "checkpoint"),
        ({"state_dict": {"a": torch.zeros(2).to_sparse()}}, "checkpoint"),
        (torch.zeros(3), "checkpoint"),
    ],
)
def test_no_state_dict(tmp_path, record, code):
    torch.save(record, tmp_path / "w.pth")
    with raises_user_error(code, tmp_path / "w.pth"):
        load_checkpoint(tmp_path / "w.pth")


def test_devices(tmp_path):
    torch.save(WEIGHTS, tmp_path / "w.pth")
    for device in ("abacus", *(() if torch.cuda.is_available() else ("cuda",))):
        with raises_user_error("device", f"map_location='{device}'"):
            load_checkpoint(tmp_path / "w.pth", device)


# --- backbones ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small():
    """A small ResNeSt whose weights no initialisation gives."""
    torch.manual_seed(1)
    model = ResNeSt("resnest14")
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1)
    return model


@pytest.mark.parametrize("prefix", [None, "encoder", "encoder."])
def test_load_backbone(tmp_path, small, prefix):
    path = tmp_path / "w.pth"
    weights = {**small.state_dict(), "fc.weight": torch.zeros(3, 2048), "fc.bias": torch.zeros(3)}
    if prefix:
        weights = {f"encoder.{key}": value for key, value in weights.items()}
        weights["decoder.x"] = torch.zeros(1)
    torch.save(weights, path)
    model = ResNeSt("resnest14")
    load_backbone(model, path, prefix)
    for key, value in model.state_dict().items():
        assert torch.equal(value, small.state_dict()[key])
    with raises_user_error("checkpoint", path):
        load_backbone(model, path, "other")
    with raises_user_error("checkpoint", path):
        load_backbone(ResNeSt("resnest26"), path, prefix)


def test_load_backbone_without_its_last_stage(tmp_path, small):
    torch.save(small.state_dict(), tmp_path / "w.pth")
    model = ResNeSt("resnest14", out_indices=(0, 1, 2))
    load_backbone(model, tmp_path / "w.pth")
    for key, value in model.state_dict().items():
        assert torch.equal(value, small.state_dict()[key])
