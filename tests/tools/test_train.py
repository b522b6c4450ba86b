# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""tools/train.py, dist_train.sh and slurm_train.sh, run as processes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from PIL import Image
from run_state import differences, final_state, load
from tool_runs import TOOLS, RunTool, Toy, Trained

from mmseg_resnest.engine.saving import HISTORY
from mmseg_resnest.evaluation.report import read_run
from mmseg_resnest.io.folder_lock import LOCK_FILE, FolderLock

SCORES = ("mIoU", "pixAcc", "mAcc")


def test_a_run_says_what_it_does_and_where_things_are(trained: Trained) -> None:
    out = trained.run.stdout
    assert re.search(r"^training +toy$", out, re.M)
    assert re.search(r"^data +6 images in scenes to train on$", out, re.M)
    assert re.search(r"^ +3 images in scenes to validate on$", out, re.M)
    assert re.search(r"^ +6/6 +\d\.\d{4} +\d\.\d{3}e-\d\d +\d", out, re.M)
    assert "work_dirs/toy/results.json" in out
    assert "mmseg-resnest test toy.py work_dirs/toy/best_mIoU_iter_" in out
    # The stack's pages stay in the log file.
    assert "Runtime environment" not in out
    assert "mmengine" not in out + trained.run.stderr
    assert trained.run.stderr == ""
    log = next(trained.work_dir.glob("*/*.log")).read_text()
    assert "Runtime environment" in log


def test_results_are_written(trained: Trained) -> None:
    results = json.loads((trained.work_dir / "results.json").read_text())
    assert [e["iteration"] for e in results["history"]] == [3, 6]
    best = max(results["history"], key=lambda e: e["mIoU"])
    assert {k: results[k] for k in (*SCORES, "iteration")} == best
    assert (trained.work_dir / results["best_checkpoint"]).is_file()
    assert results["last_checkpoint"] == "iter_6.pth"
    assert len(results["classes"]) == 12
    assert results["images"] == 3
    assert sum(map(sum, results["confusion_matrix"])) == results["labelled_pixels"]
    with Image.open(trained.work_dir / "curves.png") as curves:
        assert curves.format == "PNG"


RESNEST = """
model = dict(
    backbone=dict(
        _delete_=True,
        type="ResNeSt",
        arch=dict(
            blocks=(1, 1, 1, 1), radix=2, groups=1, base_width=4, stem_width=4, avd_first=False
        ),
        norm_cfg=norm_cfg,
    ),
    decode_head=dict(in_channels=2048),
)
train_dataloader = dict(sampler=dict(_delete_=True, type="ExactSampler"))
train_cfg = dict(max_iters=4, val_interval=2)
default_hooks = dict(checkpoint=dict(interval=2))
"""


@pytest.mark.long
def test_a_resnest_continues_bit_for_bit(toy: Toy, run_tool: RunTool) -> None:
    """On a CPU its feature maps lie channels last, which a checkpoint of either order goes with."""
    toy.variant("split", RESNEST.replace("norm_cfg=norm_cfg", "norm_cfg=dict(type='BN')"))
    whole, halves = (toy.folder / name for name in ("whole", "halves"))
    run_tool("train.py", "split.py", "--work-dir", whole, cwd=toy.folder).check()
    options = ["--work-dir", halves, "--cfg-options", "train_cfg.max_iters=2"]
    run_tool("train.py", "split.py", *options, cwd=toy.folder).check()
    error = run_tool("train.py", "split.py", *options[:2], "--resume", cwd=toy.folder).error()
    assert "train_cfg.max_iters is 4" in error and "--allow-changes" in error
    longer = ["--resume", "--allow-changes", "train_cfg.max_iters"]
    run = run_tool("train.py", "split.py", *options[:2], *longer, cwd=toy.folder).check()
    assert "resumed     at iteration 2" in run.stdout
    history = json.loads((halves / "results.json").read_text())["history"]
    assert [entry["iteration"] for entry in history] == [2, 4]
    assert differences(final_state(whole), final_state(halves)) == []
    weight = load(whole / "iter_4.pth")["state_dict"]["backbone.layer2.0.conv2.conv.weight"]
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    # Unless steps may not be fused.
    options = ["--work-dir", "plain", "--cfg-options", "numerics.fused=False"]
    options.append("train_cfg.max_iters=2")
    run_tool("train.py", "split.py", *options, cwd=toy.folder).check()
    plain = load(toy.folder / "plain" / "iter_2.pth")["state_dict"]
    assert plain["backbone.layer2.0.conv2.conv.weight"].is_contiguous()


def _numbers(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=False)["state_dict"]


def _printed(toy: Toy, run_tool: RunTool, *args: Any) -> dict[str, Any]:
    """What print-config --resolved says that the runner gets."""
    printed = run_tool("print_config.py", *args, "--resolved", cwd=toy.folder).check().stdout
    (toy.folder / "printed.py").write_text(printed, encoding="utf-8")
    return Config.fromfile(toy.folder / "printed.py").to_dict()


_COUNTED = """
import mmseg_resnest.engine.runner as runner, mmseg_resnest.weights.load as load
from mmseg_resnest.models import EncoderDecoder
counts, read, build = {"reads": 0, "builds": 0}, load._read_path, EncoderDecoder.__init__
def counted_read(*args, **options):
    counts["reads"] += 1
    return read(*args, **options)
def counted_build(*args, **options):
    counts["builds"] += 1
    return build(*args, **options)
load._read_path, EncoderDecoder.__init__ = counted_read, counted_build
close = runner.Runner.close
runner.Runner.close = lambda self: (print("counts:", counts), close(self))
"""


@pytest.mark.long
@pytest.mark.parametrize("start", ["resume", "load_from"])
def test_the_runner_gets_what_print_config_prints(
    start: str, trained: Trained, toy: Toy, run_tool: RunTool
) -> None:
    """And on the way there the model is built once, and the checkpoint read once."""
    checkpoint = trained.work_dir / "iter_3.pth"
    args = ["toy.py", "--work-dir", "run", "--auto-scale-lr"]
    if start == "resume":
        args += ["--seed", "3", "--resume", checkpoint]
        args += ["--allow-changes", "auto_scale_lr", "train_cfg.max_iters"]
        args += ["--cfg-options", "train_cfg.max_iters=4"]
    else:
        args += ["--amp", "--seed", "3"]
        args += ["--cfg-options", "train_cfg.max_iters=1", f"load_from={checkpoint}"]
    printed = _printed(toy, run_tool, *args)
    assert not (toy.folder / "run").exists()
    run = run_tool("train.py", *args, cwd=toy.folder, before=_COUNTED).check()
    assert printed == Config.fromfile(toy.folder / "run" / "toy.py").to_dict()
    assert "counts: {'reads': 1, 'builds': 1}" in run.stdout
    assert printed["load_from"] == str(checkpoint)
    assert printed["resume"] is (start == "resume")
    assert printed["randomness"]["seed"] == (0 if start == "resume" else 3)


def test_load_from_keeps_the_head_for_other_classes(
    trained: Trained, toy: Toy, run_tool: RunTool
) -> None:
    config = toy.variant(
        "two_classes",
        f"""
load_from = {str(trained.checkpoint)!r}
train_cfg = dict(max_iters=1)
model = dict(decode_head=dict(num_classes=2))
meta = dict(classes=("sky", "building"))
train_dataloader = dict(dataset=dict(metainfo=meta))
val_dataloader = dict(dataset=dict(metainfo=meta))
optim_wrapper = dict(optimizer=dict(lr=0.0))
""",
    )
    run_tool("train.py", config, "--work-dir", "w", cwd=toy.folder).check()
    before, after = _numbers(trained.checkpoint), _numbers(toy.folder / "w" / "iter_1.pth")
    assert after["decode_head.conv_seg.weight"].shape[0] == 2
    name = "backbone.layer1.0.conv1.weight"
    assert torch.equal(before[name], after[name])


def test_ctrl_c_says_how_to_go_on(toy: Toy, run_tool: RunTool) -> None:
    sent = []

    def interrupt(pid: int, stdout: str) -> None:
        if "4/2000" in stdout and not sent:
            sent.append(pid)
            os.kill(pid, signal.SIGINT)

    config = toy.variant("long", "default_hooks = dict(checkpoint=dict(interval=2))")
    run = run_tool(
        "train.py", config, "--cfg-options", "train_cfg.max_iters=2000", "train_cfg.val_interval=4",
        "param_scheduler.0.end=2001",
        cwd=toy.folder, when=interrupt,
    )  # fmt: skip
    assert run.returncode == 75, run.stderr
    saved = re.search(r"stopped by SIGINT; saved at iteration (\d+); .*--resume", run.stderr)
    assert saved is not None
    assert (toy.folder / "work_dirs" / "long" / f"iter_{saved[1]}.pth").is_file()
    assert "Traceback" not in run.stderr


def _bash(script: str, *args: str, env: dict[str, str] | None = None) -> Any:
    return subprocess.run(
        ["bash", TOOLS / script, *args],
        capture_output=True, text=True, timeout=120, env=env, check=False,
    )  # fmt: skip


@pytest.fixture
def stand_in(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Puts a shell script in place of a program; by default it prints its arguments."""

    def make(name: str, text: str = 'printf "%s\\n" "$@"') -> dict[str, str]:
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
        return {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}

    return make


@pytest.mark.parametrize(
    ("script", "args"),
    [
        ("dist_train.sh", ["toy.py"]),
        ("dist_train.sh", ["toy.py", "two"]),
        ("dist_test.sh", ["toy.py", "a.pth"]),
        ("slurm_train.sh", ["partition", "job"]),
    ],
)
def test_launchers_explain_their_arguments(script: str, args: list[str]) -> None:
    run = _bash(script, *args)
    assert run.returncode == 2
    assert run.stderr.startswith(f"error: usage: {script} ")


@pytest.mark.parametrize(
    ("script", "given", "restarts", "passed"),
    [
        ("dist_train.sh", "toy.py 2 --amp", 3, "toy.py --launcher pytorch --amp"),
        ("dist_test.sh", "toy.py a.pth 2 --tta", 0, "toy.py a.pth --launcher pytorch --tta"),
    ],
)
def test_launchers_start_torchrun(
    tmp_path: Path, stand_in: Callable[..., dict[str, str]],
    script: str, given: str, restarts: int, passed: str,
) -> None:  # fmt: skip
    env = {**stand_in("python"), "PYTHON": str(tmp_path / "python"), "PORT": "29511"}
    words = _bash(script, *given.split(), env=env).stdout.split()
    assert words[:2] == ["-m", "mmseg_resnest_cli.torchrun"]
    assert {
        *("--nproc-per-node=2", "--nnodes=1", f"--max-restarts={restarts}"),
        "--rdzv-endpoint=127.0.0.1:29511",
    } <= set(words)
    command = [f"{TOOLS}/{script[5:-3]}.py", *passed.split()]
    assert words[-len(command) :] == command


def test_slurm_asks_for_what_was_asked(stand_in: Callable[..., dict[str, str]]) -> None:
    env = {**stand_in("srun"), "GPUS": "16"}
    words = _bash("slurm_train.sh", "gpu", "job", "toy.py", "out", "--amp", env=env).stdout.split()
    assert {"--ntasks=16", "--ntasks-per-node=8", "--gres=gpu:8", "--partition=gpu"} <= set(words)
    assert words[-6:] == ["toy.py", "--work-dir", "out", "--launcher", "slurm", "--amp"]


@pytest.mark.parametrize("batch", [False, True])
def test_slurm_goes_on_where_a_run_was_stopped(
    tmp_path: Path, batch: bool, stand_in: Callable[..., dict[str, str]]
) -> None:
    """Stand-ins for srun, which ends with 75 twice, and scontrol."""
    calls = tmp_path / "calls"
    stand_in("srun", f'echo srun "$@" >> {calls}\n[ "$(grep -c srun {calls})" -gt 2 ] || exit 75')
    env = stand_in("scontrol", f'echo scontrol "$@" >> {calls}')
    if batch:
        env["SLURM_JOB_ID"] = "77"
    run = _bash("slurm_train.sh", "gpu", "job", "toy.py", env=env)
    lines = calls.read_text().splitlines()
    assert all("--signal=USR1@120" in line for line in lines if line.startswith("srun"))
    if batch:  # back into the queue; the job's next start resumes by itself
        assert run.returncode == 75
        assert lines[1:] == ["scontrol requeue 77"]
    else:
        assert run.returncode == 0
        assert ["--resume auto" in line for line in lines] == [False, True, True]


def test_a_folder_of_another_run_is_refused(toy: Toy, run_tool: RunTool) -> None:
    """Before anything is changed: not even the pointer of the earlier run is gone."""
    work_dir = toy.folder / "work"
    work_dir.mkdir()
    (work_dir / "last_checkpoint").write_text("iter_3.pth")
    with FolderLock(work_dir):
        before = sorted(os.listdir(work_dir))
        error = run_tool("train.py", "toy.py", "--work-dir", "work", cwd=toy.folder).error()
        assert sorted(os.listdir(work_dir)) == before
    assert f"--work-dir work: is in use by process {os.getpid()} on host" in error


def test_results_of_two_runs_never_mix(toy: Toy, run_tool: RunTool) -> None:
    first, second = (toy.folder / "work_dirs" / name for name in ("toy", "toy-2"))
    run_tool("train.py", "toy.py", cwd=toy.folder).check()
    before = {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}
    run = run_tool("train.py", "toy.py", "--seed", "1", cwd=toy.folder).check()
    assert re.search(r"^work dir +work_dirs/toy-2$", run.stdout, re.MULTILINE)
    assert "mmseg-resnest test toy.py work_dirs/toy-2/best_mIoU_iter_" in run.stdout
    again = run_tool("train.py", "toy.py", "--seed", "1", "--resume", cwd=toy.folder).check()
    assert "work_dirs/toy-2/iter_6.pth" in again.stdout
    assert {path: path.read_bytes() for path in first.rglob("*") if path.is_file()} == before
    assert not (toy.folder / "work_dirs" / "toy-3").exists()

    # Each folder holds the scores, the curves and the weights of one run.
    found = []
    for folder in (first, second):
        results = json.loads((folder / "results.json").read_text())
        notes = [json.loads(path.read_text()) for path in folder.glob("*/run.json")]
        saved = {load(path)["meta"]["run_id"] for path in folder.glob("*.pth")}
        assert {note["run_id"] for note in notes} == saved == {results["run_id"]}
        curves = read_run(folder)["curves"]
        history = load(folder / "iter_6.pth")["message_hub"]["log_scalars"]["train/loss"]
        means = history[HISTORY].cumsum(0) / torch.arange(1, 7)  # what is logged
        assert curves["loss"]["y"] == pytest.approx(means.tolist(), rel=1e-4)
        assert curves["mIoU"]["x"] == [entry["iteration"] for entry in results["history"]]
        scores = [entry["mIoU"] for entry in results["history"]]
        assert curves["mIoU"]["y"] == pytest.approx(scores, rel=1e-4)
        found.append((results["run_id"], curves["loss"]))
    assert found[0][0] != found[1][0] and found[0][1] != found[1][1]

    # A test goes to the run that it is of; a report leaves out that of another.
    run_tool("test.py", "toy.py", "work_dirs/toy-2/iter_6.pth", cwd=toy.folder).check()
    tested = json.loads((second / "test" / "results.json").read_text())
    assert tested["run_id"] == found[1][0] and not (first / "test").exists()
    assert len(read_run(second)["evaluations"]) == 2
    shutil.copytree(second / "test", first / "test")
    report = read_run(first)
    assert [one["title"] for one in report["evaluations"]] == ["best validation, iteration 3"]
    assert (report["left_out"], report["examples"]) == ([str(first / "test")], None)
    run = run_tool("report.py", "work_dirs/toy", cwd=toy.folder).check()
    assert "left out    work_dirs/toy/test" in run.stdout

    # A folder that the command line names is never another one, and is not written again.
    for tool in (("train.py", "toy.py"), ("test.py", "toy.py", "work_dirs/toy/iter_6.pth")):
        error = run_tool(*tool, "--work-dir", "work_dirs/toy-2", cwd=toy.folder).error()
        assert "--work-dir work_dirs/toy-2: " in error and "[output-exists]" in error


_KILLED_ONCE_IT_HAS_SAVED = """
import os, signal
_replace = os.replace
def replace(source, target):
    _replace(source, target)
    if str(target).endswith("iter_3.pth"):
        os.kill(os.getpid(), signal.SIGKILL)
os.replace = replace
"""


def test_the_lock_of_a_killed_run_is_taken_over(toy: Toy, run_tool: RunTool) -> None:
    run = run_tool("train.py", "toy.py", cwd=toy.folder, before=_KILLED_ONCE_IT_HAS_SAVED)
    assert run.returncode == -signal.SIGKILL
    assert (toy.folder / "work_dirs" / "toy" / LOCK_FILE).is_file()
    again = run_tool("train.py", "toy.py", "--resume", cwd=toy.folder).check()
    assert re.search(r"^lock +taken over from process \d+ on host", again.stdout, re.MULTILINE)
    assert not (toy.folder / "work_dirs" / "toy" / LOCK_FILE).exists()
