# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What the command-line tools share: argument errors, exit codes, and errors a person can read.

A tool's ``main`` returns its exit code and raises :class:`~mmseg_resnest.errors.UserError` for
what its user can mend. :func:`run_tool` prints that as ``error: ...`` and exits with 2; a fault of
the code keeps its traceback and exits with 1. A run that was asked to stop, has saved, and is to be
started again with ``--resume`` exits with 75.
"""

from __future__ import annotations

import argparse
import errno
import gc
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, NoReturn

import torch

from mmseg_resnest.engine.preemption import EXIT_AGAIN, Preempted
from mmseg_resnest.engine.watch import LostProcessError
from mmseg_resnest.errors import UserError

__all__ = [
    "ArgumentParser",
    "add_config_options",
    "add_launcher_option",
    "as_invoked",
    "explain_error",
    "parser_of",
    "print_next",
    "run_tool",
]

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE
_SECONDS_FOR_THE_FIRST = 10.0


_COMMAND = "mmseg-resnest"
_A_TOOL = re.compile(r"(?:(?:python|bash) )?\btools/([a-z]\w*)\.(?:py|sh)\b")


def as_invoked(text: str) -> str:
    """``python tools/test.py`` in a text becomes ``mmseg-resnest test`` when that command runs.

    For help, hints and errors: who has installed the package has no ``tools/``.
    """
    if not sys.argv[0].startswith(f"{_COMMAND} "):
        return text
    return _A_TOOL.sub(lambda found: f"{_COMMAND} {found[1].replace('_', '-')}", text)


def print_next(*commands: str) -> None:
    """Print what to run next, one command a line, as :func:`as_invoked` names it."""
    print("next")
    for command in commands:
        print(f"  {as_invoked(command)}")
    sys.stdout.flush()


class ArgumentParser(argparse.ArgumentParser):
    """An argument parser whose complaints look like every other error of the tools."""

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**kwargs)
        self.prog = as_invoked(f"tools/{self.prog}").removeprefix("tools/")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As in argparse; inside :func:`parser_of` hand out the parser instead."""
        if _asked_for_parser.get():
            raise _Parser(self)
        return super().parse_args(args, namespace)

    def format_help(self) -> str:
        """The help, with the tools named as they were called."""
        return as_invoked(super().format_help())

    def error(self, message: str) -> NoReturn:
        """Raise the complaint as UserError."""
        program = self.prog if self.prog.startswith(_COMMAND) else f"python tools/{self.prog}"
        raise UserError(f"{message} (see: {program} --help)")


_asked_for_parser: ContextVar[bool] = ContextVar("asked_for_parser", default=False)


class _Parser(Exception):
    """The parser that a tool's ``main`` made."""


def parser_of(main: Callable[[Sequence[str] | None], int | None]) -> argparse.ArgumentParser:
    """The argument parser that a tool's ``main`` makes, without running the tool.

    Args:
        main: Makes an :class:`ArgumentParser` and calls its ``parse_args`` before all else.
    """
    token = _asked_for_parser.set(True)
    try:
        main([])
    except _Parser as found:
        parser: argparse.ArgumentParser = found.args[0]
        return parser
    finally:
        _asked_for_parser.reset(token)
    raise TypeError(f"{main} parses no arguments")


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that change a config: ``--cfg-options`` and ``--data-root``."""
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="change config keys, e.g. train_cfg.max_iters=1000 model.backbone.norm_eval=True; "
        "lists as a,b or [a,b]; +KEY=VALUE adds a key that neither the config nor its class knows; "
        "data_root=DIR makes DIR the root of every data set",
    )
    parser.add_argument(
        "--data-root",
        metavar="DIR",
        help="the folder that holds camvid/, ade20k/, ... (default: $MMSEG_RESNEST_DATA or data)",
    )


def add_launcher_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--launcher`` and the ``--local_rank`` that some launchers pass."""
    parser.add_argument(
        "--launcher",
        choices=["none", "pytorch", "slurm"],
        default="none",
        help="how the processes were started (pytorch: torchrun)",
    )
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)


def run_tool(
    main: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None = None
) -> NoReturn:
    """Run a tool's ``main`` and exit the process with its code.

    Args:
        main: Takes the arguments (None: those of the command line), returns the exit code.
        argv: Passed to ``main``.
    """
    code: int | None
    # What the imports have made stays: no search for garbage need look at it again, and forked
    # workers share its memory.
    gc.freeze()
    try:
        code = main(argv)
        sys.stdout.flush()
    except Preempted as stop:
        if os.environ.get("RANK", "0") == "0":
            print(stop, file=sys.stderr, flush=True)
        code = EXIT_AGAIN
    except KeyboardInterrupt as interrupt:
        hint = str(interrupt)
        print(f"interrupted{': ' + hint if hint else ''}", file=sys.stderr)
        code = EXIT_INTERRUPTED
    except Exception as error:
        if isinstance(error, BrokenPipeError) and not _lost_worker(error):
            # Whoever read our output has gone (``train.py ... | head``): nobody is left to tell.
            _silence_stdout()
            sys.exit(EXIT_BROKEN_PIPE)
        told = _explain_stdout(error) or explain_error(error)
        if told is None:
            raise
        _note_traceback(error)
        code = _report(told)
        if isinstance(told, LostProcessError):
            code = EXIT_AGAIN
    sys.exit(code or 0)


def _silence_stdout() -> None:
    """Point stdout at nothing, so that the interpreter's last flush cannot fail as well."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _explain_stdout(error: BaseException) -> UserError | None:
    """The error in words when it is the console, or the file in its place, that takes nothing."""
    if not isinstance(error, OSError) or error.filename is not None:
        return None
    try:
        print(flush=True)  # what failed may have been dropped: only another line tells
    except OSError as problem:
        _silence_stdout()
        if error.errno == problem.errno:
            return UserError(
                f"standard output: cannot be written ({problem.strerror}); look where it is sent"
            )
    return None


def _report(error: UserError) -> int:
    """Print one ``error:`` and return the exit code.

    Before the processes of a distributed job have met, all of them find the same mistake: the
    first on each machine tells it. After that, whoever meets one tells it, with its rank.
    """
    lines = as_invoked(str(error)).strip().splitlines() or ["unknown error"]
    who = ""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        rank = torch.distributed.get_rank()
        who = f" (process {rank})" if rank else ""
    elif os.environ.get("LOCAL_RANK", "0") != "0":
        # A launcher ends all processes as soon as one has ended: let the first have its say.
        time.sleep(_SECONDS_FOR_THE_FIRST)
        return EXIT_USER_ERROR
    sys.stdout.flush()
    print(f"error{who}: " + "\n  ".join(lines), file=sys.stderr, flush=True)
    return EXIT_USER_ERROR


def _note_traceback(error: BaseException) -> None:
    """Put the full traceback of an explained error into the log file of the run, if any."""
    from mmseg_resnest.engine.logs import write_to_log_file

    write_to_log_file("".join(traceback.format_exception(error)))


_WORKER_FAILED = re.compile(r"^Caught (?P<kind>\w+) in (?P<where>[^\n]+?)\.?\nOriginal Traceback")
_WORKER_GONE = re.compile(r"DataLoader worker \(pid(?:\(s\))? (?P<pid>[\d, ]+)\) (?P<how>[^\n]*)")
_CHANNELS = re.compile(
    r"Given groups=.* to have (?P<wants>\d+) channels, but got (?P<gets>\d+) channels"
)
_WORKER_HELP = (
    "Set train_dataloader.num_workers=0 (and val_, test_) through --cfg-options to see the cause "
    "in the main process; if memory ran out, use fewer workers; in a container, give it more "
    "shared memory (docker run --shm-size=8g)"
)
_TOO_MANY_FILES = "too many open files: raise the limit (ulimit -n) or use fewer workers"


def explain_error(error: BaseException) -> UserError | None:
    """The UserError behind an exception that surfaced late, or None when it is a fault of the code.

    Args:
        error: What a tool met: a lost data loading worker, memory or disk that ran out, a file
            that cannot be read or written, a name that is in no registry.

    Returns:
        An error with a message that says what to do, or None.
    """
    text = str(error)
    gone = _WORKER_GONE.search(text)
    if gone:
        return UserError(
            f"the data loading worker (process {gone['pid'].strip()}) {gone['how'].strip(' .')}. "
            + _WORKER_HELP
        )
    if _lost_worker(error) or "Pin memory thread exited unexpectedly" in text:
        return UserError(
            f"a data loading worker ended while it handed over a batch ({type(error).__name__}: "
            f"{_first_line(text)}). " + _WORKER_HELP
        )
    if "DataLoader timed out" in text:
        return UserError(
            f"a data loading worker hangs ({_first_line(text)}); the loader's timeout sets the "
            "seconds. " + _WORKER_HELP
        )
    if isinstance(error, UserError) and not _WORKER_FAILED.match(text):
        return error
    failed = _WORKER_FAILED.match(text)
    if failed:
        return _explain_failed_worker(failed, text)
    if isinstance(error, torch.OutOfMemoryError) or "CUDA out of memory" in text:
        return UserError(
            "the GPU ran out of memory. Train: --amp, a smaller train_dataloader.batch_size or "
            "crop, activation checkpointing (model.backbone.with_cp=True), or more GPUs; "
            "evaluate: a smaller model.test_cfg.window_batch_size or crop_size"
        )
    if isinstance(error, MemoryError) or "can't allocate memory" in text:
        return UserError(
            f"this machine's memory ran out ({_first_line(text)}). Train: a smaller "
            "train_dataloader.batch_size or crop, fewer workers; predict: a smaller --tile; "
            "otherwise a smaller model, or more memory"
        )
    channels = _CHANNELS.search(text)
    if channels and isinstance(error, RuntimeError):
        return UserError(
            f"two parts of the model do not fit together: a layer takes {channels['wants']} "
            f"channels and gets {channels['gets']}; compare in_channels and in_index of "
            "model.decode_head and model.auxiliary_head with what model.backbone puts out"
        )
    if "PytorchStreamWriter failed" in text:
        return UserError(
            f"the disk ran full while writing ({_first_line(text)}): make room, or choose another "
            "place with --work-dir"
        )
    if "received 0 items of ancdata" in text or text.startswith("Too many open files"):
        return UserError(_TOO_MANY_FILES)
    if isinstance(error, OSError) and error.errno is not None:
        return _explain_os_error(error)
    if isinstance(error, KeyError) and " is not in the " in text and "registry" in text:
        return UserError(_first_line(text.strip("\"'")).split(" Please check")[0])
    return None


def _lost_worker(error: BaseException) -> bool:
    """Whether a loader met this while it took a batch from a worker that had just ended.

    Tensors come through a socket of the worker. A process that is being ended loses its sockets
    before its parent can see it: torch then passes on the error of the connection.
    """
    return isinstance(error, (ConnectionError, EOFError, FileNotFoundError)) and any(
        frame.f_code.co_name == "_try_get_data"
        for frame, _ in traceback.walk_tb(error.__traceback__)
    )


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else "no message"


def _explain_failed_worker(failed: re.Match[str], text: str) -> UserError:
    """An exception that was raised in a data loading worker and sent to the main process."""
    lines = text.strip().splitlines()
    # The last unindented line that names the exception starts the message of the innermost one.
    starts = [
        i
        for i, line in enumerate(lines)
        if re.match(rf"^(?:[\w.]+\.)?{re.escape(failed['kind'])}(:|$)", line)
    ]
    message = "\n".join(lines[starts[-1] :]).partition(":")[2].strip() if starts else ""
    if failed["kind"] == "UserError":
        return UserError(message)
    places = re.findall(r'^  File "([^"]+)", line (\d+)', text, re.M)
    place = f", at {places[-1][0]}:{places[-1][1]}" if places else ""
    return UserError(
        f"{failed['where']} failed with {failed['kind']}{': ' if message else ''}"
        f"{_first_line(message) if message else ''}{place}. " + _WORKER_HELP
    )


def _explain_os_error(error: OSError) -> UserError | None:
    where = error.filename if error.filename is not None else "a file"
    reason = (error.strerror or str(error)).lower()
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return UserError(f"{where}: {reason}; make room, or choose another place with --work-dir")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UserError(
            f"{where}: {reason}; change its permissions or choose another place with --work-dir"
        )
    if error.filename is not None and error.errno in (
        errno.ENOENT,
        errno.EISDIR,
        errno.ENOTDIR,
        errno.EEXIST,
        errno.ENAMETOOLONG,
        errno.EIO,
        errno.ESTALE,
    ):
        return UserError(f"{where}: {reason}")
    if error.errno == errno.EMFILE:
        return UserError(_TOO_MANY_FILES)
    return None
