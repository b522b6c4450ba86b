# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Where nothing can be kept, ``auto`` goes on, and a named engine says why."""

from __future__ import annotations

import errno
import itertools
import resource
import shutil
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from user_errors import raises_user_error

from mmseg_resnest.inference import Segmentor
from mmseg_resnest.inference.engine import choose_engine, prepare_engine
from mmseg_resnest.runtimes import Choice, engines
from mmseg_resnest.runtimes.files import write_openvino
from mmseg_resnest.runtimes.store import entry_of

Pictures = list[NDArray[np.uint8]]
EXPORTS = "exporting the network, once for this checkpoint"


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime is the fastest."""
    monkeypatch.setattr(engines, "_MEASURED", ("torch", "onnxruntime"))
    times = itertools.cycle([2.0, 1.0])
    monkeypatch.setattr(engines, "seconds_of", lambda run, images: (run(images), next(times))[1])


@pytest.fixture
def no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that cannot be made."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MMSEG_RESNEST_CACHE", str(tmp_path / "file"))
    return tmp_path / "file"


def _prepared(model: Segmentor, pictures: Pictures, engine: str = "auto") -> list[str]:
    """What is said, by a model whose labels stay the same."""
    said: list[str] = []
    wanted = choose_engine(model, Choice())(pictures[0]).labels
    choose_engine(model, Choice(engine), said.append)
    assert prepare_engine(model, pictures)
    assert (model(pictures[0]).labels == wanted).all()
    return said


def test_auto_without_a_folder_says_so_in_one_line(
    small_segmentor: Segmentor, pictures: Pictures, no_folder: Path
) -> None:
    said = _prepared(small_segmentor, pictures)
    assert small_segmentor.engine is not None
    assert small_segmentor.engine.name == "onnxruntime"
    assert said[1:] == [EXPORTS]
    assert "is not kept" in said[0]
    assert str(no_folder) in said[0]
    # So does another process that takes what the first one chose; who names an engine is told.
    choose_engine(small_segmentor, Choice("auto"), said.append)
    small_segmentor.engine.prepare(small_segmentor.network_inputs(pictures[0]), "onnxruntime")
    assert small_segmentor.engine.ready
    with raises_user_error("not-writable", str(no_folder)):
        _prepared(small_segmentor, pictures, "onnxruntime")


def test_torch_needs_no_folder(
    small_segmentor: Segmentor, pictures: Pictures, no_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "has_bfloat16", lambda: None)
    said: list[str] = []
    choose_engine(small_segmentor, Choice("torch", "bf16"), said.append)
    rows = dict(prepare_engine(small_segmentor, pictures))
    assert "of the labels equal" in rows["engine"]
    (line,) = said
    assert "is not kept" in line


def test_auto_on_a_full_disk(
    small_segmentor: Segmentor, pictures: Pictures, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = engines.write_scores_network

    def full(model: Any, channels: int, path: Path) -> None:
        if cache in path.parents:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(model, channels, path)

    monkeypatch.setattr(engines, "write_scores_network", full)
    said = _prepared(small_segmentor, pictures)
    assert small_segmentor.engine is not None
    assert small_segmentor.engine.name == "onnxruntime"
    (line,) = (line for line in said if line != EXPORTS)
    assert "is not kept" in line
    assert "No space left on device" in line
    assert not list(cache.glob("*/*"))


def test_auto_without_any_folder_is_torch(
    small_segmentor: Segmentor, pictures: Pictures, no_folder: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    said = _prepared(small_segmentor, pictures)
    assert small_segmentor.model.runtime is None
    (line,) = said
    assert line.startswith("auto leaves out the others: ")
    assert str(no_folder) in line


def test_the_cache_may_be_removed_at_any_time(cache: Path) -> None:
    made: list[Path] = []

    def make(part: Path) -> None:
        made.append(part)
        if len(made) == 1:
            shutil.rmtree(cache)
        part.write_bytes(b"whole")

    with entry_of("key") as entry:
        assert entry.file("model.onnx", make).read_bytes() == b"whole"
    with entry_of("key") as entry:
        assert entry.has("model.onnx")


def test_openvino_does_not_say_that_a_file_is_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise RuntimeError("basic_ios::clear: iostream error")

    openvino = SimpleNamespace(convert_model=lambda source: source, save_model=fail)
    monkeypatch.setitem(sys.modules, "openvino", openvino)
    source, target = tmp_path / "model.onnx", tmp_path / "model.xml"
    source.write_bytes(b"graph")
    with pytest.raises(RuntimeError, match="iostream"):  # not the disk's fault
        write_openvino(source, target, {})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_openvino(source, target, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == [source]
