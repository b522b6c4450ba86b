# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""From a config to a run on what this machine has: processes, threads, batches, workers."""

from __future__ import annotations

import contextlib
import datetime
import os
import subprocess
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing
from mmengine.config import Config
from mmengine.dist import is_main_process

from mmseg_resnest.engine.watch import LostProcessError
from mmseg_resnest.errors import UserError

__all__ = [
    "cpu_count",
    "default_work_dir",
    "describe_device",
    "enable_amp",
    "fit_to_machine",
    "init_distributed",
    "is_main_process",
    "join_launcher",
    "local_world_size",
    "share_batch",
    "timeout_of",
]

#: Seconds after which a data loading worker counts as hung.
WORKER_TIMEOUT = 600
#: Open files of a run beside those of its batches, about.
_OTHER_FILES = 40
_LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")


def cpu_count() -> int:
    """Cores that this process may use (of the machine, less those a scheduler took away)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def local_world_size() -> int:
    """Processes of the run on this machine."""
    return _number("LOCAL_WORLD_SIZE", "1")


def _number(name: str, default: str = "") -> int:
    """What an environment variable says, a number that is not negative."""
    text = os.environ.get(name, default)
    if not text.isdecimal():
        raise UserError(
            f"environment variable {name}={text}: is no number; set it to one, or let torchrun or "
            "srun set it"
        )
    return int(text)


def default_work_dir(cfg: Config) -> str:
    """``work_dirs/<name of the config>``."""
    return os.path.join("work_dirs", Path(cfg.filename).stem)


def join_launcher(launcher: str) -> tuple[int, int]:
    """Read what a launcher says about this process, without talking to the others yet.

    Args:
        launcher: ``none``, ``pytorch`` (torchrun) or ``slurm`` (srun).

    Returns:
        Rank of this process and number of processes.

    Raises:
        UserError: The launcher's environment variables are missing or no numbers, or there are
            fewer GPUs than processes on this machine.
    """
    if launcher == "none":
        return 0, 1
    if launcher == "slurm":
        _slurm_environment()
    needed = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in needed if name not in os.environ]
    if missing:
        raise UserError(
            f"--launcher {launcher}: {missing[0]} is not set, so no launcher started this process; "
            "start it with mmseg-resnest dist-train, dist_test.sh or slurm_train.sh, or torchrun"
        )
    local_rank, rank, world_size = map(_number, ("LOCAL_RANK", "RANK", "WORLD_SIZE"))
    _number("MASTER_PORT")
    if rank >= world_size:
        raise UserError(
            f"environment variables RANK={rank} and WORLD_SIZE={world_size}: ranks count from 0 to "
            f"{world_size - 1}"
        )
    if torch.cuda.is_available() and local_rank >= torch.cuda.device_count():
        raise UserError(
            f"process {local_rank} of this machine has no GPU: there are "
            f"{torch.cuda.device_count()}; start as many processes as there are GPUs"
        )
    return rank, world_size


def timeout_of(cfg: Config) -> float:
    """Seconds that a collective may take: ``env_cfg.dist_cfg.timeout``, or half an hour."""
    dist_cfg = (cfg.get("env_cfg") or {}).get("dist_cfg") or {}
    return dist_cfg.get("timeout", 30 * 60)


def init_distributed(launcher: str, timeout: float = 30 * 60) -> None:
    """Meet the other processes; ``none`` does nothing.

    NCCL where there are GPUs, Gloo otherwise, so that the same command runs on both.

    Args:
        launcher: ``none``, ``pytorch`` or ``slurm``; :func:`join_launcher` has been called.
        timeout: Seconds that a collective may take before it counts as hung.

    Raises:
        UserError: The port that the launcher has chosen is taken.
        LostProcessError: The others have not come in that time.
    """
    if launcher == "none" or dist.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    try:
        dist.init_process_group(
            backend="nccl" if torch.cuda.is_available() else "gloo",
            timeout=datetime.timedelta(seconds=timeout),
        )
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        raise _explain_meeting(error, timeout) from error


def _explain_meeting(error: RuntimeError, timeout: float) -> UserError:
    """Why the processes of a run have not met."""
    place = f"MASTER_ADDR={os.environ['MASTER_ADDR']} MASTER_PORT={os.environ['MASTER_PORT']}"
    if "EADDRINUSE" in str(error):
        return UserError(
            f"{place}: another program has this port; choose another one (PORT=29501 "
            "mmseg-resnest dist-train ...), or end what is left of an earlier run"
        )
    rank, size = os.environ["RANK"], os.environ["WORLD_SIZE"]
    reason = str(error).strip().splitlines()[0][:200]
    return LostProcessError(
        f"process {rank} has not met the others within {timeout:g} s ({place}, WORLD_SIZE={size}; "
        f"{reason}): look whether all {size} were started, and whether their machines reach "
        "MASTER_ADDR; env_cfg.dist_cfg.timeout sets the seconds"
    )


def _slurm_environment() -> None:
    """Set what torch.distributed reads from what srun sets; what is set already stays."""
    if "SLURM_PROCID" not in os.environ:
        raise UserError(
            "--launcher slurm: SLURM_PROCID is not set, so srun did not start this process; use "
            "mmseg-resnest slurm-train"
        )
    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ["SLURM_NODELIST"]
    per_node = os.environ.get("SLURM_NTASKS_PER_NODE")
    values = {
        "RANK": os.environ["SLURM_PROCID"],
        "LOCAL_RANK": os.environ["SLURM_LOCALID"],
        "WORLD_SIZE": os.environ["SLURM_NTASKS"],
        "LOCAL_WORLD_SIZE": per_node or os.environ["SLURM_NTASKS"],
    }
    if "MASTER_ADDR" not in os.environ:
        try:
            hosts = subprocess.run(
                ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True
            ).stdout.split()
        except (OSError, subprocess.CalledProcessError) as error:
            raise UserError(
                f"--launcher slurm: scontrol cannot list the nodes {nodes} ({error}); set "
                "MASTER_ADDR to the first node's name"
            ) from error
        values["MASTER_ADDR"] = hosts[0]
    # The same for all processes of a job, another for each job of a machine.
    values["MASTER_PORT"] = str(20000 + int(os.environ.get("SLURM_JOB_ID", "0")) % 20000)
    for name, value in values.items():
        os.environ.setdefault(name, value)


def share_batch(cfg: Config, world_size: int) -> str | None:
    """Divide the training batch of a config, which is the total one, over the processes.

    Args:
        cfg: Changed in place: ``train_dataloader.batch_size`` becomes that of one process.
        world_size: Number of processes.

    Returns:
        One line that says what was done, or None with a single process.

    Raises:
        UserError: The batch is no positive number or cannot be divided evenly.
    """
    loader = cfg.train_dataloader
    holder = loader if "batch_size" in loader else loader.get("batch_sampler") or {}
    total = holder.get("batch_size")
    if not isinstance(total, int) or isinstance(total, bool) or total < 1:
        raise UserError(
            f"config key train_dataloader.batch_size: must be the number of images of a training "
            f"step over all processes, not {total!r}"
        )
    if total % world_size:
        raise UserError(
            f"config key train_dataloader.batch_size: the total batch of {total} cannot be divided "
            f"over {world_size} processes; use a number of processes that divides it, or set "
            f"train_dataloader.batch_size to a multiple of {world_size} (and --auto-scale-lr)"
        )
    holder["batch_size"] = total // world_size
    if world_size == 1:
        return None
    return f"{total} images a step = {world_size} processes x {total // world_size}"


def fit_to_machine(cfg: Config, launcher: str) -> None:
    """Make a config fit this machine; changes no result.

    * data loading workers: no more than the cores of this machine's processes;
    * a worker that delivers no batch for ten minutes counts as hung, unless ``timeout`` says
      otherwise;
    * as many open files as this user may have, for each tensor that a worker sends is one;
    * ``pin_memory`` only with a GPU, ``persistent_workers`` only with workers;
    * on a CPU under a launcher: the cores are shared out over the processes as threads, and the
      model is wrapped for CPU tensors;
    * a single process leaves the number of threads to torch (all cores, or OMP_NUM_THREADS).

    Args:
        cfg: Changed in place.
        launcher: ``none``, ``pytorch`` or ``slurm``.

    Raises:
        UserError: The workers' batches are more open files than this user may have: the run would
            hang, for a worker cannot tell.
    """
    cuda = torch.cuda.is_available()
    cores = max(1, cpu_count() // local_world_size())
    for name in _LOADERS:
        loader = cfg.get(name)
        if loader is None:
            continue
        loader["num_workers"] = min(loader.get("num_workers", 0), cores)
        if not loader["num_workers"]:
            for key in ("persistent_workers", "prefetch_factor", "timeout"):
                loader.pop(key, None)
        else:
            loader.setdefault("timeout", WORKER_TIMEOUT)
        loader["pin_memory"] = bool(loader.get("pin_memory", cuda)) and cuda
    _allow_open_files(cfg)
    cfg.launcher = launcher
    if launcher == "none":
        return
    # MMEngine would set these to 1, with a warning.
    os.environ.setdefault("OMP_NUM_THREADS", str(cores))
    os.environ.setdefault("MKL_NUM_THREADS", os.environ["OMP_NUM_THREADS"])
    if not cuda:
        torch.set_num_threads(max(1, _number("OMP_NUM_THREADS")))
        if cfg.get("model_wrapper_cfg") is None:
            cfg.model_wrapper_cfg = dict(
                type="MMDistributedDataParallel",
                broadcast_buffers=False,
                find_unused_parameters=cfg.get("find_unused_parameters", False),
                device_ids=None,  # MMEngine would name a GPU
            )


def _allow_open_files(cfg: Config) -> None:
    """Raise the limit of open files to what this user may have, and check that it is enough."""
    try:
        import resource
    except ImportError:  # Windows has no such limits
        return
    if torch.multiprocessing.get_sharing_strategy() != "file_descriptor":
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    if soft == resource.RLIM_INFINITY:
        return
    for name in _LOADERS:
        loader = cfg.get(name)
        if loader is None or not loader["num_workers"]:
            continue
        batches = loader["num_workers"] * (loader.get("prefetch_factor") or 2)
        size = loader.get("batch_size")
        need = _OTHER_FILES + batches * (size if isinstance(size, int) else 1)
        if soft < need:
            raise UserError(
                f"this user may open {soft} files, and the data loading workers need {need}: raise "
                f"the limit (ulimit -n {2 * need}), or set {name}.num_workers=0 through "
                "--cfg-options"
            )


def enable_amp(cfg: Config) -> str:
    """Train in mixed precision: float16 with loss scaling on a GPU, bfloat16 on a CPU.

    Args:
        cfg: Changed in place.

    Returns:
        What was chosen, for the console.

    Raises:
        UserError: The config's optimizer wrapper is of a kind that ``--amp`` cannot replace.
    """
    wrapper = cfg.optim_wrapper
    kind = wrapper.get("type", "OptimWrapper")
    kind = kind if isinstance(kind, str) else kind.__name__
    if kind in ("AmpOptimWrapper", "BFloat16OptimWrapper"):
        return "mixed precision as the config says"
    if kind != "OptimWrapper":
        raise UserError(
            f"--amp: takes the place of OptimWrapper, but config key optim_wrapper.type is {kind}"
        )
    if torch.cuda.is_available():
        wrapper["type"] = "AmpOptimWrapper"
        wrapper["loss_scale"] = "dynamic"
        return "mixed precision (float16)"
    wrapper["type"] = "BFloat16OptimWrapper"
    return "mixed precision (bfloat16)"


def describe_device(world_size: int = 1) -> str:
    """E.g. ``CPU, 8 threads`` or ``2 x NVIDIA H100``."""
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        return f"{world_size} x {name}" if world_size > 1 else name
    threads = torch.get_num_threads()
    one = f"CPU, {threads} thread{'s' if threads != 1 else ''}"
    return f"{one} in each of {world_size} processes" if world_size > 1 else one
