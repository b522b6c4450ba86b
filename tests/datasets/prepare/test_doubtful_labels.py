# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Labels that can be read in two ways: notes say which was taken, and what takes the other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from custom_sets import label_map, recognised, told
from PIL import Image
from tiny_archives import encoded, jpeg, labels_of, png_of, write_folder
from user_errors import raises_user_error

NAMES = "abcdef"
SIZE = (32, 24)


def truth(n: int, high: int = 3) -> np.ndarray:
    return labels_of(n, high, SIZE)


def write(folder: Path, numbers: list[int], names: str = "") -> Path:
    """Writes photos, and masks that hold these numbers; ``names`` is a list of classes."""
    for n, name in enumerate(NAMES):
        mask = np.array(numbers, np.uint8)[truth(n, len(numbers))]
        files = {f"images/{name}.jpg": jpeg(n, SIZE), f"masks/{name}.png": png_of(mask)}
        write_folder(folder, files)
    if names:
        (folder / "classes.txt").write_text(names)
    return folder


@pytest.mark.parametrize("ignored", [[250], [254], [254, 255]])
def test_numbers_that_may_mean_ignored(tmp_path: Path, ignored: list[int]) -> None:
    folder = write(tmp_path / "s", [0, 1, 2, *ignored])
    note = next(note for note in told(folder).notes if "--ignore" in note)
    assert all(str(number) in note for number in ignored)
    names = note.rpartition("--ignore ")[2].split()
    report = told(folder, ignore=tuple(names))
    assert [row[0] for row in report.classes] == [f"colour_{3 * f'0{n}'}" for n in range(3)]
    for n, name in enumerate(NAMES):
        mask = truth(n, 3 + len(ignored))
        assert np.array_equal(label_map(tmp_path, name), np.where(mask > 2, 255, mask))


@pytest.mark.parametrize("numbers", [[0, 250], [0, 128, 250], [0, 1, 2], [0, 60, 120, 240]])
def test_numbers_of_classes_alone(tmp_path: Path, numbers: list[int]) -> None:
    assert not any("--ignore" in note for note in told(write(tmp_path / "s", numbers)).notes)


def test_numbers_that_count_objects(tmp_path: Path) -> None:
    folder = write(tmp_path / "s", [0, 1, 2])

    def count(first: int) -> None:
        for n, name in enumerate(NAMES):
            mask = np.zeros((24, 32), np.uint8)
            mask[0, 1 : 8 + n] = np.arange(first, first + 7 + n)
            write_folder(folder, {f"masks/{name}.png": png_of(mask)})

    count(1)
    assert any("count objects?" in note for note in told(folder).notes)
    count(2)
    assert not any("count objects?" in note for note in told(folder).notes)


@pytest.mark.parametrize(
    "names", ["crack\nbackground\n", "background\ncrack\n", "Background\ncrack"]
)
def test_black_is_the_background_wherever_a_list_names_it(tmp_path: Path, names: str) -> None:
    report = told(write(tmp_path / "s", [0, 255], names))
    assert [row[0].lower() for row in report.classes] == ["background", "crack"]
    assert np.array_equal(label_map(tmp_path, "a"), truth(0, 2))


def test_a_list_that_does_not_fit_is_told(tmp_path: Path) -> None:
    notes = told(write(tmp_path / "s", [0, 255], "crack\nhole\nrust\n")).notes
    assert any("classes.txt is not used" in note for note in notes)
    assert not any(note.startswith("classes: those of") for note in notes)


def test_numbers_without_a_name_are_told(tmp_path: Path) -> None:
    """Where the list counts from 1 the background is of no class, and said to be ignored."""
    folder = write(tmp_path / "s", [0, 1, 2], "1,car\n2,dog\n")
    assert any("are 0 in the masks" in note for note in told(folder).notes)
    (folder / "classes.txt").write_text("0,none\n1,car\n2,dog\n")
    assert not any("and ignored" in note for note in told(folder).notes)


@pytest.mark.parametrize(
    ("orientation", "size", "said"), [(1, SIZE, 0), (3, SIZE, 1), (6, (24, 24), 1)]
)
def test_images_that_exif_data_turn(
    tmp_path: Path, orientation: int, size: tuple[int, int], said: int
) -> None:
    """Of which no size tells whether the mask was drawn on the turned one."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    for n, name in enumerate(NAMES):
        write_folder(tmp_path / "s/masks", {f"{name}.png": png_of(labels_of(n, 3, size))})
        (tmp_path / "s/images").mkdir(exist_ok=True)
        photo = np.random.default_rng(n).integers(0, 255, (size[1], size[0], 3), np.uint8)
        Image.fromarray(photo).save(tmp_path / f"s/images/{name}.jpg", exif=exif)
    notes = told(tmp_path / "s").notes
    assert sum("turned or mirrored" in note for note in notes) == said


def test_lists_of_some_images(tmp_path: Path) -> None:
    folder = write(tmp_path / "s", [0, 1, 2])
    (folder / "train.txt").write_text("a\nb\n")
    assert any("train.txt is not used" in note for note in recognised(folder)[1])
    (folder / "val.txt").write_text("c\nd\n")
    assert "2 images that no list names are trained on, e.g. e" in recognised(folder)[1]
    (folder / "train.txt").write_text("a\nb\ne\nf\n")
    assert not any("no list" in note for note in recognised(folder)[1])


OTHERS = {
    "Annotations/a.xml": ("<annotation><filename>a.jpg</filename><object><name>x</name><polygon>"
                          "<pt><x>1</x><y>2</y></pt></polygon></object></annotation>", "LabelMe"),
    "Annotations/b.xml": ("<annotation><object><bndbox/></object></annotation>", "boxes"),
    "ships.csv": ("id,class,segmentation\na,large,1 3 10 5\n", "run lengths"),
    "via.csv": ("filename,file_size,region_shape_attributes\n", "VIA"),
    "out/task-1-annotation-2-by-1-tag-car-0.png": ("", "Label Studio"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_other_forms_are_called_by_their_names(tmp_path: Path, name: str) -> None:
    text, tool = OTHERS[name]
    data = text.encode() or encoded(truth(0), "PNG")
    write_folder(tmp_path / "s", {"images/a.jpg": jpeg(0), "images/b.jpg": jpeg(1), name: data})
    with raises_user_error("empty", "s") as caught:
        told(tmp_path / "s")
    assert tool in caught.value.message and f"({name})" in caught.value.message
