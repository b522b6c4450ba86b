# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Hostile training checkpoints through ``--resume``."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hostile_runs
import pytest
import torch
from hostile_runs import Record, checkpoint_with
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from in_process import run
from sandbox import Sandbox, _active, check_error
from tiny_runs import make_runner
from tool_runs import make_toy
from user_errors import printed_error

from mmseg_resnest.datasets.scenes import write_scenes
from mmseg_resnest.engine.checkpoint_schema import check_training_checkpoint
from mmseg_resnest.engine.latest import latest_valid_checkpoint
from mmseg_resnest.errors import UserError

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
def the_run_itself_starts_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A runner asks compilers for their versions; what matters here is the canary."""
    monkeypatch.setattr("mmseg_resnest.engine.runner.Runner._log_env", lambda self, cfg: None)


def resume(path: Path, work_dir: Path, **options: Any) -> Any:
    """A resumed run to its end, at iteration 12."""
    check_training_checkpoint(str(path))
    runner = make_runner(work_dir, resume=path, **options)
    try:
        runner.train()
    finally:
        runner.close()
    assert runner.iter == 12
    weights = [value for value in runner.model.state_dict().values() if value.is_floating_point()]
    assert all(bool(value.isfinite().all()) for value in weights)
    return runner


def test_the_valid_checkpoint_resumes(training_checkpoint: Path, sandbox: Sandbox) -> None:
    path = checkpoint_with(sandbox, training_checkpoint, lambda record: None)
    assert sandbox.harmless(lambda: resume(path, sandbox.files / "run")).error is None


@pytest.mark.parametrize("change", hostile_runs.REFUSED)
def test_wrong_fields_are_refused(change: str, training_checkpoint: Path, sandbox: Sandbox) -> None:
    path = checkpoint_with(sandbox, training_checkpoint, hostile_runs.REFUSED[change])
    sandbox.refused(lambda: resume(path, sandbox.files / "run"), path.name)


@pytest.mark.parametrize("change", hostile_runs.DROPPED)
def test_unneeded_fields_are_refused_or_dropped(
    change: str, training_checkpoint: Path, sandbox: Sandbox
) -> None:
    path = checkpoint_with(sandbox, training_checkpoint, hostile_runs.DROPPED[change])
    work_dir = sandbox.files / "run"
    done = sandbox.harmless(lambda: resume(path, work_dir), path.name)
    if done.error is None:
        saved = torch.load(work_dir / "iter_12.pth", weights_only=True)
        assert str(sandbox.canary) not in repr(saved["meta"]), "the text was passed on"
        assert "evil" not in saved and "config" not in saved["meta"]
        assert "os.system" not in repr({**saved, "state_dict": None})


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    items: Any = value.items() if isinstance(value, dict) else ()
    for key, item in enumerate(value) if isinstance(value, list) else items:
        yield value, key
        yield from _places(item)


_VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5),
    st.sampled_from([[], {}, [[]], {"a": 1}, "__class__", 2**80, -(2**80)]),
    st.sampled_from([torch.zeros(0), torch.zeros(2, 2), torch.tensor(float("nan"))]),
)  # fmt: skip


@settings(
    max_examples=10, deadline=None, derandomize=True, phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(data=st.data())
def test_any_field_of_any_type(
    data: st.DataObject, training_checkpoint: Path, sandbox: Sandbox
) -> None:
    """One field anywhere gets any value: an error that names the file, or a run to the end."""
    record = torch.load(training_checkpoint, weights_only=True)
    part, key = data.draw(st.sampled_from(list(_places(record))), label="place")
    part[key] = copy.deepcopy(data.draw(_VALUES, label="value"))
    path = sandbox.files / "evil.pth"
    torch.save(record, path)
    work_dir = sandbox.files / "run"
    shutil.rmtree(work_dir, ignore_errors=True)
    with sandbox.watched():
        try:
            check_training_checkpoint(str(path))
            runner = make_runner(work_dir, resume=path)
            try:
                runner.train()
            finally:
                runner.close()
        except UserError as error:
            # A run whose loss is not finite stops by itself, with its own words.
            check_error(error, path.name, "the loss is")


# --- deletions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["best_ckpt", "last_ckpt"])
@pytest.mark.parametrize("name", hostile_runs.DELETIONS, ids=range(len(hostile_runs.DELETIONS)))
def test_a_name_in_a_checkpoint_deletes_nothing(
    name: str, field: str, training_checkpoint: Path, sandbox: Sandbox
) -> None:
    work_dir = sandbox.files / "run"
    work_dir.mkdir()
    kept = ["notes.txt", "my_weights.pth", "best_other.pth", "sub/iter_3.pth"]
    for file in kept:
        (work_dir / file).parent.mkdir(exist_ok=True)
        (work_dir / file).write_bytes(b"precious")
        (sandbox.files / Path(file).name).write_bytes(b"precious")
    (work_dir / "link.pth").symlink_to(sandbox.outside / "weights.pth")

    claimed = sandbox.fill(name)
    if name.startswith("run/"):
        claimed = f"{work_dir}{os.sep}{name.removeprefix('run/')}"

    def claim(record: Record) -> None:
        # Any score is better than this one: the file claimed is the one to replace.
        info = record["message_hub"].setdefault("runtime_info", {})
        info.update({field: claimed, "best_score": 1e9})

    path = checkpoint_with(sandbox, training_checkpoint, claim)
    shutil.copy(path, work_dir / "evil.pth")
    done = sandbox.harmless(lambda: resume(path, work_dir), path.name)
    for file in (*kept, "evil.pth"):
        assert (work_dir / file).exists(), f"{file} was deleted"
    for file in kept:
        assert (sandbox.files / Path(file).name).exists(), f"{file} was deleted"
    assert (work_dir / "link.pth").is_symlink()
    if done.error is None:  # and it has saved a best one
        assert list(work_dir.glob("best_score_*.pth"))


# --- what a work folder holds ---------------------------------------------------------------------


def _pointer(text: str | bytes) -> Callable[[Sandbox, Path], Any]:
    def make(box: Sandbox, folder: Path) -> None:
        data = text if isinstance(text, bytes) else box.fill(text).encode()
        (folder / "last_checkpoint").write_bytes(data)

    return make


def _broken_records(box: Sandbox, folder: Path) -> None:
    """End records that announce comments beyond the file, with records that are not records."""
    for number, text in enumerate((b"{}", b"[]", b"\xff", b"[" * 3000, b'{"saved": 1e999}')):
        data = b"PK\5\6" + bytes(16) + len(text).to_bytes(2, "little") + text
        (folder / f"iter_{number}.pth").write_bytes(data)


FOLDERS: dict[str, Callable[[Sandbox, Path], Any]] = {
    "pointer outside": _pointer("{outside}/weights.pth"),
    "pointer to a secret": _pointer("{outside}/secret.txt"),
    "pointer to a device": _pointer("/dev/zero"),
    "pointer of NUL": _pointer(b"iter_7.pth\0"),
    "pointer of many lines": _pointer(b"iter_7.pth\n" * 10_000),
    "pointer of no UTF-8": _pointer(b"\xff\xfe\xfd"),
    "pointer of a long name": _pointer(b"x" * 100_000),
    "pointer of a megabyte": _pointer(b"/" * (1 << 20)),
    # Reading a pipe that nobody writes to would wait for ever, reading this device never ends.
    "pipe": lambda box, folder: os.mkfifo(folder / "iter_7.pth"),
    "device": lambda box, folder: (folder / "iter_7.pth").symlink_to("/dev/zero"),
    "link to itself": lambda box, folder: (folder / "iter_7.pth").symlink_to("iter_7.pth"),
    "folder": lambda box, folder: (folder / "iter_7.pth").mkdir(),
    "no checkpoint": lambda box, f: (f / "iter_9.pth").write_bytes(b"\x80\x04" + bytes(100)),
    "broken records": _broken_records,
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_the_latest_valid_checkpoint_is_found(
    kind: str, training_checkpoint: Path, sandbox: Sandbox
) -> None:
    folder = sandbox.files / "run"
    folder.mkdir()
    shutil.copy(training_checkpoint, folder / "iter_6.pth")
    FOLDERS[kind](sandbox, folder)
    found = sandbox.harmless(lambda: latest_valid_checkpoint(folder, folder))
    assert found.error is None
    assert found.value[0] == folder / "iter_6.pth"


# --- the tool -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(600)  # three runs, also on a busy machine
def test_train_resume_runs_nothing(
    tmp_path: Path, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real run of a segmentor: a wrong file is named, hostile ones are in the folder."""
    scenes = write_scenes(tmp_path / "scenes", 6, 3, progress=False)
    folder = tmp_path / "toy"
    folder.mkdir()
    make_toy(folder, scenes)
    monkeypatch.chdir(folder)
    train = ("train", "toy.py", "--cfg-options", "train_dataloader.num_workers=0")
    run(*train)
    work_dir = folder / "work_dirs" / "toy"
    valid = torch.load(work_dir / "iter_6.pth", weights_only=True)

    def evil(**meta: Any) -> Path:
        record = {**valid, "meta": {**valid["meta"], **meta}}
        torch.save(record, sandbox.files / "evil.pth")
        return sandbox.files / "evil.pth"

    path = evil(iter="4")
    _, error = printed_error(run(*train, "--resume", path, codes=(2,)))
    assert "evil.pth" in error and "iter" in error
    for file in work_dir.glob("iter_*.pth"):
        shutil.copy(evil(config=sandbox.code, iter=5), file)
    said = run(*train, "--resume", codes=(0, 2))
    assert not sandbox.canary.exists()
    assert "\nerror" not in said or "iter_" in printed_error(said)[1]


def test_nothing_is_watched_between_tests() -> None:
    assert not _active
