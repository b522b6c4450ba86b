# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The processes of a run do the same run, or none of them starts.

If one of them had another config, data or code, nothing would fail: the gradients that they average
would belong to different runs.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch.distributed as dist
from mmengine.dist import all_gather_object, broadcast_object_list, get_rank, get_world_size

from ..errors import UserError
from .launch import init_distributed, join_launcher
from .preemption import Preempted
from .run_record import RunRecord, describe_differences
from .watch import lost_processes_explained

T = TypeVar("T")

_MOST = 4  # differences that are shown
_PATIENCE = 60.0  # seconds in which others learn of a failure before the processes have met

_parted = False  # whether this process has left the others after a failure that all know of


def check_same_run(record: Callable[[], RunRecord]) -> None:
    """Compare what the processes of a run are about to do; with one process nothing is done.

    All processes must call it. When it raises, the processes have parted: the first of each machine
    prints the error. ``record`` describes this process's run; a failure in one ends them all.

    Raises:
        UserError: On every process: which of them differ from process 0 and how, or what failed.
        LostProcessError: Another process is gone.
    """
    if get_world_size() == 1:
        return
    mine = together(record)
    with lost_processes_explained():
        if len(set(all_gather_object(mine.digest()))) == 1:
            return
        first: list[Any] = [mine if get_rank() == 0 else None]
        broadcast_object_list(first)
        found = all_gather_object((socket.gethostname(), describe_differences(mine, first[0])))
    text = describe_ranks(found)
    if text is not None:
        _part()
        raise UserError("ranks", "", text)


def together(action: Callable[[], T]) -> T:
    """What ``action`` returns; all processes must call it, and when one fails, all of them end.

    Raises:
        UserError: On every process: what failed, and where it was another one.
        LostProcessError: Another process is gone.
    """
    if get_world_size() == 1:
        return action()
    try:
        result, problem = action(), None
    except Exception as error:
        problem = error
    with lost_processes_explained():
        states = all_gather_object((socket.gethostname(), problem and _words(problem)))
    for rank, (host, words) in enumerate(states):
        if words is not None:
            _part()
            raise problem or UserError("ranks", f"process {rank} on {host}", words)
    return result


def first_decides(decide: Callable[[], T], follow: Callable[[T], object]) -> T:
    """What ``decide`` returns on process 0; the others then ``follow`` it.

    All processes must call it, and when one fails, all of them end as in :func:`together`.
    """
    first = get_rank() == 0
    decided: list[Any] = [together(lambda: decide() if first else None)]
    with lost_processes_explained():
        broadcast_object_list(decided)
    together(lambda: None if first else follow(decided[0]))
    return decided[0]


def describe_ranks(found: Sequence[tuple[str, Sequence[str]]]) -> str | None:
    """The message about processes that differ from process 0; None if they agree.

    ``found`` holds for each process its host and how it differs.
    """
    ranks = [rank for rank, (_, these) in enumerate(found) if these]
    if not ranks:
        return None
    host, these = found[ranks[0]]
    text = f"process {ranks[0]} on {host} differs from process 0 on {found[0][0]}: "
    text += "; ".join(these[:_MOST])
    if len(these) > _MOST:
        text += f"; and {len(these) - _MOST:,} more differences"
    if len(ranks) > 1:
        text += f"; and {len(ranks) - 1:,} more processes differ"
    return text + (
        "; start every process with the same config, data, checkpoint, code and versions "
        "(docs/distributed.md)"
    )


@contextlib.contextmanager
def failing_together(launcher: str, timeout: float | None = None) -> Iterator[None]:
    """The context of what each process does before they meet: when one fails, the others end too.

    They learn of it in :func:`check_same_run`, after at most ``timeout`` seconds (a minute),
    instead of waiting for the one that does not come.
    """
    try:
        yield
    except Preempted:
        raise
    except Exception as error:
        with contextlib.suppress(Exception):  # the others do not come: this error is what counts
            _announce(error, launcher, min(_PATIENCE, timeout or _PATIENCE))
        raise


def _announce(error: Exception, launcher: str, timeout: float) -> None:
    if launcher == "none" or _parted or dist.is_initialized() or join_launcher(launcher)[1] == 1:
        return
    init_distributed(launcher, timeout)
    all_gather_object((socket.gethostname(), _words(error)))
    _part()


def _words(error: Exception) -> str:
    return error.text if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def _part() -> None:
    """Leave the others, who do so too: threads of a group that is left alone abort the exit."""
    global _parted
    _parted = True
    dist.destroy_process_group()
