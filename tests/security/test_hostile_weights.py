# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Hostile weights files through everything that reads weights."""

from __future__ import annotations

import inspect
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

import mmseg_resnest
from mmseg_resnest import load_segmentor
from mmseg_resnest.engine.checkpoint import load_weights
from mmseg_resnest.engine.checkpoint_schema import check_training_checkpoint
from mmseg_resnest.models import ResNeSt
from mmseg_resnest.registry import MODELS, building
from mmseg_resnest.weights import load_checkpoint, load_training_checkpoint, use_safe_loaders

# Each of these takes milliseconds; a file that makes a loader compute for ever must fail.
pytestmark = pytest.mark.timeout(60)


def _converted(path: Path) -> Any:
    code = tool("convert_checkpoint.py", path, path.parent / "converted.pth")
    return code, torch.load(path.parent / "converted.pth", weights_only=True)


def _resnest(path: Path) -> None:
    pretrained = dict(type="Pretrained", checkpoint=str(path))
    ResNeSt(arch="resnest14", out_indices=(0,), init_cfg=pretrained).init_weights()


def _stacks_backbone(path: Path) -> None:
    """MMSegmentation's backbone; its initialiser is that of this package's scope."""
    backbone = small_config().model.backbone
    init = dict(type="Pretrained", checkpoint=str(path))
    with building("mmseg_resnest"):
        MODELS.build({**backbone, "init_cfg": init}).init_weights()


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
    "convert_checkpoint.py": _converted,
    "load_from": lambda path: load_weights(Model(), path, start_training=True),
    "load_segmentor": lambda path: load_segmentor(small_config(), path, "cpu"),
    "init_cfg": _resnest,
    "init_cfg of the stack": _stacks_backbone,
    "mmengine's loader": _mmengines,
}
#: They give out what is in a file, whatever it is, or pass over what fits nowhere (MMEngine's).
_WHOLE_FILE = {
    "load_training_checkpoint", "check_training_checkpoint", "init_cfg of the stack",
    "mmengine's loader",
}  # fmt: skip


@pytest.mark.parametrize("container", made.CONTAINERS, ids=lambda maker: maker.__name__)
@pytest.mark.parametrize("payload", made.PAYLOADS)
def test_no_pickle_calls_anything(container: Any, payload: str, sandbox: Sandbox) -> None:
    value = made.payloads(sandbox)[payload]
    path = container(sandbox, value)
    for name, loader in LOADERS.items():
        sandbox.canary.unlink(missing_ok=True)
        try:
            sandbox.refused(lambda loader=loader: loader(path), path.name)
        except (AssertionError, Exception) as error:
            raise AssertionError(f"{name}: {error}") from error


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("maker", made.REFUSED, ids=lambda maker: maker.__name__)
def test_refused(maker: made.Attack, loader: str, sandbox: Sandbox) -> None:
    path = maker(sandbox)
    # What is no weights file may be given out as the plain data that it is, by who asks for that.
    check = sandbox.harmless if loader in _WHOLE_FILE else sandbox.refused
    error = check(lambda: LOADERS[loader](path), path.name)
    message = error if isinstance(error, str) else error.error or ""
    assert len(message) < 4000
    assert all(part.isprintable() for part in message.split("\n")), repr(message)


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("maker", made.HARMLESS, ids=lambda maker: maker.__name__)
def test_harmless(maker: made.Attack, loader: str, sandbox: Sandbox) -> None:
    path = maker(sandbox)
    sandbox.harmless(lambda: LOADERS[loader](path), path.name)


@pytest.mark.parametrize(
    "name",
    [
        "packed_members", "two_directories", "two_end_records", "overlapping_members",
        "legacy_storage_of_a_terabyte", "storage_beyond_its_record",
    ],
)  # fmt: skip
def test_archives_that_lie_are_refused_by_every_loader(name: str, sandbox: Sandbox) -> None:
    path = getattr(made, name)(sandbox)
    for loader in LOADERS.values():
        sandbox.refused(lambda loader=loader: loader(path), path.name)


def test_files_that_load_are_what_the_tests_say(sandbox: Sandbox) -> None:
    """The makers start from files that all loaders of weights take."""
    torch.save({"state_dict": made.WEIGHTS}, sandbox.files / "good.pth")
    loaded = sandbox.run(lambda: load_checkpoint(sandbox.files / "good.pth"))
    assert loaded.value is not None and loaded.value.keys() == made.WEIGHTS.keys()
    assert all(inspect.getdoc(maker) for maker in (*made.REFUSED, *made.HARMLESS))


def test_the_sandbox_sees_what_it_is_for(sandbox: Sandbox) -> None:
    """Each thing that hostile files must not do is noticed."""

    def ran() -> None:
        sandbox.canary.touch()

    def imported() -> None:
        __import__(sandbox.module)
        sandbox.canary.unlink()

    def read() -> None:
        (sandbox.outside / "secret.txt").read_text()

    def removed() -> None:
        (sandbox.outside / "weights.pth").unlink()

    def grew() -> None:
        bytearray(2 << 30)

    for act in (ran, imported, read, removed):
        with pytest.raises(AssertionError):
            sandbox.run(act)
        sandbox.canary.unlink(missing_ok=True)
    with pytest.raises(MemoryError):
        sandbox.run(grew)
    assert mmseg_resnest.__file__
