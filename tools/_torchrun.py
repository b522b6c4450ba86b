# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""torchrun, which leaves the last word to the tool when that has explained its failure.

torchrun ends every failure with its own traceback. When the tools meet a user's mistake (exit code
2) or are interrupted (130), they have said so in one line, and that is all there is to say.
"""

import logging
import sys

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

_TOLD = {2, 130}


def run() -> int:
    """Run torchrun with the arguments of the command line; returns the exit code."""
    # Its lines about a process that ended say nothing that ChildFailedError does not.
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
    try:
        main()
    except ChildFailedError as error:
        codes = {failure.exitcode for failure in error.failures.values()} & _TOLD
        if not codes:
            raise
        return codes.pop()
    return 0


if __name__ == "__main__":
    sys.exit(run())
