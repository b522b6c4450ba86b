# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What people bring, in every tool: it gives what it must give, or one error.

``TABLE`` has a row for each form of input, a column for each tool. A tool gives a value, which a
plain config that says the same gives too, or the code and the subject of its error. A row that
leaves a column out has nothing to do with that tool.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from in_process import Ended, catch_services, run
from PIL import Image, ImageOps
from two_classes import write_images, write_python_style
from user_errors import printed_error

from mmseg_resnest import load_segmentor
from mmseg_resnest.engine.config import load_config

PLAIN = "text.py"
IMAGES = "data/images/val"
WEIGHTS = "work_dirs/text/iter_6.pth"


@dataclass(frozen=True)
class Form:
    """One form of input: what a command is given.

    Attributes:
        config: The config.
        weights: The checkpoint.
        images: The folder to predict.
        out: Where outputs go.
        train: More arguments of ``train``.
    """

    config: str = PLAIN
    weights: str = WEIGHTS
    images: str = IMAGES
    out: str = "out"
    train: tuple[str, ...] = ()

    def place(self, name: str) -> str:
        """An output: one that no other form writes."""
        return os.path.join(self.out, Path(self.config).stem + Path(self.weights).stem, name)


@dataclass(frozen=True)
class Fails:
    """The error of a tool."""

    code: str
    subject: str


# --- the tools: each returns what its users rely on -------------------------------------------


def labels_in(folder: str) -> dict[str, bytes]:
    return {p.name: np.array(Image.open(p)).tobytes() for p in Path(folder).glob("*.png")}


def labels_of(model: Any, form: Form) -> dict[str, bytes]:
    return {f"{p.stem}.png": model(p).labels.tobytes() for p in Path(form.images).glob("*.png")}


def train(form: Form) -> Any:
    """The weights after six steps; a hash would do, but a difference shall be seen."""
    folder = form.place("run")
    run("train", form.config, "--work-dir", folder, *form.train)
    state = torch.load(f"{folder}/iter_6.pth", weights_only=True)["state_dict"]
    return {key: value.tolist() for key, value in state.items()}


def evaluate(form: Form, *options: str) -> Any:
    folder = form.place("test" + "".join(options))
    run("test", form.config, form.weights, "--work-dir", folder, *options)
    return json.loads(Path(folder, "results.json").read_text())["classes"]


def evaluate_tta(form: Form) -> Any:
    return evaluate(form, "--tta")


def label_maps(form: Form) -> Any:
    """Label maps, and no scores."""
    folder = form.place("test_out")
    run("test", form.config, form.weights, "--work-dir", form.place("test"), "--out", folder)
    assert "mIoU" not in json.loads(Path(form.place("test"), "results.json").read_text())
    return labels_in(folder)


def predict(form: Form) -> Any:
    folder = form.place("labels")
    for _ in range(2):  # the second time what the first wrote is there
        run("predict", form.config, form.weights, form.images, "--out", folder, "--save", "labels")
    return labels_in(folder)


def export(form: Form) -> Any:
    file = form.place("model.onnx")
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    run("export-onnx", form.config, form.weights, file)
    return labels_of(load_segmentor(file, device="cpu"), form)


def publish(form: Form) -> Any:
    run("publish-model", form.config, form.weights, form.place("published"))
    return labels_of(load_segmentor(form.place("published"), device="cpu"), form)


def serve(form: Form) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        served = catch_services(patch)
        run("serve", form.config, form.weights)
        run("demo-app", form.config, form.weights)
    first, second = (labels_of(model, form) for model in served)
    assert first == second
    return first


def report(form: Form) -> Any:
    """The scores that it shows of an evaluation."""
    if not Path(form.place("test")).exists():
        run("test", form.config, form.weights, "--work-dir", form.place("test"))
    run("report", form.place("test"), "--out", form.place("report.html"))
    score = json.loads(Path(form.place("test"), "results.json").read_text()).get("mIoU")
    assert score is None or f'"mIoU": {score}' in Path(form.place("report.html")).read_text()
    return score


def compare_runs(form: Form) -> Any:
    """How much the scores differ from those of the plain config."""
    for one in (Form(), form):
        if not Path(one.place("test")).exists():
            run("test", one.config, one.weights, "--work-dir", one.place("test"))
    file = form.place("compared.json")
    run("compare-runs", Form().place("test"), form.place("test"), "--json", file)
    return [row["b"] - row["a"] for row in json.loads(Path(file).read_text())["scores"]]


def label_errors(form: Form) -> Any:
    """The scores of the validation images' labels."""
    folder = form.place("label_errors")
    run("label-errors", form.config, form.weights, "--out", folder)
    found = json.loads(Path(folder, "label_errors.json").read_text())["images"]
    return {os.path.basename(one["image"]): round(one["score"], 4) for one in found}


def browse(form: Form) -> Any:
    run("browse-data", form.config, "--out", form.place("sheets"), "--images", 2)
    return {p.name: p.read_bytes() for p in Path(form.place("sheets")).iterdir()}


def check(form: Form) -> Any:
    Path(form.place("")).mkdir(parents=True, exist_ok=True)
    run("check-data", form.config, "--json", form.place("check.json"))
    found = json.loads(Path(form.place("check.json")).read_text())
    return [found[name] for name in ("clean", "counts", "splits")]


def print_config(form: Form) -> Any:
    """What the printed text of the config says, as it is and resolved."""
    found = []
    for options in ((), ("--resolved",), ("--resolved", "test", "--tta")):
        said = run("print-config", form.config, *options)
        Path("printed.py").write_text(re.sub(r"work_dirs/\w+(-2)?", "work", said))
        found.append(load_config("printed.py").to_dict())
    return found


def benchmark(form: Form) -> Any:
    Path(form.place("")).mkdir(parents=True, exist_ok=True)
    file = form.place("speed.json")
    run("benchmark", form.config, "--train", "--batch-size", 2, "--seconds", 0.1, "--out", file)
    return json.loads(Path(file).read_text())["parameters"]


# --- the forms ---------------------------------------------------------------------------------


def write(name: str, text: str) -> str:
    """A config that inherits from the plain one."""
    Path(name).write_text(f'_base_ = "text.py"\n{text}\n')
    return name


def listed(config: str) -> None:
    """Lists of the same images, as another system wrote them."""
    for split in ("train", "val"):
        names = sorted(p.stem for p in Path("data/images", split).glob(f"{split}*.png"))
        lines = [f".\\{name}.png" if i % 2 else f"{name}.png" for i, name in enumerate(names)]
        Path(f"data/{split}.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    write(config, "\n".join(
        f"{loader}_dataloader = dict(dataset=dict(ann_file={split + '.txt'!r}))"
        for loader, split in (("train", "train"), ("val", "val"), ("test", "val"))
    ))  # fmt: skip


NO_LABELS = """
test_dataloader = dict(dataset=dict(data_prefix=dict(_delete_=True, img_path="images/test")))
"""


def mirrored() -> None:
    """Other images, without labels."""
    Path("data/images/test").mkdir()
    for file in Path(IMAGES).glob("*.png"):
        with Image.open(file) as image:
            ImageOps.mirror(image).save(f"data/images/test/{file.name}")


def boxes() -> None:
    """COCO files of the same labels; one image has a box alone as well."""
    for split in ("train", "val"):
        images, annotations = [], []
        for number, file in enumerate(sorted(Path("data/images", split).glob("*.png"))):
            images.append(dict(id=number, file_name=file.name, height=64, width=80))
            labels = np.array(Image.open(Path("data/annotations", split, file.name)))
            (top, *_, bottom), (left, *_, right) = (sorted(set(x)) for x in labels.nonzero())
            corners = (left, top), (right + 1, top), (right + 1, bottom + 1), (left, bottom + 1)
            shape = [[int(x) for corner in corners for x in corner]]
            one = dict(id=number, image_id=number, category_id=1, segmentation=shape)
            annotations.append(one)
        if split == "train":
            alone = dict(id=99, image_id=3, category_id=1, segmentation=[], bbox=[0, 0, 9, 9])
            annotations.append(alone)
        record = dict(images=images, annotations=annotations, categories=[dict(id=1, name="thing")])
        Path(f"{split}.json").write_text(json.dumps(record))
    Path("classes.txt").write_text("ground\nthing\n")


def prepare(form: Form, *options: str) -> str:
    """What it says of what it left out."""
    said = run(
        *("prepare-data", "custom", "--name", Path(form.config).stem, "--format", "coco"),
        *("--source", "train.json", "--val-source", "val.json", "--images", "data/images/train"),
        *("--val-images", "data/images/val", "--classes", "classes.txt", "--base", PLAIN),
        *("--background", "ground", "--epochs", 2, "--jobs", 1, *options),
    )  # fmt: skip
    return next(line for line in said.splitlines() if "box alone" in line)


def prepare_what_is_whole(form: Form) -> str:
    return prepare(form, "--allow-incomplete")


def whole_under_a_prefix(file: str) -> None:
    state = torch.load(WEIGHTS, weights_only=True)["state_dict"]
    torch.save({f"module.model.{key}": value for key, value in state.items()}, file)


def backbone(prefix: str) -> Callable[[str], None]:
    def make(file: str) -> None:
        state = torch.load(WEIGHTS, weights_only=True)["state_dict"]
        kept = {k.removeprefix("backbone."): v for k, v in state.items() if "backbone." in k}
        torch.save({prefix + key: value for key, value in kept.items()}, file)

    return make


FORMS: dict[str, Form] = {
    "Python style": Form("mine.py"),
    "lists of another system": Form("lists.py"),
    "no labels in the test split": Form("unlabelled.py", images="data/images/test"),
    "no labels, but scores": Form("unscored.py"),
    "weights under a prefix": Form(weights="wrapped.pth"),
    "weights of the backbone": Form("loads.py", "backbone.pth"),
    "weights of the backbone by init_cfg": Form("starts.py"),
    "outputs inside of the input": Form("inside.py", images="photos", out="photos/out"),
    "outputs among a data set's images": Form("inside.py", out=f"{IMAGES}/out"),
    "COCO with a box alone": Form("configs/custom/boxes.py"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configs, the data and one run; commands run in it."""
    folder = tmp_path_factory.mktemp("forms")
    write_images(folder / "data")
    write_python_style(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path(PLAIN).write_text(run("print-config", "mine.py"))
        run("train", PLAIN)
        listed("lists.py")
        mirrored()
        write("unlabelled.py", NO_LABELS + "test_evaluator = []")
        write("unscored.py", NO_LABELS)
        whole_under_a_prefix("wrapped.pth")
        backbone("encoder.")("backbone.pth")
        backbone("")("bare.pth")
        write("loads.py", "load_from = 'backbone.pth'")
        init = "dict(type='Pretrained', checkpoint='bare.pth')"
        write("starts.py", f"model = dict(backbone=dict(init_cfg={init}))")
        write("inside.py", "")
        shutil.copytree(IMAGES, "photos")
        boxes()
    return folder


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


TOOLS: dict[str, Callable[[Form], Any]] = {
    "prepare-data": prepare, "prepare-data --allow-incomplete": prepare_what_is_whole,
    "train": train, "test": evaluate, "test --tta": evaluate_tta, "test --out": label_maps,
    "predict": predict, "export-onnx": export, "publish-model": publish, "serve": serve,
    "report": report, "compare-runs": compare_runs, "browse-data": browse, "check-data": check,
    "print-config": print_config, "benchmark": benchmark, "label-errors": label_errors,
}  # fmt: skip
LABELS = ("predict", "export-onnx", "publish-model", "serve")
SCORES = ("test", "test --tta", "report", "compare-runs")
DATA = ("browse-data", "check-data", "label-errors")
SAME = object()  # what the plain config gives


def same(*tools: str) -> dict[str, Any]:
    return dict.fromkeys(tools, SAME)


def fails(code: str, subject: str, *tools: str) -> dict[str, Any]:
    return dict.fromkeys(tools, Fails(code, subject))


TABLE: dict[str, dict[str, Any]] = {
    "Python style": same("train", "print-config", "benchmark", *LABELS, *SCORES, *DATA),
    "lists of another system": same("train", "benchmark", *LABELS, *SCORES, *DATA),
    "no labels in the test split": {
        **same("train", "test --out", *LABELS, "browse-data", "label-errors"),
        "report": None,
        **fails("not-found", "images.npz", "compare-runs"),
        "check-data": [True, (12, 4, 4)],
    },
    "no labels, but scores": {
        **same("train", *LABELS),
        **fails("config-key", "test_dataloader.dataset.data_prefix.seg_map_path", *SCORES),
    },
    "weights under a prefix": same(*LABELS, *SCORES, "label-errors"),
    "weights of the backbone": {
        "train": "backbone",
        **fails("checkpoint", "backbone.pth", *LABELS, *SCORES, "label-errors"),
    },
    "weights of the backbone by init_cfg": {
        "train": "backbone",
        **same("benchmark", *LABELS, *SCORES),
    },
    "outputs inside of the input": same("train", "benchmark", *LABELS, *SCORES, *DATA),
    "outputs among a data set's images": {
        **same("benchmark", "export-onnx", "publish-model", "check-data"),
        **fails("argument", f"--work-dir {IMAGES}/out", "train", *SCORES),
        **fails("argument", f"--out {IMAGES}/out", "browse-data", "label-errors", "predict"),
    },
    "COCO with a box alone": {
        **fails("annotation", "train.json", "prepare-data"),
        "prepare-data --allow-incomplete": "1",
        "train": "new",
        "check-data": [True, (12, 4)],
        **same(*LABELS, *SCORES),
    },
}  # fmt: skip
# Rows but the first are made again by these at some cost; `make forms` runs them all.
SLOW = (
    "train",
    "serve",
    "test --tta",
    "compare-runs",
    "browse-data",
    "label-errors",
    "benchmark",
    "export-onnx",
    "publish-model",
)
CELLS = [
    (form, tool)
    for form, row in TABLE.items()
    for tool in TOOLS
    if tool in row
    and (
        os.environ.get("ALL_FORMS")
        or form == "Python style"
        or tool not in SLOW
        or isinstance(row[tool], Fails)
    )
]
_given: dict[Any, Any] = {}


def given(tool: str, form: Form) -> Any:
    """What the plain config gives, or its model."""
    key = form.images if tool in (*LABELS, "test --out") else tool
    if key not in _given:
        plain = Form(images=form.images)
        model = load_segmentor(PLAIN, WEIGHTS, "cpu") if key == form.images else None
        _given[key] = labels_of(model, plain) if model is not None else TOOLS[tool](plain)
    return _given[key]


@pytest.mark.parametrize(("form", "tool"), CELLS)
def test_cell(form: str, tool: str) -> None:
    expected, given_form = TABLE[form][tool], FORMS[form]
    if isinstance(expected, Fails):
        with pytest.raises(Ended) as ended:
            TOOLS[tool](given_form)
        code, message = printed_error(ended.value.said)
        assert (ended.value.code, code) == (2, expected.code)
        assert expected.subject in message.partition(": ")[0]
        return
    found = TOOLS[tool](given_form)
    if expected is SAME:
        assert found == given(tool, given_form)
    elif tool == "train":
        assert found.keys() == given(tool, given_form).keys()
        assert found != given(tool, given_form)
    elif tool == "check-data":
        assert [found[0], tuple(split["samples"] for split in found[2].values())] == expected
    elif tool.startswith("prepare-data"):
        assert expected in found.split()
    else:
        assert found == expected
