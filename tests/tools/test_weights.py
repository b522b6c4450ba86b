# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""tools/weights.py: the list, one entry, fetching, and hashing again."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from user_errors import printed_error

from mmseg_resnest.weights import catalogue
from mmseg_resnest_cli import main

DATA = b"not really weights" * 100
Result = tuple[int, str, str]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("MMSEG_RESNEST_CACHE", str(folder))
    return folder


@pytest.fixture
def run(
    cache: Path, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    def run_it(*args: str | Path) -> Result:
        with pytest.raises(SystemExit) as exit_info:
            main("weights", [str(arg) for arg in args])
        return exit_info.value.code, *capfd.readouterr()

    return run_it


@pytest.fixture
def entry(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The place of the one entry ``net`` of the catalogue, at an address without a server."""
    digest = hashlib.sha1(DATA).hexdigest()
    only = replace(
        catalogue()["fcn_resnest50_ade"],
        name="net",
        file=f"net-{digest[:8]}.pth",
        digest=digest,
        urls=("http://127.0.0.1:9/net.pth",),
    )
    module = importlib.import_module("mmseg_resnest.weights.catalogue")
    monkeypatch.setattr(module, "_entries", lambda: {"net": only})
    cache.mkdir()
    return cache / only.file


def test_list(run: Callable[..., Result], cache: Path) -> None:
    cache.mkdir()
    (cache / "resnest50-528c19ca.pth").write_bytes(DATA)
    code, out, err = run("list")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) == 1 + len(catalogue())
    places = [lines[0].index(word) for word in ("data set", "published", "layout", "licence")]
    for line in lines[1:]:
        assert all(line[place - 1] == " " != line[place] for place in places), line
    wanted = ["deeplab_resnest101_ade", "ADE20K", "mIoU", "46.91", "published", "MIT", "no"]
    assert wanted in [line.split() for line in lines]
    wanted = ["resnest50", "ImageNet", "top1", "81.03", "published", "Apache-2.0", "yes"]
    assert wanted in [line.split() for line in lines]


def test_list_for_machines(run: Callable[..., Result]) -> None:
    code, out, _ = run("list", "--json")
    records = json.loads(out)
    assert code == 0 and [r["name"] for r in records] == list(catalogue())
    for record in records:
        entry = catalogue()[record["name"]]
        assert record["digest"] == entry.digest and record["urls"] == list(entry.urls)
        assert record["metrics"] == entry.metrics and record["cached"] is None


def test_info(run: Callable[..., Result], cache: Path) -> None:
    code, out, _ = run("info", "deeplab_resnest101_ade")
    assert code == 0
    for text in (
        "configs/deeplabv3_resnest101_ade20k.py",
        "pixAcc 82.07, mIoU 46.91 (multi-scale + flip)",
        "06ca799c8cc148fe0fafb5b6d052052935aa3cc8",
        f"no; it would be {cache}/deeplab_resnest101_ade-06ca799c.pth",
    ):
        assert text in out
    code, out, _ = run("info", "gluoncv/resnest14", "--json")
    assert code == 0 and json.loads(out)["layout"] == "gluoncv"


def test_a_wrong_name(run: Callable[..., Result]) -> None:
    for job in ("info", "fetch", "verify"):
        code, out, err = run(job, "deeplab_resnest101_ad")
        assert (code, out) == (2, "")
        kind, text = printed_error(err)
        assert kind == "not-found" and text.startswith("deeplab_resnest101_ad: ")
        assert "did you mean 'deeplab_resnest101_ade'" in text


def test_fetch_what_is_there(run: Callable[..., Result], entry: Path) -> None:
    entry.write_bytes(DATA)
    code, out, _ = run("fetch", "net", "net")
    assert (code, out) == (0, f"{entry}\n{entry}\n")


def test_fetch_without_a_network(
    run: Callable[..., Result], entry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("mmseg_resnest.weights.download")
    monkeypatch.setattr(module, "default_limits", lambda: module.Limits(1, 1, 0.01))
    code, out, err = run("fetch", "net")
    assert (code, out) == (2, "")
    kind, text = printed_error(err)
    assert kind == "download" and text.startswith("checkpoint net: ")
    assert f"{entry.name} into the folder {entry.parent}" in text


def test_verify(run: Callable[..., Result], entry: Path, tmp_path: Path) -> None:
    code, out, _ = run("verify")
    assert code == 0 and "holds no published weights" in out
    code, out, err = run("verify", "net")
    assert code == 1 and out == f"missing  {entry}\n"
    assert err == "1 of 1 corrupt or missing\n"
    entry.write_bytes(DATA)
    copy = tmp_path / entry.name
    copy.write_bytes(DATA[:-1])
    code, out, _ = run("verify")
    assert (code, out) == (0, f"ok       {entry} (sha1 {hashlib.sha1(DATA).hexdigest()})\n")
    code, out, _ = run("verify", "net", copy)
    assert code == 1 and len(out.splitlines()) == 2
    assert f"corrupt  {copy}: the content has SHA-1" in out
    other = tmp_path / "other.pth"
    other.write_bytes(DATA)
    code, _, err = run("verify", other)
    assert code == 2 and printed_error(err)[0] == "not-found"
