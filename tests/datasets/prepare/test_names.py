# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Names of classes and folders that would be code or templates; tests/security has the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from custom_sets import build, custom, write_labelme, write_masks
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from mmengine.config import Config
from tiny_archives import write_folder
from user_errors import raises_user_error

from mmseg_resnest.datasets.check import check_data
from mmseg_resnest.datasets.class_names import classes_json, read_classes
from mmseg_resnest.datasets.label_map import dataset_metainfo
from mmseg_resnest.datasets.prepare import CustomOptions, export_labels
from mmseg_resnest.datasets.prepare.custom_config import config_text
from mmseg_resnest.datasets.prepare.tables import read_table
from mmseg_resnest.engine.config import load_config
from mmseg_resnest.evaluation.visualize import legend
from mmseg_resnest.export.publish import publish
from mmseg_resnest.inference import load_segmentor

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
    """A canary would lie in a folder of its own."""
    monkeypatch.chdir(tmp_path)


@given(st.lists(is_name, min_size=2, max_size=5, unique=True))
@example(BREAKOUTS)
def test_any_name_comes_back_from_the_classes_file(
    tmp_path_factory: pytest.TempPathFactory, classes: list[str]
) -> None:
    file = tmp_path_factory.mktemp("classes") / "classes.json"
    file.write_bytes(classes_json([(name, (n, 0, 255)) for n, name in enumerate(classes)]))
    assert read_classes(file)["classes"] == classes
    assert [row.name for row in read_table(file)] == classes


@pytest.mark.parametrize("form", ["coco", "index"])
def test_names_from_labels_to_the_data_set_and_no_code_runs(tmp_path: Path, form: str) -> None:
    options = write_masks(tmp_path, "xy")
    options["classes"] = tmp_path / "names.json"
    options["classes"].write_text(json.dumps(BREAKOUTS))
    expected = BREAKOUTS
    if form == "coco":
        square = [[0, 0, 4, 0, 4, 6, 0, 6]]
        numbers = range(len(BREAKOUTS))
        data = dict(
            images=[dict(id=n, file_name=f"{name}.jpg") for n, name in enumerate("xy")],
            categories=[dict(id=n, name=BREAKOUTS[n]) for n in numbers],
            annotations=[dict(image_id=n % 2, category_id=n, segmentation=square) for n in numbers],
        )
        (tmp_path / "c.json").write_text(json.dumps(data))
        options = dict(form="coco", sources=(tmp_path / "c.json",), images=tmp_path / "images")
        options["ignore"] = (BREAKOUTS[3],)
        expected = sorted({*BREAKOUTS} - {BREAKOUTS[3]})
    report = custom(tmp_path, **options)
    assert [name for name, *_ in report.classes] == expected
    cfg = load_config(report.config)
    assert cfg.model.decode_head.num_classes == len(expected)
    assert build(cfg).metainfo["classes"] == expected
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
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
    options = CustomOptions("mine", "index", ())
    if "::" in above:
        with raises_user_error("argument", "--base"):
            config_text(options, Path(root), 2, 4, 2, config, read, 1)
        return
    config.write_text(config_text(options, Path(root), 2, 4, 2, config, read, 1), encoding="utf-8")
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
    options = write_labelme(tmp_path, BREAKOUTS[:4])
    report = custom(tmp_path, **options)
    expected = [name for name, *_ in report.classes]
    model = load_segmentor(report.config, weights=None)
    assert model.classes == expected
    assert model.palette == [list(colour) for _, colour, *_ in report.classes]
    result = model(tmp_path / "lm/x.jpg")
    assert list(result.areas()) == expected
    assert repr(result).isprintable()
    publish(model, tmp_path / "published")
    assert load_segmentor(tmp_path / "published").classes == expected
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
        custom(tmp_path, **write_labelme(tmp_path, ["a", name]))
    assert str(error.value).encode()
    assert not (tmp_path / "data").exists() and not (tmp_path / "configs").exists()
    (tmp_path / "t.json").write_text(json.dumps([{"name": name, "color": [1, 2, 3]}]))
    for read in (read_table, read_classes):
        with raises_user_error("classes", "t.json"):
            read(tmp_path / "t.json")


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
    cfg = load_config(custom(tmp_path, **write_labelme(tmp_path, ["a", "b"])).config)
    both = {**cfg.val_dataloader.dataset, "metainfo": dict(classes=["a", "b"])}
    with raises_user_error(("config-conflict", "classes"), "classes.json"):
        dataset_metainfo(both)
    (tmp_path / "data/mine/classes.json").unlink()
    with raises_user_error("not-found", "classes.json"):
        dataset_metainfo(cfg.val_dataloader.dataset)


def test_names_come_back_from_every_exported_form(tmp_path: Path) -> None:
    write_masks(tmp_path, "01")
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
