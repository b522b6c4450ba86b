# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The folders that a run writes into, which no other run may use at the same time."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from pathlib import Path

from mmengine.config import Config

from ..errors import UserError
from ..io.folder_lock import FolderLock
from .checkpoint_names import CheckpointNames
from .preflight import check_writable, checkpoint_folder


def check_checkpoint_hook(cfg: Config) -> None:
    """Check that ``filename_tmpl`` of the checkpoint hook is a template of a file name."""
    hook = (cfg.get("default_hooks") or {}).get("checkpoint") or {}
    if hook.get("filename_tmpl") is not None:
        CheckpointNames(hook["filename_tmpl"])


def folders_of_training(cfg: Config, work_dir: str) -> dict[Path, str]:
    """Where a training writes, and what says so: its work folder and that of its checkpoints."""
    return {
        checkpoint_folder(cfg, work_dir): "config key default_hooks.checkpoint.out_dir",
        Path(work_dir): "--work-dir",
    }


class RunFolders:
    """Folders that one run at a time writes into.

    ``arguments`` says for each folder which argument or config key names it; ``held`` gives the
    folders back when it is closed.
    """

    def __init__(self, arguments: Mapping[Path, str], held: contextlib.ExitStack) -> None:
        self._arguments = arguments
        self._stack = held
        self._locks: dict[Path, FolderLock] = {}

    def hold(self, make: bool) -> list[tuple[str, str]]:
        """Hold the folders that are not held yet; with ``make`` those that do not exist are made.

        Returns rows for the header of the run: which folder was taken over from a dead process.

        Raises:
            UserError: Another run uses one of them, or nothing can be written there.
        """
        notes = []
        for folder, argument in self._arguments.items():
            if folder.resolve() in self._locks or not (make or folder.is_dir()):
                continue
            check_writable(folder, argument)
            lock = FolderLock(folder, f"{argument} {folder}", tell=_print_line)
            self._locks[folder.resolve()] = self._stack.enter_context(lock)
            if lock.taken_over is not None:
                notes.append(("lock", f"taken over from {lock.taken_over}, which has ended"))
        return notes

    def check(self) -> None:
        """Raise UserError if another run took a folder while this process stood still."""
        for lock in self._locks.values():
            if lock.lost is not None:
                reason = lock.lost.removeprefix(f"{lock.subject}: ")
                message = f"{reason}; this run ends, so that their checkpoints do not mix"
                raise UserError("in-use", lock.subject, message)


def _print_line(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
