# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Evaluates the same samples on several processes; run by test_metric.py.

``python run_in_processes.py OUT`` writes ``OUT/<world size>_<rank>.json``: by the name of a case,
what SegmentationMetric returned there and its ``last_result``. The processes are forked from this
one, which has imported everything but started no thread yet, so the import is paid for once.
"""

import json
import logging
import multiprocessing
import multiprocessing.connection
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

NUM_CLASSES = 4
NAMES = ["road", "sky", "car", "cat"]
SIZES = range(1, 8)
WORLDS = (2, 3)
HUGE = 2**31 + 5


def make_sample(index: int) -> dict[str, Any]:
    """Image ``index`` of the set: sizes, labels and predictions differ between images."""
    generator = torch.Generator().manual_seed(index)
    shape = (1, 5 + index, 7)
    label = torch.randint(0, 3, shape, generator=generator)  # class 3 is never labelled
    label[torch.rand(shape, generator=generator) < 0.2] = 255
    pred = torch.randint(0, NUM_CLASSES, shape, generator=generator)
    keep = torch.rand(shape, generator=generator) < 0.5
    pred = torch.where(keep & (label != 255), label, pred)
    return {
        "img_path": f"{index}.png",
        "pred_sem_seg": {"data": pred},
        "gt_sem_seg": {"data": label},
    }


def evaluate(indices: list[int], size: int) -> dict[str, Any]:
    """Metrics of this process after it saw ``indices`` in batches of two."""
    from mmseg_resnest.evaluation import SegmentationMetric

    metric = SegmentationMetric(metrics=["image_mIoU", "boundary_IoU"], bootstrap=20)
    metric.dataset_meta = {"classes": NAMES}
    for start in range(0, len(indices), 2):
        metric.process(None, [make_sample(i) for i in indices[start : start + 2]])
    metrics = metric.evaluate(size)
    assert metric.last_images is not None
    return {
        "metrics": metrics,
        "result": metric.last_result,
        "images": metric.last_images.images,
    }


def evaluate_huge(rank: int, world: int) -> dict[str, Any]:
    """Counts beyond 32 bits on every process (of a matrix, since no such image fits here)."""
    from mmseg_resnest.evaluation import SegmentationMetric
    from mmseg_resnest.evaluation import metric as module

    def count(*_: Any) -> Tensor:
        matrix = torch.zeros(NUM_CLASSES, NUM_CLASSES, dtype=torch.int64)
        matrix[0, 0], matrix[0, 1] = HUGE + rank, 1
        return matrix

    module.confusion_matrix = count
    metric = SegmentationMetric()
    metric.dataset_meta = {"classes": NAMES}
    metric.process(None, [make_sample(0), make_sample(1)])
    return {"metrics": metric.evaluate(2 * world), "result": metric.last_result}


def work(rank: int, world: int, out: str) -> None:
    from mmengine.dataset import DefaultSampler
    from mmengine.logging import MMLogger

    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{out}/init_{world}", rank=rank, world_size=world
    )
    MMLogger.get_current_instance().setLevel(logging.ERROR)
    results = {}
    for size in SIZES:
        for round_up in (True, False):
            sampler = DefaultSampler(range(size), shuffle=False, seed=0, round_up=round_up)
            results[f"{size} {round_up}"] = evaluate(list(sampler), size)
    results["huge"] = evaluate_huge(rank, world)
    Path(out, f"{world}_{rank}.json").write_text(json.dumps(results), encoding="utf-8")
    torch.distributed.destroy_process_group()


def main(out: str) -> int:
    import mmseg_resnest.evaluation  # noqa: F401  (before the fork)

    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # needs no host name to resolve
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=work, args=(rank, world, out))
        for world in WORLDS
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    # One that fails leaves the others waiting for it: end them rather than hang.
    deadline = time.monotonic() + 90
    running = list(processes)
    while running and time.monotonic() < deadline:
        multiprocessing.connection.wait([p.sentinel for p in running], timeout=1)
        running = [p for p in running if p.is_alive()]
        if any(p.exitcode for p in processes):
            break
    for process in running:
        process.terminate()
        process.join()
    return int(any(p.exitcode != 0 for p in processes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
