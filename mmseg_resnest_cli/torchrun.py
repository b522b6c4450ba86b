# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""torchrun, which leaves the last word to the tool when that has explained its end.

torchrun ends every failure with its own traceback, and restarts processes whatever their exit code
is. When the tools meet a user's mistake (exit code 2) or are interrupted (130), they have said so
in one line, and a restart would say it again. A fault of the code (1) would come again as well;
what a machine may do once ends in a signal or in 75. When torchrun itself is asked to stop, the
processes save, and the exit code is theirs: 75, start it again with --resume.
"""

import logging
import os
import sys
from typing import Any

from torch.distributed.elastic.agent.server.api import WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler
from torch.distributed.launcher.api import LaunchConfig
from torch.distributed.run import config_from_args, parse_args

_EXIT_AGAIN = 75
_FAULT = 1
_FINAL = {2, 130}


class _Agent(LocalElasticAgent):
    """torchrun's agent, which does not restart what would fail again."""

    def _monitor_workers(self, worker_group: Any) -> Any:
        result = super()._monitor_workers(worker_group)
        if {failure.exitcode for failure in result.failures.values()} & {_FAULT, *_FINAL}:
            self._remaining_restarts = 0
        return result


def run(arguments: list[str] | None = None) -> int:
    """Run torchrun with these arguments, or those of the command line; returns the exit code.

    The options that ``tools/dist_train.sh`` and ``tools/dist_test.sh`` pass are supported. A
    ChildFailedError is a process that failed without saying why.
    """
    # Its lines about a process that ended say nothing that ChildFailedError does not.
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
    # Slurm's early warning is passed on as well, and there is time to save before SIGKILL.
    handled = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
    os.environ.setdefault("TORCHELASTIC_SIGNALS_TO_HANDLE", handled)
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "100")
    config, command, words = config_from_args(parse_args(arguments))
    try:
        failures = _run_agent(config, command, words)
    except SignalException:
        return _EXIT_AGAIN
    if not failures:
        return 0
    codes = {failure.exitcode for failure in failures.values()} & {*_FINAL, _EXIT_AGAIN}
    if not codes:
        raise ChildFailedError(str(words[0] if words else command), failures)
    return min(codes)  # a mistake before all else


def _run_agent(config: LaunchConfig, command: Any, words: list[str]) -> dict[int, Any]:
    """Run the processes to their end; returns those that failed, by rank."""
    handler = get_rendezvous_handler(
        RendezvousParameters(
            backend=config.rdzv_backend,
            endpoint=config.rdzv_endpoint,
            run_id=config.run_id,
            min_nodes=config.min_nodes,
            max_nodes=config.max_nodes,
            local_addr=config.local_addr,
            **config.rdzv_configs,
        )
    )
    spec = WorkerSpec(
        role=config.role,
        local_world_size=config.nproc_per_node,
        entrypoint=command,
        args=tuple(words),
        rdzv_handler=handler,
        max_restarts=config.max_restarts,
        monitor_interval=config.monitor_interval,
        local_addr=config.local_addr,
    )
    shut_down = True
    try:
        assert config.logs_specs is not None
        result = _Agent(spec, config.logs_specs, config.start_method).run()
        return result.failures if result.is_failed() else {}
    except SignalException:
        shut_down = False  # other machines may still meet
        raise
    finally:
        if shut_down:
            handler.shutdown()


if __name__ == "__main__":
    sys.exit(run())
