# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""One process at a time holds a folder, and the death of one keeps nobody out."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from user_errors import raises_user_error

from mmseg_resnest.io import folder_lock, processes
from mmseg_resnest.io.folder_lock import LOCK_FILE, FolderLock


class Clock:
    """Sleeps without time passing; ``then(n)`` is called in the n-th sleep."""

    def __init__(self, then: Callable[[int], Any] = lambda number: None) -> None:
        self.then = then
        self.slept: list[float] = []

    def __call__(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.then(len(self.slept))


def make(folder: Path, clock: Clock | None = None, **kw: Any) -> FolderLock:
    """A lock whose thread never gets to a heartbeat of its own."""
    return FolderLock(folder, period=1000.0, sleep=clock or Clock(), **kw)


@contextlib.contextmanager
def child(work: Callable[[], None]) -> Iterator[int]:
    """A forked process that does some work, says so, and stays until it is killed."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os.write(writer, b"x")
            threading.Event().wait()
        finally:
            os._exit(1)
    os.close(writer)
    assert os.read(reader, 1) == b"x"
    os.close(reader)
    try:
        yield pid
    finally:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


@pytest.fixture(params=["locks", "no locks"])
def file_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both kinds of file systems: those without locks say so."""
    if request.param == "no locks":
        _without_locks(monkeypatch)
    return request.param


def _without_locks(monkeypatch: pytest.MonkeyPatch, number: int = errno.ENOLCK) -> None:
    def lockf(file: int, how: int) -> None:
        raise OSError(number, os.strerror(number))

    fake = SimpleNamespace(lockf=lockf, LOCK_EX=2, LOCK_NB=4)
    monkeypatch.setattr(folder_lock, "fcntl", fake)


def _record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / LOCK_FILE).read_text())


def _leave(folder: Path, **changes: Any) -> None:
    """What a process leaves that was killed, with some entries changed."""
    with make(folder):
        record = {**_record(folder), **changes}
    (folder / LOCK_FILE).write_text(json.dumps(record))


def test_nothing_is_left_of_a_lock(tmp_path: Path, file_system: str) -> None:
    for _ in range(2):
        with make(tmp_path) as lock:
            assert os.listdir(tmp_path) == [LOCK_FILE]
            assert lock.taken_over is None
        assert os.listdir(tmp_path) == []


def test_a_second_one_in_this_process_is_refused(tmp_path: Path, file_system: str) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    with make(tmp_path):
        for folder in (tmp_path, link):
            with raises_user_error("in-use", folder) as refusal:
                make(folder).acquire()
            assert f"process {os.getpid()} on host" in refusal.value.message
        assert _record(tmp_path)["pid"] == os.getpid()
    make(tmp_path).acquire().release()


def test_a_second_process_is_refused(tmp_path: Path, file_system: str) -> None:
    with child(lambda: make(tmp_path).acquire()) as pid:
        started = _record(tmp_path)["started"]
        with raises_user_error("in-use", "--work-dir work") as refusal:
            make(tmp_path, subject="--work-dir work").acquire()
        for part in (f"process {pid} ", socket.gethostname(), started):
            assert part in refusal.value.message
        assert _record(tmp_path)["pid"] == pid


@pytest.mark.parametrize("reaped", [True, False], ids=["reaped", "zombie"])
def test_a_killed_process_keeps_nobody_out(tmp_path: Path, file_system: str, reaped: bool) -> None:
    with child(lambda: make(tmp_path).acquire()) as pid:
        os.kill(pid, signal.SIGKILL)
        if reaped:
            os.waitpid(pid, 0)
        else:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        clock = Clock()
        with make(tmp_path, clock) as lock:
            assert f"process {pid} " in str(lock.taken_over)
        assert clock.slept in ([], [1000.0])  # no heartbeat is watched for


def test_the_children_of_a_killed_process_keep_nobody_out(tmp_path: Path, file_system: str) -> None:
    reader, writer = os.pipe()

    def work() -> None:
        make(tmp_path).acquire()
        orphan = os.fork()
        if orphan == 0:
            threading.Event().wait()
        os.write(writer, b"%d" % orphan)

    with child(work) as pid:
        orphan = int(os.read(reader, 20))
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.kill(orphan, 0)  # it lives
            with make(tmp_path) as lock:
                assert f"process {pid} " in str(lock.taken_over)
        finally:
            os.kill(orphan, signal.SIGKILL)
    os.close(reader)
    os.close(writer)


def test_a_forked_child_gives_nothing_back(tmp_path: Path, file_system: str) -> None:
    with make(tmp_path) as lock:
        with child(lock.release) as pid:
            with child(lambda: _refused(tmp_path)):
                pass
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        with child(lambda: _refused(tmp_path)):
            pass
    assert os.listdir(tmp_path) == []


def _refused(folder: Path) -> None:
    with raises_user_error("in-use", folder):
        make(folder).acquire()


def test_a_reused_process_id_is_told_apart(tmp_path: Path, file_system: str) -> None:
    with child(lambda: None) as pid:
        start = processes._start_of(pid)
        assert start is not None
        _leave(tmp_path, pid=pid, process_start=start - 1)
        with make(tmp_path) as lock:
            assert f"process {pid} " in str(lock.taken_over)
        _leave(tmp_path, pid=pid, process_start=start)
        with raises_user_error("in-use", tmp_path):
            make(tmp_path).acquire()


def test_a_process_that_has_replaced_itself_takes_over(tmp_path: Path) -> None:
    _leave(tmp_path)  # its process is this one, which does not know of it
    clock = Clock()
    with make(tmp_path, clock) as lock:
        assert f"process {os.getpid()} " in str(lock.taken_over)
    assert clock.slept == []


def test_a_dead_process_of_another_host_is_watched(tmp_path: Path, file_system: str) -> None:
    _leave(tmp_path, host="elsewhere", machine="elsewhere 1 1")
    clock, told = Clock(), []
    with make(tmp_path, clock, tell=told.append) as lock:
        assert "host elsewhere" in str(lock.taken_over)
    assert clock.slept[:4] == [1000.0] * 4
    assert len(told) == 1 and "elsewhere" in told[0]


@pytest.mark.parametrize("late", [1, 3, 4])
def test_a_heartbeat_of_another_host_refuses(tmp_path: Path, file_system: str, late: int) -> None:
    _leave(tmp_path, host="elsewhere", machine="elsewhere 1 1")

    def beat(number: int) -> None:
        if number == late:
            record = {**_record(tmp_path), "beat": 1}
            (tmp_path / LOCK_FILE).write_text(json.dumps(record))

    with raises_user_error("in-use", tmp_path):
        make(tmp_path, Clock(beat)).acquire()
    assert _record(tmp_path)["host"] == "elsewhere"


def test_a_folder_that_is_given_back_meanwhile_is_free(tmp_path: Path, file_system: str) -> None:
    _leave(tmp_path, host="elsewhere", machine="elsewhere 1 1")

    def give_back(number: int) -> None:
        if number == 1:
            (tmp_path / LOCK_FILE).unlink()

    with make(tmp_path, Clock(give_back)) as lock:
        assert lock.taken_over is None


def test_of_two_that_find_a_folder_free_one_gets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without locks: the second writes while the first waits whether somebody does."""
    _without_locks(monkeypatch)
    path = tmp_path / LOCK_FILE

    def other(number: int) -> None:
        path.write_text(json.dumps({**_record(tmp_path), "token": "other", "host": "elsewhere"}))

    with raises_user_error("in-use", tmp_path):
        make(tmp_path, Clock(other)).acquire()
    assert _record(tmp_path)["token"] == "other"


def test_a_closed_descriptor_does_not_open_the_folder(tmp_path: Path) -> None:
    """Whoever reads the file in this process gives up the kernel's lock; the record remains."""
    with make(tmp_path) as lock:
        (tmp_path / LOCK_FILE).read_bytes()
        with child(lambda: _refused(tmp_path)):
            pass
        lock.renew()
        assert lock.lost is None


def test_heartbeats_change_the_record(tmp_path: Path, file_system: str) -> None:
    with make(tmp_path) as lock:
        first = (tmp_path / LOCK_FILE).read_bytes()
        lock.renew()
        second = (tmp_path / LOCK_FILE).read_bytes()
        assert first != second and len(first) == len(second)
        (tmp_path / LOCK_FILE).unlink()  # by somebody who tidies up
        lock.renew()
        assert lock.lost is None
        assert _record(tmp_path)["pid"] == os.getpid()
    assert os.listdir(tmp_path) == []


def test_the_thread_renews_the_record(tmp_path: Path) -> None:
    beat = threading.Event()
    lock = FolderLock(tmp_path, period=0.001)
    renew = lock.renew
    lock.renew = lambda: (renew(), beat.set())  # type: ignore[method-assign, assignment]
    with lock:
        assert beat.wait(60)
    assert lock.lost is None


def test_a_folder_that_another_has_taken_is_lost(tmp_path: Path, file_system: str) -> None:
    with make(tmp_path) as lock:
        record = {**_record(tmp_path), "token": "other", "host": "elsewhere"}
        (tmp_path / LOCK_FILE).write_text(json.dumps(record))
        lock.renew()
        assert "host elsewhere" in str(lock.lost)
    assert _record(tmp_path)["token"] == "other"


@pytest.mark.parametrize("kind", ["folder", "pipe", "link", "socket"])
def test_what_is_not_a_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / LOCK_FILE
    victim = tmp_path / "victim"
    victim.write_text("precious")
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as endpoint:
        if kind == "folder":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "link":
            path.symlink_to(victim)
        else:
            endpoint.bind(os.fspath(path))
        with raises_user_error("not-writable", tmp_path):
            make(tmp_path).acquire()
    assert victim.read_text() == "precious"
    assert os.path.lexists(path)


def test_a_file_that_is_never_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on file systems whose inodes change with each look."""
    monkeypatch.setattr(FolderLock, "_is_in_place", lambda lock: False)
    with raises_user_error("not-writable", str(tmp_path)):
        FolderLock(tmp_path).acquire()
    monkeypatch.undo()
    FolderLock(tmp_path).acquire().release()


def test_a_full_disk_leaves_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with raises_user_error("not-writable", tmp_path):
            make(tmp_path).acquire()
    assert os.listdir(tmp_path) == []
    make(tmp_path).acquire().release()


_WORDS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
_RECORDS = st.dictionaries(
    st.sampled_from(["pid", "host", "machine", "process_start", "started", "token"]), _WORDS
)


@given(
    content=st.binary(min_size=1, max_size=2000) | _RECORDS.map(lambda r: json.dumps(r).encode())
)
def test_any_content_is_watched_and_taken_over(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    folder = tmp_path_factory.mktemp("any")
    (folder / LOCK_FILE).write_bytes(content)
    clock = Clock()
    with make(folder, clock) as lock:
        assert lock.taken_over is not None
        assert _record(folder)["pid"] == os.getpid() or len(content) > 1024
    assert clock.slept == [1000.0] * 4


def test_a_lock_whose_record_is_of_a_dead_process_is_waited_for(tmp_path: Path) -> None:
    """The kernel's lock is held a little longer than its process is seen, or was just taken."""
    with child(lambda: make(tmp_path).acquire()) as pid:
        record = _record(tmp_path)
        (tmp_path / LOCK_FILE).write_text(json.dumps({**record, "process_start": 1}))

        def kill(number: int) -> None:
            if number == 3:
                os.kill(pid, signal.SIGKILL)
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

        clock = Clock(kill)
        with make(tmp_path, clock) as lock:
            assert lock.taken_over is not None
        assert len(clock.slept) == 3
    with child(lambda: make(tmp_path).acquire()):
        (tmp_path / LOCK_FILE).write_text("nothing")
        with raises_user_error("in-use", tmp_path):
            make(tmp_path).acquire()
