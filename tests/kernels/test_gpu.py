# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""When kernels in Triton are used, and what happens where they cannot be; without Triton or GPU."""

import copy
import importlib.util
import sys
from types import ModuleType

import pytest
import torch
from blocks import block, step

from mmseg_resnest.errors import UserError
from mmseg_resnest.kernels import gpu, predict, split_attention
from mmseg_resnest.kernels.predict import Resize

PASSES = ("pooled_sums", "weighted_sum", "gradient_sums", "gradient")


@pytest.fixture
def said(monkeypatch):
    """A process that has met no GPU yet; the lines that it logs."""
    lines = []
    monkeypatch.setattr(gpu, "print_log", lambda text, **options: lines.append(text))
    monkeypatch.setattr(gpu, "_on", None)
    monkeypatch.setattr(gpu, "_reason", None)
    monkeypatch.setenv(gpu.SWITCH, "1")
    return lines


@pytest.fixture
def on_a_gpu(said, monkeypatch):
    """Every tensor passes for one on a GPU, and Triton for installed."""
    monkeypatch.setattr(gpu, "_on_gpu", lambda x: True)
    monkeypatch.setattr(predict, "_KERNEL_DEVICES", ("cpu",))
    find = importlib.util.find_spec
    found = {"triton": find("torch")}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found.get(name) or find(name))
    return said


@pytest.fixture
def kernels(on_a_gpu, monkeypatch):
    """Stand-ins for the kernels: the plain forms, which count their calls."""
    module = ModuleType("triton_split_attention")
    module.calls = []

    def stand_in(name):
        def run(*args):
            module.calls.append(name)
            with gpu.turned_off():
                return getattr(split_attention, name)(*args)

        return run

    for name in PASSES:
        setattr(module, name, stand_in(name))
    name = "mmseg_resnest.kernels.triton_split_attention"
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("mmseg_resnest.kernels.triton_split_attention", module, raising=False)
    return module


def _plainly(made, images):
    with gpu.turned_off():
        return step(made, images)


def _images(layout=torch.contiguous_format):
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(2, 24, 5, 6, generator=draw, dtype=torch.float64)
    return images.to(memory_format=layout)


def _assert_equal(result, expected):
    assert result.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(result[name], value, rtol=1e-9, atol=1e-9, msg=name)


# --- whether they run


def test_a_cpu_asks_for_nothing(said, monkeypatch):
    monkeypatch.setenv(gpu.SWITCH, "nonsense")
    assert not gpu.usable(torch.zeros(1)) and gpu.why_not() is None and not said


def test_without_triton_one_line_says_so(on_a_gpu, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not any(gpu.usable(torch.zeros(1)) for _ in range(3))
    assert on_a_gpu == [
        "kernels in Triton are off, plain torch runs instead (Triton is not installed)"
    ]


def test_the_switch(on_a_gpu, monkeypatch):
    for value in ("0", None):
        monkeypatch.setattr(gpu, "_on", None)
        monkeypatch.setenv(gpu.SWITCH, value) if value else monkeypatch.delenv(gpu.SWITCH)
        assert not gpu.usable(torch.zeros(1)) and not on_a_gpu
        assert gpu.why_not() == "MMSEG_RESNEST_TRITON is not 1"
    monkeypatch.setattr(gpu, "_on", None)
    monkeypatch.setenv(gpu.SWITCH, "1")
    assert gpu.usable(torch.zeros(1)) and gpu.why_not() is None
    monkeypatch.setattr(gpu, "_on", None)
    monkeypatch.setenv(gpu.SWITCH, "off")
    with pytest.raises(UserError, match="MMSEG_RESNEST_TRITON=off"):
        gpu.usable(torch.zeros(1))


def test_compilers_get_plain_torch(on_a_gpu, monkeypatch):
    assert gpu.usable(torch.zeros(1))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not gpu.usable(torch.zeros(1))


def test_a_failure_is_said_once_and_for_all(on_a_gpu):
    x = torch.zeros(1)
    for _ in range(2):
        if gpu.usable(x):
            with gpu.falling_back():
                raise RuntimeError("Failed to find C compiler.\n  Please specify via CC")
    assert not gpu.usable(x)
    (line,) = on_a_gpu
    assert "RuntimeError: Failed to find C compiler. Please specify via CC" in line


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, TimeoutError, KeyboardInterrupt])
def test_what_is_not_the_kernels_fault_goes_on(on_a_gpu, error):
    assert gpu.usable(torch.zeros(1))
    with pytest.raises(error), gpu.falling_back():
        raise error
    assert gpu.usable(torch.zeros(1)) and not on_a_gpu


# --- a block whose passes are the plain forms


@pytest.mark.parametrize(("radix", "groups"), [(1, 1), (2, 2), (3, 1), (4, 2)])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_formulas_are_those_of_autograd(radix, groups, training, layout, kernels):
    """In float64: the output, all gradients and the running statistics."""
    made = block(radix, groups).train(training)
    other, images = copy.deepcopy(made), _images(layout)
    expected = _plainly(made, images)
    assert not kernels.calls
    _assert_equal(step(other, images), expected)
    assert kernels.calls == list(PASSES)


def test_frozen_parameters_get_no_gradients(kernels):
    made = block(2)
    for parameter in (*made.conv.parameters(), *made.bn0.parameters(), *made.fc1.parameters()):
        parameter.requires_grad_(False)
    made.bn0.eval()
    other = copy.deepcopy(made)
    _assert_equal(step(other, _images()), _plainly(made, _images()))


def _with_hook(made):
    made.bn0.register_forward_hook(lambda module, args, out: None)
    return made


@pytest.mark.parametrize(
    "make",
    [
        lambda: block(2, norm_cfg={"type": "GN", "num_groups": 2}),
        lambda: block(2, dropblock_prob=0.5, dropblock_size=1),
        lambda: block(2, norm_cfg={"type": "BN", "momentum": None}),
        lambda: _with_hook(block(2)),
    ],
    ids=["group norm", "DropBlock", "no momentum", "hook"],
)
def test_other_blocks_run_in_plain_torch(make, kernels):
    made = make()
    torch.manual_seed(0)
    expected = _plainly(copy.deepcopy(made), _images())
    torch.manual_seed(0)
    _assert_equal(step(made, _images()), expected)
    assert not kernels.calls


@pytest.mark.parametrize("failing", PASSES)
def test_any_pass_may_fail(failing, kernels, on_a_gpu, monkeypatch):
    """What follows is plain; results and running statistics are those of a step in peace."""

    def fail(*args):
        raise RuntimeError("ptxas died")

    monkeypatch.setattr(kernels, failing, fail)
    made = block(2)
    other = copy.deepcopy(made)
    _assert_equal(step(other, _images()), _plainly(made, _images()))
    assert len(on_a_gpu) == 1 and "ptxas died" in on_a_gpu[0]
    assert kernels.calls == list(PASSES[: PASSES.index(failing)])
    _plainly(made, _images()), step(other, _images())
    assert len(on_a_gpu) == 1 and "ptxas died" in gpu.why_not()


# --- labels


@pytest.mark.parametrize("answer", ["fails", "declines"])
def test_labels_where_the_kernel_does_not_make_them(answer, on_a_gpu, monkeypatch):
    module = ModuleType("triton_labels")

    def view_labels(views, softmax):
        if answer == "fails":
            raise RuntimeError("no C compiler")

    module.view_labels = view_labels
    monkeypatch.setitem(sys.modules, "mmseg_resnest.kernels.triton_labels", module)
    scores = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    steps = [Resize((9, 11), False)]
    labels = predict.label_map(scores, steps)
    assert torch.equal(labels, predict.plain_label_map(scores, steps))
    views = [(scores[0], steps), (scores[1], steps)]
    expected = (steps[0](scores).softmax(1)).sum(0).argmax(0)
    assert torch.equal(predict.summed_label_map(views, softmax=True), expected)
    assert len(on_a_gpu) == (answer == "fails")
