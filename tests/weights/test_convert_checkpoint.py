# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""tools/convert_checkpoint.py as a user runs it."""

from __future__ import annotations

import os
import stat
import zipfile
from pathlib import Path

import pytest
import torch
from test_mxnet_params import write_params
from user_errors import printed_error
from weight_names import backbone, openmmlab_name, published_segmentor, to_gluon

from mmseg_resnest.weights import (
    convert_state_dict,
    load_checkpoint,
    save_state_dict,
)
from mmseg_resnest_cli import main


@pytest.fixture
def run(capfd, monkeypatch):
    """Runs the tool in this process: (exit code, stdout, stderr)."""

    def run_it(*args) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit_info:
            main("convert-checkpoint", [str(arg) for arg in args])
        return exit_info.value.code, *capfd.readouterr()

    return run_it


def assert_same(one, other):
    assert set(one) == set(other)
    for key, tensor in other.items():
        assert one[key].dtype == tensor.dtype and torch.equal(one[key], tensor)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_there_and_back(tmp_path, run, suffix):
    if suffix == ".safetensors":
        pytest.importorskip("safetensors")
    source = published_segmentor("deeplab")
    torch.save(source, tmp_path / "published.pth")
    with zipfile.ZipFile(tmp_path / "published.zip", "w") as archive:
        archive.write(tmp_path / "published.pth", "published.pth")
    ours, back = tmp_path / f"ours{suffix}", tmp_path / f"back{suffix}"
    code, out, _ = run(tmp_path / "published.zip", ours)
    assert code == 0
    assert "segmentation model in layout published" in out
    assert f"{ours}: {len(source)} tensors in layout mmseg-resnest" in out
    assert_same(load_checkpoint(ours), convert_state_dict(source))
    code, _, _ = run(ours, back, "--layout", "published")
    assert code == 0
    assert_same(load_checkpoint(back), source)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        ["published.pth", "published.zip", ours.name, back.name]
    )


@pytest.mark.parametrize("layout", ["timm", "openmmlab", "published", "mmseg-resnest"])
def test_gluoncv_backbone(tmp_path, run, layout):
    path = tmp_path / "net.params"
    source = to_gluon(backbone(fc=True))
    path.write_bytes(write_params({key: v.numpy() for key, v in source.items()}))
    code, out, _ = run(path, tmp_path / "net.pth", "--layout", layout)
    assert code == 0
    assert "backbone in layout gluoncv" in out
    assert "left out (ImageNet classifier): fc.weight, fc.bias" in out
    norms = sum(key.endswith("running_mean") for key in source)
    assert f"added: {norms} batch norm counters" in out
    names = list(backbone())
    if layout == "openmmlab":
        names = [openmmlab_name(name) for name in names]
    assert list(torch.load(tmp_path / "net.pth", weights_only=True)) == names


def test_what_is_there_stays_without_force(tmp_path, run):
    torch.save(backbone(), tmp_path / "a.pth")
    target = tmp_path / "b.pth"
    target.write_text("precious")
    code, out, err = run(tmp_path / "a.pth", target)
    assert (code, out) == (2, "")
    kind, text = printed_error(err)
    assert kind == "output-exists" and text.startswith(f"{target}: ") and "--force" in text
    assert target.read_text() == "precious"
    code, _, _ = run(tmp_path / "a.pth", target, "--force")
    assert code == 0
    assert_same(load_checkpoint(target), backbone())


@pytest.mark.parametrize(
    ("source", "target", "code"),
    [
        ("missing.pth", "b.pth", "not-found"),
        ("a.pth", "b.onnx", "argument"),
        ("a.pth", "no/folder/b.pth", "not-found"),
        ("broken.pth", "b.pth", "corrupt"),
        ("other.pth", "b.pth", "checkpoint"),
        ("gap.pth", "b.pth", "checkpoint"),
    ],
)
def test_mistakes(tmp_path, run, monkeypatch, source, target, code):
    monkeypatch.chdir(tmp_path)
    torch.save(backbone(), "a.pth")
    torch.save({"x": torch.zeros(1)}, "other.pth")
    torch.save({k: v for k, v in backbone().items() if k != "bn1.weight"}, "gap.pth")
    Path("broken.pth").write_bytes(Path("a.pth").read_bytes()[:5000])
    before = sorted(tmp_path.rglob("*"))
    status, out, err = run(source, target)
    assert (status, out) == (2, "")
    kind, text = printed_error(err)
    assert kind == code and (source if source != "a.pth" else target) in text
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_has_the_usual_rights_and_no_foreign_storage(tmp_path):
    large = torch.zeros(100_000)
    umask = os.umask(0o027)
    try:
        path = save_state_dict({"a": large[:3], "b": large[1:4]}, tmp_path / "w.pth")
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert path.stat().st_size < 10_000
    assert_same(load_checkpoint(path), {"a": torch.zeros(3), "b": torch.zeros(3)})
