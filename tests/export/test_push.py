# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A published folder goes to a hub on this machine by its own client, and loads from there."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from advice import advises
from hub_server import TOKEN, Hub, Repo, serving
from small_models import blobs
from user_errors import raises_user_error

from mmseg_resnest import load_segmentor
from mmseg_resnest.export.publish import FILES, publish
from mmseg_resnest.export.push import check_push, push
from mmseg_resnest.inference import Segmentor


@pytest.fixture(scope="module")
def made(small_segmentor: Segmentor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("push") / "net"
    publish(small_segmentor, folder, use="hf://me/net")
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(tmp_path) as hub:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


def test_it_loads_back_by_its_commit(
    hub: Hub, made: Path, small_segmentor: Segmentor, tmp_path: Path
) -> None:
    name = push(made, "me/net")
    repo = hub.repos["me/net"]
    assert name == f"hf://me/net@{repo.branches['main']}" and not repo.private
    there = repo.commits[repo.branches["main"]]
    assert there.keys() == {*FILES, "SHA256SUMS", ".gitattributes"}
    assert all(there[file] == (made / file).read_bytes() for file in FILES)
    assert b'load_segmentor("hf://me/net")' in there["README.md"]
    image = blobs(70, 90, 3)
    for one in ("hf://me/net", name):
        model = load_segmentor(one, device="cpu")
        np.testing.assert_array_equal(model(image).labels, small_segmentor(image).labels)
    assert repo.branches["main"] in str(model.cfg.filename)
    # a card that was edited, on another branch
    (made / "README.md").write_text((made / "README.md").read_text() + "\nMore.\n")
    second = push(made, "hf://me/net", revision="v2")
    assert repo.branches["main"] in name and repo.branches["v2"] in second
    assert load_segmentor("hf://me/net@v2").classes == model.classes
    assert push(made, "me/secret", private=True).startswith("hf://me/secret@")
    assert hub.repos["me/secret"].private


def test_what_is_refused(hub: Hub, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, revision in (("net", None), ("a/b/c", None), ("me/net@v1", None), ("me/n", "a b")):
        with advises("export/push.py:check_push", "OWNER/NAME, with a branch by --revision"):
            check_push(name, revision)
    assert check_push("me/net", "v1").revision == "v1"
    push(made, "me/public")
    with advises("export/push.py:_check_there", "make it private"):
        push(made, "me/public", private=True)
    hub.repos["me/public"].private = True
    assert push(made, "me/public", private=True)
    hub.repos["me/other"] = Repo()
    before = hub.repos["me/other"].commit({"config.json": b"{}", "pytorch_model.bin": b""})
    with advises("export/push.py:_check_there", "give another name"):
        push(made, "me/other")
    assert hub.repos["me/other"].branches == {"main": before}
    assert push(made, "me/another")
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody")
    with advises("export/push.py:_failure", "set HF_TOKEN", "hf auth login") as told:
        push(made, "me/net")
    assert "hf_of_somebody" not in str(told.value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    card = made / "README.md"
    kept = card.rename(made.parent / "card")
    with advises("export/push.py:push", "copy the published folder completely"):
        push(made, "me/net")
    kept.rename(card)
    with monkeypatch.context() as patch:
        patch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        with advises("export/push.py:_failure", "try again"):
            push(made, "me/net")
    assert "me/net" not in hub.repos and push(made, "me/net")


def test_the_client_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with raises_user_error("missing-package", "huggingface_hub") as caught:
        check_push("me/net")
    assert "mmseg-resnest[hub]" in caught.value.message
