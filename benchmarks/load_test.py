# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Load on tools/serve.py over loopback: requests/s, latencies, memory, and what is past the limit.

    python benchmarks/load_test.py MODEL [CHECKPOINT] --images FOLDER --requests 10000

The service is a process of its own, started here on a free port. Clients send one request after
the other, each on its own connection that stays open. After a warm-up the service's memory (RSS) is
read every half second, and at each quarter of the requests. Then follow the limits, on a second
service with small ones: more clients than it takes on, bodies and images that are too large, and
less time than an image takes. `--out FILE.json` keeps the figures.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
from harness import arguments, machine
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]


@contextlib.contextmanager
def service(model: list[str], *options: str) -> Iterator[tuple[str, int]]:
    """Address and process id of a service that runs meanwhile."""
    command = [sys.executable, str(ROOT / "tools" / "serve.py"), *model, "--port", "0", *options]
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        address = ""
        for line in process.stdout:
            if line.startswith("address"):
                address = line.split()[1]
            if line.startswith("stop"):
                break
        if not address:
            raise SystemExit("error: the service did not start")
        yield address, process.pid
        if process.poll() is not None:
            raise SystemExit(f"error: the service ended with {process.returncode}")
    finally:
        process.terminate()
        process.wait(60)


def resident(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def send(
    address: str,
    bodies: list[bytes],
    number: int,
    clients: int,
    at: Callable[[int], None] = lambda done: None,
) -> tuple[list[float], Counter[str], float]:
    """Latencies of the served ones, statuses, and seconds in all; ``at`` receives each number."""
    turn = itertools.count()
    times: list[float] = []
    statuses: Counter[str] = Counter()

    def work() -> None:
        with httpx.Client(base_url=address, timeout=120) as client:
            while (i := next(turn)) < number:
                at(i)
                begin = time.perf_counter()
                try:
                    answer = client.post("/predict", content=bodies[i % len(bodies)])
                    status = str(answer.status_code)
                except httpx.HTTPError as error:
                    status = type(error).__name__
                if status == "200":
                    times.append(time.perf_counter() - begin)
                statuses[status] += 1

    threads = [threading.Thread(target=work) for _ in range(clients)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times, statuses, time.perf_counter() - begin


def encoded(pixels: np.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG", quality=90)
    return data.getvalue()


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("model", nargs="+", help="what tools/serve.py takes")
    parser.add_argument("--images", type=Path, help="folder of images (default: made-up ones)")
    parser.add_argument("--edge", type=int, default=0, help="reduce images to this long edge")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--remark", default="", help="about the machine, kept with the figures")
    args = parser.parse_args()
    if args.images is None:
        rng = np.random.default_rng(0)
        pictures = [Image.fromarray(rng.integers(0, 256, (96, 128, 3), np.uint8)) for _ in range(4)]
    else:
        files = sorted(f for f in args.images.iterdir() if f.suffix.lower() in (".jpg", ".png"))
        pictures = [Image.open(file).convert("RGB") for file in files[:16]]
    if args.edge:
        for picture in pictures:
            picture.thumbnail((args.edge, args.edge))
    bodies = [encoded(np.asarray(picture)) for picture in pictures]
    model = [Path(part).name for part in args.model]  # no folders of this machine
    result: dict[str, object] = {"model": model, "image": list(pictures[0].size)}
    result |= {"requests": args.requests, "clients": args.clients, "cores": os.cpu_count()}
    result["machine"] = {**machine(), "remark": args.remark}
    quarters = {args.requests * part // 4 for part in range(5)}
    memory_at: dict[int, float] = {}

    with service(args.model) as (address, pid):
        send(address, bodies, max(200, args.requests // 20), args.clients)
        memory: list[float] = [resident(pid)]
        done = threading.Event()

        def watch() -> None:
            while not done.wait(0.5):
                memory.append(resident(pid))

        def at(number: int) -> None:
            if number in quarters:
                memory_at[number] = round(resident(pid), 1)

        watcher = threading.Thread(target=watch)
        watcher.start()
        times, statuses, seconds = send(address, bodies, args.requests, args.clients, at)
        at(args.requests)
        done.set()
        watcher.join()
        memory.append(resident(pid))
        ranked = sorted(times)
        result |= {
            "statuses": dict(statuses),
            "requests_per_second": round(len(times) / seconds, 1),
            "p50_ms": round(1e3 * statistics.median(ranked), 1),
            "p99_ms": round(1e3 * ranked[int(0.99 * (len(ranked) - 1))], 1),
            "max_ms": round(1e3 * ranked[-1], 1),
            "rss_mib": dict(sorted(memory_at.items())),
            "rss_max_mib": round(max(memory), 1),
        }
    limits: dict[str, object] = {}
    small = ("--max-waiting", "4", "--max-mbytes", "1", "--max-mpixels", "1")
    with service(args.model, *small) as (address, pid):
        limits["32 clients, 4 at a time"] = dict(send(address, bodies, 1000, 32)[1])
        limits["bodies of 2 MiB, 1 allowed"] = dict(send(address, [bytes(2 << 20)], 50, 2)[1])
        huge = encoded(np.zeros((1200, 1200, 3), np.uint8))
        limits["1.44 million pixels, 1 allowed"] = dict(send(address, [huge], 50, 2)[1])
        limits["afterwards"] = dict(send(address, bodies, 100, 2)[1])
    with service(args.model, "--timeout", "0.002") as (address, pid):
        limits["2 ms allowed"] = dict(send(address, bodies, 50, 2)[1])
    result["limits"] = limits
    text = json.dumps(result, indent=1) + "\n"
    print(text, end="")
    if args.out is not None:
        args.out.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
