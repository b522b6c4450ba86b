# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What a run takes from a hub gets its commit wherever a config names it."""

from __future__ import annotations

from pathlib import Path

from hub_server import Repo, serving
from mmengine.config import Config

from mmseg_resnest.engine.pins import find_pins, set_pins


def named(name: str) -> dict:
    return dict(init_cfg=dict(type="Pretrained", checkpoint=name))


def test_every_place_of_a_config(tmp_path: Path) -> None:
    def config() -> Config:
        return Config(
            dict(
                load_from="hf://me/a",
                distillation=dict(teacher="hf://me/a@v1", losses=[]),
                model=dict(backbone=named("hf://me/b"), heads=[named("resnest50")], **named("x")),
            )
        )

    with serving(tmp_path) as hub:
        hub.repos = {"me/a": Repo(), "me/b": Repo()}
        first = hub.repos["me/a"].commit({"x": b""}, "v1")
        main, other = hub.repos["me/a"].commit({"y": b""}), hub.repos["me/b"].commit({"z": b""})
        cfg = config()
        pins = find_pins(cfg, None, resumes=False)
        assert cfg.load_from == "hf://me/a", "nothing is changed yet"
        set_pins(cfg, pins)
        assert cfg.load_from == f"hf://me/a@{main}"
        assert cfg.distillation.teacher == f"hf://me/a@{first}"
        assert cfg.model.backbone.init_cfg.checkpoint == f"hf://me/b@{other}"
        assert cfg.model.heads[0].init_cfg.checkpoint == "resnest50"
        # a run that goes on starts from its own weights, and has its teacher
        assert set(find_pins(config(), None, resumes=True)) == {"hf://me/a@v1"}
        assert find_pins(config(), "hf://me/b", resumes=True) == {"hf://me/b": f"hf://me/b@{other}"}
        assert find_pins(config(), "a_run", resumes=True) == {"a_run": "a_run"}
