# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The results of a training run, as a file that is kept up to date."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook

from ...errors import UserError
from ...evaluation import SCORES, evaluation_result, evaluation_scores, write_result
from ...evaluation.curves import START_FILE, StartNote
from ...evaluation.results_file import RESULTS_FILE
from ...io.atomic import atomic_write
from ...io.json_files import read_json
from ...registry import HOOKS
from ..checkpoint_schema import check_results
from ..checkpoint_values import Refusal
from ..checkpoint_writer import Unsaved
from ..runner import Runner
from .monitor import Monitored, monitored


@HOOKS.register_module()
class ResultsHook(Hook):
    """Keeps ``results.json`` of a work folder up to date while a run trains.

    It holds the scores and the per-class table of the best validation so far (by the score that
    ``save_best`` names, see :func:`.monitor.monitored`), where the best and the newest checkpoint
    are, the scores of every validation, the run's identity and numerics, and ``extra``.
    ``run.json`` beside the log of each start says which run that is of.

    Args:
        extra: More for ``results.json``.
        launch: What names the launch of this process, for ``run.json``.
    """

    priority = "LOWEST"  # after CheckpointHook, which says where the best checkpoint is

    file = RESULTS_FILE

    def __init__(self, extra: Mapping[str, Any] | None = None, launch: str = "") -> None:
        self.extra = dict(extra or {})
        self.launch = launch
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Any] = {}
        self.not_written: str | None = None  # why the file lacks something, or None
        self._resumed = False

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Put the validations so far into the checkpoint."""
        checkpoint["results"] = {"history": self.history, "best": self.best}

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Resuming: take them over."""
        results = checkpoint.get("results")
        if isinstance(results, dict):
            self.history = list(results["history"])
            self.best = dict(results["best"])
            self._resumed = True

    def before_train(self, runner: Runner) -> None:
        """Note the start; resuming without validations in the checkpoint, take over the file's."""
        if is_main_process():
            note = StartNote(runner.run_id, self.launch)._asdict()
            atomic_write(Path(runner.log_dir) / START_FILE, json.dumps(note) + "\n")
        path = Path(runner.work_dir) / self.file
        if self._resumed or not runner.iter or not path.is_file():
            return
        try:
            before = read_json(path, str(path))
            if before.get("run_id", runner.run_id) != runner.run_id:
                return  # of a run that was here before
            history = [e for e in before["history"] if e["iteration"] <= runner.iter]
            best = before if before["iteration"] <= runner.iter else {}
            results = check_results(
                {"history": history, "best": best}, "results", Refusal(str(path))
            )
        except (UserError, KeyError, TypeError, AttributeError) as error:
            runner.logger.warning("%s is ignored, it cannot be read (%s)", path, error)
            return
        self.history, self.best = results["history"], results["best"]

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Add a validation and write the file."""
        if not is_main_process():
            return
        result = evaluation_result(runner.val_evaluator, metrics or {})
        scores = evaluation_scores(metrics or {})
        now = {"iteration": runner.iter}
        self.history = [e for e in self.history if e["iteration"] != runner.iter]
        named = {name: result[name] for name in SCORES if name in result}  # without a prefix
        self.history.append({**now, **named, **scores, **named, **now})
        score = monitored(runner, scores)
        if score is not None and self.is_best(score):
            self.best = {**now, **result, **now}
        reported = self.not_written is not None
        self._write(runner)
        if self.not_written is not None and not reported:  # the next validation retries
            runner.logger.warning("%s; training goes on", self.not_written)

    def is_best(self, score: Monitored) -> bool:
        """Whether a score is better than that of each validation so far."""
        before = (self.best.get("scores") or self.best).get(score.name)
        # Strictly better, as CheckpointHook decides.
        better = before is None or score.better(score.value, before)
        return better and not math.isnan(score.value)

    def after_train(self, runner: Runner) -> None:
        """Write it again, with the last checkpoint and what could not be written before."""
        if self.history and is_main_process():
            self._write(runner)
            if self.not_written is not None:
                runner.report_unsaved([Unsaved(self.not_written, checkpoint=False, needed=True)])
                self.not_written = None

    def _write(self, runner: Runner) -> None:
        hub = runner.message_hub.runtime_info
        places = {
            "best_checkpoint": _name(hub.get("best_ckpt")),
            "last_checkpoint": _name(hub.get("last_ckpt")),
        }
        numerics = runner.describe_numerics()
        about = {"run_id": runner.run_id, "numerics": numerics}
        record = {**self.extra, **about, **places}
        record = {**record, **self.best, **record, "history": self.history}
        path = Path(runner.work_dir) / self.file
        try:
            write_result(record, path)
            self.not_written = None
        except UserError as error:
            reason = getattr(error.__cause__, "strerror", None) or error
            self.not_written = f"{path} lacks the newest results: it cannot be written ({reason})"


def _name(path: Any) -> str | None:
    return None if path is None else os.path.basename(str(path))
