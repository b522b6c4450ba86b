# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Submissions: names, folders, numbers, checks and the zip, read back with other code."""

import zipfile

import numpy as np
import pytest
from PIL import Image
from user_errors import raises_user_error

from mmseg_resnest.evaluation import FORMATS, Submission

NAMES = {
    "cityscapes": ["berlin_000000_000019_leftImg8bit.png", "bonn_000001_000019_leftImg8bit.png"],
    "ade20k": ["ADE_test_00000001.jpg", "ADE_test_00000002.jpg"],
    "voc": ["2008_000006.jpg", "2008_000011.jpg"],
}


def make(root, name):
    """Two images and their predictions, written as the server wants them."""
    images = []
    for i, file in enumerate(NAMES[name]):
        path = root / "images" / file
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (20 + i, 10)).save(path)
        images.append(str(path))
    submission = Submission(name, images, FORMATS[name].classes)
    predictions = {}
    for i, image in enumerate(images):
        labels = np.random.default_rng(i).integers(0, FORMATS[name].classes, (10, 20 + i))
        predictions[image] = labels
        target = root / "out" / submission.files[image]
        target.parent.mkdir(parents=True, exist_ok=True)
        submission.picture(labels).save(target)
    return submission, images, predictions


@pytest.mark.parametrize("name", NAMES)
def test_what_the_server_reads_is_what_was_predicted(tmp_path, name):
    from cityscapesscripts.helpers.labels import trainId2label

    submission, images, predictions = make(tmp_path, name)
    submission.check(tmp_path / "out")
    packed = submission.pack(tmp_path / "out", tmp_path / "out.zip")
    expected = {
        "cityscapes": [
            "berlin_000000_000019_pred_labelIds.png",
            "bonn_000001_000019_pred_labelIds.png",
        ],
        "ade20k": ["ADE_test_00000001.png", "ADE_test_00000002.png"],
        "voc": [
            f"results/VOC2012/Segmentation/comp6_test_cls/{n}.png"
            for n in ("2008_000006", "2008_000011")
        ],
    }[name]
    with zipfile.ZipFile(packed) as archive:
        assert archive.namelist() == expected
        for image, file in zip(images, expected, strict=True):
            with archive.open(file) as stream, Image.open(stream) as picture:
                values = np.asarray(picture).astype(int)
                mode = picture.mode
            if name == "cityscapes":
                back = np.vectorize({trainId2label[k].id: k for k in range(19)}.get)(values)
            else:
                back = values - (name == "ade20k")
            assert mode == ("P" if name == "voc" else "L")
            np.testing.assert_array_equal(back, predictions[image])
    before = packed.read_bytes()
    assert submission.pack(tmp_path / "out", packed).read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images", "out", "out.zip"]


def test_cityscapes_names_are_found_by_the_official_script(tmp_path):
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official

    make(tmp_path, "cityscapes")
    args = official.CArgs()
    args.predictionPath, args.predictionWalk = str(tmp_path / "out"), None
    found = official.getPrediction(args, "gtFine/berlin_000000_000019_gtFine_labelIds.png")
    assert found == str(tmp_path / "out" / "berlin_000000_000019_pred_labelIds.png")


def test_voc_colours_are_the_official_ones(tmp_path):
    submission, _, _ = make(tmp_path, "voc")
    picture = submission.picture(np.arange(21).reshape(3, 7))
    colours = np.array(picture.getpalette()[:63]).reshape(21, 3)
    from mmseg.datasets import PascalVOCDataset

    np.testing.assert_array_equal(colours, PascalVOCDataset.METAINFO["palette"])


def test_check_finds_what_the_server_would_refuse(tmp_path):
    submission, _, _ = make(tmp_path, "ade20k")
    first = tmp_path / "out" / "ADE_test_00000001.png"
    good = first.read_bytes()
    for spoil, code in (
        (lambda: first.unlink(), "not-found"),
        (lambda: first.write_bytes(good[:30]), "image"),
        (lambda: Image.new("L", (20, 11), 1).save(first), "size-mismatch"),
        (lambda: Image.new("L", (20, 10), 0).save(first), "label"),
        (lambda: Image.new("L", (20, 10), 151).save(first), "label"),
        (lambda: Image.new("RGB", (20, 10)).save(first), "image"),
    ):
        spoil()
        with raises_user_error(code, first):
            submission.check(tmp_path / "out")
        first.write_bytes(good)
    submission.check(tmp_path / "out")
    (tmp_path / "out" / "old.png").write_bytes(good)
    with raises_user_error("output-exists", "old.png"):
        submission.check(tmp_path / "out")


def test_what_cannot_be_submitted():
    with raises_user_error("classes", "--format"):
        Submission("cityscapes", [], 150)
    with raises_user_error("argument", "--format coco"):
        Submission("coco", [], 3)
    with raises_user_error("dataset"):
        Submission("cityscapes", ["a/photo.png"], 19)
    with raises_user_error("dataset"):
        Submission("ade20k", ["a/x.jpg", "b/x.jpg"], 150)


def test_a_zip_that_cannot_be_written(tmp_path):
    submission, _, _ = make(tmp_path, "ade20k")
    (tmp_path / "file").touch()
    with raises_user_error("not-writable", "out.zip"):
        submission.pack(tmp_path / "out", tmp_path / "file" / "out.zip")
