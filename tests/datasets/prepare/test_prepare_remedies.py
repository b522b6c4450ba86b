# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What the errors of ``prepare-data`` tell people to do is done, and then it works."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from advice import advises, helps
from custom_sets import CONFIGS, custom, write_labelme, write_masks
from mmengine.config import Config
from PIL import Image
from test_custom_coco import coco_data
from tiny_archives import encoded, jpeg, labels_of, png_of, write_folder

from mmseg_resnest.datasets.prepare import CustomOptions
from mmseg_resnest.datasets.prepare.custom_config import config_text
from mmseg_resnest.datasets.prepare.outputs import Outputs
from mmseg_resnest.datasets.prepare.recognise import recognise_options
from mmseg_resnest.datasets.prepare.tables import read_table
from mmseg_resnest.engine.config import load_config

SQUARE = [[0, 0], [2, 0], [2, 2], [0, 2]]


def colours(seed: int, number: int = 3) -> bytes:
    """A mask of a few colours, as PNG."""
    palette = np.arange(3 * number, dtype=np.uint8).reshape(number, 3) * 20
    return encoded(palette[labels_of(seed, number)], "PNG")


class Mine:
    """A data set of one's own whose options and files a test changes."""

    def __init__(self, folder: Path, options: dict[str, Any]) -> None:
        self.folder, self.options = folder, options

    def __call__(self) -> Any:
        return custom(self.folder, **self.options)

    def set(self, **options: Any) -> None:
        self.options |= options

    def label(self, name: str, data: bytes) -> None:
        write_folder(self.folder / "labels", {f"{name}.png": data})

    def names(self, *names: str) -> None:
        """The class list."""
        self.write(("\n".join(names) + "\n").encode())

    def write(self, names: bytes) -> None:
        (self.folder / "classes.txt").write_bytes(names)


@pytest.fixture
def mine(tmp_path: Path) -> Mine:
    return Mine(tmp_path, write_masks(tmp_path, ["a_1", "a_2", "a_3"]))


@pytest.fixture
def labelme(tmp_path: Path) -> Mine:
    return Mine(tmp_path, write_labelme(tmp_path, ["cat", "dog"]))


def edit(labelme: Mine, **change: Any) -> None:
    """Changes the first file of LabelMe."""
    file = labelme.folder / "lm/x.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))


# --- masks ----------------------------------------------------------------------------------


def test_options_of_masks(mine: Mine) -> None:
    folder = mine.folder
    mine.set(images=None)
    images = folder / "images"
    helps("datasets/prepare/masks.py:read_masks", "give the folder of images",
          call=mine, remedy=lambda: mine.set(images=images))  # fmt: skip
    mine.set(classes=None)
    helps("datasets/prepare/masks.py:read_masks", "give the list of the names",
          call=mine, remedy=lambda: mine.set(classes=folder / "classes.txt"))  # fmt: skip
    mine.label("b", png_of(labels_of(1, 3)))
    with advises("datasets/prepare/masks.py:read_masks", "--label-suffix"):
        mine()
    (folder / "labels/b.png").unlink()
    for file in (folder / "labels").iterdir():
        file.rename(file.with_name(f"{file.stem}_mask.png"))
    with advises("datasets/prepare/masks.py:read_masks", "--label-suffix"):
        mine()
    mine.set(label_suffix="_mask")
    mine()
    write_folder(images, {"new.jpg": jpeg(9)})
    with advises("datasets/prepare/masks.py:read_masks", "add it or move"):
        mine()
    mine.label("new_mask", png_of(labels_of(1, 3)))
    mine()
    (folder / "labels/new_mask.png").unlink()
    helps("datasets/prepare/masks.py:read_masks", "add it or move",
          call=mine, remedy=lambda: (images / "new.jpg").rename(folder / "new.jpg"))  # fmt: skip


def test_files_that_share_a_name(mine: Mine) -> None:
    again = mine.folder / "images/a_1.png"
    again.write_bytes(png_of(labels_of(1, 3)))
    helps("datasets/prepare/masks.py:images_in", "remove", call=mine, remedy=again.unlink)


def test_masks_of_other_kinds(mine: Mine) -> None:
    good = png_of(labels_of(1, 3))
    mine.label("a_1", encoded(labels_of(1, 3), "JPEG"))
    helps("datasets/prepare/labels.py:check_lossless", "lossless",
          call=mine, remedy=lambda: mine.label("a_1", good))  # fmt: skip
    mine.label("a_1", encoded(np.full((6, 8), -1, np.int32), "TIFF"))
    ignored = png_of(np.full((6, 8), 255, np.uint8))
    helps("datasets/prepare/labels.py:indices", "save ignored pixels as 255",
          call=mine, remedy=lambda: mine.label("a_1", ignored))  # fmt: skip
    deep = cv2.imencode(".png", np.zeros((6, 8, 3), np.uint16))[1]
    mine.label("a_1", deep.tobytes())
    helps("datasets/prepare/labels.py:indices", "save it as a grey image",
          call=mine, remedy=lambda: mine.label("a_1", good))  # fmt: skip
    mine.label("a_1", png_of(labels_of(0, 9)))
    helps("datasets/prepare/masks.py:_render_indices", "add the name",
          call=mine, remedy=lambda: mine.names(*"abcdefghi"))  # fmt: skip
    mine.names("a", "b", "c", *("__ignore__" for _ in range(6)))
    mine()
    wide = labels_of(0, 2).astype(np.uint16)
    mine.label("a_1", png_of(np.where(wide, 65535, 0).astype(np.uint16)))
    helps("datasets/prepare/masks.py:_render_indices", "save ignored",
          call=mine, remedy=lambda: mine.label("a_1", ignored))  # fmt: skip


def test_colours(mine: Mine) -> None:
    for n in (1, 2, 3):
        mine.label(f"a_{n}", colours(n))
    with advises("datasets/prepare/labels.py:indices", "--format colour"):
        mine()
    mine.names("a 0 20 40", "b 60 80 100", "c 120 140 160")
    mine.set(form="colour")
    assert len(mine().classes) == 3
    transparent = Image.fromarray(np.full((6, 8, 4), (0, 20, 40, 9), np.uint8))
    transparent.save(mine.folder / "labels/a_1.png")
    helps("datasets/prepare/masks.py:_render_colours", "without an alpha channel",
          call=mine, remedy=lambda: transparent.convert("RGB").save(
              mine.folder / "labels/a_1.png"))  # fmt: skip


def test_class_tables(mine: Mine) -> None:
    mine.names("")
    helps("datasets/prepare/tables.py:read_table", "one name a line",
          call=mine, remedy=lambda: mine.names("a", "b", "c"))  # fmt: skip
    mine.names("a 1 1 1", "b 1 1 1", "c 2 2 2")
    helps("datasets/prepare/tables.py:read_table", "give each its own",
          call=lambda: read_table(mine.options["classes"]),
          remedy=lambda: mine.names("a 1 1 1", "b 3 1 1", "c 2 2 2"))  # fmt: skip
    mine.names("a red", "b", "c")
    mine()
    mine.write("ü\nb\nc".encode("latin-1"))
    helps("datasets/prepare/tables.py:read_table", "save it as UTF-8",
          call=mine, remedy=lambda: mine.write("ü\nb\nc".encode()))  # fmt: skip
    mine.write(b"a, b\nb\nc")
    helps("datasets/prepare/tables.py:_only_name", "in quotes",
          call=mine, remedy=lambda: mine.write(b'"a, b"\nb\nc'))  # fmt: skip
    mine.names("a", "b", "b")
    helps("datasets/prepare/custom.py:prepare_custom", "rename or remove",
          call=mine, remedy=lambda: mine.names("a", "b", "c"))  # fmt: skip


def test_a_mask_that_was_not_turned(mine: Mine) -> None:
    image = mine.folder / "images/a_1.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(image).save(image, exif=exif)
    turned = png_of(np.rot90(labels_of(0, 3), -1))
    helps("datasets/prepare/masks.py:check_size", "turn the mask",
          call=mine, remedy=lambda: mine.label("a_1", turned))  # fmt: skip


# --- names, options and the config -----------------------------------------------------------


def test_names_of_images(mine: Mine) -> None:
    for folder, end in (("images", "jpg"), ("labels", "png")):
        (mine.folder / folder / f"a_1.{end}").rename(mine.folder / folder / f"a\n1.{end}")

    def rename() -> None:
        for folder, end in (("images", "jpg"), ("labels", "png")):
            (mine.folder / folder / f"a\n1.{end}").rename(mine.folder / folder / f"a_1.{end}")

    helps("datasets/prepare/custom.py:_check_name", "rename", call=mine, remedy=rename)
    mine.set(sources=(mine.folder / "labels", mine.folder / "more"), images=mine.folder / "images")
    shutil.copytree(mine.folder / "labels", mine.folder / "more")

    def tell_apart() -> None:
        for kind, name in (("images", "jpg"), ("more", "png")):
            for file in list((mine.folder / kind).iterdir()):
                shutil.copy(file, file.with_name(f"more_{file.stem}.{name}"))
                if kind == "more":
                    file.unlink()
        mine.set(sources=(mine.folder / "labels",))
        for file in (mine.folder / "more").iterdir():
            shutil.move(file, mine.folder / "labels")

    helps("datasets/prepare/custom.py:_read_samples", "name one with --source",
          call=mine, remedy=tell_apart)  # fmt: skip


def test_classes_of_labels(labelme: Mine) -> None:
    names = labelme.folder / "names.txt"
    names.write_text("cat\nbird\n")
    labelme.set(classes=names)
    with advises("datasets/prepare/custom.py:class_list", "add it there", "--ignore"):
        labelme()
    labelme.set(ignore=("dog",))
    labelme()
    labelme.set(ignore=())
    names.write_text("cat\nbird\ndog\n")
    labelme()
    labelme.set(classes=None, ignore=("dog",))
    helps("datasets/prepare/custom.py:class_list", "--background",
          call=labelme, remedy=lambda: labelme.set(background="ground"))  # fmt: skip
    labelme.set(background=None, ignore=())
    files = {file: file.read_text() for file in (labelme.folder / "lm").glob("*.json")}
    for file, text in files.items():
        file.write_text(json.dumps(json.loads(text) | {"shapes": []}))
    helps("datasets/prepare/custom.py:class_list", "label some of the images",
          call=labelme, remedy=lambda: [file.write_text(text) for file, text in files.items()]
    )  # fmt: skip


def test_names_and_configs_that_are_taken(
    mine: Mine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine()
    config = tmp_path / "configs/mine.py"
    ours = config.read_text()
    config.write_text("x = 1\n")
    with advises("datasets/prepare/custom.py:prepare_custom", "move it", "--force") as told:
        mine()
    assert told.value.code == "output-exists" and config.read_text() == "x = 1\n"
    mine.set(force=True)
    mine()
    assert config.read_text() == ours
    mine.set(force=False)
    config.write_text("x = 1\n")
    helps("datasets/prepare/custom.py:prepare_custom", "move it",
          call=mine, remedy=lambda: config.rename(tmp_path / "old.py"))  # fmt: skip


def test_a_base_that_does_not_serve(mine: Mine) -> None:
    (mine.folder / "base.py").write_text("model = dict()\n")
    mine.set(inherits=mine.folder / "base")
    helps("datasets/prepare/custom_config.py:config_text", "configs/",
          call=mine, remedy=lambda: mine.set(inherits="fcn_resnest14_scenes"))  # fmt: skip


def test_names_and_folders_that_are_taken(mine: Mine, tmp_path: Path) -> None:
    write_folder(tmp_path / "data/mine/.prepare", {"record.json": b"{}"})
    with Outputs(tmp_path / "data/mine") as outputs:
        outputs.record.about["data_set"] = "ade20k"
        outputs.record.save()
    with advises("datasets/prepare/custom.py:prepare_custom", "choose another name"):
        mine()
    mine.set(name="yours")
    mine()


def test_bases_that_do_not_serve(mine: Mine, tmp_path: Path) -> None:
    parent = load_config(CONFIGS / "fcn_resnest14_scenes.py")
    del parent.model.decode_head["num_classes"]

    def write(base: Config, folder: Path = tmp_path) -> str:
        options = CustomOptions("mine", "index", ())
        return config_text(options, tmp_path, 3, 8, 2, folder / "mine.py", base, 2)

    with advises("datasets/prepare/custom_config.py:_model_text", "take another config"):
        write(parent)
    other = load_config(CONFIGS / "fcn_resnest14_scenes.py")
    write(other)
    for name in ("a::b", "a_b"):
        write_folder(tmp_path / name, {"base.py": b""})
    inside = Config(other.to_dict(), filename=str(tmp_path / "a::b/base.py"))
    with advises("datasets/prepare/custom_config.py:config_text", "move or rename the folder"):
        write(inside)
    write(Config(other.to_dict(), filename=str(tmp_path / "a_b/base.py")))


def test_one_image(tmp_path: Path) -> None:
    mine = Mine(tmp_path, write_masks(tmp_path, ["a_1"]))
    with advises("datasets/prepare/split.py:split_by_groups", "add images", "--val-source"):
        mine()
    write_masks(tmp_path / "val", ["b"])
    mine.set(val_sources=(tmp_path / "val/labels",), val_images=tmp_path / "val/images")
    mine()
    mine.set(val_sources=(), val_images=None)
    write_masks(tmp_path, ["a_2"])
    mine()


def test_options_without_effect(mine: Mine, labelme: Mine, tmp_path: Path) -> None:
    mine.set(background="a")
    helps("datasets/prepare/masks.py:check_effects", "leave it out",
          call=mine, remedy=lambda: mine.set(background=None))  # fmt: skip
    labelme.set(label_suffix="_mask")
    helps("datasets/prepare/masks.py:check_effects", "leave it out with",
          call=labelme, remedy=lambda: labelme.set(label_suffix=""))  # fmt: skip
    write_masks(tmp_path / "val", ["b"])
    mine.set(val_images=tmp_path / "val/images")
    apart = (tmp_path / "val/labels",)
    helps("datasets/prepare/masks.py:check_effects", "give it, too",
          call=mine, remedy=lambda: mine.set(val_sources=apart))  # fmt: skip
    names = tmp_path / "val.txt"
    names.write_text("a_1\n")
    mine.set(val_list=names)
    helps("datasets/prepare/masks.py:check_effects", "leave one of them out",
          call=mine, remedy=lambda: mine.set(val_list=None))  # fmt: skip


def test_group_pattern(mine: Mine) -> None:
    mine.set(group_pattern="a_.")
    helps("datasets/prepare/split.py:_matching", "put ( )",
          call=mine, remedy=lambda: mine.set(group_pattern="a_(.)"))  # fmt: skip


# --- LabelMe and COCO -------------------------------------------------------------------------


def test_shapes_of_labelme(labelme: Mine) -> None:
    good = [dict(label="cat", points=SQUARE), dict(label="dog", points=SQUARE[::-1])]
    edit(labelme, shapes=[*good, dict(label="", points=SQUARE)])
    helps("datasets/prepare/labelme.py:_check_shape", "fix or remove",
          call=labelme, remedy=lambda: edit(labelme, shapes=good))  # fmt: skip
    line = dict(label="cat", points=SQUARE, shape_type="linestrip")
    edit(labelme, shapes=[*good, line])
    helps("datasets/prepare/labelme.py:_check_shape", "make it a polygon", call=labelme,
          remedy=lambda: edit(labelme, shapes=[*good, line | dict(shape_type="polygon")]),
    )  # fmt: skip
    edit(labelme, imageWidth=9, imageHeight=6)
    helps("datasets/prepare/labelme.py:_render", "label it again", call=labelme,
          remedy=lambda: edit(labelme, imageWidth=8, imageHeight=6))  # fmt: skip


def test_images_of_labelme(labelme: Mine) -> None:
    source, images = labelme.folder / "lm", labelme.folder / "elsewhere"
    images.mkdir()
    for name in ("x.jpg", "y.jpg"):
        (source / name).rename(images / name)
    helps("datasets/prepare/labelme.py:_image", "--images",
          call=labelme, remedy=lambda: labelme.set(images=images))  # fmt: skip
    labelme.set(images=None)
    shutil.copy(images / "y.jpg", source)
    edit(labelme, imageData="abcde")
    data = base64.b64encode((images / "x.jpg").read_bytes()).decode()
    helps("datasets/prepare/labelme.py:_image", "label it again",
          call=labelme, remedy=lambda: edit(labelme, imageData=data))  # fmt: skip
    bitmap = encoded(np.zeros((6, 8, 3), np.uint8), "BMP")
    edit(labelme, imageData=base64.b64encode(bitmap).decode())
    helps("datasets/prepare/labelme.py:_content_suffix", "save the image beside",
          call=labelme, remedy=lambda: shutil.copy(images / "x.jpg", source))  # fmt: skip


def test_annotations_of_coco(tmp_path: Path) -> None:
    boxes = coco_data()
    boxes["annotations"].append(dict(id=4, image_id=1, category_id=5, bbox=[0, 0, 2, 2]))
    write_folder(tmp_path / "c/images", {f"a_{n}.jpg": jpeg(n) for n in range(2)})
    file = tmp_path / "c/x.json"
    file.write_text(json.dumps(boxes))
    mine = Mine(tmp_path, dict(form="coco", sources=(file,)))
    with advises("datasets/prepare/coco.py:error", "correct them", "--allow-incomplete"):
        mine()
    mine.set(allow_incomplete=True)
    assert mine().notes
    mine.set(allow_incomplete=False)
    boxes["annotations"][-1]["segmentation"] = [[0, 0, 2, 0, 2, 2]]
    file.write_text(json.dumps(boxes))
    mine()


# --- what a folder holds ----------------------------------------------------------------------


def test_folders_that_are_told(mine: Mine, labelme: Mine) -> None:
    folder = mine.folder

    def tell(source: Path, form: str = "auto", **more: Any) -> CustomOptions:
        options = CustomOptions("mine", form, (source,), **more)
        return recognise_options(options, folder, 1)[0]

    with advises("datasets/prepare/recognise.py:recognise", "give the one with the images"):
        tell(folder / "classes.txt")
    with advises("datasets/prepare/recognise.py:recognise", "--source", "--images"):
        tell(folder / "images")
    mine()  # with --source and --images
    shutil.copytree(folder / "lm", folder / "both")
    for name in "xy":
        write_folder(folder / "both/masks", {f"{name}.png": png_of(labels_of(1, 3))})
    with advises("datasets/prepare/recognise.py:recognise", "--format"):
        tell(folder / "both")
    assert tell(folder / "both", "labelme").form == "labelme"
    assert tell(folder / "both", "index").form == "index"
    with advises("datasets/prepare/recognise.py:recognise", "leave that out"):
        tell(folder / "lm", "coco")
    assert tell(folder / "lm").form == "labelme"
    with advises("datasets/prepare/recognise.py:recognise_options", "name the form"):
        tell(folder / "lm", val_sources=(folder / "lm",))
    assert tell(folder / "lm", images=folder / "lm").form == "labelme"
    assert tell(folder / "lm/x.json", images=folder / "lm").sources == (folder / "lm/x.json",)
    labelme.set(images=folder / "lm")
    labelme()
