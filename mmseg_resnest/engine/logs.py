# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""MMEngine's loggers: everything goes to the log file, only warnings to the console."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

from mmengine.fileio import dump
from mmengine.logging import MMLogger
from mmengine.visualization import LocalVisBackend as MMEngineBackend

from .._stack import global_instances
from ..io.line_file import LineFile
from ..registry import VISBACKENDS

# What the stack says about its own internals in every run.
_NOISE = (
    '"FileClient" will be deprecated',
    '"HardDiskBackend" is the alias',
    "The prefix is not set in metric class",
)
# Once for each frozen parameter of a model whose norms have no weight decay.
_FROZEN = "is skipped since its requires_grad=False"


class _Console(logging.StreamHandler):
    """Warnings as ``warning: text``, to what is ``sys.stderr`` at that moment."""

    def __init__(self, level: int) -> None:
        logging.Handler.__init__(self, level)
        self.addFilter(lambda record: not _is_noise(record.getMessage()))

    def format(self, record: logging.LogRecord) -> str:
        return f"{record.levelname.lower()}: {record.getMessage()}"

    @property
    def stream(self) -> TextIO:
        return sys.stderr


def _is_noise(message: str) -> bool:
    return message.startswith(_NOISE) or message.endswith(_FROZEN)


class _LogFile(logging.FileHandler):
    """A log file that ends no run: on a full disk the messages wait for the next one."""

    def __init__(self, handler: logging.FileHandler) -> None:
        super().__init__(handler.baseFilename, delay=True)
        handler.close()
        self.setLevel(handler.level)
        self.setFormatter(handler.formatter)
        self.filters = handler.filters
        self.lines = LineFile(self.baseFilename)
        self.stream = self._open()  # MMEngine writes to it, too

    def _open(self) -> Any:
        return self.lines


def quiet_console(logger: MMLogger | None = None) -> MMLogger:
    """Let a logger of MMEngine print warnings and errors only, to stderr; returns it.

    The rest stays in the log file. None is the logger that MMEngine uses before a runner exists.
    """
    logger = logger or MMLogger.get_instance("mmengine")
    for index, handler in enumerate(logger.handlers):
        if type(handler) is logging.StreamHandler:
            logger.handlers[index] = _Console(max(handler.level, logging.WARNING))
        elif type(handler) is logging.FileHandler:
            logger.handlers[index] = _LogFile(handler)
    return logger


def report_lost_lines(logger: logging.Logger) -> None:
    """Warn, at the end of a run, of messages that the logger's files lack."""
    for handler in logger.handlers:
        if isinstance(handler, _LogFile):
            _report_loss(handler.lines, "messages", logger)


def _report_loss(file: LineFile, what: str, logger: logging.Logger) -> None:
    if lost := file.give_up():
        logger.warning("%s: %d %s were lost (%s)", display_path(file.path), lost, what, file.reason)


@VISBACKENDS.register_module()
class LocalVisBackend(MMEngineBackend):
    """MMEngine's backend of this name; lines that a full disk refuses wait for the next one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._files: dict[str, LineFile] = {}

    def _dump(self, value_dict: dict, file_path: str, file_format: str) -> None:
        file = self._files.setdefault(file_path, LineFile(file_path))
        file.write(dump(value_dict, file_format=file_format) + "\n")

    def close(self) -> None:
        """Warn of lines that could not be written."""
        super().close()
        for file in self._files.values():
            _report_loss(file, "lines", MMLogger.get_current_instance())


@contextlib.contextmanager
def only_errors(*loggers: logging.Logger) -> Iterator[None]:
    """Let loggers pass on errors only, as long as the block runs."""
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def nothing_printed() -> Iterator[None]:
    """Keep MMEngine's default logger from printing; its handlers are put back at the end."""
    loggers = global_instances(MMLogger)
    existed = bool(loggers)
    logger = MMLogger.get_current_instance() if existed else MMLogger.get_instance("mmengine")
    handlers = logger.handlers
    logger.handlers = [h for h in handlers if type(h) is not logging.StreamHandler]
    try:
        yield
    finally:
        logger.handlers = handlers
        if not existed:
            loggers.pop("mmengine", None)


def close_log_files(loggers: Iterable[MMLogger]) -> None:
    """Close the files of loggers that are not used any more."""
    for logger in loggers:
        for handler in logger.handlers:
            if isinstance(handler, logging.FileHandler):
                handler.close()


def write_to_log_file(text: str) -> None:
    """Append text to the newest run's log file, and only there."""
    if not global_instances(MMLogger):
        return
    record = logging.LogRecord("mmseg_resnest", logging.INFO, __file__, 0, text, None, None)
    for handler in MMLogger.get_current_instance().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)


def display_path(path: str | os.PathLike[str]) -> str:
    """A path as a person would type it: relative when it lies below the current folder."""
    relative = os.path.relpath(path)
    return os.fspath(path) if relative.startswith(os.pardir) else relative
