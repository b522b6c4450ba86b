# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The notebook: what it imports exists, and it runs from top to bottom (`make test-notebook`)."""

from __future__ import annotations

import ast
import importlib
import json
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "docs" / "notebooks" / "first_steps.ipynb"


def test_it_is_clean_and_what_it_imports_exists() -> None:
    """Names that are used and never made are ruff's to find; it reads notebooks."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert not any(cell.get("outputs") for cell in cells), "commit it without outputs"
    assert len(code) >= 6
    for node in ast.walk(ast.parse("\n".join(code))):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                assert hasattr(module, alias.name), ast.unparse(node)


@pytest.mark.notebook
@pytest.mark.timeout(1800)
def test_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Every cell without an error; the model has learnt something, and results show themselves."""
    if request.config.option.markexpr != "notebook":
        pytest.skip("trains for minutes: make test-notebook")
    nbformat = pytest.importorskip("nbformat", reason="nbformat is missing (make test-notebook)")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is missing (make test-notebook)")
    pytest.importorskip("ipykernel", reason="ipykernel is missing (make test-notebook)")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.delenv("MPLBACKEND", raising=False)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(
        notebook,
        timeout=1500,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(pictures) >= 3
    assert any("<figure" in o.get("data", {}).get("text/html", "") for o in outputs)
    run = tmp_path / "work_dirs" / "first_steps" / "run"
    results = json.loads((run / "test" / "results.json").read_text())
    assert results["mIoU"] > 8
