# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The folders of a run belong to it for as long as it runs."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from small_runs import small_config
from user_errors import raises_user_error

from mmseg_resnest.datasets.scenes import write_scenes
from mmseg_resnest.engine.config import load_config
from mmseg_resnest.engine.run_folders import (
    NewRunFolders,
    RunFolders,
    check_checkpoint_hook,
    check_free,
    evaluation_folder,
    folders_of_training,
    training_folder,
)
from mmseg_resnest.engine.saving import point_to, write_checkpoint
from mmseg_resnest.engine.training import train
from mmseg_resnest.io.folder_lock import LOCK_FILE, FolderLock


def _config(folder: Path, **checkpoint: str) -> Config:
    return Config({"work_dir": str(folder / "run"), "default_hooks": {"checkpoint": checkpoint}})


def _folders(cfg: Config, held: contextlib.ExitStack) -> RunFolders:
    return _of(cfg, cfg.work_dir, held)


def _of(cfg: Config, folder: str, held: contextlib.ExitStack) -> RunFolders:
    return RunFolders(folders_of_training(cfg, folder), held)


def _locks(folder: Path) -> list[str]:
    return sorted(p.parent.relative_to(folder).as_posix() for p in folder.rglob(LOCK_FILE))


def test_the_work_folder_is_held_until_the_end(tmp_path: Path) -> None:
    with contextlib.ExitStack() as held:
        folders = _folders(_config(tmp_path), held)
        assert folders.hold(make=False) == []
        assert os.listdir(tmp_path) == []
        assert folders.hold(make=True) == []
        assert folders.hold(make=True) == []
        assert _locks(tmp_path) == ["run"]
        folders.check()
    assert _locks(tmp_path) == []


def test_the_folder_of_the_checkpoints_is_held_too(tmp_path: Path) -> None:
    cfg = _config(tmp_path, out_dir=str(tmp_path / "out"))
    with contextlib.ExitStack() as held:
        _folders(cfg, held).hold(make=True)
        assert _locks(tmp_path) == ["out/run", "run"]
        # Another work folder of the same name would get its checkpoints into the same place.
        other = Config({**cfg, "work_dir": str(tmp_path / "elsewhere" / "run")})
        with (
            contextlib.ExitStack() as stack,
            raises_user_error("in-use", "default_hooks.checkpoint.out_dir"),
        ):
            _folders(other, stack).hold(make=True)


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    refused = raises_user_error("in-use", f"--work-dir {tmp_path / 'run'}")
    with FolderLock(tmp_path / "run"), contextlib.ExitStack() as held, refused:
        _folders(_config(tmp_path), held).hold(make=False)


def test_a_folder_that_is_named_twice_is_held_once(tmp_path: Path) -> None:
    names = {tmp_path: "--out", tmp_path / "x" / "..": "--work-dir"}
    with contextlib.ExitStack() as held:
        RunFolders(names, held).hold(make=True)
        assert _locks(tmp_path) == ["."]


def test_a_folder_that_is_lost_is_told(tmp_path: Path) -> None:
    with contextlib.ExitStack() as held:
        folders = _folders(_config(tmp_path), held)
        folders.hold(make=True)
        next(iter(folders._locks.values())).lost = "--work-dir run: another process has it"
        with raises_user_error("in-use", "--work-dir"):
            folders.check()


def test_the_template_is_checked_before_the_run(tmp_path: Path) -> None:
    check_checkpoint_hook(_config(tmp_path))
    check_checkpoint_hook(_config(tmp_path, filename_tmpl="step_{}.pth"))
    check_checkpoint_hook(Config({}))
    with raises_user_error("config-value", "filename_tmpl"):
        check_checkpoint_hook(_config(tmp_path, filename_tmpl="iter.pth"))


# --- which folder


class Runs:
    """Work folders as trainings of ``toy.py`` leave them; each is written after those before."""

    def __init__(self, checkpoint: dict[str, Any] | None = None, **config: Any) -> None:
        hooks = {"checkpoint": checkpoint or {}}
        self.cfg = Config({"default_hooks": hooks, **config}, cfg_text=" ", filename="toy.py")
        self.clock = 1_700_000_000

    def start(self, folder: str, run: str, launch: str = "", dump: str = "toy.py") -> None:
        """A training that has begun and saved nothing."""
        place = Path(folder, str(self.clock))
        place.mkdir(parents=True)
        Path(folder, dump).touch()
        self._write(place / "run.json", json.dumps({"run_id": run * 16, "launch": launch}))

    def save(self, folder: str, run: str, iteration: int = 3, **start: str) -> Path:
        """A training that has saved a checkpoint; returns it."""
        self.start(folder, run, **start)
        path = folders_of_training(self.cfg, folder)  # the checkpoints' folder comes first
        file = next(iter(path)) / f"iter_{iteration}.pth"
        meta = {"run_id": run * 16, "start": 1, "iter": iteration, "epoch": 0}
        write_checkpoint({"meta": meta, "state_dict": {"w": torch.zeros(1)}}, file)
        point_to(file, Path(folder))
        for one in (file, Path(folder, "last_checkpoint")):
            os.utime(one, (self.clock, self.clock))
        return file

    def _write(self, path: Path, text: str) -> None:
        path.write_text(text)
        self.clock += 100
        os.utime(path, (self.clock, self.clock))

    def next(self, resume: Any = None, work_dir: str | None = None, processes: int = 1) -> str:
        """Where a training goes."""
        resume = resume and str(resume)
        return training_folder(self.cfg, work_dir, resume, processes)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)
    monkeypatch.chdir(tmp_path)
    return Runs()


def test_a_new_training_gets_a_new_folder(runs: Runs) -> None:
    assert runs.next() == "work_dirs/toy"
    runs.start("work_dirs/toy", "a")  # that one has ended before it saved anything
    assert runs.next() == "work_dirs/toy"
    runs.save("work_dirs/toy", "b")
    assert runs.next() == "work_dirs/toy-2"
    Path("work_dirs/toy-2").mkdir()  # as one of several processes makes it
    assert runs.next() == "work_dirs/toy-2"
    runs.save("work_dirs/toy-2", "c")
    runs.save("work_dirs/toy-11", "d")
    for other in ("toy-x", "toy-012", "toy2", "toy-1"):
        runs.save(f"work_dirs/{other}", "e")
    assert runs.next() == "work_dirs/toy-12"
    Path("work_dirs/toy-12").mkdir()
    with FolderLock("work_dirs/toy-12"):  # a run that has saved nothing yet
        assert runs.next() == "work_dirs/toy-13"
        assert runs.next(processes=2) == "work_dirs/toy-12"  # its own first process may hold it
    assert runs.next(work_dir="mine") == "mine"


@pytest.mark.parametrize("ended", [True, False])
def test_a_run_that_began_meanwhile_keeps_its_folder(runs: Runs, ended: bool) -> None:
    with contextlib.ExitStack() as other, contextlib.ExitStack() as held:
        folders = NewRunFolders(runs.cfg, runs.next(), held)
        assert folders.hold(make=False) == []
        if ended:
            runs.save("work_dirs/toy", "a")
        else:
            _of(runs.cfg, "work_dirs/toy", other).hold(make=True)
        folders.hold(make=True)
        assert folders.work_dir == "work_dirs/toy-2"
        assert _locks(Path.cwd())[-1] == "work_dirs/toy-2"


def test_another_training_begins_meanwhile(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While this one makes its dry step; all of this one is in its own folder."""
    cfg = small_config(write_scenes(tmp_path / "scenes", 4, 1, progress=False), iterations=2)
    name = "work_dirs/fcn_resnest14_scenes"
    began = lambda *_: runs.save(name, "a") and []  # noqa: E731
    monkeypatch.setattr("mmseg_resnest.engine.training.dry_step", began)
    assert train(cfg)["work_dir"] == f"{name}-2"
    assert Path(f"{name}-2", "iter_2.pth").is_file()
    assert not Path(name, "iter_2.pth").exists()
    assert load_config(f"{name}-2/fcn_resnest14_scenes.py").work_dir == f"{name}-2"


def test_a_checkpoint_that_is_not_there_is_not_taken_for_another_run(
    runs: Runs, tmp_path: Path
) -> None:
    cfg = small_config(write_scenes(tmp_path / "scenes", 4, 1, progress=False), iterations=2)
    runs.save("work_dirs/toy", "a")
    with raises_user_error("not-found", "--resume work_dirs/toy/iter_1.pth"):
        train(cfg, "work_dirs/toy", resume="work_dirs/toy/iter_1.pth")


@pytest.mark.parametrize("left", ["results.json", "last_checkpoint", "epoch_4.pth", "best_a_9.pth"])
def test_a_folder_with_scores_or_checkpoints_holds_a_run(runs: Runs, left: str) -> None:
    Path("work_dirs/toy").mkdir(parents=True)
    Path("work_dirs/toy", "pretrained-1.pth").touch()
    assert runs.next() == "work_dirs/toy"
    Path("work_dirs/toy", left).touch()
    assert runs.next() == "work_dirs/toy-2"
    with raises_user_error("output-exists", "--work-dir work_dirs/toy"):
        check_free(runs.cfg, "work_dirs/toy", None)
    check_free(runs.cfg, "work_dirs/toy", "auto")


def test_resuming_goes_on_where_the_run_is(runs: Runs) -> None:
    assert runs.next("auto") == "work_dirs/toy"
    first = runs.save("work_dirs/toy", "a")
    second = runs.save("work_dirs/toy-2", "b")
    assert runs.next("auto") == "work_dirs/toy-2"
    runs.save("work_dirs/toy", "a", 6)
    assert runs.next("auto") == "work_dirs/toy"  # written last
    runs.save("work_dirs/toy-3", "c", dump="toy-3.py")  # the first folder of another config
    assert runs.next("auto") == "work_dirs/toy"
    assert (runs.next(first), runs.next(second)) == ("work_dirs/toy", "work_dirs/toy-2")
    copied = Path("backup.pth")
    copied.write_bytes(first.read_bytes())
    assert runs.next(copied) == "work_dirs/toy"  # of that run
    other = runs.save("elsewhere", "d")
    assert runs.next(other) == "work_dirs/toy-4"
    # In a folder that the command line names, too, only the run that it holds goes on.
    check_free(runs.cfg, "work_dirs/toy", str(copied))
    check_free(runs.cfg, "new", str(other))
    with raises_user_error("output-exists", "--work-dir work_dirs/toy"):
        check_free(runs.cfg, "work_dirs/toy", str(other))
    runs.cfg.resume, runs.cfg.load_from = True, str(second)
    assert runs.next() == "work_dirs/toy-2"


@pytest.mark.parametrize(
    "launcher",
    [("TORCHELASTIC_RUN_ID", "77", "torchrun 77"), ("SLURM_JOB_ID", "77", "slurm 77")],
)
def test_a_launch_that_starts_again_finds_its_folder(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, launcher: tuple[str, str, str]
) -> None:
    variable, number, name = launcher
    count = variable.split("_")[0] + "_RESTART_COUNT"
    monkeypatch.setenv(variable, number)
    monkeypatch.setenv(count, "0")
    runs.save("work_dirs/toy", "a", launch="slurm 1")
    for restart in ("0", "1"):  # before it has written anything
        monkeypatch.setenv(count, restart)
        assert runs.next(processes=2) == "work_dirs/toy-2"
    runs.start("work_dirs/toy-2", "b", launch=name)
    assert runs.next(processes=2) == "work_dirs/toy-2"
    runs.save("work_dirs/toy-2", "b", launch=name)
    runs.save("work_dirs/toy-3", "c", launch="slurm 2")  # another job of the same config
    assert runs.next(processes=2) == "work_dirs/toy-2"
    check_free(runs.cfg, "work_dirs/toy-2", None)
    monkeypatch.setenv(count, "0")
    assert runs.next() == "work_dirs/toy-4"


@pytest.mark.parametrize(
    ("work_dir", "second"), [("mine/", "mine-2"), (".", "{}-2"), ("./a/..", "{}-2")]
)
def test_a_number_goes_behind_a_name(runs: Runs, work_dir: str, second: str) -> None:
    runs.cfg = Runs(work_dir=work_dir).cfg
    Path("a").mkdir()
    runs.save(runs.next(), "a")
    assert runs.next() == second.format(Path.cwd())


def test_checkpoints_elsewhere_are_of_the_run_too(runs: Runs) -> None:
    runs.cfg = Runs({"out_dir": "disk"}, work_dir="mine").cfg
    checkpoint = runs.save("mine", "a")
    assert checkpoint == Path("disk/mine/iter_3.pth")
    Path("mine/last_checkpoint").unlink()
    assert runs.next() == "mine-2"
    runs.save("mine-2", "b")
    assert runs.next(checkpoint) == "mine"
    assert evaluation_folder(runs.cfg, checkpoint, None, False) == "mine/test"
    for folder in ("mine", "mine-2"):
        shutil.rmtree(folder)
    assert runs.next() == "mine-3"
    with contextlib.ExitStack() as held:
        folders = NewRunFolders(runs.cfg, "mine", held)
        folders.hold(make=True)
        assert folders.work_dir == "mine-3"


def test_an_evaluation_goes_to_the_run_of_its_checkpoint(runs: Runs) -> None:
    place = lambda file, work_dir=None, tta=False: evaluation_folder(  # noqa: E731
        runs.cfg, file, work_dir, tta
    )
    Path("published v1.pth").touch()
    assert place("published v1.pth") == place("resnest-of-the-catalogue") == "work_dirs/toy/test"
    first, second = runs.save("work_dirs/toy", "a"), runs.save("work_dirs/toy-2", "b")
    mine = runs.save("mine", "c")
    assert place(first) == "work_dirs/toy/test"
    assert place(second.resolve(), tta=True) == "work_dirs/toy-2/test_tta"
    assert place(mine) == "mine/test"
    Path("sent.pth").write_bytes(first.read_bytes())
    assert place("sent.pth") == "work_dirs/toy/test"
    assert place("published v1.pth") == "work_dirs/toy_published_v1/test"
    assert place(first, "there") == "there"
    with raises_user_error("output-exists", "--work-dir mine"):
        place(first, "mine")
