# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Makes hostile annotations and data set archives."""

from __future__ import annotations

import base64
import copy
import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from png_files import png_file
from sandbox import Sandbox
from tiny_archives import jpeg

Json = dict[str, Any]
HEIGHT, WIDTH = 6, 8  # of the images that ``jpeg`` makes


# --- LabelMe -------------------------------------------------------------------------------------


def labelme(box: Sandbox, **changes: Any) -> Path:
    """A folder of four LabelMe files with their images; ``changes`` go into the first."""
    folder = box.files / "labels"
    folder.mkdir()
    for number in range(4):
        (folder / f"a{number}.jpg").write_bytes(jpeg(number))
        points = [[0, 0], [WIDTH, 0], [WIDTH, HEIGHT]]
        data: Json = {
            "imagePath": f"a{number}.jpg",
            "imageHeight": None,
            "imageWidth": None,
            "shapes": [
                {"label": "sky", "points": points, "shape_type": "polygon"},
                {"label": "road", "points": [[0, 0], [2, 2]], "shape_type": "rectangle"},
            ],
        }
        if number == 0:
            data.update(copy.deepcopy(changes))
        (folder / f"a{number}.json").write_text(json.dumps(data))
    return folder


def shape(**changes: Any) -> Json:
    """One shape of a LabelMe file."""
    return {"label": "sky", "points": [[0, 0], [4, 0], [4, 4]], "shape_type": "polygon", **changes}


def bomb_png(width: int, height: int) -> bytes:
    """A PNG of zeros in few bytes: one row of 1-bit pixels, again and again."""
    return png_file(width, height, bytes(min((width // 8 + 2) * height, 1 << 22)), bits=1)


#: ``imagePath`` of the first file; none of these may be linked, copied or read.
PATHS = [
    "/etc/passwd",
    "{outside}/photo.jpg",
    "../../outside/photo.jpg",
    "..\\..\\outside\\photo.jpg",
    "a0.jpg/../../../outside/photo.jpg",
    "linked_folder/photo.jpg",
    "linked_image.jpg",
    "text.jpg",
    "a0.jpg\0",
    "x" * 5000,
    "\ud800.jpg",
    "/dev/zero",
    "..",
    "pipe.jpg",
    "http://127.0.0.1:9/a.jpg",
]


def add_links(box: Sandbox, folder: Path) -> None:
    """Links and strays that the paths above name."""
    import os

    (folder / "linked_folder").symlink_to(box.outside, target_is_directory=True)
    (folder / "linked_image.jpg").symlink_to(box.outside / "photo.jpg")
    (folder / "text.jpg").write_text("no image\n")
    os.mkfifo(folder / "pipe.jpg")


#: Class names that would break out of code or of MMEngine's templates.
NAMES = [
    '"]; {code} #',
    "'); {code} #",
    '"""\n{code}\n"""',
    "{{ fileDirname }}",
    "{{$HOME:x}}",
    "{{_base_.model}}",
    "${HOME}",
    "%(x)s {0} {x}",
    "a\\b",
    "a\nb",
    "a\u2028b",
    "a\0b",
    "\ufeffa",
    " a ",
    "'",
    '"',
    "sky road 1 2 3",
    "#ff0000",
    "straße 字 🏞",
    "a" * 10_000,
    "../../outside",
    "\x1b[31mred",
]

#: What stands in the place of a LabelMe file's parts.
LABELME: dict[str, Json] = {
    "size of 10^9": {"imageHeight": 10**9, "imageWidth": 10**9},
    "image data of text": {"imagePath": "none.jpg", "imageData": "no base64 \udcff"},
    "image data that is a pickle": {
        "imagePath": "none.jpg", "imageData": base64.b64encode(b"\x80\x04.").decode(),
    },
    "image data that is a bomb": {
        "imagePath": "none.jpg",
        "imageData": base64.b64encode(bomb_png(100_000, 100_000)).decode(),
    },
    "path of a list": {"imagePath": ["a0.jpg"]},
    "shapes of numbers": {"shapes": [1, 2]},
    "kind of a method": {"shapes": [shape(shape_type="__class__")]},
    "points NaN": {"shapes": [shape(points=[[float("nan"), 0], [1, 1], [2, 2]])]},
    "points of 10^308": {"shapes": [shape(points=[[1e308, -1e308], [-1e308, 1e308], [1e308, 0]])]},
    "points of 10^400": {"shapes": [shape(points=[[10**400, 0], [1, 1], [2, 2]])]},
    "mask that is a bomb": {
        "shapes": [shape(shape_type="mask",
                         mask=base64.b64encode(bomb_png(40_000, 4_000)).decode())]
    },
    "mask far outside": {
        "shapes": [shape(shape_type="mask", points=[[10**12, 10**12]],
                         mask=base64.b64encode(bomb_png(8, 1)).decode())]
    },
    "10^4 shapes": {"shapes": [shape(points=[])] * 10_000},
}  # fmt: skip


# --- COCO ----------------------------------------------------------------------------------------


def coco(box: Sandbox) -> Json:
    """A valid COCO record of four images, which are written beside it."""
    folder = box.files / "coco"
    folder.mkdir()
    for number in range(4):
        (folder / f"a{number}.jpg").write_bytes(jpeg(number))
    outline = [0, 0, WIDTH, 0, WIDTH, HEIGHT]
    return {
        "images": [
            {"id": n, "file_name": f"a{n}.jpg", "height": HEIGHT, "width": WIDTH} for n in range(4)
        ],
        "categories": [{"id": 1, "name": "sky"}, {"id": 2, "name": "road"}],
        "annotations": [
            {"id": n, "image_id": n % 4, "category_id": n // 4 + 1, "segmentation": [outline]}
            for n in range(8)
        ],
    }


def _annotation(segmentation: Any) -> Callable[[Json], None]:
    def change(record: Json) -> None:
        record["annotations"][0]["segmentation"] = segmentation

    return change


def _first(part: str, key: str, value: Any) -> Callable[[Json], None]:
    def change(record: Json) -> None:
        record[part][0][key] = value

    return change


def _part(key: str, value: Any) -> Callable[[Json], None]:
    def change(record: Json) -> None:
        record[key] = value

    return change


def _rle(counts: Any, size: Any = (HEIGHT, WIDTH)) -> Callable[[Json], None]:
    return _annotation({"counts": counts, "size": size})


COCO: dict[str, Callable[[Json], None]] = {
    "runs of 10^18": _rle([10**18, 10**18]),
    "runs of 10^30": _rle([10**30]),
    "runs that overflow to the size": _rle([2**63 - 1, 2**63 - 1, 2 + HEIGHT * WIDTH]),
    "negative runs": _rle([-5, 53]),
    "text of one endless number": _rle("o" * 3_000_000),
    "size of 10^9": _rle([10**18], [10**9, 10**9]),
    "outline NaN": _annotation([[float("nan")] * 6]),
    "image size of 10^9": _first("images", "height", 10**9),
    "image id of a list": _first("images", "id", [1]),
    "images of text": _part("images", "abc"),
    "images null": _part("images", None),
    "annotations of numbers": _part("annotations", [1]),
    "categories of a mapping": _part("categories", {"a": 1}),
}


# --- class tables --------------------------------------------------------------------------------

TABLES: dict[str, tuple[str, bytes]] = {
    "JSON nested 200,000 deep": ("classes.json", b"[" * 200_000 + b"]" * 200_000),
    "JSON objects nested": ("classes.json", b'{"a":' * 200_000 + b"1" + b"}" * 200_000),
    "JSON of a number": ("classes.json", b"5"),
    "JSON of nulls": ("classes.json", b"[null, null]"),
    "JSON of lists": ("classes.json", b"[[1], [2]]"),
    "colours of 10^400": ("classes.json", b'{"a": [' + b"9" * 400 + b', 0, 0], "b": [1, 2, 3]}'),
    "colours NaN": ("classes.json", b'{"a": [NaN, 0, 0], "b": [Infinity, 2, 3]}'),
    "colours of mappings": ("classes.json", b'{"a": {"x": 1}, "b": 5}'),
    "number of 100,000 digits": ("classes.txt", b"sky " + b"9" * 100_000 + b" 1 2\nroad 1 2 3\n"),
    "a name of a megabyte": ("classes.txt", b'"' + b"a" * (1 << 20) + b"\nroad\n"),
    "spaces without end": ("classes.txt", b"a" + b" " * 100_000 + b"b\nroad\n"),
    "numbers without end": ("classes.txt", b"a" + b" 1" * 50_000 + b" b\nroad\n"),
    "NUL": ("classes.txt", b"sky\0\nroad\n"),
    "no UTF-8": ("classes.txt", b"\xff\xfe\xfd\n"),
    "ten thousand names": ("classes.txt", b"".join(b"c%d\n" % i for i in range(10**4))),
    "a pickle": ("classes.txt", b"\x80\x04\x95"),
}


# --- archives ------------------------------------------------------------------------------------

Members = dict[str, bytes]


def write_tar(box: Sandbox, members: Members, *more: tarfile.TarInfo, mode: str = "w") -> Path:
    """A tar file of members and of entries without content."""
    path = box.files / ("evil.tar" if mode == "w" else "evil.tar.gz")
    with tarfile.open(path, mode, format=tarfile.PAX_FORMAT) as archive:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for info in more:
            archive.addfile(info)
    return path


def entry(name: str, kind: bytes, target: str = "", **fields: Any) -> tarfile.TarInfo:
    """An entry that is no file."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    for key, value in fields.items():
        setattr(info, key, value)
    return info


def tar_entries(box: Sandbox, folder: str) -> dict[str, tarfile.TarInfo]:
    """Entries that would write, link or make something outside of the data set's folder."""
    secret = str(box.outside / "secret.txt")
    image = f"{folder}/images/training/ADE_evil.jpg"
    return {
        "symbolic link": entry(image, tarfile.SYMTYPE, secret),
        "hard link": entry(image, tarfile.LNKTYPE, secret),
        "link that climbs": entry(image, tarfile.SYMTYPE, "../" * 20 + secret[1:]),
        "link to a folder": entry(f"{folder}/images/training/x", tarfile.SYMTYPE, str(box.outside)),
        "device": entry(image, tarfile.CHRTYPE, devmajor=1, devminor=5),
        "pipe": entry(image, tarfile.FIFOTYPE),
        "absolute name": entry(f"{box.outside}/new.jpg", tarfile.REGTYPE),
        "name that climbs": entry(f"{folder}/../../outside/new.jpg", tarfile.REGTYPE),
        "name with a backslash": entry(f"{folder}\\..\\x.jpg", tarfile.REGTYPE),
        "name of NUL": entry(f"{folder}/images/training/a\nb.jpg", tarfile.REGTYPE),
    }


def write_zip(box: Sandbox, members: Members, *more: zipfile.ZipInfo) -> Path:
    """A zip file of members and of entries."""
    with zipfile.ZipFile(box.files / "evil.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        for info in more:
            archive.writestr(info, b"")
    return box.files / "evil.zip"


def zip_link(name: str) -> zipfile.ZipInfo:
    """An entry that is a symbolic link."""
    info = zipfile.ZipInfo(name)
    info.external_attr = 0o120777 << 16
    return info
