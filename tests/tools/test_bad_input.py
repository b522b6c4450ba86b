# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Bad input to train, test and predict: one clear error, exit code 2, and nothing written."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tool_runs import RunTool, Toy, Trained

# What is put into the config of the row (it inherits from toy.py), the arguments after the config
# ({ckpt}: a checkpoint that fits), and what the error must say.
CONFIGS = {
    "unknown_head": (
        "model = dict(decode_head=dict(type='FCNHed'))",
        ["model.decode_head.type", "FCNHed", "did you mean FCNHead"],
    ),
    "unknown_data_set": (
        "train_dataloader = dict(dataset=dict(type='ScenesDatset'))",
        ["train_dataloader.dataset.type", "ScenesDataset"],
    ),
    "unknown_transform": (
        "val_dataloader = dict(dataset=dict(pipeline=[dict(type='Flipp')]))",
        ["val_dataloader.dataset.pipeline.0.type", "Flipp"],
    ),
    "wrong_registry": (
        "train_cfg = dict(type='ResNeSt')",
        ["train_cfg.type", "no loop called ResNeSt", "ResNeSt is a model"],
    ),
    "unknown_option": (
        "model = dict(backbone=dict(dept=18))",
        ["model.backbone.dept", "did you mean depth"],
    ),
    "unknown_option_of_a_base_class": (
        "val_dataloader = dict(dataset=dict(dataroot='x'))",
        ["val_dataloader.dataset.dataroot", "did you mean data_root"],
    ),
    "unknown_loader_key": (
        "train_dataloader = dict(num_worker=2)",
        ["train_dataloader.num_worker", "did you mean num_workers"],
    ),
    "bad_value": (
        "model = dict(backbone=dict(depth=19))",
        ["config key model", "19"],
    ),
    "no_model": ("model = None", ["has no model"]),
    "zero_batch": (
        "train_dataloader = dict(batch_size=0)",
        ["train_dataloader.batch_size", "not 0"],
    ),
    "missing_data": (
        "train_dataloader = dict(dataset=dict(data_root='nowhere'))",
        ["nowhere", "data/README.md"],
    ),
    "empty_data": (
        "train_dataloader = dict(dataset=dict(data_prefix=dict(img_path='EMPTY')))",
        ["empty"],
    ),
    "missing_base": ("_base_ = 'other.py'", ["_base_", "other.py"]),
    "syntax": ("model = dict(", ["syntax.py, line 2"]),
    "name": ("x = undefined_name", ["name.py, line 2", "undefined_name"]),
    "import": ("custom_imports = dict(imports=['no_such_module'])", ["no_such_module"]),
    "load_from": ("load_from = 'no.pth'", ["load_from", "no.pth", "does not exist"]),
}


def _listing(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if "__pycache__" not in p.parts}


@pytest.mark.parametrize("name", CONFIGS)
def test_config(name: str, toy: Toy, run_tool: RunTool) -> None:
    text, wanted = CONFIGS[name]
    config = toy.variant(name, text)
    empty = toy.folder / "empty"
    empty.mkdir()
    config.write_text(config.read_text().replace("EMPTY", str(empty)))
    if name == "missing_base":
        config.write_text(text)
    before = _listing(toy.folder)
    error = run_tool("train.py", config.name, cwd=toy.folder).error()
    for part in wanted:
        assert part in error
    assert _listing(toy.folder) == before


ARGUMENTS = {
    "no config": (["train.py"], ["config", "--help"]),
    "unknown argument": (["train.py", "toy.py", "--workdir", "x"], ["--workdir"]),
    "config does not exist": (["train.py", "toyy.py"], ["toyy.py", "did you mean toy.py"]),
    "config is a folder": (["train.py", "."], ["is a folder"]),
    "config is no config": (["train.py", "scenes/scenes.txt"], ["scenes.txt"]),
    "option without value": (["train.py", "toy.py", "--cfg-options", "seed"], ["KEY=VALUE"]),
    "option of no key": (
        ["train.py", "toy.py", "--cfg-options", "train_cfg.max_iter=5"],
        ["train_cfg.max_iter", "did you mean train_cfg.max_iters"],
    ),
    "option of no top-level key": (
        ["train.py", "toy.py", "--cfg-options", "optim_wraper.type=x"],
        ["optim_wraper", "did you mean optim_wrapper"],
    ),
    "variable of the file": (
        ["train.py", "toy.py", "--cfg-options", "norm_cfg.type=BN"],
        ["norm_cfg is a variable"],
    ),
    "text for a number": (
        ["train.py", "toy.py", "--cfg-options", "train_cfg.max_iters=many"],
        ["train_cfg.max_iters=many", "a number"],
    ),
    "value for a dictionary": (
        ["train.py", "toy.py", "--cfg-options", "model.backbone=resnest50"],
        ["model.backbone=resnest50", "a dictionary"],
    ),
    "index out of range": (
        ["train.py", "toy.py", "--cfg-options", "param_scheduler.3.power=1"],
        ["list of 1"],
    ),
    "open bracket": (
        ["train.py", "toy.py", "--cfg-options", "tta_model.scales=[1,2"],
        ["brackets"],
    ),
    "data root is no folder": (
        ["train.py", "toy.py", "--data-root", "nowhere"],
        ["--data-root nowhere", "data/README.md"],
    ),
    "data root without the data": (
        ["train.py", "toy.py", "--data-root", "nothing"],
        ["nothing/scenes", "data/README.md"],
    ),
    "resume from nothing": (["train.py", "toy.py", "--resume", "no.pth"], ["no.pth"]),
    "resume from weights": (["train.py", "toy.py", "--resume", "weights.pth"], ["weights.pth"]),
    "launcher without processes": (
        ["train.py", "toy.py", "--launcher", "pytorch"],
        ["dist_train.sh"],
    ),
    "work dir below a file": (
        ["train.py", "toy.py", "--work-dir", "toy.py/x"],
        ["--work-dir", "toy.py is a file"],
    ),
    "work dir is a file": (["train.py", "toy.py", "--work-dir", "toy.py"], ["--work-dir toy.py"]),
    "checkpoint does not exist": (["test.py", "toy.py", "no.pth"], ["no.pth", "does not exist"]),
    "checkpoint is a folder": (["test.py", "toy.py", "scenes"], ["scenes", "is a folder"]),
    "checkpoint is empty": (["test.py", "toy.py", "empty.pth"], ["empty.pth"]),
    "checkpoint is none": (["test.py", "toy.py", "toy.py"], ["toy.py"]),
    "checkpoint runs code": (["test.py", "toy.py", "evil.pth"], ["evil.pth", "refused"]),
    "checkpoint to predict with runs code": (
        ["predict.py", "toy.py", "evil.pth", "a.png", "--out", "o"],
        ["evil.pth", "refused"],
    ),
    "checkpoint to convert runs code": (
        ["convert_checkpoint.py", "evil.pth", "converted.pth"],
        ["evil.pth", "refused"],
    ),
    "checkpoint to resume runs code": (
        ["train.py", "toy.py", "--resume", "evil.pth"],
        ["evil.pth", "refused"],
    ),
    "checkpoint to start from runs code": (
        ["train.py", "toy.py", "--cfg-options", "load_from=evil.pth"],
        ["evil.pth", "refused"],
    ),
    "checkpoint of the stack's backbone runs code": (
        ["train.py", "evil_backbone.py"],
        ["evil.pth", "refused"],
    ),
    "name of published weights": (
        ["test.py", "toy.py", "deeplab_resnest101_ad"],
        ["did you mean 'deeplab_resnest101_ade'"],
    ),
    "name of published weights to start from": (
        ["train.py", "toy.py", "--cfg-options", "load_from=resnest5"],
        ["config key load_from", "did you mean 'resnest50'"],
    ),
    "checkpoint of another model": (
        ["test.py", "toy.py", "other.pth"],
        ["other.pth", "backbone.stem.0.weight"],
    ),
    "checkpoint of other classes": (
        ["test.py", "toy.py", "classes.pth"],
        ["classes.pth", "decode_head.conv_seg.weight"],
    ),
    "no test-time augmentation": (
        ["test.py", "no_tta.py", "{ckpt}", "--tta"],
        ["--tta", "no tta_model"],
    ),
    "label maps below a file": (
        ["test.py", "toy.py", "{ckpt}", "--work-dir", "work", "--out", "toy.py/labels"],
        ["--out"],
    ),
    "image does not exist": (
        ["predict.py", "toy.py", "{ckpt}", "no.jpg", "--out", "o"],
        ["no.jpg"],
    ),
    "folder without images": (
        ["predict.py", "toy.py", "{ckpt}", "nothing", "--out", "o"],
        ["holds no image"],
    ),
    "opacity": (
        ["predict.py", "toy.py", "{ckpt}", "a.png", "--out", "o", "--opacity", "2"],
        ["--opacity 2"],
    ),
    "no such device": (
        ["predict.py", "toy.py", "{ckpt}", "a.png", "--out", "o", "--device", "cuda:99"],
        ["cuda:99"],
    ),
    "no device": (
        ["predict.py", "toy.py", "{ckpt}", "a.png", "--out", "o", "--device", "abacus"],
        ["abacus"],
    ),
    "no output folder": (["predict.py", "toy.py", "{ckpt}", "a.png"], ["--out"]),
}


class _Evil:
    def __reduce__(self) -> tuple:
        return os.system, ("touch executed",)


@pytest.fixture
def full_toy(toy: Toy, trained: Trained) -> Toy:
    """The toy folder with files that are wrong in many ways."""
    folder = toy.folder
    (folder / "nothing").mkdir()
    (folder / "empty.pth").touch()
    toy.variant("no_tta", "tta_model = None")
    init_cfg = "dict(type='Pretrained', checkpoint='evil.pth')"
    toy.variant("evil_backbone", f"model = dict(backbone=dict(init_cfg={init_cfg}))")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "a.png")
    weights = torch.load(trained.checkpoint, weights_only=False)["state_dict"]
    torch.save(weights, folder / "weights.pth")
    torch.save({"state_dict": weights, "extra": _Evil()}, folder / "evil.pth")
    other = {k: v for k, v in weights.items() if not k.startswith("backbone.stem.0")}
    torch.save(other, folder / "other.pth")
    fewer = {k: v[:5] if "conv_seg" in k else v for k, v in weights.items()}
    torch.save(fewer, folder / "classes.pth")
    return toy


@pytest.mark.parametrize("name", ARGUMENTS)
def test_argument(name: str, full_toy: Toy, trained: Trained, run_tool: RunTool) -> None:
    (tool, *args), wanted = ARGUMENTS[name]
    before = _listing(full_toy.folder)
    args = [arg.replace("{ckpt}", str(trained.checkpoint)) for arg in args]
    error = run_tool(tool, *args, cwd=full_toy.folder).error()
    for part in wanted:
        assert part in error
    created = _listing(full_toy.folder) - before
    # The second of two output folders is found out after the first was made, still empty.
    assert created <= {"work"}


BROKEN_WORKERS = {
    "exits": ("os._exit(1)", ["data loading worker", "num_workers=0"]),
    "is killed": ("os.kill(os.getpid(), 9)", ["data loading worker", "num_workers=0"]),
    "raises": ("raise ValueError('bad pixel')", ["worker", "ValueError: bad pixel", "broken_step"]),
    "is told": ("raise UserError('file x is broken')", ["error: file x is broken\n"]),
}


@pytest.mark.parametrize("name", BROKEN_WORKERS)
def test_a_worker_that_dies(name: str, toy: Toy, run_tool: RunTool) -> None:
    code, wanted = BROKEN_WORKERS[name]
    (toy.folder / "broken_step.py").write_text(
        f"""import os
from mmseg_resnest.errors import UserError
from mmseg_resnest.registry import TRANSFORMS


@TRANSFORMS.register_module()
class Broken:
    def __call__(self, sample):
        {code}
"""
    )
    config = toy.variant(
        "broken",
        """custom_imports = dict(imports=['broken_step'])
train_dataloader = dict(dataset=dict(pipeline=[dict(type='Broken')]))""",
    )
    run = run_tool(
        "train.py", config.name, "--work-dir", "w", cwd=toy.folder,
        env={"PYTHONPATH": str(toy.folder)},
    )  # fmt: skip
    error = run.error()
    for part in wanted:
        assert part in error
    if name == "raises":
        log = next((toy.folder / "w").glob("*/*.log")).read_text()
        assert "Original Traceback" in log
