# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What a run does to the files in its folder, and what it says of those it cannot write."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.hooks import Hook
from tiny_runs import make_runner
from user_errors import raises_user_error

from mmseg_resnest.engine.hooks import ResultsHook, checkpoint
from mmseg_resnest.engine.latest import latest_valid_checkpoint, verify_checkpoint
from mmseg_resnest.engine.saving import point_to
from mmseg_resnest.errors import UserError


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails is tried again at once."""
    from mmseg_resnest.engine import runner
    from mmseg_resnest.engine.checkpoint_writer import CheckpointWriter

    monkeypatch.setattr(
        runner, "CheckpointWriter", lambda *a: CheckpointWriter(*a, pauses=(0.01,), last_tries=2)
    )


class Then(Hook):
    """Waits after a step until nothing is left to write, and calls a function."""

    priority = "LOWEST"

    def __init__(self, iteration: int, function: Any) -> None:
        self.iteration, self.function = iteration, function

    def after_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        runner.checkpoint_writer.wait()
        if runner.iter + 1 == self.iteration:
            self.function()


def _numbered(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("iter_*.pth"))


def test_a_pointer_that_cannot_be_written_is_reported_apart(tmp_path: Path) -> None:
    (tmp_path / "last_checkpoint").mkdir()
    runner = make_runner(tmp_path, hooks=[Then(0, None)])
    with raises_user_error("storage", tmp_path) as failure:
        runner.train()
    assert "updating last_checkpoint failed" in str(failure.value)
    assert "saving failed" not in str(failure.value)
    assert _numbered(tmp_path) == ["iter_12.pth", "iter_9.pth"]  # rotated all the same
    assert all(verify_checkpoint(tmp_path / name) is None for name in _numbered(tmp_path))


def test_what_the_pointer_names_stays_until_it_names_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pointer = tmp_path / "last_checkpoint"
    blocked: list[bool] = []
    named: list[str] = []

    def point(path: Path, folder: Path) -> None:
        if blocked:
            raise OSError("no")
        point_to(path, folder)

    def look() -> None:
        named.extend([pointer.read_text(), *_numbered(tmp_path)])
        blocked.clear()

    monkeypatch.setattr(checkpoint, "point_to", point)
    hooks = [Then(4, lambda: blocked.append(True)), Then(11, look)]
    make_runner(tmp_path, interval=2, hooks=hooks).train()
    assert named == [str(tmp_path / "iter_4.pth"), "iter_10.pth", "iter_4.pth", "iter_8.pth"]
    assert pointer.read_text() == str(tmp_path / "iter_12.pth")
    assert _numbered(tmp_path) == ["iter_10.pth", "iter_12.pth"]


def test_results_that_cannot_be_written_fail_the_run(tmp_path: Path) -> None:
    (tmp_path / "results.json").mkdir()
    runner = make_runner(tmp_path, hooks=[ResultsHook()])
    with raises_user_error("storage", tmp_path) as failure:
        runner.train()
    assert str(tmp_path / "results.json") in str(failure.value)
    assert (tmp_path / "last_checkpoint").read_text() == str(tmp_path / "iter_12.pth")
    # The advice helps: to resume the run, which has no step left, writes them.
    (tmp_path / "results.json").rmdir()
    make_runner(tmp_path, hooks=[ResultsHook()], resume=tmp_path / "iter_12.pth").train()
    assert '"iteration": 12' in (tmp_path / "results.json").read_text()


def test_lost_log_lines_are_reported_in_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runner = make_runner(tmp_path, visualizer_name="lost")
    log = Path(runner.logger.log_file)
    scalars = log.parent / "vis_data" / "scalars.json"
    for path in (log, scalars):
        path.unlink(missing_ok=True)
        path.mkdir(parents=True)
    runner.logger.setLevel("INFO")
    for handler in runner.logger.handlers:
        handler.setLevel("INFO")
    runner.train()
    runner.close()
    said = capsys.readouterr().err
    for name in (log.name, "scalars.json"):
        lines = [line for line in said.splitlines() if f"{name}: " in line and "lost" in line]
        assert len(lines) == 1, said
        assert "Is a directory" in lines[0]


def test_the_best_of_the_run_before_is_removed(tmp_path: Path) -> None:
    for key in ("score", "auto"):
        folder = tmp_path / key
        make_runner(folder, iterations=4, save_best=key).train()
        assert [p.name for p in folder.glob("best_*")] == ["best_score_iter_4.pth"]
        record = torch.load(folder / "iter_4.pth", weights_only=True)
        record["message_hub"]["runtime_info"]["best_score"] = 9e9
        torch.save(record, folder / "from.pth")
        make_runner(folder, iterations=8, save_best=key, resume=folder / "from.pth").train()
        assert [p.name for p in folder.glob("best_*")] == ["best_score_iter_8.pth"]


def test_last_and_best_are_links_to_checkpoints(tmp_path: Path) -> None:
    for end, resume in ((7, None), (12, "iter_7.pth")):
        run = dict(iterations=end, save_best="score", max_keep_ckpts=1)
        make_runner(tmp_path, resume=resume and tmp_path / resume, **run).train()
        for name, found in (("last", "iter"), ("best", "best_score_iter")):
            link, found = tmp_path / f"{name}.pth", f"{found}_{end}.pth"
            assert link.is_symlink() and link.resolve() == (tmp_path / found).resolve()
            assert not link.readlink().is_absolute()  # the folder may be moved
    assert latest_valid_checkpoint(tmp_path)[0] == tmp_path / "iter_12.pth"
    copied = tmp_path / "copied"
    shutil.copytree(tmp_path, copied, ignore=shutil.ignore_patterns("iter_*", "last*", "2*"))
    assert latest_valid_checkpoint(copied)[0] is None  # the best one holds weights only


def test_a_file_called_last_stays(tmp_path: Path) -> None:
    (tmp_path / "last.pth").write_text("mine")
    make_runner(tmp_path).train()
    assert (tmp_path / "last.pth").read_text() == "mine"


def test_links_and_folders_are_not_rotated_out(tmp_path: Path) -> None:
    make_runner(tmp_path, iterations=3).train()
    target = tmp_path / "precious"
    target.write_text("precious")
    (tmp_path / "iter_1.pth").symlink_to(target)
    (tmp_path / "iter_2.pth").mkdir()
    make_runner(tmp_path, iterations=12, resume=tmp_path / "iter_3.pth", max_keep_ckpts=1).train()
    assert target.read_text() == "precious"
    assert _numbered(tmp_path) == ["iter_1.pth", "iter_12.pth", "iter_2.pth"]


def test_a_folder_that_is_lost_ends_the_run_before_it_writes(tmp_path: Path) -> None:
    def lost() -> None:
        raise UserError("in-use", tmp_path, "another run has taken the folder")

    runner = make_runner(tmp_path)
    runner.before_saving = lost
    with raises_user_error("in-use", tmp_path):
        runner.train()
    assert _numbered(tmp_path) == []
