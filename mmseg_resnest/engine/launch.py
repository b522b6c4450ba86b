# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The machine of a run: its processes, cores, threads and open files."""

from __future__ import annotations

import contextlib
import datetime
import os
import resource
import subprocess
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.multiprocessing
from mmengine.config import Config

from ..errors import UserError, check_value
from ..io.memory import available_memory
from ..io.processes import cpu_count, has_bfloat16
from .config.kinds import DATALOADERS
from .watch import LostProcessError

#: Open files of a run beside those of its batches, about.
_OTHER_FILES = 40
_TIMEOUT = 30 * 60


def local_world_size() -> int:
    """Processes of the run on this machine."""
    return _number("LOCAL_WORLD_SIZE", "1")


def _number(name: str, default: str = "") -> int:
    """The value of an environment variable, a number that is not negative."""
    text = os.environ.get(name, default)
    if not text.isdecimal():
        raise UserError(
            "environment",
            f"environment variable {name}",
            f"{text!r} is not a number; set it to one, or let torchrun or srun set it",
        )
    return int(text)


@dataclass(frozen=True)
class Machine:
    """What a run has to compute on, as one of its processes sees it."""

    rank: int = 0
    world_size: int = 1
    cores: int = 1  # for one process
    cuda: bool = False
    bfloat16: bool | None = None  # whether the processor has units for it; None: not known
    memory: int | None = None  # bytes that are free; None: not known

    @classmethod
    def here(cls, launcher: str) -> Machine:
        """This process and its machine, without talking to the other processes."""
        rank, world_size = join_launcher(launcher)
        cores = max(1, cpu_count() // max(1, local_world_size()))
        cuda, memory = torch.cuda.is_available(), available_memory()
        return cls(rank, world_size, cores, cuda, has_bfloat16(), memory)


def join_launcher(launcher: str) -> tuple[int, int]:
    """Rank of this process and number of processes, from the launcher's environment variables.

    Raises:
        UserError: The variables are missing or not numbers, or there are fewer GPUs than processes
            on this machine.
    """
    if launcher == "none":
        return 0, 1
    if launcher == "slurm":
        _set_slurm_environment()
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise UserError(
                "environment",
                f"--launcher {launcher}",
                f"the environment variable {name} is not set; start the processes with "
                "mmseg-resnest dist-train, dist-test or slurm-train, or torchrun",
            )
    local_rank, rank, world_size = map(_number, ("LOCAL_RANK", "RANK", "WORLD_SIZE"))
    _number("MASTER_PORT")
    if rank >= world_size:
        raise UserError(
            "environment",
            "environment variable RANK",
            f"{rank} must be less than WORLD_SIZE={world_size}; ranks count from 0",
        )
    if torch.cuda.is_available() and local_rank >= torch.cuda.device_count():
        raise UserError(
            "device",
            f"process {local_rank} of this machine",
            f"there are {torch.cuda.device_count()} GPUs; start one process for each",
        )
    return rank, world_size


def timeout_of(cfg: Config) -> float:
    """Seconds that a collective may take: ``env_cfg.dist_cfg.timeout``, or half an hour."""
    dist_cfg = (cfg.get("env_cfg") or {}).get("dist_cfg") or {}
    return dist_cfg.get("timeout", _TIMEOUT)


def init_distributed(launcher: str, timeout: float = _TIMEOUT) -> None:
    """Meet the other processes, by NCCL where there are GPUs, otherwise by Gloo.

    A collective that takes more than ``timeout`` seconds counts as hung.

    Raises:
        UserError: The port that the launcher has chosen is taken.
        LostProcessError: The others have not come in that time.
    """
    if launcher == "none" or dist.is_initialized():
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    try:
        limit = datetime.timedelta(seconds=timeout)
        dist.init_process_group(backend="nccl" if cuda else "gloo", timeout=limit)
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        if "EADDRINUSE" in str(error):
            raise UserError(
                "network",
                place,
                "another program uses this port; choose another one (PORT=29501 mmseg-resnest "
                "dist-train ...), or end what is left of an earlier run",
            ) from error
        rank, size = os.environ["RANK"], os.environ["WORLD_SIZE"]
        first = str(error).strip().splitlines()[0][:200]
        raise LostProcessError(
            "ranks",
            f"process {rank}",
            f"it has not met the others at {place} within {timeout:g} s ({first}); check that all "
            f"{size} were started and that their machines reach MASTER_ADDR, or raise "
            "env_cfg.dist_cfg.timeout",
        ) from error


def _set_slurm_environment() -> None:
    """Set what torch.distributed reads from what srun sets; what is set already stays."""
    if "SLURM_PROCID" not in os.environ:
        raise UserError(
            "environment",
            "--launcher slurm",
            "SLURM_PROCID is not set, so srun did not start this process; use "
            "mmseg-resnest slurm-train",
        )
    tasks = os.environ["SLURM_NTASKS"]
    values = {
        "RANK": os.environ["SLURM_PROCID"],
        "LOCAL_RANK": os.environ["SLURM_LOCALID"],
        "WORLD_SIZE": tasks,
        "LOCAL_WORLD_SIZE": os.environ.get("SLURM_NTASKS_PER_NODE") or tasks,
        # The same for all processes of a job, another for each job of a machine.
        "MASTER_PORT": str(20000 + int(os.environ.get("SLURM_JOB_ID", "0")) % 20000),
    }
    if "MASTER_ADDR" not in os.environ:
        nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ["SLURM_NODELIST"]
        try:
            hosts = subprocess.run(
                ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True
            ).stdout.split()
        except (OSError, subprocess.CalledProcessError) as error:
            raise UserError(
                "environment",
                "--launcher slurm",
                f"scontrol cannot list the nodes {nodes} ({error}); set MASTER_ADDR to the first "
                "node's name",
            ) from error
        values["MASTER_ADDR"] = hosts[0]
    for name, value in values.items():
        os.environ.setdefault(name, value)


def prepare_machine(cfg: Config, machine: Machine) -> None:
    """Prepare this process for a run; the config is not changed.

    * As many open files as this user may have: each tensor that a worker sends is one.
    * torch imports its profiler now. The first training step would import it otherwise, and what
      a signal raises during that import, such as the death of a data loading worker, is lost.
    * Under a launcher, on a CPU: the processes share the cores as threads. A single process leaves
      their number to torch (all cores, or OMP_NUM_THREADS).

    Raises:
        UserError: This system has no such way to start processes. The workers' batches are more
            open files than this user may have: the run would hang, because a worker cannot report
            it.
    """
    _allow_open_files(cfg)
    with torch.profiler.record_function("first"):
        pass
    method = ((cfg.get("env_cfg") or {}).get("mp_cfg") or {}).get("mp_start_method", "fork")
    known = torch.multiprocessing.get_all_start_methods()
    key, wanted = "env_cfg.mp_cfg.mp_start_method", f"one of {', '.join(known)}"
    check_value(key, method, wanted, method in known)
    if cfg.launcher == "none":
        return
    # MMEngine would set these to 1, with a warning.
    os.environ.setdefault("OMP_NUM_THREADS", str(machine.cores))
    os.environ.setdefault("MKL_NUM_THREADS", os.environ["OMP_NUM_THREADS"])
    if not machine.cuda:
        torch.set_num_threads(max(1, _number("OMP_NUM_THREADS")))


def _allow_open_files(cfg: Config) -> None:
    """Raise the limit of open files to what this user may have, and check that it is enough."""
    if torch.multiprocessing.get_sharing_strategy() != "file_descriptor":
        return
    limit, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        limit = hard
    for name in DATALOADERS:
        loader = cfg.get(name)
        if limit == resource.RLIM_INFINITY or loader is None or not loader["num_workers"]:
            continue
        batches = loader["num_workers"] * (loader.get("prefetch_factor") or 2)
        size = loader.get("batch_size")
        need = _OTHER_FILES + batches * (size if isinstance(size, int) else 1)
        if limit < need:
            raise UserError(
                "environment",
                f"config key {name}.num_workers",
                f"the data loading workers need {need} open files, and this user may open {limit}; "
                f"raise the limit (ulimit -n {2 * need}), or set {name}.num_workers=0",
            )


def describe_device(world_size: int = 1) -> str:
    """E.g. ``CPU, 8 threads`` or ``2 x NVIDIA H100``."""
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        return f"{world_size} x {name}" if world_size > 1 else name
    threads = torch.get_num_threads()
    one = f"CPU, {threads} thread{'s' if threads != 1 else ''}"
    return f"{one} in each of {world_size} processes" if world_size > 1 else one
