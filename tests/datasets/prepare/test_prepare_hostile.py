# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Annotations of a stranger: names that would be code, paths that lead outside, huge claims."""

from __future__ import annotations

import base64
import functools
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from mmengine.config import Config
from mmengine.registry import DefaultScope
from PIL import Image
from tiny_archives import jpeg, labels_of, png_of, write_folder
from user_errors import raises_user_error

from mmseg_resnest.datasets.check import check_data
from mmseg_resnest.datasets.class_names import classes_json, dataset_metainfo, read_classes
from mmseg_resnest.datasets.prepare import CustomOptions, CustomReport, export_labels
from mmseg_resnest.datasets.prepare.custom import prepare_custom
from mmseg_resnest.datasets.prepare.custom_config import config_text
from mmseg_resnest.datasets.prepare.tables import read_table
from mmseg_resnest.engine.config import load_config
from mmseg_resnest.errors import UserError
from mmseg_resnest.evaluation import class_table
from mmseg_resnest.evaluation.visualize import legend
from mmseg_resnest.export.publish import publish
from mmseg_resnest.inference import load_segmentor
from mmseg_resnest.registry import DATASETS

ROOT = Path(__file__).resolve().parents[3]
CANARY = "canary-of-a-name"
BREAKOUTS = [
    f"'];open('{CANARY}','w');['",
    f'"];open("{CANARY}","w");["',
    f"', [0,0,0])]\nopen('{CANARY}','w')\nx=[('",
    "{{ fileBasename }}",
    "{{$HOME:x}}",
    "{{$X:[^~]*}}",
    f"}}}}',open('{CANARY}','w')]#",
    "{{ _base_.model }}",
    "\\",
    "\\N{DIGIT ONE}",
    '"""',
    "a\r\nb",
    "a\u2028b",
    "Straße 字",
]
names = st.one_of(
    st.sampled_from(BREAKOUTS),
    st.text(st.sampled_from("{}$'\"\\\n\r:_ #()[]ab"), min_size=1, max_size=30),
    st.text(max_size=60),
)
is_name = names.filter(lambda name: name.strip() and "\0" not in name)
folders = st.one_of(
    st.sampled_from([name for name in BREAKOUTS if "/" not in name]),
    st.text(st.sampled_from("{}$'\"\\\n:_ #()ab"), min_size=1, max_size=20),
    st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=20),
).filter(lambda name: name not in (".", ".."))


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The data root is the config's own, and a canary would lie in a folder of its own."""
    monkeypatch.delenv("MMSEG_RESNEST_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


@functools.cache
def base() -> Config:
    return load_config(ROOT / "configs/fcn_resnest14_scenes.py")


def custom(tmp_path: Path, **options: Any) -> CustomReport:
    filled: dict[str, Any] = {"name": "mine", "group_pattern": "(.*)", **options}
    return prepare_custom(
        CustomOptions(**filled), tmp_path / "data", tmp_path / "configs", base(), 1, jobs=1
    )


def labelme(tmp_path: Path, labels: list[Any], **more: Any) -> dict[str, Any]:
    """Two LabelMe files with a square of each label, beside their images, as options."""
    shapes = [
        dict(label=label, points=[[n, 0], [n + 1, 0], [n + 1, 6], [n, 6]])
        for n, label in enumerate(labels)
    ]
    for n, name in enumerate("xy"):
        data = dict(shapes=shapes, imagePath=f"{name}.jpg", imageData=None)
        text = json.dumps({**data, **more} if name == "x" else data)
        write_folder(tmp_path / "lm", {f"{name}.jpg": jpeg(n), f"{name}.json": text.encode()})
    return dict(form="labelme", sources=(tmp_path / "lm",))


# ---- names


@given(st.lists(is_name, min_size=2, max_size=5, unique=True))
@example(BREAKOUTS)
@settings(max_examples=100, deadline=None)
def test_any_name_comes_back_from_the_classes_file(
    tmp_path_factory: pytest.TempPathFactory, classes: list[str]
) -> None:
    file = tmp_path_factory.mktemp("classes") / "classes.json"
    file.write_bytes(classes_json([(name, (n, 0, 255)) for n, name in enumerate(classes)]))
    assert read_classes(file)["classes"] == classes
    assert [row.name for row in read_table(file)] == classes


@pytest.mark.parametrize("form", ["labelme", "coco", "index"])
def test_names_from_labels_to_the_data_set_and_no_code_runs(tmp_path: Path, form: str) -> None:
    if form == "labelme":
        options = labelme(tmp_path, BREAKOUTS[:8]) | {"ignore": tuple(BREAKOUTS[3:4])}
        expected = sorted({*BREAKOUTS[:8]} - {BREAKOUTS[3]})
    else:
        write_folder(tmp_path / "images", {f"{n}.jpg": jpeg(i) for i, n in enumerate("xy")})
        expected = BREAKOUTS
    if form == "coco":
        square = [[0, 0, 4, 0, 4, 6, 0, 6]]
        data = dict(
            images=[dict(id=n, file_name=f"{name}.jpg") for n, name in enumerate("xy")],
            categories=[dict(id=n, name=name) for n, name in enumerate(BREAKOUTS)],
            annotations=[
                dict(image_id=n % 2, category_id=n, segmentation=square)
                for n in range(len(BREAKOUTS))
            ],
        )
        (tmp_path / "c.json").write_text(json.dumps(data))
        options = dict(form="coco", sources=(tmp_path / "c.json",), images=tmp_path / "images")
        expected = sorted(BREAKOUTS)
    if form == "index":
        write_folder(tmp_path / "labels", {f"{n}.png": png_of(labels_of(0, 3)) for n in "xy"})
        (tmp_path / "names.json").write_text(json.dumps(BREAKOUTS))
        options = dict(
            form="index", sources=(tmp_path / "labels",), images=tmp_path / "images",
            classes=tmp_path / "names.json",
        )  # fmt: skip
    report = custom(tmp_path, **options)
    assert [name for name, *_ in report.classes] == expected
    cfg = load_config(report.config)
    assert cfg.model.decode_head.num_classes == len(expected)
    with DefaultScope.overwrite_default_scope("mmseg_resnest"):
        dataset = DATASETS.build(cfg.train_dataloader.dataset)
    assert dataset.metainfo["classes"] == expected
    assert dataset_metainfo(cfg.test_dataloader.dataset)["classes"] == expected
    # The config of a run is written again, and read again by whoever evaluates it.
    cfg.dump(tmp_path / "dumped.py")
    again = Config.fromfile(tmp_path / "dumped.py")
    assert dataset_metainfo(again.val_dataloader.dataset)["classes"] == expected
    texts = report.config.read_text() + (tmp_path / "dumped.py").read_text()
    assert not any(name in texts for name in expected if name != "\\")
    assert not list(tmp_path.rglob(f"*{CANARY}*"))


@given(root=folders, above=folders)
@example("{{$X:[^~]*}}", f"}}}}';open('{CANARY}','w')#")
@example('{{ fileDirname }}"', "{{_base_.model}}'")
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_folder_can_be_the_data_root_and_hold_the_base(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, root: str, above: str
) -> None:
    place = tmp_path_factory.mktemp("base")
    parent = place / above / "base.py"
    text = "train_pipeline = test_pipeline = []\ntotal_batch_size = 4\n"
    write_folder(place, {f"{above}/base.py": (text + "model = dict(decode_head=None)\n").encode()})
    config = place / "configs" / "mine.py"
    config.parent.mkdir()
    read = Config(dict(train_pipeline=[], test_pipeline=[], total_batch_size=4, model={}))
    object.__setattr__(read, "_filename", str(parent))
    if "::" in above:
        with pytest.raises(UserError, match="'::'"):
            config_text("mine", Path(root), 2, 4, 2, config, read, 1)
        return
    config.write_text(config_text("mine", Path(root), 2, 4, 2, config, read, 1), encoding="utf-8")
    cfg = Config.fromfile(config)
    assert cfg.train_dataloader.dataset.data_root == f"{Path(root).as_posix()}/mine"
    assert cfg.total_batch_size == 4
    assert not Path(CANARY).exists()


@pytest.mark.parametrize("root", ['quo"te', "{{ _base_.model }}", "back\\1slash", "it's {{$X:y}}"])
def test_any_data_root_of_the_command_line(
    tmp_path: Path, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / root
    folder.mkdir()
    for config in ("fcn_resnest14_camvid", "fcn_resnest50_ade20k"):
        cfg = load_config(config, data_root=folder)
        assert cfg.train_dataloader.dataset.data_root.startswith(f"{folder}/")
        assert cfg.env_variables["MMSEG_RESNEST_DATA"] == str(folder)
    monkeypatch.setenv("MMSEG_RESNEST_DATA", str(folder))
    cfg = load_config("fcn_resnest14_camvid")
    assert cfg.val_dataloader.dataset.data_root == f"{folder}/camvid"


def test_a_model_has_the_names_of_the_classes_file(tmp_path: Path) -> None:
    options = labelme(tmp_path, BREAKOUTS[:4])
    report = custom(tmp_path, **options)
    expected = [name for name, *_ in report.classes]
    model = load_segmentor(report.config)
    assert model.classes == expected
    assert model.palette == [list(colour) for _, colour, *_ in report.classes]
    result = model(tmp_path / "lm/x.jpg")
    assert list(result.areas()) == expected
    assert repr(result).isprintable()
    publish(model, tmp_path / "published")
    assert load_segmentor(tmp_path / "published").classes == expected
    rows = [
        dict(name=name, IoU=1.0, Acc=1.0, label=1, intersection=1, union=1) for name in expected
    ]
    means = dict(mIoU=1.0, mAcc=1.0, pixAcc=1.0)
    table = class_table({"classes": rows, "labelled_pixels": 4, **means})
    assert len(table.splitlines()) == len(expected) + 7
    assert legend(expected, model.palette).shape[2] == 3
    checked = check_data(load_config(report.config))
    assert not [p for p in checked.problems if p.rule in ("num_classes", "label_out_of_range")]


NO_NAMES: dict[str, Any] = {
    "blank": " \t\n",
    "nothing": None,
    "number": 7,
    "list": ["a"],
    "null character": "a\0b",
    "half of a pair": "a\ud800",
    "too long": "x" * 201,
}


@pytest.mark.parametrize("case", NO_NAMES)
def test_names_that_cannot_be_class_names(tmp_path: Path, case: str) -> None:
    name = NO_NAMES[case]
    with raises_user_error(("annotation", "classes"), "x.json") as error:
        custom(tmp_path, **labelme(tmp_path, ["a", name]))
    assert str(error.value).encode()
    assert not (tmp_path / "data").exists() and not (tmp_path / "configs").exists()
    if name is not None:
        (tmp_path / "t.json").write_text(json.dumps([{"name": name, "color": [1, 2, 3]}]))
        with raises_user_error("classes", "t.json"):
            read_table(tmp_path / "t.json")
        with raises_user_error("classes", "t.json"):
            read_classes(tmp_path / "t.json")


@pytest.mark.parametrize(
    "rows",
    [
        None, [], {}, ["a", "b"], [{"name": "a"}], [{"name": "a", "color": [1, 2]}],
        [{"name": "a", "color": [1, 2, 256]}], [{"name": "a", "color": [1, 2, True]}],
        [{"name": "a", "color": [1, 2, 3], "type": "x"}],
        [{"name": "a", "color": [1, 2, 3]}, {"name": "a", "color": [1, 2, 4]}],
    ],
)  # fmt: skip
def test_classes_files_that_are_none(tmp_path: Path, rows: Any) -> None:
    (tmp_path / "classes.json").write_text(json.dumps(rows))
    with raises_user_error("classes"):
        read_classes(tmp_path / "classes.json")


def test_a_data_set_without_its_classes_file(tmp_path: Path) -> None:
    cfg = load_config(custom(tmp_path, **labelme(tmp_path, ["a", "b"])).config)
    both = {**cfg.val_dataloader.dataset, "metainfo": dict(classes=["a", "b"])}
    with raises_user_error(("config-conflict", "classes"), "classes.json"):
        dataset_metainfo(both)
    (tmp_path / "data/mine/classes.json").unlink()
    with raises_user_error("not-found", "classes.json"):
        dataset_metainfo(cfg.val_dataloader.dataset)


def test_names_come_back_from_every_exported_form(tmp_path: Path) -> None:
    for n in range(2):
        write_folder(tmp_path / "images", {f"{n}.jpg": jpeg(n)})
        write_folder(tmp_path / "labels", {f"{n}.png": png_of(labels_of(n, 3))})
    wanted = [BREAKOUTS[2], " lead and trail ", "a,b;c: 1 2 3"]
    (tmp_path / "names.json").write_text(json.dumps(wanted))
    for form in ("labelme", "coco", "colour"):
        out = tmp_path / form
        classes = tmp_path / "names.json"
        export_labels(tmp_path / "images", tmp_path / "labels", classes, form, out, 1)
        places: dict[str, Any] = dict(sources=(out,), classes=classes)
        if form == "colour":
            places = dict(
                sources=(out / "masks",), images=out / "images", classes=out / "colours.json"
            )
        report = custom(tmp_path, name=form, form=form, **places)
        assert [name for name, *_ in report.classes] == wanted


# ---- paths


OUTSIDE = ["../secret.jpg", "/etc/passwd", "..\\secret.jpg", "C:\\secret.jpg", "a/../../secret.jpg"]


@pytest.mark.parametrize("path", OUTSIDE)
@pytest.mark.parametrize("form", ["labelme", "coco"])
def test_a_path_outside_of_the_source_is_not_followed(tmp_path: Path, path: str, form: str) -> None:
    write_folder(tmp_path, {"secret.jpg": jpeg(9)})
    if form == "labelme":
        options = labelme(tmp_path, ["a", "b"], imagePath=path)
        (tmp_path / "lm/x.jpg").unlink()
    else:
        data = dict(images=[dict(id=1, file_name=path)], categories=[], annotations=[])
        write_folder(tmp_path / "lm", {"x.json": json.dumps(data).encode()})
        options = dict(form="coco", sources=(tmp_path / "lm",))
    with raises_user_error("unsafe-path", "x.json"):
        custom(tmp_path, **options)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("path", [7, ["a"], "", ".", "x" * 300, "a\0.jpg", "\ud800.jpg"])
def test_paths_that_are_none(tmp_path: Path, path: Any) -> None:
    options = labelme(tmp_path, ["a", "b"], imagePath=path)
    (tmp_path / "lm/x.jpg").unlink()
    with raises_user_error(("unsafe-path", "not-found"), "x.json"):
        custom(tmp_path, **options)


def test_paths_of_windows_inside_of_the_source(tmp_path: Path) -> None:
    for n, name in enumerate("xy"):
        shapes = [
            dict(label=k, points=[[0, 0], [m, 0], [m, 6], [0, 6]]) for k, m in (("a", 8), ("b", 4))
        ]
        data = dict(shapes=shapes, imagePath=f"..\\imgs\\photo {name}.JPG")
        write_folder(
            tmp_path / "lm",
            {f"ann/{name}.json": json.dumps(data).encode(), f"imgs/photo {name}.JPG": jpeg(n)},
        )
    report = custom(tmp_path, form="labelme", sources=(tmp_path / "lm",))
    assert sorted(report.splits["train"] + report.splits["val"]) == ["ann/x", "ann/y"]
    assert (tmp_path / "data/mine/images/ann/x.jpg").read_bytes() == jpeg(0)


@pytest.mark.parametrize("content", [b"root:x:0:0", b"", b"%PDF-1.4", b"%!PS-Adobe-3.0 EPSF-3.0"])
@pytest.mark.parametrize("form", ["labelme", "index"])
def test_a_file_that_is_no_image_is_not_linked(tmp_path: Path, content: bytes, form: str) -> None:
    options = labelme(tmp_path, ["a", "b"])
    if form == "index":
        (tmp_path / "t.txt").write_text("a\nb\n")
        for name in "xy":
            write_folder(tmp_path / "masks", {f"{name}.png": png_of(labels_of(0, 2))})
            (tmp_path / f"lm/{name}.json").unlink()
        options = dict(
            form="index", sources=(tmp_path / "masks",), images=tmp_path / "lm",
            classes=tmp_path / "t.txt",
        )  # fmt: skip
    secret = write_folder(tmp_path / "lm", {"secret": content}) / "secret"
    (tmp_path / "lm/x.jpg").unlink()
    (tmp_path / "lm/x.jpg").symlink_to(secret)
    with raises_user_error(("empty", "image"), "x.jpg"):
        custom(tmp_path, **options)
    assert not (tmp_path / "data/mine/images/x.jpg").exists()


def test_a_link_in_the_source_must_not_lead_out(tmp_path: Path) -> None:
    options = labelme(tmp_path, ["a", "b"])
    elsewhere = write_folder(tmp_path / "elsewhere", {"photo.jpg": jpeg(5)})
    (tmp_path / "lm/x.jpg").rename(tmp_path / "lm/photo.jpg")
    (tmp_path / "lm/x.jpg").symlink_to(elsewhere / "photo.jpg")
    with raises_user_error("unsafe-path", "x.json"):
        custom(tmp_path, **options)
    (tmp_path / "lm/x.jpg").unlink()
    (tmp_path / "lm/x.jpg").symlink_to("photo.jpg")
    (tmp_path / "link").symlink_to("lm", target_is_directory=True)  # the folder may be a link
    custom(tmp_path, **{**options, "sources": (tmp_path / "link",)})
    assert (tmp_path / "data/mine/images/x.jpg").is_file()


# ---- claims


@functools.cache
def _claims() -> dict[str, dict[str, Any]]:
    def shape(**change: Any) -> dict[str, Any]:
        return {"shapes": [dict(label="a", **{"points": [[0, 0], [8, 0], [8, 6]], **change})]}

    wide = io.BytesIO()
    Image.fromarray(np.zeros((1, 1), np.uint8)).resize((9000, 9000)).save(wide, "PNG")
    big = base64.b64encode(wide.getvalue()).decode()
    return {
        "huge image": dict(imageHeight=10**9, imageWidth=10**9),
        "text for a size": dict(imageHeight="6", imageWidth=[8]),
        "1e300": shape(points=[[0, 0], [1e300, 0], [1e300, -1e300]]),
        "infinite": shape(points=[[0, 0], [float("inf"), 0], [1, 1]]),
        "text": shape(points=[["0", "0"], ["8", "0"], ["8", "6"]]),
        "huge number": shape(points=[[10**400, 0], [8, 0], [8, 6]]),
        "triples": shape(points=[[0, 0, 1], [8, 0, 1], [8, 6, 1], [1, 2, 3]]),
        "objects": shape(points=[{}, {}, {}]),
        "kind": shape(shape_type=["polygon"]),
        "mask": shape(shape_type="mask", mask=big),
        "circle": shape(shape_type="circle", points=[[0, 0], [1e200, 0]]),
    }


@pytest.mark.parametrize("case", _claims())
def test_labelme_claims(tmp_path: Path, case: str) -> None:
    options = labelme(tmp_path, ["a", "b"], **_claims()[case])
    with raises_user_error(("annotation", "size-mismatch"), "x.json") as error:
        custom(tmp_path, **options)
    assert "x.json" in str(error.value) and len(str(error.value)) < 1000


@pytest.mark.parametrize(
    "counts",
    [
        [2**62] * 4 + [48],  # the sum wraps round to 48, the size of the image
        [2**70, 48],
        [24.5, 23.5],
        ["24", "24"],
        [[24, 24]],
        [],
        "o" * 100_000,
        "é",
        7,
    ],
    ids=range(9),
)
def test_coco_run_lengths(tmp_path: Path, counts: Any) -> None:
    write_folder(tmp_path / "c", {"x.jpg": jpeg(0), "y.jpg": jpeg(1)})
    runs = dict(size=[6, 8], counts=counts)
    data = dict(
        images=[dict(id=1, file_name="x.jpg"), dict(id=2, file_name="y.jpg")],
        categories=[dict(id=1, name="a"), dict(id=2, name="b")],
        annotations=[
            dict(id=1, image_id=1, category_id=1, segmentation=runs),
            dict(id=2, image_id=2, category_id=2, segmentation=[[0, 0, 4, 0, 4, 4]]),
        ],
    )
    (tmp_path / "c/c.json").write_text(json.dumps(data))
    with raises_user_error("annotation", "c.json"):
        custom(tmp_path, form="coco", sources=(tmp_path / "c/c.json",))


@pytest.mark.parametrize("form", ["labelme", "coco"])
def test_json_nested_deep(tmp_path: Path, form: str) -> None:
    write_folder(tmp_path / "c", {"x.json": b'{"shapes":' * 200_000})
    with raises_user_error("format"):
        custom(tmp_path, form=form, sources=(tmp_path / "c",))
    (tmp_path / "t.json").write_bytes(b"[" * 200_000)
    with raises_user_error("format"):
        read_table(tmp_path / "t.json")


@pytest.mark.parametrize("line", ["a" * 2000, "1 " * 1000, ",".join("ab" * 700)])
def test_class_lists_with_endless_lines(tmp_path: Path, line: str) -> None:
    (tmp_path / "t.txt").write_text(f"road 1 2 3\n{line}\n")
    with raises_user_error("classes", "t.txt"):
        read_table(tmp_path / "t.txt")
