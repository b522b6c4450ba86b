# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Scores of other metrics than SegmentationMetric: shown, written, and what is best by them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from in_process import run
from two_classes import write_images, write_python_style
from user_errors import printed_error

from mmseg_resnest.evaluation import SCORES

ERRORS = [0.5, 0.2, 0.4]
MODULE = f"""
import numpy as np
from mmengine.evaluator import BaseMetric
from mmseg_resnest.registry import METRICS


@METRICS.register_module()
class Planned(BaseMetric):
    default_prefix = "mine"
    calls = 0

    def process(self, data_batch, data_samples):
        self.results += [1 for _ in data_samples]

    def compute_metrics(self, results):
        self.calls += 1
        return dict(
            error=np.float32({ERRORS}[self.calls - 1]), seen=len(results), text="a", none=None,
            each=np.arange(3), classes=7, nothing=float("nan"),
        )
"""
IOU = "dict(type=IoUMetric, iou_metrics=[mIoU, mDice, mFscore])"
SEVERAL = f"[dict(type=SegmentationMetric, metrics=[F1]), {IOU}, {{type: Planned}}]"
COMMON = (
    *("custom_imports.imports=[planned]", "default_hooks.checkpoint.rule=None"),
    "default_hooks.checkpoint.max_keep_ckpts=-1",  # all of them, on a busy machine, too
)


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """What a training printed in a folder with its config and data."""
    folder = tmp_path_factory.mktemp("scores")
    write_images(folder / "data")
    write_python_style(folder)
    (folder / "planned.py").write_text(MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        yield run(
            *("train", "mine.py", "--work-dir", "run", "--cfg-options", *COMMON),
            *(f"val_evaluator={SEVERAL}", "default_hooks.checkpoint.save_best=error"),
            *("train_cfg.val_interval=2", "default_hooks.checkpoint.interval=2"),
            "custom_hooks=[dict(type=EarlyStoppingHook, monitor=mine/error, patience=9)]",
        )


def results(folder: str) -> dict[str, Any]:
    return json.loads(Path(folder, "results.json").read_text(encoding="utf-8"))


def dice(result: dict[str, Any]) -> float:
    matrix = np.array(result["confusion_matrix"])
    return 100 * float(np.mean(2 * matrix.diagonal() / (matrix.sum(0) + matrix.sum(1))))


def test_all_scores_are_written_and_the_smallest_error_is_best(said: str) -> None:
    result = results("run")
    assert result["iteration"] == 4
    assert result["best_checkpoint"] == "best_error_iter_4.pth"
    assert Path("run", "best_error_iter_4.pth").is_file()
    assert [entry["mine/error"] for entry in result["history"]] == ERRORS
    scores = result["scores"]
    assert scores["mDice"] == pytest.approx(dice(result), abs=0.006)
    assert scores["F1"] == pytest.approx(dice(result))
    assert scores["IoUMetric/mIoU"] == pytest.approx(result["mIoU"], abs=0.006)
    assert (scores["mine/error"], scores["mine/seen"]) == (0.2, 4)
    assert scores["mine/nothing"] is None
    assert result["mDice"] == scores["mDice"]
    assert [row["name"] for row in result["classes"]] == ["ground", "thing"]


def test_the_console_shows_them(said: str) -> None:
    lines = [line for line in said.splitlines() if " took " in line and "mine/error" in line]
    assert [float(re.findall(r"mine/error (\S+)", line)[0]) for line in lines] == ERRORS
    assert ["best so far" in line for line in lines] == [True, True, False]
    assert all(re.search(rf"{name} \d+\.\d\d", lines[0]) for name in ("mDice", "mFscore", "F1"))
    (best,) = [line for line in said.splitlines() if line.startswith("best  ")]
    assert "mine/error 0.2," in best
    assert f"mDice {results('run')['mDice']:.2f}" in best


def test_report_and_curves_have_them(said: str) -> None:
    assert Path("run", "curves.png").stat().st_size > 5000
    run("report", "run", "--out", "run.html")
    page = Path("run.html").read_text(encoding="utf-8")
    (found,) = re.findall(r'id="data"[^>]*>(.*?)</script>', page, re.DOTALL)
    (shown,) = json.loads(found)["runs"]
    (evaluation,) = shown["evaluations"]
    assert evaluation["others"]["mDice"] == results("run")["mDice"]
    assert "mIoU" not in evaluation["others"]
    assert shown["curves"]["mine/error"] == dict(x=[2, 4, 6], y=ERRORS)


@pytest.mark.parametrize("option", [[], ["--tta"]])
def test_the_test_split_and_two_runs_compared(said: str, option: list[str]) -> None:
    weights = "run/iter_6.pth"
    alone = ("--cfg-options", *COMMON, f"test_evaluator={IOU}")
    all_of_them = ("--cfg-options", *COMMON, f"test_evaluator={SEVERAL}")
    printed = run("test", "mine.py", weights, "--work-dir", "a", *option, *alone)
    run("test", "mine.py", weights, "--work-dir", "b", *option, *all_of_them)
    a, b = results("a"), results("b")
    assert f"mDice {a['mDice']:.2f}" in printed
    assert a["mDice"] == b["mDice"] == pytest.approx(dice(b), abs=0.006)
    assert b["scores"]["mine/error"] == 0.5
    table = run("compare-runs", "a", "b", "--json", "c.json")
    assert re.search(r"mDice +\| +(\d+\.\d\d) \| +\1 \| +\+0 ", table)
    written = json.loads(Path("c.json").read_text(encoding="utf-8"))
    assert written["other_scores"]["a"]["mDice"] == a["mDice"]
    with_counts = run("compare-runs", "b", "b")
    assert "interval" in with_counts
    assert "mine/error" in with_counts


def test_a_resumed_run_goes_on_with_them(said: str) -> None:
    run(
        *("train", "mine.py", "--work-dir", "run", "--resume", "run/iter_4.pth"),
        *("--cfg-options", *COMMON, f"val_evaluator={SEVERAL}", "train_cfg.val_interval=2"),
        *("default_hooks.checkpoint.save_best=error", "default_hooks.checkpoint.interval=2"),
        "custom_hooks=[dict(type=EarlyStoppingHook, monitor=mine/error, patience=9)]",
    )
    result = results("run")
    # A new process counts anew: the third validation is its first one.
    assert [entry["mine/error"] for entry in result["history"]] == [0.5, 0.2, 0.5]
    assert (result["iteration"], result["scores"]["mine/error"]) == (4, 0.2)


@pytest.mark.long
@pytest.mark.parametrize(
    ("evaluator", "scores"),
    [
        (IOU, {"aAcc", "mIoU", "mAcc", "mDice", "mFscore", "mPrecision", "mRecall"}),
        ("dict(type=IoUMetric, prefix=x)", {"x/aAcc", "x/mIoU", "x/mAcc"}),
        ("dict(type=SegmentationMetric, metrics=[F1, fwIoU], bootstrap=9)",
         {*SCORES, "F1", "fwIoU", "mIoU_low", "mIoU_high"}),
        ("dict(type=mmseg_resnest.SegmentationMetric, metrics=F1)", {*SCORES, "F1"}),
        ("{metrics: [{type: SegmentationMetric, metrics: [F1]}]}", {*SCORES, "F1"}),
        ("({type: Planned},)", {"mine/error", "mine/seen", "mine/classes", "mine/nothing"}),
    ],
)  # fmt: skip
def test_the_first_score_is_best_with_auto(
    said: str, tmp_path: Path, evaluator: str, scores: set[str]
) -> None:
    run(
        *("train", "mine.py", "--work-dir", tmp_path, "--cfg-options", *COMMON),
        *(f"val_evaluator={evaluator}", "val_evaluator._delete_=True"),
        *("default_hooks.checkpoint.save_best=auto", "train_cfg.max_iters=1"),
        *("train_cfg.val_interval=1", "param_scheduler=[]"),
    )
    result = results(str(tmp_path))
    assert set(result["scores"]) == scores
    first = next(iter(result["scores"]))
    assert result["best_checkpoint"] == f"best_{first.replace('/', '_')}_iter_1.pth"
    assert all(v is None or math.isfinite(v) for v in result["history"][0].values())


@pytest.mark.parametrize(
    ("options", "subject"),
    [
        ("val_evaluator={_delete_: true, type: IoUMetric, iou_metrics: [foo]}",
         "config key val_evaluator.iou_metrics"),
        ("val_evaluator.metrics=[F2]", "config key val_evaluator.metrics"),
        ("test_evaluator.metrics=boundary_iou", "config key test_evaluator.metrics"),
        ("test_evaluator=[{type: SegmentationMetric, metrics: [x]}]",
         "config key test_evaluator.0.metrics"),
        ("default_hooks.checkpoint={save_best: mDice, rule: null}",
         "config key default_hooks.checkpoint.save_best"),
        ("default_hooks.checkpoint={save_best: foo, rule: null}",
         "config key default_hooks.checkpoint"),
        ("default_hooks.checkpoint.rule=bigger", "config key default_hooks.checkpoint"),
        ("custom_hooks=[{type: EarlyStoppingHook, monitor: mDice}]",
         "config key custom_hooks.0.monitor"),
        ("custom_hooks=[{type: EarlyStoppingHook, monitor: foo}]", "EarlyStoppingHook"),
    ],
)  # fmt: skip
def test_wrong_names_are_refused_before_the_run(said: str, options: str, subject: str) -> None:
    printed = run("train", "mine.py", "--work-dir", "none", "--cfg-options", options, codes=(2,))
    code, text = printed_error(printed)
    assert code == "config-value"
    assert subject in text
    assert not Path("none").exists()
