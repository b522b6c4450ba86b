# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The command ``mmseg-resnest`` of an installed wheel, used outside the repository."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tool_runs import ROOT, Run, RunTool, Toy

from mmseg_resnest.engine.config import find_config
from mmseg_resnest.version import __version__
from mmseg_resnest_cli.package import list_configs, list_other_configs

Command = Callable[..., Run]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what `pip install` makes of the repository's files."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE", "model-index.yml"):
        shutil.copy(ROOT / name, source)
    unwanted = shutil.ignore_patterns("__pycache__", "custom")
    for name in ("mmseg_resnest", "mmseg_resnest_cli", "configs", "tools"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=unwanted)
    target = tmp_path_factory.mktemp("installed")
    options = ["--no-deps", "--no-build-isolation", "--no-compile", "--no-index", "-q"]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", *options]
    done = subprocess.run(
        [*pip, "--target", str(target), str(source)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return target


@pytest.fixture(scope="module")
def run_script(installed: Path) -> Iterator[Command]:
    """Runs a script with the installed package in a folder."""
    run = RunTool(installed)
    environment = {"PYTHONPATH": str(installed)}
    yield lambda script, *args, cwd: run(str(script), *args, cwd=cwd, env=environment)
    run.close()


@pytest.fixture(scope="module")
def command(installed: Path, run_script: Command) -> Command:
    """Runs ``mmseg-resnest ARGUMENTS`` in a folder."""
    return functools.partial(run_script, installed / "bin" / "mmseg-resnest")


def test_the_wheel_has_the_configs_and_the_tools(installed: Path) -> None:
    inside = installed / "mmseg_resnest" / ".mim"
    assert not inside.is_symlink()
    for folder, endings in (("configs", (".py", ".yaml")), ("tools", (".py", ".sh"))):
        there = {p.relative_to(inside) for p in (inside / folder).rglob("*") if p.is_file()}
        here = {
            p.relative_to(ROOT)
            for p in (ROOT / folder).rglob("*")
            if p.suffix in endings and not {"__pycache__", "custom"} & set(p.parts)
        }
        assert here == there and len(here) > 10
        assert all((inside / p).read_bytes() == (ROOT / p).read_bytes() for p in here)
    assert (inside / "model-index.yml").is_file()


def test_the_list_names_every_tool(command: Command, tmp_path: Path) -> None:
    shown = command("--help", cwd=tmp_path).check().stdout
    assert command(cwd=tmp_path).check().stdout == shown
    lines = {line.split()[0]: line.split()[1:] for line in shown.splitlines() if line[:2] == "  "}
    scripts = [f for f in (ROOT / "tools").iterdir() if f.suffix in (".py", ".sh")]
    names = {f.stem.replace("_", "-") for f in scripts if f.name[0] != "_"} - {"make-model-zoo"}
    names.add("completion")
    assert set(lines) == names
    assert all(len(said) > 1 for said in lines.values()), "a tool does not say what it does"
    assert command("--version", cwd=tmp_path).check().stdout == f"mmseg-resnest {__version__}\n"


def test_configs_are_found_anywhere(command: Command, tmp_path: Path) -> None:
    names = command("configs", cwd=tmp_path).check().stdout.split()
    assert (
        names == [*list_configs(), *list_other_configs()] and "deeplabv3_resnest50_ade20k" in names
    )
    for name in ("fcn_resnest14_scenes", "configs/fcn_resnest14_scenes.py"):
        text = command("print-config", name, cwd=tmp_path).check().stdout
        assert "arch='resnest14'" in text
    assert " configs in mine;" in command("configs", "--copy", "mine", cwd=tmp_path).check().stdout
    own = tmp_path / "own.py"
    diff = ["--diff", "mine/fcn_resnest14_scenes.py"]
    for base in ("mine/fcn_resnest14_scenes.py", "mmseg_resnest::fcn_resnest14_scenes"):
        own.write_text(f"_base_ = {base!r}\ntrain_cfg = dict(max_iters=7)\n")
        assert "+train_cfg = dict(max_iters=7" in command(
            "print-config", "own.py", *diff, cwd=tmp_path
        ).check().stdout.replace("\n    ", "")
    said = command("configs", "--copy", "mine", cwd=tmp_path).error()
    assert "mine: exists" in said
    said = command("print-config", "fcn_resnest14_scene.py", cwd=tmp_path).error()
    assert "did you mean" in said and "fcn_resnest14_scenes.py" in said


def test_a_file_goes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = "configs/fcn_resnest14_scenes.py"
    assert find_config(name) == ROOT / name
    assert find_config("openmmlab") == Path("openmmlab")
    assert find_config("../configs/fcn_resnest14_scenes.py").parts[0] == ".."
    (tmp_path / "configs").mkdir()
    (tmp_path / name).write_text("x = 1\n")
    assert find_config(name) == Path(name)
    assert find_config("fcn_resnest14_scenes") == ROOT / name


def test_train_and_go_on_as_it_says(command: Command, toy: Toy) -> None:
    few = ["train_cfg.max_iters=2", "train_cfg.val_interval=2"]
    said = command("train", "toy.py", "--cfg-options", *few, cwd=toy.folder).check().stdout
    assert "tools/" not in said
    line = next(line for line in said.splitlines() if line.startswith("  mmseg-resnest test"))
    command(*line.split()[1:], cwd=toy.folder).check()
    assert (toy.folder / "work_dirs" / "toy" / "pictures").is_dir()


def test_mistakes(command: Command, tmp_path: Path) -> None:
    said = command("tran", cwd=tmp_path).error()
    assert said.startswith("error: there is no command tran; did you mean train")
    assert said.endswith("(see: mmseg-resnest --help) [argument]\n")
    assert "mmseg-resnest train --help" in command("train", "--x", "y", cwd=tmp_path).error()
    assert "mmseg-resnest weights list" in command("weights", "info", "x", cwd=tmp_path).error()
    assert "usage: dist_train.sh" in command("dist-train", cwd=tmp_path).error()
    assert command("completion", "fish", cwd=tmp_path).returncode == 2


def test_a_published_name_is_enough(run_script: Command, installed: Path, tmp_path: Path) -> None:
    """``load_segmentor(name)`` takes the installed config; without a network only that."""
    script = tmp_path / "load.py"
    script.write_text(
        "from unittest import mock\n"
        "from mmseg_resnest.inference import load, segmentor\n"
        "with mock.patch.object(segmentor, 'load_weights') as weights, "
        "mock.patch.object(segmentor, 'check_checkpoint'):\n"
        "    model = load.load_segmentor('fcn_resnest50_ade', device='cpu')\n"
        "assert 'fcn_resnest50_ade' in weights.call_args.args\n"
        "print(model.cfg.filename, len(model.classes))\n"
    )
    said = run_script(script, cwd=tmp_path).check().stdout.split()
    inside = installed / "mmseg_resnest" / ".mim" / "configs"
    assert said == [str(inside / "fcn_resnest50_ade20k.py"), "150"]


def test_completion(command: Command, tmp_path: Path) -> None:
    script = tmp_path / "complete.sh"
    script.write_text(command("completion", "bash", cwd=tmp_path).check().stdout)
    (tmp_path / "photo.jpg").touch()

    def complete(*words: str) -> set[str]:
        line = " ".join(f"'{word}'" for word in words)
        done = subprocess.run(
            ["bash", "-c", f". {script}; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; "
             '_shtab_mmseg_resnest; echo "${COMPREPLY[@]}"'],
            capture_output=True, text=True, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return set(done.stdout.split())

    assert complete("mmseg-resnest", "tr") == {"train"}
    assert complete("mmseg-resnest", "train", "--re") == {"--resume"}
    assert complete("mmseg-resnest", "weights", "in") == {"info"}
    assert complete("mmseg-resnest", "convert-checkpoint", "--layout", "pub") == {"published"}
    for shell in ("zsh", "tcsh"):
        assert "check-data" in command("completion", shell, cwd=tmp_path).check().stdout
