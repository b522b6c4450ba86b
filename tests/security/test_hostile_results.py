# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Hostile results, examples and logs of a run through everything that reads them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile_checkpoints import Call
from sandbox import Sandbox, tool

from mmseg_resnest.evaluation import write_report
from mmseg_resnest.evaluation.image_counts import ImageCounts
from mmseg_resnest.export.publish import read_results

pytestmark = pytest.mark.timeout(60)

GOOD: dict[str, Any] = {
    "task": "test", "mIoU": 50.0, "pixAcc": 70.0, "mAcc": 60.0, "images": 3, "tta": False,
    "config": "toy.py", "seconds": 1.0,
    "classes": [{"name": "a", "IoU": 50.0, "Acc": 1.0, "label": 0.5}] * 2,
    "confusion_matrix": [[1, 2], [3, 4]],
}  # fmt: skip
RESULTS: dict[str, Any] = {
    "scores of text": {"mIoU": "50", "pixAcc": [1], "mAcc": {}},
    "scores NaN": {"mIoU": float("nan"), "pixAcc": float("inf")},
    "classes of numbers": {"classes": [1, 2]},
    "names of lists": {"classes": [{"name": ["a"], "IoU": "x"}]},
    "matrix of text": {"confusion_matrix": "abc"},
    "matrix of 10^5": {"confusion_matrix": [[0] * 330] * 330},
    "seconds of zero": {"seconds": 0, "images": 10**400},
    "config that climbs": {"config": "../../../outside/secret.txt"},
    "markup": {"config": "</script><script>alert(1)</script>.py"},
    "history of text": {"task": "train", "history": "abc"},
}


def _run_folder(box: Sandbox, **changes: Any) -> Path:
    folder = box.files / "run"
    (folder / "examples").mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps({**GOOD, **changes}))
    return folder


@pytest.mark.parametrize("case", RESULTS)
def test_results_of_others(case: str, sandbox: Sandbox, subtests: Any) -> None:
    folder = _run_folder(sandbox, **RESULTS[case])
    page = sandbox.files / "report.html"
    readers: dict[str, Callable[[], Any]] = {
        "report": lambda: write_report([folder], page),
        "publish": lambda: read_results(folder / "results.json"),
        "compare": lambda: tool("compare-runs", folder, folder),
    }
    for name, read in readers.items():
        with subtests.test(reader=name):
            sandbox.harmless(read, "results.json", str(folder), "run")
    assert not page.exists() or "<script>alert" not in page.read_text()


@pytest.mark.parametrize("text", [b"", b"[]", b"\xff", b"[" * 200_000, b'{"a":' * 200_000])
@pytest.mark.parametrize("name", ["results.json", "examples/examples.json"])
def test_other_texts_as_results(name: str, text: bytes, sandbox: Sandbox) -> None:
    folder = _run_folder(sandbox)
    (folder / name).write_bytes(text)
    out = sandbox.files / "report.html"
    sandbox.refused(lambda: write_report([folder], out), Path(name).name)
    if name == "results.json":
        sandbox.refused(lambda: read_results(folder / name), name)


EXAMPLES: list[Any] = [
    {"file": "../../../outside/photo", "kinds": ["worst"]},
    {"file": "{outside}/photo", "kinds": ["worst"]},
    {"file": "link", "kinds": ["worst"]},
    {"file": 5, "kinds": ["worst"]},
    {"file": "none", "kinds": ["worst"]},
    {"file": "none", "kinds": ["unknown"]},
    {"file": "none", "kinds": []},
    {"kinds": 5},
    "text",
    None,
]


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_examples_of_a_report(example: Any, sandbox: Sandbox) -> None:
    """A page that a user shows to others holds no picture of theirs from elsewhere."""
    folder = _run_folder(sandbox)
    for suffix in (".jpg", "_label.png", "_pred.png"):
        (folder / "examples" / f"link{suffix}").symlink_to(sandbox.outside / f"photo{suffix}")
    record = {"images": [sandbox.fill(example)], "classes": ["a", "b"]}
    (folder / "examples" / "examples.json").write_text(json.dumps(record))
    out = sandbox.files / "report.html"
    sandbox.refused(lambda: write_report([folder], out), "examples")


def test_counts_that_are_pickles(sandbox: Sandbox) -> None:
    evil = np.empty(1, dtype=object)
    evil[0] = Call(os.system, f"touch '{sandbox.canary}'")
    path = sandbox.files / "images.npz"
    np.savez(path, images=evil, classes=evil, intersection=evil, label=evil, predicted=evil)
    sandbox.refused(lambda: ImageCounts.load(path), path.name)
    path.write_bytes(b"PK\3\4" + bytes(100))
    sandbox.refused(lambda: ImageCounts.load(path), path.name)


LOGS = [
    b"[" * 200_000, b'{"loss": 1}', b'{"step": "x", "loss": 1}', b'{"step": 1e999, "loss": 1}',
    b'{"step": null, "loss": 1}', b'{"step": NaN, "loss": NaN}',
    b'{"step": 1, "loss": 1' + b"0" * 400
    + b"}", b'{"step": 1' + b"0" * 40 + b', "loss": 1}', b"5", b"null", b'"text"', b"\xff\n\0",
]  # fmt: skip


@pytest.mark.parametrize("line", LOGS, ids=range(len(LOGS)))
def test_logs_of_others(line: bytes, sandbox: Sandbox) -> None:
    folder = _run_folder(sandbox)
    log = folder / "20260101_000000" / "vis_data" / "scalars.json"
    log.parent.mkdir(parents=True)
    log.write_bytes(b'{"step": 1, "loss": 1.0}\n' + line + b'\n{"step": 2, "loss": 0.5}\n')
    out = sandbox.files / "report.html"
    sandbox.harmless(lambda: write_report([folder], out), "scalars.json", "run")
