# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Timing on one device: turns, ceilings, operations, bytes and memory.

The ways of a case run in one process and take turns, because two processes share a GPU badly. A
time is that of device events around the work. The floor of a time is the larger of two: the
operations over the rate of a large bfloat16 matrix product, and the bytes over the rate of a large
copy, both measured on the same device.
"""

from __future__ import annotations

import contextlib
import gc
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
Work = Callable[[], Any]


@dataclass(frozen=True)
class Case:
    """Ways of doing the same work.

    Attributes:
        name: For the table and ``--case``.
        what: For people.
        reference: The way that the others are compared with.
        ways: Name to a function that returns the work.
        items: Images that one call of the work does, for images per second.
        unit: What is counted, e.g. ``images``.
        compare: (reference's result, a way's result) to figures by name.
        count: Work to count operations and bytes of; None leaves the floor out.
        least: The ratio to reach, by way and reference.
        missing: Ways that cannot run here, and why.
    """

    name: str
    what: str
    reference: str
    ways: Mapping[str, Callable[[], Work]]
    items: int = 1
    unit: str = "images"
    compare: Callable[[Any, Any], dict[str, float]] | None = None
    count: Callable[[], Work] | None = None
    least: Mapping[tuple[str, str], float] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)


def synchronise() -> None:
    if CUDA:
        torch.cuda.synchronize()


def clear() -> None:
    """Give back what the last case has left."""
    gc.collect()
    if "torch._dynamo" in sys.modules:  # importing it for nothing takes seconds
        torch.compiler.reset()
    if CUDA:
        torch.cuda.empty_cache()


def seconds(work: Work, calls: int = 1) -> float:
    """Mean time of a call, by events of the device."""
    if not CUDA:
        start = time.perf_counter()
        for _ in range(calls):
            work()
        return (time.perf_counter() - start) / calls
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    first.record()
    for _ in range(calls):
        work()
    last.record()
    torch.cuda.synchronize()
    return first.elapsed_time(last) / 1e3 / calls


def summary(values: list[float]) -> dict[str, Any]:
    """Median and quartiles."""
    low, middle, high = (
        statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else 3 * values
    )
    return {"median": middle, "low": low, "high": high, "all": values}


def ceilings(toy: bool = False) -> dict[str, float]:
    """The two rates that bound any work on this device.

    Returns:
        ``bytes_per_second`` of a copy on the device, bytes read and written;
        ``operations_per_second`` of a bfloat16 matrix product, 2 a multiply-add; on random data,
        because zeros run faster than what a network computes on.
    """
    count, edge = (2**22, 256) if toy else (2**31, 8192)
    source = torch.randint(0, 256, (count,), dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    a, b = (torch.randn(edge, edge, device=DEVICE).bfloat16() for _ in range(2))
    calls, turns = (1, 2) if toy else (10, 5)
    works = {"copy": lambda: target.copy_(source), "product": lambda: a @ b}
    best = {}
    for name, work in works.items():
        seconds(work, 3)
        best[name] = statistics.median(seconds(work, calls) for _ in range(turns))
    return {
        "bytes_per_second": 2 * count / best["copy"],
        "operations_per_second": 2 * edge**3 / best["product"],
    }


class _ByteCounter(TorchDispatchMode):
    """Bytes that operations read and write, each operand once."""

    PRODUCTS = ("convolution", "mm", "addmm", "bmm", "baddbmm", "convolution_backward")

    def __init__(self) -> None:
        super().__init__()
        self.all = self.products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # In inference mode a convolution comes as what is made of others; they are to be counted.
        if func is not torch.ops.prim.device.default:
            with self:
                made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
        out = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        tensors = [*_tensors(args), *_tensors(kwargs), *_tensors(out)]
        moved = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        if not func.is_view:
            self.all += moved
        if name in self.PRODUCTS:
            self.products += moved
        return out


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))


def count(work: Work) -> dict[str, int]:
    """Operations and bytes of one call.

    Returns:
        ``operations`` of convolutions and matrix products, 2 a multiply-add; ``bytes``: what these
        read and write, each operand once, as if all else were fused into them; ``bytes_op_by_op``:
        the same over every operation, each run by itself.
    """
    bytes_counter = _ByteCounter()
    with FlopCounterMode(display=False) as operations, bytes_counter:
        work()
    return {
        "operations": operations.get_total_flops(),
        "bytes": bytes_counter.products,
        "bytes_op_by_op": bytes_counter.all,
    }


def peak_bytes(work: Work) -> tuple[Any, int, int]:
    """What the work returns, the bytes beyond those there before, and the peak in all."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = work()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated()
    return result, peak - before, peak


def allocated() -> int:
    return torch.cuda.memory_allocated() if CUDA else 0


def calls_for(work: Work, least: float) -> int:
    """Calls that together take at least so many seconds."""
    return max(1, min(200, round(least / max(seconds(work), 1e-6)))) if least else 1


def out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error).lower()


def measure(
    case: Case, bounds: Mapping[str, float], turns: int, least: float, left: Callable[[], float]
) -> dict[str, Any]:
    """One case.

    Args:
        case: What to do.
        bounds: What :func:`ceilings` returned.
        turns: How often each way is timed.
        least: Seconds that one timing takes at least.
        left: Seconds after which no new way and no second turn is begun; a way that is being made
            then is given up half a minute later.

    Returns:
        ``what``, ``items``, ``unit``, ``counted`` and for each way ``seconds``, ``per_second``,
        ``speed`` (the reference's seconds over its own, turn by turn), ``extra_bytes`` (of a call),
        ``peak_bytes`` (with weights and optimizer), ``compared``, ``floor_seconds`` and the
        ``share`` of it that is reached; ``not_run``: ways and reasons.
    """
    result: dict[str, Any] = {
        "what": case.what,
        "reference": case.reference,
        "items": case.items,
        "unit": case.unit,
        "ways": {},
        "not_run": dict(case.missing),
        "least": [[way, other, ratio] for (way, other), ratio in case.least.items()],
    }
    if case.count is not None:
        with _telling(result["not_run"], "operations and bytes"):
            result["counted"] = count(case.count())
        clear()
    works: dict[str, tuple[Work, int]] = {}
    expected: Any = None
    for name, make in case.ways.items():
        if left() <= 0 and name != case.reference:
            result["not_run"][name] = "the time of this command was over"
            continue
        with _telling(result["not_run"], name), _at_most(left() + 30):
            start, held = time.perf_counter(), allocated()
            work = make()
            output, extra, peak = work(), None, None  # compiles, or chooses its kernels
            synchronise()
            ready = time.perf_counter() - start
            if CUDA:
                output, extra, peak = peak_bytes(work)
            output = getattr(work, "check", lambda result=output: result)()
            figures: dict[str, Any] = {
                "ready_seconds": ready,
                "extra_bytes": extra,
                # weights, gradients and optimizer of this way, without those of the others
                "peak_bytes": None if peak is None else peak - held,
            }
            if name == case.reference:
                expected = output
            elif case.compare is not None and expected is not None:
                figures["compared"] = case.compare(expected, output)
            del output
            works[name] = (work, calls_for(work, least))
            result["ways"][name] = figures
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(turns):
        if turn and left() <= 0:
            result["not_run"]["the last turns"] = f"the time was over after {turn} of {turns}"
            break
        order = list(works) if turn % 2 == 0 else list(works)[::-1]
        for name in order:
            times[name].append(seconds(*works[name]))
    for name, measured in times.items():
        figures = result["ways"][name]
        figures["seconds"] = summary(measured)
        figures["per_second"] = case.items / figures["seconds"]["median"]
        for other in {case.reference, *(other for _, other in case.least)} & set(times):
            ratios = [b / a for a, b in zip(measured, times[other], strict=True)]
            figures.setdefault("speed", {})[other] = summary(ratios)
        if "counted" in result:
            by = {
                "operations": result["counted"]["operations"] / bounds["operations_per_second"],
                "bytes": result["counted"]["bytes"] / bounds["bytes_per_second"],
            }
            figures["bound_by"] = max(by, key=lambda key: by[key])
            figures["floor_seconds"] = max(by.values())
            figures["share"] = figures["floor_seconds"] / figures["seconds"]["median"]
    works.clear()
    del expected
    clear()
    return result


@contextlib.contextmanager
def _at_most(limit: float) -> Iterator[None]:
    """Give up what takes longer, such as a compilation."""

    def over(number: int, frame: Any) -> None:
        raise TimeoutError("the time of this command was over")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, max(limit, 1))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _telling(reasons: dict[str, str], name: str) -> Iterator[None]:
    """A way that fails is left out, with the reason; the others go on."""
    try:
        yield
    except Exception as error:
        words = "out of memory" if out_of_memory(error) else f"{type(error).__name__}: {error}"
        reasons[name] = " ".join(words.split())[:300]
        clear()
