# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Images to files: what is written, kept, skipped; large images; videos."""

from __future__ import annotations

import copy
import importlib
import itertools
import json
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
import torch
from advice import advises
from outlines import rasterize
from PIL import Image, ImageCms
from small_models import blobs
from user_errors import raises_user_error

from mmseg_resnest.datasets.reader import ImageReader
from mmseg_resnest.inference import Segmentation, Segmentor, files, video
from mmseg_resnest.inference.files import FileJob
from mmseg_resnest.inference.images import find_images, find_inputs
from mmseg_resnest.inference.rows import open_rows
from mmseg_resnest.inference.video import is_stream, is_video, predict_video


def labels_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.mode == "P"
        return np.asarray(image)


def test_patterns(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.png", "sub/c.jpg", "out/d.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found, _ = find_inputs(f"{tmp_path}/**/*.jpg", tmp_path / "out")
    assert [Path(f).name for f in found] == ["a.jpg", "c.jpg"]
    found, _ = find_inputs(f"{tmp_path}/*.jpg", tmp_path)  # outputs beside the images
    assert [Path(f).name for f in found] == ["a.jpg"]
    with raises_user_error("not-found", "*.bmp"):
        find_inputs(f"{tmp_path}/*.bmp")
    assert find_inputs("https://example.org/a.jpg")[0] == ["https://example.org/a.jpg"]


def test_metadata_stays(small_model: Segmentor, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x013B] = 6, "A. Author"
    exif.get_ifd(0x8825).update({1: "N", 2: (47.0, 22.0, 12.5)})
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    source = tmp_path / "in" / "photo.jpg"
    source.parent.mkdir()
    Image.fromarray(blobs(24, 40)).save(source, exif=exif, dpi=(300, 150), icc_profile=profile)
    FileJob(small_model, [str(source)], tmp_path, ["labels", "overlay"]).run()
    for name in ("photo.png", "photo_overlay.jpg"):
        with Image.open(tmp_path / name) as image:
            assert image.size == (24, 40)  # upright
            kept = image.getexif()
            assert 0x0112 not in kept
            assert kept[0x013B] == "A. Author"
            assert [float(v) for v in kept.get_ifd(0x8825)[2]] == [47.0, 22.0, 12.5]
            assert [round(float(d)) for d in image.info["dpi"]] == [300, 150]
            assert image.info.get("icc_profile") == (profile if "overlay" in name else None)


def test_metadata_that_no_jpeg_holds_does_not_cost_the_picture(
    small_model: Segmentor, tmp_path: Path
) -> None:
    notes, dense = Image.Exif(), Image.Exif()
    notes[0x013B] = "A. Author"
    notes.get_ifd(0x8769)[0x927C] = bytes(70_000)  # a maker's
    dense[0x011A] = dense[0x011B] = 4e9  # dots an inch
    dense[0x0128] = 2
    for name, exif in (("notes.webp", notes), ("dense.jpg", dense)):
        Image.fromarray(blobs(24, 40)).save(tmp_path / name, exif=exif)
    names = [str(tmp_path / name) for name in ("notes.webp", "dense.jpg")]
    assert FileJob(small_model, names, tmp_path).run().done == 2
    with Image.open(tmp_path / "notes.png") as labels:
        assert labels.getexif()[0x013B] == "A. Author"


def test_geotiffs_are_counted(small_model: Segmentor, tmp_path: Path) -> None:
    path = tmp_path / "map.tif"
    scale = (33550, "d", 3, (0.5, 0.5, 0.0), True)
    tifffile.imwrite(path, blobs(24, 32), extratags=[scale], photometric="rgb")
    summary = FileJob(small_model, [str(path)], tmp_path / "out").run()
    assert (summary.done, summary.georeferenced) == (1, 1)
    record = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()[-1]
    assert json.loads(record)["georeferenced"] is True


def test_a_stopped_job_goes_on(
    small_model: Segmentor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = []
    for i in range(4):
        sources.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(blobs(16, 16, seed=i)).save(sources[-1])
    out = tmp_path / "out"
    assert FileJob(small_model, sources, out).run().done == 4
    (out / "2_overlay.png").unlink()  # lost
    (out / "1.png").write_bytes(b"cut off")
    with (out / "predictions.jsonl").open("a") as file:
        file.write('{"input": "half a li')
    before = (out / "0.png").stat().st_mtime_ns
    summary = FileJob(small_model, sources, out).run()
    assert (summary.done, summary.skipped) == (2, 2)
    assert (out / "0.png").stat().st_mtime_ns == before
    labels_of(out / "1.png")
    assert FileJob(small_model, sources, out).run().skipped == 4
    Image.fromarray(blobs(16, 16, seed=9)).save(sources[0])  # another image of the same name
    assert FileJob(small_model, sources, out).run().done == 1
    assert FileJob(small_model, sources, out, settings="another checkpoint").run().done == 4
    assert FileJob(small_model, sources, out, overwrite=True).run().done == 4

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    summary = FileJob(small_model, sources, out, overwrite=True).run()
    assert [error.code for error in summary.failed] == ["not-writable"] * 4
    assert not list(out.glob(".*"))


@pytest.mark.parametrize("kind", ["labels", "coco"])
def test_files_of_others_are_not_replaced(
    small_model: Segmentor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    source, other = tmp_path / "a.jpg", tmp_path / ("a.png" if kind == "labels" else "coco.json")
    Image.fromarray(blobs(16, 16)).save(source)
    other.write_bytes(b"the labels of a person")
    for overwrite in (False, True):
        with advises("inference/files.py:claim", "move it away", "name another folder with --out"):
            FileJob(small_model, [str(source)], tmp_path, [kind], overwrite=overwrite).run()
    assert FileJob(small_model, [str(source)], tmp_path / "out", [kind]).run().done == 1
    assert other.read_bytes() == b"the labels of a person"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["a.jpg", other.name, "out"])
    other.unlink()
    monkeypatch.setattr(files.FileJob, "_finish", lambda *args: exit(9))  # killed before the record
    with pytest.raises(SystemExit):
        FileJob(small_model, [str(source)], tmp_path, [kind]).run()
    monkeypatch.undo()
    for _ in range(2):  # what it left behind is its own
        FileJob(small_model, [str(source)], tmp_path, [kind], overwrite=True).run()


def test_outputs_keep_their_names_when_a_folder_gets_more_images(
    small_model: Segmentor, tmp_path: Path
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    for done, name in enumerate(("monday/1.png", "tuesday/1.png")):
        (folder / name).parent.mkdir(parents=True)
        Image.fromarray(blobs(16, 16)).save(folder / name)
        images = find_inputs(str(folder), out)[0]
        summary = FileJob(small_model, images, out, ["labels", "coco"], root=folder).run()
        assert (summary.done, summary.skipped) == (1, done)
        assert (out / name).is_file()
    joined = json.loads((out / "coco.json").read_text())["images"]
    assert [image["file_name"] for image in joined] == ["monday/1.png", "tuesday/1.png"]


def test_an_image_is_done_when_nothing_that_made_it_differs(
    small_model: Segmentor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = [str(tmp_path / "a" / "x.png"), str(tmp_path / "b" / "x.png")]
    for seed, source in enumerate(sources):
        Path(source).parent.mkdir()
        Image.fromarray(blobs(16, 16, seed=seed)).save(source)
    out = tmp_path / "out"

    def predict(source: str, expected: int, model: Segmentor = small_model, **more: Any) -> None:
        assert FileJob(model, [source], out, **more).run().done == expected
        assert np.array_equal(labels_of(out / "x.png"), model(source).labels)

    predict(sources[0], 1)
    predict(sources[0], 0)
    predict(sources[0], 0, outputs=["labels"])
    predict(sources[0], 0, outputs=["labels"], opacity=0.9)  # labels have no opacity
    predict(sources[0], 1, opacity=0.9)
    predict(sources[0], 1, tile=64)
    predict(sources[1], 1, tile=64)  # the same names of outputs
    predict(sources[0], 1, tile=64)
    labels_of(out / "x.png")
    content = bytearray((out / "x.png").read_bytes())
    content[-20] ^= 1  # changed by hand, the size stays
    (out / "x.png").write_bytes(content)
    predict(sources[0], 1, tile=64)
    other = Segmentor(copy.deepcopy(small_model.model), small_model.cfg, small_model.device)
    predict(sources[0], 0, other, tile=64)  # the same weights
    with torch.no_grad():
        other.model.decode_head.conv_seg.weight.neg_()
    predict(sources[0], 1, Segmentor(other.model, other.cfg, other.device), tile=64)
    cfg = copy.deepcopy(other.cfg)
    cfg.custom_imports = dict(imports=["module_of_mine"])
    (tmp_path / "module_of_mine.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("module_of_mine")
    for expected, changed in ((1, False), (0, True), (1, False)):
        predict(sources[0], expected, Segmentor(other.model, cfg, other.device), tile=64)
        if changed:
            (tmp_path / "module_of_mine.py").write_text("# edited")
    recoloured = Segmentor(other.model, other.cfg, other.device)
    recoloured.palette = [[1, 2, 3], *recoloured.palette[1:]]
    predict(sources[0], 1, recoloured, tile=64)


@pytest.mark.parametrize("tile", [0, 64])
def test_outlines_give_the_labels_back(small_model: Segmentor, tmp_path: Path, tile: int) -> None:
    sources = []
    for i, size in enumerate([(70, 90), (80, 66)]):
        path = tmp_path / "in" / "deep" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(blobs(*size, seed=i)).save(path)
        sources.append(str(path))
    out = tmp_path / "out"
    job = FileJob(small_model, sources, out, ["labels", "geojson", "coco", "side"], tile=tile)
    assert job.run().done == 2
    coco = json.loads((out / "coco.json").read_text())
    assert [i["file_name"] for i in coco["images"]] == ["0.png", "1.png"]
    assert len({a["id"] for a in coco["annotations"]}) == len(coco["annotations"])
    for i, image in enumerate(coco["images"]):
        labels = labels_of(out / f"{i}.png")
        assert len(np.unique(labels)) > 1
        rings = [
            (a["category_id"] - 1, [np.reshape(s, (-1, 2)) for s in a["segmentation"]])
            for a in coco["annotations"]
            if a["image_id"] == image["id"]
        ]
        assert np.array_equal(rasterize(rings, *labels.shape), labels)
        features = json.loads((out / f"{i}.geojson").read_text())["features"]
        rings = [(f["properties"]["class"], f["geometry"]["coordinates"]) for f in features]
        assert np.array_equal(rasterize(rings, *labels.shape), labels)
    assert Image.open(out / "0_side.png").width > 2 * 90


# --- large files


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rowsperstrip": 16},
        {"tile": (32, 64)},
        {"compression": "zlib", "rowsperstrip": 16},
        {"compression": "zlib", "tile": (32, 64), "predictor": True},
        {"byteorder": ">"},
    ],
)
@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("kind", ["rgb", "grey", "grey alpha", "rgba", "rgb and a band", "bands"])
def test_rows_of_tiffs_are_those_of_the_whole(
    tmp_path: Path, options: dict, kind: str, deep: bool
) -> None:
    pixels = blobs(101, 130)
    four = np.dstack([pixels, pixels[::-1, :, 0]])
    stored, extra = {
        "rgb": (pixels, []),
        "grey": (pixels[:, :, 0], []),
        "grey alpha": (four[:, :, 2:], ["unassalpha"]),
        "rgba": (four, ["unassalpha"]),
        "rgb and a band": (four, ["unspecified"]),
        "bands": (four, ["unspecified"] * 3),
    }[kind]
    stored = stored.astype(np.uint16) * 256 + 77 if deep else stored
    photometric = "rgb" if "rgb" in kind else "minisblack"
    more = {"planarconfig": "contig"} if stored.ndim == 3 else {}
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, stored, photometric=photometric, extrasamples=extra, **{**options, **more}
    )
    if kind == "grey alpha" and deep and "tile" in options:  # misread by OpenCV and by Pillow
        with raises_user_error("image", "a.tif"):
            ImageReader().read(path)
        return
    whole = ImageReader().read(path).pixels
    rows = open_rows(path, ImageReader())
    for top, bottom in ((0, 101), (0, 1), (15, 17), (33, 90), (100, 101)):
        assert np.array_equal(rows.read(top, bottom), whole[top:bottom])
    assert (type(rows).__name__ == "_ArrayRows") == (kind == "bands")  # read in parts


def test_a_damaged_large_file_writes_nothing(pixel_model: Segmentor, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, blobs(200, 200), photometric="rgb", compression="zlib", rowsperstrip=64)
    with tifffile.TiffFile(path) as file:
        third = file.pages.first.dataoffsets[2]
    data = bytearray(path.read_bytes())
    data[third : third + 500] = bytes(500)
    path.write_bytes(bytes(data))
    summary = FileJob(pixel_model, [str(path)], tmp_path / "out", tile=96).run()
    assert (summary.done, len(summary.failed)) == (0, 1)
    assert (summary.failed[0].code, summary.failed[0].subject) == ("corrupt", str(path))
    assert not [f for f in (tmp_path / "out").iterdir() if f.suffix == ".png"]


def test_rows_of_other_files(tmp_path: Path) -> None:
    pixels = blobs(50, 60)
    for name in ("a.ppm", "a.png"):
        Image.fromarray(pixels).save(tmp_path / name)
        rows = open_rows(tmp_path / name, ImageReader())
        assert np.array_equal(rows.read(7, 33), pixels[7:33, :, ::-1])
    data = (tmp_path / "a.ppm").read_bytes()
    (tmp_path / "b.ppm").write_bytes(data[:-100])
    with raises_user_error("image", "b.ppm"):
        open_rows(tmp_path / "b.ppm", ImageReader())


def test_a_large_image_in_bounded_memory(pixel_model: Segmentor, tmp_path: Path) -> None:
    path = tmp_path / "large.tif"
    pixels = np.kron(blobs(250, 250), np.ones((8, 8, 1), np.uint8))
    tifffile.imwrite(path, pixels, photometric="rgb", rowsperstrip=64)
    expected = pixel_model(pixels, tile=0).labels
    size = pixels.nbytes
    del pixels
    job = FileJob(pixel_model, [str(path)], tmp_path / "out", ["labels"], tile=160)
    tracemalloc.start()  # counts what NumPy and Pillow's buffers take, not torch's tiles
    job.run()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.5 * size
    assert np.array_equal(labels_of(tmp_path / "out" / "large.png"), expected)


def test_pictures_of_a_large_image_are_reduced(
    pixel_model: Segmentor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_REDUCED_EDGE", 100)
    pixels = blobs(250, 333)
    Image.fromarray(pixels).save(tmp_path / "a.png", dpi=(200, 200))
    out = tmp_path / "out"
    FileJob(pixel_model, [str(tmp_path / "a.png")], out, ["labels", "overlay"], 0, 96).run()
    labels = labels_of(out / "a.png")
    assert np.array_equal(labels, pixel_model(pixels).labels)
    assert [round(float(d)) for d in Image.open(out / "a.png").info["dpi"]] == [200, 200]
    assert np.array_equal(np.asarray(Image.open(out / "a_overlay.png")), pixels[::4, ::4])


# --- videos


@pytest.fixture
def film(tmp_path: Path) -> Path:
    path = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 12, (48, 32))
    for i in range(6):
        writer.write(blobs(32, 48, seed=i))
    writer.release()
    return path


def test_a_video(small_model: Segmentor, film: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = predict_video(small_model, str(film), out, ["labels", "overlay", "side"])
    assert done["frames"] == 6
    capture = cv2.VideoCapture(str(out / "film_side.mp4"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 6
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(12)
    assert capture.get(cv2.CAP_PROP_FRAME_WIDTH) == 96
    assert len(list((out / "film").glob("*.png"))) == 6
    with raises_user_error("empty", tmp_path):
        find_images(tmp_path)  # label maps of frames are no images to segment
    frame = cv2.VideoCapture(str(film)).read()[1][:, :, ::-1]
    assert np.array_equal(
        labels_of(out / "film" / "000001.png"), small_model(np.ascontiguousarray(frame)).labels
    )
    assert predict_video(small_model, str(film), out, ["overlay"])["skipped"]
    (out / "film_overlay.mp4").unlink()
    assert predict_video(small_model, str(film), out, ["overlay"], max_frames=2)["frames"] == 2


def _count(path: Path) -> int:
    """Frames of a video, read one by one."""
    capture = cv2.VideoCapture(str(path))
    return next(n for n in itertools.count() if not capture.read()[0])


def test_a_video_is_done_when_nothing_that_made_it_differs(
    small_model: Segmentor, film: Path, tmp_path: Path
) -> None:
    out, kinds = tmp_path / "out", ["labels", "overlay"]
    frames = lambda: sorted(p.name for p in (out / "film").iterdir())  # noqa: E731

    def predict(expected: int | None, model: Segmentor = small_model, **options: Any) -> None:
        """Frames that are done, None for a video that is skipped."""
        done = predict_video(model, str(film), out, kinds, **options)
        assert (None if done["skipped"] else done["frames"]) == expected
        if expected is not None:
            assert _count(out / "film_overlay.mp4") == len(frames()) == expected

    predict(2, max_frames=2)
    predict(None, max_frames=2)
    predict(6)
    predict(None)
    predict(6, opacity=0.9)
    predict(6, opacity=0.5)
    (out / "film" / "000003.png").unlink()
    predict(6)
    predict(2, max_frames=2)  # no frame of the longer one is left
    predict(6)
    other = Segmentor(copy.deepcopy(small_model.model), small_model.cfg, small_model.device)
    predict(None, other)  # the same weights
    with torch.no_grad():
        other.model.decode_head.conv_seg.weight.neg_()
    other = Segmentor(other.model, small_model.cfg, small_model.device)
    before = labels_of(out / "film" / "000001.png")
    predict(6, other)
    first = np.ascontiguousarray(cv2.VideoCapture(str(film)).read()[1][:, :, ::-1])
    assert np.array_equal(labels_of(out / "film" / "000001.png"), other(first).labels)
    assert not np.array_equal(labels_of(out / "film" / "000001.png"), before)
    # Another video of the same name, in place or elsewhere, and back.
    (tmp_path / "more").mkdir()
    elsewhere = shutil.copy2(film, tmp_path / "more")
    assert not predict_video(other, str(elsewhere), out, kinds)["skipped"]
    predict(6, other)


def test_frames_of_others_are_not_replaced(
    small_model: Segmentor, film: Path, tmp_path: Path
) -> None:
    (tmp_path / "out" / "film").mkdir(parents=True)
    (tmp_path / "out" / "film" / "000001.png").write_bytes(b"a frame that someone has extracted")
    with raises_user_error("output-exists", "film"):
        predict_video(small_model, str(film), tmp_path / "out")
    assert len(list((tmp_path / "out" / "film").iterdir())) == 1


def test_a_video_that_stops_early(small_model: Segmentor, film: Path, tmp_path: Path) -> None:
    data = film.read_bytes()
    cut, out = tmp_path / "cut.avi", tmp_path / "out"
    cut.write_bytes(data[: len(data) // 2])
    frames = _count(cut)
    assert 0 < frames < 4
    with advises("inference/video.py:predict_video", "--max-frames") as caught:
        predict_video(small_model, str(cut), out, ["labels", "overlay"])
    assert f"{frames} of its 6 frames" in caught.value.message
    assert _count(out / "cut_overlay.mp4") == len(list((out / "cut").iterdir())) == frames
    for again in (False, True):  # as advised
        done = predict_video(small_model, str(cut), out, ["overlay"], max_frames=frames)
        assert done["skipped"] == again


def test_an_interrupted_video_leaves_no_half(
    small_model: Segmentor, film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def drawn(*args: object) -> Image.Image:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return Image.fromarray(np.zeros((32, 48, 3), np.uint8))

    monkeypatch.setattr(Segmentation, "overlay", drawn)
    with pytest.raises(KeyboardInterrupt):
        predict_video(small_model, str(film), tmp_path / "out", ["overlay"])
    assert not list((tmp_path / "out").glob("*.mp4"))
    assert not list((tmp_path / "out").glob(".*"))
    # a stream that is stopped keeps what it has
    calls.clear()
    monkeypatch.setattr(video, "is_stream", lambda source: True)
    done = predict_video(small_model, str(film), tmp_path / "out", ["overlay"])
    assert (done["frames"], done["stopped"]) == (3, True)
    assert cv2.VideoCapture(str(done["files"][0])).get(cv2.CAP_PROP_FRAME_COUNT) == 2


def test_what_is_a_video(small_model: Segmentor, tmp_path: Path) -> None:
    assert is_stream("0")
    assert is_stream("rtsp://camera/1")
    assert not is_stream("https://example.org/a.jpg")
    assert is_video("a.MP4")
    assert not is_video("a.jpg")
    (tmp_path / "no.mp4").write_bytes(b"no")
    with raises_user_error("format", "no.mp4"):
        predict_video(small_model, str(tmp_path / "no.mp4"), tmp_path)
    with raises_user_error("argument", "outputs"):
        predict_video(small_model, "a.mp4", tmp_path, ["coco"])
