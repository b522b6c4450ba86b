# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The kernels in Triton, each against plain torch: on a GPU, and in Triton's interpreter."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CHECKS, COMPILES = map(Path(__file__).with_name, ("triton_checks.py", "triton_compiles.py"))

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(
        importlib.util.find_spec("triton") is None,
        reason="Triton is not installed (make test-triton)",
    ),
]


@pytest.mark.parametrize("device", ["interpreter", pytest.param("gpu", marks=pytest.mark.gpu)])
def test_every_kernel_is_the_plain_code(device):
    """In a process of its own: Triton decides at its import whether it interprets."""
    environment = {**os.environ, "TRITON_INTERPRET": "1" if device == "interpreter" else "0"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist",
         str(CHECKS)],
        env=environment, capture_output=True, text=True, cwd=CHECKS.parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert re.search(r"\d\d passed", done.stdout) and "skipped" not in done.stdout


def test_every_kernel_compiles_for_a_gpu(tmp_path):
    """Without one: to machine code, with wide loads, by the compiler that Triton brings."""
    environment = {
        **os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": str(CHECKS.parents[2]),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(COMPILES)],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert "33 compiled" in done.stdout
