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

from mmseg_resnest.errors import CODES, UserError
from mmseg_resnest_cli.failures import explain_error
from mmseg_resnest_cli.main import parser_of

#: Address space that a loader may add to what the process has: all legitimate files here are tiny.
HEADROOM = 1536 << 20
#: Folders of hostile files into which loaders write their results.
OUTPUTS = ("data", "configs", "run")

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
    """An error has a known code, names the file or the key, and is short, printable text."""
    text = str(error)
    assert error.code in CODES, text
    assert any(name in text for name in names or ("",)), text
    assert len(text) < 4000 and "Traceback" not in text, text
    assert all(line.isprintable() for line in text.split("\n")), repr(text)
    # A loader that asks for the memory first has no bound.
    assert "alloc" not in text.lower() and error.code != "memory", text


@dataclass
class Outcome:
    """What a loader did: its UserError, or what it returned."""

    error: UserError | None = None
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

    def fill(self, value: Any) -> Any:
        """A value of texts, lists and mappings with ``{canary}``, ``{module}``, ... replaced."""
        if isinstance(value, str):
            for name in ("canary", "module", "package", "outside", "code"):
                value = value.replace(f"{{{name}}}", str(getattr(self, name)))
        elif isinstance(value, list):
            value = [self.fill(item) for item in value]
        elif isinstance(value, dict):
            value = {self.fill(key): self.fill(item) for key, item in value.items()}
        return value

    def write(self, name: str, data: bytes | str) -> Path:
        """Write a hostile file."""
        path = self.files / name
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return path

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

    def harmless(self, loader: Callable[[], Any], *names: str, headroom: int = HEADROOM) -> Outcome:
        """Run a loader: it ends well, or with a UserError that holds one of the names.

        Any other error fails the test, and so does what is watched.
        """
        outcome = Outcome()
        with self.watched(headroom):
            try:
                outcome.value = loader()
            except UserError as error:
                outcome.error = error
                check_error(error, *names)
        return outcome

    def refused(self, loader: Callable[[], Any], *names: str, code: str | None = None) -> UserError:
        """As :meth:`harmless`, and the loader raises, and writes nothing outside OUTPUTS."""
        before = set(self.files.rglob("*"))
        outcome = self.harmless(loader, *names)
        assert outcome.error is not None, f"it was not refused, but gave a {type(outcome.value)}"
        assert code in (None, outcome.error.code), outcome.error
        new = [path.relative_to(self.files) for path in set(self.files.rglob("*")) - before]
        assert all(path.parts[0] in OUTPUTS for path in new), new
        return outcome.error

    def survives(self, loader: Callable[[], Any]) -> None:
        """As :meth:`harmless` in a process of its own, which the file may bring down."""
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = 2 if self.harmless(loader).error is not None else 0
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert code in (0, 2), f"the process ended with {code}"

    def check_nothing_leaked(self, folder: Path) -> None:
        """No file below a folder is, or has the content of, a file outside."""
        secrets = {path.read_bytes() for path in self.outside.rglob("*") if path.is_file()}
        for path in folder.rglob("*"):
            real = path.resolve()
            assert not str(real).startswith(("/etc", "/dev", "/proc")), path
            assert not real.is_relative_to(self.outside.resolve()), path
            assert not path.is_file() or path.read_bytes() not in secrets, path


def tool(name: str, *args: object) -> int | None:
    """Run a command in this process; raises the UserError that ends it with exit code 2."""
    parsed = parser_of(name).parse_args([str(arg) for arg in args])
    try:
        module = importlib.import_module(f"mmseg_resnest_cli.{name.replace('-', '_')}")
        return module.run(parsed)  # type: ignore[no-any-return]
    except Exception as error:
        explained = explain_error(error)
        if explained is None:
            raise
        raise explained from error


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
