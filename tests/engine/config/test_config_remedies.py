# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What the errors of configs tell people to do is done, and then the config loads."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import mmcv.transforms
import mmseg.datasets.transforms as stack
import pytest
import torch
from advice import advises, helps
from mmengine.config import Config

from mmseg_resnest.datasets.transforms.kinds import REFUSED
from mmseg_resnest.engine.config import load_config
from mmseg_resnest.engine.config.check import check_config
from mmseg_resnest.engine.config.load import require
from mmseg_resnest.engine.config.options import apply_options, parse_cfg_options
from mmseg_resnest.engine.config.types import named_types

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
LOAD = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations")]
PACK = dict(type="PackSegInputs")
FLIP = dict(type="RandomFlip", prob=0.5)
CAMVID = f"_base_ = {str(CONFIGS / 'fcn_resnest14_camvid.py')!r}\n"


class Files:
    """Configs in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        return path


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


# --- files ----------------------------------------------------------------------------------


def test_the_config_that_was_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CONFIGS.parent)
    with advises("engine/config/load.py:_check_config_file") as told:
        load_config("configs/fcn_resnest14_camvidd.py")
    (name,) = re.findall(r"did you mean (\S+\.py)\?", told.value.message) or [
        told.value.message.split("did you mean ")[1].split(" or ")[0]
    ]
    load_config(name)


def test_a_folder_for_a_config(files: Files) -> None:
    folder = files.folder / "a.py"
    folder.mkdir()
    with advises("engine/config/data.py:read_config_text", "name a config file"):
        load_config(folder)
    load_config(files.write("b.py", "x = 1"))


def test_a_config_without_a_part(files: Files) -> None:
    config = files.write("a.py", "x = 1\n")
    helps("engine/config/load.py:require", "inherit it from a config in configs/",
          call=lambda: require(load_config(config), ["model"], "training"),
          remedy=lambda: files.write("a.py", CAMVID))  # fmt: skip


def test_two_styles_of_inheritance(files: Files) -> None:
    files.write("base.py", "x = 1\n")
    new = "from mmengine.config import read_base\nwith read_base():\n    from .base import *\n"
    both = files.write("both.py", f"_base_ = 'base.py'\n{new}")
    helps("engine/config/load.py:_check_python", "keep one of them",
          call=lambda: load_config(both), remedy=lambda: files.write("both.py", new))  # fmt: skip
    files.write("base.py", "_base_ = 'first.py'\n")
    files.write("first.py", "x = 1\n")
    helps("engine/config/load.py:_check_python", "here too",
          call=lambda: load_config(both),
          remedy=lambda: files.write("both.py", "_base_ = 'base.py'\n"))  # fmt: skip


def test_modules_that_are_not_found(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    (files.folder / "modules").mkdir()
    (files.folder / "modules/remedy_part_one.py").write_text("class Part:\n    pass\n")
    (files.folder / "modules/remedy_part_two.py").touch()
    config = files.write("a.py", "custom_imports = dict(imports=['remedy_part_one'])\n")
    plain = Config(dict(custom_imports=dict(imports=[])))
    option = parse_cfg_options(["custom_imports.imports=[remedy_part_two]"])
    base = "from mmengine.config import read_base\nwith read_base():\n    from .b import *\n"
    files.write("b.py", "x = 1\n")
    everything = files.write("c.py", f"{base}from remedy_part_one import *\n")
    relative = files.write("d.py", f"{base}from .modules.remedy_part_one import Part\n")
    with advises("engine/config/load.py:_explain_parse_error", "PYTHONPATH"):
        load_config(config)
    with advises("engine/config/options.py:_import_modules", "PYTHONPATH"):
        apply_options(plain, option)
    with advises("engine/config/load.py:_check_imports", "PYTHONPATH", "without the dot"):
        load_config(relative)
    monkeypatch.setattr(sys, "path", [str(files.folder / "modules"), *sys.path])
    load_config(config)
    apply_options(plain, option)
    load_config(files.write("d.py", f"{base}from remedy_part_one import Part\n"))
    with advises("engine/config/load.py:_check_imports"):
        load_config(everything)


def test_a_mapping_over_a_value(files: Files) -> None:
    files.write("base.yaml", "a: 1\n")
    config = files.write("c.yaml", "_base_: base.yaml\na: {b: 1}\n")
    text = '_base_: base.yaml\na: {"_delete_": true, b: 1}\n'
    cfg = helps("engine/config/data.py:_merge", '"_delete_": true',
                call=lambda: load_config(config), remedy=lambda: files.write("c.yaml", text),
    )  # fmt: skip
    assert cfg.a == dict(b=1)


def test_the_data_root_of_a_config_without_one(files: Files) -> None:
    text = "train_dataloader = dict(dataset=dict(type='CustomDataset', data_root='x'))\n"
    config = files.write("a.py", f"default_scope = 'mmseg_resnest'\n{text}")
    with advises("engine/config/load.py:load_config", "--cfg-options data_root=DIR"):
        load_config(config, data_root=files.folder)
    cfg = load_config(config, [f"data_root={files.folder}"])
    assert cfg.train_dataloader.dataset.data_root == str(files.folder)
    with advises("engine/config/options.py:_set_data_root", "data_root=\"'...'\""):
        load_config(config, ["data_root=7"])
    assert load_config(config, ["data_root='7'"]).train_dataloader.dataset.data_root == "7"


# --- options ---------------------------------------------------------------------------------


def camvid(*options: str) -> Config:
    return load_config(CONFIGS / "fcn_resnest14_camvid.py", options)


def test_forms_of_options() -> None:
    with advises("engine/config/options.py:parse_cfg_options", "put quotes around it"):
        parse_cfg_options(["data_root=my", "data"])
    assert parse_cfg_options(["data_root=my data"]) == dict(data_root="my data")
    with advises("engine/config/options.py:parse_cfg_options", "within the others") as told:
        parse_cfg_options(["name=[1"])
    form = told.value.message.rpartition(": ")[2].strip("\"'")
    assert form.startswith("name=")
    assert parse_cfg_options(["name='[1'"]) == dict(name="[1")


def test_keys_of_options() -> None:
    with advises("engine/config/options.py:apply_options", "changes nothing here") as told:
        camvid("launcher=pytorch")
    assert told.value.message.endswith("use --launcher")
    with advises("engine/config/options.py:_index", "as a whole"):
        camvid("param_scheduler.9.power=1")
    assert camvid("param_scheduler.1.power=1")
    assert camvid("param_scheduler=[dict(type=PolyLR,power=1)]").param_scheduler[0].power == 1
    with advises("engine/config/options.py:_check_option", "set it") as told:
        camvid("randomness.seed.value=3")
    assert "randomness.seed={value: ...}" in told.value.message
    with advises("engine/config/options.py:_refuse_unknown_key", "is a variable", "+", "full key"):
        camvid("norm_cfg.type=GN")
    assert camvid("+norm_cfg.type=GN").norm_cfg.type == "GN"
    assert camvid("model.backbone.norm_cfg.type=GN").model.backbone.norm_cfg.type == "GN"
    with advises("engine/config/options.py:_refuse_unknown_key", "has no key") as told:
        camvid("train_cfg.max_iter=5")
    (meant,) = re.findall(r"did you mean (\S+)\?", told.value.message)
    assert camvid(f"{meant}=5").train_cfg.max_iters == 5
    assert "+" not in told.value.message  # as the loop takes no option of that name
    with advises("engine/config/options.py:_refuse_unknown_key", "has no key") as told:
        camvid("mine=5")
    (added,) = re.findall(r"(\+\S+)=\.\.\. adds it", told.value.message)
    assert camvid(f"{added}=5").mine == 5
    with advises("engine/config/options.py:_check_kind", "set one of its keys"):
        camvid("model.backbone=resnest50")
    assert camvid("model.backbone.type=ResNeSt")
    assert camvid("model.backbone={type: ResNeSt}")


# --- values ----------------------------------------------------------------------------------


def check(train: dict[str, Any], **more: Any) -> None:
    check_config({"default_scope": "mmseg_resnest", "train_dataloader": {"dataset": train}, **more})


def dataset(*steps: dict[str, Any], **more: Any) -> dict[str, Any]:
    return dict(type="CustomDataset", pipeline=list(steps), **more)


def mixed(inner: list[dict[str, Any]], *steps: dict[str, Any], **more: Any) -> dict[str, Any]:
    return dict(type="MultiImageMixDataset", dataset=dataset(*inner), pipeline=list(steps), **more)


def test_names_that_were_meant() -> None:
    with advises("engine/config/check.py:_unknown_type") as told:
        check(dataset(dict(type="RandomFlipp")))
    (meant,) = re.findall(r"did you mean (\w+)", told.value.message)
    check(dataset(dict(type=meant, prob=0.5)))
    with advises("engine/config/check.py:_unknown_option", "did you mean") as told:
        check(dataset(dict(type="RandomFlip", probb=0.5)))
    (meant,) = re.findall(r"did you mean (\w+)", told.value.message)
    check(dataset(dict(type="RandomFlip", **{meant: 0.5})))
    scores: dict[str, Any] = dict(type="SegmentationMetric", metrics=["mIoUU"])
    with advises("engine/config/check.py:_check_choices") as told:
        check(dataset(), val_evaluator=scores)
    (meant,) = re.findall(r"did you mean (\w+)", told.value.message)
    check(dataset(), val_evaluator=dict(scores, metrics=[meant]))


def test_a_part_of_ones_own(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write(
        "remedy_own_part.py",
        "from mmseg_resnest.registry import TRANSFORMS\n"
        "@TRANSFORMS.register_module()\nclass RemedyOwnPart:\n    def __init__(self): pass\n",
    )
    monkeypatch.setattr(sys, "path", [str(files.folder), *sys.path])
    text = "default_scope = 'mmseg_resnest'\ntrain_dataloader = dict(dataset=dict("
    text += "type='CustomDataset', pipeline=[dict(type='RemedyOwnPart')]))\n"
    config = files.write("a.py", text)
    helps("engine/config/check.py:_unknown_type",
          call=lambda: load_config(config), remedy=lambda: files.write(
              "a.py", f"{text}custom_imports = dict(imports=['remedy_own_part'])\n"))  # fmt: skip


def test_classes_where_they_cannot_be_saved(files: Files) -> None:
    text = "import torch\ndefault_scope = 'mmseg_resnest'\n"
    config = files.write("a.py", f"{text}model = dict(type='EncoderDecoder', x=torch.nn.ReLU)\n")
    with advises("engine/config/types.py:_named", "write dict(type="):
        load_config(config)
    files.write("a.py", f"{text}optim_wrapper = dict(optimizer=dict(type=torch.optim.SGD, lr=1))\n")
    load_config(config)


def test_classes_that_no_name_finds() -> None:
    class Local(torch.optim.SGD):
        pass

    def config(kind: type) -> Config:
        return Config(dict(optim_wrapper=dict(optimizer=dict(type=kind, lr=1.0))))

    with advises("engine/config/types.py:_name_of", "at the top of a module"):
        named_types(config(Local))
    named_types(config(AtTheTop))


class AtTheTop(torch.optim.SGD):
    """A part of a user's, where it can be imported from."""


# --- pipelines -------------------------------------------------------------------------------

EDGE = dict(type="GenerateEdge")
MOSAIC = dict(type="RandomMosaic", prob=1.0)


def test_orders_of_steps() -> None:
    with advises("engine/config/pipelines.py:check_dataset", "move it to the end"):
        check(mixed([*LOAD, PACK], MOSAIC))
    check(mixed(LOAD, MOSAIC, PACK))
    with advises("engine/config/pipelines.py:check_steps", "put it before that"):
        check(dataset(*LOAD, EDGE, FLIP, PACK))
    check(dataset(*LOAD, FLIP, EDGE, PACK))
    join = dict(type="ConcatCDInput")
    with advises("engine/config/pipelines.py:check_steps", "joins images", "before it"):
        check(dataset(*LOAD, FLIP, join, PACK))
    check(dataset(*LOAD, join, FLIP, PACK))


def test_what_moves_with_an_image() -> None:
    both = dict(img="img", gt_seg_map="gt_seg_map")

    def mapper(kind: str = "KeyMapper", **options: Any) -> None:
        check(dataset(*LOAD, dict(type=kind, transforms=[FLIP], **options), PACK))

    with advises("engine/config/pipelines.py:_check_mapping", "map gt_seg_map too"):
        mapper(mapping=dict(img="img"), auto_remap=True)
    mapper(mapping=both, auto_remap=True)
    several = dict(mapping=dict(img=["img", "img2"]), auto_remap=True)
    with advises("engine/config/pipelines.py:_check_mapping", "share_random_params=True"):
        check(dataset(dict(type="TransformBroadcaster", transforms=[FLIP], **several)))
    check(dataset(dict(
        type="TransformBroadcaster", transforms=[FLIP], share_random_params=True, **several
    )))  # fmt: skip


#: What does a step's work in place of one that is refused; an empty name is none.
INSTEAD = {
    stack.SegRescale: "", stack.RandomRotFlip: "mmseg_resnest.RandomRotFlip",
    mmcv.transforms.MultiScaleFlipAug: "TestTimeAug",
    stack.BioMedical3DPad: "mmseg_resnest.BioMedical3DPad",
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED, ids=lambda kind: kind.__name__)
def test_steps_in_place_of_refused_ones(kind: type) -> None:
    instead = INSTEAD[kind]
    name = f"{kind.__module__.partition('.')[0]}.{kind.__name__}"
    with advises("engine/config/pipelines.py:check_steps", instead or "remove it"):
        check(dataset(*LOAD, dict(type=name), PACK))
    options: dict[str, Any] = {"TestTimeAug": dict(transforms=[[FLIP]])}.get(instead, {})
    check(dataset(*LOAD, *([dict(type=instead, **options)] if instead else []), PACK))


def test_a_balance_of_classes() -> None:
    name = "mmengine.ClassBalancedDataset"
    inner: dict[str, Any] = dict(dataset=dataset(*LOAD, PACK), oversample_thr=0.1)
    with advises("engine/config/pipelines.py:check_dataset", "mmseg_resnest.ClassBalancedDataset"):
        check(dict(type=name, **inner))
    check(dict(type="mmseg_resnest.ClassBalancedDataset", **inner))
