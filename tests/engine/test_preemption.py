# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What a run leaves behind when it ends: no signals taken over, no workers."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mmengine.config import Config
from tiny_runs import Data
from torch.utils.data import DataLoader

from mmseg_resnest.engine.first_batches import FirstBatches
from mmseg_resnest.engine.launch import Machine
from mmseg_resnest.engine.preemption import Preempted, StopSignals

SOURCE = Path(__file__).parents[2] / "mmseg_resnest" / "engine" / "preemption.py"

# A loader that nothing frees before the process ends, as one in the frames of a traceback.
SCRIPT = """
import functools, importlib.util, os, signal, sys, time
import torch.utils.data as data
spec = importlib.util.spec_from_file_location("preemption", sys.argv[1])
preemption = importlib.util.module_from_spec(spec)
spec.loader.exec_module(preemption)

class Samples(data.Dataset):
    def __len__(self):
        return 8
    def __getitem__(self, index):
        if index == int(sys.argv[2]):
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # hangs
            time.sleep(600)
        return index

class Keeper:
    pass

with preemption.StopSignals():
    init = functools.partial(preemption.ignore_signals_in_worker, None)
    loader = data.DataLoader(Samples(), num_workers=2, worker_init_fn=init, persistent_workers=True)
    keeper = Keeper()
    keeper.itself, keeper.iterator = keeper, iter(loader)
    next(keeper.iterator)
    data.dataloader._MultiProcessingDataLoaderIter.__del__ = lambda self: None
    print(*(worker.pid for worker in keeper.iterator._workers), flush=True)
if sys.argv[3] == "fails":
    raise RuntimeError("the run failed")
"""


@pytest.mark.long
@pytest.mark.parametrize(("hangs", "end"), [(-1, "ends"), (-1, "fails"), (3, "ends")])
def test_no_worker_outlives_its_run(hangs: int, end: str) -> None:
    """The workers survive the first SIGTERM; the process that ends must not wait for them."""
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(SOURCE), str(hangs), end],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == (end == "fails"), run.stderr
    assert ("the run failed" in run.stderr) == (end == "fails")
    assert "killed" not in run.stderr and "atexit" not in run.stderr
    workers = run.stdout.split()
    assert len(workers) == 2
    assert not any(Path("/proc", pid).exists() for pid in workers)


def test_at_exit_only_workers_of_the_run_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """And where none is left, nothing waits for the end of the process."""
    at_exit: list[Callable[[], object]] = []
    monkeypatch.setattr(atexit, "register", at_exit.append)
    monkeypatch.setattr(atexit, "unregister", at_exit.remove)
    start = multiprocessing.get_context("fork").Process
    other = start(target=time.sleep, args=(600,), daemon=True)
    other.start()
    with StopSignals():
        assert len(at_exit) == 1
    assert at_exit == []
    with StopSignals():
        worker = start(target=time.sleep, args=(600,), daemon=True)
        worker.start()
    (end_workers,) = at_exit
    end_workers()
    assert (worker.is_alive(), other.is_alive()) == (False, True)
    other.kill()
    other.join()


def test_a_signal_while_the_first_worker_is_forked() -> None:
    """Python drops what a handler raises in what is called before a fork, and goes on."""
    armed = True

    def ask_to_stop() -> None:
        if armed:
            os.kill(os.getpid(), signal.SIGTERM)

    os.register_at_fork(before=ask_to_stop)
    loader = DataLoader(Data(2), batch_size=1, num_workers=1)
    batches = FirstBatches(Config(), Machine.here("none"), seed=0)
    try:
        with StopSignals(), pytest.raises(Preempted, match="nothing was trained"):
            batches.load("train_dataloader", loader, [0])
    finally:
        armed = False  # such a call stays for as long as the process
    assert multiprocessing.active_children() == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("number", "kind"), [(signal.SIGTERM, Preempted), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_signal_while_an_object_is_freed(number: int, kind: type[BaseException]) -> None:
    """Python drops that exception, too: the run ends before its first iteration all the same."""

    class Freed:
        def __del__(self) -> None:
            os.kill(os.getpid(), number)

    with StopSignals() as signals:
        freed = Freed()
        del freed
        assert signals.received == signal.Signals(number).name
        with pytest.raises(kind):
            signals.training()
