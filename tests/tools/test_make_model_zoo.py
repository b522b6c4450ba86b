# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""docs/model_zoo.md, model-index.yml and the metafiles: current, complete, read by MMEngine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from mmengine.infer import BaseInferencer
from user_errors import raises_user_error

import mmseg_resnest
from mmseg_resnest.weights import catalogue
from mmseg_resnest_cli import make_model_zoo
from mmseg_resnest_cli.main import parser_of
from mmseg_resnest_cli.models import cells, model_rows
from mmseg_resnest_cli.options import UsageError

ROOT = Path(__file__).parents[2]
MODELS = {name: entry for name, entry in catalogue().items() if entry.task == "segmentation"}


def main(argv: list[str], root: Path = ROOT) -> int:
    return make_model_zoo.run(parser_of("make-model-zoo").parse_args(argv), root)


def rows(page: str) -> dict[tuple[str, str], list[str]]:
    """Cells of the page's tables by name and protocol (or architecture)."""
    found = {}
    head = ""
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `"):
            key = cells[0].strip("`"), cells[2] if "mIoU" in head else cells[1]
            assert key not in found
            found[key] = cells
        elif line.startswith("| name"):
            head = line
    return found


def test_what_is_committed_is_current(capsys):
    assert main(["--check"]) == 0, capsys.readouterr().out


def test_a_check_counts_nothing_anew():
    with pytest.raises(UsageError, match="not allowed"):
        main(["--check", "--costs"])


def test_the_page_has_every_published_number():
    found = rows((ROOT / "docs" / "model_zoo.md").read_text(encoding="utf-8"))
    for name, entry in catalogue().items():
        for protocol, numbers in entry.metrics.items():
            if entry.task == "segmentation":
                cells = found.pop((name, protocol))
                accuracy = f"{numbers['pixAcc']:.2f}" if "pixAcc" in numbers else ""
                assert cells[3:5] == [accuracy, f"{numbers['mIoU']:.2f}"]
                assert cells[7] == f"`mmseg-resnest reproduce {name}`"
                assert (ROOT / "docs" / cells[1].split("(")[1].rstrip(")")).resolve().is_file()
            elif entry.task == "detection":
                stem = Path(entry.config).stem
                cells = found.pop((name, f"[{stem}](../{entry.config})"))
                assert cells[2] == f"{numbers['box AP']:.2f}"
                assert cells[3] == (f"{numbers['mask AP']:.2f}" if "mask AP" in numbers else "")
            else:
                cells = found.pop((name, entry.arch))
                assert cells[2] == f"{numbers['top1']:.2f}"
            assert entry.source in cells[-1]
        if not entry.metrics:
            assert found.pop((name, entry.arch))[2:4] == ["", ""]
    assert not found


def test_the_page_on_choosing_has_the_figures_of_the_table():
    """Parameters and FLOPs of each network's row, and its scores on ADE20K."""
    text = (ROOT / "docs" / "choose_a_model.md").read_text(encoding="utf-8")
    known = {tuple(cells(row)[i] for i in (1, 2, 4)) for row in model_rows()}
    lines = text.partition("| ADE20K | Cityscapes |")[2].partition("\n- ")[0].splitlines()[2:]
    found = [tuple(cell.strip() for cell in line.split("|")[2:5]) for line in lines if line]
    assert len(found) == 10 and set(found) <= known
    page = (ROOT / "docs" / "model_zoo.md").read_text(encoding="utf-8")
    for row in model_rows():
        assert (
            f"| [{row['name']}](../configs/{row['name']}.py) | {' | '.join(cells(row)[1:])}" in page
        )


def test_measurements_are_added_and_shown(tmp_path, capsys):
    """Only the measured columns of that model change."""
    for name in ("docs", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "model-index.yml", tmp_path)
    (tmp_path / "docs" / "measured.json").write_text("{}\n")
    main([], root=tmp_path)
    before = rows((tmp_path / "docs" / "model_zoo.md").read_text(encoding="utf-8"))
    assert all(cells[5:7] == ["", ""] for (name, _), cells in before.items() if name in MODELS)

    name, protocol = "deeplab_resnest50_ade", "multi-scale + flip"
    row = {"measured": {"pixAcc": 81.168, "mIoU": 45.1}, "device": "a GPU", "published": {}}
    report = {
        "name": name, "as_published": True, "version": "1.0", "protocols": {protocol: row}
    }  # fmt: skip
    file = tmp_path / "reproduction.json"
    file.write_text(json.dumps(report))
    assert main(["--add", str(file), "--check"], root=tmp_path) == 1
    assert json.loads((tmp_path / "docs" / "measured.json").read_text()) == {}
    assert main(["--add", str(file)], root=tmp_path) == 0
    after = rows((tmp_path / "docs" / "model_zoo.md").read_text(encoding="utf-8"))
    before[name, protocol][5:7] = ["81.17", "45.10"]
    assert after == before
    assert main(["--check"], root=tmp_path) == 0

    for change, code in (
        ({"as_published": False}, "argument"),
        ({"name": "nothing"}, "not-found"),
        ({"protocols": 3, "name": None}, "not-found"),
    ):
        file.write_text(json.dumps({**report, **change}))
        with raises_user_error(code, file):
            main(["--add", str(file)], root=tmp_path)
    file.write_text("[]")
    with raises_user_error("format", file):
        main(["--add", str(file)], root=tmp_path)


def test_metafiles_are_what_openmmlab_s_tools_expect():
    """The keys that MMEngine and mim read; names unique, links whole, nothing left out."""
    index = yaml.safe_load((ROOT / "model-index.yml").read_text())
    files = [yaml.safe_load((ROOT / name).read_text()) for name in index["Import"]]
    collections = {c["Name"] for file in files for c in file.get("Collections", [])}
    models = [model for file in files for model in file["Models"]]
    names = [model["Name"] for model in models]
    assert len(set(names)) == len(names)
    aliases = [alias for model in models for alias in model["Alias"]]
    assert sorted(aliases) == sorted(MODELS)
    for model in models:
        entry = MODELS[model["Alias"][0]]
        assert model["In Collection"] in collections
        assert model["Config"] == entry.config and (ROOT / entry.config).is_file()
        assert model["Name"].startswith(Path(entry.config).stem)
        assert model["Weights"] == entry.urls[0]
        own = {"SegNeXt": "2209.08575", "SegFormer": "2105.15203"}
        assert model["Paper"]["URL"].endswith(own.get(model["In Collection"], "2004.08955"))
        (result,) = model["Results"]
        assert result["Task"] == "Semantic Segmentation" and result["Dataset"] == entry.dataset
        multi = entry.metrics["multi-scale + flip"]
        assert result["Metrics"]["mIoU(ms+flip)"] == multi["mIoU"]
        assert result["Metrics"].get("mIoU") == entry.metrics.get("single scale", {}).get("mIoU")


def test_openmmlab_s_tools_list_the_models():
    listed = BaseInferencer.list_models("mmseg_resnest")
    assert {"deeplabv3_resnest101_ade20k", "deeplab_resnest101_ade"} <= set(listed)
    assert set(MODELS) <= set(listed)
    # What an installed package brings along: the same files.
    folder = Path(mmseg_resnest.__file__).parent / ".mim"
    for name in ("model-index.yml", "configs/metafile.yaml"):
        assert (folder / name).resolve() == ROOT / name
