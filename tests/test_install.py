# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The pins, the ranges and the imports agree, and nothing needs libGL.so.1 or a compiler."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mmseg_resnest.version import __version__

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# What a package of the list asks for and nothing here imports; CONTRIBUTING.md says why.
LEFT_OUT = {
    "onedl-mmcv": {"opencv-python"},
    "onedl-mmsegmentation": {"opencv-python"},
    "cityscapesscripts": {"appdirs", "coloredlogs", "typing"},
    "huggingface-hub": {"hf-xet"},
    "resnest": {"nose"},
}
STANDS_IN = {"opencv-python": "opencv-python-headless"}

# Import name -> distribution, where they differ.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "cv2": "opencv-python",
    "mmcv": "onedl-mmcv",
    "mmengine": "onedl-mmengine",
    "mmpretrain": "onedl-mmpretrain",
    "mmseg": "onedl-mmsegmentation",
    "yaml": "pyyaml",
}


def requirements() -> list[Requirement]:
    """Every line of requirements.txt, for every Python."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]


def pins(environment: dict[str, str] | None = None) -> dict[str, str]:
    """Name -> version of the lines that hold for an environment (None: this one)."""
    return {
        canonicalize_name(line.name): str(line.specifier).removeprefix("==")
        for line in requirements()
        if line.marker is None or line.marker.evaluate(environment)
    }


def imported_modules(path: Path) -> set[str]:
    """Full names of all modules that a source file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.update({node.module, *(f"{node.module}.{alias.name}" for alias in node.names)})
    return found


def sources(*folders: str) -> list[Path]:
    return sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))


def test_every_line_is_one_exact_version() -> None:
    for line in requirements():
        assert re.fullmatch(r"==[0-9][0-9a-z.]*", str(line.specifier)), line
    for minor in range(10, 15):
        environment = {"python_version": f"3.{minor}"}
        names = [
            canonicalize_name(line.name)
            for line in requirements()
            if line.marker is None or line.marker.evaluate(environment)
        ]
        assert len(names) == len(set(names)), f"a package has two versions on Python 3.{minor}"


def test_pins_lie_in_the_declared_ranges() -> None:
    extras = PROJECT["optional-dependencies"]
    core = [Requirement(line) for line in PROJECT["dependencies"]]
    dev = [Requirement(line) for line in extras["dev"] if not line.startswith("pre-commit")]
    for python in ("3.10", "3.13"):
        pinned = pins({"python_version": python})
        for line in [*core, *dev]:
            name = STANDS_IN.get(line.name, line.name)
            assert name in pinned, f"{name} of pyproject.toml is not in requirements.txt"
            assert line.specifier.contains(pinned[name]), f"{name}=={pinned[name]} is not {line}"


def test_this_environment_is_the_tested_set_or_not() -> None:
    """In the environment that `make venv` makes, the list is complete."""
    installed = {}
    for found in metadata.distributions():  # the first one is what an import takes
        installed.setdefault(canonicalize_name(found.name), found)
    pinned = pins()
    for name, version in pinned.items():
        if name not in installed or installed[name].version.partition("+")[0] != version:
            pytest.skip(f"not the pinned set: {name} is not {version}")
    for name in pinned:
        for text in installed[name].requires or []:
            line = Requirement(text)
            need = canonicalize_name(line.name)
            if line.marker is not None and not line.marker.evaluate({"extra": ""}):
                continue
            if need in LEFT_OUT.get(name, ()) or need.startswith(("nvidia-", "cuda-")):
                continue
            if name == "torch" and need == "triton":
                continue
            assert need in pinned, f"{name} asks for {text}, which requirements.txt lacks"
            assert line.specifier.contains(pinned[need], prereleases=True), (
                f"{name} asks for {text}, requirements.txt has {pinned[need]}"
            )


def test_every_import_of_the_package_is_declared() -> None:
    declared = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
    extras = {
        canonicalize_name(Requirement(line).name)
        for lines in PROJECT["optional-dependencies"].values()
        for line in lines
    }
    for file in sources("mmseg_resnest", "mmseg_resnest_cli"):
        for module in imported_modules(file):
            root = module.partition(".")[0]
            if root in sys.stdlib_module_names or root in ("mmseg_resnest", "mmseg_resnest_cli"):
                continue
            name = canonicalize_name(DISTRIBUTIONS.get(root, root))
            assert name in declared | extras, f"{file.name} imports {root}: not in pyproject.toml"


@pytest.mark.parametrize("folder", ["mmseg_resnest", "mmseg_resnest_cli", "benchmarks"])
def test_nothing_imports_torchvision_or_compiled_operators(folder: str) -> None:
    for file in sources(folder):
        for module in imported_modules(file):
            assert not re.match(r"torchvision\b|mmcv\.(ops|_ext)\b", module), f"{file}: {module}"


IMPORTS = "import cv2, mmseg_resnest; print(mmseg_resnest.__version__)"
LOADS = "import ctypes; ctypes.CDLL('libGL.so.1')"


@pytest.mark.long
def test_it_works_where_libgl_is_missing() -> None:
    """Hides each libGL.so.1 in a private mount namespace, as `make demo-nogl` does."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    present = subprocess.run([sys.executable, "-c", LOADS], capture_output=True).returncode == 0
    command = [sys.executable, "-c", IMPORTS]
    if present:
        if (
            not shutil.which("unshare")
            or subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode
        ):
            pytest.skip("libGL.so.1 is installed and this user may not hide it (unshare --mount)")
        script = (
            'for lib in $(/sbin/ldconfig -p | sed -n "s/.*libGL\\.so\\.1 .*=> //p"); do '
            'mount --bind /dev/null "$(readlink -f "$lib")" || exit 9; done; '
            '"$0" -c "$1" 2>/dev/null && exit 8; exec "$0" -c "$2"'
        )
        command = ["unshare", "--mount", "sh", "-c", script, sys.executable, LOADS, IMPORTS]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500)
    if result.returncode == 9:
        pytest.skip(f"libGL.so.1 cannot be hidden: {result.stderr.strip()}")
    assert (result.returncode, result.stdout.strip()) == (0, __version__), result.stderr


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
class TestMakefile:
    def make(self, folder: Path, *arguments: str) -> subprocess.CompletedProcess:
        for name in ("Makefile", "requirements.txt", "pyproject.toml"):
            shutil.copy(ROOT / name, folder)
        environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL")}
        return subprocess.run(
            ["make", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            env=environment,
            timeout=120,
        )

    def fake_python(self, folder: Path, *, version: bool, ensurepip: bool) -> Path:
        """A program that answers the Makefile's two questions to a Python as told."""
        python = folder / "fake_python"
        python.write_text(
            "#!/bin/sh\n"
            f'case "$*" in *version_info*) exit {int(not version)};; '
            f"*ensurepip*) exit {int(not ensurepip)};; esac\n"
        )
        python.chmod(0o755)
        return python

    @pytest.mark.parametrize(
        ("answers", "expected"),
        [
            (dict(version=False, ensurepip=True), "Python 3.10 or newer"),
            (dict(version=True, ensurepip=False), "apt install python3-venv"),
            (None, "error: no Python 3.10 to 3.14 found"),
        ],
    )
    def test_an_unusable_python_is_one_error(
        self, tmp_path: Path, answers: dict[str, bool] | None, expected: str
    ) -> None:
        python = "" if answers is None else self.fake_python(tmp_path, **answers)
        result = self.make(tmp_path, "venv", f"PYTHON={python}")
        assert result.returncode and expected in result.stderr
        assert not (tmp_path / ".venv").exists()

    def test_only_a_finished_installation_counts(self, tmp_path: Path) -> None:
        """A recorded one is left alone; an interrupted or outdated one is taken up again."""
        bin_folder = tmp_path / ".venv" / "bin"
        bin_folder.mkdir(parents=True)
        log = tmp_path / "log"
        for name in ("python", "base"):
            program = bin_folder / name
            program.write_text(
                f'#!/bin/sh\necho "{name} $*" >> "{log}"\n'
                f'case "$*" in *requirements.txt*|*without-torch.txt*) exit ${{FAIL:-0}};; esac\n'
            )
            program.chmod(0o755)
        base = f"PYTHON={bin_folder / 'base'}"

        assert self.make(tmp_path, "venv", base).returncode == 0
        calls = log.read_text()
        assert "--clear" not in calls
        order = [calls.index(text) for text in ("without-torch.txt", "torch==", "-e .")]
        assert order == sorted(order)
        assert "\ntorch==" not in (tmp_path / ".venv" / "without-torch.txt").read_text()

        log.write_text("")
        assert self.make(tmp_path, "venv", base).returncode == 0
        assert "pip" not in log.read_text()

        (tmp_path / ".venv" / "installed").write_text("an older list")
        assert self.make(tmp_path, "venv", base).returncode == 0
        assert "without-torch.txt" in log.read_text()

        (tmp_path / ".venv" / "installed").rename(tmp_path / ".venv" / "installed.part")
        log.write_text("")
        assert self.make(tmp_path, "venv", base).returncode == 0
        assert "base -m venv --clear" in log.read_text()
