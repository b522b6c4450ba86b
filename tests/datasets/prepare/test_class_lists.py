# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Lists of classes as editors and tools write them, and which label each name gets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from user_errors import raises_user_error

from mmseg_resnest.datasets.prepare.tables import read_table

THREE = ["sky", "road", "car"]
GAPS = ["__ignore__", "sky", "__ignore__", "road"]  # labels 1 and 3


def names(folder: Path, content: Any, file: str = "classes.txt", encoding: str = "utf-8") -> list:
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / file).write_bytes(text.encode(encoding))
    return [row.name for row in read_table(folder / file)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_encodings_and_line_ends(tmp_path: Path, encoding: str, end: str) -> None:
    text = "".join(f"{name}{end}" for name in ("größe", *THREE))
    text = f"\ufeff{text}" if encoding == "utf-16-le" else text
    assert names(tmp_path, text, encoding=encoding) == ["größe", *THREE]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0,sky\n1,road\n2,car\n", THREE),
        ("id,name\n1,sky\n3,road\n", GAPS),
        ("name;id\nroad;3\nsky;1\n", GAPS),
        ("3: road\n1: sky\n", GAPS),
        ("0 sky\n1 road\n2 car\n", THREE),
        ("1. sky\n2. road\n", ["__ignore__", "sky", "road"]),
        ('1,"sky, clouds"\n0,road\n', ["road", "sky, clouds"]),
        ("2 wheeler\n4 wheeler\n", ["2 wheeler", "4 wheeler"]),
        ("road 1\nroad 2\n", ["road 1", "road 2"]),
        ("0\n1\n2\n", ["0", "1", "2"]),
        ("yes\nno\nnull\n", ["yes", "no", "null"]),
        ('it\'s\nsay "a"\n{b}\n', ["it's", 'say "a"', "{b}"]),
        ("# a comment\nsky\nroad\n", ["sky", "road"]),
    ],
)
def test_text(tmp_path: Path, text: str, expected: list[str]) -> None:
    assert names(tmp_path, text) == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (THREE, THREE),
        ({"sky": 0, "road": 1, "car": 2}, THREE),
        ({"3": "road", "1": "sky"}, GAPS),
        ({"names": THREE}, THREE),
        ({"names": {"0": "sky", "1": "road", "2": "car"}, "nc": 3}, THREE),
        ({"categories": [{"id": 3, "name": "road"}, {"id": 1, "name": "sky"}]}, GAPS),
        ([{"id": 7001, "name": "sky"}, {"id": 7000, "name": "road"}], ["sky", "road"]),
        ([{"name": "sky", "color": "#804080"}, {"name": "road"}], ["sky", "road"]),
        ({"sky": [1, 2, 3], "names": [4, 5, 6]}, ["sky", "names"]),
        ({"0": "#102030", "1": "#405060"}, ["0", "1"]),
    ],
)
@pytest.mark.parametrize("file", ["classes.json", "data.yaml"])
def test_json_and_yaml(tmp_path: Path, content: Any, expected: list[str], file: str) -> None:
    assert names(tmp_path, content, file) == expected


def test_words_of_yaml_are_names(tmp_path: Path) -> None:
    text = "names:\n  0: yes\n  1: no\n  2: null\n  3: 12\n"
    assert names(tmp_path, text, "data.yml") == ["yes", "no", "null", "12"]


@pytest.mark.parametrize(
    ("content", "file"),
    [
        ("sky,road,car\n", "classes.txt"),
        ("sky, clouds\nroad\n", "classes.txt"),
        ("0,sky\n0,road\n", "classes.txt"),
        ("0,sky\n300,road\n", "classes.txt"),
        ({"sky": 300}, "classes.json"),
        ([0, 1], "classes.json"),
        ("null", "classes.json"),
        ("names: [sky", "data.yaml"),
        ("", "data.yaml"),
        ("sky\nroad\ncar\n", "data.yaml"),
        ("sky", "data.yaml"),
        ('"sky"', "classes.json"),
        ('names: ["\\UFFFFFFFF"]', "data.yaml"),
    ],
)
def test_what_is_no_list(tmp_path: Path, content: Any, file: str) -> None:
    with raises_user_error("classes", file):
        names(tmp_path, content, file)


@pytest.mark.parametrize(
    ("text", "colour"),
    [
        ("name\nsky\nroad\ncar\n", None),
        ("id,name,r,g,b\n0,sky,1,2,3\n1,road,4,5,6\n2,car,7,8,9\n", (4, 5, 6)),
        ("class_name,class_color\nsky,1 2 3\nroad,4 5 6\ncar,7 8 9\n", (4, 5, 6)),
        ("name color\nsky #010203\nroad #040506\ncar #070809\n", (4, 5, 6)),
        ("id,name,r,g,b\n2,car,7,8,9\n0,sky,1,2,3\n1,road,4,5,6\n", (4, 5, 6)),
        ("id,name,color\n2,car,#070809\n0,sky,#010203\n1,road,#040506\n", (4, 5, 6)),
        ("2,car,7,8,9\n0,sky,1,2,3\n1,road,4,5,6\n", (4, 5, 6)),
        ("Class;R;G;B;Super\nsky;1;2;3;x\nroad;4;5;6;y\ncar;7;8;9;y\n", (4, 5, 6)),
    ],
)
def test_headings_of_columns(tmp_path: Path, text: str, colour: Any) -> None:
    assert names(tmp_path, text, "classes.csv") == THREE
    assert read_table(tmp_path / "classes.csv")[1].rgb == colour
