# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Other runtimes compute what torch computes, from files that are made once for a content."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from numpy.typing import NDArray
from PIL import Image
from small_models import blobs
from user_errors import raises_user_error

from mmseg_resnest import load_segmentor
from mmseg_resnest.errors import UserError
from mmseg_resnest.inference import Segmentor
from mmseg_resnest.inference.engine import choose_engine, prepare_engine
from mmseg_resnest.models import MultiScaleGridTTA, SegTTAModel
from mmseg_resnest.runtimes import Choice, engines, use_engine
from mmseg_resnest.runtimes.store import entry_of

Pictures = list[NDArray[np.uint8]]
MODES: dict[str, dict[str, Any]] = {
    "whole": dict(mode="whole"),
    "slide": dict(mode="slide", crop_size=(64, 64), stride=(48, 48)),
    "grid": dict(
        mode="multi_scale_grid", scales=(0.75, 1.25), base_size=96, crop_size=64,
        window_batch_size=2,
    ),
}  # fmt: skip


@pytest.fixture(params=["onnxruntime", "openvino", pytest.param("compile", marks=pytest.mark.long)])
def engine(request: pytest.FixtureRequest) -> str:
    if request.param != "compile":
        pytest.importorskip(request.param)
    return request.param


@pytest.mark.parametrize("mode", MODES)
def test_labels_are_those_of_torch(
    small_segmentor: Segmentor, pictures: Pictures, engine: str, mode: str
) -> None:
    model: Any = small_segmentor.model
    model.test_cfg = Config(MODES[mode])._cfg_dict
    wanted = [result.labels for result in small_segmentor(pictures)]
    choose_engine(small_segmentor, Choice(engine))
    # Nothing of the model's own computes any more.
    rows = prepare_engine(small_segmentor, pictures)
    if engine != "compile":
        model.backbone.register_forward_pre_hook(lambda *_: pytest.fail("torch computes"))
    found = [result.labels for result in small_segmentor(pictures)]
    for a, b in zip(wanted, found, strict=True):
        assert len(np.unique(a)) > 1
        assert (a == b).mean() >= 0.9999
    assert rows[0][0] == "engine"
    assert small_segmentor.engine.describe()["engine"].startswith(engine)


@pytest.mark.parametrize("kind", [SegTTAModel, MultiScaleGridTTA])
def test_augmentation_goes_through_the_engine(
    small_segmentor: Segmentor, pictures: Pictures, kind: Any
) -> None:
    options = {k: v for k, v in MODES["grid"].items() if k != "mode"}
    data = small_segmentor._prepare(pictures[0])
    if kind is SegTTAModel:
        model = kind(small_segmentor.model)
        flipped = small_segmentor._prepare(np.ascontiguousarray(pictures[0][:, ::-1]))
        flipped["data_samples"].set_metainfo(dict(flip=True, flip_direction="horizontal"))
        batch = {key: [[data[key]], [flipped[key]]] for key in data}
    else:
        model = kind(small_segmentor.model, **options)
        batch = {key: [value] for key, value in data.items()}
    with torch.no_grad():
        wanted = model.test_step(batch)[0].pred_sem_seg.data
        found_by = use_engine(model, small_segmentor.cfg, Choice("onnxruntime"))
        found = model.test_step(batch)[0].pred_sem_seg.data
    assert found_by is not None
    assert found_by.name == "onnxruntime"
    assert (wanted == found).float().mean() >= 0.9999


def _labels(cfg: Config, weights: Any, image: Any, **options: Any) -> NDArray:
    model = load_segmentor(cfg, None, "cpu", **options)
    model.model.load_state_dict(weights)
    return model(image).labels


def test_files_are_kept_by_content(
    small_segmentor: Segmentor, pictures: Pictures, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = {k: v.clone() for k, v in small_segmentor.model.state_dict().items()}
    cfg, image = small_segmentor.cfg, pictures[0]
    made: list[Path] = []
    write = engines.write_scores_network
    monkeypatch.setattr(
        engines, "write_scores_network", lambda *args: (made.append(args[-1]), write(*args))
    )
    wanted = _labels(cfg, weights, image)
    for _ in range(2):
        assert (_labels(cfg, weights, image, engine="onnxruntime") == wanted).all()
    assert len(made) == len(list(cache.iterdir())) == 1
    # Other weights are another network.
    other = {**weights, "decode_head.conv_seg.bias": weights["decode_head.conv_seg.bias"] + 1.0}
    other["decode_head.conv_seg.bias"][0] += 2
    changed = _labels(cfg, other, image, engine="onnxruntime")
    assert (changed == _labels(cfg, other, image)).all()
    assert (changed != wanted).any()
    assert len(made) == len(list(cache.iterdir())) == 2
    # A damaged file is made again, and so is one whose record is gone.
    for damage in (
        lambda folder: (folder / "model.onnx").write_bytes(b"half"),
        lambda folder: (folder / "record.json").write_text("{"),
    ):
        for folder in cache.iterdir():
            damage(folder)
        count = len(made)
        assert (_labels(cfg, weights, image, engine="onnxruntime") == wanted).all()
        assert len(made) == count + 1


def test_a_killed_export_leaves_nothing_that_is_taken_for_a_file(cache: Path) -> None:
    read, write = os.pipe()

    def blocked(part: Path) -> None:
        part.write_bytes(b"half")
        os.write(write, b"ready")
        signal.pause()

    child = os.fork()
    if not child:
        with entry_of("key") as entry:
            entry.file("model.onnx", blocked)
    assert os.read(read, 5) == b"ready"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(read)
    os.close(write)
    assert not (cache / "key" / "model.onnx").exists()
    assert len(list((cache / "key").iterdir())) == 1
    with entry_of("key") as entry:
        assert not list(entry.folder.iterdir())
        path = entry.file("model.onnx", lambda part: part.write_bytes(b"whole"))
        assert entry.has("model.onnx")
    assert path.read_bytes() == b"whole"


def test_the_cache_is_bounded(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmseg_resnest.runtimes.store.MOST_ENTRIES", 2)
    for number, key in enumerate("abca"):
        with entry_of(key) as entry:
            entry.save()
            os.utime(entry.folder, (number, number))
    assert sorted(one.name for one in cache.iterdir()) == ["a", "c"]


def test_labels_that_differ_are_refused(
    small_segmentor: Segmentor, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = engines.open_onnx
    monkeypatch.setattr(
        engines, "open_onnx",
        lambda *args: opened(*args)._replace(run=lambda x: opened(*args).run(x).flip(1)),
    )  # fmt: skip
    choose_engine(small_segmentor, Choice("onnxruntime"))
    with raises_user_error("export", "engine onnxruntime"):
        small_segmentor(pictures[0])


def test_auto_takes_the_fastest_and_measures_once(
    small_segmentor: Segmentor, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = small_segmentor(pictures[0]).labels
    times = iter([3.0, 2.0, 1.0][: len(Choice("auto").candidates(torch.device("cpu")))])
    monkeypatch.setattr(engines, "seconds_of", lambda run, images: (run(images), next(times))[1])
    for _ in range(2):  # the second time from the record
        choose_engine(small_segmentor, Choice("auto"))
        rows = dict(prepare_engine(small_segmentor, pictures))
        assert small_segmentor.engine is not None
        assert small_segmentor.engine.name in ("onnxruntime", "openvino")
        assert small_segmentor.engine.name in rows["engine"]
        assert rows["measured"].index("torch 3 s") > rows["measured"].index("onnxruntime 2 s")
        assert (small_segmentor(pictures[0]).labels == wanted).all()
        assert "compile is not tried" in rows["measured"]
    choose_engine(small_segmentor, Choice("onnxruntime"))
    rows = dict(prepare_engine(small_segmentor, pictures))
    assert "torch 3 s" in rows["measured"]
    assert "compile" not in rows["measured"]
    monkeypatch.setattr(engines, "_MEASURED", ("torch",))
    choose_engine(small_segmentor, Choice("auto"))
    prepare_engine(small_segmentor, pictures)
    assert small_segmentor.model.runtime is None
    assert small_segmentor.fold() is small_segmentor


def test_precisions_say_how_many_labels_change(
    small_segmentor: Segmentor, pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for units in ("has_bfloat16", "has_int8"):
        monkeypatch.setattr(engines, units, lambda: None)
    path = tmp_path / "picture.png"
    Image.fromarray(pictures[0]).save(path)
    wanted = small_segmentor(path).labels
    for name, precision in (("torch", "bf16"), ("onnxruntime", "int8")):
        choose_engine(small_segmentor, Choice(name, precision, (str(path),)))
        rows = dict(prepare_engine(small_segmentor, [path]))
        assert small_segmentor.engine is not None
        share = small_segmentor.engine.describe()["labels_as_torch"]
        assert share == pytest.approx((small_segmentor(path).labels == wanted).mean(), abs=2e-3)
        assert 0.9 < share < 1
        assert f"{100 * share:.4f}%" in rows["engine"]
    choose_engine(small_segmentor, Choice("onnxruntime", "int8"))
    with raises_user_error("dataset", "precision int8"):  # no image to calibrate on
        small_segmentor(path)


def test_8_bits_of_other_images_replace_the_file(
    small_segmentor: Segmentor, pictures: Pictures, tmp_path: Path, cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(engines, "has_int8", lambda: None)
    names = set()
    for number, picture in enumerate(pictures):
        path = tmp_path / f"{number}.png"
        Image.fromarray(picture).save(path)
        choose_engine(small_segmentor, Choice("onnxruntime", "int8", (str(path),)))
        prepare_engine(small_segmentor, [path])
        (file,) = cache.glob("*/int8-*")
        names.add(file.name)
        (about,) = json.loads((file.parent / "record.json").read_text())["facts"]["agreement"]
        assert file.name in about
    assert len(names) == 2
    # One that cannot be read is no fault of the engine; of others nothing can be seen.
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    for images in ((str(broken), str(path)), (str(broken),)):
        choose_engine(small_segmentor, Choice("onnxruntime", "int8", images))
        if path.name in images[-1]:
            assert prepare_engine(small_segmentor, [path])
            continue
        with raises_user_error("image", str(broken)):
            prepare_engine(small_segmentor, [path])


def test_images_that_prepare(
    small_segmentor: Segmentor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    got: list[tuple[int, ...]] = []
    write = engines.Engine.prepare
    monkeypatch.setattr(
        engines.Engine, "prepare",
        lambda self, x, **more: (got.append(tuple(x.shape)), write(self, x, **more))[1],
    )  # fmt: skip
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    choose_engine(small_segmentor, Choice("onnxruntime"))
    assert prepare_engine(small_segmentor, [broken]) == []
    assert small_segmentor.engine is not None
    assert not small_segmentor.engine.ready
    with raises_user_error("argument", "tile"):
        prepare_engine(small_segmentor, [broken], -1)
    assert prepare_engine(small_segmentor, [broken, blobs(300, 200, 1), blobs(64, 64, 1)], 128)
    whole = small_segmentor._prepare(blobs(300, 200, 1)[:128, :128])["inputs"].shape[1:]
    assert [shape[2:] for shape in got] == [tuple(whole)]


@pytest.mark.parametrize("name", ["onnxruntime", "auto"])
def test_an_image_that_the_network_does_not_take_is_passed_over(
    small_segmentor: Segmentor, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """As where it asks for multiples of 16."""

    def check(module: Any, args: Any) -> None:
        assert args[0].shape[2] % 16 == 0

    monkeypatch.setattr(engines, "_MEASURED", ("torch", "onnxruntime"))
    small_segmentor.model.backbone.register_forward_pre_hook(check)
    images = [blobs(50, 64, 1), blobs(64, 80, 2)]
    choose_engine(small_segmentor, Choice(name))
    assert prepare_engine(small_segmentor, images[:1]) == []
    with raises_user_error("image", "image"):
        small_segmentor(images[0])
    _, second = small_segmentor.attempts(images)
    assert not isinstance(second, UserError)
    assert small_segmentor.engine is not None
    assert small_segmentor.engine.ready
    choose_engine(small_segmentor, Choice(name))
    assert prepare_engine(small_segmentor, images)


def test_tiles_prepare_as_they_come(
    small_segmentor: Segmentor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They keep the image's resolution, whatever the pipeline resizes images to."""
    cfg = small_segmentor.cfg.copy()
    resize = dict(type="Resize", scale=(96, 96))
    cfg.test_dataloader.dataset.pipeline.insert(1, resize)
    model = load_segmentor(cfg, None, "cpu")
    got: list[tuple[int, ...]] = []
    monkeypatch.setattr(engines.Engine, "prepare", lambda self, x, **more: got.append(x.shape[2:]))
    choose_engine(model, Choice("onnxruntime"))
    prepare_engine(model, [blobs(300, 200)], 128)
    assert got == [(128, 128)]


def test_what_is_known_is_of_a_processor_and_whole(
    small_segmentor: Segmentor, pictures: Pictures, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[object] = []
    compare = engines.compare_scores
    monkeypatch.setattr(
        engines, "compare_scores", lambda *args: (compared.append(0), compare(*args))[1]
    )

    def times() -> int:
        compared.clear()
        choose_engine(small_segmentor, Choice("onnxruntime"))
        assert prepare_engine(small_segmentor, pictures)
        return len(compared)

    assert [times(), times()] == [1, 0]
    monkeypatch.setattr(engines, "processor_name", lambda: "another")
    assert [times(), times()] == [1, 0]
    monkeypatch.setattr(engines, "seconds_of", lambda run, images: 1.0)
    choose_engine(small_segmentor, Choice("auto"))
    assert prepare_engine(small_segmentor, pictures)
    (file,) = cache.glob("*/record.json")
    record = json.loads(file.read_text())
    agreement, seconds = record["facts"]["agreement"], record["facts"]["seconds"]
    damaged: list[tuple[Any, Any]] = [([1, "many"], 3), (["1", 2, 3, 4], {"torch": "soon"})]
    for facts in [{"agreement": 1, "seconds": []}] + [
        dict(agreement=dict.fromkeys(agreement, found), seconds=dict.fromkeys(seconds, s))
        for found, s in damaged
    ]:
        file.write_text(json.dumps({**record, "facts": facts}))
        assert [times(), times()] == [1, 0]
    # A file that is made again is compared again.
    (file.parent / "model.onnx").write_bytes(b"half")
    assert [times(), times()] == [1, 0]


def test_units_are_those_of_the_device(
    small_segmentor: Segmentor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "has_bfloat16", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    choice = Choice("torch", "bf16")
    assert choice.candidates(torch.device("cuda")) == ["torch"]
    with raises_user_error("device", "precision bf16"):
        choose_engine(small_segmentor, choice)
    with raises_user_error("device", "precision bf16"):
        Choice("openvino", "bf16")
    monkeypatch.setattr(engines, "has_int8", lambda: True)
    small_segmentor.model.to("meta")
    with raises_user_error("device", "precision int8"):
        choose_engine(small_segmentor, Choice("onnxruntime", "int8"))


def test_choices_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    for units, precision in (("has_bfloat16", "bf16"), ("has_int8", "int8")):
        monkeypatch.setattr(engines, units, lambda: False)
        with raises_user_error("device", f"precision {precision}"):
            Choice("openvino" if precision == "bf16" else "onnxruntime", precision)
        monkeypatch.setattr(engines, units, lambda: True)
    for engine, precision in (("torch", "int8"), ("onnxruntime", "bf16")):
        with raises_user_error("config-conflict", f"precision {precision}"):
            Choice(engine, precision)
    with raises_user_error("argument", "engine tensorrt"):
        Choice("tensorrt")
    with raises_user_error("argument", "precision fp8"):
        Choice("torch", "fp8")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with raises_user_error("missing-package", "openvino") as caught:
        Choice("openvino")
    assert "mmseg-resnest[openvino]" in caught.value.message


def test_models_that_no_engine_computes(pictures: Pictures, small_segmentor: Segmentor) -> None:
    from mmseg.models.segmentors import EncoderDecoder as Stock

    small_segmentor.model.__class__ = Stock  # type: ignore[assignment]
    with raises_user_error("model", "engine onnxruntime"):
        choose_engine(small_segmentor, Choice("onnxruntime"))
    said: list[str] = []
    choose_engine(small_segmentor, Choice("auto"), said.append)
    assert small_segmentor.engine is None
    assert [line.startswith("auto takes torch: ") for line in said] == [True]
    assert small_segmentor(pictures[0]).labels.size


def test_images_of_any_size(small_segmentor: Segmentor, engine: str) -> None:
    images = [blobs(64, 64, 3), blobs(70, 61, 4), blobs(64, 64, 5)]
    wanted = [result.labels for result in small_segmentor(images)]
    choose_engine(small_segmentor, Choice(engine))
    for image, labels in zip(images, wanted, strict=True):
        assert (small_segmentor(image).labels == labels).mean() >= 0.9999


def test_auto_goes_on_without_an_engine_that_cannot_compute(
    small_segmentor: Segmentor, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> Any:
        raise RuntimeError("an operation that there is not")

    def opening(change: Any) -> dict[str, Any]:
        return {"open_onnx": lambda *args: opened(*args)._replace(run=change(opened(*args).run))}

    monkeypatch.setattr(engines, "_MEASURED", ("torch", "onnxruntime"))
    wanted, opened = small_segmentor(pictures[0]).labels, engines.open_onnx
    for fault in (
        {"write_scores_network": fail},
        {"open_onnx": fail},
        opening(lambda run: fail),
        opening(lambda run: lambda x: run(x).flip(1)),  # other labels
    ):
        said: list[str] = []
        times = iter([3.0, 2.0])
        with monkeypatch.context() as patch:
            patch.setattr(engines, "seconds_of", lambda run, x, t=times: (run(x), next(t))[1])
            for name, value in fault.items():
                patch.setattr(engines, name, value)
            choose_engine(small_segmentor, Choice("auto"), said.append)
            rows = dict(prepare_engine(small_segmentor, pictures))
        assert rows["engine"].startswith("torch")
        assert said[-1].startswith("auto leaves out onnxruntime: ")
        assert (small_segmentor(pictures[0]).labels == wanted).all()


def test_a_file_that_openvino_cannot_make_is_left_out(
    small_segmentor: Segmentor, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> Any:
        raise RuntimeError("an operation that there is not")

    wanted, said = small_segmentor(pictures[0]).labels, []
    monkeypatch.setattr(engines, "_MEASURED", ("torch", "openvino"))
    monkeypatch.setattr(engines, "_is_installed", lambda name: True)
    monkeypatch.setattr(engines, "write_openvino", fail)
    choose_engine(small_segmentor, Choice("auto"), said.append)
    assert prepare_engine(small_segmentor, pictures)
    assert said[-1].startswith("auto leaves out openvino: ")
    assert (small_segmentor(pictures[0]).labels == wanted).all()


@pytest.mark.parametrize("bands", [1, 4])
def test_images_of_other_channels(
    small_segmentor: Segmentor, bands: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the backbone does not tell how many it takes."""
    model: Any = small_segmentor.model
    model.backbone.stem[0] = torch.nn.Conv2d(bands, 2, 3, 2, 1)
    monkeypatch.setattr(engines, "input_channels", lambda model: None, raising=False)
    images = torch.randn(2, bands, 64, 80, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = model.logits(images)
        choose_engine(small_segmentor, Choice("onnxruntime"))
        torch.testing.assert_close(model.logits(images), wanted, atol=1e-4, rtol=1e-4)


def test_torch_is_chosen_after_another_engine(
    small_segmentor: Segmentor, pictures: Pictures
) -> None:
    choose_engine(small_segmentor, Choice("onnxruntime"))
    assert small_segmentor(pictures[0]).labels.size
    choose_engine(small_segmentor, Choice())
    ran: list[object] = []
    small_segmentor.model.backbone.register_forward_pre_hook(lambda *_: ran.append(0))
    assert small_segmentor(pictures[0]).labels.size
    assert ran


def test_other_processes_do_not_wait_for_the_comparison(
    small_segmentor: Segmentor, pictures: Pictures, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare, met = engines.compare_scores, []

    def comparing(*args: Any) -> Any:
        (folder,) = cache.iterdir()
        with entry_of(folder.name, lambda: pytest.fail("it is held")) as entry:
            met.append(entry.has("model.onnx"))
        return compare(*args)

    monkeypatch.setattr(engines, "compare_scores", comparing)
    choose_engine(small_segmentor, Choice("onnxruntime"))
    assert prepare_engine(small_segmentor, pictures)
    assert met == [True]


def test_a_process_that_waits_says_so(cache: Path) -> None:
    go, ready = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        os.read(go[0], 1)
        with entry_of("key", lambda: os.write(ready[1], b"waits")):
            os._exit(0)
    os.close(ready[1])
    with entry_of("key"):
        os.write(go[1], b"1")
        said = os.read(ready[0], 5)  # nothing, where it ended
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert said == b"waits"
    for end in (*go, ready[0]):
        os.close(end)


def test_what_is_measured_may_be_lost(
    small_segmentor: Segmentor, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a cache that cannot be written, files that are there are used."""
    wanted = small_segmentor(pictures[0]).labels
    choose_engine(small_segmentor, Choice("onnxruntime"))
    assert (small_segmentor(pictures[0]).labels == wanted).all()
    monkeypatch.setattr(engines, "processor_name", lambda: "another")  # so it is compared again

    def full(path: Path, data: str) -> None:
        raise UserError("not-writable", path, "cannot be written (no space)")

    monkeypatch.setattr("mmseg_resnest.runtimes.store.atomic_write", full)
    said: list[str] = []
    choose_engine(small_segmentor, Choice("onnxruntime"), said.append)
    assert (small_segmentor(pictures[0]).labels == wanted).all()
    assert len(said) == 1
    assert "is not kept" in said[0]
