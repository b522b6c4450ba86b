# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Runs a loader on a hostile file and checks everything that the file must not be able to do."""

from __future__ import annotations

import importlib
import os
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmseg_resnest.errors import UserError
from mmseg_resnest_cli.failures import explain_error
from mmseg_resnest_cli.main import parser_of

#: Address space that a loader may add to what the process has: all legitimate files here are tiny.
HEADROOM = 1536 << 20

# Python reports these actions to audit hooks. A hook cannot be taken away, so there is one.
_PROGRAMS = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pty.spawn")
_NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "urllib.Request")
_active: list[Sandbox] = []


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if not _active:
        return
    if event == "subprocess.Popen" and list(args[1]) == ["git", "rev-parse", "HEAD"]:
        return  # MMEngine's runner notes its version
    if event in _PROGRAMS or event in _NETWORK:
        _active[-1].events.append(f"{event} {args[:2]}")
    elif event == "open" and isinstance(args[0], str | bytes | os.PathLike):
        path = os.path.realpath(os.fsdecode(args[0]))
        if path.startswith(f"{_active[-1].outside}{os.sep}"):
            _active[-1].events.append(f"open {path}")


sys.addaudithook(_audit)


def check_error(error: UserError, *names: str) -> None:
    """An error names the file or the key, and none that asks for the memory first."""
    text = str(error)
    assert any(name in text for name in names), text
    # Whoever asks for the memory first has no bound.
    assert "alloc" not in text.lower() and "memory ran out" not in text.lower(), text


@dataclass
class Outcome:
    """What a loader did: the message of its UserError, or what it returned."""

    error: str | None = None
    value: Any = None


@dataclass
class Sandbox:
    """A folder for hostile files, and files outside of it that no loader may touch.

    Attributes:
        files: Where hostile files are made.
        outside: Precious files: a text, pictures, weights.
        canary: Hostile code would make this file.
        module: Name of a module in ``files`` whose import makes the canary.
    """

    files: Path
    outside: Path
    canary: Path
    module: str
    events: list[str] = field(default_factory=list)

    @classmethod
    def make(cls, folder: Path) -> Sandbox:
        files, outside, canary = folder / "hostile", folder / "outside", folder / "canary"
        for made in (files, outside):
            made.mkdir()
        (outside / "secret.txt").write_text("secret of the user\n")
        picture = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
        Image.fromarray(picture).save(outside / "photo.png")
        Image.fromarray(picture).save(outside / "photo.jpg")
        for name in ("photo_label.png", "photo_pred.png"):
            Image.fromarray(picture[..., 0] % 3).save(outside / name)
        (outside / "weights.pth").write_bytes(b"precious weights")
        name = f"hostile_module_{folder.name.replace('-', '_')}"
        code = f"import pathlib\npathlib.Path({str(canary)!r}).touch()\nThing = dict\n"
        (files / f"{name}.py").write_text(code)
        package = files / f"{name}_package"
        package.mkdir()
        for part in ("__init__", "registry", "models", "datasets", "engine"):
            (package / f"{part}.py").write_text(code)
        return cls(files, Path(os.path.realpath(outside)), canary, name)

    @property
    def package(self) -> str:
        """Name of a package in ``files``; importing it or its ``registry`` makes the canary."""
        return f"{self.module}_package"

    @property
    def code(self) -> str:
        """A statement that makes the canary."""
        return f"__import__('pathlib').Path({str(self.canary)!r}).touch()"

    @contextmanager
    def watched(self, headroom: int = HEADROOM) -> Iterator[None]:
        """Fails the test if anything ran, was imported, was read outside, or was changed there."""
        before = _tree(self.outside)
        modules, paths = set(sys.modules), list(sys.path)
        place, environment = os.getcwd(), dict(os.environ)
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        self.events.clear()
        _active.append(self)
        resource.setrlimit(resource.RLIMIT_AS, (_address_space() + headroom, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
            _active.remove(self)
        hostile = [os.path.realpath(folder) + os.sep for folder in (self.files, self.outside)]
        imported = [
            name
            for name in sorted(set(sys.modules) - modules)
            if (file := getattr(sys.modules[name], "__file__", None))
            and os.path.realpath(file).startswith(tuple(hostile))
            and os.path.isfile(file)  # torch.ops calls its own "_ops.py"
        ]
        for name in imported:
            del sys.modules[name]
        assert not self.canary.exists(), "code of the file ran"
        assert not imported, "a module of the hostile folder was imported"
        assert not self.events, self.events
        assert sys.path == paths, "sys.path was changed"
        assert os.getcwd() == place, "the working folder was changed"
        changed = dict(set(os.environ.items()) ^ set(environment.items()))
        changed.pop("TORCHINDUCTOR_CACHE_DIR", None)  # torch sets it when it first needs a compiler
        assert not changed, f"the environment was changed: {changed}"
        assert _tree(self.outside) == before, "files outside of the given folders were changed"

    def run(self, loader: Callable[[], Any], headroom: int = HEADROOM) -> Outcome:
        """Run a loader; any error but UserError fails the test, and so does what is watched."""
        outcome = Outcome()
        with self.watched(headroom):
            try:
                outcome.value = loader()
            except UserError as error:
                outcome.error = str(error)
                check_error(error, "")
        return outcome

    def refused(self, loader: Callable[[], Any], *names: str, headroom: int = HEADROOM) -> str:
        """The loader raises a UserError that holds one of the names; returns its message."""
        outcome = self.run(loader, headroom)
        assert outcome.error is not None, f"it was not refused, but gave a {type(outcome.value)}"
        assert any(name in outcome.error for name in names), outcome.error
        return outcome.error

    def harmless(self, loader: Callable[[], Any], *names: str, headroom: int = HEADROOM) -> Outcome:
        """As :meth:`refused`, or the loader ends without error."""
        outcome = self.run(loader, headroom)
        if outcome.error is not None:
            assert any(name in outcome.error for name in names), outcome.error
        return outcome

    def survives(self, loader: Callable[[], Any]) -> None:
        """As :meth:`harmless` in a process of its own, which the file may bring down."""
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = 2 if self.run(loader).error is not None else 0
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert code in (0, 2), f"the process ended with {code}"

    def holds_a_secret(self, folder: Path) -> list[str]:
        """Files below a folder that are, or have the content of, a file outside."""
        secrets = {path.read_bytes() for path in self.outside.rglob("*") if path.is_file()}
        return [
            str(path)
            for path in folder.rglob("*")
            if path.is_file()
            and (
                path.resolve().is_relative_to(self.outside.resolve())
                or path.read_bytes() in secrets
            )
        ]


def tool(name: str, *args: object) -> int | None:
    """Run a command in this process; raises the UserError that ends it with exit code 2.

    Args:
        name: The file of its script in ``tools/``.
        *args: Its arguments.
    """
    command = Path(name).stem
    parsed = parser_of(command.replace("_", "-")).parse_args([str(arg) for arg in args])
    try:
        code: int | None = importlib.import_module(f"mmseg_resnest_cli.{command}").run(parsed)
    except Exception as error:
        told = explain_error(error)
        if told is None:
            raise
        raise told from error
    return code


def _address_space() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _tree(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Kind, content, links and times of all that is below a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() else None
        found[str(path)] = (status.st_mode, status.st_nlink, status.st_mtime_ns, content)
    return found
