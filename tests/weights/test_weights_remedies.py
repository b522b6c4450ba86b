# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What the errors of checkpoints tell people to do is done, and then the checkpoint is read."""

from __future__ import annotations

import io
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from advice import advises, helps
from test_torch_files import torch_bytes
from torch import Tensor
from weight_names import backbone, published_segmentor

from mmseg_resnest.weights import (
    cache_folder,
    convert_state_dict,
    download,
    load_checkpoint,
    load_training_checkpoint,
    resolve_checkpoint,
    save_state_dict,
)  # fmt: skip
from mmseg_resnest.weights.catalogue import find
from mmseg_resnest.weights.download import Limits
from mmseg_resnest.weights.export import export_state_dict
from mmseg_resnest.weights.load_into import below
from mmseg_resnest.weights.mmengine_loaders import read_any
from mmseg_resnest_cli import package
from mmseg_resnest_cli.options import UsageError

WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3)}


class _Runs:
    def __reduce__(self) -> tuple:
        return print, ("it ran",)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A checkpoint of tensors alone."""
    return save_state_dict(WEIGHTS, tmp_path / "good.pth")


def packed(file: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(file, "w") as made:
        for name, data in members.items():
            made.writestr(name.replace("_", "."), data)
    return file


# --- files ----------------------------------------------------------------------------------


def test_paths(good: Path) -> None:
    with advises("weights/load.py:resolve_checkpoint", "give the path of a .pth"):
        resolve_checkpoint("goood.pth")
    with advises("weights/load.py:resolve_checkpoint", "give the path of the file in it"):
        resolve_checkpoint(good.parent)
    assert resolve_checkpoint(good) == good
    with advises("weights/catalogue.py:find", "weights list") as told:
        find("resnest5O")
    name = (
        told.value.message.partition("did you mean ")[2]
        .partition("?")[0]
        .split(" or ")[0]
        .strip("'")
    )
    assert find(name).name == name
    with advises("weights/mmengine_loaders.py:refuse", "give its path"):
        read_any("s3://bucket/good.pth")
    assert read_any(str(good))


def test_archives_of_checkpoints(good: Path, tmp_path: Path) -> None:
    data = good.read_bytes()
    two = packed(tmp_path / "two.zip", a_pth=data, b_pth=data)
    with advises("weights/archive.py:unpack", "unpack it yourself"):
        load_checkpoint(two)
    inner = packed(tmp_path / "inner.zip", a_pth=data)
    outer = packed(tmp_path / "outer.zip", inner_pth=inner.read_bytes())
    with advises("weights/load.py:_read", "unpack it first"):
        load_checkpoint(outer)
    with zipfile.ZipFile(outer) as opened:
        opened.extractall(tmp_path / "unpacked")
    assert set(load_checkpoint(tmp_path / "unpacked/inner.pth")) == set(WEIGHTS)
    with zipfile.ZipFile(two) as opened:
        opened.extractall(tmp_path / "unpacked")
    assert set(load_checkpoint(tmp_path / "unpacked/a.pth")) == set(WEIGHTS)
    with zipfile.ZipFile(tmp_path / "bz.zip", "w", zipfile.ZIP_BZIP2) as made:
        made.writestr("a.pth", data)
    with advises("weights/archive.py:unpack", "unpack it yourself", "it is"):
        load_checkpoint(tmp_path / "bz.zip")


def test_names_that_promise_a_checksum(good: Path) -> None:
    named = good.with_name("good-12345678.pth")
    shutil.copy(good, named)
    with advises("weights/hashes.py:check_promise", "rename it"):
        load_checkpoint(named)
    load_checkpoint(named.rename(good.with_name("good-mine.pth")))


def test_records_that_are_no_weights(tmp_path: Path) -> None:
    file = tmp_path / "a.pth"

    def save(data: bytes) -> None:
        file.write_bytes(data)

    def read() -> dict[str, Tensor]:
        return load_checkpoint(file)

    def save_weights() -> None:
        save(torch_bytes(WEIGHTS))

    save(torch_bytes({**WEIGHTS, "extra": _Runs()}))
    helps("weights/torch_files.py:read_torch", "state dict alone", call=read, remedy=save_weights)
    program = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), program)
    save(program.getvalue())
    helps("weights/torch_files.py:_read_zip", "state_dict instead", call=read, remedy=save_weights)
    with zipfile.ZipFile(io.BytesIO(torch_bytes(WEIGHTS))) as made:
        members = {name: made.read(name) for name in made.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed_again:
        for name, data in members.items():
            packed_again.writestr(name, data)
    helps("weights/torch_files.py:_read_zip", "compressed", call=read, remedy=save_weights)
    save(torch_bytes({**WEIGHTS, "epoch": 7}))
    helps("weights/state_dict.py:as_tensor", "state dict", call=read, remedy=save_weights)


def test_weights_to_resume_from(good: Path) -> None:
    with advises("weights/load.py:load_training_checkpoint", "load_from"):
        load_training_checkpoint(good)
    assert load_checkpoint(good)  # as load_from reads it
    torch.save({"state_dict": WEIGHTS, "meta": {}}, good)
    assert load_training_checkpoint(good)


# --- names of tensors ------------------------------------------------------------------------


def test_prefixes() -> None:
    weights = {"backbone.a": torch.ones(1), "head.b": torch.ones(1)}
    with advises("weights/load_into.py:below", "remove prefix from init_cfg or correct it"):
        below("bakbone", weights, "a.pth")
    assert set(below("backbone", weights, "a.pth")) == {"a"}


def test_layouts() -> None:
    theirs = published_segmentor("deeplab")
    with advises("weights/export.py:export_state_dict", "convert_state_dict"):
        export_state_dict(theirs, "openmmlab")
    ours = convert_state_dict(theirs)
    assert export_state_dict(ours, "openmmlab")
    with advises("weights/export.py:export_state_dict", "choose another layout", "'backbone.'"):
        export_state_dict(ours, "timm")
    with advises("weights/export.py:_for_detectron2", "choose another layout"):
        export_state_dict(ours, "detectron2")
    assert export_state_dict(ours, "published")
    alone = {k.removeprefix("backbone."): v for k, v in ours.items() if k.startswith("backbone.")}
    assert export_state_dict(alone, "timm")


def test_a_file_without_a_model() -> None:
    whole = backbone()
    part = {key: value for key, value in whole.items() if not key.startswith("layer3")}
    with advises("weights/convert.py:analyse", "complete"):
        convert_state_dict(part)
    convert_state_dict(whole)


# --- writing and fetching --------------------------------------------------------------------


def test_targets(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with advises("weights/save.py:check_target", "choose another name", "--force"):
        save_state_dict(WEIGHTS, good)
    save_state_dict(WEIGHTS, good, force=True)
    save_state_dict(WEIGHTS, good.with_name("new.pth"))
    with monkeypatch.context() as patch:
        for name in ("safetensors", "safetensors.torch"):
            patch.setitem(sys.modules, name, None)
        with advises("weights/save.py:_safetensors_bytes", "pip install safetensors"):
            save_state_dict(WEIGHTS, good.with_name("a.safetensors"))
    pytest.importorskip("safetensors.torch")  # as pip installs it
    save_state_dict(WEIGHTS, good.with_name("a.safetensors"))


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def none() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", none)
    monkeypatch.delenv("MMSEG_RESNEST_CACHE", raising=False)
    with advises("weights/download.py:cache_folder", "set ", "to a folder for downloads"):
        cache_folder()
    with pytest.raises(UsageError, match="set MMSEG_RESNEST_CACHE"):
        package.cache_folder()
    assert package.measured_here() == {}
    monkeypatch.setenv("MMSEG_RESNEST_CACHE", str(tmp_path))
    assert cache_folder() == package.cache_folder() == tmp_path


def test_files_that_are_put_there_by_hand(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMSEG_RESNEST_CACHE", str(tmp_path / "cache"))
    limits = Limits(timeout=1.0, tries=1, backoff=0.01)
    address = "http://127.0.0.1:9/weights.pth"

    def fetch() -> Any:
        return download(address, limits=limits)

    with advises("weights/download.py:_get", "Put the file") as told:
        fetch()
    words = told.value.message.split()
    folder = Path(words[words.index("folder") + 1])
    shutil.copy(good, folder / "weights.pth")
    assert fetch() == folder / "weights.pth"
