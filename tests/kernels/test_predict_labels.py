# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Label maps against the plain reference: every step on the whole map, then arg max."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mmseg_resnest.kernels import predict, resampling
from mmseg_resnest.kernels.predict import (
    argmax_classes,
    label_map,
    plain_label_map,
    summed_label_map,
)
from mmseg_resnest.kernels.resampling import Crop, Mirror, Resampling, Resize, add_resized

EDGE = st.integers(1, 40)


def head_scores(count, classes, height, width, dtype=torch.float32, seed=0):
    """Scores that vary slowly, with some noise: what heads return."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, classes, 3, 4, generator=generator, dtype=torch.float64)
    scores = 2 * F.interpolate(coarse, (height, width), mode="bicubic")
    noise = torch.randn(scores.shape, generator=generator, dtype=torch.float64)
    return (scores + 0.3 * noise).to(dtype)


def region_scores(classes, size):
    """Regions of one class each with broad borders, as after training."""
    generator = torch.Generator().manual_seed(0)
    owner = torch.randint(0, classes, (1, 1, 4, 4), generator=generator)
    region = F.interpolate(owner.float(), (size, size))[0, 0].long()
    sure = F.one_hot(region, classes).permute(2, 0, 1)[None].float()
    sure = F.avg_pool2d(sure, 5, stride=1, padding=2, count_include_pad=False)
    return 10 * sure + torch.randn(sure.shape, generator=generator)


def assert_same_labels(labels, scores, steps):
    """As plain where the best two classes differ by more than rounding; else one of the best."""
    for step in steps:
        scores = step(scores)
    expected = scores.argmax(1)
    assert labels.shape == expected.shape
    assert labels.dtype == torch.int64
    wrong = labels != expected
    best = scores.amax(1)
    chosen = scores.gather(1, labels[:, None])[:, 0]
    tolerance = 64 * torch.finfo(scores.dtype).eps * scores.abs().max()
    assert float((best - chosen)[wrong].max() if wrong.any() else 0) <= tolerance
    assert wrong.sum() <= max(1e-4 * wrong.numel(), 1)


@st.composite
def steps_of_the_stack(draw):
    """Resize to the network's input, take its padding off, mirror back, resize to the image."""
    align_corners = draw(st.booleans())
    height, width = draw(EDGE), draw(EDGE)
    crop = Crop(0, draw(st.integers(0, width - 1)), 0, draw(st.integers(0, height - 1)))
    mirrors = draw(st.sampled_from([[], [Mirror(0)], [Mirror(1)]]))
    last = Resize((draw(EDGE), draw(EDGE)), align_corners)
    return [Resize((height, width), align_corners), crop, *mirrors, last]


@pytest.mark.parametrize("variant", ["cells", "blocks"])
@settings(deadline=None, derandomize=True)
@given(
    shape=st.tuples(st.integers(1, 2), st.integers(1, 30), st.integers(1, 12), st.integers(1, 12)),
    steps=steps_of_the_stack(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    block=st.sampled_from([(32, 256), (5, 7), (1, 1)]),
    tile_bytes=st.sampled_from([1, 3000, 2**19]),
    quantised=st.booleans(),
)
# The stack's second resize of a reduced map: four places that are no neighbours make a pixel.
@example(
    shape=(1, 5, 12, 12),
    steps=[Resize((5, 5), False), Resize((40, 40), False)],
    dtype=torch.float32,
    block=(5, 7),
    tile_bytes=1,
    quantised=False,
)
def test_labels_are_the_references(variant, shape, steps, dtype, block, tile_bytes, quantised):
    scores = head_scores(*shape, dtype=dtype, seed=sum(shape))
    if quantised:  # many places of equal scores
        scores = scores.round()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resampling, "_BLOCK", block)
        patch.setattr(resampling, "_TILE_BYTES", {"cpu": tile_bytes})
        patch.setattr(predict, "_BAND_BYTES", tile_bytes)
        patch.setattr(predict, "_SCORES", tile_bytes)
        patch.setattr(predict, "_LEAST_CELLS", 1)
        patch.setattr(predict, "_LONGEST", block[0])
        patch.setattr(predict._Cells, "pay", lambda self, scores: variant == "cells")
        labels = label_map(scores, steps)
    if quantised:
        scores = scores.double()
        for step in steps:
            scores = step(scores)
        chosen = scores.gather(1, labels[:, None])[:, 0]
        assert (scores.amax(1) - chosen).max() <= 1e-4
    else:
        assert_same_labels(labels, scores, steps)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("kind", ["regions", "slow", "noise"])
def test_labels_at_the_sizes_of_ade20k(align_corners, kind):
    """150 classes, the long edge at 520, back to the image: 99.99% and more are equal."""
    scores = region_scores(150, 60)[:, :, :49] if kind == "regions" else head_scores(1, 150, 49, 60)
    if kind == "noise":
        scores += 100 * torch.randn(scores.shape, generator=torch.Generator().manual_seed(1))
    steps = [Resize((390, 520), align_corners), Resize((256, 341), align_corners)]
    labels = label_map(scores, steps)
    equal = (labels == plain_label_map(scores, steps)).double().mean()
    assert equal >= 0.9999


@pytest.mark.skipif(
    not torch.backends.cpu.get_cpu_capability().startswith("AVX"), reason="sums in another order"
)
@pytest.mark.parametrize("align_corners", [True, False])
def test_one_resize_is_that_of_interpolate_bit_by_bit(align_corners):
    scores = torch.randn(1, 20, 33, 41, generator=torch.Generator().manual_seed(0))
    step = Resize((200, 321), align_corners)
    total = torch.zeros(20, 200, 321)
    add_resized(total, scores[0], [step])
    assert torch.equal(total, step(scores)[0])
    regions = region_scores(20, 24).round()  # equal scores in many places
    for each in (scores, regions):
        assert torch.equal(label_map(each, [step]), plain_label_map(each, [step]))


def test_few_classes_are_left_in_a_cell():
    """None that wins is missing, and most cells of regions have one; with NaN all stay."""
    scores = region_scores(19, 24)
    steps = [Resize((192, 192), True)]
    operator = Resampling(scores.shape[2:], steps, scores.dtype, scores.device)
    cells = predict._Cells(operator)
    assert cells.pay(scores[0])
    assert not cells.pay(torch.randn(scores.shape[1:], generator=torch.Generator().manual_seed(0)))
    found = predict._Candidates(scores[0], slice(0, 23, 1), (2, 2))
    assert found.counts.shape == (23, 23) and found.counts.sum() == len(found.classes)
    assert found.counts.double().mean() < 3
    scores[0, 3, 4, 5] = float("nan")
    found = predict._Candidates(scores[0], slice(0, 23, 1), (2, 2))
    assert (found.counts == 19).all()


@pytest.mark.parametrize(("classes", "size", "image"), [(150, 24, 200), (19, 48, 380)])
def test_bfloat16_scores_are_resized_in_float32(classes, size, image):
    """Exactly so; 99.9% of the labels are those of scores resized in bfloat16, to 8 bits."""
    scores = region_scores(classes, size).bfloat16()
    steps = [Resize((image, image), False)]
    labels = label_map(scores, steps)
    assert (labels == plain_label_map(scores.float(), steps)).double().mean() >= 0.9999
    assert (labels == plain_label_map(scores, steps)).double().mean() >= 0.999


@pytest.mark.parametrize("cells", [True, False])
def test_equal_scores_have_the_lowest_class(cells, monkeypatch):
    monkeypatch.setattr(predict._Cells, "pay", lambda self, scores: cells)
    scores = head_scores(1, 6, 9, 11)
    scores[:, 4] = scores[:, 1]
    scores[:, 0] = scores.amax(1)
    scores[:, 5] = scores[:, 0]
    labels = label_map(scores, [Resize((70, 90), True)])
    assert not ((labels == 4) | (labels == 5)).any()
    labels = label_map(torch.zeros(1, 3, 4, 4), [Resize((9, 9), False)])
    assert torch.equal(labels[0], torch.zeros(9, 9, dtype=torch.int64))


@pytest.mark.parametrize("cells", [True, False])
@pytest.mark.parametrize("every", [False, True])
def test_scores_that_are_not_finite_give_classes(every, cells, monkeypatch):
    monkeypatch.setattr(predict._Cells, "pay", lambda self, scores: cells)
    scores = head_scores(1, 7, 9, 11)
    if every:
        scores[:] = float("nan")
    scores[0, 3, 4, 5] = float("nan")
    scores[0, 5, 1, 1] = float("inf")
    scores[0, 6] = float("-inf")
    labels = label_map(scores, [Resize((70, 90), True)])
    assert 0 <= int(labels.min()) <= int(labels.max()) < 7


def test_steps_that_change_nothing_are_passed_over(monkeypatch):
    scores = head_scores(2, 4, 9, 11)
    monkeypatch.setattr(predict, "Resampling", None)
    steps = [Resize((9, 11), True), Crop(1, 2, 0, 3), Mirror(1), Resize((6, 8), False)]
    assert torch.equal(label_map(scores, steps), plain_label_map(scores, steps))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int32])
def test_argmax(dtype):
    scores = (10 * head_scores(1, 13, 50, 61, seed=3)[0]).to(dtype)  # bfloat16, int32: ties
    assert torch.equal(argmax_classes(scores), scores.argmax(0))
    assert torch.equal(argmax_classes(scores[:, 3:, 5:]), scores[:, 3:, 5:].argmax(0))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(steps=steps_of_the_stack(), exponential=st.booleans())
def test_scores_are_added(steps, exponential):
    scores = head_scores(1, 5, 7, 9, dtype=torch.float64)
    expected = scores
    for step in steps:
        expected = step(expected)
    expected = expected.exp() if exponential else expected
    total = torch.ones(expected.shape[1:], dtype=torch.float64)
    add_resized(total, scores[0], steps, exponential=exponential)
    assert torch.allclose(total, 1 + expected[0], rtol=1e-12, atol=1e-12)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(height=EDGE, out_height=EDGE, pieces=st.integers(1, 9), align_corners=st.booleans())
def test_rows_are_added_as_they_come(height, out_height, pieces, align_corners):
    scores = head_scores(1, 3, height, 6, dtype=torch.float64)
    steps = [Resize((out_height, 10), align_corners)]
    resampling = Resampling((height, 6), steps, scores.dtype, scores.device)
    total = torch.zeros(3, out_height, 10, dtype=torch.float64)
    done = 0
    for end in range(pieces, height + pieces, pieces):
        end = min(end, height)
        ready = resampling.rows.made_from(end)
        if ready > done:
            first = resampling.rows.source(slice(done, ready)).start
            resampling.add(total, scores[0, :, first:end], first, slice(done, ready))
            done = ready
    assert torch.allclose(total, steps[0](scores)[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("softmax", [True, False])
def test_views_are_summed(softmax):
    size = (45, 60)
    views, total = [], 0
    for i, (height, width) in enumerate([(5, 7), (9, 11), (12, 15)]):
        scores = head_scores(1, 8, height, width, dtype=torch.float64, seed=i)
        steps = [Resize((8 * height, 8 * width), True), Mirror(1), Resize(size, True)]
        views.append((scores[0], steps))
        for step in steps:
            scores = step(scores)
        total = total + (scores.softmax(1) if softmax else scores)
    labels = summed_label_map(views, softmax=softmax)
    assert torch.equal(labels, total[0].argmax(0))


def test_products_are_not_rounded(monkeypatch):
    """Where torch may round the factors of matrix products, the products are not torch's."""
    scores = torch.randn(1, 19, 16, 33, generator=torch.Generator().manual_seed(0))
    steps = [Resize((64, 99), True)]
    expected = label_map(scores, steps)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
    assert (label_map(scores, steps) == expected).double().mean() >= 0.9999


PEAK_SCRIPT = """
import sys, torch
from pathlib import Path
from mmseg_resnest.kernels.predict import label_map, plain_label_map
from mmseg_resnest.kernels.resampling import Resize

torch.set_num_threads(1)
make = {"ours": label_map, "plain": plain_label_map}[sys.argv[1]]

def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))

scores = torch.randn(1, 60, 64, 64)
if sys.argv[2] == "regions":
    scores[:, :, :32] += torch.arange(60)[:, None, None]
    scores[:, :, 32:] -= torch.arange(60)[:, None, None]
make(scores, [Resize((64, 65), True)])  # what the library keeps for itself
try:
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
except OSError:
    sys.exit("no clear_refs")
before = memory("VmRSS")
labels = make(scores, [Resize((512, 512), True), Resize((500, 500), True)])
print(memory("VmHWM") - before)
"""


@pytest.mark.long
def test_peak_memory_is_a_tenth():
    extra = {}
    for variant, kind in (("ours", "noise"), ("ours", "regions"), ("plain", "noise")):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", PEAK_SCRIPT, variant, kind],
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
            check=False,
        )
        if "no clear_refs" in done.stderr:
            pytest.skip("the kernel does not let a process reset its peak memory")
        assert done.returncode == 0, done.stderr
        extra[variant, kind] = int(done.stdout.split()[-1])
    # Two maps of 57 MiB; the labels alone, which both variants return, are 2 MiB.
    plain = extra.pop(("plain", "noise"))
    assert plain > 100 * 2**20
    assert max(extra.values()) < plain / 10, extra


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu(dtype):
    scores = head_scores(2, 150, 33, 65, dtype=dtype)
    steps = [Resize((264, 520), True), Crop(0, 8, 0, 4), Mirror(1), Resize((512, 683), True)]
    expected = plain_label_map(scores.float(), steps)
    labels = label_map(scores.cuda(), steps)
    assert labels.is_cuda
    assert (labels.cpu() == expected).double().mean() >= 0.9999
