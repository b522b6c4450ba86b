# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Several processes train as one does, with Gloo on this machine."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from run_state import differences, final_state, load, logged
from tool_runs import TOOLS, Run, RunTool, Toy, make_toy

from mmseg_resnest.engine.saving import point_to

ITERATIONS = 6
CONFIG = f"""
train_dataloader = dict(sampler=dict(type="ExactSampler"))
model = dict(decode_head=dict(dropout_ratio=0))  # processes do not drop the same as one does
train_cfg = dict(max_iters={ITERATIONS}, val_interval=3)
default_hooks = dict(checkpoint=dict(interval=2, max_keep_ckpts=-1))
dry_step = False  # tests/engine/test_dry_step.py has it for two processes
"""
# All that has a state, for what must be exact.
EVERYTHING = """
_base_ = "dist.py"
custom_imports = dict(imports=["strike"])
model = dict(decode_head=dict(dropout_ratio=0.1))
custom_hooks = [dict(type="EMAHook", momentum=0.1), dict(type="Strike", code={code!r})]
optim_wrapper = dict(type="BFloat16OptimWrapper", accumulative_counts=2)
"""
# One of two processes is struck in a step.
STRUCK = """
_base_ = "dist.py"
custom_imports = dict(imports=["strike"])
custom_hooks = [dict(type="Strike", code={code!r})]
env_cfg = dict(dist_cfg=dict(timeout=20))
"""
STRIKE = """
import os
import signal
import time

from mmengine.hooks import Hook
from mmseg_resnest.registry import HOOKS


@HOOKS.register_module()
class Strike(Hook):
    def __init__(self, code):
        self.code = code

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.rank == 1 and runner.iter == 2:
            exec(self.code)
"""
LOST_ONCE = """
if not os.path.exists("lost_once"):
    open("lost_once", "x").close()
    os.kill(os.getpid(), signal.SIGKILL)
"""
_LIMIT = 200  # seconds of a run, after which it counts as hung
Train = Callable[..., list[Run]]


@pytest.fixture(scope="module")
def train(run_tool: RunTool) -> Train:
    """Trains in as many processes; each ends with 0 unless ``codes`` says otherwise."""

    def run(
        toy: Toy,
        world: int,
        work_dir: str,
        *options: str,
        config: str = "dist.py",
        kill: str = "",
        codes: tuple[int, ...] = (),
    ) -> list[Run]:
        """``kill``: the last process is killed once the first has said this."""

        def when(pid: int, said: str) -> None:
            nonlocal kill
            if kill and kill in said:
                os.kill(pid, signal.SIGKILL)
                kill = ""

        args = (config, "--work-dir", work_dir, *options)
        runs = run_tool.ranks(world, "train.py", *args, cwd=toy.folder, timeout=_LIMIT, when=when)
        found = [run.returncode for run in runs]
        assert found == list(codes or [0] * world), runs[0].stdout[-2000:] + runs[0].stderr[-4000:]
        return runs

    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, scenes: Path, train: Train) -> Toy:
    """The same training in one process (``one``) and in two (``two``)."""
    toy = make_toy(tmp_path_factory.mktemp("distributed"), scenes)
    toy.variant("dist", CONFIG)
    (toy.folder / "strike.py").write_text(STRIKE)
    train(toy, 1, "one")
    both = train(toy, 2, "two")
    assert "4 images a step = 2 processes x 2" in both[0].stdout
    assert [run.stdout.count("training    dist") for run in both] == [1, 0]
    results = json.loads((toy.folder / "two" / "results.json").read_text())
    assert (results["images"], results["pixels"]) == (3, 3 * 128 * 160)
    return toy


def test_losses_are_those_of_one_process(runs: Toy) -> None:
    one, two = (logged(runs.folder / name) for name in ("one", "two"))
    for step in range(1, ITERATIONS + 1):
        mine, theirs = one[f"train {step}"]["loss"], two[f"train {step}"]["loss"]
        assert theirs == pytest.approx(mine, rel=2e-5), step


def test_a_stopped_pair_goes_on_exactly(runs: Toy, train: Train) -> None:
    """One of two processes is told to stop; both save and end after the same step.

    With mixed precision, averaged weights, accumulated gradients and dropout, all at once.
    """
    for name, code in (("all", "pass"), ("stop", "os.kill(os.getpid(), signal.SIGTERM)")):
        (runs.folder / f"{name}.py").write_text(EVERYTHING.format(code=code))
    train(runs, 2, "peace", config="all.py")
    stopped = train(runs, 2, "stopped", config="stop.py", codes=(75, 75))
    assert re.search(r"stopped by another process; saved at iteration \d", stopped[0].stderr)
    train(runs, 2, "stopped", "--resume", config="stop.py")
    states = [final_state(runs.folder / name) for name in ("peace", "stopped")]
    assert differences(*states) == []
    assert "ema_state_dict" in states[0]


@pytest.mark.parametrize(
    ("before", "now", "name"), [(2, 1, "two"), pytest.param(1, 2, "one", marks=pytest.mark.long)]
)
def test_another_number_of_processes_goes_on(
    runs: Toy, train: Train, before: int, now: int, name: str
) -> None:
    """A checkpoint of N processes, continued by M: the same batches, the same losses."""
    checkpoint = str(runs.folder / name / "iter_4.pth")
    train(runs, now, f"elastic_{now}", "--resume", checkpoint)
    whole, elastic = (logged(runs.folder / run) for run in (name, f"elastic_{now}"))
    for step in (5, 6):
        mine, theirs = whole[f"train {step}"]["loss"], elastic[f"train {step}"]["loss"]
        assert theirs == pytest.approx(mine, rel=2e-5)


@pytest.mark.parametrize(
    ("code", "said", "kill"),
    [
        pytest.param(
            *("time.sleep(600)", r"was at iteration 2, for \d+ s", "error"), marks=pytest.mark.long
        ),
        ("os.kill(os.getpid(), signal.SIGKILL)", r"was .*iteration \d", ""),
    ],
    ids=["hangs", "is lost"],
)
def test_a_process_that_hangs_or_is_lost_is_named(
    runs: Toy, train: Train, code: str, said: str, kill: str
) -> None:
    """The other one ends after the set time, and with a code that starts all again."""
    (runs.folder / "struck.py").write_text(STRUCK.format(code=code))
    codes = (75, -signal.SIGKILL)  # what hangs is killed by the launcher, in real life
    text = train(runs, 2, f"struck_{len(code)}", config="struck.py", kill=kill, codes=codes)[
        0
    ].stderr
    assert re.search(rf"process 1 \(pid \d+ on .+\) {said}", text), text
    assert "a collective failed, another process hangs or is lost" in text
    assert "Traceback" not in text


@pytest.mark.long
def test_a_teacher_teaches_every_process(runs: Toy, train: Train) -> None:
    """The losses of one process, in two and sharded."""
    first, taught = str(runs.folder / "one" / "iter_2.pth"), {}
    options = ["--resume", first, "--teacher", "one/iter_6.pth", "--allow-changes", "distillation"]
    for name, world, more in (
        ("taught_one", 1, []),
        ("taught_two", 2, []),
        ("taught_sharded", 2, ["--cfg-options", "+model_wrapper_cfg.type=FSDP"]),
    ):
        train(runs, world, name, *options, *more)
        taught[name] = logged(runs.folder / name)
    for step in range(3, ITERATIONS + 1):
        for key, most in (("loss", 2e-5), ("distill.loss_kl", 2e-3)):  # the latter is near 0
            values = [lines[f"train {step}"][key] for lines in taught.values()]
            assert values == pytest.approx([values[0]] * 3, rel=most), (step, key)


@pytest.mark.long
def test_sharded_training_is_the_same_training(runs: Toy, train: Train) -> None:
    """FSDP in place of DDP: the losses of DDP, whole checkpoints, which DDP continues as well."""
    folder = runs.folder
    sharded = ["--cfg-options", "+model_wrapper_cfg.type=FSDP"]
    first = str(folder / "two" / "iter_2.pth")
    train(runs, 2, "sharded", "--resume", first, *sharded)
    two, fsdp = (logged(folder / name) for name in ("two", "sharded"))
    for step in range(3, ITERATIONS + 1):
        assert fsdp[f"train {step}"]["loss"] == pytest.approx(two[f"train {step}"]["loss"], 2e-5)
    theirs, ours = (load(folder / name / "iter_4.pth") for name in ("two", "sharded"))
    for name, value in theirs["state_dict"].items():
        assert type(ours["state_dict"][name]) is torch.Tensor
        torch.testing.assert_close(ours["state_dict"][name], value, rtol=1e-4, atol=1e-6)
    for index, state in theirs["optimizer"]["state"].items():
        found = ours["optimizer"]["state"][index]["momentum_buffer"]
        torch.testing.assert_close(found, state["momentum_buffer"], rtol=1e-3, atol=1e-6)
    # On with one process, and with the same two: exactly the same run.
    last = str(folder / "sharded" / "iter_4.pth")
    train(runs, 1, "alone", "--resume", last)
    train(runs, 2, "again", "--resume", last, *sharded)
    alone, again = (logged(folder / name) for name in ("alone", "again"))
    for step in (5, 6):
        assert alone[f"train {step}"]["loss"] == pytest.approx(two[f"train {step}"]["loss"], 2e-5)
        assert again[f"train {step}"]["loss"] == fsdp[f"train {step}"]["loss"]
    states = [load(folder / name / "iter_6.pth") for name in ("sharded", "again")]
    assert differences(*[{k: s[k] for k in ("state_dict", "optimizer")} for s in states]) == []


@pytest.mark.long
def test_a_lost_process_restarts_all(runs: Toy) -> None:
    """Under torchrun: one of two processes is killed, and all go on from the newest checkpoint.

    That is of their own run, not of one that was there before.
    """
    folder = runs.folder
    (folder / "lost.py").write_text(STRUCK.format(code=LOST_ONCE))
    before = folder / "work_dirs" / "lost"
    before.mkdir(parents=True)
    shutil.copy(folder / "one" / "iter_6.pth", before)
    point_to(before / "iter_6.pth", before)
    environment = {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder)}
    run = subprocess.run(
        ["bash", TOOLS / "dist_train.sh", "lost.py", "2"],
        cwd=folder,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert (folder / "lost_once").exists() and run.returncode == 0, run.stdout[-4000:]
    assert "continue from work_dirs/lost-2/iter_2.pth" in run.stdout
    states = [final_state(folder / name) for name in ("two", "work_dirs/lost-2")]
    assert differences(*states) == []
