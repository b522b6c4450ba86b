# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Models are loaded by several threads at once, while others predict."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from small_models import balanced, blobs, small_config

from mmseg_resnest import UserError, load_segmentor
from mmseg_resnest.engine.config import load_config
from mmseg_resnest.export import export_model
from mmseg_resnest.export.publish import publish
from mmseg_resnest.inference import Segmentor

ROUNDS = 2
IMAGE = blobs(72, 88, 3)
Load = Callable[[], Segmentor]


def _from_files(path: Path, cfg: Config | str) -> Load:
    """A config file and a checkpoint of its own."""
    torch.manual_seed(len(path.name))
    config: Path | str = cfg if isinstance(cfg, str) else path
    if isinstance(cfg, Config):
        cfg.dump(path)
    model = balanced(load_segmentor(config, None, "cpu"))
    weights = path.with_suffix(".pth")
    torch.save(model.model.state_dict(), weights)
    return lambda: load_segmentor(config, weights, "cpu")


def _with_resnest(scope: str) -> Config:
    """The name ``ResNeSt`` is another class in each of the two scopes."""
    cfg = small_config()
    cfg.default_scope = scope
    cfg.model.backbone = dict(type="ResNeSt", norm_cfg=dict(type="BN"))
    if scope == "mmseg":
        cfg.model.backbone.update(depth=50, base_channels=8, stem_channels=8, reduction_factor=4)
        cfg.model.decode_head.in_channels = 256
    else:
        cfg.model.backbone.update(arch="resnest14")
        cfg.model.decode_head.in_channels = 2048
    return cfg


@pytest.fixture(scope="module")
def loads(tmp_path_factory: pytest.TempPathFactory) -> list[Load]:
    """Eight ways to load eight models."""
    folder = tmp_path_factory.mktemp("threads")
    torch.manual_seed(7)
    small = balanced(load_segmentor(small_config(classes=5), None, "cpu"))
    exported = export_model(small, folder / "model.onnx")
    publish(small, folder / "published", licence="apache-2.0")
    mmseg = small_config()
    mmseg.default_scope = "mmseg_resnest"
    return [
        _from_files(folder / "scenes.py", "configs/fcn_resnest14_scenes.py"),
        _from_files(folder / "ours.py", _with_resnest("mmseg_resnest")),
        _from_files(folder / "theirs.py", _with_resnest("mmseg")),
        _from_files(folder / "pixel.py", small_config(pixel=True)),
        _from_files(folder / "scope.json", mmseg),
        _from_files(folder / "seven.py", small_config(classes=7)),
        lambda: load_segmentor(exported, device="cpu"),
        lambda: load_segmentor(folder / "published", device="cpu"),
    ]


def _facts(model: Segmentor) -> tuple[Any, ...]:
    kinds = [f"{type(part).__module__}.{type(part).__name__}" for part in model.model.modules()]
    return kinds, model.classes, model(IMAGE).labels.tobytes()


def _scopes() -> list[tuple[str, str]]:
    return [(name, scope.scope_name) for name, scope in DefaultScope._instance_dict.items()]


def test_eight_threads_load_while_two_predict(loads: list[Load]) -> None:
    before = _scopes()
    alone = [load() for load in loads]
    expected = [_facts(model) for model in alone]
    assert len({str(facts) for facts in expected}) == len(loads)
    stop = threading.Event()
    start = threading.Barrier(len(loads))

    def predict(model: Segmentor) -> int:
        labels, count = model(IMAGE).labels, 0
        while not stop.is_set():
            np.testing.assert_array_equal(model(IMAGE).labels, labels)
            count += 1
        return count

    def load(i: int) -> None:
        for n in range(ROUNDS):
            start.wait(600)
            k = (i + n) % len(loads)
            try:
                assert _facts(loads[k]()) == expected[k], k
            except BaseException:
                start.abort()
                raise

    with ThreadPoolExecutor(len(loads) + 2) as pool:
        predictions = [pool.submit(predict, model) for model in alone[:2]]
        loading = [pool.submit(load, i) for i in range(len(loads))]
        try:
            problems = [job.exception() for job in loading]
        finally:
            stop.set()
        assert not any(problems), problems
        assert all(job.result() > 0 for job in predictions)
    assert _scopes() == before


@pytest.mark.parametrize("scope", [None, "mmdet"])
def test_the_default_scope_is_put_back(
    scope: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with DefaultScope.overwrite_default_scope(scope):
        before = _scopes()
        cfg = small_config()
        load_segmentor(cfg, None, "cpu")
        assert _scopes() == before
        broken = small_config()
        broken.model.decode_head.num_classes = "four"
        (tmp_path / "bad.pth").write_bytes(b"nothing")
        (tmp_path / "bad.py").write_text("model = dict(\n")
        for config, checkpoint in [
            (broken, None), (cfg, tmp_path / "bad.pth"), (tmp_path / "bad.py", None),
        ]:  # fmt: skip
            with pytest.raises(UserError):
                load_segmentor(config, checkpoint, "cpu")
            assert _scopes() == before


def test_data_roots_of_two_threads_do_not_mix(tmp_path: Path) -> None:
    """``data_root`` goes through the environment of the process."""
    config = tmp_path / "root.py"
    config.write_text(
        'default_scope = "mmseg_resnest"\ndata_root = "{{$MMSEG_RESNEST_DATA:data}}/x"\n'
    )

    def read(i: int) -> bool:
        root = tmp_path / str(i % 4)
        root.mkdir(exist_ok=True)
        return bool(load_config(config, data_root=root).data_root == f"{root}/x")

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(64)))
