# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""torchrun, which leaves the last word to the tool when that has explained its end.

torchrun ends every failure with its own traceback, and starts processes again whatever they ended
with. When the tools meet a user's mistake (exit code 2) or are interrupted (130), they have said
so in one line, and starting them again would say it again. When torchrun itself is told to stop,
the processes are told too, save, and the exit code is theirs: 75, start it again with --resume.
"""

import logging
import os
import sys
from typing import Any

from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

_EXIT_AGAIN = 75
_FINAL = {2, 130}
_TOLD = {*_FINAL, _EXIT_AGAIN}


_monitor = LocalElasticAgent._monitor_workers


def _monitor_workers(agent: Any, *args: Any, **kwargs: Any) -> Any:
    """As torchrun's, but processes that met a user's mistake are not started again."""
    result = _monitor(agent, *args, **kwargs)
    if {failure.exitcode for failure in result.failures.values()} & _FINAL:
        agent._remaining_restarts = 0
    return result


def run() -> int:
    """Run torchrun with the arguments of the command line; returns the exit code."""
    # Its lines about a process that ended say nothing that ChildFailedError does not.
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
    # Slurm's early warning is passed on as well, and there is time to save before SIGKILL.
    handled = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
    os.environ.setdefault("TORCHELASTIC_SIGNALS_TO_HANDLE", handled)
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "100")
    LocalElasticAgent._monitor_workers = _monitor_workers  # type: ignore[method-assign]
    try:
        main()
    except ChildFailedError as error:
        codes = {failure.exitcode for failure in error.failures.values()} & _TOLD
        if not codes:
            raise
        return min(codes)  # a mistake before all else
    except SignalException:
        return _EXIT_AGAIN
    return 0


if __name__ == "__main__":
    sys.exit(run())
