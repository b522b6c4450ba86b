# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A published folder of a stranger runs nothing and takes no more memory than its file is large."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from small_models import balanced, blobs, small_config

from mmseg_resnest import UserError, load_segmentor
from mmseg_resnest.export.publish import publish
from mmseg_resnest.inference import Segmentor

Change = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Segmentor]:
    model = balanced(load_segmentor(small_config(), None, "cpu"))
    folder = tmp_path_factory.mktemp("published") / "model"
    publish(model, folder)
    return folder, model


@pytest.fixture
def folder(original: tuple[Path, Segmentor], tmp_path: Path) -> Path:
    target = tmp_path / "model"
    target.mkdir()
    for file in original[0].iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


@pytest.fixture
def canary(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that appears when code of the folder runs; every way to import it is open."""
    ran = folder.parent / "ran"
    program = f"open({str(ran)!r}, 'w').close()\n"
    for name in ("evil", "registry", "config", "training_config", "mmseg_evil", "__init__"):
        (folder / f"{name}.py").write_text(program)
    (folder / "evilpackage").mkdir()
    for name in ("__init__", "registry"):
        (folder / "evilpackage" / f"{name}.py").write_text(program)
    load_segmentor(folder, device="cpu")  # what is imported late is imported
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.chdir(folder)
    return ran


def rewrite(folder: Path, change: Change) -> None:
    file = folder / "config.json"
    record = json.loads(file.read_text())
    change(record)
    file.write_text(json.dumps(record))


def objects(value: Any) -> list[Any]:
    found = [value] if isinstance(value, dict) else []
    children = value.values() if isinstance(value, dict) else value
    for item in children if isinstance(value, dict | list) else []:
        found += objects(item)
    return found


def test_scopes_import_nothing(folder: Path, canary: Path) -> None:
    text = (folder / "config.json").read_text()
    number = len(objects(json.loads(text)))
    before = set(sys.modules)
    for i in range(number):
        for scope in ("evilpackage", "evil", "mmseg_resnest", ".", "os", None):
            record = json.loads(text)
            objects(record)[i]["_scope_"] = scope
            if objects(record)[i] is not record.get("metrics"):
                (folder / "config.json").write_text(json.dumps(record))
                with pytest.raises(UserError, match="_scope_"):
                    load_segmentor(folder, device="cpu")
    assert set(sys.modules) == before
    assert not canary.exists()


@pytest.mark.parametrize(
    "kind", ["evil", "evilpackage.Net", "evilpackage.registry", "mmseg_evil", "os.system", "this"]
)
def test_types_import_nothing(kind: str, folder: Path, canary: Path) -> None:
    text = (folder / "config.json").read_text()
    before = set(sys.modules)
    for i, item in enumerate(objects(json.loads(text))):
        if "type" in item:
            record = json.loads(text)
            objects(record)[i]["type"] = kind
            (folder / "config.json").write_text(json.dumps(record))
            with pytest.raises(UserError, match=r"\.type: "):
                load_segmentor(folder, device="cpu")
    assert set(sys.modules) == before
    assert not canary.exists()


@pytest.mark.parametrize(
    ("part", "options"),
    [
        ("backbone", {"pretrained": "http://127.0.0.1:9/a.pth"}),
        ("backbone", {"init_cfg": {"type": "Pretrained", "checkpoint": "evil.pth"}}),
        ("backbone", {"init_cfg": [{"type": "Pretrained", "checkpoint": "evil.pth"}]}),
        ("backbone", {"plugins": [{"cfg": {"type": "evil"}, "stages": [True]}]}),
        ("backbone", {"dcn": {"type": "DCN"}}),
        ("decode_head", {"loss_decode": {"type": "CrossEntropyLoss", "class_weight": "evil.pkl"}}),
        ("decode_head", {"sampler": {"type": "evil"}}),
        ("data_preprocessor", {"batch_augments": [{"type": "evil"}]}),
    ],
)
def test_what_reads_or_fetches_is_refused(part: str, options: dict[str, Any], folder: Path) -> None:
    rewrite(folder, lambda record: record["model"][part].update(options))
    with pytest.raises(
        UserError, match=rf"config\.json: .*key model\.{part}\.{next(iter(options))}"
    ):
        load_segmentor(folder, device="cpu")


def test_other_files_of_the_folder_are_left_alone(
    folder: Path, canary: Path, original: tuple[Path, Segmentor]
) -> None:
    model = load_segmentor(folder, device="cpu")
    assert not canary.exists()
    image = blobs(50, 60)
    np.testing.assert_array_equal(model(image).labels, original[1](image).labels)


def widen(folder: Path) -> None:
    """A network far larger than the file, within what the tables allow."""

    def change(record: dict[str, Any]) -> None:
        record["model"]["backbone"] = dict(
            type="ResNeSt", arch=dict(blocks=[64] * 4, base_width=1024, stem_width=1024, radix=16)
        )
        record["model"]["decode_head"].update(channels=16384, in_channels=16384, num_convs=16)

    rewrite(folder, change)


def test_memory_is_asked_for_only_if_the_file_fills_it(folder: Path) -> None:
    widen(folder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=r"model\.safetensors: does not hold the model"):
        load_segmentor(folder, device="cpu")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # KiB


@pytest.mark.parametrize("change", ["shape", "missing", "more"])
def test_the_weights_are_those_of_the_record(change: str, folder: Path) -> None:
    file = folder / "model.safetensors"
    state = {name: value.clone() for name, value in load_file(file).items()}
    name = "decode_head.conv_seg.bias"
    if change == "shape":
        state[name] = torch.zeros(5)
    elif change == "missing":
        del state[name]
    else:
        name = "decode_head.more"
        state[name] = torch.zeros(5)
    file.unlink()
    save_file(state, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    rewrite(folder, lambda record: record.update(sha256=digest))
    with pytest.raises(UserError, match=name):
        load_segmentor(folder, device="cpu")


def test_weights_are_safetensors_whatever_their_name(folder: Path) -> None:
    weights = folder / "model.safetensors"
    state = {name: value.clone() for name, value in load_file(weights).items()}
    weights.unlink()  # mapped into memory
    for content in ("pickle", "header", "short"):
        if content == "pickle":
            torch.save(state, weights)
        elif content == "header":
            weights.write_bytes((1 << 62).to_bytes(8, "little") + b"{}" * 50)
        else:
            weights.write_bytes(b"\0")
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()
        rewrite(folder, lambda record, digest=digest: record.update(sha256=digest))
        with pytest.raises(UserError, match=r"model\.safetensors: not a usable"):
            load_segmentor(folder, device="cpu")


def test_weights_larger_than_any_model_are_not_read(folder: Path) -> None:
    with open(folder / "model.safetensors", "r+b") as sparse:
        sparse.truncate(1 << 40)
    with pytest.raises(UserError, match=r"model\.safetensors: larger than"):
        load_segmentor(folder, device="cpu")


def test_arguments_that_do_not_fit_each_other_are_told(folder: Path) -> None:
    text = (folder / "config.json").read_text()
    for part, options in [
        ("backbone", dict(strides=[1], dilations=[1, 1])),
        ("backbone", dict(norm_cfg=dict(type="GN", num_groups=7))),
        ("backbone", dict(num_stages=2, out_indices=[3])),
        ("decode_head", dict(out_channels=3)),
        ("decode_head", dict(in_index=[0, 1])),
        ("decode_head", dict(type="UPerHead")),
    ]:
        (folder / "config.json").write_text(text)
        rewrite(folder, lambda r, p=part, o=options: r["model"][p].update(o))
        with pytest.raises(UserError, match=r"config\.json"):
            load_segmentor(folder, device="cpu")


def test_a_config_of_any_kind_of_file(folder: Path) -> None:
    file = folder / "config.json"
    content = file.read_bytes()
    file.unlink()
    (folder.parent / "elsewhere.json").write_bytes(content)
    file.symlink_to(folder.parent / "elsewhere.json")  # as in the cache of a hub
    load_segmentor(folder, device="cpu")
    for size in (5 << 20, 1 << 40):
        with open(folder.parent / "elsewhere.json", "wb") as sparse:
            sparse.truncate(size)
        with pytest.raises(UserError, match="larger than"):
            load_segmentor(folder, device="cpu")
    for target in ("pipe", "/dev/zero", "missing.json"):
        file.unlink()
        if target == "pipe":
            os.mkfifo(file)
        else:
            file.symlink_to(target)
        with pytest.raises(UserError):
            load_segmentor(folder, device="cpu")
    file.unlink()
    for text in (b"[" * 10**6, b"\xff\xfe", b"", b"null", b'{"format": 1e999}'):
        file.write_bytes(text)
        with pytest.raises(UserError, match=r"config\.json"):
            load_segmentor(folder, device="cpu")


VALUES = st.sampled_from(
    [None, True, 0, -1, 1, 2, 3, 10**6, 1e300, float("nan"), "", "evil", "os.system", "BN", "ReLU",
     "FCNHead", [], [1], [1, 2, 3, 4], {}, {"type": "evil"}, {"type": "BN"}, {"_scope_": "evil"}]
)  # fmt: skip


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_changed_record_is_refused_or_loads(
    data: st.DataObject, folder: Path, canary: Path, original: tuple[Path, Segmentor]
) -> None:
    record = json.loads((original[0] / "config.json").read_text())
    place = data.draw(st.sampled_from(objects(record)))
    keys = st.sampled_from([*place, "_scope_", "evil", "pretrained", "num_convs", "depth"])
    place[data.draw(keys)] = copy.deepcopy(data.draw(VALUES))
    (folder / "config.json").write_text(json.dumps(record))
    before = set(sys.modules)
    try:
        model = load_segmentor(folder, device="cpu")
    except UserError:
        pass
    else:
        ours, theirs = (dict(m.model.state_dict()) for m in (original[1], model))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert set(sys.modules) == before
    assert not canary.exists()
