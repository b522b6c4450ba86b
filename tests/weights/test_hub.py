# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Models of a hub as weights, against a hub on this machine."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from advice import advises
from hub_server import TOKEN, Hub, Repo, serving
from user_errors import raises_user_error

from mmseg_resnest.weights import download, is_remote, load_checkpoint, pinned, save_state_dict
from mmseg_resnest.weights.download import Limits
from mmseg_resnest.weights.hub import hub_name, sums_of

QUICK = Limits(timeout=10.0, tries=3, backoff=0.01)
FILES = ("config.json", "model.safetensors")


def published(folder: Path, value: float = 1.0) -> dict[str, bytes]:
    """The files of a published folder, and what else people have beside them."""
    folder.mkdir(exist_ok=True)
    file = save_state_dict({"a": torch.full((5000,), value)}, folder / FILES[1], force=True)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    (folder / FILES[0]).write_text(json.dumps({"format": 1, "sha256": digest}))
    (folder / "SHA256SUMS").write_text(sums_of(folder, FILES))
    for other in ("pytorch_model.bin", "training_config.py", "README.md"):
        (folder / other).write_text("raise SystemExit")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with serving(tmp_path) as hub:
        hub.repos["me/net"] = Repo()
        hub.repos["me/net"].commit(published(tmp_path / "made"))
        yield hub


def kept(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


def test_a_revision_is_a_commit_whose_two_files_are_kept(hub: Hub, tmp_path: Path) -> None:
    first = hub.repos["me/net"].branches["main"]
    assert is_remote("hf://me/net")
    assert pinned("hf://me/net") == f"hf://me/net@{first}"
    assert load_checkpoint("hf://me/net")["a"][0] == 1
    path = download("hf://me/net")
    assert path == tmp_path / "cache" / "hub" / "me--net" / first / "model.safetensors"
    assert kept(tmp_path / "cache") == {*FILES, "SHA256SUMS"}
    asked = [path.rpartition("/")[2] for path in hub.paths if "resolve" in path]
    assert sorted(asked) == sorted((*FILES, "SHA256SUMS"))
    second = hub.repos["me/net"].commit(published(tmp_path / "made", 2.0))
    hub.repos["me/net"].branches["v1/a"] = first
    assert load_checkpoint("hf://me/net")["a"][0] == 2
    assert load_checkpoint("hf://me/net@v1/a")["a"][0] == 1
    hub.requests.clear()
    for commit, value in ((first, 1), (second, 2)):
        assert load_checkpoint(f"hf://me/net@{commit}")["a"][0] == value
    assert not hub.requests, "a commit that is there is asked of nobody"


def test_the_token_goes_to_the_hub_alone(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    hub.repos["me/net"].private = True
    with advises("weights/hub.py:_explained", "set HF_TOKEN", "hf auth login"):
        download("hf://me/net")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert download("hf://me/net").is_file()
    assert hub.authorized and not [path for path in hub.authorized if path.startswith("/cdn")]
    for file in (tmp_path / "cache").rglob("*"):
        assert not file.is_file() or TOKEN.encode() not in file.read_bytes()
    assert TOKEN not in "".join(capsys.readouterr())
    with advises("weights/hub.py:_explained", "check the name", "token"):
        download("hf://me/nothing")
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "token").write_text(f"{TOKEN}\n")  # as `hf auth login` leaves it
    assert download("hf://me/net").is_file()
    monkeypatch.setenv("HF_TOKEN", "two\nlines")
    with raises_user_error("environment", "HF_TOKEN") as caught:
        download("hf://me/net@main")
    assert "lines" not in str(caught.value)


def test_a_transfer_goes_on_and_a_busy_hub_is_asked_again(hub: Hub) -> None:
    hub.faults = {
        "/revision/main": [("status", 503)],
        "SHA256SUMS": [("status", 429)],
        "config.json": [("cut", 5)],
        hashlib.sha256(hub.repos["me/net"].commits[pinned_of(hub)][FILES[1]]).hexdigest(): [
            ("cut", 7000)
        ],
    }
    assert load_checkpoint(download("hf://me/net", QUICK))["a"][0] == 1
    assert {asked for *_, asked in hub.requests} == {None, "bytes=5-", "bytes=7000-"}


def pinned_of(hub: Hub) -> str:
    return hub.repos["me/net"].branches["main"]


def changed(**files: Any) -> Callable[[Hub], None]:
    """A commit with other files; None takes one away."""

    def change(hub: Hub) -> None:
        repo = hub.repos["me/net"]
        names = {name.replace("_", "."): data for name, data in files.items()}
        after = {**repo.commits[pinned_of(hub)], **names}
        repo.commit({k: v for k, v in after.items() if v is not None}, keep=False)

    return change


def move(hub: Hub, name: str) -> None:
    """The commit of the main branch gets a name that is no hash."""
    repo = hub.repos["me/net"]
    repo.commits[name] = repo.commits[pinned_of(hub)]
    repo.branches["main"] = name


def gate(hub: Hub) -> None:
    hub.repos["me/net"].gated = True


SUMS = f"{'0' * 64}  config.json\n{'0' * 64}  model.safetensors\n".encode()
WRONG = {
    "a model of others": (changed(SHA256SUMS=None, config_json=b'{"model_type": "x"}'), "format"),
    "no config": (changed(SHA256SUMS=None, config_json=None), "format"),
    "a config that is none": (changed(SHA256SUMS=None, config_json=b"<html>"), "format"),
    "no weights": (changed(model_safetensors=None), "download"),
    "a commit that is a path": (lambda hub: move(hub, "../../evil"), "download"),
    "sums of another config": (changed(config_json=b'{"model_type": "segformer"}'), "download"),
    "sums of other weights": (changed(model_safetensors=b"x" * 9), "download"),
    "sums that are none": (changed(SHA256SUMS=b"<html>"), "format"),
    "sums without the weights": (changed(SHA256SUMS=SUMS[:78]), "format"),
    "sums of two kinds": (changed(SHA256SUMS=SUMS + SUMS.replace(b"0", b"1")), "format"),
    "a path out of the folder": (
        changed(SHA256SUMS=SUMS + b"0" * 64 + b"  ../evil.py\n"), "unsafe-path"
    ),
    "sums without end": (changed(SHA256SUMS=SUMS * 1000), "download"),
    "conditions to accept": (gate, "download"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_refused(hub: Hub, tmp_path: Path, name: str) -> None:
    change, code = WRONG[name]
    change(hub)
    with raises_user_error(code, "hf://me/net"):
        download("hf://me/net", QUICK)
    assert not kept(tmp_path / "cache") & {"model.safetensors", "SHA256SUMS"}
    assert not list(tmp_path.rglob("evil.py"))


def test_a_folder_without_a_list_has_the_hash_in_its_config(hub: Hub, tmp_path: Path) -> None:
    changed(SHA256SUMS=None)(hub)
    assert load_checkpoint("hf://me/net")["a"][0] == 1
    assert kept(tmp_path / "cache") == {*FILES, "SHA256SUMS"}
    hub.requests.clear()
    assert download(f"hf://me/net@{pinned_of(hub)}").is_file() and not hub.requests


def test_a_config_of_other_weights_is_refused_before_they_are_fetched(
    hub: Hub, tmp_path: Path
) -> None:
    for content, code in ((b'{"model_type": "x"}', "format"), (b" " * (5 << 20), "download")):
        (tmp_path / "made" / "config.json").write_bytes(content)
        sums = sums_of(tmp_path / "made", FILES).encode()
        hub.repos["me/net"].commit({"config.json": content, "SHA256SUMS": sums})
        with raises_user_error(code, "hf://me/net"):
            download("hf://me/net")
        assert "model.safetensors" not in kept(tmp_path / "cache")


def test_a_spoilt_file_in_the_cache_is_fetched_again(hub: Hub) -> None:
    path = download("hf://me/net")
    good = path.read_bytes()
    path.write_bytes(good[:-1] + b"!")
    assert download("hf://me/net").read_bytes() == good


@pytest.mark.parametrize(
    "name",
    ["hf://", "hf://net", "hf://me/net/file.pth", "hf://../net", "hf://me/..", "hf://me/net@",
     "hf://me/net@../x", "hf://me/net@a//b", "hf://me/net@a b", "hf://me/n?t", "hf://me/a--b"],
)  # fmt: skip
def test_names_that_are_none(name: str) -> None:
    with raises_user_error("argument", name):
        download(name)


def test_names() -> None:
    assert hub_name("hf://Me_1/net.v2@refs%2Fpr%2F1").revision == "refs/pr/1"
    assert str(hub_name("hf://me/net")) == "hf://me/net@main"
    assert hub_name("hf://models/me/net@v1") == hub_name("hf://me/net@v1")  # as the client has it
    assert hub_name("hf://models/net").repo == "models/net"


def test_revisions_and_models_of_others(hub: Hub) -> None:
    with advises("weights/hub.py:_explained", "give a branch, a tag or a commit"):
        download("hf://me/net@v9")
    assert download(f"hf://me/net@{pinned_of(hub)}").is_file()
    hub.repos["me/net"].gated = True
    hub.repos["me/net"].commit({"README.md": b"2"})
    with advises("weights/hub.py:_explained", "accept the conditions", "HF_TOKEN"):
        download("hf://me/net")
    hub.repos["me/net"].gated = False
    assert download("hf://me/net").is_file()
    hub.repos["me/other"] = Repo()
    weights = hub.repos["me/net"].commits[pinned_of(hub)]["model.safetensors"]
    hub.repos["me/other"].commit({"model.safetensors": weights})
    with advises("weights/hub.py:_foreign", "by the address of their file") as told:
        download("hf://me/other")
    address = told.value.message.rpartition(" ")[2].replace("FILE", "model.safetensors")
    assert load_checkpoint(address)["a"][0] == 1


def test_without_a_network(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMSEG_RESNEST_CACHE", str(tmp_path / "elsewhere"))
    download("hf://me/net")  # where there is one
    monkeypatch.setenv("MMSEG_RESNEST_CACHE", str(tmp_path / "cache"))
    with monkeypatch.context() as patch:
        patch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        with advises("weights/hub.py:_unreachable", "weights fetch", "copy the folder") as told:
            download("hf://me/net", QUICK)
        folder = Path(told.value.message.partition("the folder ")[2].split()[0])
        shutil.copytree(tmp_path / "elsewhere" / "hub" / folder.name, folder)
        with advises("weights/hub.py:_unreachable", "give the commit") as told:
            download("hf://me/net", QUICK)
        assert load_checkpoint(told.value.message.rpartition(" ")[2])["a"][0] == 1
    with monkeypatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        hub.requests.clear()
        with raises_user_error("download", "hf://me/net"):
            download("hf://me/net")
        assert download(f"hf://me/net@{pinned_of(hub)}").is_file()
        assert not hub.requests
    hub.faults = {"/revision/main": [("status", 500)] * 3}
    with advises("weights/hub.py:_explained", "try again later"):
        download("hf://me/net", QUICK)
    assert download("hf://me/net").is_file()
    monkeypatch.setenv("HF_ENDPOINT", "ftp://x")
    with raises_user_error("environment", "HF_ENDPOINT"):
        pinned("hf://me/net")
