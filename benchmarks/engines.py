# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""CPU time and memory of an image with each engine of ``mmseg-resnest predict --engine``.

    python benchmarks/engines.py
    python benchmarks/engines.py fcn_resnest50_ade20k --size 512 512 --engines torch openvino

Each engine has processes of its own: one exports and checks, the next is measured, as a second
command with the same checkpoint would be. Time is the processor's, of one thread, so that other
work beside it counts little; the least of three images after one. Memory is the peak of the process
beyond what it has with the model loaded. Prints a Markdown table; --out writes it as JSON.
"""

from __future__ import annotations

import argparse
import json
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

TURNS = 3


def measure(config: str, size: tuple[int, int], engine: str, precision: str) -> dict[str, Any]:
    """In this process: seconds of the processor for an image, and bytes beyond the model's."""
    torch.set_num_threads(1)
    keep_freed_memory()  # as the commands do
    torch.manual_seed(0)
    model = load_segmentor(config, None, "cpu")
    width, height = size
    image = drawn_picture(height, width)
    forget_peak_memory()
    before = peak_memory()
    begin = time.process_time()
    choose_engine(model, Choice(engine, precision))
    rows = dict(prepare_engine(model, image))
    model.fold()
    model(image)
    first = time.process_time() - begin
    times = []
    for _ in range(TURNS):
        begin = time.process_time()
        model(image)
        times.append(time.process_time() - begin)
    about = model.engine.describe() if model.engine else {"engine": "torch"}
    memory = peak_memory() - before
    return {**about, "seconds": min(times), "first": first, "memory": memory, "said": rows}


def main() -> int:
    """Measure each engine in processes of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", nargs="?", default="deeplabv3_resnest101_ade20k")
    parser.add_argument("--size", type=int, nargs=2, default=(512, 512), metavar=("W", "H"))
    names = [f"{name}:{one}" for name, some in ENGINES.items() for one in some if one != "int8"]
    parser.add_argument("--engines", nargs="+", default=names, metavar="ENGINE[:PRECISION]")
    parser.add_argument("--out", metavar="FILE")
    parser.add_argument("--one", metavar="ENGINE:PRECISION", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        engine, _, precision = args.one.partition(":")
        print(json.dumps(measure(args.config, tuple(args.size), engine, precision or "float32")))
        return 0
    results: dict[str, Any] = {"machine": machine(), "config": args.config, "size": args.size}
    print("| engine | precision | CPU time an image | memory beyond the model | labels as torch |")
    print("|---|---|---|---|---|")
    for name in args.engines:
        engine, _, precision = name.partition(":")
        try:
            Choice(engine, precision or "float32")
        except UserError as error:
            results[name] = error.text
            print(f"| {engine} | {precision} | not run: {error.text} | | |", flush=True)
            continue
        command = [sys.executable, __file__, args.config, "--one", name, "--size"]
        command += map(str, args.size)
        for _ in range(2):
            done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        found = results[name] = json.loads(done.stdout.splitlines()[-1])
        labels = found.get("labels_as_torch")
        print(
            f"| {found['engine']} | {precision or 'float32'} | {found['seconds']:.2f} s "
            f"| {found['memory'] / 2**20:,.0f} MiB "
            f"| {'' if labels is None else f'{100 * labels:.4f} %'} |",
            flush=True,
        )
    if args.out:
        Path(args.out).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
