# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The bench measures in turns, compares results, and the page in docs/ is made from the results."""

import json
import re
import sys
import textwrap
from pathlib import Path

import pytest
import torch

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
    ways={"slow": slow, "fast": fast, "broken": broken},
    most_memory={"fast": 0.1},
    agree=lambda expected, labels: float((expected == labels).double().mean()),
    least={"fast": 2.0},
)
"""


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """The modules of benchmarks/, with the comparison above beside them."""
    (tmp_path / "toy_comparison.py").write_text(textwrap.dedent(TOY))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for path in (str(ROOT / "benchmarks"), str(tmp_path)):
        monkeypatch.syspath_prepend(path)
    import harness
    import report
    import run

    yield harness, report, run
    for name in ("harness", "report", "run", "toy_comparison", "load_test", "limits", "models",
                 "pipeline", "predictions"):  # fmt: skip
        sys.modules.pop(name, None)


def test_a_comparison_is_measured_and_written(bench, monkeypatch, tmp_path, capsys):
    _, report, run = bench
    monkeypatch.setattr(run, "NAMES", ("toy_comparison",))
    out = tmp_path / "results"
    # One case fails, which the exit code says; the other is kept.
    assert run.main(["--out", str(out), "--repeats", "2", "--remark", "a toy"]) == 1
    said = capsys.readouterr().err
    assert "fast agrees with slow on 98.0000% only" in said
    assert (
        "toy_comparison, same: broken: broken ended: ValueError: a runtime that does not run"
        in said
    )
    result = json.loads((out / "toy_comparison.json").read_text())
    assert list(result["cases"]) == ["same"]
    assert "98.0000%" in result["not_run"]["wrong"]
    assert not result["complete"] and "ValueError" in result["not_run"]["same: broken"]
    ways = result["cases"]["same"]["ways"]
    assert set(ways) == {"slow", "fast"}
    assert ways["fast"]["agreement"] == 1
    assert len(ways["fast"]["seconds"]["all"]) == 2
    assert ways["fast"]["speed"]["median"] > 2
    assert ways["slow"]["speed"]["all"] == [1, 1]
    assert 60 * 2**20 < ways["slow"]["peak_bytes"] < 200 * 2**20
    assert ways["fast"]["peak_bytes"] < 20 * 2**20
    machine = result["machine"]
    assert machine["cores"] >= 1
    assert machine["versions"]["torch"]
    for package in ("torch", "resnest", "opencv-python-headless", "pillow"):
        assert machine["versions"][package]
    assert machine["remark"] == "a toy"
    text = report.page(out)
    assert text == report.HEAD + "\n" + (out / "toy_comparison.md").read_text()
    assert "| same | fast |" in text
    assert "Not run: wrong" in text
    assert text.count("reached by every case") == 2  # the time and the memory


def test_the_load_tests_table_is_what_its_figures_give(bench):
    import load_test

    figures = ROOT / "benchmarks" / "results" / "service" / "load_test.json"
    page = (ROOT / "docs" / "deployment.md").read_text("utf-8")
    table = load_test.table(json.loads(figures.read_text("utf-8")))
    assert table in page, f"run: python benchmarks/load_test.py --table {figures}"


def test_names_and_numbers_are_checked(bench, monkeypatch, tmp_path, capsys):
    _, _, run = bench
    monkeypatch.setattr(run, "NAMES", ("toy_comparison",))
    file = tmp_path / "file"
    file.touch()
    for arguments in (
        ["prediction"],
        ["--repeats", "0"],
        ["--threads", "0"],
        ["--case", "sane"],
        ["--out", str(file)],
    ):
        with pytest.raises(SystemExit):
            run.main(arguments)
        assert arguments[0] in capsys.readouterr().err


def _measured(name, case, repeats, say):
    """A case as the harness measures it, without the time that takes."""
    one = {"median": 1.0, "low": 1.0, "high": 1.0, "all": [1.0]}
    figures = dict(
        threads=1, peak_bytes=2**20, seconds=one, cpu_seconds=one, speed=one, cpu_speed=one
    )
    ways = {"slow": figures, "fast": {**figures, "agreement": 1.0}}
    return {"what": case, "repeats": repeats, "ways": ways, "failed": {"broken": "it is"}}


def test_a_single_case_writes_over_no_committed_result(bench, monkeypatch, tmp_path, capsys):
    harness, _, run = bench
    monkeypatch.setattr(run, "NAMES", ("toy_comparison",))
    monkeypatch.setattr(harness, "measure", _measured)
    monkeypatch.setattr(run, "FOLDER", tmp_path)
    assert run.main(["--case", "same", "--repeats", "1"]) == 1  # one of the ways is broken
    assert "| same | fast |" in capsys.readouterr().out
    assert not (tmp_path / "results").exists()


def test_what_was_measured_before_an_interruption_is_kept(bench, monkeypatch, tmp_path, capsys):
    harness, _, run = bench
    monkeypatch.setattr(run, "NAMES", ("toy_comparison",))

    def interrupted(name, case, *rest):
        if case == "wrong":
            raise KeyboardInterrupt
        return _measured(name, case, *rest)

    monkeypatch.setattr(harness, "measure", interrupted)
    assert run.main(["--repeats", "1", "--out", str(tmp_path / "out")]) == 130
    assert "of toy_comparison same was measured" in capsys.readouterr().err
    result = json.loads((tmp_path / "out" / "toy_comparison.json").read_text())
    assert list(result["cases"]) == ["same"]
    assert not result["complete"] and "interrupted" in result["not_run"]["wrong"]


def test_results_that_differ_do_not_agree(bench):
    import models
    import pipeline
    import predictions

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


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dilation", [1, 3, 7])
@pytest.mark.parametrize("stride", [1, 2])
def test_products_with_padding_are_not_counted(bench, groups, dilation, stride):
    import limits

    conv = torch.nn.Conv2d(4, 6, 3, stride, dilation, dilation, groups)
    x = torch.ones(2, 4, 9, 11, requires_grad=True)
    with torch.no_grad():
        conv.weight.fill_(1)
        conv.bias.fill_(0)
    with limits.ProductCounter() as counter:
        out = conv(x)
    products = int(out.sum())  # each that is not with padding is 1
    assert counter.operations == 2 * products
    with limits.ProductCounter() as counter:
        out.sum().backward()
    assert counter.operations == 2 * 2 * products
    with limits.ProductCounter() as counter, torch.inference_mode():
        conv(x)
        torch.nn.functional.linear(torch.ones(5, 3), torch.ones(7, 3), torch.ones(7))
        torch.ones(2, 5, 3) @ torch.ones(2, 3, 4)
    assert counter.operations == 2 * products + 2 * 5 * 3 * 7 + 2 * 2 * 5 * 3 * 4


def test_the_table_of_limits_is_what_its_figures_give(bench):
    import limits

    result = json.loads((limits.RESULTS / "limits.json").read_text("utf-8"))
    text = limits.PAGE.read_text("utf-8")
    assert limits.page(text, result) == text, "run: python benchmarks/limits.py --table"
    assert [row["case"] for row in result["rows"]] == [row.case for row in limits.ROWS]


def test_the_readmes_ratios_are_those_of_the_results(bench):
    _, report, run = bench
    lines = (ROOT / "README.md").read_text("utf-8").splitlines()
    rows = [line.split("|") for line in lines if line.startswith("| `benchmarks/run.py ")]
    named = [name for row in rows for name in row[1].split("`")[1].split()[1:]]
    assert set(named) == set(run.NAMES) - {"memory_reuse", "deploy"}
    for row in rows:
        speeds = set()
        for name in row[1].split("`")[1].split()[1:]:
            result = json.loads((report.RESULTS / f"{name}.json").read_text("utf-8"))
            for case in result["cases"].values():
                for figures in case["ways"].values():
                    median = figures["speed"]["median"]
                    speeds |= {f"{median:.1f}", f"{median:.0f}"}
        told = re.findall(r"\b\d+(?:\.\d)?\b", row[3])
        assert told and set(told) <= speeds, row


def test_the_page_is_what_the_results_give(bench):
    _, report, run = bench
    assert report.PAGE.read_text("utf-8") == report.page(), "run: python benchmarks/report.py"
    for path in report.RESULTS.glob("*.json"):
        assert path.stem in run.NAMES
        assert path.with_suffix(".md").read_text("utf-8") == report.markdown(
            json.loads(path.read_text("utf-8"))
        )
