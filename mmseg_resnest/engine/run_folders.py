# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The folders that a run writes into: which they are, and that no other run uses them.

The work folder of a config is ``work_dirs/NAME``, or ``NAME-2``, ``NAME-3``, ...: a training that
continues none begins in a new one where the newest holds a run already. Where a folder that the
command line names holds another run, that is an error.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from mmengine.config import Config

from ..errors import UserError
from ..evaluation.curves import START_FILE, read_start
from ..evaluation.results_file import RESULTS_FILE
from ..io.folder_lock import FolderLock, is_held
from ..io.json_files import read_json
from ..weights import is_remote
from .checkpoint_names import CheckpointNames
from .latest import holds_checkpoint, run_of, runs_of
from .preflight import check_writable, checkpoint_folder
from .resolve import default_work_dir
from .saving import POINTER
from .start import restarted_by_launcher, wish_to_resume

_PROGRESS = ("*.pth", POINTER, RESULTS_FILE, f"*/{START_FILE}", "*/vis_data/scalars.json")


def this_launch() -> str:
    """A name that stays when the launcher starts this process again.

    Empty without a launcher; torchrun gives the same to several launches, unless it is given one.
    """
    job, elastic = (os.environ.get(n) for n in ("SLURM_JOB_ID", "TORCHELASTIC_RUN_ID"))
    return f"slurm {job}" if job else f"torchrun {elastic}" if elastic else ""


def training_folder(
    cfg: Config,
    work_dir: str | os.PathLike[str] | None = None,
    resume: str | None = None,
    processes: int = 1,
) -> str:
    """The work folder of a training; nothing is written.

    ``work_dir``, or a folder of the config: that of the checkpoint or the run to continue; with
    ``auto`` the one that was written last; the one of this launch when its launcher has started it
    again; else the newest one, or a new one where that holds a run. All processes of a run find
    the same, also when one of them has made the folder; so only a run of one process can pass over
    a folder in which another run has saved nothing yet.

    Args:
        cfg: The config.
        work_dir: As the command line names it, if it does.
        resume: See :func:`.training.train`.
        processes: Of the run.

    Raises:
        UserError: The config has no file that the folder could be named after.
    """
    if work_dir is not None:
        return os.fspath(work_dir)
    folders = _folders_of(cfg)
    resume = wish_to_resume(cfg, resume)
    found: list[str] = []
    if resume == "auto":
        found = sorted(folders, key=_last_written)
    elif resume is not None and not is_remote(resume):
        found = _of_checkpoint(cfg, folders, Path(resume))
    elif restarted_by_launcher():
        found = [one for one in folders if this_launch() in _launches(one)]
    if found:
        return found[-1]
    first, number = folders[0], max(_numbers(folders[0]), default=1)
    folder = f"{first}-{number}" if number > 1 else first
    # The checkpoints of a run may be elsewhere, and still be there when its folder is gone.
    while holds_run(cfg, folder) or (processes == 1 and is_held(folder)):
        number += 1
        folder = f"{first}-{number}"
    return folder


def check_free(cfg: Config, work_dir: str, resume: str | None) -> None:
    """Raise UserError if a folder that the command line names holds another run."""
    resume = wish_to_resume(cfg, resume)
    if resume == "auto" or (resume is None and restarted_by_launcher()):
        return
    runs = _runs(cfg, work_dir)
    other = runs - {run_of(Path(resume))} if resume else holds_run(cfg, work_dir)
    if other:
        message = "holds another run: continue that with --resume, name another folder or remove it"
        raise UserError("output-exists", f"--work-dir {work_dir}", message)


def evaluation_folder(
    cfg: Config,
    checkpoint: str | os.PathLike[str],
    work_dir: str | os.PathLike[str] | None,
    tta: bool,
) -> str:
    """The work folder of an evaluation: ``work_dir``, or by default one of the checkpoint's run.

    That is ``test``, or ``test_tta``, in the run's own folder. Weights of no run go into another
    one than the config's where that holds a run.

    Raises:
        UserError: ``work_dir`` is the work folder of a training, whose scores would be replaced; or
            the config has no file that the folder could be named after.
    """
    if work_dir is not None:
        if _is_of_training(Path(work_dir)):
            name = f"--work-dir {work_dir}"
            message = f"holds a training; name another folder, such as {Path(work_dir, 'test')}"
            raise UserError("output-exists", name, message)
        return os.fspath(work_dir)
    name = "test_tta" if tta else "test"
    file = Path(checkpoint)
    if file.is_file():
        if cfg.filename and (found := _of_checkpoint(cfg, _folders_of(cfg), file)):
            return os.path.join(found[-1], name)
        if _is_of_training(file.parent) and os.access(file.parent, os.W_OK):
            return os.path.join(file.parent, name)
    base = default_work_dir(cfg)
    if holds_run(cfg, base):
        base = f"{base}_{re.sub(r'[^A-Za-z0-9_.-]', '_', file.stem)}"
    return os.path.join(base, name)


def _is_of_training(folder: Path) -> bool:
    try:
        results = read_json(folder / RESULTS_FILE, RESULTS_FILE)
    except UserError:
        results = None
    task = results.get("task") if isinstance(results, dict) else None
    return task == "train" or os.path.lexists(folder / POINTER)


def holds_run(cfg: Config, work_dir: str) -> bool:
    """Whether a training has left scores or checkpoints in a folder."""
    left = any(os.path.lexists(Path(work_dir, name)) for name in (RESULTS_FILE, POINTER))
    return left or any(map(holds_checkpoint, _places(cfg, work_dir)))


def _places(cfg: Config, work_dir: str) -> list[Path]:
    """Where the checkpoints of a run with this work folder may be."""
    return [Path(work_dir), checkpoint_folder(cfg, work_dir)]


def _of_checkpoint(cfg: Config, folders: list[str], file: Path) -> list[str]:
    """Those of some work folders that hold a checkpoint, or else its run."""
    inside, run = file.parent.resolve(), run_of(file)
    found = [one for one in folders if inside in [p.resolve() for p in _places(cfg, one)]]
    return found or [one for one in folders if run in _runs(cfg, one)]


def _runs(cfg: Config, work_dir: str) -> set[str]:
    return set().union(*map(runs_of, _places(cfg, work_dir)))


def _folders_of(cfg: Config) -> list[str]:
    """The config's first work folder, and those with numbers that are there, in their order."""
    first = os.fspath(cfg.get("work_dir") or default_work_dir(cfg))
    # A number goes behind a name.
    first = first.rstrip("/") if Path(first).name not in ("", "..") else os.path.abspath(first)
    numbered = [f"{first}-{number}" for number in sorted(_numbers(first))]
    # NAME-2 may be the first one of another config, whose runs write it into their folder.
    dump = Path(cfg.filename or "").name
    return [first, *(one for one in numbered if not dump or Path(one, dump).is_file())]


def _numbers(first: str) -> list[int]:
    name = re.compile(re.escape(Path(first).name) + r"-([1-9]\d{0,8})")
    try:
        found = [name.fullmatch(entry) for entry in os.listdir(Path(first).parent)]
    except OSError:
        return []
    return [number for match in found if match and (number := int(match[1])) > 1]


def _launches(work_dir: str) -> set[str]:
    notes = map(read_start, Path(work_dir).glob(f"*/{START_FILE}"))
    return {note.launch for note in notes if note is not None}


def _last_written(work_dir: str) -> float:
    files = [path for pattern in _PROGRESS for path in Path(work_dir).glob(pattern)]
    return max((path.lstat().st_mtime for path in files), default=0.0)


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
        tell = functools.partial(print, file=sys.stderr, flush=True)
        for folder, argument in self._arguments.items():
            if folder.resolve() in self._locks or not (make or folder.is_dir()):
                continue
            check_writable(folder, argument)
            lock = FolderLock(folder, f"{argument} {folder}", tell=tell)
            self._locks[folder.resolve()] = self._stack.enter_context(lock)
            if lock.taken_over is not None:
                notes.append(("lock", f"taken over from {lock.taken_over}, which has ended"))
        return notes

    def release(self) -> None:
        """Give the folders back."""
        for lock in self._locks.values():
            lock.release()
        self._locks.clear()

    def check(self) -> None:
        """Raise UserError if another run took a folder while this process stood still."""
        for lock in self._locks.values():
            if lock.lost is not None:
                reason = lock.lost.removeprefix(f"{lock.subject}: ")
                message = f"{reason}; this run ends, so that their checkpoints do not mix"
                raise UserError("in-use", lock.subject, message)


class NewRunFolders(RunFolders):
    """The folders of a training of one process that continues none, whose folder nobody named.

    Where another run has begun in its ``work_dir`` since that was chosen, :meth:`hold` takes the
    next.
    """

    def __init__(self, cfg: Config, work_dir: str, held: contextlib.ExitStack) -> None:
        super().__init__(folders_of_training(cfg, work_dir), held)
        self.work_dir, self._cfg = work_dir, cfg

    def hold(self, make: bool) -> list[tuple[str, str]]:
        """As that of RunFolders; raises ``in-use`` only where no next folder can be told."""
        while True:
            try:
                notes = super().hold(make)
                if not holds_run(self._cfg, self.work_dir):
                    return notes
            except UserError as error:
                if error.code != "in-use" or training_folder(self._cfg) == self.work_dir:
                    raise
            self.release()
            self.work_dir = training_folder(self._cfg)
            self._arguments = folders_of_training(self._cfg, self.work_dir)
