# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Training with ``--compile``: the same losses up to rounding, resumed, and recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from advice import advises
from mmengine.config import Config
from small_runs import losses, run, small_config, use_sgd
from user_errors import raises_user_error

from mmseg_resnest.datasets.scenes import write_scenes
from mmseg_resnest.engine.preflight import check_compile


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_scenes(folder / "scenes", 8, 2, progress=False)
    return folder / "scenes"


def _config(scenes: Path, backend: Any = None) -> Any:
    cfg = use_sgd(small_config(scenes, iterations=4, randomness__seed=3, dry_step=False))
    cfg.default_hooks.checkpoint.interval = 2
    if backend is not None:
        cfg.compile = dict(backend=backend)
    return cfg


def _meta(checkpoint: Path) -> dict[str, Any]:
    return torch.load(checkpoint, weights_only=True)["meta"]


def _check(scenes: Path, folder: Path, backend: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run(_config(scenes), folder / "plain")
    wanted = losses(folder / "plain" / "iter_4.pth")
    run(_config(scenes, backend), folder / "compiled", compiled=True)
    said = capsys.readouterr().out
    assert said.count("torch.compile: compiling") == 1
    assert losses(folder / "compiled" / "iter_4.pth") == pytest.approx(wanted, rel=2e-3)
    assert _meta(folder / "compiled" / "iter_4.pth")["numerics"]["engine"] == "compile"
    assert _meta(folder / "plain" / "iter_4.pth")["numerics"]["engine"] == "torch"
    (folder / "compiled" / "iter_4.pth").unlink()
    run(_config(scenes, backend), folder / "compiled", compiled=True, resume="auto")
    assert losses(folder / "compiled" / "iter_4.pth") == pytest.approx(wanted, rel=2e-3)


def test_what_is_no_segmentor_is_not_compiled() -> None:
    cfg = Config({"model": {"type": "mmdet.FasterRCNN"}, "compile": True})
    with advises("engine/preflight.py:check_compile", "leave it and --compile out"):
        check_compile(cfg)
    cfg.compile = False
    check_compile(cfg)


def test_a_compiled_run(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _check(scenes, tmp_path, "eager", capsys)
    with raises_user_error("resume-changed", "--resume"):
        run(_config(scenes), tmp_path / "compiled", resume="auto")


@pytest.mark.long
def test_a_run_compiled_to_machine_code(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _check(scenes, tmp_path, "inductor", capsys)


def test_plain_torch_where_it_fails(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    real = torch.compile

    def broken(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", lambda own, **options: real(own, backend=broken))
    run(_config(scenes), tmp_path / "failed", compiled=True)
    said = capsys.readouterr().out
    assert said.count("torch.compile failed") == 1
    assert _meta(tmp_path / "failed" / "iter_4.pth")["numerics"]["engine"] == "torch"
    run(_config(scenes), tmp_path / "plain")
    assert losses(tmp_path / "failed" / "iter_4.pth") == losses(tmp_path / "plain" / "iter_4.pth")
