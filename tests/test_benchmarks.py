# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Benchmarks measure in turns, compare results and write them; each script runs at toy size."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from mmseg_resnest.registry import DATASETS, MODELS

ROOT = Path(__file__).resolve().parents[1]

TOY = """
import torch
from harness import Comparison


def slow(case):
    def work():
        big = torch.ones(64 * 2**20 // 4)
        for _ in range(20):
            big.sin_()
        return torch.arange(1000) % 7
    return work


def broken(case):
    def work():
        raise ValueError("a runtime that does not run")
    return work


def fast(case):
    def work():
        labels = torch.arange(1000) % 7
        labels[: {"same": 0, "wrong": 20}[case]] += 1
        return labels
    return work


COMPARISON = Comparison(
    title="Toy",
    reference="slow",
    cases={"same": "equal labels", "wrong": "20 of 1000 differ"},
    variants={"slow": slow, "fast": fast, "other": lambda case: fast("wrong"), "broken": broken},
    remarks={"other": "another work: not compared"},
    left_out={"wrong": ("other",)},
    images={"same": 3},
    costs={"fast": lambda: {"parameters": 2_500_000, "flops": 10**9, "published": "45.00"}},
    most_memory={"fast": 0.1},
    agree=lambda expected, labels: float((expected == labels).double().mean()),
    least={"fast": 2.0},
)
"""


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """Imports a module of benchmarks/, whose names others may use too, or the comparison above."""
    (tmp_path / "toy_comparison.py").write_text(textwrap.dedent(TOY))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for path in (str(ROOT / "benchmarks"), str(tmp_path)):
        monkeypatch.syspath_prepend(path)
    ours = {path.stem for path in (ROOT / "benchmarks").glob("*.py")} | {"toy_comparison"}
    for name in ours:  # folders of tests/ have such names
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module
    for name in ours:
        sys.modules.pop(name, None)


# --- run.py, harness.py and report.py


@pytest.mark.long
def test_a_comparison_is_measured_and_written(bench, monkeypatch, tmp_path, capsys):
    run, report = bench("run"), bench("report")
    monkeypatch.setattr(run, "NAMES", ("toy_comparison",))
    out = tmp_path / "results"
    # One case fails, which the exit code says; the other is kept.
    assert run.main(["--out", str(out), "--repeats", "2", "--remark", "a toy"]) == 1
    capsys.readouterr()
    result = json.loads((out / "toy_comparison.json").read_text())
    assert list(result["cases"]) == ["same"]
    assert "98.0000%" in result["not_run"]["wrong"]
    assert not result["complete"] and "ValueError" in result["not_run"]["same: broken"]
    variants = result["cases"]["same"]["variants"]
    assert set(variants) == {"slow", "fast", "other"}
    assert "agreement" not in variants["other"]
    assert variants["fast"]["agreement"] == 1
    assert len(variants["fast"]["seconds"]["all"]) == 2
    assert variants["slow"]["speed"]["all"] == [1, 1]
    assert 60 * 2**20 < variants["slow"]["peak_bytes"] < 200 * 2**20
    assert variants["fast"]["peak_bytes"] < 20 * 2**20
    assert result["machine"]["versions"]["torch"] and result["machine"]["remark"] == "a toy"
    text = report.page(out)
    assert text == report.HEAD + "\n" + (out / "toy_comparison.md").read_text()
    assert "| same | fast |" in text and "Not run: wrong" in text
    assert "published mIoU" in text and "| 2.5 M | 1 G | 45.00 |" in text
    assert "- other: another work: not compared." in text


@pytest.mark.parametrize(
    "arguments",
    [["prediction"], ["--repeats", "0"], ["--threads", "0"], ["--case", "sane"], ["--out", "FILE"]],
)
def test_names_and_numbers_are_checked(bench, monkeypatch, tmp_path, capsys, arguments):
    run = bench("run")
    monkeypatch.setattr(run, "NAMES", ("toy_comparison",))
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        run.main([word.replace("FILE", str(tmp_path / "file")) for word in arguments])
    assert arguments[0] in capsys.readouterr().err


def _measured(name, case, repeats, say):
    """A case as the harness measures it, without the time that takes."""
    one = {"median": 1.0, "low": 1.0, "high": 1.0, "all": [1.0]}
    figures = dict(
        threads=1, peak_bytes=2**20, seconds=one, cpu_seconds=one, speed=one, cpu_speed=one
    )
    variants = {"slow": figures, "fast": {**figures, "agreement": 1.0}}
    return {"what": case, "repeats": repeats, "variants": variants, "failed": {"broken": "it is"}}


def test_a_single_case_does_not_overwrite_committed_results(bench, monkeypatch, tmp_path, capsys):
    run = bench("run")
    monkeypatch.setattr(run, "NAMES", ("toy_comparison",))
    monkeypatch.setattr(bench("harness"), "measure", _measured)
    monkeypatch.setattr(run, "FOLDER", tmp_path)
    assert run.main(["--case", "same", "--repeats", "1"]) == 1  # one of the variants is broken
    assert "| same | fast |" in capsys.readouterr().out
    assert not (tmp_path / "results").exists()


def test_what_was_measured_before_an_interruption_is_kept(bench, monkeypatch, tmp_path):
    run = bench("run")
    monkeypatch.setattr(run, "NAMES", ("toy_comparison",))

    def interrupted(name, case, *rest):
        if case == "wrong":
            raise KeyboardInterrupt
        return _measured(name, case, *rest)

    monkeypatch.setattr(bench("harness"), "measure", interrupted)
    assert run.main(["--repeats", "1", "--out", str(tmp_path / "out")]) == 130
    result = json.loads((tmp_path / "out" / "toy_comparison.json").read_text())
    assert list(result["cases"]) == ["same"]
    assert not result["complete"] and "interrupted" in result["not_run"]["wrong"]


def test_committed_results_make_the_page(bench):
    report, names = bench("report"), bench("run").NAMES
    assert report.PAGE.read_text("utf-8") == report.page(), "run: python benchmarks/report.py"
    assert {path.stem for path in report.RESULTS.glob("*.json")} <= set(names)


def test_peers_have_an_environment_of_their_own(tmp_path):
    """One that is there is used; a word is asked for before anything is installed."""
    script = str(ROOT / "benchmarks" / "peers.sh")
    assert subprocess.run([script, "--list"], capture_output=True).returncode == 2
    (tmp_path / "bin").mkdir()
    (tmp_path / "installed").touch()
    python = tmp_path / "bin" / "python"
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o755)
    done = subprocess.run([script, str(tmp_path), "--repeats", "1"], capture_output=True, text=True)
    assert done.stdout.split()[1:] == ["backbone", "inference", "training", "--repeats", "1"]


# --- what is compared


def test_results_that_differ_do_not_agree(bench):
    models, pipeline, predictions = map(bench, ("models", "pipeline", "predictions"))
    ones = torch.ones(100, 100, dtype=torch.int64)
    counts = {name: torch.tensor([5000, 5000]) for name in ("both", "found", "true")}
    expected = {"labels": ones, **counts}
    assert predictions.agree(expected, expected) == 1
    one_off = ones.clone()
    one_off[0, 0] = 0
    moved = {**counts, "found": torch.tensor([5001, 4999])}
    assert predictions.agree(expected, {"labels": one_off, **moved}) == 0.9999
    assert predictions.agree(expected, {"labels": ones, **moved}) == 0

    scored = {"labels": ones, "mIoU": torch.tensor(40.0)}
    assert models.same_evaluation(scored, {**scored, "mIoU": torch.tensor(40.01)}) == 1
    assert models.same_evaluation(scored, {**scored, "mIoU": torch.tensor(40.1)}) == 0

    images = torch.zeros(90, dtype=torch.uint8)
    drawn = {"labels": ones, "images": images, "sizes": torch.tensor([50, 10, 30])}
    assert pipeline.agree(drawn, drawn) == 1
    images = images.clone()
    images[50:60] = 1  # one of the three by 1
    assert pipeline.agree(drawn, {**drawn, "images": images}) == 0


def test_the_reference_is_the_stack_alone(bench):
    """Its loss, say, is not this package's of that name."""
    models = bench("models")
    stock = models.stock_model(14, models.TOY, channels=8)
    packages = {type(module).__module__.partition(".")[0] for module in stock.modules()}
    assert packages == {"mmcv", "mmseg", "models", "torch"}  # models: the ResNeSt of 14 layers


def test_the_published_networks_are_equal(bench):
    found = bench("exactness").measure("resnest50_fast_2s2x40d", 8)
    assert found["mmseg-resnest"] == 0 and found["MMSegmentation"] == "not offered"


# --- scripts at toy size


@pytest.mark.long
def test_gpu_parts_run_and_agree(bench, tmp_path, capsys):
    threads = torch.get_num_threads()
    try:
        assert bench("gpu").main(["--toy", "--out", str(tmp_path)]) == 0
    finally:
        torch.set_num_threads(threads)
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert [name.partition(":")[0] for name in result["cases"]] == list(bench("gpu").PARTS)
    for case in result["cases"].values():
        assert not case["not_run"] and len(case["variants"]) >= 2
        for name, figures in list(case["variants"].items())[1:]:
            least = 0.8 if name in ("mmseg-resnest", "MMSegmentation, bfloat16") else 0.9999
            assert figures["agreement"] >= least and figures["seconds"]["median"] > 0
    assert (tmp_path / "gpu.md").read_text() in capsys.readouterr().out


def test_gpu_variants_that_fail_or_come_late_are_named(bench):
    gpu = bench("gpu")

    def broken():
        raise RuntimeError("CUDA out of memory")

    variants = {"plain": lambda: lambda: 1, "other": lambda: lambda: 2, "broken": broken}
    case = gpu.Case("one", 1, variants, lambda a, b: float(a == b), 1.0)
    found = gpu.measure(case, 2, 0, lambda: 60)
    assert set(found["variants"]) == {"plain"}
    assert "memory" in found["not_run"]["broken"] and "agrees" in found["not_run"]["other"]
    without = gpu.Case("one", 1, {"broken": broken, "plain": variants["plain"]}, case.agree, 1.0)
    found = gpu.measure(without, 2, 0, lambda: 60)
    assert "speed" not in found["variants"]["plain"] and found["variants"]["plain"]["per_second"]
    described = {"gpu": "a GPU", "versions": {}, "commit": ""}
    result = {"machine": described, "toy": False, "command": "", "not_run": {}}
    (row,) = re.findall("^.* plain .*$", gpu.markdown(result | {"cases": {"one": found}}), re.M)
    assert row.split("|")[5].strip() == ""  # nothing to be as fast as
    found = gpu.measure(case, 3, 0, lambda: 0)
    assert found["not_run"]["other"] == "the time was over"
    assert len(found["variants"]["plain"]["seconds"]["all"]) == 1


@pytest.fixture(scope="module")
def camvid_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two made-up images of each split."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for folder, shape, values in ((split, (48, 64, 3), 256), (f"{split}annot", (48, 64), 12)):
            (root / "camvid" / folder).mkdir(parents=True)
            for index in range(2):
                pixels = rng.integers(0, values, shape, dtype=np.uint8)
                Image.fromarray(pixels).save(root / "camvid" / folder / f"{index}.png")
    return root


@pytest.fixture
def camvid(bench: Callable[[str], Any]) -> Iterator[Any]:
    """The module, which can be imported anew."""
    module = bench("camvid")
    yield module
    for registry, name in ((DATASETS, "StockCamVid"), (MODELS, "SmpUnet")):
        del registry.module_dict[name]


@pytest.mark.long
def test_runs_on_camvid_go_on_and_are_compared(camvid, camvid_root, monkeypatch, tmp_path, capsys):
    """A student, alone and taught, with three seeds; what is complete is not trained again."""
    monkeypatch.setenv("MMSEG_RESNEST_DATA", str(camvid_root))
    monkeypatch.setattr(camvid, "train", train := Mock(wraps=camvid.train))
    words = ["--toy", "--iterations", "3", "--out", str(tmp_path)]
    train.side_effect = camvid.Preempted("stopped by SIGTERM")
    assert camvid.main(["resnest26", *words]) == 75
    train.side_effect = None
    assert camvid.main(["resnest26", *words]) == 0
    assert camvid.main(["resnest14", *words, "--seconds"]) == 0
    for seed in range(3):
        for more in ([], ["--teacher", str(tmp_path / "resnest26_3_0")]):
            assert camvid.main(["resnest14", *words, "--seed", str(seed), *more]) == 0
    assert train.call_count == 2 + 1 + 6
    assert camvid.main(["resnest14", *words, "--table"]) == 0
    assert train.call_count == 9
    text = (tmp_path / "camvid.md").read_text()
    assert capsys.readouterr().out.endswith(text)
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in text.splitlines()[2:]]
    ends = {row[0]: [float(v) for v in row[4].split(",")] for row in cells if row[2:3] == ["3"]}
    assert [len(ends[name]) for name in ("resnest26", "resnest14", "resnest14_taught")] == [1, 3, 3]
    assert all((row[3] != "") == (row[0] == "resnest14") for row in cells if row)
    more = [b - a for a, b in zip(ends["resnest14"], ends["resnest14_taught"], strict=True)]
    shown = text.splitlines()[-1].split("iterations: ")[1].split(";")[0]
    assert [float(v) for v in shown.split(",")] == pytest.approx(more, abs=0.02)
    assert (tmp_path / "camvid.png").stat().st_size > 10_000


@pytest.mark.long
@pytest.mark.parametrize("stop", [2, 5], ids="iteration {}".format)
def test_runs_of_the_stack_go_on(camvid, camvid_root, monkeypatch, tmp_path, stop):
    """Stopped after a checkpoint, before the validation of its iteration as well."""
    monkeypatch.setenv("MMSEG_RESNEST_DATA", str(camvid_root))
    words = ["MMSegmentation", "--toy", "--iterations", "5", "--out", str(tmp_path)]
    count, trained = camvid.Clock.after_train_iter, []

    def after_train_iter(clock, runner, *args, **options):
        trained.append(runner.iter + 1)
        if trained == [*range(1, stop + 1)]:
            raise KeyboardInterrupt
        count(clock, runner, *args, **options)

    monkeypatch.setattr(camvid.Clock, "after_train_iter", after_train_iter)
    with pytest.raises(KeyboardInterrupt):
        camvid.main(words)
    assert camvid.main(words) == 0
    assert trained == [*range(1, stop + 1), *range(stop + 1, 6)]
    result = json.loads((tmp_path / "MMSegmentation_5_0.json").read_text())
    assert [row["iteration"] for row in result["curve"]] == [2, 4, 5]


@pytest.mark.long
def test_both_pipelines_learn_alike(bench, camvid_root, monkeypatch, tmp_path):
    """Two runs of one seed are closer than two of different seeds, in the figures written."""
    loss_curve = bench("loss_curve")
    monkeypatch.setenv("MMSEG_RESNEST_DATA", str(camvid_root))
    monkeypatch.setattr(loss_curve, "keep_freed_memory", lambda: None)  # of the whole process
    for name, value in dict(WINDOW=2, BATCH=2, CROP=(48, 64)).items():
        monkeypatch.setattr(loss_curve, name, value)
    arguments = ["--iterations", "2", "--seeds", "2", "--out", str(tmp_path)]
    assert loss_curve.main(arguments) == 0
    result = json.loads((tmp_path / "loss_curve.json").read_text())
    curves = np.array(result["curves"])
    assert curves.shape == (2, 2, 2)
    np.testing.assert_allclose(curves[0], curves[1], rtol=1e-2)
    windows = curves.mean(2)
    between = np.sqrt(((windows[:, 0] - windows[:, 1]) ** 2).mean())
    assert result["comparison"]["same_seed"][0] < between / 3


@pytest.mark.long
def test_planted_label_errors_are_found(bench, capsys):
    """Of 200 drawn scenes 20 have one region of another class."""
    bench("label_errors").main(["--seed", "0"])
    found = json.loads(capsys.readouterr().out)
    assert found["planted"] == found["at"] == 20
    assert 0.8 < found["equal to the labels"] < 0.95  # planted errors and the stand-in's own
    assert found["regions"] >= 0.8  # drawn at random 0.1 would be
    assert found["images by their worst region"] >= 0.65
    assert found["images by the soft minimum"] >= 0.65


def test_the_table_of_latencies_goes_on_where_it_stopped(bench, monkeypatch, tmp_path, capsys):
    latency = bench("latency")
    calls = []

    def measure(row, batch, device, number, size):
        if len(calls) == 1:
            raise KeyboardInterrupt
        calls.append((row.name, batch, size))
        return [3.0, 1.0, 2.0]

    monkeypatch.setattr(latency, "measure", measure)
    words = ["--out", str(tmp_path), "--device", "cpu", "--only", "resnest50", "efficientnet_b2"]
    with pytest.raises(KeyboardInterrupt):
        latency.main(words)
    assert calls == [("resnest50", 16, 224)]
    del calls[:]
    assert latency.main(words) == 0
    assert calls == [("resnest50", 1, 224)]
    out = capsys.readouterr().out
    assert "| ResNeSt-50 | 224 | 27.5 M | 125.00 | 2000.00 | 1.78 | 81.04 |" in out
    assert "| SENet-154 | 224 |  |  |  | 5.07 | 81.26 |" in out
    assert "Not run: EfficientNet-B2 16: timm cannot be imported" in out  # it is not among the pins
    assert (tmp_path / "cpu.md").read_text() in out
    file = tmp_path / "cpu.json"
    del calls[:]
    result = json.loads(file.read_text())
    result["cells"]["ResNeSt-50 1"] |= {"size": 64, "ms": 1.0}  # as of --toy
    result["cells"]["ResNeSt-50 16"]["commit"] = "f" * 40
    file.write_text(json.dumps(result))
    assert latency.main(words) == 0
    assert calls == [("resnest50", 1, 224)]
    assert "ffffffffff" in (tmp_path / "cpu.md").read_text()
    file.write_text(file.read_text().replace('"threads": ', '"threads": 1'))
    with pytest.raises(SystemExit, match="other threads"):
        latency.main(words)


@pytest.mark.long
def test_latencies_are_measured(bench, tmp_path, capsys):
    latency = bench("latency")
    words = ["--toy", "--out", str(tmp_path), "--only", "resnest50", "--device", "cpu"]
    assert latency.main([*words, "--batch", "1"]) == 0
    (cell,) = json.loads((tmp_path / "cpu.json").read_text())["cells"].values()
    assert cell["parameters"] == 27_483_240 and cell["size"] == 64 and cell["ms"] > 0
