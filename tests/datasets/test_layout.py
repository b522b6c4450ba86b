# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
from pathlib import Path

import pytest
from mmengine.config import ConfigDict
from user_errors import raises_user_error

from mmseg_resnest.datasets.layout import check_dataset_folders, require_file, require_folder


def _touch(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_require_folder_returns_a_folder_with_files(tmp_path):
    _touch(tmp_path / "a" / "deep" / "1.png")
    assert require_folder(str(tmp_path / "a"), "Streets") == tmp_path / "a"
    assert require_folder(tmp_path / "a", "Streets", (".jpg", ".png")) == tmp_path / "a"


def test_require_folder_follows_links(tmp_path):
    _touch(tmp_path / "elsewhere" / "1.png")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "city").symlink_to(tmp_path / "elsewhere")
    require_folder(tmp_path / "root", "Streets", (".png",))


@pytest.mark.parametrize("case", ["missing", "empty", "file", "other suffix", "dangling link"])
def test_require_folder_names_folder_and_docs(tmp_path, case):
    folder = tmp_path / "images"
    if case == "empty":
        (folder / "below").mkdir(parents=True)
    elif case == "file":
        _touch(folder)
    elif case == "other suffix":
        _touch(folder / "notes.txt")
    elif case == "dangling link":
        folder.symlink_to(tmp_path / "gone")
    code = {"missing": "not-found", "dangling link": "not-found", "file": "wrong-path-type"}
    with raises_user_error(code.get(case, "empty"), folder) as error:
        require_folder(folder, "Streets", (".png",))
    assert "Streets" in error.value.message


def test_require_file(tmp_path):
    assert require_file(_touch(tmp_path / "list.txt"), "Streets") == tmp_path / "list.txt"
    with raises_user_error("not-found", "absent.txt"):
        require_file(tmp_path / "absent.txt", "Streets")
    with raises_user_error("empty", "blank.txt"):
        require_file(_touch(tmp_path / "blank.txt", " \n"), "Streets")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\xff")
    with raises_user_error("unreadable", "binary.txt"):
        require_file(tmp_path / "binary.txt", "Streets")


def _voc(root: Path) -> dict:
    return dict(
        type="PascalVOCDataset",
        data_root=str(root),
        ann_file="ImageSets/Segmentation/train.txt",
        data_prefix=dict(img_path="JPEGImages", seg_map_path="SegmentationClass"),
    )


def _write_voc(root: Path) -> None:
    _touch(root / "ImageSets/Segmentation/train.txt", "2007_1\n")
    _touch(root / "JPEGImages/2007_1.jpg")
    _touch(root / "SegmentationClass/2007_1.png")


def test_stock_data_set_that_is_there_passes(tmp_path):
    _write_voc(tmp_path)
    check_dataset_folders(_voc(tmp_path))
    check_dataset_folders(ConfigDict(_voc(tmp_path)))


@pytest.mark.parametrize(
    "broken",
    [
        "JPEGImages/2007_1.jpg",
        "SegmentationClass/2007_1.png",
        "ImageSets/Segmentation/train.txt",
    ],
)
@pytest.mark.parametrize("wrapper", ["none", "repeat", "concat", "list"])
def test_stock_data_set_with_a_part_missing(tmp_path, broken, wrapper):
    _write_voc(tmp_path)
    (tmp_path / broken).unlink()
    cfg = _voc(tmp_path)
    if wrapper == "repeat":
        cfg = dict(type="RepeatDataset", times=2, dataset=cfg)
    elif wrapper == "concat":
        cfg = dict(type="ConcatDataset", datasets=[cfg])
    elif wrapper == "list":
        cfg = dict(type="MultiImageMixDataset", dataset=dict(type="ConcatDataset", datasets=[cfg]))
    is_list = broken.endswith(".txt")
    named = tmp_path / (broken if is_list else Path(broken).parent)
    with raises_user_error("not-found" if is_list else "empty", named) as error:
        check_dataset_folders(cfg)
    assert "PascalVOCDataset" in error.value.message


def test_missing_data_root(tmp_path):
    with raises_user_error("not-found", tmp_path / "nowhere"):
        check_dataset_folders(_voc(tmp_path / "nowhere"))


def test_suffixes_come_from_the_class_unless_the_config_sets_them(tmp_path):
    # Cityscapes as downloaded: label ids, but not yet the train ids that the class reads.
    _touch(tmp_path / "leftImg8bit/train/aachen/a_leftImg8bit.png")
    _touch(tmp_path / "gtFine/train/aachen/a_gtFine_labelIds.png")
    cfg = dict(
        type="CityscapesDataset",
        data_root=str(tmp_path),
        data_prefix=dict(img_path="leftImg8bit/train", seg_map_path="gtFine/train"),
    )
    with raises_user_error("empty", tmp_path / "gtFine/train"):
        check_dataset_folders(cfg)
    check_dataset_folders(dict(cfg, seg_map_suffix="_gtFine_labelIds.png"))


def test_a_class_in_place_of_a_name_and_an_ann_file_that_is_a_folder(tmp_path):
    from mmseg.datasets import ADE20KDataset

    _touch(tmp_path / "images/1.jpg")
    cfg = dict(type=ADE20KDataset, data_root=str(tmp_path), data_prefix=dict(img_path="images"))
    check_dataset_folders(cfg)
    check_dataset_folders(dict(cfg, ann_file="images"))
    with raises_user_error("not-found", tmp_path / "pictures"):
        check_dataset_folders(dict(cfg, data_prefix=dict(img_path="pictures")))


def test_remote_and_unknown_data_sets_are_left_alone(tmp_path):
    remote = dict(_voc(tmp_path / "nowhere"), backend_args=dict(backend="http"))
    check_dataset_folders(remote)
    _touch(tmp_path / "images/1.bmp")
    cfg = dict(type="NotRegistered", data_root=str(tmp_path), data_prefix=dict(img_path="images"))
    check_dataset_folders(cfg)
