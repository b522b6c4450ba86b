# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
from __future__ import annotations

import errno
import re
from collections.abc import Callable

import pytest
import torch

from mmseg_resnest.engine.cli import ArgumentParser, explain_error, run_tool
from mmseg_resnest.errors import UserError


def _exit_code(main: Callable) -> int:
    with pytest.raises(SystemExit) as exited:
        run_tool(main, [])
    return exited.value.code


def _raising(error: BaseException) -> Callable:
    def main(argv: object) -> int:
        raise error

    return main


def test_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert _exit_code(lambda argv: 0) == 0
    assert _exit_code(lambda argv: None) == 0
    assert _exit_code(lambda argv: 1) == 1
    assert _exit_code(_raising(UserError("first\nsecond"))) == 2
    assert capsys.readouterr().err == "error: first\n  second\n"
    assert _exit_code(_raising(KeyboardInterrupt("go on so"))) == 130
    assert capsys.readouterr().err == "interrupted: go on so\n"


def test_faults_of_the_code_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_tool(_raising(ZeroDivisionError()), [])
    assert explain_error(ValueError("x")) is None
    assert explain_error(KeyError("x")) is None


def test_arguments_are_refused_like_everything_else() -> None:
    with pytest.raises(UserError, match=r"unrecognized arguments: --x.*tools/t.py --help"):
        ArgumentParser(prog="t.py").parse_args(["--x"])


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), "batch_size"),
        (OSError(errno.ENOSPC, "No space left on device", "a.pth"), "a.pth: no space left"),
        (PermissionError(errno.EACCES, "Permission denied", "d"), "d: permission denied"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "f"), "f: no such file"),
        (OSError(errno.EMFILE, "Too many open files"), "ulimit"),
        (RuntimeError("PytorchStreamWriter failed writing file data/3"), "disk ran full"),
        (KeyError("Foo is not in the mmengine::hook registry. Please check"), "Foo is not in"),
        (
            RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed. "),
            r"worker \(process 12\) is killed by signal: Killed\.",
        ),
        (
            RuntimeError("DataLoader worker (pid(s) 12, 13) exited unexpectedly"),
            "12, 13.*exited unexpectedly",
        ),
    ],
)
def test_late_mistakes_are_explained(error: Exception, message: str) -> None:
    told = explain_error(error)
    assert told is not None
    assert re.search(message, str(told))
