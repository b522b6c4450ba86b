# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The bench measures in turns, compares results, and the page in docs/ is made from the results."""

import json
import sys
import textwrap
from pathlib import Path

import pytest

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
    ways={"slow": slow, "fast": fast},
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
    for name in ("harness", "report", "run", "toy_comparison", "load_test"):
        sys.modules.pop(name, None)


def test_a_comparison_is_measured_and_written(bench, monkeypatch, tmp_path, capsys):
    _, report, run = bench
    monkeypatch.setattr(run, "NAMES", ("toy_comparison",))
    out = tmp_path / "results"
    # One case fails, which the exit code says; the other is kept.
    assert run.main(["--out", str(out), "--repeats", "2", "--remark", "a toy"]) == 1
    assert "fast agrees with slow on 98.0000% only" in capsys.readouterr().err
    result = json.loads((out / "toy_comparison.json").read_text())
    assert list(result["cases"]) == ["same"]
    assert "98.0000%" in result["not_run"]["wrong"]
    ways = result["cases"]["same"]["ways"]
    assert ways["fast"]["agreement"] == 1
    assert len(ways["fast"]["seconds"]["all"]) == 2
    assert ways["fast"]["speed"]["median"] > 2
    assert ways["slow"]["speed"]["all"] == [1, 1]
    assert 60 * 2**20 < ways["slow"]["peak_bytes"] < 200 * 2**20
    assert ways["fast"]["peak_bytes"] < 20 * 2**20
    machine = result["machine"]
    assert machine["cores"] >= 1
    assert machine["versions"]["torch"]
    assert machine["remark"] == "a toy"
    text = report.page(out)
    assert text == report.HEAD + "\n" + (out / "toy_comparison.md").read_text()
    assert "| same | fast |" in text
    assert "Not run: wrong" in text
    assert "reached by every case" in text


def test_the_load_tests_table_is_what_its_figures_give(bench):
    import load_test

    figures = ROOT / "benchmarks" / "results" / "service" / "load_test.json"
    page = (ROOT / "docs" / "deployment.md").read_text("utf-8")
    table = load_test.table(json.loads(figures.read_text("utf-8")))
    assert table in page, f"run: python benchmarks/load_test.py --table {figures}"


def test_names_and_numbers_are_checked(bench, capsys):
    _, _, run = bench
    for arguments in (["prediction"], ["--repeats", "0"], ["--threads", "0"]):
        with pytest.raises(SystemExit):
            run.main(arguments)
        assert arguments[0] in capsys.readouterr().err


def test_the_page_is_what_the_results_give(bench):
    _, report, run = bench
    assert report.PAGE.read_text("utf-8") == report.page(), "run: python benchmarks/report.py"
    for path in report.RESULTS.glob("*.json"):
        assert path.stem in run.NAMES
        assert path.with_suffix(".md").read_text("utf-8") == report.markdown(
            json.loads(path.read_text("utf-8"))
        )
