# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Two machines train together, one is lost and comes back; the run is that of one machine.

``make nodes`` makes two network namespaces, which have nothing but a cable between them, and starts
``tools/dist_train.sh`` in each as on two machines. In the middle of the run everything in the
second one is killed; after a while it is started again with the same command. The run must end as
the same training with two processes on one machine, bit for bit. Needs Linux and root.
"""

from __future__ import annotations

# ruff: noqa: E402 (runs as a script: its neighbours are found only then)
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).parents[:3]]

from run_state import differences, final_state, logged
from test_distributed import CONFIG
from tool_runs import TOOLS, Toy, make_toy

ITERATIONS = 12
LIMIT = 240.0  # seconds for a run
ADDRESSES = ("10.213.7.1", "10.213.7.2")


@contextlib.contextmanager
def two_machines() -> Iterator[list[str]]:
    """Names of two namespaces whose devices are the two ends of a cable."""
    names = [f"node{i}-{os.getpid()}" for i in (0, 1)]
    ends = [f"cable{i}p{os.getpid() % 10**6}" for i in (0, 1)]

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True, text=True)

    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for name, end, address in zip(names, ends, ADDRESSES, strict=True):
            ip("link", "set", end, "netns", name)
            ip("-n", name, "address", "add", f"{address}/24", "dev", end)
            ip("-n", name, "link", "set", end, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


class Node:
    """``dist_train.sh`` on one of the machines."""

    def __init__(self, toy: Toy, namespace: str, rank: int) -> None:
        self.log = toy.folder / f"node{rank}.txt"
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [
                    "ip", "netns", "exec", namespace, "bash", TOOLS / "dist_train.sh", "nodes.py",
                    "1", "--work-dir", "nodes", "--resume",
                ],
                cwd=toy.folder,
                env={
                    **os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1",
                    "NNODES": "2", "NODE_RANK": str(rank), "MASTER_ADDR": ADDRESSES[0],
                    "LOCAL_ADDR": ADDRESSES[rank], "PORT": "29511", "JOIN_SECONDS": "120",
                    "GLOO_SOCKET_IFNAME": _device(namespace),
                },
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def text(self) -> str:
        return self.log.read_text()

    def lose(self) -> None:
        """All its processes are gone at once, as when the power fails."""
        todo, found = [self.process.pid], []
        while todo:
            found.append(todo.pop())
            with contextlib.suppress(OSError):
                children = Path(f"/proc/{found[-1]}/task/{found[-1]}/children").read_text()
                todo += map(int, children.split())
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def _device(namespace: str) -> str:
    shown = subprocess.run(
        ["ip", "-n", namespace, "-br", "link"], capture_output=True, text=True, check=True
    ).stdout
    return next(line.split("@")[0] for line in shown.splitlines() if line.startswith("cable"))


def _wait(node: Node, pattern: str, start: float) -> None:
    while not re.search(pattern, node.text(), re.M):
        if node.process.poll() is not None or time.monotonic() - start > LIMIT:
            sys.exit(f"{node.log} never showed {pattern!r}:\n{node.text()[-3000:]}")
        time.sleep(0.1)


def main() -> int:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        print("error: network namespaces need root and iproute2 (ip)", file=sys.stderr)
        return 2
    from mmseg_resnest.datasets.scenes import write_scenes

    with tempfile.TemporaryDirectory(prefix="nodes-") as name, two_machines() as machines:
        folder = Path(name)
        scenes = write_scenes(folder / "data" / "scenes", 10, 3, progress=False)
        (folder / "runs").mkdir()
        toy = make_toy(folder / "runs", scenes)
        toy.variant("dist", CONFIG)
        (toy.folder / "nodes.py").write_text(
            f'_base_ = "dist.py"\ntrain_cfg = dict(max_iters={ITERATIONS}, val_interval=6)\n'
            f'param_scheduler = [dict(type="PolyLR", end={ITERATIONS + 1}, by_epoch=False)]\n'
        )
        start = time.monotonic()
        subprocess.run(
            ["bash", TOOLS / "dist_train.sh", "nodes.py", "2", "--work-dir", "one"],
            cwd=toy.folder, check=True, capture_output=True, timeout=LIMIT,
            env={**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        print(f"one machine, two processes: {time.monotonic() - start:.0f} s", flush=True)

        start = time.monotonic()
        nodes = [Node(toy, machine, rank) for rank, machine in enumerate(machines)]
        try:
            _wait(nodes[0], rf"^ +5/{ITERATIONS} ", start)
            nodes[1].lose()
            print(f"two machines: the second one lost after {time.monotonic() - start:.0f} s")
            lost = time.monotonic()
            time.sleep(5)
            if nodes[0].process.poll() is not None:
                sys.exit(f"the first machine has given up:\n{nodes[0].text()[-3000:]}")
            nodes[1] = Node(toy, machines[1], 1)
            _wait(nodes[0], r"^start +continue from", start)
            print(f"back in the run {time.monotonic() - lost:.0f} s after the loss", flush=True)
            codes = [node.process.wait(LIMIT) for node in nodes]
        finally:
            for node in nodes:
                if node.process.poll() is None:
                    node.lose()
        if codes != [0, 0]:
            sys.exit(f"exit codes {codes}:\n{nodes[0].text()[-3000:]}\n{nodes[1].text()[-3000:]}")
        one, two = (toy.folder / name for name in ("one", "nodes"))
        found = differences(final_state(one), final_state(two))
        losses = [logged(two)[f"train {i}"]["loss"] for i in range(1, ITERATIONS + 1)]
        print(f"losses: {' '.join(f'{loss:.4f}' for loss in losses)}")
        print(f"against one machine: {found[:5] if found else 'equal, bit for bit'}")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
