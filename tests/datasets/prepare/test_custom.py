# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Labels of one's own in every form, the split, the config, and the way back."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from advice import advises
from custom_sets import build, custom, label_map, masks, write_labelme, write_masks
from PIL import Image
from real_data import DATA, needs
from test_custom_coco import coco_data
from tiny_archives import jpeg, labels_of, png_of, tree, write_folder
from user_errors import raises_user_error

from mmseg_resnest.datasets.class_names import read_classes
from mmseg_resnest.datasets.label_map import dataset_metainfo
from mmseg_resnest.datasets.prepare import CustomReport, export_labels
from mmseg_resnest.datasets.prepare.tables import read_table
from mmseg_resnest.engine.config import load_config

CLASSES = "sky 10 20 30\nroad 40 50 60\ncar 70 80 90\n__ignore__ 0 0 0\n"


@pytest.fixture
def truth(tmp_path: Path) -> dict[str, np.ndarray]:
    """Four images with index maps: 0..2 and 255."""
    maps = {}
    for n in range(4):
        labels = labels_of(n, 4)
        maps[f"a_{n}"] = np.where(labels == 3, 255, labels).astype(np.uint8)
    write_folder(tmp_path / "images", {f"{n}.jpg": jpeg(i) for i, n in enumerate(maps)})
    write_folder(tmp_path / "labels", {f"{n}.png": png_of(m) for n, m in maps.items()})
    (tmp_path / "classes.txt").write_text(CLASSES)
    return maps


FORMS = {
    "labelme": ("labelme", dict(sources="")),
    "coco": ("coco", dict(sources="annotations.json")),
    "coco-rle": ("coco", dict(sources="annotations.json")),
    "coco-rle-list": ("coco", dict(sources="annotations.json")),
    "colour": ("colour", dict(sources="masks", images="images", classes="colours.json")),
}


def _options(form: str, top: Path, classes: Path) -> dict[str, Any]:
    kind, paths = FORMS[form]
    options: dict[str, Any] = {key: top / value for key, value in paths.items()}
    return {"form": kind, "classes": classes, **options, "sources": (options["sources"],)}


@pytest.mark.parametrize("form", FORMS)
def test_there_and_back(tmp_path: Path, truth: dict[str, np.ndarray], form: str) -> None:
    classes = tmp_path / "classes.txt"
    before = tree(tmp_path)
    out = tmp_path / "out"
    assert export_labels(tmp_path / "images", tmp_path / "labels", classes, form, out, 1) == 4
    report = custom(tmp_path, **_options(form, out, classes))
    for name, labels in truth.items():
        np.testing.assert_array_equal(label_map(tmp_path, name), labels)
        image = (tmp_path / f"data/mine/images/{name}.jpg").read_bytes()
        assert image == (tmp_path / f"images/{name}.jpg").read_bytes()
    assert [name for name, *_ in report.classes] == ["sky", "road", "car"]
    pixels = np.array([[t, v] for *_, t, v in report.classes]).sum(axis=1)
    flat = np.concatenate([labels.ravel() for labels in truth.values()])
    np.testing.assert_array_equal(pixels, [(flat == label).sum() for label in range(3)])
    assert {n: s for n, s in tree(tmp_path).items() if n in before} == before
    first = tree(tmp_path)
    assert custom(tmp_path, **_options(form, out, classes)).unchanged
    assert tree(tmp_path) == first


def test_index_masks(tmp_path: Path, truth: dict[str, np.ndarray]) -> None:
    # Among them a palette file and one of 16 bits; a name in the list may be ignored.
    write_folder(tmp_path / "labels", {"a_1.png": png_of(truth["a_1"], list(range(256)) * 3)})
    Image.fromarray(truth["a_2"].astype(np.uint16)).save(tmp_path / "labels/a_2.png")
    report = custom(tmp_path, ignore=("road",), **masks(tmp_path))
    assert [name for name, *_ in report.classes] == ["sky", "car"]
    table = np.array([0, 255, 1, *[255] * 253], dtype=np.uint8)
    for name, labels in truth.items():
        np.testing.assert_array_equal(label_map(tmp_path, name), table[labels])
        assert Image.open(tmp_path / f"data/mine/annotations/{name}.png").mode == "L"


def test_classes_merged_by_the_config(tmp_path: Path, truth: dict[str, np.ndarray]) -> None:
    """The files keep all classes; the config and the counts have those that are left."""
    name = 'a "{{ b }}" \n'
    label_map = {"road": name, "car": name}
    report = custom(tmp_path, **masks(tmp_path), label_map=label_map)
    assert len(read_classes(tmp_path / "data/mine/classes.json")["classes"]) == 3
    flat = np.concatenate([labels.ravel() for labels in truth.values()])
    assert [(n, t + v) for n, _, t, v in report.classes] == [
        ("sky", (flat == 0).sum()),
        (name, np.isin(flat, [1, 2]).sum()),
    ]
    cfg = load_config(report.config)
    assert cfg.model.decode_head.num_classes == 2
    assert list(dataset_metainfo(cfg.train_dataloader.dataset)["classes"]) == ["sky", name]
    assert list(build(cfg, "val").metainfo["classes"]) == ["sky", name]
    sample = build(cfg, "val")[0]
    stem = Path(sample["data_samples"].img_path).stem
    expected = np.array([0, 1, 1, *[255] * 253])[truth[stem]]
    np.testing.assert_array_equal(sample["data_samples"].gt_sem_seg.data[0], expected)
    with raises_user_error("config-value", "--label-map"):
        custom(tmp_path, **masks(tmp_path), label_map={"bike": "car"})
    with raises_user_error("classes", "--label-map"):
        custom(tmp_path, **masks(tmp_path), label_map={"road": "sky", "car": "ignore"})


def test_another_colour_table_or_form_makes_every_label_map_again(
    tmp_path: Path, truth: dict[str, np.ndarray]
) -> None:
    """Not only what a file is made from counts, but every setting that reaches it."""
    colours = {"sky": [0, 0, 0], "road": [1, 1, 1], "car": [2, 2, 2], "__ignore__": [255] * 3}
    swapped = {**colours, "sky": [1, 1, 1], "road": [0, 0, 0]}
    options: dict[str, Any] = dict(sources=(tmp_path / "labels",), images=tmp_path / "images")

    def made_with(table: dict[str, list[int]], form: str = "colour") -> CustomReport:
        (tmp_path / "table.json").write_text(json.dumps(table))
        return custom(tmp_path, form=form, classes=tmp_path / "table.json", **options)

    exchanged = np.arange(256, dtype=np.uint8)
    exchanged[:2] = 1, 0
    made_with(swapped)
    for name, labels in truth.items():
        np.testing.assert_array_equal(label_map(tmp_path, name), exchanged[labels])
    assert made_with(colours).done["made"] >= len(truth)
    for name, labels in truth.items():
        np.testing.assert_array_equal(label_map(tmp_path, name), labels)
    # The same files, table and classes, read in another form.
    assert made_with(swapped, "index").done["made"] >= len(truth)
    report = made_with(swapped)
    assert report.done["made"] >= len(truth)
    for name, labels in truth.items():
        np.testing.assert_array_equal(label_map(tmp_path, name), exchanged[labels])
    assert made_with(swapped).unchanged


def test_labelme_shapes_and_image_data(tmp_path: Path) -> None:
    small = io.BytesIO()
    Image.fromarray(np.array([[1, 0], [1, 1]], dtype=np.uint8)).save(small, "PNG")
    shapes = [
        dict(label="a", points=[[0, 0], [8, 6]], shape_type="rectangle"),
        dict(label="b", points=[[4, 3], [5, 3]], shape_type="circle"),
        dict(label="c", points=[[0, 0], [3, 0], [0, 3]], shape_type="polygon"),
        dict(
            label="d",
            points=[[6, 4], [7, 5]],
            shape_type="mask",
            mask=base64.b64encode(small.getvalue()).decode(),
        ),
        dict(label="__ignore__", points=[[7, 0], [8, 0], [8, 1], [7, 1]], shape_type=None),
    ]
    data = dict(
        shapes=shapes, imagePath="x.jpg", imageHeight=6, imageWidth=8,
        imageData=base64.b64encode(jpeg(0)).decode(),
    )  # fmt: skip
    members = {f"{n}.json": json.dumps(data).encode() for n in ("x", "deep/y")}
    source = write_folder(tmp_path / "source", members)
    report = custom(tmp_path, form="labelme", sources=(source,))
    assert [name for name, *_ in report.classes] == ["a", "b", "c", "d"]
    expected = np.zeros((6, 8), np.uint8)
    expected[2:4, 3:5] = 1
    expected[0, :2] = expected[1, :1] = 2
    expected[4:6, 6] = expected[5, 7] = 3
    expected[0, 7] = 255
    for name in ("x", "deep/y"):
        np.testing.assert_array_equal(label_map(tmp_path, name), expected)
        assert (tmp_path / f"data/mine/images/{name}.jpg").read_bytes() == jpeg(0)
    data["shapes"][2]["shape_type"] = "line"  # type: ignore[index]
    write_folder(source, {"x.json": json.dumps(data).encode()})
    with raises_user_error("annotation", "x.json"):
        custom(tmp_path, form="labelme", sources=(source,))


def test_background_and_order_of_names(tmp_path: Path) -> None:
    shape = dict(label="cat", points=[[0, 0], [2, 0], [2, 2], [0, 2]])
    data = dict(shapes=[shape], imagePath="x.jpg", imageData=base64.b64encode(jpeg(0)).decode())
    members = {f"{n}.json": json.dumps(data).encode() for n in ("x", "y")}
    source = write_folder(tmp_path / "source", members)
    with raises_user_error("classes", source):
        custom(tmp_path, form="labelme", sources=(source,))
    custom(tmp_path, form="labelme", sources=(source,), background="ground")
    expected = np.zeros((6, 8), np.uint8)
    expected[:2, :2] = 1
    np.testing.assert_array_equal(label_map(tmp_path, "x"), expected)


@pytest.mark.parametrize("form", ["index", "labelme", "coco"])
def test_a_root_among_the_sources(tmp_path: Path, form: str) -> None:
    top = tmp_path / "photos"
    if form == "coco":
        write_folder(top, {f"a_{n}.jpg": jpeg(n) for n in range(2)})
        (top / "x.json").write_text(json.dumps(coco_data()))
        options: dict[str, Any] = dict(form=form, sources=(top,))
    elif form == "labelme":
        write_labelme(tmp_path, ["a", "b"])
        (tmp_path / "lm").rename(top)
        options = dict(form=form, sources=(top,))
    else:
        options = write_masks(tmp_path, ["x", "y", "z"])
        (tmp_path / "images").rename(top)
        options["images"] = top
    first = custom(tmp_path, root="photos/data", name="inside", **options)
    again = custom(tmp_path, root="photos/data", name="inside", **options)
    assert again.unchanged and again.splits == first.splits
    other = custom(tmp_path, root="photos/other", name="mine", **options)
    assert other.splits == first.splits


def test_bad_masks(tmp_path: Path, truth: dict[str, np.ndarray]) -> None:
    index = masks(tmp_path)
    with raises_user_error("argument-missing", "--classes"):
        custom(tmp_path, **{**index, "classes": None})
    write_folder(tmp_path / "labels", {"a_3.png": png_of(labels_of(0, 9))})
    with raises_user_error("label", "a_3.png"):
        custom(tmp_path, **index)
    write_folder(tmp_path / "labels", {"a_3.png": png_of(labels_of(0, 3, (6, 6)))})
    with raises_user_error("size-mismatch", "a_3.png"):
        custom(tmp_path, **index)
    write_folder(tmp_path / "labels", {"a_3.png": jpeg(0)})
    with raises_user_error("label", "a_3.png"):
        custom(tmp_path, **index)
    with raises_user_error("label", "a_3.png"):
        custom(tmp_path, **{**index, "form": "colour"})
    (tmp_path / "labels/a_3.png").unlink()
    with raises_user_error("dataset", "a_3.jpg"):
        custom(tmp_path, **index)
    write_folder(tmp_path / "labels", {"b.png": png_of(truth["a_1"])})
    with raises_user_error("dataset", "b.png"):
        custom(tmp_path, **index)


def test_sizes_are_those_after_exif_rotation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    Image.open(io.BytesIO(jpeg(0))).save(stream, "JPEG", exif=exif.tobytes())
    write_folder(tmp_path / "images", {"x.jpg": stream.getvalue(), "y.jpg": stream.getvalue()})
    turned = png_of(labels_of(0, 3, (6, 8)))
    write_folder(tmp_path / "labels", {"x.png": turned, "y.png": turned})
    (tmp_path / "classes.txt").write_text(CLASSES)
    custom(tmp_path, **masks(tmp_path))


def test_unknown_colours_are_listed_and_the_draft_helps(
    tmp_path: Path, truth: dict[str, np.ndarray]
) -> None:
    options = masks(tmp_path, "colour")
    palette = np.array([(0, 0, 0), (9, 8, 7), (255, 255, 255)], dtype=np.uint8)
    for name, labels in truth.items():
        Image.fromarray(palette[labels % 255]).save(tmp_path / f"labels/{name}.png")
    (tmp_path / "classes.txt").write_text("a 0 0 0\n")
    draft = tmp_path / "data/mine_colours.txt"
    for classes in (options["classes"], None):
        with advises("datasets/prepare/custom.py:_unknown_colours", "--classes") as told:
            custom(tmp_path, **options | {"classes": classes})
        assert told.value.code == "label" and str(draft) in told.value.message
        assert len(read_table(draft)) == 3
    report = custom(tmp_path, **options | {"classes": draft})
    pixels = np.bincount(np.concatenate([labels.ravel() % 255 for labels in truth.values()]))
    assert sorted(train + val for *_, train, val in report.classes) == sorted(pixels.tolist())


def test_masks_of_0_and_255_name_the_command_that_reads_them(
    tmp_path: Path, truth: dict[str, np.ndarray]
) -> None:
    options = masks(tmp_path)
    for name, labels in truth.items():
        Image.fromarray(((labels == 1) * 255).astype(np.uint8)).save(
            tmp_path / f"labels/{name}.png"
        )
    (tmp_path / "classes.txt").write_text("rest\nthing\n")
    with advises("datasets/prepare/custom.py:_check_two_values", "--format colour", "--classes"):
        custom(tmp_path, **options)
    draft = tmp_path / "data/mine_colours.txt"
    report = custom(tmp_path, **options | {"form": "colour", "classes": draft})
    assert [name for name, *_ in report.classes] == ["rest", "thing"]
    for name, labels in truth.items():
        np.testing.assert_array_equal(label_map(tmp_path, name), labels == 1)


def _write(folder: Path, **files: Any) -> None:
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)


_TABLE = "{} 10 20 30\n{} 40 50 60\n{} 70 80 90\n__ignore__ 0 0 0\n"
#: What changes between two calls: a change of the sources, and options.
CHANGES: dict[str, tuple[Any, dict[str, Any]]] = {
    "nothing": (None, {}),
    "a table edited in place": (
        lambda top: _write(top, classes__txt=_TABLE.format("road", "sky", "car")), {}
    ),
    "merged classes": (lambda top: _write(top, classes__txt=_TABLE.format("a", "a", "b")), {}),
    "a name changed": (lambda top: _write(top, classes__txt=_TABLE.format("sky", "a", "car")), {}),
    "ignored": (None, dict(ignore=("road",))),
    "another seed": (None, dict(seed=3)),
    "another share": (None, dict(val_fraction=0.5)),
    "one group": (None, dict(group_pattern="(.).*", val_fraction=0.5)),
    "another suffix": (None, dict(sources="more", label_suffix="_mask")),
    "labels of the same names": (None, dict(sources="other")),
    "other images": (
        lambda top: write_folder(top / "images", {"a_1.jpg": jpeg(9), "a_2.jpg": jpeg(8)}), {}
    ),
    "images in another format": (
        lambda top: [
            Image.open(file).save(file.with_suffix(".png")) or file.unlink()
            for file in sorted((top / "images").iterdir())
        ],
        {},
    ),
    "fewer images": (
        lambda top: [(top / name).unlink() for name in ("images/a_1.jpg", "labels/a_1.png")], {}
    ),
    "apart": (None, dict(val_sources="apart", val_images="apart_images")),
    "another list": (lambda top: _write(top, val__txt="a_1\na_3\n"), dict(val_list="val.txt")),
    "the list edited": (lambda top: _write(top, val__txt="a_0\na_3\n"), dict(val_list="val.txt")),
}  # fmt: skip


def _sources(top: Path, truth: dict[str, np.ndarray]) -> None:
    """The sources that CHANGES begin with and choose from."""
    palette = [10, 20, 30, 40, 50, 60, 70, 80, 90, *[0] * 759]
    colour = {
        n: Image.open(io.BytesIO(png_of(m, palette))).convert("RGB") for n, m in truth.items()
    }
    for folder in ("labels", "other", "more", "apart"):
        (top / folder).mkdir(exist_ok=True)
    for name, picture in colour.items():
        picture.save(top / "labels" / f"{name}.png")
        picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(top / "other" / f"{name}.png")
        picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(top / "more" / f"{name}_mask.png")
    colour["a_0"].save(top / "apart" / "v.png")
    write_folder(top / "apart_images", {"v.jpg": jpeg(7)})
    write_folder(top / "images", {f"{n}.jpg": jpeg(i) for i, n in enumerate(truth)})
    _write(top, classes__txt=CLASSES, val__txt="a_2\n")
    (top / "images" / "a_1.png").unlink(missing_ok=True)
    for file in (top / "images").glob("*.png"):
        file.unlink()


@pytest.mark.parametrize("name", CHANGES)
def test_a_second_call_gives_what_a_first_one_would(
    tmp_path: Path, truth: dict[str, np.ndarray], name: str
) -> None:
    """After any change, and back: as in an empty root."""
    change, more = CHANGES[name]

    def prepare(root: str, **options: Any) -> dict[str, bytes]:
        chosen: dict[str, Any] = dict(sources="labels", images="images", classes="classes.txt")
        chosen.update(options)
        files = ("images", "classes", "val_list", "val_images")
        chosen.update({k: tmp_path / v for k, v in chosen.items() if k in files})
        for key in {"sources", "val_sources"} & set(chosen):
            chosen[key] = (tmp_path / chosen[key],)
        (tmp_path / "configs/mine.py").unlink(missing_ok=True)
        report = custom(tmp_path, root=root, form="colour", **chosen)
        cfg = load_config(report.config)
        found = {
            split: [
                (Path(info["img_path"]).read_bytes(), Path(info["seg_map_path"]).read_bytes())
                for info in map(dataset.get_data_info, range(len(dataset)))
            ]
            for split in ("train", "val")
            if (dataset := build(cfg, split))
        }
        meta = dataset_metainfo(cfg.train_dataloader.dataset)
        return {**found, "meta": meta, "pixels": report.classes, "notes": report.notes}

    _sources(tmp_path, truth)
    first = prepare("data")
    if change is not None:
        change(tmp_path)
    second = prepare("data", **more)
    assert second == prepare("fresh", **more)
    assert (second == first) == (name == "nothing")
    _sources(tmp_path, truth)
    assert prepare("data") == first


def test_validation_images_named_or_apart(tmp_path: Path, truth: dict[str, np.ndarray]) -> None:
    (tmp_path / "val.txt").write_text("a_2.jpg\n")
    options = masks(tmp_path)
    assert custom(tmp_path, val_list=tmp_path / "val.txt", **options).splits["val"] == ["a_2"]
    (tmp_path / "val.txt").write_text("b\n")
    with raises_user_error("argument", "val.txt"):
        custom(tmp_path, val_list=tmp_path / "val.txt", **options)
    write_folder(tmp_path / "images2", {"v.jpg": jpeg(0)})
    write_folder(tmp_path / "labels2", {"v.png": png_of(truth["a_1"])})
    apart = dict(val_sources=(tmp_path / "labels2",), val_images=tmp_path / "images2")
    report = custom(tmp_path, **apart, **options)
    assert report.splits == {"train": ["a_0", "a_1", "a_2", "a_3"], "val": ["v"]}


def test_the_config_trains_as_it_is(tmp_path: Path, truth: dict[str, np.ndarray]) -> None:
    options = masks(tmp_path)
    report = custom(tmp_path, inherits="fcn_resnest50_ade20k", epochs=80, **options)
    cfg = load_config(report.config, data_root=tmp_path / "data")
    assert cfg.model.decode_head.num_classes == cfg.model.auxiliary_head.num_classes == 3
    assert dataset_metainfo(cfg.train_dataloader.dataset) == {
        "classes": ["sky", "road", "car"],
        "palette": [[10, 20, 30], [40, 50, 60], [70, 80, 90]],
    }
    assert cfg.train_cfg.max_iters == cfg.param_scheduler[-1].end - 1 == 80
    for split in ("train", "val"):
        dataset = build(cfg, split)
        infos = [dataset.get_data_info(n) for n in range(len(dataset))]
        assert sorted(Path(info["img_path"]).stem for info in infos) == report.splits[split]
        assert dataset[0]["data_samples"].gt_sem_seg.data.max() <= 255
    # A base with class weights and a warm-up of its own data set.
    cfg = load_config(
        custom(tmp_path, inherits="fcn_resnest14_camvid", epochs=80, **options).config
    )
    assert cfg.model.decode_head.loss_decode.class_weight is None
    assert [s.type for s in cfg.param_scheduler] == ["LinearLR", "PolyLR"]
    # In a short run it would have one step, in which LinearLR stays where it begins.
    cfg = load_config(
        custom(tmp_path, inherits="fcn_resnest14_camvid", epochs=12, **options).config
    )
    assert [s.type for s in cfg.param_scheduler] == ["PolyLR"]


@pytest.mark.parametrize("name", ["1a", "a-b", "class", "../x", ""])
def test_bad_names(tmp_path: Path, name: str) -> None:
    with raises_user_error("argument"):
        custom(tmp_path, name=name, form="labelme", sources=(tmp_path,))


@needs("camvid")
@pytest.mark.parametrize("form", FORMS)
def test_real_labels_there_and_back(tmp_path: Path, form: str) -> None:
    """CamVid in each form and back: no pixel changes but void, which becomes 255."""
    files = sorted((DATA / "camvid" / "valannot").iterdir())[::34]
    (tmp_path / "labels").mkdir()
    for file in files:
        (tmp_path / "labels" / file.name).symlink_to(file)
    from mmseg_resnest.datasets import CamVidDataset

    names = CamVidDataset.METAINFO["classes"]
    classes = tmp_path / "classes.txt"
    classes.write_text("".join(f"{name}\n" for name in names))
    out = tmp_path / "out"
    export_labels(DATA / "camvid" / "val", tmp_path / "labels", classes, form, out, 1)
    custom(tmp_path, **_options(form, out, out / "colours.json" if form == "colour" else classes))
    for file in files:
        labels = np.asarray(Image.open(file))
        expected = np.where(labels == 11, 255, labels)
        np.testing.assert_array_equal(label_map(tmp_path, file.stem), expected)
