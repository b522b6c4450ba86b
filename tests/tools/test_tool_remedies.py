# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What the errors of the tools tell people to type is typed, and then they do their work."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from advice import advises, refused
from in_process import run
from tool_runs import Toy, make_toy

from mmseg_resnest.engine import reproduce
from mmseg_resnest.engine.checkpoint_values import Refusal
from mmseg_resnest.engine.config import load_config
from mmseg_resnest.engine.run_folders import check_free, evaluation_folder
from mmseg_resnest.engine.start import find_start
from mmseg_resnest.engine.trained import checkpoint_in, evaluated_folder, load_trained
from mmseg_resnest.evaluation.image_counts import ImageCounts
from mmseg_resnest.export.publish import read_results
from mmseg_resnest_cli.demo import start_over
from mmseg_resnest_cli.demo_app import find_choices
from mmseg_resnest_cli.make_model_zoo import add_report
from mmseg_resnest_cli.startup import use_device

SHORT = """
train_cfg = dict(max_iters=2, val_interval=2)
param_scheduler = [dict(type="PolyLR", power=0.9, eta_min=0.0, begin=0, end=3, by_epoch=False)]
train_dataloader = dict(batch_size=2, num_workers=0)
default_hooks = dict(checkpoint=dict(interval=1))
"""
RUN = Path("work_dirs/a")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, scenes: Path) -> Iterator[Toy]:
    """A folder with a short run of ``a.py`` in it, and its evaluation."""
    toy = make_toy(tmp_path_factory.mktemp("remedies"), scenes)
    toy.variant("a", SHORT)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(toy.folder)
        run("train", "a.py")
        run("test", "a.py", RUN / "iter_2.pth")
        yield toy


def evaluate_again() -> None:
    run("test", "a.py", RUN / "iter_2.pth")


# --- runs and their folders -------------------------------------------------------------------


@pytest.mark.long
def test_a_folder_that_holds_a_run(place: Toy) -> None:
    cfg = load_config("a.py")
    shutil.copytree(RUN, "taken")
    with advises("engine/run_folders.py:check_free", "--resume", "another folder", "remove it"):
        check_free(cfg, "taken", None)
    check_free(cfg, "taken", "auto")
    check_free(cfg, "another", None)
    shutil.rmtree("taken")
    check_free(cfg, "taken", None)
    with advises("engine/run_folders.py:evaluation_folder", "name another folder") as told:
        evaluation_folder(cfg, RUN / "iter_2.pth", RUN, False)
    named = told.value.message.rpartition("such as ")[2]
    assert evaluation_folder(cfg, RUN / "iter_2.pth", named, False) == named


@pytest.mark.long
def test_checkpoints_to_resume_from(place: Toy) -> None:
    cfg = load_config("a.py")
    shutil.copytree(RUN, "damaged", symlinks=True)
    last = Path("damaged/iter_2.pth")
    last.write_bytes(last.read_bytes()[:-500])
    with advises("engine/start.py:find_start", "--resume without a file"):
        find_start(cfg, str(last), "damaged")
    found = find_start(cfg, "auto", "damaged").resume
    assert found is not None and torch.load(found.path, weights_only=False)["meta"]["iter"] == 1
    with advises("engine/checkpoint_values.py:because", "another checkpoint", "load_from=FILE"):
        Refusal("iter_2.pth").because("key x is wrong")


@pytest.mark.long
def test_a_run_that_differs(place: Toy) -> None:
    shutil.copytree(RUN, "work_dirs/changed")
    place.variant("changed", f"{SHORT}optim_wrapper = dict(optimizer=dict(lr=0.5))\n")
    command = ("train", "changed.py", "--resume", "work_dirs/changed/iter_1.pth")
    text = refused(
        "engine/resume_changes.py:compare_with_run", "Put back", "--allow-changes",
        command=command,
    )  # fmt: skip
    run(*command, "--allow-changes", *text.rpartition("--allow-changes ")[2].split())
    shutil.rmtree("work_dirs/changed")
    shutil.copytree(RUN, "work_dirs/changed")
    place.variant("changed", SHORT)
    run(*command)


@pytest.mark.long
def test_weights_without_a_head(place: Toy) -> None:
    weights = torch.load(RUN / "iter_2.pth", weights_only=False)["state_dict"]
    torch.save({k: v for k, v in weights.items() if k.startswith("backbone.")}, "backbone.pth")
    text = refused("engine/checkpoint.py:load_weights", "--cfg-options", "load_from=",
                   command=("test", "a.py", "backbone.pth"))  # fmt: skip
    option = text.rpartition("--cfg-options ")[2]
    run("train", "a.py", "--work-dir", "headless", "--cfg-options", option)


# --- evaluations ------------------------------------------------------------------------------


@pytest.mark.long
def test_evaluations_that_are_damaged(place: Toy) -> None:
    kept = Path(shutil.copytree(RUN, "kept"))
    results, counts = RUN / "test/results.json", RUN / "test/images.npz"
    results.write_text('{"task": 7}')
    refused("evaluation/results_file.py:read_results_file", "evaluate the run again",
            command=("report", RUN))  # fmt: skip
    (RUN / "test/examples/examples.json").write_text("{}")
    counts.unlink()
    with advises("evaluation/image_counts.py:load", "run mmseg-resnest test first"):
        ImageCounts.load(RUN)
    evaluate_again()
    run("report", RUN)
    assert ImageCounts.load(RUN)
    (RUN / "test/examples/examples.json").write_text('{"classes": 7}')
    refused("evaluation/results_file.py:read_examples", "evaluate the run again",
            command=("report", RUN))  # fmt: skip
    picture = next((RUN / "test/examples").glob("*_label.png"))
    shutil.copy(kept / "test/examples/examples.json", RUN / "test/examples")
    picture.unlink()
    refused("evaluation/results_file.py:own_file", "evaluate the run again",
            command=("report", RUN))  # fmt: skip
    other = json.loads((kept / "test/results.json").read_text())
    results.write_text(json.dumps({**other, "run_id": "another"}))
    with advises("evaluation/image_counts.py:_check_of_run", "evaluate the run again"):
        ImageCounts.load(RUN)
    evaluate_again()
    run("report", RUN)
    assert ImageCounts.load(RUN)


@pytest.mark.long
def test_scores_of_another_checkpoint(place: Toy) -> None:
    with advises("export/publish.py:read_results", "test this checkpoint"):
        read_results(RUN / "test/results.json", RUN / "iter_1.pth")
    run("test", "a.py", RUN / "iter_1.pth", "--work-dir", "first")
    assert read_results("first/results.json", RUN / "iter_1.pth")


@pytest.mark.long
def test_outputs_without_names(place: Toy) -> None:
    steps = "[*_base_.test_pipeline[:2], dict(type='PackSegInputs', meta_keys={})]"
    for keys in ("('ori_shape', 'img_shape')", "('img_path', 'ori_shape', 'img_shape')"):
        text = f"{SHORT}test_dataloader = dict(dataset=dict(pipeline={steps.format(keys)}))\n"
        place.variant("unnamed", text)
        command = ("test", "unnamed.py", RUN / "iter_2.pth", "--out", "o", "--work-dir", "named")
        if "img_path" in keys:
            run(*command)
        else:
            refused("engine/hooks/predictions.py:after_test_iter", "meta_keys", command=command)


@pytest.mark.long
def test_runs_in_place_of_a_config(place: Toy) -> None:
    Path("nothing").mkdir(exist_ok=True)
    with advises("engine/trained.py:checkpoint_in", "name the work folder of a run"):
        checkpoint_in("nothing")
    assert checkpoint_in(RUN).is_file()
    with advises("engine/trained.py:load_trained", "--cfg-options", "data_root=DIR"):
        load_trained(RUN, data_root="scenes")
    assert load_trained(RUN, ["data_root=scenes"]).cfg.data_root == "scenes"
    torch.save(torch.load(RUN / "iter_2.pth", weights_only=False)["state_dict"], "weights.pth")
    with advises("engine/trained.py:evaluated_folder", "name the folder"):
        evaluated_folder("weights.pth")
    assert evaluated_folder(RUN) == RUN
    with advises("engine/config/saved.py:read_saved_config", "name the config file as well"):
        load_trained("weights.pth")
    refused("cli/named_models.py:_find", "name a checkpoint behind it", command=("test", "a.py"))
    run("test", "a.py", "weights.pth", "--work-dir", "of_weights")
    run("test", RUN, "--work-dir", "of_run")


# --- options of single tools ------------------------------------------------------------------


@pytest.mark.long
def test_names_of_outputs(place: Toy) -> None:
    refused("cli/check_data.py:run", "end its name in .html",
            command=("check-data", "a.py", "--report", "a.txt"))  # fmt: skip
    run("check-data", "a.py", "--report", "a.html", codes=(0, 1))
    pytest.importorskip("onnxruntime")
    export = ("export-onnx", "a.py", RUN / "iter_2.pth", "a.onnx")
    Path("a.onnx").touch()
    refused("cli/export_onnx.py:run", "another name", "--force", command=export)
    run(*export, "--force")
    int8 = ("--int8", "scenes/images/training", "--num-calibration", "1")
    torchscript = [*export[:3], "b.torchscript", *int8]
    refused("cli/export_onnx.py:run", "must end in .onnx", command=torchscript)


def test_folders_of_the_demo(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with advises("cli/demo.py:start_over", "remove it", "another folder"):
        start_over(file)
    file.unlink()
    start_over(file)
    (tmp_path / "mine.txt").touch()
    with advises("cli/demo.py:start_over", "choose another folder"):
        start_over(tmp_path)
    start_over(tmp_path / "another")


def test_models_of_the_page() -> None:
    with advises("cli/demo_app.py:find_choices", "its checkpoint after the config"):
        find_choices(["a.py"], "cpu", False)
    assert find_choices(["a.py", "a.pth"], "cpu", False)
    runs = ["a.py", "run/last.pth", "a.py", "again/last.pth", "b/a.py", "again/last.pth"]
    assert len(find_choices(runs, "cpu", False)) == 3  # equal names of files


def test_reports_of_published_weights(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    report: dict[str, Any] = dict(name="fcn_resnest50_ade", protocols={}, version="1")
    file.write_text(json.dumps({**report, "as_published": False}))
    with advises("cli/make_model_zoo.py:add_report", "--cfg-options"):
        add_report({}, file)
    file.write_text(json.dumps({**report, "as_published": True}))
    assert add_report({}, file)
    with advises("engine/reproduce.py:_known", "choose another file"):
        reproduce._known(file, {})
    assert reproduce._known(tmp_path / "b.json", {}) == {}


def test_devices_of_a_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with advises("cli/startup.py:use_device", "--device cpu", "nvidia-smi"):
        use_device("cuda")
    use_device("cpu")
    with advises("cli/startup.py:use_device", "CUDA_VISIBLE_DEVICES"):
        use_device("cuda:1", "pytorch")
    use_device(None, "pytorch")
