# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What the errors of engines tell people to do is done, and then it works."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from advice import advises
from mmseg.models.segmentors import EncoderDecoder as StockEncoderDecoder
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from mmseg_resnest import load_segmentor
from mmseg_resnest.export import export_model
from mmseg_resnest.inference import Segmentor
from mmseg_resnest.inference.engine import choose_engine
from mmseg_resnest.runtimes import Choice, engines
from mmseg_resnest.runtimes.network import write_scores_network
from mmseg_resnest.runtimes.sessions import open_onnx

Pictures = list[NDArray[np.uint8]]


def _plain(model: Segmentor, image: Any) -> None:
    """``engine torch``, which all of them advise, computes."""
    assert choose_engine(model, Choice("torch"))(image).labels.size


def _changed(opened: Callable[..., Any], change: Callable[[Any], Any]) -> Callable[..., Any]:
    def open_onnx(*rest: Any) -> Any:
        session = opened(*rest)
        return session._replace(run=change(session.run))

    return open_onnx


def test_precisions_that_are_had(
    small_segmentor: Segmentor, pictures: Pictures, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(engines, "has_int8", lambda: True)
    with advises("runtimes/engines.py:__post_init__", "take the engine"):
        Choice("torch", "int8")
    path = tmp_path / "picture.png"
    Image.fromarray(pictures[0]).save(path)
    choose_engine(small_segmentor, Choice("onnxruntime", "int8"))
    with advises("runtimes/eight_bits.py:in_8_bits", "predict with it"):
        small_segmentor(pictures[0])
    choose_engine(small_segmentor, Choice("onnxruntime", "int8", (str(path),)))
    assert small_segmentor(pictures[0]).labels.size
    monkeypatch.setattr(engines, "has_int8", lambda: False)
    with advises("runtimes/engines.py:_check_processor", "use precision float32"):
        Choice("onnxruntime", "int8")
    assert Choice("onnxruntime", "float32")


def test_engines_that_cannot_compute(
    small_segmentor: Segmentor, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, opened = pictures[0], engines.open_onnx

    def fail(*rest: Any) -> Any:
        raise RuntimeError("an operation that there is not")

    other = advises("runtimes/engines.py:_check", "something else than torch", "use engine torch")
    fewer = advises("runtimes/sessions.py:call", "gave", "use engine torch")
    fails = advises("runtimes/sessions.py:call", "cannot compute images", "use engine torch")
    for change, refused in (
        (lambda run: lambda x: run(x).flip(1), other),
        (lambda run: lambda x: run(x)[:, 1:], fewer),
        (lambda run: fail, fails),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(engines, "open_onnx", _changed(opened, change))
            choose_engine(small_segmentor, Choice("onnxruntime"))
            with refused:
                small_segmentor(image)
        _plain(small_segmentor, image)
    monkeypatch.setattr(engines, "write_scores_network", fail)
    small_segmentor.model.decode_head.conv_seg.bias.data += 1  # which is not in the cache
    choose_engine(small_segmentor, Choice("onnxruntime"))
    with advises("runtimes/files.py:exporting", "use engine torch"):
        small_segmentor(image)
    _plain(small_segmentor, image)


def test_a_compiler_that_fails_in_one_process(
    small_segmentor: Segmentor, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no compiler here")

    compiled = engines.Compiled
    monkeypatch.setattr(
        engines, "Compiled",
        lambda *args, options, **more: compiled(*args, backend=broken, **more),
    )  # fmt: skip
    inputs = small_segmentor.network_inputs(pictures[0])
    for name in ("torch", "compile"):  # of the first process
        choose_engine(small_segmentor, Choice("compile"))
        assert small_segmentor.engine is not None
        if name == "torch":
            small_segmentor.engine.prepare(inputs, name)
            continue
        with advises("runtimes/engines.py:prepare", "use engine torch"):
            small_segmentor.engine.prepare(inputs, name)
    _plain(small_segmentor, pictures[0])


def test_models_without_another_engine(
    small_segmentor: Segmentor, pictures: Pictures, tmp_path: Path
) -> None:
    path = export_model(small_segmentor, tmp_path / "model.onnx")
    with advises("inference/engine.py:choose_engine", "name the model's checkpoint"):
        load_segmentor(path, engine="onnxruntime")
    small_segmentor.model.__class__ = StockEncoderDecoder  # type: ignore[assignment]
    with advises("runtimes/engines.py:use_engine", "use engine torch"):
        choose_engine(small_segmentor, Choice("onnxruntime"))
    assert isinstance(small_segmentor.model, nn.Module)
    assert choose_engine(small_segmentor, Choice("torch"))(pictures[0]).labels.size


def test_libraries_of_cuda_that_do_not_load(
    small_segmentor: Segmentor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    file = tmp_path / "model.onnx"
    write_scores_network(small_segmentor.model, 3, file)  # type: ignore[arg-type]
    opened, asked = onnxruntime.InferenceSession, []

    def on_the_cpu(*args: Any, providers: list[Any]) -> Any:
        asked.append(providers)
        return opened(*args, providers=["CPUExecutionProvider"])

    with monkeypatch.context() as patch:
        names = ["CUDAExecutionProvider", "CPUExecutionProvider"]
        patch.setattr(onnxruntime, "get_available_providers", lambda: names)
        patch.setattr(onnxruntime, "InferenceSession", on_the_cpu)
        with advises("runtimes/sessions.py:open_onnx", "CUDA libraries", "use device cpu"):
            open_onnx(file, torch.device("cuda"))
    assert asked[0][0] == ("CUDAExecutionProvider", {"device_id": 0, "use_tf32": "0"})
    assert open_onnx(file, torch.device("cpu")).run(torch.randn(1, 3, 64, 64)).shape[0] == 1


def test_another_place_for_the_cache(
    small_segmentor: Segmentor, pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MMSEG_RESNEST_CACHE", str(tmp_path / "file"))
    choose_engine(small_segmentor, Choice("onnxruntime"))
    with advises("runtimes/store.py:_elsewhere", "MMSEG_RESNEST_CACHE"):
        small_segmentor(pictures[0])
    monkeypatch.setenv("MMSEG_RESNEST_CACHE", str(tmp_path / "other"))
    assert small_segmentor(pictures[0]).labels.size


def test_a_cache_that_is_full(
    small_segmentor: Segmentor, pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, place = engines.write_scores_network, tmp_path / "full"

    def full(model: Any, channels: int, path: Path) -> None:
        if place in path.parents:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(model, channels, path)

    monkeypatch.setattr(engines, "write_scores_network", full)
    monkeypatch.setenv("MMSEG_RESNEST_CACHE", str(place))
    choose_engine(small_segmentor, Choice("onnxruntime"))
    with advises("runtimes/store.py:_elsewhere", "make room", "MMSEG_RESNEST_CACHE"):
        small_segmentor(pictures[0])
    assert not list(place.glob("engines/*/*"))
    monkeypatch.setenv("MMSEG_RESNEST_CACHE", str(tmp_path / "other"))
    assert small_segmentor(pictures[0]).labels.size
