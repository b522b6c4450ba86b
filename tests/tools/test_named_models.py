# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Each command with each way to name a model: what it takes, and how it refuses what it cannot."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from advice import refused
from hub_server import TOKEN, Hub, serving
from in_process import catch_services, run
from PIL import Image
from tool_runs import make_toy
from user_errors import printed_error, raises_user_error

from mmseg_resnest import load_segmentor
from mmseg_resnest.engine.trained import checkpoint_in, load_trained
from mmseg_resnest.weights import hashes
from mmseg_resnest_cli.main import parser_of
from mmseg_resnest_cli.named_models import name_model

#: Names of a trained model, and the words of a command line for each.
FORMS = {
    "a config with its checkpoint": ("toy.py", "work_dirs/toy/iter_6.pth"),
    "a config with its run": ("toy.py", "work_dirs/toy"),
    "a config with a published folder": ("toy.py", "published"),
    "a run folder": ("work_dirs/toy",),
    "a checkpoint alone": ("work_dirs/toy/best.pth",),
    "an exported file": ("toy.onnx",),
    "a published folder": ("published",),
    "a model on a hub": ("hf://me/net",),
    "a config with weights on a hub": ("toy.py", "hf://me/net@main"),
}
#: The rest of each command line, and the code of the error for the forms that it cannot take.
COMMANDS: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "predict": (("photo.png", "--out", "OUT"), {}),
    "serve": ((), {}),
    "demo-app": ((), {}),
    "test": (
        ("--work-dir", "OUT"),
        dict.fromkeys(("an exported file", "a published folder", "a model on a hub"), "argument"),
    ),
    "label-errors": (
        ("--out", "OUT/found"),
        dict.fromkeys(("an exported file", "a published folder", "a model on a hub"), "argument"),
    ),
    "export-onnx": (
        ("OUT/again.onnx", "--images", "photo.png"),
        {"an exported file": "argument"},
    ),
    "publish-model": (("OUT/again",), {"an exported file": "argument"}),
    "benchmark": (
        ("--seconds", "0.01", "--shape", "32", "32"),
        dict.fromkeys(("an exported file", "a published folder", "a model on a hub"), "argument"),
    ),
    "report": (
        ("--out", "OUT/report.html"),
        {"an exported file": "argument", "a published folder": "run", "a model on a hub": "run"},
    ),
    "compare-runs": (
        ("work_dirs/toy",),
        {
            "an exported file": "argument",
            "a published folder": "not-found",
            "a model on a hub": "run",
        },
    ),
}
#: Commands on results, which read no model.
OF_RESULTS = ("report", "compare-runs")


@dataclass(frozen=True)
class Made:
    """A folder with a trained toy run and what was made from it."""

    folder: Path
    said: str
    hub: Hub


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, scenes: Path) -> Iterator[Made]:
    folder = tmp_path_factory.mktemp("named")
    make_toy(folder, scenes)
    (folder / "photo.png").symlink_to(next((scenes / "images" / "validation").glob("*.png")))
    with pytest.MonkeyPatch.context() as patch, serving(folder) as hub:
        patch.chdir(folder)
        patch.setenv("HF_TOKEN", TOKEN)
        options = ["train_dataloader.num_workers=0"]
        run("train", "toy.py", "--cfg-options", *options)
        said = run("test", "work_dirs/toy")
        run("export-onnx", "work_dirs/toy", "toy.onnx", "--images", "photo.png")
        run("publish-model", "work_dirs/toy", "published")
        run("publish-model", "published", "--push", "me/net")
        yield Made(folder, said, hub)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_takes_each_form(
    command: str, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, subtests
) -> None:
    rest, wrong = COMMANDS[command]
    served = catch_services(monkeypatch)
    for number, (form, words) in enumerate(FORMS.items()):
        if len(words) > 1 and command != "predict":  # all of them read the two arguments alike
            continue
        with subtests.test(form=form):
            out = tmp_path / str(number)
            out.mkdir()
            line = [*words, *(word.replace("OUT", os.fspath(out)) for word in rest)]
            if form in wrong:
                code, text = printed_error(run(command, *line, codes=(2,)))
                assert code == wrong[form]
                assert words[0] in text
                assert not list(out.iterdir())
                continue
            said = run(command, *line)
            if command in ("serve", "demo-app"):
                assert len(served.pop().classes) == 12
            elif command not in ("benchmark", "compare-runs"):
                assert any(out.iterdir())
            if words[-1] == "work_dirs/toy" and command not in (*OF_RESULTS, "demo-app"):
                assert "best_mIoU" in said


def test_a_run_is_its_best_checkpoint_or_else_its_newest(made: Made, tmp_path: Path) -> None:
    best = (made.folder / "work_dirs" / "toy" / "best.pth").resolve()
    assert checkpoint_in("work_dirs/toy").samefile(best)
    assert best.name in made.said
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    with raises_user_error("not-found", "run"):
        checkpoint_in(run_folder)
    for name in ("iter_6.pth", best.name):  # as a file system without links has them
        os.link(made.folder / "work_dirs" / "toy" / name, run_folder / name)
        assert checkpoint_in(run_folder).name == name
    (run_folder / best.name).unlink()
    (run_folder / "last.pth").symlink_to("iter_6.pth")
    assert checkpoint_in(run_folder) == run_folder / "iter_6.pth"


def test_one_process_says_which_checkpoint_is_taken(
    made: Made, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    args = Namespace(config="work_dirs/toy", checkpoint=None, cfg_options=[], data_root=None)
    for process in ("0", "1"):  # of srun, before it is asked for a rank
        monkeypatch.setenv("SLURM_PROCID", process)
        name_model(args, "")
        assert ("taken" in capsys.readouterr().out) == (process == "0")


def test_a_test_keeps_the_uncertainty_of_its_example_images(made: Made, tmp_path: Path) -> None:
    run("test", "work_dirs/toy", "--work-dir", tmp_path / "test")
    folder = tmp_path / "test" / "examples"
    model = load_segmentor("work_dirs/toy", device="cpu")
    images = json.loads((folder / "examples.json").read_text())["images"]
    assert len(images) == 3
    for entry in images:
        path = made.folder / "scenes" / "images" / "validation" / entry["name"]
        found = np.asarray(Image.open(folder / f"{entry['file']}_uncertainty.png"))
        expected = 255 * model(path).uncertainty()
        assert np.abs(found - expected).max() < 2  # the network of a test is folded
    run("report", tmp_path / "test", "--out", tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text().count('"uncertainty": "data:image/png') == 3
    run("test", "work_dirs/toy", "--work-dir", tmp_path / "test", "--tta")
    assert not list(folder.glob("*_uncertainty.png"))  # of another evaluation


def test_all_forms_give_the_same_labels(made: Made) -> None:
    expected = load_segmentor("toy.py", "work_dirs/toy/best.pth", "cpu")("photo.png").labels
    for words in (("work_dirs/toy",), ("work_dirs/toy/best.pth",), ("published",), ("hf://me/net",),
                  ("toy.py", "work_dirs/toy"), ("toy.py", "published"),
                  ("toy.py", "hf://me/net")):  # fmt: skip
        assert np.array_equal(load_segmentor(*words, device="cpu")("photo.png").labels, expected)
    exported = load_segmentor("toy.onnx")("photo.png").labels
    assert (exported == expected).mean() > 0.999


def test_weights_of_a_hub_are_hashed_once(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    plain = hashes.hex_digests

    def digests(file: Any, *algorithms: str) -> list[str]:
        read.append(Path(file.name).name)
        return plain(file, *algorithms)

    monkeypatch.setattr(hashes, "hex_digests", digests)
    for _ in range(2):  # when it is fetched, or there
        read.clear()
        load_segmentor("hf://me/net", device="cpu")
        assert sum("model.safetensors" in name for name in read) == 1


def test_an_exported_model_is_named_alone(made: Made, tmp_path: Path) -> None:
    words = ["photo.png", "--out", tmp_path]
    refused("inference/load.py:checkpoint_file", "name it alone",
            command=["predict", "toy.py", "toy.onnx", *words])  # fmt: skip
    run("predict", "toy.onnx", *words)
    code, text = printed_error(run("predict", "published/config.json", *words, codes=(2,)))
    assert code == "argument-missing"
    assert "the folder published" in text  # which another test predicts with


def test_what_was_exported_is_named_by_its_source(made: Made, tmp_path: Path) -> None:
    refused("cli/export_onnx.py:run", "is an exported file", "the run",
            command=["export-onnx", "toy.onnx", tmp_path / "again.onnx"])  # fmt: skip
    refused("cli/publish_model.py:run", "is an exported file", "the run",
            command=["publish-model", "toy.onnx", tmp_path / "again"])  # fmt: skip
    assert not list(tmp_path.iterdir())  # of the run, ``made`` has made both


def test_runs_record_the_commit_of_what_they_take_from_a_hub(made: Made, tmp_path: Path) -> None:
    there = made.hub.repos["me/net"]
    name = f"hf://me/net@{there.branches['main']}"
    run("test", "toy.py", "hf://me/net", "--work-dir", tmp_path / "test")
    result = json.loads((tmp_path / "test" / "results.json").read_text())
    first = json.loads(Path("work_dirs/toy/test/results.json").read_text())
    assert (result["checkpoint"], result["mIoU"]) == (name, first["mIoU"])
    said = run(
        *("train", "toy.py", "--work-dir", tmp_path / "run", "--cfg-options"),
        *("load_from=hf://me/net", "train_dataloader.num_workers=0", "train_cfg.max_iters=1"),
        "model.backbone.init_cfg=dict(type='Pretrained', checkpoint='hf://me/net@main')",
    )
    assert said.count(name) >= 1
    path = Path(run("weights", "fetch", "hf://me/net").split()[-1])
    assert path.parts[-3:] == ("me--net", there.branches["main"], "model.safetensors")
    for text in (
        torch.load(tmp_path / "run" / "last.pth", weights_only=True)["meta"]["cfg"],
        (tmp_path / "run" / "toy.py").read_text(),
    ):
        assert text.count(name) == 2 and text.count("hf://") == 2
    with pytest.MonkeyPatch.context() as patch:  # a resumed run needs none of it
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("MMSEG_RESNEST_CACHE", str(tmp_path / "empty"))
        options = ["train_dataloader.num_workers=0", "train_cfg.max_iters=1"]
        options += ["load_from=hf://me/net"]
        run(
            "train", "toy.py", "--work-dir", tmp_path / "run", "--resume", "--cfg-options", *options
        )
        code, text = printed_error(run("train", "toy.py", "--work-dir", tmp_path / "new",
                                       "--cfg-options", *options, codes=(2,)))  # fmt: skip
    assert code == "download" and "hf://me/net" in text and not (tmp_path / "new").exists()


def test_a_model_is_pushed_from_each_form(made: Made, tmp_path: Path) -> None:
    photo, expected = "photo.png", load_segmentor("published", device="cpu")("photo.png").labels
    for number, words in enumerate((
        ("work_dirs/toy",), ("work_dirs/toy/best.pth",), ("toy.py", "work_dirs/toy"),
        ("hf://me/net",), ("work_dirs/toy", tmp_path / "here", "--revision", "v2"),
    )):  # fmt: skip
        said = run("publish-model", *words, "--push", f"me/n{number}", "--private")
        repo = made.hub.repos[f"me/n{number}"]
        (name,) = (line.split()[1] for line in said.splitlines() if line.startswith("pushed"))
        assert repo.private and name.endswith(repo.branches["v2" if number == 4 else "main"])
        labels = load_segmentor(name, device="cpu")(photo).labels
        assert np.array_equal(labels, expected)
    assert (tmp_path / "here" / "SHA256SUMS").is_file()
    card = repo.commits[repo.branches["v2"]]["README.md"].decode()
    assert 'load_segmentor("hf://me/n4")' in card and "trained on Scenes" in card
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", "hf_of_nobody")
        command = ["publish-model", "work_dirs/toy", tmp_path / "kept", "--push", "me/late"]
        command += ["--private", "--revision", "v3"]
        text = refused("cli/publish_model.py:run", "is written", "put it there by", command=command)
    assert "hf_of_nobody" not in text and "me/late" not in made.hub.repos
    run(*text.rpartition("mmseg-resnest ")[2].split())
    assert made.hub.repos["me/late"].private and "v3" in made.hub.repos["me/late"].branches
    refused("engine/config/load.py:load_config", "name a config", command=["train", "hf://me/net"])
    command = ["publish-model", "work_dirs/toy"]
    refused("cli/publish_model.py:_sort_out", "name the folder", "--push", command=command)
    command += [tmp_path / "a", "--private"]
    refused("cli/publish_model.py:_sort_out", "that --push names", command=command)
    assert not (tmp_path / "a").exists()
    for words, code in (
        (["work_dirs/toy", "--push", "net"], "argument"),
        (["toy.py", "--push", "me/net"], "argument-missing"),
        (["toy.onnx", "--push", "me/net"], "argument"),
    ):
        assert printed_error(run("publish-model", *words, codes=(2,)))[0] == code


def test_options_change_the_config_of_a_checkpoint(made: Made) -> None:
    cfg = load_trained("work_dirs/toy", ["test_dataloader.num_workers=3"]).cfg
    assert cfg.test_dataloader.num_workers == 3
    code, text = printed_error(
        run("predict", "toy.onnx", "photo.png", "--out", "o", "--cfg-options", "a=1", codes=(2,))
    )
    assert (code, "--cfg-options" in text) == ("config-conflict", True)


def test_a_checkpoint_of_another_iteration_is_not_that_of_the_results(made: Made) -> None:
    other = next(p for p in (made.folder / "work_dirs" / "toy").glob("iter_*.pth")
                 if p.name not in made.said and f"iter_{p.stem[5:]}" not in made.said)  # fmt: skip
    code, text = printed_error(run("report", other, "--out", "no.html", codes=(2,)))
    assert (code, other.name in text) == ("config-conflict", True)
    assert not Path("no.html").exists()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ("custom_imports = dict(imports=['os'])\n", "config-value"),
        ("model.backbone.depth = 50\n", "config-syntax"),
        ("work_dir = __import__('os').getcwd()\n", "config-syntax"),
        ("model = dict(type='subprocess.Popen', args=['true'])\n", "config-value"),
        ("text = 'x'\n", "config-value"),
        ("a = " + "[" * 5000 + "]" * 5000 + "\n", "config-syntax"),
        ("model = dict(type='EncoderDecoder', backbone=dict(type='ResNet', depth=152))\n",
         "config-value"),
        (None, "config-syntax"),
    ],
)  # fmt: skip
def test_a_config_in_a_checkpoint_is_data(
    change: str | None, code: str, made: Made, tmp_path: Path
) -> None:
    record = torch.load(made.folder / "work_dirs" / "toy" / "iter_6.pth", weights_only=True)
    record["meta"]["cfg"] = None if change is None else record["meta"]["cfg"] + change
    torch.save(record, tmp_path / "evil.pth")
    with raises_user_error(code, "evil.pth"):
        load_trained(tmp_path / "evil.pth")


def test_a_config_with_a_larger_model_takes_no_memory(made: Made, tmp_path: Path) -> None:
    record = torch.load(made.folder / "work_dirs" / "toy" / "iter_6.pth", weights_only=True)
    text = record["meta"]["cfg"].replace("channels=8", "channels=16000000")
    record["meta"]["cfg"] = text
    torch.save(record, tmp_path / "large.pth")
    with raises_user_error("checkpoint", "large.pth"):
        load_trained(tmp_path / "large.pth")


def test_a_checkpoint_may_stand_behind_options() -> None:
    args = parser_of("predict").parse_args(
        ["a.py", "--device", "cpu", "b.pth", "c.jpg", "--out", "o"]
    )
    assert (args.config, args.checkpoint, args.source) == ("a.py", "b.pth", "c.jpg")
    args = parser_of("predict").parse_args(["run", "c.jpg", "--out", "o"])
    assert (args.config, args.checkpoint, args.source) == ("run", None, "c.jpg")
