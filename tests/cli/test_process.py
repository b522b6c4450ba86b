# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
from __future__ import annotations

import errno
import io
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing import resource_sharer

import pytest
import torch
from torch.utils.data._utils import signal_handling
from user_errors import printed_error

from mmseg_resnest.errors import UserError
from mmseg_resnest_cli.failures import explain_error
from mmseg_resnest_cli.options import ArgumentParser, UsageError
from mmseg_resnest_cli.process import run_and_exit


def _exit_code(main: Callable) -> int:
    with pytest.raises(SystemExit) as exited:
        run_and_exit(main)
    return exited.value.code


def _raising(error: BaseException) -> Callable:
    def main() -> int:
        raise error

    return main


def test_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert _exit_code(lambda: 0) == 0
    assert _exit_code(lambda: None) == 0
    assert _exit_code(lambda: 1) == 1
    assert _exit_code(_raising(UserError("input", "f", "first\nsecond"))) == 2
    assert capsys.readouterr().err == "error: f: first\n  second [input]\n"
    assert _exit_code(_raising(KeyboardInterrupt("go on so"))) == 130
    assert capsys.readouterr().err == "interrupted: go on so\n"


def test_closed_streams_end_no_command() -> None:
    """As after ``>&-``: Python has no streams then."""
    pid = os.fork()
    if pid == 0:
        code: object = 9
        try:
            os.closerange(0, 3)
            sys.stdin = sys.stdout = sys.stderr = None  # type: ignore[assignment]
            run_and_exit(lambda: print("said", file=sys.stderr))
        except SystemExit as exited:
            code = exited.code
        finally:
            os._exit(code if isinstance(code, int) else 9)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_what_an_encoding_does_not_have_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "ascii"))
    assert _exit_code(lambda: print("straße")) == 0
    assert raw.getvalue() == b"stra\\xdfe\n"


def test_faults_of_the_code_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_and_exit(_raising(ZeroDivisionError()))
    with pytest.raises(RuntimeError):  # a label that is not a class
        run_and_exit(_raising(RuntimeError("CUDA error: device-side assert triggered")))
    assert explain_error(ValueError("x")) is None
    assert explain_error(KeyError("x")) is None


def test_a_gpu_that_fails_is_started_again(capsys: pytest.CaptureFixture[str]) -> None:
    error = RuntimeError("CUDA error: uncorrectable ECC error encountered")
    assert _exit_code(_raising(error)) == 75
    assert "Traceback" in capsys.readouterr().err


def test_arguments_are_refused_like_everything_else() -> None:
    with pytest.raises(UsageError, match=r"unrecognized arguments: --x.*t --help"):
        ArgumentParser(prog="t").parse_args(["--x"])


@pytest.mark.parametrize(
    ("error", "code", "subject"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), "memory", "GPU"),
        (MemoryError(), "memory", "this machine"),
        (OSError(errno.ENOSPC, "No space left on device", "a.pth"), "not-writable", "a.pth"),
        (PermissionError(errno.EACCES, "Permission denied", "d"), "unreadable", "d"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "f"), "not-found", "f"),
        (OSError(errno.EMFILE, "Too many open files"), "environment", "open files"),
        (RuntimeError("PytorchStreamWriter failed writing file data/3"), "not-writable", ""),
        (KeyError("Foo is not in the mmengine::hook registry. Please check"), "config-type", "Foo"),
        (RuntimeError("DataLoader worker (pid 12) is killed"), "data-loading", "process 12"),
        (RuntimeError("DataLoader worker (pid(s) 12, 13) ended"), "data-loading", "process 12, 13"),
        (RuntimeError("Pin memory thread exited unexpectedly"), "data-loading", "worker"),
        (RuntimeError("DataLoader timed out after 5 seconds"), "data-loading", "worker"),
        (RuntimeError("received 0 items of ancdata"), "environment", "open files"),
        (RuntimeError("Too many open files. Communication"), "environment", "open files"),
    ],
)
def test_late_mistakes_are_explained(error: Exception, code: str, subject: str) -> None:
    found = explain_error(error)
    assert found is not None
    assert found.code == code
    assert subject in found.subject


class _HangsOnItsSecond(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == 1:
            time.sleep(600)
        return torch.zeros(2)


@pytest.fixture
def _unseen_ends(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A worker's end that the system has not told its parent of."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", True)
    monkeypatch.setattr(multiprocessing.process.BaseProcess, "is_alive", lambda self: True)
    yield
    signal.signal(signal.SIGCHLD, before)


@pytest.mark.usefixtures("_unseen_ends")
@pytest.mark.parametrize(
    "met",
    [None, ConnectionResetError(errno.ECONNRESET, "reset"), BrokenPipeError(errno.EPIPE, "pipe"),
     FileNotFoundError(errno.ENOENT, "no such file"), EOFError()],
    ids=lambda met: type(met).__name__,
)  # fmt: skip
def test_a_worker_that_ends_while_it_hands_over(
    met: Exception | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loader = torch.utils.data.DataLoader(_HangsOnItsSecond(), num_workers=1, timeout=60)

    def main() -> int:
        batches = iter(loader)
        pid = batches._workers[0].pid
        assert batches._worker_result_queue._reader.poll(60)  # the first batch is on its way
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        if met is not None:
            monkeypatch.setattr(resource_sharer._resource_sharer, "get_connection", _fail(met))
        try:
            return len(list(batches))
        finally:
            monkeypatch.undo()

    assert _exit_code(main) == 2
    code, text = printed_error(capsys.readouterr().err)
    assert code == "data-loading"
    assert "ended while it handed over a batch" in text


def _fail(error: Exception) -> Callable:
    def fail(*args: object) -> None:
        raise error

    return fail
