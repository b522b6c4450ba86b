# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Files are of one content: of its layers as they are, and of nothing foreign in the cache."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from user_errors import raises_user_error

from mmseg_resnest.inference import Segmentor
from mmseg_resnest.inference.engine import choose_engine, prepare_engine
from mmseg_resnest.runtimes import Choice, engines, network

Pictures = list[NDArray[np.uint8]]


def _key(model: Segmentor) -> str:
    return network.content_key(model.model, model.cfg)  # type: ignore[arg-type]


def test_layers_that_were_changed_are_another_content(
    small_segmentor: Segmentor, pictures: Pictures
) -> None:
    model: Any = small_segmentor.model
    keys = [_key(small_segmentor)]
    small_segmentor.cfg.test_dataloader.dataset.metainfo.classes = list("abcd")
    choose_engine(small_segmentor, Choice("onnxruntime"))
    assert prepare_engine(small_segmentor, pictures)
    model.train().eval()
    assert _key(small_segmentor) == keys[0]
    first = model.backbone.layer1[0]
    for change in (
        lambda: setattr(model.decode_head, "align_corners", True),
        lambda: setattr(first.conv1, "padding", (2, 2)),
        lambda: setattr(first.conv1, "padding", (1, 1)) or setattr(first, "relu", nn.GELU()),
    ):
        change()
        keys.append(_key(small_segmentor))
    assert len(set(keys)) == 4
    choose_engine(small_segmentor, Choice())
    wanted = small_segmentor(pictures[0]).labels
    choose_engine(small_segmentor, Choice("onnxruntime"))
    assert (small_segmentor(pictures[0]).labels == wanted).mean() >= 0.9999


def test_weights_that_are_loaded_later_count(
    small_segmentor: Segmentor, pictures: Pictures
) -> None:
    """In a model that an engine computes already, and in a copy of it."""
    model: Any = small_segmentor.model
    others = {name: value.clone() for name, value in model.state_dict().items()}
    others["decode_head.conv_seg.bias"][0] += 3
    wanted = [small_segmentor(pictures[0]).labels]
    choose_engine(small_segmentor, Choice("onnxruntime"))
    assert prepare_engine(small_segmentor, pictures)
    engine, another = small_segmentor.engine, copy.deepcopy(small_segmentor)
    another.model.load_state_dict(others)
    wanted.append(another(pictures[0]).labels)
    assert (wanted[1] != wanted[0]).any()
    assert engine is not None
    assert engine.ready
    assert (small_segmentor(pictures[0]).labels == wanted[0]).mean() >= 0.9999
    model.load_state_dict(others)
    assert not engine.ready
    assert (small_segmentor(pictures[0]).labels == wanted[1]).mean() >= 0.9999
    assert engine.describe()["labels_as_torch"] >= 0.9999
    # An engine that is not used any more goes.
    gone = weakref.ref(engine)
    choose_engine(small_segmentor, Choice())
    del engine, another
    gc.collect()
    assert gone() is None
    assert not model._load_state_dict_post_hooks


def test_weights_that_are_changed_in_place_count(
    small_segmentor: Segmentor, pictures: Pictures
) -> None:
    """Also those of a part of the model, and while another type of numbers is computed."""
    model: Any = small_segmentor.model
    bias = model.decode_head.conv_seg.bias
    part = {name: value.clone() for name, value in model.decode_head.state_dict().items()}
    part["conv_seg.bias"][1] += 3

    def step() -> None:
        with torch.no_grad():
            bias[0] += 3

    choose_engine(small_segmentor, Choice("onnxruntime"))
    seen = [small_segmentor(pictures[0]).labels]
    for change in (step, lambda: model.decode_head.load_state_dict(part), model.double):
        change()
        found = small_segmentor(pictures[0]).labels
        assert small_segmentor.engine is not None
        assert small_segmentor.engine.computes == "onnxruntime"
        with torch.no_grad():
            runtime, model.runtime = model.runtime, None
            wanted = small_segmentor(pictures[0]).labels
            model.runtime = runtime
        assert (found == wanted).mean() >= 0.999
        seen.append(found)
    assert (seen[0] != seen[1]).any()
    assert (seen[1] != seen[2]).any()


def test_a_model_is_sent_to_another_process(small_segmentor: Segmentor, pictures: Pictures) -> None:
    choose_engine(small_segmentor, Choice("onnxruntime"))
    wanted = small_segmentor(pictures[0]).labels
    found = pickle.loads(pickle.dumps(small_segmentor))
    assert not found.engine.ready
    assert (found(pictures[0]).labels == wanted).all()
    assert found.engine.ready
    assert found.model.runtime is found.engine


def test_the_code_of_this_package_belongs_to_the_content(
    small_segmentor: Segmentor, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: list[Any] = []
    monkeypatch.setattr(network, "fingerprint", lambda *some: parts.extend(some))
    _key(small_segmentor)
    (files,) = (part for part in parts if isinstance(part, list) and isinstance(part[0], Path))
    names = {"/".join(file.parts[-2:]) for file in files}
    assert {"models/segmentor.py", "runtimes/free_sizes.py", "runtimes/network.py"} <= names


@pytest.mark.parametrize("name", ["model.onnx", "record.json"])
def test_a_folder_in_the_place_of_a_file_goes(
    small_segmentor: Segmentor, pictures: Pictures, cache: Path, name: str
) -> None:
    for _ in range(2):
        choose_engine(small_segmentor, Choice("onnxruntime"))
        assert prepare_engine(small_segmentor, pictures)
        (file,) = cache.glob(f"*/{name}")
        assert file.is_file()
        file.unlink()
        (file / "inside").mkdir(parents=True)


def test_scores_of_no_pixels_are_refused(
    small_segmentor: Segmentor, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As OpenVINO gives them for an image of one row."""
    opened = engines.open_onnx

    def empty(*args: Any) -> Any:
        return opened(*args)._replace(run=lambda images: torch.zeros(len(images), 4, 0, 3))

    monkeypatch.setattr(engines, "open_onnx", empty)
    choose_engine(small_segmentor, Choice("onnxruntime"))
    with raises_user_error("model", "engine onnxruntime"):
        small_segmentor(pictures[0])
