# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Published folders: weights that fit the record, and no more memory than the file is large.

What else a stranger's folder must not do is in tests/security.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import balanced, small_config
from user_errors import raises_user_error

from mmseg_resnest import UserError, load_segmentor
from mmseg_resnest.export.publish import publish


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = balanced(load_segmentor(small_config(), None, "cpu"))
    folder = tmp_path_factory.mktemp("published") / "model"
    publish(model, folder)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    target = tmp_path / "model"
    target.mkdir()
    for file in original.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    file = folder / "config.json"
    record = json.loads(file.read_text())
    change(record)
    file.write_text(json.dumps(record))


def use_weights(folder: Path, write: Callable[[Path], Any]) -> None:
    """Other weights, with their hash in the record."""
    file = folder / "model.safetensors"
    file.unlink()  # mapped into memory
    write(file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    rewrite(folder, lambda record: record.update(sha256=digest))


def test_memory_is_used_only_if_the_file_fills_it(folder: Path) -> None:
    def widen(record: dict[str, Any]) -> None:
        record["model"]["backbone"] = dict(
            type="ResNeSt", arch=dict(blocks=[64] * 4, base_width=1024, stem_width=1024, radix=16)
        )
        record["model"]["decode_head"].update(channels=16384, in_channels=16384, num_convs=16)

    rewrite(folder, widen)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with raises_user_error("checkpoint", "model.safetensors"):
        load_segmentor(folder, device="cpu")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # KiB


@pytest.mark.parametrize("change", ["shape", "missing", "more"])
def test_the_weights_are_those_of_the_record(change: str, folder: Path) -> None:
    state = {n: v.clone() for n, v in load_file(folder / "model.safetensors").items()}
    name = "decode_head.more" if change == "more" else "decode_head.conv_seg.bias"
    state[name] = torch.zeros(5)
    if change == "missing":
        del state[name]
    use_weights(folder, lambda file: save_file(state, file))
    with raises_user_error("checkpoint", "model.safetensors") as caught:
        load_segmentor(folder, device="cpu")
    assert name in caught.value.message


@pytest.mark.parametrize("content", [b"\0", (1 << 62).to_bytes(8, "little") + b"{}" * 50])
def test_weights_are_safetensors(content: bytes, folder: Path) -> None:
    use_weights(folder, lambda file: file.write_bytes(content))
    with raises_user_error("corrupt", "model.safetensors"):
        load_segmentor(folder, device="cpu")


def test_weights_larger_than_any_model_are_not_read(folder: Path) -> None:
    with open(folder / "model.safetensors", "r+b") as sparse:
        sparse.truncate(1 << 40)
    with raises_user_error("too-large", "model.safetensors"):
        load_segmentor(folder, device="cpu")


@pytest.mark.parametrize(
    ("part", "options"),
    [
        ("backbone", dict(strides=[1], dilations=[1, 1])),
        ("backbone", dict(norm_cfg=dict(type="GN", num_groups=7))),
        ("backbone", dict(num_stages=2, out_indices=[3])),
        ("decode_head", dict(out_channels=3)),
        ("decode_head", dict(in_index=[0, 1])),
        ("decode_head", dict(type="UPerHead")),
    ],
)
def test_arguments_that_do_not_fit_each_other(
    part: str, options: dict[str, Any], folder: Path
) -> None:
    rewrite(folder, lambda record: record["model"][part].update(options))
    with raises_user_error("format", "config.json"):
        load_segmentor(folder, device="cpu")


def test_a_config_of_any_kind_of_file(folder: Path) -> None:
    file, elsewhere = folder / "config.json", folder.parent / "elsewhere.json"
    file.rename(elsewhere)
    file.symlink_to(elsewhere)  # as in the cache of a hub
    load_segmentor(folder, device="cpu")
    for size in (5 << 20, 1 << 40):
        with open(elsewhere, "wb") as sparse:
            sparse.truncate(size)
        with raises_user_error("too-large", "config.json"):
            load_segmentor(folder, device="cpu")
    for target in ("pipe", "/dev/zero", "missing.json"):
        file.unlink()
        if target == "pipe":
            os.mkfifo(file)
        else:
            file.symlink_to(target)
        with pytest.raises(UserError):
            load_segmentor(folder, device="cpu")
