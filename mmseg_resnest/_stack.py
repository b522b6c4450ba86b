# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Imports the OpenMMLab stack without the lines and warnings that its import prints.

Stream and warning filters are put back after the import.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import warnings
from collections.abc import Iterator
from typing import TextIO

# Imported so that each of MMSegmentation's parts is registered. The original packages and their
# maintained continuations agree on these names.
_MODULES = (
    "mmengine.runner",
    "mmcv.cnn",
    "mmcv.transforms",
    "mmseg.datasets",
    "mmseg.engine",
    "mmseg.evaluation",
    "mmseg.models",
    "mmseg.structures",
    "mmseg.visualization",
)

# Lines printed (not logged) at import: mmseg.datasets and mmseg.datasets.transforms, once each.
_NOISE_LINES = frozenset({"Could not import OneDL"})

# Warnings of the import: (start of the message as a regular expression, category, module as a
# regular expression). mmcv without compiled operators, which no model of ours uses, and with them.
_NOISE_WARNINGS: tuple[tuple[str, type[Warning], str], ...] = (
    (
        r"Fail to import ``MultiScaleDeformableAttention`` from ``mmcv\.ops",
        UserWarning,
        r"mmcv\.cnn\.bricks\.transformer$",
    ),
    (
        r"``MultiScaleDeformableAttention`` has been moved to",
        ImportWarning,
        r"mmcv\.cnn\.bricks\.transformer$",
    ),
)

_INSTALL = "pip install onedl-mmsegmentation onedl-mmengine onedl-mmcv"


class _LineFilter:
    """A text stream that drops some whole lines and passes all else on."""

    def __init__(self, stream: TextIO, dropped: frozenset[str]) -> None:
        self._stream = stream
        self._dropped = dropped
        self._pending = ""

    def write(self, text: str) -> int:
        """Write the lines that are complete; keep the rest for the next call."""
        *lines, self._pending = (self._pending + text).split("\n")
        for line in lines:
            if line not in self._dropped:
                self._stream.write(line + "\n")
        return len(text)

    def flush(self) -> None:
        """Flush the stream below."""
        self._stream.flush()

    def close_pending(self) -> None:
        """Write a last line that has no line end."""
        self._stream.write(self._pending)
        self._pending = ""

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _without_printed_noise() -> Iterator[None]:
    if sys.stdout is None:  # pythonw and some daemons
        yield
        return
    stream = _LineFilter(sys.stdout, _NOISE_LINES)
    try:
        with contextlib.redirect_stdout(stream):
            yield
    finally:
        stream.close_pending()


def _advice(error: ImportError) -> str:
    """What to install so that an import of the stack works.

    Args:
        error: What the import raised.

    Returns:
        Sentences that say what to install.
    """
    name = error.name or ""
    root = name.partition(".")[0]
    if root in ("mmseg", "mmengine", "mmcv"):
        if name.startswith(("mmcv._ext", "mmcv.ops")):
            return (
                "This mmcv lacks the compiled operators that this mmseg asks for: install mmcv "
                f"with them, or in a new environment `{_INSTALL}`."
            )
        return (
            f"Install the OpenMMLab stack: `{_INSTALL}`. An installation of mmsegmentation 1.x "
            "with mmengine and mmcv 2.x does as well."
        )
    if "libGL" in str(error):
        return (
            "This cv2 needs a library for screens: `pip uninstall opencv-python`, then "
            "`pip install --force-reinstall opencv-python-headless`."
        )
    if root in ("ftfy", "regex"):
        return "mmsegmentation 1.2 does not name what it needs: `pip install ftfy regex`."
    return (
        f"Install it: `pip install {root}`." if root else "Check the installation of that package."
    )


def import_stack() -> None:
    """Import mmengine, mmcv and mmseg, registering every part of MMSegmentation.

    Raises:
        ImportError: One of them, or something that one of them needs, is missing; the message
            says what to install.
    """
    with _without_printed_noise(), warnings.catch_warnings():
        for message, category, source in _NOISE_WARNINGS:
            warnings.filterwarnings("ignore", message, category, source)
        for module in _MODULES:
            try:
                importlib.import_module(module)
            except ImportError as error:
                raise ImportError(
                    f"mmseg-resnest cannot import {module}: {error}. {_advice(error)}",
                    name=error.name,
                    path=error.path,
                ) from error


import_stack()
