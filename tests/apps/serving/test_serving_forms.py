# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Images that come in forms."""

from __future__ import annotations

import contextlib
import gzip

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from services import PNG, post, waiting

from mmseg_resnest.apps.serving.forms import image_in
from mmseg_resnest.apps.work import Refused

FORM = "multipart/form-data; boundary=X"


def form(*parts: bytes, end: bytes = b"--X--\r\n") -> bytes:
    return b"".join(b"--X\r\n%b\r\n" % part for part in parts) + end


def field(name: bytes, content: bytes, more: bytes = b"") -> bytes:
    return b'Content-Disposition: form-data; name="%b"; filename="a;b.png"%b\r\n\r\n%b' % (
        *(name, more), content)  # fmt: skip


def test_a_form_is_answered_as_its_image_is(client: httpx.Client) -> None:
    want = post(client).content
    answer = client.post("/predict", files={"image": ("street.png", PNG, "image/png")})
    assert (answer.status_code, answer.content) == (200, want)
    for body in (
        form(field(b"image", PNG)),
        b"preamble\r\n" + form(field(b"image", PNG, b"\r\nContent-Type: image/png")) + b"epilogue",
        form(b"content-disposition:form-data;name=image\r\n\r\n" + PNG, end=b"--X--"),
        form(field(b"image", b""), field(b"image", PNG)),
    ):
        answer = client.post("/predict", content=body, headers={"Content-Type": FORM})
        assert (answer.status_code, answer.content) == (200, want)
    curl = {"Content-Type": "application/x-www-form-urlencoded"}  # of curl --data-binary
    assert post(client, headers=curl).content == want


@pytest.mark.parametrize(
    ("said", "body"),
    [
        ("holds no image; send it as the field image", b"--X--\r\n"),
        ("holds no image", form(field(b"image", b""))),
        ("'file'; it takes image alone", form(field(b"file", PNG))),
        ("'output'", form(field(b"image", PNG), field(b"output", b"areas"))),
        ("several images", form(field(b"image", PNG), field(b"image", PNG))),
        ("cut short", form(field(b"image", PNG), end=b"")),
        ("cut short", form(field(b"image", PNG))[:60]),
        ("cut short", PNG),
        ("the body is empty", b""),
        ("cut short", b"--X\r\n\r\n"),
        ("cut short", b"--X" + b"a" * 5000),
        ("has no name", form(b"Content-Type: image/png\r\n\r\n" + PNG)),
        ("encodes", form(field(b"image", PNG, b"\r\nContent-Transfer-Encoding: base64"))),
        ("more than 16 parts", form(*[field(b"image", b"")] * 20)),
    ],
)
def test_forms_that_are_refused(client: httpx.Client, said: str, body: bytes) -> None:
    answer = client.post("/predict", content=body, headers={"Content-Type": FORM})
    assert (answer.status_code, said in answer.json()["detail"]) == (400, True), answer.text
    assert waiting(client) == 0


def test_a_compressed_body_is_told(client: httpx.Client) -> None:
    packed = {"Content-Encoding": "gzip"}
    answer = client.post("/predict", content=gzip.compress(PNG), headers=packed)
    assert (answer.status_code, "compressed" in answer.json()["detail"]) == (400, True)
    assert post(client, headers={"Content-Encoding": "identity"}).status_code == 200


def test_a_form_has_the_limits_of_a_body(client: httpx.Client) -> None:
    large = {"image": bytes(200_001)}
    assert client.post("/predict", files=large).status_code == 413
    for kind in ("multipart/form-data", "multipart/form-data; boundary=" + "x" * 71):
        answer = client.post("/predict", content=PNG, headers={"Content-Type": kind})
        assert (answer.status_code, "no boundary" in answer.json()["detail"]) == (400, True)


@given(st.binary(max_size=300), st.integers(0, 3))
@settings(deadline=None, database=None)
def test_no_form_is_more_than_refused(body: bytes, cut: int) -> None:
    whole = form(field(b"image", body))
    if body and b"\r\n--X" not in b"\r\n" + body:
        assert image_in(whole, FORM) == body
    for damaged in (body, whole[cut:], whole[: len(whole) - 5 - cut], b"--X\r\n" + body):
        with contextlib.suppress(Refused):
            image_in(damaged, FORM)
