# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What a training starts from: looked up before the run is resolved; nothing is written."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config
from torch import nn

from ..errors import UserError
from ..weights import is_remote, load_checkpoint, resolve_checkpoint
from .checkpoint import load_weights
from .checkpoint_schema import check_training_checkpoint
from .checkpoint_values import Refusal
from .latest import latest_valid_checkpoint, verify_checkpoint
from .logs import display_path
from .optimization import build_optimization, check_schedule_ends
from .preflight import check_checkpoint, checkpoint_folder
from .resolve import ResumePoint
from .resume import fit_to_run
from .resume_changes import Changes, Note, compare_with_run
from .saving import POINTER


@dataclass
class Start:
    """What a training starts from.

    Attributes:
        resume: The checkpoint to continue from; None starts.
        record: What that checkpoint holds, checked; of a run that starts from weights
            (``load_from``) their state dict, once :meth:`fit` has read it.
        notes: Rows for the header of the run.
        changes: Allowed differences from the resumed run, once :meth:`compare` has found them.
        numerics: What the checkpoint to continue from says of its run's rounding.
    """

    resume: ResumePoint | None = None
    record: dict[str, Any] | None = None
    notes: list[Note] = field(default_factory=list)
    changes: Changes = field(default_factory=Changes)
    numerics: dict[str, Any] | None = None

    def compare(
        self, values: Mapping[str, str], numerics: Mapping[str, Any], allow_changes: Sequence[str]
    ) -> None:
        """Compare the run with the one that it continues; see :func:`.compare_with_run`."""
        if self.resume is None:
            if allow_changes:
                self.notes.append(("changes", "--allow-changes: no run is resumed"))
            return
        assert self.record is not None
        self.changes = compare_with_run(
            self.resume.path, self.record["meta"], values, numerics, allow_changes
        )
        self.notes += self.changes.notes

    def fit(self, cfg: Config, model: nn.Module) -> None:
        """Check that weights, optimizer and schedules fit the built model; nothing is loaded.

        A row says which weights a start takes.
        """
        source = cfg.get("load_from")
        if self.resume is not None:
            assert self.record is not None
            load_weights(model, self.record["state_dict"], name=source, check_only=True)
            optimization = build_optimization(cfg, model)
            fit_to_run(self.record, Refusal(source), model, *optimization, self.changes)
        elif source:
            self.record = load_checkpoint(source)
            said = load_weights(
                model, self.record, start_training=True, name=source, check_only=True
            )
            self.notes.append(("weights", said))
        check_schedule_ends(cfg)


def wish_to_resume(cfg: Config, resume: str | None) -> str | None:
    """``resume`` of the command line, or else what the config says: ``auto`` or a checkpoint."""
    if resume is None and cfg.get("resume"):
        return cfg.get("load_from") or "auto"
    return resume


def find_start(cfg: Config, resume: str | None, work_dir: str) -> Start:
    """Decide what a training starts from, and read it if that is a checkpoint to continue from.

    Args:
        cfg: The config.
        resume: ``auto``: the latest valid checkpoint of the work folder, or a start when there is
            none; otherwise a checkpoint. None: as the config says, or, when a launcher has started
            the run again, as ``auto``.
        work_dir: The work folder.

    Raises:
        UserError: The checkpoint does not exist, is corrupt, or training cannot continue from it.
    """
    resume = wish_to_resume(cfg, resume)
    if resume is None and restarted_by_launcher() and (Path(work_dir) / POINTER).is_file():
        resume = "auto"  # what this very run has saved: its first start removed an older pointer
    start = Start()
    if resume == "auto":
        folder = checkpoint_folder(cfg, work_dir)
        latest, skipped = latest_valid_checkpoint(folder, Path(work_dir))
        start.notes += [("skipped", f"{display_path(path)} {reason}") for path, reason in skipped]
        if latest is None:
            what = "valid checkpoint" if skipped else "checkpoint"
            note = f"from the beginning: {folder} holds no {what} to resume from"
            start.notes.append(("start", note))
        resume = None if latest is None else str(latest)
    elif resume is not None:
        check_checkpoint(resume, "--resume")
        if is_remote(resume):
            resume = str(resolve_checkpoint(resume))
        wrong = verify_checkpoint(Path(resume))
        if wrong:
            message = f"{wrong}; --resume without a file takes the latest valid checkpoint"
            raise UserError("corrupt", f"--resume {resume}", message)
    if resume is not None:
        start.record = check_training_checkpoint(resume)
        meta = start.record["meta"]
        start.resume, start.numerics = ResumePoint(resume, meta.get("seed")), meta.get("numerics")
        start.notes.append(("start", f"continue from {display_path(resume)}"))
    elif cfg.get("load_from"):
        check_checkpoint(cfg.load_from, "config key load_from")
    return start


def restarted_by_launcher() -> bool:
    """Whether torchrun or Slurm has started this run again."""
    names = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
    return any(os.environ.get(name, "0") not in ("", "0") for name in names)
