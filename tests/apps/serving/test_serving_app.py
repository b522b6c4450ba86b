# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The service answers with what the model says, and refuses what is too much in so many words."""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
import schemathesis
from hostile_images import hostile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from png_files import png_file
from prometheus_client.parser import text_string_to_metric_families
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from services import PHOTO, PNG, Gate, encoded, post, running, waiting
from small_models import blobs, small_config
from user_errors import raises_user_error

from mmseg_resnest import load_segmentor
from mmseg_resnest.apps.serving import Limits, app
from mmseg_resnest.apps.serving.app import end_between_blocks
from mmseg_resnest.apps.serving.batcher import Batcher
from mmseg_resnest.errors import UserError
from mmseg_resnest.inference import Segmentation, Segmentor
from mmseg_resnest.io.cancel import Cancelled, cancellable, raise_if_cancelled

Service = Callable[..., httpx.Client]


def counted(client: httpx.Client, name: str, **labels: str) -> float:
    families = text_string_to_metric_families(client.get("/metrics").text)
    samples = [s for f in families for s in f.samples if s.name == name and s.labels == labels]
    return sum(s.value for s in samples)


def wait_for(client: httpx.Client, number: int) -> None:
    end = time.monotonic() + 30
    while waiting(client) != number and time.monotonic() < end:
        time.sleep(0.01)
    assert waiting(client) == number


def connected(client: httpx.Client) -> socket.socket:
    return socket.create_connection((client.base_url.host, client.base_url.port))


HEAD = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"


def test_answers_are_the_models(client: httpx.Client, small_model: Segmentor) -> None:
    want = small_model(PHOTO)
    answer = post(client)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    with Image.open(io.BytesIO(answer.content)) as labels:
        assert labels.mode == "P"
        np.testing.assert_array_equal(np.asarray(labels), want.labels)

    answer = post(client, params={"output": "areas"})
    found = {a["name"]: a["pixels"] for a in answer.json()["areas"]}
    assert found == {n: a.pixels for n, a in want.areas().items() if a.pixels}

    params = {"output": "overlay", "opacity": 1, "classes": ["c1"]}
    answer = post(client, params=params)
    with Image.open(io.BytesIO(answer.content)) as drawn:
        got = np.asarray(drawn.convert("RGB")).astype(int)
    want_drawn = np.asarray(want.overlay(1, ["c1"])).astype(int)
    assert np.abs(got - want_drawn).mean() < 12  # JPEG


def test_an_answer_of_some_classes(client: httpx.Client, small_model: Segmentor) -> None:
    want = small_model(PHOTO)
    assert len(np.unique(want.labels)) == 4
    for params in ({"classes": "c1,c3"}, {"classes": ["c3", " c1"]}):
        with Image.open(io.BytesIO(post(client, params=params).content)) as labels:
            expected = np.where(np.isin(want.labels, (1, 3)), want.labels, 255)
            np.testing.assert_array_equal(np.asarray(labels), expected)
        areas = post(client, params={"output": "areas", **params}).json()["areas"]
        assert {a["name"]: a["pixels"] for a in areas} == {
            name: want.areas()[name].pixels for name in ("c1", "c3")
        }
    for wrong in ("c1,car", "c1,", ""):
        answer = post(client, params={"classes": wrong})
        assert (answer.status_code, "is unknown" in answer.json()["detail"]) == (400, True)
    assert app._known(["a,b", "b,a"], ["a,b", "a", "b"]) == ["a,b", "b", "a"]


def test_health_model_metrics_and_schema(client: httpx.Client, small_model: Segmentor) -> None:
    health = client.get("/health").json()
    assert (health["status"], health["waiting"]) == ("ok", 0)
    info = client.get("/model").json()
    assert (info["classes"], info["palette"]) == (small_model.classes, small_model.palette)
    assert info["max_bytes"] == 200_000
    before = counted(client, "segmentation_requests_total", status="200")
    post(client)
    assert counted(client, "segmentation_requests_total", status="200") == before + 1
    assert counted(client, "segmentation_request_seconds_count") == before + 1
    assert counted(client, "segmentation_waiting") == 0
    page = client.get("/openapi.json").json()
    assert {"400", "408", "413", "422", "429", "503", "504"} <= page["paths"]["/predict"]["post"][
        "responses"
    ].keys()


def test_what_is_too_large_is_refused(client: httpx.Client) -> None:
    answer = client.post("/predict", content=b"x" * 200_001)
    assert (answer.status_code, "detail" in answer.json()) == (413, True)
    # The same without a length told beforehand.
    answer = client.post("/predict", content=(b"x" * 50_000 for _ in range(5)))
    assert answer.status_code == 413
    # A small file of very many pixels is not decoded.
    bomb = png_file(60_000, 60_000, bytes(60_001 * 100), colour=2)
    answer = client.post("/predict", content=bomb)
    assert (answer.status_code, "60000 x 60000" in answer.json()["detail"]) == (413, True)


@pytest.mark.parametrize(
    ("content", "params", "status"),
    [
        (b"", {}, 400),
        (b"no image", {}, 400),
        (PNG[:300], {}, 400),
        (PNG, {"output": "overlay", "classes": "unicorn"}, 400),
        (PNG, {"output": "song"}, 422),
        (PNG, {"opacity": "2"}, 422),
    ],
)
def test_bad_requests(
    client: httpx.Client, content: bytes, params: dict[str, str], status: int
) -> None:
    answer = client.post("/predict", params=params, content=content)
    assert (answer.status_code, "detail" in answer.json()) == (status, True)
    assert post(client).status_code == 200


def test_one_too_many_is_refused_and_one_client_does_not_take_all(service: Service) -> None:
    gate = Gate()
    gate.open.clear()
    client = service(gate, waiting=4, seconds=120)
    other = {"X-Forwarded-For": "10.0.0.7"}  # a proxy on this machine is believed
    with ThreadPoolExecutor(4) as pool:
        served = [pool.submit(post, client) for _ in range(3)]
        wait_for(client, 3)
        refused = post(client)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        served.append(pool.submit(post, client, headers=other))
        wait_for(client, 4)
        assert post(client, headers={"X-Forwarded-For": "10.0.0.8"}).status_code == 429
        gate.open.set()
        assert [future.result().status_code for future in served] == [200] * 4
    assert post(client).status_code == 200
    assert counted(client, "segmentation_requests_total", status="429") == 2


def test_images_that_wait_go_together(service: Service) -> None:
    gate = Gate()
    gate.open.clear()
    client = service(gate, batch=4, gather=60)  # until there are four, however slow the machine
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(post, client) for _ in range(4)]
        assert gate.entered.acquire(timeout=60)
        futures += [pool.submit(post, client) for _ in range(4)]
        wait_for(client, 8)
        gate.open.set()
        assert [f.result().status_code for f in futures] == [200] * 8
    assert gate.batches == [4, 4]


def test_what_takes_too_long_is_answered_and_not_computed(service: Service) -> None:
    gate = Gate()
    gate.open.clear()
    client = service(gate, seconds=2, batch=1, waiting=4)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(post, client)
        while not gate.entered.acquire(timeout=1):  # a busy machine has not decoded it in time
            first = pool.submit(post, client)
        answers = [pool.submit(post, client).result(), first.result()]
    assert [a.status_code for a in answers] == [504, 504]
    assert "longer than 2 seconds" in answers[0].json()["detail"]
    wait_for(client, 1)  # both are answered, but the network is still busy with the first
    gate.open.set()
    wait_for(client, 0)
    assert gate.batches == [1]  # the second one had been given up
    while (answer := post(client)).status_code == 504:  # the same
        pass
    assert answer.status_code == 200


def test_bodies_that_do_not_come_and_clients_that_leave(service: Service) -> None:
    client = service(Gate(), seconds=0.3, waiting=1)
    with connected(client) as slow:
        slow.sendall(HEAD % 1000 + b"abc")
        slow.settimeout(60)
        assert slow.recv(1000).startswith(b"HTTP/1.1 408 ")
    assert waiting(client) == 0
    client = service(Gate(), waiting=1)
    with connected(client) as gone:
        gone.sendall(HEAD % 1000 + b"abc")
        wait_for(client, 1)
    wait_for(client, 0)
    assert post(client).status_code == 200


def test_a_fault_of_the_model_ends_nothing(service: Service) -> None:
    gate = Gate()
    gate.fault = RuntimeError("secret path /root")
    client = service(gate)
    answer = post(client)
    assert (answer.status_code, "secret" in answer.text) == (500, False)
    gate.fault = None
    assert post(client).status_code == 200


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (UserError("image", "image", "preparing its 80x64 pixels failed"), 400),
        (UserError("memory", "image", "memory ran out"), 413),
        (UserError("model", "image: /srv/model.onnx", "cannot compute it"), 400),
        (RuntimeError("secret path /root"), 500),
    ],
)
def test_an_image_that_the_model_cannot_segment(
    service: Service, fault: Exception, status: int
) -> None:
    gate = Gate()
    gate.fault = fault
    answer = post(service(gate))
    assert answer.status_code == status
    if isinstance(fault, UserError):
        assert answer.json()["detail"] == fault.message
    else:
        assert "secret" not in answer.text


def test_an_image_that_fails_does_not_cost_the_others_of_its_batch() -> None:
    class Fussy(Gate):
        def __call__(self, images: list[np.ndarray]) -> list[Segmentation]:
            self.fault = RuntimeError() if any(not image.any() for image in images) else None
            return super().__call__(images)

    gate = Fussy()
    batcher = Batcher(gate, batch=3, gather=30)
    futures = [batcher.submit(image) for image in (PHOTO, np.zeros_like(PHOTO), PHOTO[:9])]
    batcher.start()
    assert [len(futures[i].result(20).labels) for i in (0, 2)] == [64, 9]
    assert isinstance(futures[1].exception(20), RuntimeError)
    assert gate.batches == [3, 1, 1, 1]
    batcher.close()


def test_an_image_that_nothing_is_left_of(service: Service) -> None:
    cfg = small_config()
    resize = dict(type="Resize", scale=(96, 64), keep_ratio=True)
    cfg.test_dataloader.dataset.pipeline.insert(1, resize)
    client = service(load_segmentor(cfg, None, "cpu"))
    answer = client.post("/predict", content=encoded(blobs(2, 3000)))
    assert answer.status_code == 400
    assert "3000x2" in answer.json()["detail"]
    assert post(client).status_code == 200


def test_an_overlay_that_no_jpeg_holds(
    service: Service, small_model: Segmentor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "JPEG_EDGE", 60)  # for the 65,500 pixels of the format
    client = service(small_model)
    photo = encoded(blobs(40, 61))
    answer = client.post("/predict", content=photo, params={"output": "overlay"})
    assert (answer.status_code, " 60 pixels" in answer.json()["detail"]) == (400, True)
    assert client.post("/predict", content=photo).status_code == 200


def test_more_classes_than_pictures_hold(service: Service) -> None:
    client = service(load_segmentor(small_config(pixel=True, classes=256), None, "cpu"))
    for output in ("labels", "overlay"):
        answer = post(client, params={"output": output})
        assert (answer.status_code, "ask for areas" in answer.json()["detail"]) == (400, True)
    areas = post(client, params={"output": "areas"}).json()["areas"]  # as advised
    assert sum(area["pixels"] for area in areas) == 64 * 80


def test_many_at_once_get_their_own_answers(client: httpx.Client, small_model: Segmentor) -> None:
    photos = [blobs(40 + 8 * (i % 3), 64, i) for i in range(12)]
    want = [r.labels for r in small_model(photos)]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda p: client.post("/predict", content=encoded(p)), photos))
    for answer, labels in zip(answers, want, strict=True):
        with Image.open(io.BytesIO(answer.content)) as got:
            np.testing.assert_array_equal(np.asarray(got), labels)


CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
FUZZ = settings(
    max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


@pytest.mark.parametrize("name", ["GET /health", "GET /model", "GET /metrics", "POST /predict"])
def test_requests_drawn_from_its_own_openapi(client: httpx.Client, name: str) -> None:
    method, path = name.split()
    schema = schemathesis.openapi.from_url(f"{client.base_url}/openapi.json")
    operation = schema[path][method]

    @settings(FUZZ, max_examples=40 if method == "POST" else 5)
    @given(case=operation.as_strategy())
    def one(case: schemathesis.Case) -> None:
        case.call_and_validate(checks=CHECKS)

    one()


@given(
    kind=st.sampled_from(["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"]),
    places=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=12),
    length=st.floats(0.1, 1),
)
@FUZZ
def test_damaged_files(
    client: httpx.Client, kind: str, places: list[tuple[float, int]], length: float
) -> None:
    data = bytearray(encoded(PHOTO, kind))
    for place, value in places:
        data[int(place * (len(data) - 1))] = value
    answer = client.post("/predict", content=bytes(data[: int(length * len(data))]))
    assert answer.status_code in (200, 400, 413), answer.text


def test_memory_stays_flat(service: Service) -> None:
    """Small, so that it takes a second; benchmarks/load_test.py sends ten thousand requests."""
    resource = pytest.importorskip("resource", reason="Linux and macOS only")
    client = service(Gate())
    body = encoded(np.zeros((1024, 1024, 3), np.uint8))

    def send(number: int) -> None:
        for _ in range(number):
            answer = client.post("/predict", params={"output": "areas"}, content=body)
            assert answer.status_code == 200

    send(10)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    send(40)
    # 40 images are 120 MiB.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40 * 1024


def test_limits_are_checked() -> None:
    for wrong in ({"bytes": 0}, {"pixels": 0}, {"waiting": 0}, {"seconds": 0}, {"gather": -1}):
        with raises_user_error("argument", f"limit {next(iter(wrong))}"):
            Limits(**wrong)


def test_stopping_answers_what_was_taken_on() -> None:
    gate = Gate()
    gate.open.clear()
    answers: list[int] = []

    def ask(address: httpx.URL) -> None:
        answers.append(httpx.post(f"{address}/predict", content=PNG, timeout=60).status_code)

    with running(gate, Limits()) as client:
        thread = threading.Thread(target=ask, args=(client.base_url,))
        thread.start()
        assert gate.entered.acquire(timeout=60)
        threading.Timer(0.3, gate.open.set).start()
        # Leaving the block stops the service while that image is in the network.
    thread.join()
    assert answers == [200]


@pytest.mark.parametrize("name", sorted(hostile()))
def test_files_that_are_built_to_take_long_are_refused(client: httpx.Client, name: str) -> None:
    answer = client.post("/predict", content=hostile(190_000)[name][:200_000])
    assert (answer.status_code, "image" in answer.json()["detail"]) == (400, True)


def test_work_for_a_client_that_has_left_ends(service: Service) -> None:
    class Steps(Gate):
        """A model of many steps, which would take minutes."""

        def __call__(self, images: list[np.ndarray]) -> list[Segmentation]:
            self.entered.release()
            for _ in range(0 if self.open.is_set() else 20_000):
                raise_if_cancelled()
                time.sleep(0.01)
            return super().__call__(images)

    model = Steps()
    model.open.clear()
    client = service(model, batch=1)
    with connected(client) as gone:
        gone.sendall(HEAD % len(PNG) + PNG)
        assert model.entered.acquire(timeout=30)
        assert waiting(client) == 1
    wait_for(client, 0)
    assert counted(client, "segmentation_requests_total", status="499") == 1
    model.open.set()
    assert post(client).status_code == 200


def test_a_network_ends_between_its_blocks(small_model: Segmentor) -> None:
    hooks = end_between_blocks(small_model)
    try:
        want = small_model(PHOTO).labels
        calls = iter([False] * 4)
        with cancellable(lambda: next(calls, True)), pytest.raises(Cancelled):
            small_model(PHOTO)
        np.testing.assert_array_equal(small_model(PHOTO).labels, want)
    finally:
        for hook in hooks:
            hook.remove()
