# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Exported files that are programs load with trust only; the others run nothing."""

from __future__ import annotations

import json
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from small_models import blobs

from mmseg_resnest import UserError, load_segmentor
from mmseg_resnest.export import export_model
from mmseg_resnest.inference import Segmentor
from mmseg_resnest.inference.runtimes import RECORD_KEY
from mmseg_resnest.weights import load_checkpoint


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """An archive such as a TorchScript file is."""
    path = tmp_path / "program.torchscript"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("program/data.pkl", b"\x80\x02).")
        archive.writestr("program/constants.pkl", b"\x80\x02).")
        archive.writestr("program/version", b"3\n")
    return path


@pytest.mark.parametrize("suffix", [".torchscript", ".pt2", ".PT2", ".TorchScript"])
def test_programs_need_trust(suffix: str, program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = program.with_suffix(suffix)
    if path != program:
        shutil.copyfile(program, path)
    opened: list[object] = []
    monkeypatch.setattr(torch.jit, "load", lambda *a, **k: opened.append(a))
    monkeypatch.setattr(torch.export, "load", lambda *a, **k: opened.append(a))
    with pytest.raises(UserError, match=rf"{path.name}: .*program.*trust=True") as caught:
        load_segmentor(path)
    assert ".onnx" in str(caught.value)
    with pytest.raises(UserError, match="program"):
        load_segmentor(str(path), None, "cpu", trust=False)
    assert opened == []


def test_trust_loads_them(pixel_model: Segmentor, tmp_path: Path) -> None:
    path = export_model(pixel_model, tmp_path / "model.torchscript")
    image = blobs(40, 50)
    other = load_segmentor(path, trust=True)
    assert (other(image).labels == pixel_model(image).labels).mean() > 0.999


@pytest.mark.parametrize("name", ["model.onnx", "model.xml", "model.ONNX"])
def test_a_program_under_another_name_is_not_run(name: str, program: Path) -> None:
    path = program.rename(program.with_name(name))
    for trust in (False, True):
        with pytest.raises(UserError, match=rf"{name}: holds an archive"):
            load_segmentor(path, trust=trust)


@pytest.mark.parametrize("name", ["a.pth", "a.pt", "a.torchscript", "a.safetensors"])
def test_a_program_is_no_checkpoint(
    name: str, pixel_model: Segmentor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / name
    traced = torch.jit.trace(torch.nn.Conv2d(3, 3, 1), torch.zeros(1, 3, 4, 4))
    torch.jit.save(traced, path)
    monkeypatch.setattr(torch.jit, "load", lambda *a, **k: pytest.fail("was loaded"))
    with pytest.raises(UserError, match=name):
        load_checkpoint(path)


@pytest.fixture(scope="module")
def exported(pixel_model: Segmentor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_model(pixel_model, tmp_path_factory.mktemp("exported") / "model.onnx")


def with_record(exported: Path, target: Path, **changes: object) -> Path:
    graph = onnx.load(exported)
    record = json.loads(next(p.value for p in graph.metadata_props if p.key == RECORD_KEY))
    del graph.metadata_props[:]
    onnx.helper.set_model_props(graph, {RECORD_KEY: json.dumps(record | changes)})
    onnx.save(graph, target)
    return target


@pytest.mark.parametrize(
    "changes",
    [
        dict(_scope_="evilpackage"),
        dict(test_cfg=dict(mode="whole", _scope_="evilpackage")),
        dict(data_preprocessor=dict(_scope_="evilpackage")),
        dict(data_preprocessor=dict(type="evilpackage.Net")),
        dict(pipeline=[dict(type="PackSegInputs", _scope_="evilpackage")]),
        dict(pipeline=[dict(type="evilpackage.Step"), dict(type="PackSegInputs")]),
        dict(pipeline=[dict(type="LoadImageFromFile"), dict(type="PackSegInputs")]),
        dict(pipeline=[dict(type="TestTimeAug", transforms=[[dict(type="evilpackage.Step")]])]),
    ],
    ids=str,
)
def test_records_import_nothing(
    changes: dict[str, object], exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "evilpackage"
    package.mkdir()
    for name in ("__init__", "registry"):
        (package / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"changed\.onnx: its record cannot be used: key "):
        load_segmentor(with_record(exported, tmp_path / "changed.onnx", **changes))
    assert "evilpackage" not in sys.modules
    assert not (tmp_path / "ran").exists()


def test_outputs_are_those_of_the_record(exported: Path, tmp_path: Path) -> None:
    names = ["a", "b", "c", "d", "e"]
    path = with_record(
        exported, tmp_path / "five.onnx", classes=names, palette=[[0, 0, 0]] * 5, out_channels=5
    )
    with pytest.raises(UserError, match=r"five\.onnx: gave \(1, 4, 20, 30\)"):
        load_segmentor(path)(blobs(20, 30))


def test_labels_are_classes_of_the_record(pixel_model: Segmentor, tmp_path: Path) -> None:
    whole = export_model(pixel_model, tmp_path / "whole.onnx", processing=True)
    path = with_record(
        whole, tmp_path / "two.onnx", classes=["a", "b"], palette=[[0, 0, 0]] * 2, out_channels=2
    )
    image = np.concatenate([blobs(60, 60, seed) for seed in range(4)])
    assert pixel_model(image).labels.max() > 1
    with pytest.raises(UserError, match="none of its 2 classes"):
        load_segmentor(path)(image)


def test_errors_of_the_runtime_name_the_file(exported: Path, tmp_path: Path) -> None:
    graph = onnx.load(exported)
    graph.graph.input[0].type.tensor_type.shape.dim[-1].dim_value = 7
    path = tmp_path / "narrow.onnx"
    onnx.save(graph, path)
    model = load_segmentor(path)
    with pytest.raises(UserError, match=r"narrow\.onnx: ONNX Runtime cannot compute it"):
        model(blobs(40, 50))


def test_the_input_is_that_of_the_record(exported: Path, tmp_path: Path) -> None:
    graph = onnx.load(exported)
    (entry,) = (p for p in graph.metadata_props if p.key == RECORD_KEY)
    record = json.loads(entry.value)
    other = {"float32": ("uint8", "labels"), "uint8": ("float32", "logits")}[record["input"]]
    record["input"], record["output"] = other
    entry.value = json.dumps(record)
    path = tmp_path / "other.onnx"
    onnx.save(graph, path)
    with pytest.raises(UserError, match=rf"other\.onnx: takes .* record says {other[0]}"):
        load_segmentor(path)
