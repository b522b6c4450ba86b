# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Keeps NaN and infinity out of the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_reduce, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper

from ..._stack import foreach_copy_, foreach_norm
from ...errors import UserError, check_value, reason
from ...evaluation import write_result
from ...registry import HOOKS
from ..logs import display_path
from ..optim import GuardedOptimWrapper
from ..runner import Runner
from ..saving import snapshot, write_checkpoint
from ..sharding import local


@HOOKS.register_module()
class NonFiniteHook(Hook):
    """Keeps a loss or gradient that is NaN or infinite from reaching the weights.

    Before each update the losses since the last one and the gradients are checked, on all
    processes together (with a loss scaler, which handles overflows, the losses alone). If they are
    not finite, ``nonfinite_iter_<i>/`` of the work folder gets files, losses and names of the
    gradients (``process_<r>.json``) and the batch (``process_<r>.pth``) of every process, and the
    run's state before the update (``state.pth``).

    Args:
        on_nonfinite: ``stop`` ends the run. ``skip`` leaves the update out and restores the model's
            buffers (running statistics) of the last good one.
        max_reports: With ``skip``, how many folders are written.
    """

    priority = "VERY_HIGH"

    def __init__(self, on_nonfinite: str = "stop", max_reports: int = 10) -> None:
        key, good = "default_hooks.nonfinite.on_nonfinite", on_nonfinite in ("stop", "skip")
        check_value(key, on_nonfinite, "'stop' or 'skip'", good)
        self.skip = on_nonfinite == "skip"
        self.max_reports = max_reports
        self.skipped = 0
        self._losses: list[torch.Tensor] = []
        self._batches: list[Any] = []
        self._buffers: list[torch.Tensor] = []

    def before_train(self, runner: Runner) -> None:
        """Guard the optimizer wrapper."""
        self._runner = runner
        if isinstance(runner.optim_wrapper, GuardedOptimWrapper):
            runner.optim_wrapper.guard = self
        else:
            runner.logger.warning(
                "NonFiniteHook cannot guard an optimizer wrapper of type %s: a loss that is "
                "not finite reaches the weights; set optim_wrapper.type to OptimWrapper, "
                "AmpOptimWrapper or BFloat16OptimWrapper",
                type(runner.optim_wrapper).__name__,
            )
        self._keep_buffers()

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Remember the batch."""
        self._batches.append(data_batch)

    def see_loss(self, loss: torch.Tensor) -> None:
        """Remember a loss until the next update."""
        self._losses.append(loss.detach())

    def allows(self, wrapper: OptimWrapper) -> bool:
        """Whether losses and gradients are finite; otherwise report, and stop or skip."""
        finite = self._is_finite(wrapper)
        if not finite:
            self._handle(self._runner)
        self._losses.clear()
        self._batches.clear()
        return finite

    def updated(self) -> None:
        """Keep the buffers of a good update."""
        self._keep_buffers()

    def _is_finite(self, wrapper: OptimWrapper) -> bool:
        values = [loss.float().abs().max() for loss in self._losses]
        parameters = [p for group in wrapper.param_groups for p in group["params"]]
        gradients = [local(p.grad) for p in parameters if p.grad is not None]
        gradients = [g for g in gradients if g.numel()]
        if gradients and not hasattr(wrapper, "loss_scaler"):
            values += foreach_norm(gradients, float("inf"))
        if not values:
            return True
        device = values[0].device
        bad = (~torch.stack([v.to(device).float() for v in values]).isfinite()).any().float()
        all_reduce(bad, "max")
        return not bad.item()

    def _keep_buffers(self) -> None:
        if not self.skip:
            return
        buffers = list(self._runner.model.buffers())
        if not self._buffers:
            self._buffers = [torch.empty_like(buffer) for buffer in buffers]
        if buffers:
            foreach_copy_(self._buffers, buffers)

    def _handle(self, runner: Runner) -> None:
        files = [str(path) for batch in self._batches for path in _files(batch)]
        losses = [float(loss) for loss in self._losses]
        bad = [
            name
            for name, p in runner.model.named_parameters()
            if p.grad is not None and not local(p.grad).isfinite().all()
        ]
        what = f"the loss is {losses[0]:g}" if len(losses) == 1 else f"the losses are {losses}"
        if all(abs(loss) < float("inf") for loss in losses):  # False for NaN
            what = f"{what}, but gradients are not finite ({', '.join(bad[:3]) or 'elsewhere'})"
        if not self.skip or self.skipped < self.max_reports:
            folder = Path(runner.work_dir) / f"nonfinite_iter_{runner.iter + 1}"
            try:
                self._report(runner, folder, {"files": files, "losses": losses, "gradients": bad})
                what = f"{what}; batch and state are in {display_path(folder)}"
            except (OSError, UserError) as error:
                what = f"{what}; batch and state could not be written ({reason(error)})"
        what = f"{what}; the batch is {', '.join(files)}"
        if not self.skip:
            raise UserError(
                "nonfinite",
                f"iteration {runner.iter + 1}",
                f"{what}. The weights are unchanged. A lower learning rate, gradient clipping "
                "(optim_wrapper.clip_grad) or float32 may help; "
                "default_hooks.nonfinite.on_nonfinite=skip leaves such updates out",
            )
        self.skipped += 1
        runner.logger.warning(
            "iteration %d: %s; the update is skipped (%d so far)",
            *(runner.iter + 1, what, self.skipped),
        )
        if self._buffers:
            foreach_copy_(list(runner.model.buffers()), self._buffers)

    def _report(self, runner: Runner, folder: Path, found: dict[str, Any]) -> None:
        rank = get_rank()
        about = {
            "iteration": runner.iter + 1,
            "process": rank,
            "processes": get_world_size(),
            "seed": runner.seed,
            "learning_rates": {k: v[0] for k, v in runner.optim_wrapper.get_lr().items()},
        }
        write_result({**about, **found}, folder / f"process_{rank}.json")
        batches = snapshot({"batches": [_tensors(batch) for batch in self._batches]})
        write_checkpoint(batches, folder / f"process_{rank}.pth")
        if rank == 0 or runner.sharded:
            meta = {"epoch": runner.epoch, "iter": runner.iter}
            state = runner.checkpoint_record(meta, True, True)
        if rank == 0:
            write_checkpoint(snapshot(state), folder / "state.pth")


def _files(batch: Any) -> list[str]:
    samples = batch.get("data_samples", []) if isinstance(batch, dict) else []
    return [getattr(sample, "img_path", "?") for sample in samples]


def _tensors(batch: Any) -> dict[str, Any]:
    """Images and labels of a batch as plain tensors."""
    if not isinstance(batch, dict):
        return {}
    samples = batch.get("data_samples", [])
    labels = [sample.gt_sem_seg.data for sample in samples if "gt_sem_seg" in sample]
    return {"inputs": batch.get("inputs"), "labels": labels, "files": _files(batch)}
