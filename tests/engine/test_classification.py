# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Classification without MMPretrain: one error that says what to install, before anything else.

With it: tests/classify/.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from user_errors import printed_error

START = "from mmseg_resnest_cli import main; main()"
TRAIN = ("classify", "train", "classification/resnest50_imagenet", "--images", "images")


def refused(folder: Path, package: str) -> str:
    """What training says where importing MMPretrain runs this text; it writes nothing."""
    broken = folder / "broken"
    (broken / "mmpretrain").mkdir(parents=True)
    (broken / "mmpretrain/__init__.py").write_text(package)
    (folder / "empty").mkdir()
    path = f"import sys; sys.path.insert(0, {str(broken)!r})\n"
    command = [sys.executable, "-c", path + START, *TRAIN]
    done = subprocess.run(command, cwd=folder / "empty", capture_output=True, text=True)
    assert done.returncode == 2 and not list((folder / "empty").iterdir())
    code, text = printed_error(done.stderr)
    assert code == "missing-package"
    return text


@pytest.mark.parametrize(
    ("package", "subject", "remedy"),
    [
        ("raise ModuleNotFoundError('no', name='mmpretrain')", "mmpretrain", "'mmseg-resnest[cl"),
        ("raise ModuleNotFoundError('no', name='torchvision')", "torchvision", "'mmseg-resnest[cl"),
        (
            "raise RuntimeError('operator torchvision::nms does not exist')",
            *("torchvision", "pip install torch==2.14.1 torchvision==0.29.1"),
        ),
    ],
)
def test_a_missing_package_is_one_error(
    package: str, subject: str, remedy: str, tmp_path: Path
) -> None:
    text = refused(tmp_path, package)
    assert text.startswith(f"{subject}: ") and remedy in text
