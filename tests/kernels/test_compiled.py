# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Compiled loops beyond their numbers, which test_predict_labels.py checks: threads, forks, no
Numba, no place for its cache."""

import multiprocessing
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mmseg_resnest import kernels
from mmseg_resnest.engine.runner import Runner
from mmseg_resnest.errors import UserError
from mmseg_resnest.evaluation import confusion_matrix
from mmseg_resnest.kernels import compiled, predict
from mmseg_resnest.kernels.predict import Axis, Crop, Mirror, Resize, label_map
from mmseg_resnest.models import EncoderDecoder

STEPS = [Resize((160, 208), True), Crop(0, 5, 0, 3), Resize((150, 260), True)]


@pytest.fixture(autouse=True)
def small_maps_too(monkeypatch):
    monkeypatch.setattr(predict, "_LEAST_COMPILED", 0)


@pytest.fixture
def numba():
    return pytest.importorskip("numba", reason="Numba is not installed")


@pytest.fixture
def loops(numba):
    found = compiled.load_loops()
    assert found is not None
    return found


@pytest.fixture
def nothing_loaded(monkeypatch):
    monkeypatch.setattr(compiled, "_loops", None)
    monkeypatch.setattr(compiled, "_tried", False)


@pytest.fixture
def told(monkeypatch):
    lines = []
    monkeypatch.setattr(compiled, "print_log", lambda text, **_: lines.append(text))
    return lines


def scores(seed=0):
    return torch.randn(1, 21, 20, 26, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("length", "steps"),
    [
        (9, [Resize((70, 3), True)]),
        (9, [Resize((70, 3), False), Crop(0, 0, 2, 5), Mirror(0), Resize((33, 3), False)]),
        (12, [Resize((5, 5), False), Resize((40, 40), False)]),  # four places that are apart
        (150, [Resize((40, 4), True)]),  # several batches of unit vectors
    ],
)
def test_taps_are_the_lines_of_the_matrix(length, steps):
    place, weight, count = compiled.taps(length, tuple(steps), 0)
    expected = Axis(length, steps, 0, torch.float32).matrix
    rebuilt = torch.zeros_like(expected)
    rebuilt.scatter_add_(
        1, torch.from_numpy(place.astype("int64")).t(), torch.from_numpy(weight).t()
    )
    assert torch.equal(rebuilt, expected)
    assert count.tolist() == (expected != 0).sum(1).tolist()
    assert len(place) == max(count)


def test_threads_change_nothing(loops, monkeypatch):
    """Neither how many work on one map, nor several maps at a time."""
    expected = {}
    for count in (1, 2, 3, 20):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=count: count)
        for seed in range(4):
            labels = label_map(scores(seed), STEPS, compiled=True)
            assert torch.equal(labels, expected.setdefault(seed, labels))
    results = {}

    def work(seed):
        for _ in range(5):
            results[seed] = label_map(scores(seed), STEPS, compiled=True)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(results[seed], expected[seed]) for seed in expected)


def _in_a_fork(expected):
    torch.set_num_threads(1)  # torch's own threads do not survive
    torch.get_num_threads = lambda: 2
    sys.exit(0 if torch.equal(label_map(scores(), STEPS, compiled=True), expected) else 5)


@pytest.mark.skipif(not hasattr(sys, "getdlopenflags"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_after_a_fork(loops, monkeypatch):
    """Also of a process in which a thread holds the lock just then."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    expected = label_map(scores(), STEPS, compiled=True)
    with compiled._lock:
        child = multiprocessing.get_context("fork").Process(
            target=_in_a_fork, args=(expected,), daemon=True
        )
        child.start()
    child.join(60)
    assert child.exitcode == 0


@pytest.mark.parametrize("missing", [True, False], ids=["missing", "broken"])
def test_without_numba_torch_works_and_says_so_once(missing, nothing_loaded, told, monkeypatch):
    if missing:
        monkeypatch.setitem(sys.modules, "numba", None)
        monkeypatch.delitem(sys.modules, "mmseg_resnest.kernels.loops", raising=False)
        monkeypatch.delattr(kernels, "loops", raising=False)
    else:

        def fail():
            raise ImportError("Numba needs NumPy 2.5 or less.\nGot NumPy 2.9")

        monkeypatch.setattr(compiled, "Loops", fail)
    for _ in range(2):
        labels = label_map(scores(), STEPS, compiled=True)
    assert torch.equal(labels, label_map(scores(), STEPS))
    assert told == [
        "torch makes labels and OpenCV reads PNG files, which takes longer: "
        + (
            "Numba is not installed (pip install 'mmseg-resnest[fast]')"
            if missing
            else "Numba cannot be used (Numba needs NumPy 2.5 or less. Got NumPy 2.9)"
        )
    ]


def test_nothing_is_loaded_unasked(nothing_loaded, monkeypatch):
    """Not where compiled loops are not asked for, nor for tiny maps, float64 or no resize."""
    monkeypatch.setattr(compiled, "Loops", None)
    label_map(scores(), STEPS)
    label_map(scores().double(), STEPS, compiled=True)
    label_map(scores(), [Mirror(1)], compiled=True)
    monkeypatch.setattr(predict, "_LEAST_COMPILED", 2**20)
    label_map(scores(), STEPS, compiled=True)
    matrix = confusion_matrix(torch.tensor([0, 1]), torch.tensor([1, 1]), 2)
    assert matrix.tolist() == [[0, 0], [1, 1]]


def _add(a, b):
    return a + b


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("fault", ["no place", "full", "garbage"])
def test_a_cache_that_cannot_be_used(fault, numba, monkeypatch, tmp_path):
    from numba.core import caching

    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    signature = numba.int64(numba.int64, numba.int64)
    if fault == "no place":
        monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    elif fault == "full":

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(caching.IndexDataCacheFile, "save", full)
    else:
        assert compiled._compile(_add, signature)(2, 3) == 5
        files = [file for file in tmp_path.rglob("*") if file.suffix in (".nbi", ".nbc")]
        assert len(files) == 2
        for file in files:
            file.write_bytes(file.read_bytes()[:50])
    assert compiled._compile(_add, signature)(2, 3) == 5


@pytest.mark.parametrize("pixels", [0, 1000, 3 * 2**18 + 1])
def test_confusion_matrices(loops, pixels, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    pred, label = torch.randint(0, 7, (2, pixels), generator=torch.Generator().manual_seed(0))
    label[::5] = 255
    label[::11] = 3  # also a class that is left out
    for ignored in (255, 3):
        expected = torch.zeros(7, 7, dtype=torch.int64)
        kept = (label != ignored) & (label != 255)
        expected.index_put_((label[kept], pred[kept]), torch.tensor(1), accumulate=True)
        if ignored != 255:
            label = torch.where(label == 255, ignored, label)
        assert torch.equal(confusion_matrix(pred, label, 7, ignored), expected)


@pytest.mark.parametrize(
    ("pred", "label", "words"),
    [
        ([0, 7], [1, 255], "a prediction is 7, outside 0..6"),
        ([0, -1], [1, 1], "a prediction is -1, outside 0..6"),
        ([0, 1], [1, 9], "a label is 9, which is neither a class"),
        ([0, 1], [1, -2], "a label is -2, which is neither a class"),
    ],
)
def test_what_is_out_of_range_is_said(loops, pred, label, words):
    with pytest.raises(UserError, match=words):
        confusion_matrix(torch.tensor(pred), torch.tensor(label), 7)


@pytest.mark.parametrize(
    ("images", "allowed", "expected"), [(49, True, False), (50, True, True), (50, False, False)]
)
def test_labels_of_many_images_are_compiled(images, allowed, expected):
    model = EncoderDecoder.__new__(EncoderDecoder)
    nn.Module.__init__(model)
    loop = SimpleNamespace(dataloader=SimpleNamespace(dataset=range(images)))
    assert Runner._compile_labels(SimpleNamespace(model=model, may_compile=allowed), loop) is loop
    assert model.compiled_labels is expected


@pytest.mark.parametrize("slow", [True, False])
def test_a_compilation_that_takes_long_is_said(slow, nothing_loaded, monkeypatch, capsys):
    pytest.importorskip("numba")
    monkeypatch.setattr(compiled, "_LONG", 0.01 if slow else 60.0)
    monkeypatch.setattr(compiled, "Loops", lambda: time.sleep(0.3) or "the loops")
    assert compiled.load_loops() == "the loops"
    said = "compiling loops, once on this machine: some ten seconds\n" if slow else ""
    assert capsys.readouterr().err == said
