# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Classification without MMPretrain: one error that says what to install, before anything else.

With it: tests/classify/.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from user_errors import printed_error

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

from in_process import run

TRAIN = ("classify", "train", "classification/resnest50_imagenet", "--images", "images")


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
    package: str, subject: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training says so where importing MMPretrain runs this text, and writes nothing."""
    (tmp_path / "broken/mmpretrain").mkdir(parents=True)
    (tmp_path / "broken/mmpretrain/__init__.py").write_text(package)
    (tmp_path / "empty").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "broken")
    monkeypatch.chdir(tmp_path / "empty")
    code, text = printed_error(run(*TRAIN, codes=(2,)))
    assert code == "missing-package" and not list((tmp_path / "empty").iterdir())
    assert text.startswith(f"{subject}: ") and remedy in text
