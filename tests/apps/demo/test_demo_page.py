# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The page to try models: what it answers, what it refuses, and that a browser can use it."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image

sys.path.insert(0, os.fspath(Path(__file__).parents[2] / "inference"))
from small_models import balanced, blobs, small_config
from user_errors import raises_user_error

pytest.importorskip("starlette", reason="Starlette is not installed (pip install starlette)")
pytest.importorskip("uvicorn", reason="Uvicorn is not installed (pip install uvicorn)")

from mmseg_resnest import load_segmentor
from mmseg_resnest.apps.demo import Choice, Limits, run_app
from mmseg_resnest.apps.demo.server import is_local
from mmseg_resnest.errors import UserError
from mmseg_resnest.inference import Segmentor

LONG = "other <b> with a name that is much wider than the screen of a phone"


@dataclass
class Site:
    """A page that is being shown."""

    address: str
    model: Segmentor
    loaded: list[str]

    def send(self, data: Any, model: str = "one", **options: Any) -> requests.Response:
        return requests.post(
            f"{self.address}/segment", data=data, params={"model": model}, timeout=60, **options
        )


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    model = balanced(load_segmentor(small_config(pixel=True), None, "cpu"))
    other = balanced(load_segmentor(small_config(pixel=True, classes=12), None, "cpu"))
    loaded: list[str] = []
    choices = [
        Choice("one", lambda: loaded.append("one") or model),
        Choice(LONG, lambda: loaded.append("other") or other),
    ]
    with showing(choices, seconds=60) as address:
        yield Site(address, model, loaded)


@contextlib.contextmanager
def showing(choices: list[Choice], seconds: float) -> Iterator[str]:
    """The address of a page; a file may take so many seconds to arrive."""
    told: list[Any] = []
    ready = threading.Event()

    def note(address: str, server: Any) -> None:
        told.extend([address, server])
        ready.set()

    limits = Limits(bytes=1 << 20, pixels=100_000, waiting=2, seconds=seconds)
    thread = threading.Thread(
        target=run_app, args=(choices, "127.0.0.1", 0, limits, note), daemon=True
    )
    thread.start()
    assert ready.wait(60)
    try:
        yield told[0]
    finally:
        told[1].should_exit = True
        thread.join(30)
    assert not thread.is_alive()


def port_of(address: str) -> int:
    return int(address.rsplit(":", 1)[1])


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def picture(url: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))))


def test_the_answer_is_the_models(site: Site, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", os.fspath(tmp_path))
    pixels = blobs(90, 120)
    answer = site.send(png(pixels)).json()
    expected = site.model(pixels)
    labels = picture(answer["labels"])
    assert np.array_equal(labels[:, :, 0], expected.labels)
    assert not labels[:, :, 1:].any()
    areas = {a["name"]: a["pixels"] for a in answer["areas"]}
    assert areas == {k: v.pixels for k, v in expected.areas().items() if v.pixels}
    assert list(areas.values()) == sorted(areas.values(), reverse=True)
    assert (answer["height"], answer["width"], answer["model"]) == (90, 120, "one")
    assert list(tmp_path.iterdir()) == []  # nothing is kept
    assert site.loaded.count("one") == 1


def test_uncertainty_is_the_models_where_it_is_asked_for(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = blobs(30, 40)
    address = f"{site.address}/segment?model=one&uncertainty=1"
    answer = requests.post(address, data=png(pixels), timeout=60).json()
    expected = 255 * site.model(pixels).uncertainty()
    assert np.abs(picture(answer["uncertainty"]) - expected).max() <= 0.51
    assert "uncertainty" not in site.send(png(pixels)).json()

    def labels_only() -> None:
        raise UserError("model", "scores", "this model gives labels only")

    monkeypatch.setattr(site.model, "require_scores", labels_only)
    refused = requests.post(address, data=png(pixels), timeout=60)
    assert refused.status_code == 400 and "gives labels only" in refused.json()["detail"]
    assert site.send(png(pixels)).status_code == 200


def test_what_is_refused(site: Site) -> None:
    good = png(blobs(20, 20))

    def refusal(status: int, *arguments: Any, **options: Any) -> str:
        answer = site.send(*arguments, **options)
        assert answer.status_code == status, answer.text
        return answer.json()["detail"]

    for data in (b"<script>alert(1)</script>", b"", good[:-200]):
        assert "[" not in refusal(400, data)  # words, without the code
    assert "100000" not in refusal(413, png(np.zeros((400, 400, 3), np.uint8)))
    noise = os.urandom((1 << 20) + 1)
    assert "more than 1 MiB" in refusal(413, noise)
    assert "there are one, other" in refusal(404, good, model="none")
    assert "page itself" in refusal(403, good, headers={"Origin": "http://evil.example"})
    assert site.send(good, headers={"Origin": site.address}).status_code == 200
    # Another name that points at this machine is another site.
    assert (
        requests.get(site.address, headers={"Host": "evil.example"}, timeout=60).status_code == 400
    )
    assert requests.get(f"{site.address}/../etc/passwd", timeout=60).status_code == 404


def test_a_file_that_does_not_arrive(site: Site) -> None:
    with (
        showing([Choice("one", lambda: site.model)], seconds=0.5) as address,
        socket.create_connection(("127.0.0.1", port_of(address))) as slow,
    ):
        slow.sendall(
            b"POST /segment?model=one HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\nx"
        )
        slow.settimeout(60)
        assert b" 408 " in slow.recv(4096)


def test_a_page_that_was_left_leaves_its_place(site: Site) -> None:
    port = port_of(site.address)
    data = png(blobs(90, 120))
    for _ in range(4):  # two may wait
        with socket.create_connection(("127.0.0.1", port)) as gone:
            gone.sendall(
                b"POST /segment?model=one HTTP/1.1\r\nHost: localhost\r\nContent-Length: "
                + str(len(data)).encode() + b"\r\n\r\n" + data
            )  # fmt: skip
    end = time.monotonic() + 30
    while (answer := site.send(data)).status_code == 429 and time.monotonic() < end:
        time.sleep(0.05)
    assert answer.status_code == 200


def test_headers_and_addresses(site: Site) -> None:
    answer = requests.get(site.address, timeout=60)
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert policy != requests.get(site.address, timeout=60).headers["Content-Security-Policy"]
    assert [is_local(h) for h in ("localhost", "127.0.0.2", "::1", "0.0.0.0", "example.org")] == [
        True, True, True, False, False,
    ]  # fmt: skip
    with raises_user_error("network", "--port"):
        run_app([], "127.0.0.1", port_of(site.address))
    with raises_user_error("network", "--host"):
        run_app([], "caf\udce9", 0)


# --- in a browser


def open_page(browser: Any, site: Site, **options: Any) -> tuple[Any, list[str]]:
    """The page, and what it says on the console."""
    tab = browser.new_context(**options).new_page()
    said: list[str] = []
    tab.on("console", lambda m: said.append(m.text))
    tab.on("pageerror", lambda e: said.append(str(e)))
    tab.goto(site.address)
    tab.wait_for_selector("html[data-ready=yes]")
    return tab, said


READ = """() => { const c = document.getElementById('view');
return [c.width, c.height, ...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]; }"""


def shown(tab: Any) -> np.ndarray:
    """The pixels of the page's picture."""
    width, height, *data = tab.evaluate(READ)
    return np.array(data, int).reshape(height, width, 4)[:, :, :3]


@pytest.mark.browser
def test_in_a_browser(browser: Any, site: Site, tmp_path: Path) -> None:
    tab, said = open_page(browser, site, viewport={"width": 1280, "height": 900})
    pixels = blobs(60, 80)
    (tmp_path / "a.png").write_bytes(png(pixels))
    tab.set_input_files("#file", tmp_path / "a.png")
    tab.wait_for_selector("#list li")
    result = site.model(pixels)
    names = tab.locator("#list .name").all_text_contents()
    areas = sorted(((a.pixels, n) for n, a in result.areas().items() if a.pixels), reverse=True)
    assert names == [n for _, n in areas]
    first = f"{100 * areas[0][0] / pixels[:, :, 0].size:.1f}%"
    assert tab.locator("#list .share").first.text_content() == first

    slide = "(e, v) => { e.value = v; e.dispatchEvent(new Event('input')); }"
    slider = tab.locator("#opacity")
    slider.evaluate(slide, 100)
    colours = np.array(site.model.palette)[result.labels]
    assert np.abs(shown(tab) - colours).max() <= 1
    slider.evaluate(slide, 0)
    bare = shown(tab)
    # JPEG: by the means of parts.
    means = [p.astype(float).reshape(3, 20, 4, 20, 3).mean((1, 3)) for p in (bare, pixels)]
    assert np.abs(means[0] - means[1]).max() < 3
    slider.evaluate(slide, 100)
    tab.locator("#list input").first.uncheck()
    largest = site.model.classes.index(names[0])
    expected = np.where((result.labels == largest)[:, :, None], bare, colours)
    assert np.abs(shown(tab) - expected).max() <= 1
    tab.click("#none")
    assert np.array_equal(shown(tab), bare)
    tab.click("#all")
    assert np.abs(shown(tab) - colours).max() <= 1

    tab.select_option("#model", LONG)  # the same image again
    tab.wait_for_selector("#note:has-text('of 12 classes')")
    assert said == []

    (tmp_path / "b.png").write_text("no image")
    tab.set_input_files("#file", tmp_path / "b.png")
    tab.wait_for_selector("#error:not([hidden])")
    assert "mage" in tab.text_content("#error")
    assert tab.locator("#list li").count() > 0  # what was there stays
    (tmp_path / "c.png").write_bytes(bytes((1 << 20) + 1))
    tab.set_input_files("#file", tmp_path / "c.png")
    tab.wait_for_selector("#error:has-text('1 MiB')")
    tab.set_input_files("#file", tmp_path / "a.png")
    tab.wait_for_selector("#error[hidden]", state="attached")
    # The browser itself notes the answer 400; the page says nothing.
    assert all("400" in text for text in said)


DROP = """data => { const files = new DataTransfer();
files.items.add(new File([Uint8Array.from(data)], 'x.png', {type: 'image/png'}));
document.getElementById('drop').dispatchEvent(
  new DragEvent('drop', {dataTransfer: files, bubbles: true, cancelable: true})); }"""


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_dropped_on_a_phone(browser: Any, site: Site, scheme: str) -> None:
    tab, said = open_page(
        browser, site, viewport={"width": 360, "height": 740}, color_scheme=scheme, is_mobile=True
    )
    tab.evaluate(DROP, list(png(blobs(40, 64))))
    tab.wait_for_selector("#list li")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    shade = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(shade[4:].split(",")[0]) < 128) == (scheme == "dark")
    assert said == []
