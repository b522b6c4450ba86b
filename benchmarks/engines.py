# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""CPU time and memory of an image with each engine of ``mmseg-resnest predict --engine``.

    python benchmarks/engines.py
    python benchmarks/engines.py fcn_resnest50_ade20k --size 512 512 --engines torch openvino

Each engine has processes of its own: one exports and checks, the next is measured, as a second
command with the same checkpoint would be. Time is the processor's, of one thread. The engines take
turns, an image each, because other work on the machine, above all on the other thread of a core,
changes it. Memory is the peak of the process beyond what it has with the model loaded: with the
first image, and with those after it. Prints a Markdown table; --out writes it as JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from harness import ROOT, machine

from mmseg_resnest.errors import UserError
from mmseg_resnest.inference import load_segmentor
from mmseg_resnest.inference.engine import choose_engine, prepare_engine
from mmseg_resnest.io.memory import forget_peak_memory, keep_freed_memory, peak_memory
from mmseg_resnest.runtimes import ENGINES, Choice
from mmseg_resnest.runtimes.samples import drawn_picture

TURNS = 7


def serve(config: str, size: tuple[int, int], engine: str, precision: str) -> None:
    """In a process of its own: an image for each line that comes; facts after the last one."""
    torch.set_num_threads(1)
    keep_freed_memory()  # as the commands do
    torch.manual_seed(0)
    model = load_segmentor(config, None, "cpu")
    width, height = size
    image = drawn_picture(height, width)
    forget_peak_memory()
    before = peak_memory()
    choose_engine(model, Choice(engine, precision))
    prepare_engine(model, [image])
    model.fold()
    model(image)
    loading = peak_memory() - before
    forget_peak_memory()
    print("ready", flush=True)
    for _ in sys.stdin:
        begin = time.process_time()
        model(image)
        print(time.process_time() - begin, flush=True)
    about = model.engine.describe() if model.engine else {"engine": "torch"}
    print(json.dumps({**about, "loading": loading, "memory": peak_memory() - before}))


class Worker:
    """A process that serves one engine."""

    def __init__(self, config: str, size: tuple[int, int], name: str) -> None:
        command = [sys.executable, __file__, config, "--one", name, "--size", *map(str, size)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)
        self.times: list[float] = []
        while (line := self._line()) != "ready":
            print(line, file=sys.stderr)

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"an engine's process has ended: {self.process.wait()}")
        return line.strip()

    def turn(self) -> None:
        """Segment the image once."""
        assert self.process.stdin is not None
        print("go", file=self.process.stdin, flush=True)
        self.times.append(float(self._line()))

    def end(self) -> dict[str, Any]:
        """What is known of the engine."""
        out, _ = self.process.communicate()
        facts = json.loads(out.splitlines()[-1])
        return {**facts, "seconds": self.times}


def main() -> int:
    """Measure the engines in turns."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", nargs="?", default="deeplabv3_resnest101_ade20k")
    parser.add_argument("--size", type=int, nargs=2, default=(512, 512), metavar=("W", "H"))
    names = [f"{name}:{one}" for name, some in ENGINES.items() for one in some if one != "int8"]
    parser.add_argument("--engines", nargs="+", default=names, metavar="ENGINE[:PRECISION]")
    parser.add_argument("--out", metavar="FILE")
    parser.add_argument("--one", metavar="ENGINE:PRECISION", help=argparse.SUPPRESS)
    args = parser.parse_args()
    size = tuple(args.size)
    if args.one:
        engine, _, precision = args.one.partition(":")
        serve(args.config, size, engine, precision or "float32")
        return 0
    results: dict[str, Any] = {"machine": machine(), "config": args.config, "size": args.size}
    workers = {}
    for name in args.engines:
        engine, _, precision = name.partition(":")
        try:
            Choice(engine, precision or "float32")
        except UserError as error:
            results[name] = error.text
            continue
        Worker(args.config, size, name).end()  # exports, so that the next one finds the file
        workers[name] = Worker(args.config, size, name)
    for _ in range(TURNS):
        for worker in workers.values():
            worker.turn()
    heads = ("engine", "precision", "CPU time, least", "median", "memory", "at first", "labels")
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for name, worker in workers.items():
        found = results[name] = worker.end()
        labels, times = found.get("labels_as_torch"), found["seconds"]
        print(
            f"| {found['engine']} | {found.get('precision', 'float32')} | {min(times):.2f} s "
            f"| {statistics.median(times):.2f} s | {found['memory'] / 2**20:,.0f} MiB "
            f"| {found['loading'] / 2**20:,.0f} MiB "
            f"| {'' if labels is None else f'{100 * labels:.4f} %'} |"
        )
    if args.out:
        Path(args.out).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
