# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Runs a command as a process: exit codes, and errors as one line.

Exit codes: 0, or what the command returns; 2 for a mistake of the user; 75 for a run that was
asked to stop, has saved, and continues with ``--resume``; 130 after Ctrl-C; 141 when the reader of
the output has ended. A fault of the code keeps its traceback and exits with 1, one of a GPU with
75.
"""

from __future__ import annotations

import os
import re
import sys
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

from .options import UsageError
from .startup import open_streams
from .workers import is_lost_worker

__all__ = ["run_and_exit"]

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE
_SECONDS_FOR_THE_FIRST = 10.0


def run_and_exit(command: Callable[[], int | None]) -> NoReturn:
    """Run a command, which returns its exit code or None for 0, and exit the process with it."""
    code: int | None
    open_streams()
    try:
        code = command()
        sys.stdout.flush()
    except KeyboardInterrupt as interrupt:
        hint = str(interrupt)
        print(f"interrupted{': ' + hint if hint else ''}", file=sys.stderr)
        code = EXIT_INTERRUPTED
    except UsageError as error:
        code = _report(f"{error} [argument]")
    except Exception as error:
        code = _exit_code(error)
    sys.exit(code or 0)


def _exit_code(error: Exception) -> int:
    """Print an error and return the exit code; a fault of the code is raised again."""
    if isinstance(error, BrokenPipeError) and not is_lost_worker(error):
        # The reader of the output has ended (``train | head``).
        _silence_stdout()
        return EXIT_BROKEN_PIPE
    explained = _explain_stdout(error)
    if explained is None:  # the library, which takes seconds where it is not loaded yet
        from mmseg_resnest.engine.preemption import EXIT_AGAIN, Preempted
        from mmseg_resnest.engine.watch import LostProcessError

        from .failures import explain_error

        if isinstance(error, Preempted):
            if os.environ.get("RANK", "0") == "0":
                print(error, file=sys.stderr, flush=True)
            return EXIT_AGAIN
        found = explain_error(error)
        if found is None:
            if not _is_of_the_machine(error):
                raise error
            traceback.print_exception(error)
            return EXIT_AGAIN
        explained = str(found)
        if isinstance(found, LostProcessError):
            _report(explained)
            return EXIT_AGAIN
    return _report(explained)


def _is_of_the_machine(error: BaseException) -> bool:
    """Whether a GPU or a connection failed, which another start may not meet again."""
    text = str(error)
    known = re.search(r"CUDA error|CUDA driver error|cuDNN error|CUBLAS|NCCL", text)
    return isinstance(error, RuntimeError) and bool(known) and "device-side assert" not in text


def _silence_stdout() -> None:
    """Point stdout at nothing, so that the interpreter's last flush cannot fail as well."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _explain_stdout(error: BaseException) -> str | None:
    """A message when the console, or the file in its place, cannot be written."""
    if not isinstance(error, OSError) or error.filename is not None:
        return None
    try:
        print(flush=True)  # the line that failed may have been dropped
    except OSError as problem:
        _silence_stdout()
        if error.errno == problem.errno:
            return (
                f"standard output: cannot be written ({problem.strerror}); check where it goes "
                "[not-writable]"
            )
    return None


def _report(message: str) -> int:
    """Print one ``error:`` and return the exit code.

    Before the processes of a distributed job have met, all of them find the same mistake: the
    first on each machine reports it. After that each process reports its own, with its rank.
    """
    lines = message.strip().splitlines() or ["unknown error"]
    who = ""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        rank = distributed.get_rank()
        who = f" (process {rank})" if rank else ""
    elif os.environ.get("LOCAL_RANK", "0") != "0":
        # A launcher ends all processes as soon as one has ended: let the first report.
        time.sleep(_SECONDS_FOR_THE_FIRST)
        return EXIT_USER_ERROR
    sys.stdout.flush()
    print(f"error{who}: " + "\n  ".join(lines), file=sys.stderr, flush=True)
    return EXIT_USER_ERROR
