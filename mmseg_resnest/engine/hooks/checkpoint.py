# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""MMEngine's CheckpointHook with atomic writes in the background."""

from __future__ import annotations

import contextlib
import functools
import os
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook as MMEngineHook

from ..._stack import loads_from
from ...errors import UserError
from ...evaluation import evaluation_scores
from ...io.remove import remove_file
from ...registry import HOOKS
from ..checkpoint_names import CheckpointNames, remove_parts
from ..checkpoint_writer import Step
from ..loop import IterBasedTrainLoop
from ..runner import Runner
from ..saving import BEST_LINK, LAST_LINK, POINTER, link_to, point_to, snapshot
from .monitor import GREATER, LESS, monitored, more_is_worse, naming, require_score


@HOOKS.register_module()
class CheckpointHook(MMEngineHook):
    """Saves a run as MMEngine's hook of this name does, in the background and atomically.

    Where the disk is slower than ``interval``, checkpoints that a newer one follows are not
    written; with ``max_keep_ckpts=-1``, which keeps all of them, training waits instead.

    Once a file is written, ``last_checkpoint`` names it, and the links ``last.pth`` and
    ``best.pth`` (by the first score of ``save_best``) lead to it; then older ones are removed, and
    only files with names that this hook gives. What fails is reported and retried by itself, and
    training goes on meanwhile. With gradient accumulation it waits for the update: gradients are
    not saved. A run that is asked to stop is saved.

    Args: as MMEngine's, without ``file_client_args`` and ``backend_args``.
    """

    _default_greater_keys = list(GREATER)
    _default_less_keys = list(LESS)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with naming("default_hooks.checkpoint"):
            super().__init__(*args, **kwargs)
        if self.file_client_args is not None or self.backend_args is not None:
            raise UserError(
                "config-value",
                "config key default_hooks.checkpoint",
                "checkpoints are written to a file system of this machine; remove "
                "file_client_args and backend_args, and mount the storage",
            )
        self.max_keep_ckpts: int
        self.best_ckpt_path: str | None
        self._names = CheckpointNames(self.filename_tmpl)
        self._kept: dict[str, list[Path]] = {}  # oldest first, by kind
        self._pointed: Path | None = None
        self._owed = False
        self._saved_step: int | None = None

    def before_train(self, runner: Runner) -> None:
        """Find the folder, and the run's checkpoints that are in it already."""
        if not isinstance(runner, Runner):
            raise UserError(
                "config-conflict",
                "config key default_hooks.checkpoint",
                "this CheckpointHook needs mmseg_resnest.engine.Runner; build the runner with its "
                "from_cfg, or name MMEngine's hook: type='mmengine.CheckpointHook'",
            )
        keep, self.max_keep_ckpts = self.max_keep_ckpts, -1  # MMEngine's would remove some here
        super().before_train(runner)
        self.max_keep_ckpts = keep
        self._folder = Path(self.out_dir)
        self._take_over_best()
        # What was saved before a validation is saved again after it, by a run resumed there too.
        pending = getattr(runner.train_loop, "validation_pending", False)
        self._saved_step = runner.iter if pending and not self.by_epoch else None
        if not is_main_process():
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        work_dir = Path(runner.work_dir)
        if removed := remove_parts([self._folder, work_dir], self._names):
            runner.logger.info("removed parts of interrupted writes: %s", ", ".join(removed))
        step = runner.epoch if self.by_epoch else runner.iter
        if step:
            self._kept["newest"] = self._checkpoints_up_to(step)
        runner.checkpoint_writer.free = self._free
        try:
            if not step:  # those of an earlier run in this folder are not this run's
                remove_file(work_dir / POINTER)
            elif start := loads_from(runner):  # it may have named a corrupt one
                self._point_to(Path(start), work_dir)
        except (OSError, UserError) as error:
            runner.logger.warning("%s; it names an earlier checkpoint", error)

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Save when it is due, or the run is about to stop."""
        due = not self.by_epoch and (
            self.every_n_train_iters(runner, self.interval, self.save_begin)
            or (self.save_last and self.is_last_train_iter(runner))
        )
        self._owed |= due or getattr(runner.train_loop, "stopping", False)
        if self._owed and runner.optim_wrapper.should_update():
            runner.logger.info("Saving checkpoint at %d iterations", runner.iter + 1)
            self._save_checkpoint(runner)

    def after_val_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """End the validation if the run was asked to stop."""
        if isinstance(runner.train_loop, IterBasedTrainLoop):
            runner.train_loop.check_stop_in_validation()

    def after_val(self, runner: Runner) -> None:
        """Save again what was saved before the validation, now with its scores."""
        if isinstance(runner.train_loop, IterBasedTrainLoop) and self._saved_step == runner.iter:
            self._save_now(runner, validation_pending=False)

    def save_before_leaving(self, runner: Runner) -> None:
        """Save the run between two steps, where a validation was interrupted or has ended."""
        if self._saved_step != runner.iter:
            self._save_now(runner, runner.train_loop.validation_pending)

    def after_train(self, runner: Runner) -> None:
        """Wait until all is written."""
        unsaved = runner.finish_saving()
        runner.report_unsaved(unsaved)
        if not any(one.checkpoint for one in unsaved):
            super().after_train(runner)

    def _save_now(self, runner: Runner, validation_pending: bool) -> None:
        """Save when ``runner.iter`` counts the finished steps already."""
        step = runner.epoch if self.by_epoch else runner.iter
        meta = {"epoch": runner.epoch, "iter": runner.iter}
        self._save_checkpoint_with_step(runner, step, meta, validation_pending)

    def _save_checkpoint_with_step(
        self, runner: Runner, step: int, meta: dict, validation_pending: bool | None = None
    ) -> None:
        if runner.before_saving is not None:
            runner.before_saving()
        self._owed = False
        self._saved_step = None if self.by_epoch else step
        path = self._folder / self._names.numbered(step)
        self.last_ckpt = str(path)
        runner.message_hub.update_info("last_ckpt", self.last_ckpt)
        if validation_pending is None and isinstance(runner.train_loop, IterBasedTrainLoop):
            validation_pending = runner.train_loop.validation_due(meta["iter"])
        if not (is_main_process() or runner.sharded):
            return
        record = runner.checkpoint_record(
            {**meta, "validation_pending": bool(validation_pending)},
            self.save_optimizer,
            self.save_param_scheduler,
        )
        if is_main_process():

            def point() -> None:
                self._point_to(path, Path(runner.work_dir))
                with contextlib.suppress(OSError):  # what it named before was kept for it
                    self._free()

            steps = [
                Step(f"updating {POINTER}", point, needed=True),
                self._linking(runner, path, LAST_LINK),
                self._removal("newest", path),
            ]
            drop = self.max_keep_ckpts > 0
            runner.checkpoint_writer.submit("newest", snapshot(record), path, steps, drop)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        if not self.save_best:
            return
        step = runner.epoch if self.by_epoch else runner.iter
        if "auto" in self.key_indicators:
            chosen = monitored(runner, evaluation_scores(metrics))
            if chosen is None:
                return
            less = more_is_worse(chosen.name)
            self._init_rule([self.rules[0] or ("less" if less else "greater")], [chosen.name])
        single = len(self.key_indicators) == 1
        hub = runner.message_hub
        for key, rule in zip(self.key_indicators, self.rules, strict=True):
            suffix = "" if single else f"_{key}"
            known = f"best_score{suffix}" in hub.runtime_info
            best = hub.get_info(f"best_score{suffix}") if known else self.init_value_map[rule]
            score = metrics[require_score(metrics, key, "default_hooks.checkpoint.save_best")]
            if score is None or not self.is_better_than[key](score, best):
                continue
            path = self._folder / self._names.best(key, step)
            hub.update_info(f"best_score{suffix}", score)
            hub.update_info(f"best_ckpt{suffix}", str(path))
            self._set_best(key, str(path))
            runner.logger.info(
                "The best checkpoint with %.4f %s at %d is saved to %s", score, key, step, path.name
            )
            if is_main_process() or runner.sharded:
                record = runner.checkpoint_record({"epoch": runner.epoch, "iter": runner.iter})
            if is_main_process():
                kind = self._best_kind(key)
                steps = [self._removal(kind, path)]
                if key == self.key_indicators[0]:
                    steps.insert(0, self._linking(runner, path, BEST_LINK))
                runner.checkpoint_writer.submit(kind, snapshot(record), path, steps)

    def _best_kind(self, key: str) -> str:
        # One key may be called "auto" first and by its name later.
        return "best" if len(self.key_indicators) == 1 else f"best {key}"

    def _set_best(self, key: str, path: str | None) -> None:
        if len(self.key_indicators) == 1:
            self.best_ckpt_path = path
        else:
            self.best_ckpt_path_dict[key] = path

    def _point_to(self, path: Path, folder: Path) -> None:
        point_to(path, folder)
        self._pointed = Path(os.path.abspath(path))

    def _linking(self, runner: Runner, path: Path, name: str) -> Step:
        """Lets ``best.pth`` or ``last.pth`` of the work folder be the checkpoint."""
        link = functools.partial(link_to, path, Path(runner.work_dir), name)
        return Step(f"updating {name}", link)

    def _removal(self, kind: str, newest: Path) -> Step:
        """Removes the checkpoints that a new one replaces."""

        def run() -> None:
            kept = self._kept.get(kind, [])
            self._kept[kind] = [*(path for path in kept if path != newest), newest]
            self._free()

        return Step("removing older checkpoints", run)

    def _free(self) -> None:
        """Remove older checkpoints, but what ``last_checkpoint`` names; in the writer's thread."""
        failure: OSError | None = None
        for kind, kept in self._kept.items():
            number = self.max_keep_ckpts if kind == "newest" else 1
            for path in kept[: max(0, len(kept) - number) if number > 0 else 0]:
                if Path(os.path.abspath(path)) == self._pointed:
                    continue
                try:
                    remove_file(path)
                    kept.remove(path)
                except OSError as error:
                    failure = error
        if failure is not None:
            raise failure

    def _checkpoints_up_to(self, step: int) -> list[Path]:
        """The numbered checkpoints in the folder up to a step, in order."""
        numbered = [(self._names.step_of(p.name), p) for p in self._folder.iterdir()]
        found = [(n, p) for n, p in numbered if n is not None and n <= step]
        return [p for _, p in sorted(found) if p.is_file() and not p.is_symlink()]

    def _take_over_best(self) -> None:
        """Take over the best checkpoints of the run that is resumed, if their names are ours."""
        for key in self.key_indicators if self.save_best else ():
            single = len(self.key_indicators) == 1
            before = self.best_ckpt_path if single else self.best_ckpt_path_dict[key]
            name = Path(before).name if isinstance(before, str) else ""  # the folder may have moved
            if not self._names.is_best(name, key):
                self._set_best(key, None)
                continue
            self._kept[self._best_kind(key)] = [self._folder / name]
            self._set_best(key, str(self._folder / name))
