# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""MMEngine's CheckpointHook, whose files are whole and whose saving does not hold training up."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook as MMEngineHook

from mmseg_resnest.engine.loop import IterBasedTrainLoop, between_updates
from mmseg_resnest.engine.runner import Runner
from mmseg_resnest.engine.saving import POINTER, point_to, remove_parts, snapshot
from mmseg_resnest.errors import UserError
from mmseg_resnest.registry import HOOKS

__all__ = ["CheckpointHook"]


@HOOKS.register_module()
class CheckpointHook(MMEngineHook):
    """Saves a run as MMEngine's hook of this name does, in the background and atomically.

    * A file appears whole (:func:`mmseg_resnest.engine.saving.write_checkpoint`), and only then
      does ``last_checkpoint`` name it, and only then are older ones removed.
    * Training goes on while it is written. When the disk cannot take it, the older ones stay, one
      warning says so, and it is tried again.
    * With gradient accumulation it waits for the update: gradients are not saved.
    * A run that is asked to stop is saved.

    Args: as MMEngine's, but for ``file_client_args`` and ``backend_args``: files are written to a
        file system of this machine.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.file_client_args is not None or self.backend_args is not None:
            raise UserError(
                "config key default_hooks.checkpoint: checkpoints are written to a file system of "
                "this machine; take out file_client_args and backend_args, and mount the storage"
            )
        self.max_keep_ckpts: int
        self.best_ckpt_path: str | None
        self._kept: list[Path] = []
        self._owed = False
        self._saved_step: int | None = None

    # --- when ---

    def before_train(self, runner: Runner) -> None:
        """Find the folder, and the run's checkpoints that are in it already."""
        if not isinstance(runner, Runner):
            raise UserError(
                "this CheckpointHook needs mmseg_resnest.engine.Runner; build the runner with its "
                "from_cfg, or name MMEngine's hook: type='mmengine.CheckpointHook'"
            )
        keep, self.max_keep_ckpts = self.max_keep_ckpts, -1  # MMEngine's would remove some here
        super().before_train(runner)
        self.max_keep_ckpts = keep
        self._folder = Path(self.out_dir)
        # What was saved before a validation is saved again after it, by a run resumed there too.
        pending = getattr(runner.train_loop, "validation_pending", False)
        self._saved_step = runner.iter if pending and not self.by_epoch else None
        if not is_main_process():
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        removed = remove_parts(self._folder)
        if removed:
            runner.logger.info("removed what an interrupted save has left: %s", ", ".join(removed))
        step = runner.epoch if self.by_epoch else runner.iter
        self._kept = self._checkpoints_up_to(step) if step else []
        runner.checkpoint_writer.use(free=self._free)
        with contextlib.suppress(OSError):
            if not step:  # those of an earlier run in this folder are not this run's
                (Path(runner.work_dir) / POINTER).unlink(missing_ok=True)
            elif runner._load_from:  # it may have named a broken one
                point_to(Path(runner._load_from), Path(runner.work_dir))

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict | None = None,
    ) -> None:
        """Save when it is due, or the run is about to stop."""
        due = not self.by_epoch and (
            self.every_n_train_iters(runner, self.interval, self.save_begin)
            or (self.save_last and self.is_last_train_iter(runner))
        )
        self._owed |= due or getattr(runner.train_loop, "stopping", False)
        if self._owed and between_updates(runner.optim_wrapper):
            runner.logger.info("Saving checkpoint at %d iterations", runner.iter + 1)
            self._save_checkpoint(runner)

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
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
            pending = runner.train_loop.validation_due(runner.iter)
            self._save_now(runner, validation_pending=pending)

    def after_train(self, runner: Runner) -> None:
        """Wait until all is written."""
        problems = runner.finish_saving()
        if problems:
            raise UserError(
                f"{'; '.join(problems)}: make room or mend the access, then the same command with "
                "--resume goes on from the newest checkpoint that is whole"
            )
        super().after_train(runner)

    # --- what ---

    def _save_now(self, runner: Runner, validation_pending: bool) -> None:
        """Save when ``runner.iter`` counts the finished steps already."""
        meta = {"epoch": runner.epoch, "iter": runner.iter}
        if self.by_epoch:
            return
        self._save_checkpoint_with_step(runner, runner.iter, meta, validation_pending)

    def _save_checkpoint_with_step(
        self, runner: Runner, step: int, meta: dict, validation_pending: bool | None = None
    ) -> None:
        self._owed = False
        self._saved_step = None if self.by_epoch else step
        path = self._folder / self.filename_tmpl.format(step)
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
        if not is_main_process():
            return

        def done() -> None:
            point_to(path, Path(runner.work_dir))
            self._rotate(path)

        runner.checkpoint_writer.submit("newest", snapshot(record), path, done)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        if not self.save_best:
            return
        step = runner.epoch if self.by_epoch else runner.iter
        name = self.filename_tmpl.format(step)
        if "auto" in self.key_indicators:
            self._init_rule(self.rules, [next(iter(metrics))])
        single = len(self.key_indicators) == 1
        hub = runner.message_hub
        for key, rule in zip(self.key_indicators, self.rules, strict=True):
            suffix = "" if single else f"_{key}"
            known = f"best_score{suffix}" in hub.runtime_info
            best = hub.get_info(f"best_score{suffix}") if known else self.init_value_map[rule]
            score = metrics[key]
            if score is None or not self.is_better_than[key](score, best):
                continue
            hub.update_info(f"best_score{suffix}", score)
            before = self.best_ckpt_path if single else self.best_ckpt_path_dict[key]
            path = self._folder / f"best_{key}_{name}".replace("/", "_")
            if single:
                self.best_ckpt_path = str(path)
            else:
                self.best_ckpt_path_dict[key] = str(path)
            hub.update_info(f"best_ckpt{suffix}", str(path))
            runner.logger.info(
                "The best checkpoint with %.4f %s at %d is saved to %s", score, key, step, path.name
            )
            if is_main_process() or runner.sharded:
                record = runner.checkpoint_record({"epoch": runner.epoch, "iter": runner.iter})
            if is_main_process():
                runner.checkpoint_writer.submit(
                    f"best {key}", snapshot(record), path, _remover(before, path)
                )

    def _rotate(self, newest: Path) -> None:
        """Remove what is older than the newest k; in the writer's thread."""
        self._kept = [*(path for path in self._kept if path != newest), newest]
        self._free()

    def _free(self) -> None:
        """Remove checkpoints beyond the newest k, which a failed removal may have left."""
        while 0 < self.max_keep_ckpts < len(self._kept):
            self._kept[0].unlink(missing_ok=True)
            del self._kept[0]

    def _checkpoints_up_to(self, step: int) -> list[Path]:
        """The numbered checkpoints in the folder up to a step, in order."""
        start, _, end = self.filename_tmpl.partition("{}")
        found = []
        for path in self._folder.glob(f"{start}*{end}"):
            number = path.name[len(start) : len(path.name) - len(end)]
            if number.isdigit() and int(number) <= step:
                found.append((int(number), path))
        return [path for _, path in sorted(found)]


def _remover(before: str | None, new: Path) -> Any:
    """Removes the previous best checkpoint once the new one is whole."""

    def done() -> None:
        if before and Path(before) != new:
            old = new.parent / Path(before).name  # the folder may have been moved
            old.unlink(missing_ok=True)

    return done
