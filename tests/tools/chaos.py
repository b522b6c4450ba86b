# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Ends a training run in every way there is, again and again, and compares what it comes to.

``make chaos`` trains a tiny model on the built-in scenes once undisturbed, and then with 60
disturbances, each followed by a resumption. Every run that comes to its end must have the weights,
optimiser state, averaged weights, histories, scores and log lines of the first, bit for bit; after
each disturbance ``last_checkpoint`` must name a valid checkpoint, and no valid one may be missing.
"""

from __future__ import annotations

# ruff: noqa: E402 (runs as a script: its neighbours are found only then)
import argparse
import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).parents[:3]]

from run_state import differences, final_state
from tool_runs import RunTool, Toy, make_toy

from mmseg_resnest.engine.latest import verify_checkpoint

ITERATIONS = 16
# Everything that has a state: averaged weights, accumulated gradients, mixed precision, dropout,
# workers that stay. Five iterations to a validation and four to a checkpoint: they meet at the end
# of some runs only.
CONFIG = f"""
train_dataloader = dict(
    num_workers=2, persistent_workers=True, sampler=dict(type="ExactSampler")
)
custom_hooks = [dict(type="EMAHook", momentum=0.1)]
optim_wrapper = dict(type="BFloat16OptimWrapper", accumulative_counts=2)
train_cfg = dict(max_iters={ITERATIONS}, val_interval=5)
param_scheduler = [
    dict(type="PolyLR", power=0.9, eta_min=0.0, begin=0, end={ITERATIONS + 1}, by_epoch=False)
]
default_hooks = dict(checkpoint=dict(interval=4))
"""
# A disk that takes its time, so that a run can be hit while it saves.
SLOW = """
import os, time
_fsync = os.fsync
def fsync(file):
    time.sleep(0.3)
    _fsync(file)
os.fsync = fsync
"""
# A quota, where a small disk cannot be mounted: no file may grow beyond this.
QUOTA = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
"""


@dataclass
class Hit:
    """A disturbance: how it is done, and what it needs."""

    name: str
    act: Callable[[Chaos, int], bool]
    config: str = "chaos.py"
    codes: tuple[int, ...] = (0,)
    after: Callable[[Chaos], None] = lambda chaos: None


@dataclass
class Chaos:
    """A run that is disturbed, and what happened to it.

    Disturbances at random come at any moment of a run, start and end included; ``by_iteration`` at
    any iteration that it has before it, so that none comes too late on a loaded machine.
    """

    toy: Toy
    run_tool: RunTool
    seed: int = 0
    by_iteration: bool = False
    work_dir: Path = field(init=False)
    runs: int = 0
    rows: list[tuple[str, int, int, int]] = field(default_factory=list)
    skipped: int = 0
    compared: int = 0
    problems: list[str] = field(default_factory=list)
    spoilt: set[Path] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        folder = self.toy.folder
        self.toy.variant("chaos", CONFIG)
        for name, code in (("slow_disk", SLOW), ("small_quota", QUOTA)):
            (folder / f"{name}.py").write_text(code)
            (folder / f"{name}_config.py").write_text(
                f'_base_ = "chaos.py"\ncustom_imports = dict(imports=["{name}"])\n'
            )
        self.work_dir = folder / "hit_0"

    def train(self, config: str, work_dir: Path, when: Callable | None = None):
        """Train, or go on; ``when`` is called with the process while it runs."""
        return self.run_tool(
            "train.py", config, "--work-dir", work_dir, "--resume",
            "--cfg-options", f"train_dataloader.num_workers={self.random.choice([1, 2])}",
            cwd=self.toy.folder, env={"PYTHONPATH": str(self.toy.folder)}, when=when,
        )  # fmt: skip

    def undisturbed(self) -> None:
        """The run that all others are compared with."""
        start = time.monotonic()
        self.train("chaos.py", self.toy.folder / "undisturbed").check()
        self.duration = time.monotonic() - start
        self.expected = final_state(self.toy.folder / "undisturbed")

    def newest(self) -> int:
        """Iteration of the latest valid checkpoint."""
        return max((n for n, p in self.checkpoints() if verify_checkpoint(p) is None), default=0)

    def checkpoints(self) -> list[tuple[int, Path]]:
        found = [
            (int(m[1]), p)
            for p in self.work_dir.glob("iter_*.pth")
            if (m := re.fullmatch(r"iter_(\d+)\.pth", p.name))
        ]
        return sorted(found)

    def hit(self, hit: Hit) -> None:
        """Go on with the run until the disturbance has struck; compare it if it has ended."""
        before = self.newest()
        struck: list[float] = []
        self.started = time.monotonic()
        self.strike_at = self.random.uniform(0.05, 1.0) * self.duration
        self.iteration = self.random.randint(before, max(before, ITERATIONS - 4))

        def when(pid: int, stdout: str) -> None:
            if not struck:
                self.reached = max(map(int, re.findall(rf"^ *(\d+)/{ITERATIONS} ", stdout, re.M)),
                                   default=-1)  # fmt: skip
                try:
                    if hit.act(self, pid):
                        struck.append(time.monotonic())
                except ProcessLookupError:
                    pass

        run = self.train(hit.config, self.work_dir, when)
        if "skipped" in run.stdout:
            self.skipped += 1
        # After a SIGKILL only the orphaned workers can speak, of the connection that was cut.
        traceback = run.returncode != -signal.SIGKILL and "Traceback" in run.stderr
        if traceback or run.returncode not in (*hit.codes, 0):
            self.problems.append(f"{hit.name}: exit code {run.returncode}: {run.stderr[-1500:]}")
        began = re.search(rf"^ *\d+/{ITERATIONS} ", run.stdout, re.M) is not None
        self.look(hit.name, before, began)
        if run.returncode != 0:  # files are spoilt for a start that is to come
            hit.after(self)
        self.rows.append((hit.name, run.returncode, self.newest(), int(bool(struck))))
        if run.returncode == 0:
            self.compare(hit.name)

    def due(self) -> bool:
        """Whether it is time to strike."""
        if self.by_iteration:
            return self.reached >= self.iteration
        return time.monotonic() - self.started >= self.strike_at

    def look(self, name: str, before: int, began: bool) -> None:
        """No valid checkpoint is lost, and the pointer names a valid one.

        What it names may have been spoilt on purpose, after it was written: a start puts that right
        before its first step (``began``).
        """
        if self.newest() < before:
            self.problems.append(f"{name}: checkpoint {before} is gone")
        pointer = self.work_dir / "last_checkpoint"
        if pointer.is_file():
            named = Path(pointer.read_text())
            wrong = verify_checkpoint(named)
            if wrong and (began or named not in self.spoilt):
                self.problems.append(f"{name}: last_checkpoint names a file that {wrong}")

    def compare(self, name: str) -> None:
        """Compare a run that has ended, and begin another."""
        found = differences(self.expected, final_state(self.work_dir))
        if found:
            self.problems.append(f"the run that ended with {name} differs: {found[:5]}")
        self.compared += 1
        self.runs += 1
        self.work_dir = self.toy.folder / f"hit_{self.runs}"

    def finish(self) -> None:
        """Let the last run come to its end and compare it."""
        self.train("chaos.py", self.work_dir).check()
        self.compare("nothing")


def _at_random(number: int) -> Callable[[Chaos, int], bool]:
    def act(chaos: Chaos, pid: int) -> bool:
        if not chaos.due():
            return False
        os.kill(pid, number)
        return True

    return act


def _while_saving(chaos: Chaos, pid: int) -> bool:
    if not any(chaos.work_dir.glob(".*.part")):
        return False
    os.kill(pid, signal.SIGKILL)
    return True


def _a_worker(chaos: Chaos, pid: int) -> bool:
    """Kill a data loading worker, once there has been a checkpoint of this start."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    if not children or not chaos.due():
        return False
    os.kill(int(chaos.random.choice(children)), signal.SIGKILL)
    return True


def _truncate_newest(chaos: Chaos) -> None:
    valid = [path for _, path in chaos.checkpoints() if verify_checkpoint(path) is None]
    if len(valid) > 1:
        chaos.spoilt.add(valid[-1])
        os.truncate(valid[-1], chaos.random.randrange(valid[-1].stat().st_size))


def _damage_newest(chaos: Chaos) -> None:
    valid = [path for _, path in chaos.checkpoints() if verify_checkpoint(path) is None]
    if len(valid) > 1:
        chaos.spoilt.add(valid[-1])
        with valid[-1].open("r+b") as file:
            file.seek(chaos.random.randrange(valid[-1].stat().st_size - 1000))
            file.write(b"power was lost here")


HITS = {
    "kill": Hit("SIGKILL at a random moment", _at_random(signal.SIGKILL), codes=(-9,)),
    "saving": Hit("SIGKILL while saving", _while_saving, "slow_disk_config.py", (-9,)),
    "term": Hit("SIGTERM", _at_random(signal.SIGTERM), codes=(75, -15)),
    "usr1": Hit("SIGUSR1", _at_random(signal.SIGUSR1), codes=(75, -10)),
    "int": Hit("Ctrl-C", _at_random(signal.SIGINT), codes=(75, 130, -2)),
    "worker": Hit("a worker killed", _a_worker, codes=(2,)),
    "truncated": Hit(
        "SIGKILL, newest file cut short", _at_random(signal.SIGKILL), codes=(-9,),
        after=_truncate_newest,
    ),
    "damaged": Hit(
        "SIGKILL, newest file damaged", _at_random(signal.SIGKILL), codes=(-9,),
        after=_damage_newest,
    ),
    "quota": Hit(
        "quota, then SIGKILL", _at_random(signal.SIGKILL), "small_quota_config.py", (-9, 2)
    ),
}  # fmt: skip


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: float) -> Iterator[bool]:
    """A small disk mounted on a folder, if this user may do that."""
    folder.mkdir()
    size = f"size={int(megabytes * 1000)}k"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", size, "tmpfs", folder], capture_output=True, check=False
    ).returncode == 0  # fmt: skip
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", folder], check=False)


def full_disk(chaos: Chaos, size: int) -> None:
    """Hits in which the disk is full for a while; ``size``: bytes of a checkpoint."""
    with small_disk(chaos.toy.folder / "disk", 6 * size / 1e6 + 8) as mounted:
        if not mounted:
            print("no small disk can be mounted here: the quota stands in for it")
            return
        chaos.work_dir = chaos.toy.folder / "disk" / "run"
        filler = chaos.toy.folder / "disk" / "filler"

        def act(self: Chaos, pid: int) -> bool:
            late = time.monotonic() - self.started > 0.5 * self.duration
            if not filler.exists() and late and self.checkpoints():
                with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                    while file.write(b"0" * 10_000):
                        pass
                self.strike_at = time.monotonic() - self.started + 2
            if not filler.exists() or not self.due():
                return False
            os.kill(pid, signal.SIGKILL)
            return True

        def after(self: Chaos) -> None:
            filler.unlink(missing_ok=True)

        for _ in range(4):
            chaos.hit(Hit("disk full, then SIGKILL", act, codes=(-9, 2), after=after))
            if chaos.work_dir.parent.name != "disk":  # it has ended meanwhile
                shutil.rmtree(chaos.toy.folder / "disk" / "run")
                chaos.work_dir = chaos.toy.folder / "disk" / "run"
        chaos.finish()


def report(chaos: Chaos, seconds: float) -> int:
    """Print what happened; returns the exit code."""
    struck = Counter(name for name, _, _, hit in chaos.rows if hit)
    missed = Counter(name for name, _, _, hit in chaos.rows if not hit)
    codes: dict[str, Counter] = {}
    for name, code, _, _ in chaos.rows:
        codes.setdefault(name, Counter())[code] += 1
    print(f"{'disturbance':34}{'struck':>7}{'ended first':>13}   exit codes")
    for name, seen in codes.items():
        text = ", ".join(f"{code} ({n})" for code, n in sorted(seen.items()))
        print(f"{name:34}{struck[name]:7}{missed[name]:13}   {text}")
    print(f"{'all':34}{sum(struck.values()):7}{sum(missed.values()):13}")
    print(f"\nruns that came to their end and were compared bit for bit: {chaos.compared}")
    print(f"resumptions that skipped a corrupt checkpoint and said so: {chaos.skipped}")
    print(f"problems: {len(chaos.problems)}; {seconds:.0f} s")
    for problem in chaos.problems:
        print(f"  {problem}")
    return int(bool(chaos.problems))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hits", type=int, default=60, help="number of disturbances")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    from mmseg_resnest.datasets.scenes import write_scenes

    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        folder = Path(name)
        scenes = write_scenes(folder / "data" / "scenes", 10, 3, progress=False)
        (folder / "runs").mkdir()
        runner = RunTool()
        chaos = Chaos(make_toy(folder / "runs", scenes), runner, args.seed)
        chaos.undisturbed()
        print(f"undisturbed: {ITERATIONS} iterations, {chaos.duration:.1f} s", flush=True)
        kinds = list(HITS.values())
        for number in range(args.hits):
            hit = kinds[number % len(kinds)]
            chaos.hit(hit)
            print(f"{number + 1}/{args.hits} {hit.name}", file=sys.stderr, flush=True)
        chaos.finish()
        full_disk(chaos, next(chaos.toy.folder.glob("undisturbed/iter_*.pth")).stat().st_size)
        code = report(chaos, time.monotonic() - start)
        runner.close()
    return code


if __name__ == "__main__":
    sys.exit(main())
