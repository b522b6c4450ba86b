# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The machine of a run: its processes, cores, threads and open files."""

from __future__ import annotations

import contextlib
import datetime
import os
import subprocess
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.multiprocessing
from mmengine.config import Config
from mmengine.dist import is_main_process

from mmseg_resnest.engine.watch import LostProcessError
from mmseg_resnest.errors import UserError

__all__ = [
    "Machine",
    "cpu_count",
    "describe_device",
    "init_distributed",
    "is_main_process",
    "join_launcher",
    "local_world_size",
    "prepare_machine",
    "timeout_of",
]

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
            "environment",
            f"environment variable {name}={text}",
            "is no number; set it to one, or let torchrun or srun set it",
        )
    return int(text)


@dataclass(frozen=True)
class Machine:
    """What a run has to compute on, as one of its processes sees it.

    Attributes:
        rank: Number of this process, from 0.
        world_size: Processes of the run.
        cores: Cores for one process.
        cuda: Whether there is a GPU.
    """

    rank: int = 0
    world_size: int = 1
    cores: int = 1
    cuda: bool = False

    @classmethod
    def here(cls, launcher: str) -> Machine:
        """This process and its machine, without talking to the other processes.

        Args:
            launcher: ``none``, ``pytorch`` or ``slurm``.

        Raises:
            UserError: As :func:`join_launcher`.
        """
        rank, world_size = join_launcher(launcher)
        cores = max(1, cpu_count() // max(1, local_world_size()))
        return cls(rank, world_size, cores, torch.cuda.is_available())


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
            "environment",
            f"--launcher {launcher}",
            f"{missing[0]} is not set, so no launcher started this process; "
            "start it with mmseg-resnest dist-train, dist-test or slurm-train, or torchrun",
        )
    local_rank, rank, world_size = map(_number, ("LOCAL_RANK", "RANK", "WORLD_SIZE"))
    _number("MASTER_PORT")
    if rank >= world_size:
        raise UserError(
            "environment",
            f"environment variables RANK={rank} and WORLD_SIZE={world_size}",
            f"ranks count from 0 to {world_size - 1}",
        )
    if torch.cuda.is_available() and local_rank >= torch.cuda.device_count():
        raise UserError(
            "device",
            f"process {local_rank} of this machine has no GPU",
            f"there are {torch.cuda.device_count()}; start as many processes as there are GPUs",
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
            "argument",
            place,
            "another program has this port; choose another one (PORT=29501 "
            "mmseg-resnest dist-train ...), or end what is left of an earlier run",
        )
    rank, size = os.environ["RANK"], os.environ["WORLD_SIZE"]
    reason = str(error).strip().splitlines()[0][:200]
    return LostProcessError(
        "size-mismatch",
        "",
        f"process {rank} has not met the others within {timeout:g} s ({place}, WORLD_SIZE={size}; "
        f"{reason}): look whether all {size} were started, and whether their machines reach "
        "MASTER_ADDR; env_cfg.dist_cfg.timeout sets the seconds",
    )


def _slurm_environment() -> None:
    """Set what torch.distributed reads from what srun sets; what is set already stays."""
    if "SLURM_PROCID" not in os.environ:
        raise UserError(
            "environment",
            "--launcher slurm",
            "SLURM_PROCID is not set, so srun did not start this process; use "
            "mmseg-resnest slurm-train",
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
                "argument",
                "--launcher slurm",
                f"scontrol cannot list the nodes {nodes} ({error}); set "
                "MASTER_ADDR to the first node's name",
            ) from error
        values["MASTER_ADDR"] = hosts[0]
    # The same for all processes of a job, another for each job of a machine.
    values["MASTER_PORT"] = str(20000 + int(os.environ.get("SLURM_JOB_ID", "0")) % 20000)
    for name, value in values.items():
        os.environ.setdefault(name, value)


def prepare_machine(cfg: Config, machine: Machine) -> None:
    """Prepare this process for a run; the config stays as it is.

    * As many open files as this user may have: each tensor that a worker sends is one.
    * Under a launcher, on a CPU: the cores are shared out over the processes as threads. A single
      process leaves their number to torch (all cores, or OMP_NUM_THREADS).

    Args:
        cfg: The config that the runner gets.
        machine: What the run has to compute on.

    Raises:
        UserError: The workers' batches are more open files than this user may have: the run would
            hang, for a worker cannot tell.
    """
    _allow_open_files(cfg)
    if cfg.launcher == "none":
        return
    # MMEngine would set these to 1, with a warning.
    os.environ.setdefault("OMP_NUM_THREADS", str(machine.cores))
    os.environ.setdefault("MKL_NUM_THREADS", os.environ["OMP_NUM_THREADS"])
    if not machine.cuda:
        torch.set_num_threads(max(1, _number("OMP_NUM_THREADS")))


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
                "config-value",
                f"this user may open {soft} files, and the data loading workers need {need}",
                f"raise "
                f"the limit (ulimit -n {2 * need}), or set {name}.num_workers=0 through "
                "--cfg-options",
            )


def describe_device(world_size: int = 1) -> str:
    """E.g. ``CPU, 8 threads`` or ``2 x NVIDIA H100``."""
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        return f"{world_size} x {name}" if world_size > 1 else name
    threads = torch.get_num_threads()
    one = f"CPU, {threads} thread{'s' if threads != 1 else ''}"
    return f"{one} in each of {world_size} processes" if world_size > 1 else one
