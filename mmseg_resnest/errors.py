# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The exception for a user's mistake, and the table of its codes."""

from __future__ import annotations

from .io.text import printable

__all__ = ["CODES", "UserError", "reason"]

# What each code means and what to do; docs/errors.md is made from it.
CODES = {
    # command line and environment
    "argument": "A command-line option or a function argument has a value that is not accepted.",
    "argument-missing": "A required option is missing, or two options exclude each other.",
    "environment": "An environment variable, a limit of the system or the launcher is not set up.",
    "device": "The device does not exist here or cannot be used.",
    "missing-package": "An optional package is not installed.",
    "memory": "Memory ran out, or would run out.",
    # files
    "not-found": "A file or folder does not exist.",
    "wrong-path-type": "A folder stands where a file is expected, or the other way round.",
    "unreadable": "A file exists and cannot be read: permissions, or an error of the disk.",
    "not-writable": "A file cannot be written: permissions, a full disk, or a name it cannot have.",
    "output-exists": "The output is there already and would be overwritten.",
    "in-use": "Another process works in this folder.",
    "unsafe-path": "A path or a link leads out of the folder it must stay in.",
    "empty": "A file or folder is empty.",
    "corrupt": "A file is damaged or incomplete, or its checksum does not match.",
    "too-large": "A file or what it declares exceeds a limit.",
    "format": "A file is not of the expected format.",
    "download": "A file could not be downloaded.",
    # configs
    "config-syntax": "A config file cannot be parsed.",
    "config-key": "A config key is unknown or missing.",
    "config-type": "A config names a part that is in no registry, or one that is not allowed.",
    "config-value": "A config key has a value that is not accepted.",
    "config-conflict": "Two config keys, or a key and an option, contradict each other.",
    # checkpoints and runs
    "checkpoint": "A checkpoint does not fit: unknown layout, left-over keys or other shapes.",
    "checkpoint-unsafe": "A checkpoint holds objects that only a trusted file may hold.",
    "resume": "Training cannot continue from this checkpoint.",
    "resume-changed": "The resumed run differs from the checkpoint's in what makes it another run.",
    "run": "The folder does not hold the results of a run, or they are incomplete.",
    "nonfinite": "The loss or a gradient is not finite.",
    "storage": "Checkpoints or logs could not be written while training.",
    "ranks": "The processes of a distributed run differ, or one was lost.",
    "data-loading": "A data loading worker failed, hung or was killed.",
    # data
    "dataset": "The files of a data set do not fit together.",
    "image": "An image cannot be decoded or has the wrong kind.",
    "label": "A label map holds values that are not classes of the data set.",
    "annotation": "An annotation file (COCO, LabelMe, VIA, ...) is not what it must be.",
    "size-mismatch": "Two arrays or images that must have equal shapes differ.",
    "classes": "Class names, colours or their number do not agree.",
    # models
    "model": "The model does not do what this command needs.",
    "model-output": "The model returned something else than segmentation scores.",
    "export": "The model cannot be exported in this form, or the exported file differs.",
    "untrusted": "The file can run code; it is loaded only when it is declared trusted.",
    # services
    "request": "A request to the service is not valid.",
    "network": "A port, a host or a connection cannot be used.",
    "input": "An input is not accepted.",
}


class UserError(Exception):
    """A mistake that the user can fix; never a fault of the code.

    The tools print it as one line, ``error: SUBJECT: MESSAGE [CODE]``, and exit with code 2.

    Args:
        code: A key of :data:`CODES`; tests and programs compare it.
        subject: The file, config key or argument that is wrong; "" without one.
        message: What is wrong and what to do.

    Attributes:
        text: ``SUBJECT: MESSAGE``, without the code: for a message that includes this one.
    """

    def __init__(self, code: str, subject: object, message: str) -> None:
        super().__init__(code, subject, message)
        self.code = code
        self.subject = str(subject)
        self.message = message

    @property
    def text(self) -> str:
        """``SUBJECT: MESSAGE``, or the message alone; the subject on one line."""
        return f"{printable(self.subject)}: {self.message}" if self.subject else self.message

    def __str__(self) -> str:
        return f"{self.text} [{self.code}]"


def check_value(key: str, value: object, wanted: str, good: bool) -> None:
    """Raise UserError, which names a config key and what is wanted, unless its value is good."""
    if not good:
        raise UserError("config-value", f"config key {key}", f"must be {wanted}, not {value!r}")


def reason(error: BaseException) -> str:
    """The text of an error to include in another one's message, without its code."""
    return error.text if isinstance(error, UserError) else str(error)
