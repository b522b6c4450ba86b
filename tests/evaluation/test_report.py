# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The report: what stands in it, and that a browser shows it and its parts move."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from user_errors import raises_user_error

from mmseg_resnest.evaluation import palette_image, report, scores_from_confusion, write_report
from mmseg_resnest.evaluation.report import read_run

CLASSES = ["sky", "road", "tree <b>", "car"]
PALETTE = [[120, 180, 240], [110, 110, 120], [40, 140, 60], [200, 60, 60]]


def make_run(folder: Path, seed: int = 0, config: str = "configs/x.py", images: int = 12) -> Path:
    """A work folder as train.py and test.py leave it."""
    rng = np.random.default_rng(seed)
    matrix = rng.integers(0, 400, (4, 4)) + np.diag([9000, 4000, 3000, 500])
    scores = scores_from_confusion(matrix)
    result = {
        "mIoU": 100 * scores.mean_iou, "pixAcc": 100 * scores.pix_acc,
        "mAcc": 100 * scores.mean_acc, "images": 40, "labelled_pixels": int(matrix.sum()),
        "classes": [
            {"name": n, "IoU": 100 * i, "Acc": 100 * a, "label": int(p)}
            for n, i, a, p in zip(CLASSES, scores.iou, scores.acc, scores.label_pixels, strict=True)
        ],
        "confusion_matrix": matrix.tolist(),
    }  # fmt: skip
    log = folder / "20260101_000000" / "vis_data"
    log.mkdir(parents=True)
    lines = []
    for step in range(20, 2001, 20):
        loss = 2 * np.exp(-step / 600) + 0.3 + rng.normal() * 0.05
        line = {"loss": loss, "lr": 0.01 * (1 - step / 2001) ** 0.9, "time": 0.5, "iter": step}
        lines.append(line | {"data_time": 0.01, "memory": 4100, "step": step})
        if step % 400 == 0:
            lines.append({"mIoU": 60 * (1 - np.exp(-step / 700)), "pixAcc": 80.0, "step": step})
    (log / "scalars.json").write_text("\n".join(map(json.dumps, lines)))
    (log / "config.py").write_text("model = dict(type='</script><script>alert(1)</script>')\n")
    (log.parent / "20260101_000000.log").write_text(
        "- INFO - \n----\nSystem environment:\n    Python: 3.11\n    PyTorch: 2.13\n" + "-" * 60
    )
    common = {"config": config, "version": "0"}
    train = {"task": "train", **common, "iteration": 2000, **result, "history": []}
    (folder / "results.json").write_text(json.dumps(train))
    examples = folder / "test" / "examples"
    examples.mkdir(parents=True)
    entries = []
    for i in range(images):
        label = np.kron(rng.integers(0, 4, (6, 8)), np.ones((20, 20))).astype(np.uint8)
        pred = np.where(rng.random(label.shape) < 0.1, rng.integers(0, 4, label.shape), label)
        label[:6] = 255
        colours = np.array(PALETTE, np.uint8)[np.where(label == 255, 0, label)]
        noisy = np.clip(colours + rng.normal(0, 20, colours.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(examples / f"{i:05d}.jpg")
        palette_image(label, PALETTE).save(examples / f"{i:05d}_label.png")
        palette_image(pred, PALETTE).save(examples / f"{i:05d}_pred.png")
        kinds = [("best", "worst", "random", "confusion")[i * 4 // images]]
        entries.append({"file": f"{i:05d}", "name": f"img{i}.jpg", "mIoU": 90.0 - i,
                        "pixAcc": 95.0, "pairs": [[1, i % 4, 77]], "kinds": kinds})  # fmt: skip
    (examples / "examples.json").write_text(
        json.dumps({"classes": CLASSES, "palette": PALETTE, "images": entries})
    )
    test = {"task": "test", "tta": False, "seconds": 8.0, **common, **result}
    (folder / "test" / "results.json").write_text(json.dumps(test))
    return folder


def data_of(page: Path) -> dict[str, Any]:
    text = page.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert found is not None
    return json.loads(found[1])


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    make_run(folder / "one")
    write_report([folder / "one"], folder / "report.html")
    return folder / "report.html"


def test_what_stands_in_it(page: Path) -> None:
    run = data_of(page)["runs"][0]
    assert [e["title"] for e in run["evaluations"]] == [
        "test",
        "best validation, iteration 2000",
    ]
    assert run["curves"]["mIoU"]["x"] == [400, 800, 1200, 1600, 2000]
    assert ["images/s, test", "5.00"] in run["speed"]
    assert ["GPU memory in training, largest", "4,100 MiB"] in run["speed"]
    assert "PyTorch: 2.13" in run["environment"]
    assert "</script><script>" in run["config"]  # in the data, escaped in the file
    assert len(run["examples"]["images"]) == 12
    text = page.read_text()
    assert text.count("</script>") == 2
    assert not re.search(r'(src|href)="(?!data:)', text)  # loads nothing
    assert "http-equiv" in text


def test_the_length_of_a_run_is_that_of_all_its_iterations(tmp_path: Path) -> None:
    """The logger's interval need not divide it."""
    run = make_run(tmp_path / "run", images=2)
    file = run / "results.json"
    result = json.loads(file.read_text())
    file.write_text(json.dumps(result | {"history": [{"iteration": 2011, "mIoU": 50.0}]}))
    speed = dict(read_run(run)["speed"])
    assert speed["iterations"] == "2,011"
    assert speed["hours of training, without validation"] == f"{2011 * 0.5 / 3600:.2f}"
    with (run / "20260101_000000" / "vis_data" / "scalars.json").open("a") as log:
        log.write('\n{"mIoU": 51.0, "step": 2019}\n')
    assert dict(read_run(run)["speed"])["iterations"] == "2,019"


def test_shares_of_classes_are_of_the_labelled_pixels(tmp_path: Path) -> None:
    """Classes that overlap have more pixels together."""
    run = make_run(tmp_path / "run", images=2)
    file = run / "test" / "results.json"
    result = json.loads(file.read_text())
    for row in result["classes"]:
        row["label"] = 600
    result |= {"labelled_pixels": 1000, "confusion_matrix": None}
    file.write_text(json.dumps(result))
    rows = read_run(run)["evaluations"][0]["classes"]
    assert [row["share"] for row in rows] == 4 * [0.6]


def test_error_map_and_label_are_those_of_the_files(page: Path) -> None:
    import base64
    import io

    entry = data_of(page)["runs"][0]["examples"]["images"][0]
    maps = {
        k: np.asarray(Image.open(io.BytesIO(base64.b64decode(entry[k].split(",")[1]))))
        for k in ("label", "pred", "error")
    }
    expected = np.where(maps["label"] == 255, 2, maps["label"] != maps["pred"])
    assert np.array_equal(maps["error"], expected)


def test_uncertainty_is_shown_where_an_image_has_it(tmp_path: Path) -> None:
    import base64
    import io

    make_run(tmp_path / "run", images=3)
    grey = np.linspace(0, 255, 120 * 160).reshape(120, 160).astype(np.uint8)
    file = tmp_path / "run" / "test" / "examples" / "00001_uncertainty.png"
    Image.fromarray(grey).save(file)
    write_report([tmp_path / "run"], tmp_path / "r.html")
    images = data_of(tmp_path / "r.html")["runs"][0]["examples"]["images"]
    (shown,) = [entry["uncertainty"] for entry in images if "uncertainty" in entry]
    picture = Image.open(io.BytesIO(base64.b64decode(shown.split(",")[1])))
    colours = np.asarray(picture.convert("RGB"))
    assert np.array_equal(np.asarray(picture), grey)
    assert colours[0, 0].tolist() == [0, 0, 0] and colours[-1, -1].tolist() == [255, 255, 255]
    assert (np.diff(colours.astype(int).sum(2).reshape(-1)) >= 0).all()


def test_published_numbers_stand_beside(tmp_path: Path) -> None:
    make_run(tmp_path / "run", config="configs/deeplabv3_resnest50_ade20k.py", images=2)
    published = read_run(tmp_path / "run")["published"]
    assert {"protocol": "multi-scale + flip", "mIoU": 45.12, "pixAcc": 81.17}.items() <= next(
        p for p in published if p["name"] == "deeplab_resnest50_ade"
    ).items()


def test_size_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", 1)
    monkeypatch.setattr(report, "MAX_BYTES", 300_000)
    done = write_report([tmp_path / "a", tmp_path / "b"], tmp_path / "r.html")
    assert (tmp_path / "r.html").stat().st_size == done["bytes"] <= 300_000
    assert 0 < done["examples"] < 24


def test_parts_may_be_missing(tmp_path: Path) -> None:
    make_run(tmp_path / "run", images=2)
    alone = tmp_path / "run" / "test"
    assert write_report([alone], tmp_path / "a.html")["runs"] == ["x"]
    shutil.rmtree(tmp_path / "run" / "test")
    assert write_report([tmp_path / "run"], tmp_path / "b.html")["examples"] == 0
    (tmp_path / "run" / "results.json").unlink()
    write_report([tmp_path / "run"], tmp_path / "c.html")
    curves = data_of(tmp_path / "c.html")["runs"][0]["curves"]
    assert set(curves) == {"loss", "lr", "mIoU", "pixAcc"}


def test_mistakes(tmp_path: Path) -> None:
    with raises_user_error("not-found"):
        write_report([tmp_path / "none"], tmp_path / "r.html")
    with raises_user_error("run"):
        write_report([tmp_path], tmp_path / "r.html")
    with raises_user_error("argument", "--out"):
        write_report([tmp_path], tmp_path / "r.txt")


@pytest.mark.parametrize(
    "name",
    [
        "results.json",
        "test/results.json",
        "test/examples/examples.json",
        "test/examples/00000.jpg",
        "test/examples/00000_pred.png",
        "20260101_000000/20260101_000000.log",
        "20260101_000000/vis_data/config.py",
        "20260101_000000/vis_data/scalars.json",
    ],
)
def test_links_out_of_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    folder = make_run(tmp_path / "run", images=2)
    path = folder / name
    shutil.move(path, tmp_path / "private")
    path.symlink_to(tmp_path / "private")
    with raises_user_error("unsafe-path", path):
        write_report([folder], tmp_path / "r.html")
    path.unlink()
    shutil.move(tmp_path / "private", path.with_name("other"))
    path.symlink_to("other")  # a link inside of the folder
    assert write_report([folder], tmp_path / "r.html")["examples"] == 2
    path.unlink()
    os.mkfifo(path)
    with raises_user_error("not-found", path):
        write_report([folder], tmp_path / "r.html")


def test_the_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", images=2)
    (tmp_path / "link").symlink_to(folder)
    assert write_report([tmp_path / "link"], tmp_path / "r.html")["examples"] == 2


@pytest.mark.parametrize("kind", ["damaged", "other format", "in colour", "large"])
@pytest.mark.parametrize("name", ["00000.jpg", "00000_label.png"])
def test_pictures_that_are_not_examples(tmp_path: Path, name: str, kind: str) -> None:
    folder = make_run(tmp_path / "run", images=2)
    path = folder / "test" / "examples" / name
    if kind == "damaged":
        path.write_bytes(path.read_bytes()[:300])
    elif kind == "other format":
        Image.new("L", (8, 8)).save(path, "GIF")
    elif kind == "large":
        Image.new("L", (5000, 8)).save(path)
    elif name.endswith("png"):
        Image.new("RGB", (8, 8)).save(path)
    else:
        Image.new("CMYK", (8, 8)).save(path)
        assert write_report([folder], tmp_path / "r.html")["examples"] == 2
        return
    with raises_user_error("image", path):
        write_report([folder], tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def open_page(browser: Any, path: Path, **options: Any) -> tuple[Any, list[str]]:
    """The page, and what it says on the console; the network is off."""
    context = browser.new_context(offline=True, **options)
    tab = context.new_page()
    said: list[str] = []
    tab.on("console", lambda m: said.append(m.text))
    tab.on("pageerror", lambda e: said.append(str(e)))
    tab.goto(path.as_uri())
    tab.wait_for_selector("html[data-ready=yes]")
    return tab, said


@pytest.mark.browser
def test_in_a_browser(browser: Any, page: Path) -> None:
    tab, said = open_page(browser, page, viewport={"width": 1280, "height": 900})
    assert tab.text_content("h1") == "x"
    assert tab.locator("#charts svg").count() == 3
    names = lambda: [n.strip() for n in tab.locator("#iou .name").all_text_contents()]  # noqa: E731
    run = data_of(page)["runs"][0]
    iou = {c["name"]: c["IoU"] for c in run["evaluations"][0]["classes"]}
    assert names() == sorted(CLASSES, key=lambda n: iou[n])
    tab.click("text=Best first")
    assert names() == sorted(CLASSES, key=lambda n: -iou[n])
    tab.click("text=By name")
    assert names() == sorted(CLASSES)

    slider = tab.locator("#viewer input")
    clip = lambda: tab.locator("#viewer img.top").evaluate("e => e.style.clipPath")  # noqa: E731
    before = clip()
    box = slider.bounding_box()
    slider.click(position={"x": 0.2 * box["width"], "y": 20})
    assert clip() != before
    cut = float(re.search(r"([\d.]+)%", clip())[1])  # type: ignore[index]
    assert 75 < cut < 85
    slider.focus()
    tab.keyboard.press("ArrowRight")
    assert float(re.search(r"([\d.]+)%", clip())[1]) < cut  # type: ignore[index]
    source = tab.locator("#viewer img").first.get_attribute("src")
    tab.click("#kinds >> text=Error")
    assert tab.locator("#viewer img").first.get_attribute("src") != source

    tab.click("#pairs button >> nth=0")
    assert "taken for" in tab.text_content("#cell")
    tab.locator("#matrix").click(position={"x": 110 + 2.5 * 48, "y": 100 + 1.5 * 48})
    assert tab.text_content("#cell").startswith("road taken for tree <b>")
    assert "3 images below" in tab.text_content("#cell")
    assert tab.locator("#thumbs button").count() == 3
    tab.click("text=Absolute")
    assert said == []


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone(browser: Any, page: Path, scheme: str) -> None:
    size = {"width": 360, "height": 740}
    tab, said = open_page(
        browser, page, viewport=size, color_scheme=scheme, has_touch=True, is_mobile=True
    )
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    shade = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(re.findall(r"\d+", shade)[0]) < 128) == (scheme == "dark")
    assert said == []


@pytest.mark.browser
def test_several_runs_in_a_browser(browser: Any, tmp_path: Path) -> None:
    make_run(tmp_path / "a", images=4)
    make_run(tmp_path / "b", 1, images=4)
    write_report([tmp_path / "a", tmp_path / "b"], tmp_path / "r.html")
    tab, said = open_page(browser, tmp_path / "r.html")
    assert tab.text_content("h1") == "2 runs compared"
    assert tab.locator("#iou .stack >> nth=0 >> .fill").count() == 2
    tab.click("text=By difference")
    tab.locator("#matrixbar select").select_option("1")
    assert said == []
