# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What a command does to its own process before it runs."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import gc, sys
from mmseg_resnest_cli.startup import prepare_process
prepare_process()
print(gc.isenabled(), gc.get_freeze_count() > 100_000, len(gc.get_objects()) < 10_000)
print("filelock" in sys.modules)
"""


def test_what_is_imported_is_not_collected_and_no_more_than_is_needed() -> None:
    """Garbage is: the collector is on afterwards."""
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout == "True True True\nFalse\n"
