# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Several processes train as one does, with Gloo on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from run_state import differences, final_state, load, logged
from tool_runs import ROOT, TOOLS, Toy, make_toy

ITERATIONS = 6
CONFIG = f"""
train_dataloader = dict(sampler=dict(type="ExactSampler"))
model = dict(decode_head=dict(dropout_ratio=0))  # processes do not drop the same as one does
train_cfg = dict(max_iters={ITERATIONS}, val_interval=3)
default_hooks = dict(checkpoint=dict(interval=2, max_keep_ckpts=-1))
"""
# All that has a state, for what must be exact.
EVERYTHING = """
_base_ = "dist.py"
model = dict(decode_head=dict(dropout_ratio=0.1))
custom_hooks = [dict(type="EMAHook", momentum=0.1)]
optim_wrapper = dict(type="BFloat16OptimWrapper", accumulative_counts=2)
"""
# One of two processes is struck in a step.
STRUCK = """
_base_ = "dist.py"
custom_imports = dict(imports=["strike"])
custom_hooks = [dict(type="Strike", code={code!r})]
env_cfg = dict(dist_cfg=dict(timeout=10))
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
_LIMIT = 200  # seconds of a run, after which it counts as hung
# Imports once; each job is a run of train.py as several forked processes.
_HELPER = """
import json, os, runpy, sys
sys.path.insert(0, sys.argv[1])
import mmseg_resnest, mmseg_resnest.inference, matplotlib.figure, mmseg_resnest.engine.training
print("ready", flush=True)
for line in sys.stdin:
    job = json.loads(line)
    pids = []
    for rank in range(job["world"]):
        pid = os.fork()
        if pid == 0:
            os.chdir(job["cwd"])
            os.environ.update(
                RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(job["world"]),
                LOCAL_WORLD_SIZE=str(job["world"]), MASTER_ADDR="127.0.0.1",
                MASTER_PORT=str(job["port"]), OMP_NUM_THREADS="1",
            )
            for number, name in ((1, "out"), (2, "err")):
                file = f"{job['log']}.{rank}.{name}"
                os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            sys.argv = [job["tool"], *job["args"]]
            sys.path[0] = os.path.dirname(job["tool"])
            runpy.run_path(job["tool"], run_name="__main__")
            sys.exit(0)
        pids.append(pid)
    print(json.dumps(pids), flush=True)
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]) for p in pids]), flush=True)
"""
Train = Callable[..., list[int]]


@pytest.fixture(scope="module")
def train() -> Iterator[Train]:
    helper = subprocess.Popen(
        [sys.executable, "-c", _HELPER, str(ROOT)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert helper.stdin is not None
    assert helper.stdout is not None
    while helper.stdout.readline() != "ready\n":
        pass

    def run(
        toy: Toy,
        world: int,
        work_dir: str,
        *options: str,
        config: str = "dist.py",
        stop: str = "",
        number: int = signal.SIGTERM,
    ) -> list[int]:
        """Exit codes; ``stop``: a signal for the last process once the first has said this."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        launcher = ["--launcher", "pytorch"] if world > 1 else []
        log = str(toy.folder / "log")
        job = {
            "world": world, "cwd": str(toy.folder), "port": port, "log": log,
            "tool": str(TOOLS / "train.py"),
            "args": [config, "--work-dir", work_dir, *launcher, *options],
        }  # fmt: skip
        said = [Path(f"{log}.0.{name}") for name in ("out", "err")]
        for path in said:
            path.write_text("")
        helper.stdin.write(json.dumps(job) + "\n")
        helper.stdin.flush()
        pids = json.loads(helper.stdout.readline())
        limit = threading.Timer(_LIMIT, _end, [pids])
        limit.start()
        while stop and limit.is_alive() and not any(stop in path.read_text() for path in said):
            time.sleep(0.05)
        if stop:
            os.kill(pids[-1], number)
        codes = json.loads(helper.stdout.readline())
        limit.cancel()
        return codes

    yield run
    helper.kill()
    helper.wait()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, scenes: Path, train: Train) -> Toy:
    """The same training in one process (``one``) and in two (``two``)."""
    toy = make_toy(tmp_path_factory.mktemp("distributed"), scenes)
    toy.variant("dist", CONFIG)
    assert train(toy, 1, "one") == [0]
    assert train(toy, 2, "two") == [0, 0], (toy.folder / "log.0.err").read_text()[-3000:]
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
    (runs.folder / "all.py").write_text(EVERYTHING)
    assert train(runs, 2, "peace", config="all.py") == [0, 0]
    assert train(runs, 2, "stopped", config="all.py", stop="     1/6 ") == [75, 75]
    text = (runs.folder / "log.0.err").read_text()
    assert re.search(r"stopped by another process; saved at iteration \d", text)
    assert train(runs, 2, "stopped", "--resume", config="all.py") == [0, 0]
    states = [final_state(runs.folder / name) for name in ("peace", "stopped")]
    assert differences(*states) == []
    assert "ema_state_dict" in states[0]


@pytest.mark.parametrize(("before", "now", "name"), [(2, 1, "two"), (1, 2, "one")])
def test_another_number_of_processes_goes_on(
    runs: Toy, train: Train, before: int, now: int, name: str
) -> None:
    """A checkpoint of N processes, continued by M: the same batches, the same losses."""
    checkpoint = str(runs.folder / name / "iter_4.pth")
    assert train(runs, now, f"elastic_{now}", "--resume", checkpoint) == [0] * now
    whole, elastic = (logged(runs.folder / run) for run in (name, f"elastic_{now}"))
    for step in (5, 6):
        mine, theirs = whole[f"train {step}"]["loss"], elastic[f"train {step}"]["loss"]
        assert theirs == pytest.approx(mine, rel=2e-5)


@pytest.mark.parametrize(
    ("code", "said", "stop"),
    [
        ("time.sleep(600)", r"was at iteration 2, for \d+ s", "error"),
        ("os.kill(os.getpid(), signal.SIGKILL)", r"was .*iteration \d", ""),
    ],
    ids=["hangs", "is gone"],
)
def test_a_process_that_hangs_or_is_gone_is_named(
    runs: Toy, train: Train, code: str, said: str, stop: str
) -> None:
    """The other one ends within the set time, and with a code that starts all again."""
    (runs.folder / "strike.py").write_text(STRIKE)
    (runs.folder / "struck.py").write_text(STRUCK.format(code=code))
    start = time.monotonic()
    codes = train(
        runs, 2, "struck", config="struck.py", stop=stop, number=signal.SIGKILL
    )  # what hangs is ended by the launcher, in real life
    text = (runs.folder / "log.0.err").read_text()
    assert codes == [75, -signal.SIGKILL], text[-3000:]
    assert re.search(rf"process 1 \(pid \d+ on .+\) {said}", text), text
    assert "a collective failed, another process hangs or is gone" in text
    assert "Traceback" not in text
    assert time.monotonic() - start < 90


def test_sharded_training_is_the_same_training(runs: Toy, train: Train) -> None:
    """FSDP in place of DDP: the losses of DDP, whole checkpoints, which DDP continues as well."""
    folder = runs.folder
    sharded = ["--cfg-options", "+model_wrapper_cfg.type=FSDP"]
    first = str(folder / "two" / "iter_2.pth")
    assert train(runs, 2, "sharded", "--resume", first, *sharded) == [0, 0], (
        folder / "log.0.err"
    ).read_text()[-3000:]
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
    assert train(runs, 1, "alone", "--resume", last) == [0]
    assert train(runs, 2, "again", "--resume", last, *sharded) == [0, 0]
    alone, again = (logged(folder / name) for name in ("alone", "again"))
    for step in (5, 6):
        assert alone[f"train {step}"]["loss"] == pytest.approx(two[f"train {step}"]["loss"], 2e-5)
        assert again[f"train {step}"]["loss"] == fsdp[f"train {step}"]["loss"]
    states = [load(folder / name / "iter_6.pth") for name in ("sharded", "again")]
    assert differences(*[{k: s[k] for k in ("state_dict", "optimizer")} for s in states]) == []


def test_a_lost_process_restarts_all(runs: Toy) -> None:
    """Under torchrun: one of two processes is killed, and all go on from the newest checkpoint."""
    folder = runs.folder
    run = subprocess.Popen(
        ["bash", TOOLS / "dist_train.sh", "dist.py", "2", "--work-dir", "lost"],
        cwd=folder,
        env={**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert run.stdout is not None
    lines = []
    killed = False
    for line in run.stdout:
        lines.append(line)
        if not killed and re.match(r" +3/6 .* \d", line):
            killed = True
            os.kill(_child(run.pid), signal.SIGKILL)
    text = "".join(lines)
    assert killed, text[-3000:]
    assert run.wait() == 0, text[-4000:]
    assert re.search(r"continue from lost/iter_[24]\.pth", text)
    states = [final_state(folder / name) for name in ("two", "lost")]
    assert differences(*states) == []


def _end(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _child(pid: int) -> int:
    """The youngest training process below torchrun."""
    found = []
    todo = [pid]
    while todo:
        at = todo.pop()
        children = Path(f"/proc/{at}/task/{at}/children").read_text().split()
        todo += map(int, children)
        command = Path(f"/proc/{at}/cmdline").read_text()
        if "train.py" in command and "_torchrun" not in command and "bash" not in command:
            found.append(at)
    parents = {p for p in found if int(Path(f"/proc/{p}/stat").read_text().split()[3]) not in found}
    return max(parents)
