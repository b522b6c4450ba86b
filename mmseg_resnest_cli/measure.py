# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Measures steps of a config's training for ``fit``, in a process that the system may kill.

    python -m mmseg_resnest_cli.measure CONFIG SECONDS ITERATIONS BATCH [BATCH ...]

SECONDS and ITERATIONS are the training's budget, one of them 0. Prints a line of JSON for each
thing measured, as it is measured.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from .startup import prepare_process

__all__ = ["main"]


def main(words: Sequence[str]) -> None:
    """Measure and print."""
    from mmseg_resnest.engine.config import load_config
    from mmseg_resnest.engine.fit import Budget, measure
    from mmseg_resnest.io.processes import end_with_parent

    from .failures import explain_error

    lines, sys.stdout = sys.stdout, sys.stderr  # what else prints does not mix with the lines
    end_with_parent()
    with contextlib.suppress(OSError):  # proc(5): of all processes the kernel kills this one first
        Path("/proc/self/oom_score_adj").write_text("1000")
    prepare_process()
    seconds, iterations = float(words[1]), int(words[2])
    budget = Budget(seconds or None, iterations or None)
    try:
        for message in measure(load_config(words[0]), list(map(int, words[3:])), budget):
            print(json.dumps(message), file=lines, flush=True)
    except Exception as error:
        found = explain_error(error)
        if found is None:
            raise
        if found.code == "memory":
            os.kill(os.getpid(), signal.SIGKILL)  # as the system does where memory runs out
        said = {"error": [found.code, found.subject, found.message]}
        print(json.dumps(said), file=lines, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
