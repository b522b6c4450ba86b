# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Folders as other tools, cameras, systems and servers leave them."""

from __future__ import annotations

import copy
import json
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from advice import advises, helps
from custom_sets import custom, label_map, masks, told, write_labelme, write_masks
from PIL import Image
from tiny_archives import encoded, jpeg, labels_of, png_of, tiff, write_folder
from user_errors import raises_user_error

from mmseg_resnest.datasets.layout import listed_names
from mmseg_resnest.datasets.prepare.samples import image_size

SQUARES = [[[0, 0], [4, 0], [4, 6], [0, 6]], [[4, 0], [8, 0], [8, 6], [4, 6]]]


def write_coco(folder: Path, file: str, names: str = "abcd", ends: str = ".jpg") -> None:
    """Writes images and a COCO file: ``cat`` is on their left and ``dog`` on their right."""
    record: dict[str, Any] = {"images": [], "annotations": []}
    record["categories"] = [{"id": n, "name": name} for n, name in enumerate(("cat", "dog"))]
    for n, name in enumerate(names):
        write_folder(folder, {f"{name}{ends}": jpeg(n)})
        image = {"id": n, "file_name": f"{name}{ends.lower()}", "width": 8, "height": 6}
        record["images"].append(image)
        record["annotations"] += [
            {
                "id": 2 * n + c,
                "image_id": n,
                "category_id": c,
                "segmentation": [np.ravel(square).tolist()],
            }
            for c, square in enumerate(SQUARES)
        ]
    write_folder(folder, {file: json.dumps(record).encode()})


# ---- LabelMe's files, and those of tools that write its form


def test_rectangles_of_four_corners(tmp_path: Path) -> None:
    """X-AnyLabeling writes four corners, and turned rectangles."""
    shapes = [
        {"label": "cat", "shape_type": "rectangle", "points": SQUARES[0]},
        {"label": "dog", "shape_type": "rotation", "points": SQUARES[1]},
    ]
    custom(tmp_path, **write_labelme(tmp_path, ["cat", "dog"], shapes=shapes))
    assert np.array_equal(label_map(tmp_path, "x"), [[0] * 4 + [1] * 4] * 6)
    shapes[0]["points"] = SQUARES[0][:3]
    options = write_labelme(tmp_path, ["cat", "dog"], shapes=shapes)
    with raises_user_error("annotation", "x.json"):
        custom(tmp_path, **options)


@pytest.mark.parametrize("listed", [False, True])
def test_accents_in_labels(tmp_path: Path, listed: bool) -> None:
    """Of two computers, one of which writes a letter and its accent as two characters."""
    one, two = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    shapes = [{"label": one, "points": SQUARES[0]}, {"label": "dog", "points": SQUARES[1]}]
    write_labelme(tmp_path, [two, "dog"], shapes=shapes)
    if listed:
        (tmp_path / "lm/classes.txt").write_text(f"{two}\ndog\n")
    assert [row[0] for row in told(tmp_path / "lm").classes] == [two if listed else one, "dog"]
    assert np.array_equal(label_map(tmp_path, "x"), [[0] * 4 + [1] * 4] * 6)
    assert np.array_equal(label_map(tmp_path, "y"), [[0, 1] + [255] * 6] * 6)


def test_json_files_beside_labelme(tmp_path: Path) -> None:
    """A list of classes and a converted copy are no images' labels; a damaged file is."""
    write_labelme(tmp_path, ["cat", "dog"])
    folder = tmp_path / "lm"
    write_folder(folder, {"classes.json": b'["dog", "cat"]', "zz.json": b'{"images": []}'})
    report = told(folder)
    assert [row[0] for row in report.classes] == ["dog", "cat"]
    assert any(note.startswith("2 JSON files") for note in report.notes)
    (folder / "y.json").write_text("{}")
    with raises_user_error("annotation", "y.json"):
        told(folder)


def test_the_background_of_labelme(tmp_path: Path) -> None:
    """``labels.txt`` of LabelMe's own converter names what no shape covers."""
    write_labelme(tmp_path, ["cat", "dog"])
    assert any("--background" in note for note in told(tmp_path / "lm").notes)
    (tmp_path / "lm/labels.txt").write_text("__ignore__\n_background_\ncat\ndog\n")
    report = told(tmp_path / "lm")
    assert [row[0] for row in report.classes] == ["_background_", "cat", "dog"]
    assert np.array_equal(label_map(tmp_path, "x"), [[1, 2] + [0] * 6] * 6)
    assert not any("--background" in note for note in report.notes)


def test_a_file_that_was_copied_from_another_image(tmp_path: Path) -> None:
    """It lies beside ``y.jpg`` and names ``x.jpg``: nobody can tell which of them was drawn on."""
    options = write_labelme(tmp_path, ["cat", "dog"])
    right, other = ((tmp_path / f"lm/{name}.json").read_text() for name in "yx")
    (tmp_path / "lm/y.json").write_text(other)
    write_folder(tmp_path / "lm", {"z.jpg": jpeg(3), "z.json": right.replace("y.", "z.").encode()})
    (tmp_path / "lm/x.json").unlink()
    for more in ({}, {"images": tmp_path / "lm"}):
        with advises("datasets/prepare/labelme.py:_image", "correct the one"):
            custom(tmp_path, **options, **more)
    (tmp_path / "lm/y.json").write_text(right)
    assert custom(tmp_path, **options).config


# ---- COCO


def test_all_files_of_coco(tmp_path: Path) -> None:
    """The official archive has keypoints and captions of the same images beside the instances."""
    for split, names in (("train", "abc"), ("val", "d")):
        write_coco(tmp_path / f"s/{split}2017", "x.json", names)
        file = tmp_path / f"s/{split}2017/x.json"
        (tmp_path / "s/annotations").mkdir(exist_ok=True)
        for kind in ("instances", "person_keypoints"):
            shutil.copy(file, tmp_path / f"s/annotations/{kind}_{split}2017.json")
        file.unlink()
    report = told(tmp_path / "s")
    assert report.splits == {"train": ["a", "b", "c"], "val": ["d"]}
    assert any("person_keypoints_val2017.json" in note for note in report.notes)


@pytest.mark.parametrize("images", ["images/{}", "{}", "{}/images"])
def test_parts_with_images_of_equal_names(tmp_path: Path, images: str) -> None:
    """Each part counts from 0: the labels of one must not meet the images of another."""
    place = tmp_path / "s"
    for first, split in ((0, "train"), (50, "val")):
        folder = place / images.format(split)
        write_coco(folder, "x.json", "abc")
        for n, name in enumerate("abc"):
            write_folder(folder, {f"{name}.jpg": jpeg(first + n)})
        (place / "annotations").mkdir(exist_ok=True)
        (folder / "x.json").rename(place / f"annotations/instances_{split}.json")
    assert told(place).splits == {s: [f"{s}/{x}" for x in "abc"] for s in ("train", "val")}
    assert (tmp_path / "data/mine/images/val/a.jpg").read_bytes() == jpeg(50)


def test_labels_of_images_in_one_of_several_parts(tmp_path: Path) -> None:
    """A file that names no part may be that of each part whose images have these names."""
    for split in ("train", "test"):
        write_coco(tmp_path / "s" / split, "x.json")
    (tmp_path / "s/train/x.json").rename(tmp_path / "s/labels.json")
    (tmp_path / "s/test/x.json").unlink()
    helps("datasets/prepare/recognise.py:_images_of", "move one out",
          call=lambda: told(tmp_path / "s"),
          remedy=lambda: (tmp_path / "s/test").rename(tmp_path / "other"))  # fmt: skip


def test_two_folders_with_the_images(tmp_path: Path) -> None:
    write_coco(tmp_path / "s/photos", "x.json")
    shutil.copytree(tmp_path / "s/photos", tmp_path / "s/pictures")
    (tmp_path / "s/labels").mkdir()
    (tmp_path / "s/photos/x.json").rename(tmp_path / "s/labels/x.json")
    (tmp_path / "s/pictures/x.json").unlink()
    helps("datasets/prepare/recognise.py:_images_of", "move one out",
          call=lambda: told(tmp_path / "s"),
          remedy=lambda: (tmp_path / "s/pictures").rename(tmp_path / "other"))  # fmt: skip


def test_polygons_as_tools_write_them(tmp_path: Path) -> None:
    """VGG's has no list around a single one; converters from YOLO forget to multiply."""
    write_coco(tmp_path / "s", "labels.json")
    file = tmp_path / "s/labels.json"
    right = json.loads(file.read_text())
    for outline in (lambda flat: flat, lambda flat: [[x / 8 for x in flat]]):
        record = copy.deepcopy(right)
        for one in record["annotations"]:
            one["segmentation"] = outline(one["segmentation"][0])
        file.write_text(json.dumps(record))
        if isinstance(record["annotations"][0]["segmentation"][0], list):
            with raises_user_error("annotation", "labels.json") as caught:
                told(tmp_path / "s")
            assert "fractions of the image" in caught.value.message
        else:
            told(tmp_path / "s")
            assert np.array_equal(label_map(tmp_path, "a"), [[0] * 4 + [1] * 4] * 6)


def test_labels_of_an_image_in_two_files(tmp_path: Path) -> None:
    """As of two annotators, or one file a class."""
    write_coco(tmp_path / "s", "one.json")
    write_coco(tmp_path / "s", "two.json")
    with advises("datasets/prepare/custom.py:_read_samples", "--source"):
        told(tmp_path / "s")
    assert told(tmp_path / "s/one.json").config


def test_labels_that_share_an_image(tmp_path: Path) -> None:
    """Two cameras count from 0, and their images were put into one folder."""
    write_coco(tmp_path / "s", "labels.json", "ab")
    file = tmp_path / "s/labels.json"
    right = json.loads(file.read_text())
    wrong = copy.deepcopy(right)
    for n, image in enumerate(wrong["images"]):
        image["file_name"] = f"camera{n}/a.jpg"
    file.write_text(json.dumps(wrong))
    helps("datasets/prepare/custom.py:_read_samples", "correct the name",
          call=lambda: told(tmp_path / "s"),
          remedy=lambda: file.write_text(json.dumps(right)))  # fmt: skip


def test_endings_in_capitals(tmp_path: Path) -> None:
    """As a camera writes them, where the labels come from a system that does not tell cases."""
    write_coco(tmp_path / "s", "labels.json", ends=".JPG")
    assert sum(map(len, told(tmp_path / "s").splits.values())) == 4


def test_sizes_of_images_that_exif_turns(tmp_path: Path) -> None:
    write_coco(tmp_path / "s", "labels.json")
    exif = Image.Exif()
    exif[0x0112] = 6
    image = tmp_path / "s/a.jpg"
    Image.open(image).save(image, exif=exif)
    helps("datasets/prepare/coco.py:_render", "remove its EXIF data", call=lambda: told(
        tmp_path / "s"), remedy=lambda: Image.open(image).save(image))  # fmt: skip
    Image.open(image).resize((16, 12)).save(image)
    with advises("datasets/prepare/coco.py:_render", "correct the file"):
        told(tmp_path / "s")
    file = tmp_path / "s/labels.json"
    record = json.loads(file.read_text())
    record["images"][0] |= {"width": 16, "height": 12}
    file.write_text(json.dumps(record))
    assert told(tmp_path / "s")


# ---- images


@pytest.mark.parametrize("end", ["ppm", "jp2"])
def test_images_that_opencv_reads(tmp_path: Path, end: str) -> None:
    options = write_masks(tmp_path, "abcd")
    for file in list((tmp_path / "images").iterdir()):
        Image.open(file).save(file.with_suffix(f".{end}"))
        file.unlink()
    assert custom(tmp_path, **options).suffixes == (f".{end}",)


def test_a_tiff_that_is_turned(tmp_path: Path) -> None:
    """Pillow says the size of the turned one, which is what OpenCV reads."""
    file = tmp_path / "a.tif"
    pixels = np.zeros((6, 8, 3), np.uint8)
    for orientation, size in ((1, (6, 8)), (3, (6, 8)), (6, (8, 6))):
        tag = (274, 3, 1, orientation, True)
        tifffile.imwrite(file, pixels, photometric="rgb", extratags=[tag])
        assert image_size(file, file) == size


RGBX = np.random.default_rng(0).integers(0, 255, (6, 8, 4), np.uint8)
TIFFS = {
    "rgb": (tiff(RGBX[..., :3], photometric="rgb"), None),
    "alpha": (tiff(RGBX, photometric="rgb", extrasamples=[2]), None),
    "bilevel": (tiff(RGBX[..., 0] > 99, photometric="minisblack"), None),
    "near infrared": (tiff(RGBX, photometric="rgb", extrasamples=[0]), 4),
    "pages": (tiff(np.moveaxis(RGBX[..., :3], 2, 0), photometric="minisblack"), 3),
    "16 bits": (tiff(RGBX[..., :3].astype(np.uint16), photometric="rgb"), 3),
}


@pytest.mark.parametrize("kind", TIFFS)
def test_photos_and_bands(tmp_path: Path, kind: str) -> None:
    options = write_masks(tmp_path, "abcd", ".tif")
    data, bands = TIFFS[kind]
    for name in "abcd":
        (tmp_path / f"images/{name}.tif").write_bytes(data)
    found = custom(tmp_path, **options).bands
    assert (found and len(found.mean)) == bands


def test_images_of_phones(tmp_path: Path) -> None:
    """They are there, but cannot be read; once converted they can."""
    phone, png = tmp_path / "images/a.HEIC", png_of(labels_of(0, 9))
    options = write_masks(tmp_path, "abcd")
    (tmp_path / "images/a.jpg").rename(phone)
    helps("datasets/prepare/masks.py:read_masks", "convert it to PNG",
          call=lambda: custom(tmp_path, **options),
          remedy=lambda: phone.with_suffix(".png").write_bytes(png))  # fmt: skip
    (tmp_path / "configs/mine.py").unlink()
    options = write_labelme(tmp_path, ["cat", "dog"], imagePath="x.heic")
    (tmp_path / "lm/x.jpg").rename(tmp_path / "lm/x.heic")
    helps("datasets/prepare/labelme.py:_image", "convert it to PNG",
          call=lambda: custom(tmp_path, "other", **options),
          remedy=lambda: (tmp_path / "lm/x.png").write_bytes(png))  # fmt: skip
    (tmp_path / "configs/mine.py").unlink()
    write_coco(tmp_path / "s", "labels.json", ends=".heic")
    with raises_user_error("annotation", "labels.json") as caught:
        told(tmp_path / "s")
    assert "4 images of kinds that are not read" in caught.value.message
    file = tmp_path / "s/labels.json"
    file.write_text(file.read_text().replace(".heic", ".png"))
    for image in (tmp_path / "s").glob("*.heic"):
        image.with_suffix(".png").write_bytes(png)
    assert told(tmp_path / "s")


def test_images_of_very_many_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = write_masks(tmp_path, "abcd")
    large = {"images/a.jpg": jpeg(0, (32, 24)), "labels/a.png": png_of(labels_of(0, 3, (32, 24)))}
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    write_folder(tmp_path, large)

    def cut() -> None:
        small = {"images/a.jpg": jpeg(0), "labels/a.png": png_of(labels_of(0, 3))}
        write_folder(tmp_path, small)

    helps("datasets/prepare/labels.py:too_large", "cut it into tiles",
          call=lambda: custom(tmp_path, **options), remedy=cut)  # fmt: skip


def test_images_of_16_bits(tmp_path: Path) -> None:
    """As PNG they are read as photos, as TIFF as they are."""
    options = write_masks(tmp_path, "abcd")
    for n, name in enumerate("abcd"):
        (tmp_path / f"images/{name}.jpg").unlink()
        deep = np.random.default_rng(n).integers(0, 4096, (6, 8), np.uint16)
        Image.fromarray(deep).save(tmp_path / f"images/{name}.png")
    assert any("saved as TIFF" in note for note in custom(tmp_path, **options).notes)
    for file in list((tmp_path / "images").iterdir()):
        Image.open(file).save(file.with_suffix(".tif"))
        file.unlink()
    report = custom(tmp_path, **options)
    assert report.bands and report.bands.mean[0] > 1000


# ---- masks


def test_masks_in_two_folders(tmp_path: Path) -> None:
    """Mapillary Vistas has labels of two versions."""
    write_masks(tmp_path / "s", "abcd")
    for version in ("v1.2", "v2.0"):
        shutil.copytree(tmp_path / "s/labels", tmp_path / f"s/{version}/labels")
    shutil.rmtree(tmp_path / "s/labels")
    (tmp_path / "s/classes.txt").unlink()
    helps("datasets/prepare/recognise_masks.py:found_masks", "move one of them elsewhere",
          call=lambda: told(tmp_path / "s"),
          remedy=lambda: shutil.rmtree(tmp_path / "s/v1.2"))  # fmt: skip


def test_masks_in_black_and_white_as_jpeg(tmp_path: Path) -> None:
    for n, name in enumerate("abcd"):
        white = np.repeat(np.repeat(labels_of(n, 2), 8, 0), 8, 1) * np.uint8(255)
        write_folder(tmp_path / "s/images", {f"{name}.jpg": jpeg(n, white.shape[::-1])})
        write_folder(tmp_path / "s/masks", {f"{name}.jpg": encoded(white, "JPEG")})

    def save() -> None:
        for file in list((tmp_path / "s/masks").iterdir()):
            grey = np.asarray(Image.open(file))
            Image.fromarray((grey > 127) * np.uint8(255)).save(file.with_suffix(".png"))
            file.unlink()

    helps("datasets/prepare/labels.py:check_lossless", "save it as PNG with 0",
          call=lambda: told(tmp_path / "s"), remedy=save)  # fmt: skip
    assert np.array_equal(label_map(tmp_path, "a")[::8, ::8], labels_of(0, 2))


def test_photos_and_masks_of_one_name_in_a_folder(tmp_path: Path) -> None:
    write_masks(tmp_path / "s", "abcd")
    for kind in ("images", "labels"):
        for file in list((tmp_path / "s" / kind).iterdir()):
            file.rename(tmp_path / "s" / file.name)
        (tmp_path / "s" / kind).rmdir()
    with raises_user_error("empty", "s") as caught:
        told(tmp_path / "s")
    assert "move the masks into a folder `masks`" in caught.value.message
    (tmp_path / "s/masks").mkdir()
    for file in list((tmp_path / "s").glob("*.png")):
        file.rename(tmp_path / "s/masks" / file.name)
    assert [row[0] for row in told(tmp_path / "s").classes] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("images_{}", "labels_{}"),
        ("img_dir/{}", "ann_dir/{}"),  # MMSegmentation's own example
        ("{}/images_png", "{}/masks_png"),
        ("{}/image_2", "{}/semantic"),
    ],
)
def test_names_of_folders(tmp_path: Path, images: str, labels: str) -> None:
    for split, names in (("train", "abc"), ("val", "d")):
        write_masks(tmp_path / split, names)
        for kind, place in (("images", images), ("labels", labels)):
            target = tmp_path / "s" / place.format(split)
            target.parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / split / kind).rename(target)
    assert told(tmp_path / "s").splits == {"train": ["a", "b", "c"], "val": ["d"]}


def test_folders_of_systems_and_servers(tmp_path: Path) -> None:
    options = write_masks(tmp_path, "abcd")
    for kind in ("images", "labels"):
        write_folder(tmp_path / kind / "@eaDir/a.jpg", {"SYNOPHOTO_THUMB_M.jpg": jpeg(0)})
    assert sum(map(len, custom(tmp_path, **options).splits.values())) == 4
    assert masks(tmp_path) == options


def test_lists_of_pairs(tmp_path: Path) -> None:
    """As PaddleSeg has them, from the folder that the list is in."""
    place = tmp_path / "s"
    write_masks(place, "abcd")
    lines = "images/c.jpg labels/c.png\nimages/d.jpg labels/d.png\n"
    (place / "val.txt").write_text(lines)
    with advises("datasets/layout.py:listed_names", "keep the first of the names"):
        listed_names(place / "val.txt", place / "images", place, (), {}.__contains__)
    with raises_user_error("argument", "val.txt"):
        told(place)
    (place / "val.txt").write_text("images/c.jpg\nimages/d.jpg\n")
    assert told(place).splits["val"] == ["c", "d"]


def test_copies_stay_in_one_part(tmp_path: Path) -> None:
    """As downloads and cameras leave them; in both parts they would be a leak."""
    names = [f"photo{chr(97 + n)}" for n in range(12)]
    options = write_masks(tmp_path, names)
    for name, others in (("photoa", ["photob", "photof"]), ("photok", ["photol"])):
        for other in others:
            shutil.copy(tmp_path / f"images/{name}.jpg", tmp_path / f"images/{other}.jpg")
    for seed in range(4):
        report = custom(tmp_path, force=True, seed=seed, **options)
        for copies in ({"photoa", "photob", "photof"}, {"photok", "photol"}):
            assert len(copies & set(report.splits["val"])) in (0, len(copies))
        assert any(note.startswith("3 images are copies") for note in report.notes)
    (tmp_path / "val.txt").write_text("photoa\nphotoc\nphotok\n")
    listed = custom(tmp_path, val_list=tmp_path / "val.txt", **options)
    assert any(note.startswith("2 images are in both parts") for note in listed.notes)
    (tmp_path / "images/photol.jpg").write_bytes(jpeg(99))
    assert any(note.startswith("2 images") for note in custom(tmp_path, **options).notes)


def test_images_that_are_not_labelled_yet(tmp_path: Path) -> None:
    options = write_masks(tmp_path, "abcdef")
    for name in "ef":
        (tmp_path / f"labels/{name}.png").unlink()
    with advises("datasets/prepare/masks.py:read_masks", "leave them out with --allow-incomplete"):
        custom(tmp_path, **options)
    report = custom(tmp_path, **options, allow_incomplete=True)
    assert sorted(report.splits["train"] + report.splits["val"]) == [*"abcd"]
    assert any(note.startswith("2 images have no mask") for note in report.notes)


def test_json_files_that_are_none(tmp_path: Path) -> None:
    place = tmp_path / "s"
    write_masks(place, "abcd")
    (place / "notes.json").write_text("my notes")
    helps("datasets/prepare/recognise.py:_form_of", "move it out of the folder",
          call=lambda: told(place), remedy=(place / "notes.json").unlink)  # fmt: skip


def test_sizes_as_text(tmp_path: Path) -> None:
    options = write_labelme(tmp_path, ["cat", "dog"], imageHeight="6", imageWidth="8")
    assert custom(tmp_path, **options)
    write_coco(tmp_path / "s", "labels.json")
    file = tmp_path / "s/labels.json"
    file.write_text(file.read_text().replace('"height": 6', '"height": "6"'))
    assert told(tmp_path / "s")
