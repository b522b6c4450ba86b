# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Load on tools/serve.py over loopback: requests/s, latencies, memory, and what is past the limit.

    python benchmarks/load_test.py MODEL [CHECKPOINT] --images FOLDER --requests 10000

The service is a process of its own, started here on a free port. Clients send one request after
the other, each on its own connection that stays open. After a warm-up the service's memory (RSS) is
read at each quarter of the requests. Then follow the limits, on a second service with small ones:
more clients than it takes on, bodies and images that are too large, and less time than an image
takes. `--out FILE.json` keeps the figures.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
from harness import ROOT, arguments, machine
from PIL import Image

from mmseg_resnest.io.atomic import atomic_write


@contextlib.contextmanager
def service(model: list[str], *options: str) -> Iterator[tuple[str, int]]:
    """Address and process id of a service that runs meanwhile."""
    command = [sys.executable, str(ROOT / "tools" / "serve.py"), *model, "--port", "0", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
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


def resident(pid: int, line: str = "VmRSS") -> float:
    """MiB of a process; ``VmHWM`` is the most that it had."""
    found = re.search(rf"{line}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return round(int(found[1]) / 1024, 1) if found else 0.0


def send(
    address: str, bodies: list[bytes], number: int, clients: int
) -> tuple[list[float], Counter[str], float]:
    """Latencies of the served ones, statuses, and seconds in all."""
    turn = itertools.count()
    times: list[float] = []
    statuses: Counter[str] = Counter()

    def work(_: int) -> None:
        with httpx.Client(base_url=address, timeout=120) as client:
            while (i := next(turn)) < number:
                begin = time.perf_counter()
                try:
                    answer = client.post("/predict", content=bodies[i % len(bodies)])
                    status = str(answer.status_code)
                except httpx.HTTPError as error:
                    status = type(error).__name__
                if status == "200":
                    times.append(time.perf_counter() - begin)
                statuses[status] += 1

    begin = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(work, range(clients)))
    return times, statuses, time.perf_counter() - begin


def encoded(picture: Image.Image) -> bytes:
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=90)
    return data.getvalue()


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("model", nargs="+", help="what tools/serve.py takes")
    parser.add_argument("--images", type=Path, required=True, help="folder of images")
    parser.add_argument("--edge", type=int, default=0, help="reduce images to this long edge")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--remark", default="", help="about the machine, kept with the figures")
    args = parser.parse_args()
    files = sorted(f for f in args.images.iterdir() if f.suffix.lower() in (".jpg", ".png"))
    pictures = [Image.open(file).convert("RGB") for file in files[:16]]
    for picture in pictures if args.edge else ():
        picture.thumbnail((args.edge, args.edge))
    bodies = [encoded(picture) for picture in pictures]
    times: list[float] = []
    statuses: Counter[str] = Counter()
    seconds = 0.0
    with service(args.model) as (address, pid):
        send(address, bodies, max(200, args.requests // 20), args.clients)
        memory = {0: resident(pid)}
        for quarter in range(1, 5):
            some, counted, took = send(address, bodies, args.requests // 4, args.clients)
            times, statuses, seconds = times + some, statuses + counted, seconds + took
            memory[quarter * (args.requests // 4)] = resident(pid)
        most = resident(pid, "VmHWM")
    ranked = sorted(times)
    limits: dict[str, object] = {}
    small = ("--max-waiting", "4", "--max-mbytes", "1", "--max-mpixels", "1")
    with service(args.model, *small) as (address, _):
        limits["32 clients, 4 at a time"] = dict(send(address, bodies, 1000, 32)[1])
        limits["bodies of 2 MiB, 1 allowed"] = dict(send(address, [bytes(2 << 20)], 50, 2)[1])
        huge = encoded(Image.new("RGB", (1200, 1200)))
        limits["1.44 million pixels, 1 allowed"] = dict(send(address, [huge], 50, 2)[1])
        limits["afterwards"] = dict(send(address, bodies, 100, 2)[1])
    with service(args.model, "--timeout", "0.002") as (address, _):
        limits["2 ms allowed"] = dict(send(address, bodies, 50, 2)[1])
    result = {
        "model": [Path(part).name for part in args.model],  # no folders of this machine
        "image": list(pictures[0].size),
        "requests": args.requests,
        "clients": args.clients,
        "machine": {**machine(), "remark": args.remark},
        "statuses": dict(statuses),
        "requests_per_second": round(len(times) / seconds, 1),
        "p50_ms": round(1e3 * statistics.median(ranked), 1),
        "p99_ms": round(1e3 * ranked[int(0.99 * (len(ranked) - 1))], 1),
        "max_ms": round(1e3 * ranked[-1], 1),
        "rss_mib": memory,
        "rss_max_mib": most,
        "limits": limits,
    }
    text = json.dumps(result, indent=1) + "\n"
    print(text, end="")
    if args.out is not None:
        atomic_write(args.out, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
