# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Hostile weights files through everything that reads weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile_checkpoints as made
import mmengine.runner
import pytest
import torch
from mmengine.runner.checkpoint import CheckpointLoader
from sandbox import Sandbox, tool
from small_models import small_config
from tiny_runs import Model

from mmseg_resnest import load_segmentor
from mmseg_resnest.engine.checkpoint import load_weights
from mmseg_resnest.engine.checkpoint_schema import check_training_checkpoint
from mmseg_resnest.models import ResNeSt
from mmseg_resnest.registry import MODELS, building
from mmseg_resnest.weights import load_checkpoint, load_training_checkpoint, use_safe_loaders

# Each of these takes milliseconds; a file that makes a loader compute for ever must fail.
pytestmark = pytest.mark.timeout(60)


def _resnest(path: Path) -> None:
    pretrained = dict(type="Pretrained", checkpoint=str(path))
    ResNeSt(arch="resnest14", out_indices=(0,), init_cfg=pretrained).init_weights()


def _stacks_backbone(path: Path) -> None:
    """MMSegmentation's backbone; its initialiser is that of this package's scope."""
    init = dict(type="Pretrained", checkpoint=str(path))
    with building("mmseg_resnest"):
        MODELS.build({**small_config().model.backbone, "init_cfg": init}).init_weights()


def _mmengines(path: Path) -> None:
    """MMEngine's own loader, as the commands set it up for their process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CheckpointLoader, "_schemes", dict(CheckpointLoader._schemes))
        use_safe_loaders()
        mmengine.runner.load_checkpoint(Model(), str(path))


LOADERS: dict[str, Callable[[Path], Any]] = {
    "load_checkpoint": load_checkpoint,
    "load_training_checkpoint": load_training_checkpoint,
    "check_training_checkpoint": lambda path: check_training_checkpoint(str(path)),
    "convert-checkpoint": lambda p: tool("convert-checkpoint", p, p.parent / "converted.pth"),
    "load_from": lambda path: load_weights(Model(), path, start_training=True),
    "load_segmentor": lambda path: load_segmentor(small_config(), path, "cpu"),
    "a checkpoint alone": lambda path: load_segmentor(path, device="cpu"),
    "init_cfg": _resnest,
    "init_cfg of the stack": _stacks_backbone,
    "mmengine's loader": _mmengines,
}
#: They give out the plain data of a file, whatever it is, or ignore what fits nowhere (MMEngine's).
_WHOLE_FILE = {
    "load_training_checkpoint", "check_training_checkpoint", "init_cfg of the stack",
    "mmengine's loader",
}  # fmt: skip
#: These archives say one thing and hold another; nobody may read them.
_LIES = {
    "packed_members", "two_directories", "two_end_records", "overlapping_members",
    "legacy_storage_of_a_terabyte", "storage_beyond_its_record",
}  # fmt: skip


@pytest.mark.parametrize("loader", LOADERS)
def test_no_pickle_calls_anything(loader: str, sandbox: Sandbox, subtests: Any) -> None:
    """Each payload in one container, and one payload in each container."""
    first = next(iter(made.CONTAINERS))
    pairs = [(first, payload) for payload in made.payloads(sandbox)]
    pairs += [(container, "os.system") for container in made.CONTAINERS]
    for container, payload in pairs:
        path = made.pickled(sandbox, container, payload)
        with subtests.test(container=container, payload=payload):
            sandbox.canary.unlink(missing_ok=True)
            sandbox.refused(lambda path=path: LOADERS[loader](path), path.name)


@pytest.mark.parametrize("name", made.ATTACKS)
def test_files_that_lie_or_grow(name: str, sandbox: Sandbox, subtests: Any) -> None:
    path = made.ATTACKS[name].make(sandbox)
    for loader, load in LOADERS.items():
        refused = made.ATTACKS[name].must_be_refused and loader not in _WHOLE_FILE
        check = sandbox.refused if refused or name in _LIES else sandbox.harmless
        with subtests.test(loader=loader):
            check(lambda load=load: load(path), path.name)


def test_the_valid_file_loads(sandbox: Sandbox) -> None:
    torch.save({"state_dict": made.WEIGHTS}, sandbox.files / "good.pth")
    loaded = sandbox.harmless(lambda: load_checkpoint(sandbox.files / "good.pth")).value
    assert loaded.keys() == made.WEIGHTS.keys()


def test_the_sandbox_notices_harm(sandbox: Sandbox) -> None:
    """Each thing that hostile files must not do is noticed."""

    def imports() -> None:
        __import__(sandbox.module)
        sandbox.canary.unlink()

    acts: list[Callable[[], Any]] = [
        sandbox.canary.touch,
        imports,
        lambda: (sandbox.outside / "secret.txt").read_text(),
        lambda: (sandbox.outside / "weights.pth").unlink(),
    ]
    for act in acts:
        with pytest.raises(AssertionError):
            sandbox.harmless(act)
        sandbox.canary.unlink(missing_ok=True)
    with pytest.raises(MemoryError):
        sandbox.harmless(lambda: bytearray(2 << 30))
