# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Two processes that would do different runs: both say so and end, before the first step."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import pytest
from tool_runs import RunTool, Toy, Trained

_LIMIT = 120  # seconds, after which a process counts as hung
_DATA = 'train_dataloader = dict(dataset=dict(data_root="data{{$RANK:0}}"))\n'
_OWN = """
custom_imports = dict(imports=["own_part"])
custom_hooks = [dict(type="OwnHook")]
"""
_HOOK = """
import own_helper
from mmengine.hooks import Hook
from mmseg_resnest.registry import HOOKS


@HOOKS.register_module()
class OwnHook(Hook):
    pass
"""
_STEP = """
import os
from mmseg_resnest.registry import TRANSFORMS


@TRANSFORMS.register_module()
class OwnStep:
    def __call__(self, results):
        return results if os.environ["RANK"] == "0" else results["own"]
"""

# Two machines, each with a cache of its own; ONNX Runtime is the fastest on the first one alone.
_ENGINES = """
import atexit, os, sys
import mmseg_resnest.runtimes.engines as engines
second = os.environ["RANK"] == "1"
os.environ["MMSEG_RESNEST_CACHE"] += os.environ["RANK"]
engines._MEASURED = ("torch", "onnxruntime")
times = iter([1.0, 2.0] if second else [2.0, 1.0])
engines.seconds_of = lambda run, images: (run(images), next(times))[1]
opened, computed = engines.open_onnx, []

def open_onnx(*args):
    session = opened(*args)
    return session._replace(run=lambda images: (computed.append(0), session.run(images))[1])

engines.open_onnx = open_onnx
atexit.register(lambda: print("computed", len(computed)))
"""


def _two_roots(toy: Toy) -> None:
    """The same data at another place for each process."""
    for rank in (0, 1):
        shutil.copytree(toy.scenes, toy.folder / f"data{rank}")


def _without(toy: Toy, kind: str) -> str:
    """Take an image, a label map or both away from the second process."""
    _two_roots(toy)
    folders = [toy.folder / "data1" / k / "training" for k in ("images", "annotations")]
    name = sorted(p.name for p in folders[0].iterdir())[2]
    for folder in folders:
        if kind in (folder.parent.name, "both"):
            (folder / name).unlink()
    return name


def _both_end(
    toy: Toy, run_tool: RunTool, *args: str, before: str = "", env: dict[str, str] | None = None
) -> str:
    """What the first of two processes says; both end with exit code 2, the second in silence."""
    before += (
        "\nimport mmseg_resnest_cli.process as process\nprocess._SECONDS_FOR_THE_FIRST = 0.1\n"
    )
    listing = {p for p in toy.folder.rglob("*") if p.is_file()}
    runs = run_tool.ranks(2, *args, cwd=toy.folder, timeout=_LIMIT, before=before, env=env)
    assert runs[1].returncode == 2
    assert runs[1].stderr == ""
    new = {p for p in toy.folder.rglob("*") if p.is_file()} - listing
    assert not [p for p in new if p.suffix != ".pyc"]
    return runs[0].error()


def _difference(error: str) -> str:
    host = socket.gethostname()
    assert f"process 1 on {host} differs from process 0 on {host}: " in error
    return error


def test_another_config(toy: Toy, run_tool: RunTool) -> None:
    toy.variant("differs", "optim_wrapper = dict(optimizer=dict(lr=0.01 + int('{{$RANK:0}}')))")
    error = _difference(_both_end(toy, run_tool, "train.py", "differs.py"))
    assert "config key optim_wrapper.optimizer.lr is 1.01, not 0.01" in error


def test_another_sample(toy: Toy, run_tool: RunTool) -> None:
    toy.variant("differs", _DATA)
    name = _without(toy, "both")
    error = _difference(_both_end(toy, run_tool, "train.py", "differs.py"))
    assert f"train_dataloader.dataset has 5 images, not 6, without {name}" in error


@pytest.mark.long
def test_other_data_to_test_on(toy: Toy, trained: Trained, run_tool: RunTool) -> None:
    toy.variant("differs", _DATA.replace("train_", "test_"))
    _two_roots(toy)
    for kind in ("images", "annotations"):
        file = min((toy.folder / "data1" / kind / "validation").iterdir())
        file.rename(file.with_name(f"another_{file.name}"))
    args = ("test.py", "differs.py", str(trained.checkpoint))
    error = _difference(_both_end(toy, run_tool, *args))
    assert "test_dataloader.dataset has other images, without" in error


def test_a_file_that_one_process_misses(toy: Toy, run_tool: RunTool) -> None:
    """It fails before the processes have met, and the other one does not wait for it."""
    toy.variant("differs", _DATA)
    name = _without(toy, "annotations")
    error = _both_end(toy, run_tool, "train.py", "differs.py")
    assert f"process 1 on {socket.gethostname()}: " in error
    assert name in error


@pytest.mark.long
def test_a_config_that_one_process_misses(toy: Toy, run_tool: RunTool) -> None:
    before = "import os; os.chdir('/') if os.environ['RANK'] == '1' else None"
    error = _both_end(toy, run_tool, "train.py", "toy.py", before=before)
    assert f"process 1 on {socket.gethostname()}: config toy.py: does not exist" in error


def test_a_part_that_no_loss_reads(toy: Toy, run_tool: RunTool) -> None:
    """The head reads the third stage; the remedy that the error names makes the run train."""
    head = "model = dict(decode_head=dict(in_channels=16, in_index=2))\n"
    toy.variant("unused", head)
    error = _both_end(toy, run_tool, "train.py", "unused.py")
    assert "config key find_unused_parameters" in error
    assert not (toy.folder / "work_dirs").exists()
    toy.variant("unused", f"{head}find_unused_parameters = True\ntrain_cfg = dict(max_iters=2)\n")
    for run in run_tool.ranks(2, "train.py", "unused.py", cwd=toy.folder, timeout=_LIMIT):
        run.check()


def test_a_first_sample_that_one_process_cannot_make(toy: Toy, run_tool: RunTool) -> None:
    toy.variant(
        "differs",
        'custom_imports = dict(imports=["own_step"])\n'
        "steps = _base_.train_pipeline\n"
        'steps = [*steps[:2], dict(type="OwnStep"), *steps[2:]]\n'
        "train_dataloader = dict(dataset=dict(pipeline=steps))\n",
    )
    (toy.folder / "own_step.py").write_text(_STEP)
    env = {"PYTHONPATH": str(toy.folder)}
    error = _both_end(toy, run_tool, "train.py", "differs.py", env=env)
    assert f"process 1 on {socket.gethostname()}: config key train_dataloader.dataset" in error
    assert "KeyError: 'own'" in error
    assert not (toy.folder / "work_dirs").exists()


def test_another_module_of_the_user(toy: Toy, run_tool: RunTool) -> None:
    """The module that the config names is the same, and imports another one."""
    toy.variant("differs", _OWN)
    for rank in (0, 1):
        folder = toy.folder / f"code{rank}"
        folder.mkdir()
        (folder / "own_part.py").write_text(_HOOK)
        (folder / "own_helper.py").write_text(f"FACTOR = {rank}\n")
    before = f"import os, sys; sys.path.insert(0, '{toy.folder}/code' + os.environ['RANK'])"
    error = _difference(_both_end(toy, run_tool, "train.py", "differs.py", before=before))
    assert "source of module own_helper" in error
    assert "own_part" not in error


def test_places_may_differ(toy: Toy, trained: Trained, run_tool: RunTool) -> None:
    """The same files elsewhere, and other numbers of workers."""
    _two_roots(toy)
    for rank in (0, 1):
        (toy.folder / f"from{rank}").mkdir()
        shutil.copy(trained.checkpoint, toy.folder / f"from{rank}" / "start.pth")
    text = _DATA.replace("data{{", f"{toy.folder}/data{{{{") + (
        "train_dataloader['num_workers'] = int('{{$RANK:0}}')\n"
        f'load_from = "{toy.folder}/from{{{{$RANK:0}}}}/start.pth"\n'
        "train_cfg = dict(max_iters=1, val_interval=1)\n"
    )
    toy.variant("places", text)
    for run in run_tool.ranks(2, "train.py", "places.py", cwd=toy.folder, timeout=_LIMIT):
        run.check()


def test_the_first_process_chooses_the_engine(
    trained: Trained, run_tool: RunTool, tmp_path: Path
) -> None:
    args = ("test.py", "toy.py", trained.checkpoint, "--engine", "auto", "--work-dir", tmp_path)
    env = {"MMSEG_RESNEST_CACHE": str(tmp_path / "cache")}
    cwd = trained.toy.folder
    runs = run_tool.ranks(2, *args, cwd=cwd, timeout=_LIMIT, before=_ENGINES, env=env)
    # The comparison with torch and the images, two for each process.
    assert "computed 3" in runs[1].check().stdout
    runs[0].check()
    numerics = json.loads((tmp_path / "results.json").read_text())["numerics"]
    assert numerics["engine"].startswith("onnxruntime")


@pytest.mark.long
def test_an_engine_that_one_process_lacks(
    trained: Trained, run_tool: RunTool, tmp_path: Path
) -> None:
    args = ("test.py", "toy.py", trained.checkpoint, "--engine", "auto", "--work-dir", tmp_path)
    env = {"MMSEG_RESNEST_CACHE": str(tmp_path / "cache")}
    before = f"{_ENGINES}\nif second: sys.modules['onnxruntime'] = None\n"
    cwd = trained.toy.folder
    runs = run_tool.ranks(2, *args, cwd=cwd, timeout=_LIMIT, before=before, env=env)
    assert runs[1].returncode == 2
    error = runs[0].error()
    assert f"process 1 on {socket.gethostname()}: engine onnxruntime: " in error
    assert not (tmp_path / "results.json").exists()


def test_another_engine(trained: Trained, run_tool: RunTool) -> None:
    args = ("test.py", "toy.py", str(trained.checkpoint))
    before = "import os, sys; sys.argv += ['--engine', 'auto'] * (os.environ['RANK'] == '1')"
    error = _difference(_both_end(trained.toy, run_tool, *args, before=before))
    assert "argument choice.engine is 'auto', not 'torch'" in error
