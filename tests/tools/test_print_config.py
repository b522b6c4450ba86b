# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""tools/print_config.py as a user runs it."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.config import Config

from mmseg_resnest_cli import main
from mmseg_resnest_cli.main import parser_of

ROOT = Path(__file__).parents[2]
BASE = "configs/fcn_resnest50_ade20k.py"


@pytest.fixture
def run(monkeypatch):
    """Runs the tool in this process: (exit code, stdout, stderr)."""
    monkeypatch.chdir(ROOT)

    def run_it(*args: str) -> tuple[int, str, str]:
        # Not pytest's capture: loggers keep the streams they were given, and it closes its own.
        out, err = io.StringIO(), io.StringIO()
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as exit_info,
        ):
            main("print-config", args)
        return exit_info.value.code, out.getvalue(), err.getvalue()

    return run_it


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """A new experiment in three lines of inheritance."""
    path = tmp_path / "experiment.py"
    path.write_text(
        f"_base_ = {str(ROOT / BASE)!r}\n"
        "model = dict(backbone=dict(norm_eval=True))\n"
        "optim_wrapper = dict(optimizer=dict(lr=0.005))\n"
    )
    return path


def test_output_is_the_resolved_config(run, tmp_path, experiment):
    code, out, err = run(str(experiment), "--cfg-options", "train_dataloader.batch_size=2")
    assert code == 0, err
    assert "\x1b" not in out
    copy = tmp_path / "copy.py"
    copy.write_text(out)
    expected = Config.fromfile(experiment)
    expected.train_dataloader.batch_size = 2
    assert Config.fromfile(copy).to_dict() == expected.to_dict()
    assert expected.model.backbone.arch == "resnest50"


def test_diff_shows_only_the_changes(run, experiment):
    code, out, err = run(str(experiment), "--diff", BASE)
    assert code == 0, err
    changes = [line for line in out.splitlines() if line[:1] in "+-"]
    assert changes[:2] == [f"--- {BASE}", f"+++ {experiment}"]
    assert [line.replace(" ", "") for line in changes[2:]] == [
        "+norm_eval=True,",
        "-optimizer=dict(lr=0.01,momentum=0.9,type='SGD',weight_decay=0.0001),",
        "+optimizer=dict(lr=0.005,momentum=0.9,type='SGD',weight_decay=0.0001),",
    ]


@pytest.mark.long
def test_colours_on_a_terminal_only():
    """The real thing, in its own process on a pseudo-terminal."""
    master, slave = pty.openpty()
    environment = {k: v for k, v in os.environ.items() if k != "NO_COLOR"}
    environment["PYTHONPATH"] = str(ROOT)
    process = subprocess.Popen(
        [sys.executable, "tools/print_config.py", BASE], cwd=ROOT, stdout=slave, env=environment
    )
    os.close(slave)
    chunks = []
    try:
        while chunk := os.read(master, 65536):
            chunks.append(chunk)
    except OSError:  # the terminal is closed
        pass
    finally:
        os.close(master)
    assert process.wait(60) == 0
    assert b"\x1b[" in b"".join(chunks)


@pytest.mark.parametrize(
    ("name", "text", "word"),
    [
        ("missing.py", None, "missing.py"),
        ("broken.py", "model = dict(\n", "broken.py"),
        ("orphan.py", "_base_ = 'nowhere.py'\n", "nowhere.py"),
        ("unknown.py", "model = dict(type='NoSuchSegmentor')\n", "NoSuchSegmentor"),
    ],
)
@pytest.mark.parametrize("as_base", [False, True], ids=["config", "diff"])
def test_bad_config_is_one_clear_error(run, tmp_path, name, text, word, as_base):
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    code, out, err = run(*([BASE, "--diff", str(path)] if as_base else [str(path)]))
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and word in err


@pytest.mark.parametrize(
    ("given", "option", "named"),
    [
        ("--amp", "--amp", "--resolved train"),
        ("--resolved --tta", "--tta", "--resolved test"),
        ("--resolved test --seed 3", "--seed", "--resolved train"),
        ("--work-dir x", "--work-dir", "--resolved train"),
    ],
)
def test_options_of_a_run_need_resolved(run, given, option, named):
    code, out, err = run(BASE, *given.split())
    assert (code, out) == (2, "")
    assert option in err and named in err


def test_resolved_takes_every_option_of_train():
    train, ours = (
        {option for action in parser_of(name)._actions for option in action.option_strings}
        for name in ("train", "print-config")
    )
    assert train <= ours


def test_resolved_shows_what_the_options_change(run, tmp_path):
    options = ("--work-dir", str(tmp_path / "run"), "--seed", "5", "--amp", "--auto-scale-lr")
    options += ("--teacher", "large")
    code, out, err = run(BASE, "--resolved", *options, "--log-to", "wandb")
    assert code == 0, err
    copy = tmp_path / "copy.py"
    copy.write_text(out)
    cfg = Config.fromfile(copy)
    assert cfg.work_dir == str(tmp_path / "run")
    assert cfg.randomness.seed == 5
    assert cfg.numerics.fused is True
    assert cfg.distillation.teacher == "large" and len(cfg.distillation.losses) == 2
    assert cfg.auto_scale_lr.enable is True
    assert cfg.optim_wrapper.type in ("AmpOptimWrapper", "BFloat16OptimWrapper")
    assert "wandb" in [backend.get("service") for backend in cfg.visualizer.vis_backends]
    assert not (tmp_path / "run").exists()
    code, out, err = run(BASE, "--resolved", "test", "--tta", "--diff", BASE)
    assert code == 0, err
    assert any(line.startswith("+") and "MultiScaleGridTTA" in line for line in out.splitlines())
