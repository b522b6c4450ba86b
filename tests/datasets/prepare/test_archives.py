# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
import gzip
import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import pytest
from tiny_archives import write_folder, write_tar, write_zip
from user_errors import raises_user_error

from mmseg_resnest.datasets.prepare import archives
from mmseg_resnest.datasets.prepare.archives import Archive, list_archive
from mmseg_resnest.datasets.prepare.places import Files, list_folder

MEMBERS = {"top/a.txt": b"first", "top/deep/b.txt": b"second" * 900, "top/deep/c.bin": b"\0" * 9}


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tgz", "a.tar.gz"])
def test_every_archive_gives_its_files(tmp_path: Path, name: str) -> None:
    file = (write_zip if name.endswith("zip") else write_tar)(tmp_path / name, MEMBERS)
    for _ in range(2):  # the second time what was unpacked is there
        places = list(list_archive(file, tmp_path / "staging", wanted=""))
        assert {place.name: place.read() for place in places} == MEMBERS
        assert all(place.size == len(MEMBERS[place.name]) for place in places)


def test_only_wanted_files_of_a_compressed_tar_are_unpacked(tmp_path: Path) -> None:
    file = write_tar(tmp_path / "a.tgz", MEMBERS)
    places = list(list_archive(file, tmp_path / "staging", wanted=r"\.txt$"))
    assert sorted(place.name for place in places) == ["top/a.txt", "top/deep/b.txt"]
    assert not list((tmp_path / "staging").rglob("c.bin"))


def test_links_in_official_zip_archives_are_left_out(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("link")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
        archive.writestr("x", "1")
    found = list_archive(tmp_path / "a.zip", tmp_path, "", official=True)
    assert [place.name for place in found] == ["x"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_twice_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x", "1")
        archive.writestr("x", "2")
    with raises_user_error("format", "a.zip"):
        list(list_archive(tmp_path / "a.zip", tmp_path, wanted=""))


@pytest.mark.parametrize("kind", ["a.zip", "a.tar", "a.tgz"])
def test_damaged_archives_are_named(tmp_path: Path, kind: str) -> None:
    file = (write_zip if kind.endswith("zip") else write_tar)(tmp_path / kind, MEMBERS)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 3])
    with raises_user_error("corrupt"):
        _read_all(file, tmp_path / "staging")


def _read_all(file: Path, staging: Path) -> None:
    for place in list_archive(file, staging, wanted=""):
        place.read()


def test_a_changed_byte_in_a_zip_member_is_found(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("x", "hello world")
    data = (tmp_path / "a.zip").read_bytes().replace(b"hello", b"jello")
    (tmp_path / "a.zip").write_bytes(data)
    (place,) = list_archive(tmp_path / "a.zip", tmp_path, wanted="")
    with raises_user_error("corrupt", "a.zip"):
        place.read()


@pytest.mark.parametrize("algorithm", ["sha1", "md5"])
def test_official_hashes(tmp_path: Path, algorithm: str) -> None:
    file = tmp_path / "a.bin"
    file.write_bytes(b"data")
    Archive("a.bin", **{algorithm: hashlib.new(algorithm, b"data").hexdigest()}).check(file)
    with raises_user_error("corrupt", "a.bin"):
        Archive("a.bin", **{algorithm: "00"}).check(file)


def test_folders_hide_hidden_files_and_end_in_loops(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a/x.png": b"1", ".git/y.png": b"2", "a/.z.png": b"3"})
    (tmp_path / "a/loop").symlink_to(tmp_path)
    assert [place.name for place in list_folder(tmp_path)] == ["a/x.png"]


def test_names_are_matched_from_any_folder_on(tmp_path: Path) -> None:
    write_folder(tmp_path, {"u/images/a.jpg": b"1", "u/xmages/b.jpg": b"2", "v/images/c.jpg": b"3"})
    files = Files(list(list_folder(tmp_path)), [tmp_path])
    assert sorted(files.by_name(r"images/([^/]+)\.jpg")) == ["a", "c"]
    assert files.one(r"images/zz\.jpg") is None
    write_folder(tmp_path, {"w/images/a.jpg": b"4"})
    files = Files(list(list_folder(tmp_path)), [tmp_path])
    with raises_user_error("dataset", "a.jpg"):
        files.by_name(r"images/([^/]+)\.jpg")


def test_archives_that_claim_huge_files(tmp_path: Path) -> None:
    file = write_zip(tmp_path / "a.zip", {"x.txt": bytes(100)})
    data = bytearray(file.read_bytes())
    at = data.index(b"PK\x01\x02") + 24  # the size in the list of files
    data[at : at + 4] = (2**32 - 2).to_bytes(4, "little")
    file.write_bytes(data)
    with raises_user_error("too-large", "a.zip"):
        list(list_archive(file, tmp_path, wanted=""))


@pytest.mark.parametrize("kind", ["a.tar", "a.tgz"])
@pytest.mark.parametrize("type_", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.REGTYPE])
def test_tar_archives_that_claim_huge_headers_and_files(
    tmp_path: Path, kind: str, type_: bytes
) -> None:
    info = tarfile.TarInfo("x.txt")
    info.type, info.size = type_, 1 << 40
    data = info.tobuf(tarfile.GNU_FORMAT) + bytes(10240)
    file = tmp_path / kind
    file.write_bytes(gzip.compress(data) if kind == "a.tgz" else data)
    with raises_user_error(("corrupt", "too-large")):
        [place.read() for place in list_archive(file, tmp_path / "staging", wanted="")]
    assert not list((tmp_path).rglob("x.txt"))


def test_tar_archives_with_holes_are_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("x.txt")
    info.type = tarfile.GNUTYPE_SPARSE
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(10240))
    with raises_user_error("format", "a.tar"):
        list(list_archive(tmp_path / "a.tar", tmp_path, wanted=""))


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(archives, "FLOOR", 1 << 20)
    file = tmp_path / "a.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(8 << 20))
    with raises_user_error("too-large", "a.zip"):
        list(list_archive(file, tmp_path / "staging", wanted=""))


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
@pytest.mark.parametrize("where", ["in a file", "in a header"])
def test_a_compressed_tar_bomb_is_unpacked_no_further(
    tmp_path: Path, monkeypatch, kind: str, where: str
) -> None:
    monkeypatch.setattr(archives, "FLOOR", 1 << 20)
    file = tmp_path / f"a.tar.{kind}"
    with tarfile.open(file, f"w:{kind}", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("a.png")
        info.size = 32 << 20 if where == "in a file" else 0
        if where == "in a header":
            info.pax_headers = {"comment": "x" * (32 << 20)}
        archive.addfile(info, io.BytesIO(bytes(info.size)))
    with raises_user_error(("corrupt", "too-large")):
        list(list_archive(file, tmp_path / "staging", wanted=""))
    written = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert written < 24 << 20
