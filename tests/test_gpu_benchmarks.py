# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The scripts that wait for a GPU run at toy size, count right, and say what was seen."""

import functools
import gc
import hashlib
import importlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
MODULES = (
    "gpu", "gpu_measure", "gpu_models", "gpu_parts", "gpu_report", "camvid", "camvid_report",
    "offline", "harness", "loss_curve", "models", "predictions", "run",
)  # fmt: skip


@pytest.fixture(scope="module")
def bench():
    """Imports a module of benchmarks/, whose names others may use too."""
    before = sys.path[:]
    sys.path.insert(0, str(ROOT / "benchmarks"))
    importlib.import_module("gpu_parts")
    gc.freeze()  # what is imported: every data set collects garbage, for half a second
    yield importlib.import_module
    gc.unfreeze()
    sys.path[:] = before
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def parts(bench, tmp_path_factory):
    """All parts at toy size."""
    out = tmp_path_factory.mktemp("gpu")
    threads = torch.get_num_threads()
    code = bench("gpu").main(["--toy", "--out", str(out), "--rate", "100"])
    torch.set_num_threads(threads)
    return code, {path.stem: json.loads(path.read_text()) for path in out.glob("*.json")}, out


def test_every_part_runs_and_agrees(bench, parts):
    code, results, out = parts
    assert code == 0
    assert sorted(results) == sorted(bench("gpu").NAMES)
    for name, result in results.items():
        assert result["cases"], name
        assert min(result["ceilings"].values()) > 0
        for case in result["cases"].values():
            assert all("Triton" in text for text in [*case["not_run"], *case["not_run"].values()])
            for figures in case["ways"].values():
                assert figures["seconds"]["median"] > 0
                assert figures.get("compared", {}).get("agrees", 1) == 1
        text = (out / f"{name}.md").read_text()
        assert "Toy size" in text and "(no GPU)" in text and result["command"] in text
    (case,) = results["inference"]["cases"].values()
    assert case["ways"]["mmseg-resnest, float32"]["compared"]["scores_error"] < 1e-4
    (case,) = results["predictions"]["cases"].values()
    assert case["ways"]["mmseg-resnest"]["compared"]["labels_equal"] > 0.9999
    (case,) = results["loader"]["cases"].values()
    figures = case["ways"]["mmseg-resnest, cached"]
    assert case["cores"]["mmseg-resnest, cached"] == pytest.approx(100 / figures["per_second"])
    (case,) = results["training"]["cases"].values()
    assert "mmseg-resnest, deterministic" in case["ways"]


def test_the_page_of_all_parts(bench, parts, tmp_path, capsys):
    assert bench("gpu").main(["--table", str(parts[2])]) == 0
    text = capsys.readouterr().out
    assert text.startswith("# Speed on one GPU\n") and text.count("\n## ") == 6
    with pytest.raises(SystemExit):
        bench("gpu").main(["--table", str(tmp_path)])
    assert "no results of a part" in capsys.readouterr().err


def test_operations_and_bytes_are_counted(bench):
    """One convolution by hand: operations, and each operand once."""
    measure = bench("gpu_measure")
    conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
    images = torch.zeros(2, 3, 10, 12)
    with torch.no_grad():
        counted = measure.count(lambda: conv(images).relu())
    outputs = 2 * 8 * 10 * 12
    moved = 4 * (images.numel() + conv.weight.numel() + outputs)
    assert counted["operations"] == 2 * outputs * 3 * 3 * 3
    assert counted["bytes"] == moved
    assert counted["bytes_op_by_op"] == moved + 4 * 2 * outputs


def test_the_floor_is_the_larger_bound_and_a_failing_way_is_told(bench):
    measure = bench("gpu_measure")
    conv = nn.Conv2d(4, 4, 1, bias=False).requires_grad_(False)
    images = torch.zeros(1, 4, 8, 8)

    def broken():
        raise RuntimeError("CUDA out of memory. Tried")

    case = measure.Case(
        name="one",
        what="a convolution",
        reference="plain",
        ways={
            "plain": lambda: lambda: conv(images),
            "other": lambda: lambda: conv(images) + 1,
            "broken": lambda: broken,
        },
        compare=lambda a, b: {"agrees": float(torch.equal(a, b))},
        count=lambda: lambda: conv(images),
        least={("other", "plain"): 1e9},
    )
    bounds = {"operations_per_second": 1.0, "bytes_per_second": 1e12}
    result = measure.measure(case, bounds, turns=2, least=0, left=lambda: 60)
    assert result["not_run"] == {"broken": "out of memory"}
    assert result["ways"]["other"]["compared"] == {"agrees": 0}
    assert result["ways"]["plain"]["floor_seconds"] == 2 * 64 * 4 * 4
    assert result["ways"]["plain"]["bound_by"] == "operations"
    (line,) = bench("gpu_report")._aims(result)
    assert "missed" in line and "the operations allow no more than" in line
    result = measure.measure(case, bounds, turns=3, least=0, left=lambda: 0)
    assert list(result["ways"]) == ["plain"] and "time" in result["not_run"]["other"]
    assert len(result["ways"]["plain"]["seconds"]["all"]) == 1
    assert "after 1 of 3" in result["not_run"]["the last turns"]


def test_the_largest_batch_is_found(bench):
    tried = []

    def step(batch):
        def work():
            tried.append(batch)
            if batch > 24:
                raise torch.OutOfMemoryError("CUDA out of memory")

        return work

    largest_batch = bench("gpu_parts").largest_batch
    assert largest_batch(step, (8, 16, 24, 32, 64)) == 24
    assert tried == [24, 64, 32]
    assert largest_batch(step, (8, 24)) == 24 and largest_batch(step, (32, 64)) == 0


def test_cases_are_chosen_by_name(bench):
    chosen = bench("gpu").chosen
    assert chosen("resnest50, batch 1", "resnest50") and chosen("resnest50, batch 1", "batch 1")
    assert chosen("resnest50, batch 1", "resnest50, batch 1")
    assert not chosen("resnest50, batch 16", "batch 1")


def test_an_interrupted_part_holds_its_own_cases_alone(bench, tmp_path, monkeypatch):
    """It starts anew, says that it was interrupted, and a whole one no longer does."""
    gpu, parts, measure = bench("gpu"), bench("gpu_parts"), bench("gpu_measure")

    def cases(*names, then=None):
        def make(toy, options):
            for name in names:
                ways = {"plain": lambda: lambda: torch.ones(1)}
                yield functools.partial(measure.Case, name, "", "plain", ways)
            if then is not None:
                raise then

        return make

    def run(*names, then=None, more=()):
        monkeypatch.setitem(parts.PARTS, "latency", cases(*names, then=then))
        gpu.main(["--toy", "--part", "latency", "--out", str(tmp_path), *more])

    def written():
        result = json.loads((tmp_path / "latency.json").read_text())
        return sorted(result["cases"]), result["not_run"], (tmp_path / "latency.md").read_text()

    run("one", "two")
    assert written()[:2] == (["one", "two"], {})
    with pytest.raises(KeyboardInterrupt):
        run("one", then=KeyboardInterrupt())
    names, not_run, text = written()
    assert (
        names == ["one"]
        and "interrupted" in text
        and "the command was interrupted here" in not_run.values()
    )
    with pytest.raises(SystemExit, match="names no case"):
        run("one", more=["--case", "three"])


def test_without_a_gpu_it_says_so(bench, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit, match="no GPU"):
        bench("gpu").main(["--part", "loader", "--out", str(tmp_path)])


# --- CamVid


@pytest.fixture(scope="module")
def camvid_root(tmp_path_factory):
    """Two images of each split: real ones where they are, else made ones; the test split made."""
    root = tmp_path_factory.mktemp("data")
    real = Path(os.environ.get("MMSEG_RESNEST_DATA", ROOT / "data")) / "camvid"
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        found = sorted((real / split).glob("*.jpg"))[:2] if split != "test" else []
        for folder in (split, f"{split}annot"):
            (root / "camvid" / folder).mkdir(parents=True)
        for index in range(2):
            image = root / "camvid" / split / f"{index}.png"
            label = root / "camvid" / f"{split}annot" / f"{index}.png"
            if found:
                Image.open(found[index]).resize((64, 48)).save(image)
                labels = Image.open(real / f"{split}annot" / f"{found[index].stem}.png")
                labels.resize((64, 48), Image.Resampling.NEAREST).save(label)
            else:
                Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(image)
                Image.fromarray(rng.integers(0, 12, (48, 64), dtype=np.uint8)).save(label)
    return root


@pytest.fixture(scope="module")
def runs(bench, camvid_root, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    before = os.environ.get("MMSEG_RESNEST_DATA")
    words = ["run", "--toy", "--data-root", str(camvid_root), "--out", str(out)]
    camvid = bench("camvid")
    try:
        weights = ["--weights", str(out / "weights")]
        camvid.main([*words, "--recipe", "resnest50", "--iterations", "2", *weights])
        camvid.main([*words, "--recipe", "stack"])  # times its iterations first
    finally:
        os.environ.pop("MMSEG_RESNEST_DATA")
        if before is not None:
            os.environ["MMSEG_RESNEST_DATA"] = before
    return out


def test_a_recipe_trains_and_is_evaluated_on_both_splits(bench, runs):
    record = json.loads((runs / "resnest50-0.json").read_text())
    assert set(record["evaluations"]) == {
        f"{split}, {way}" for split in ("validation", "test")
        for way in ("single-scale", "multi-scale")
    }  # fmt: skip
    assert record["iterations_done"] == record["max_iters"] == 2
    assert [one["iteration"] for one in record["history"]] == [1, 2]
    best = max(record["history"], key=lambda one: one["mIoU"])
    # The weights of the best validation are what is evaluated.
    assert record["evaluations"]["validation, single-scale"]["mIoU"] == pytest.approx(
        best["mIoU"], abs=0.01
    )
    stack = json.loads((runs / "stack-0.json").read_text())
    assert set(stack["evaluations"]) == {"validation, single-scale", "test, single-scale"}
    assert [one["iteration"] for one in stack["history"]] == [2, 4]
    assert stack["seconds_an_iteration"] > 0 and "seconds_an_iteration" not in record
    # Put together, the parts are the weights.
    from safetensors.torch import load

    weights = record["weights"]
    data = b"".join((runs / "weights" / name).read_bytes() for name in weights["parts"])
    assert len(data) == weights["bytes"] and hashlib.sha256(data).hexdigest() == weights["sha256"]
    state = load(data)
    assert state["backbone.conv1.0.weight"].dtype == torch.float16
    assert state["backbone.layer1.0.bn1.running_mean"].dtype == torch.float32
    assert not any(key.startswith("auxiliary_head") for key in state)


def test_both_ways_learn_alike(bench, camvid_root, monkeypatch, tmp_path):
    """Two runs of one seed are closer than two of different seeds, in the figures written."""
    loss_curve = bench("loss_curve")
    monkeypatch.setenv("MMSEG_RESNEST_DATA", str(camvid_root))
    monkeypatch.setattr(loss_curve, "keep_freed_memory", lambda: None)  # of the whole process
    monkeypatch.setattr(loss_curve, "WINDOW", 2)
    monkeypatch.setattr(loss_curve, "BATCH", 2)
    monkeypatch.setattr(loss_curve, "CROP", (48, 64))
    arguments = ["--iterations", "2", "--seeds", "2", "--out", str(tmp_path)]
    assert loss_curve.main(arguments) == 0
    result = json.loads((tmp_path / "loss_curve.json").read_text())
    curves = np.array(result["curves"])
    assert curves.shape == (2, 2, 2)
    np.testing.assert_allclose(curves[0], curves[1], rtol=1e-2)
    found = result["comparison"]
    windows = curves.mean(2)
    difference = windows[1].mean() - windows[0].mean()
    np.testing.assert_allclose(found["difference"], [difference], atol=2e-5)  # curves are rounded
    between = np.sqrt(((windows[:, 0] - windows[:, 1]) ** 2).mean())
    np.testing.assert_allclose(found["other_seed"], [between], atol=2e-5)
    assert found["same_seed"][0] < between / 3
    assert "| 1 to 2 |" in (tmp_path / "loss_curve.md").read_text()


def test_parts_of_a_longer_file_do_not_stay(bench, tmp_path):
    """Put together by a pattern, they would be taken for this one's."""
    file = tmp_path / "model.safetensors"
    for size, names in ((25, ["0", "1", "2"]), (12, ["0", "1"])):
        data = bytes(range(size))
        file.write_bytes(data)
        parts = bench("camvid").write_parts(file, tmp_path / "parts", limit=10)
        assert parts == [f"model.safetensors.{name}" for name in names]
        found = sorted((tmp_path / "parts").iterdir())
        assert b"".join(path.read_bytes() for path in found) == data


def test_an_interrupted_run_leaves_no_result(bench, camvid_root, tmp_path, monkeypatch):
    """Nor its folder; and what an earlier run has written stays whole."""
    camvid = bench("camvid")
    (tmp_path / "resnest50-0.json").write_text("earlier")
    made = []

    def interrupted(cfg, recipe):
        made.append(Path(cfg.work_dir).parent)
        raise KeyboardInterrupt

    monkeypatch.setattr(camvid, "make_runner", interrupted)
    monkeypatch.setenv("MMSEG_RESNEST_DATA", "")  # put back afterwards
    words = ["run", "--toy", "--data-root", str(camvid_root), "--out", str(tmp_path)]
    with pytest.raises(KeyboardInterrupt):
        camvid.main(words)
    assert made and not made[0].exists()
    assert [path.name for path in tmp_path.iterdir()] == ["resnest50-0.json"]
    assert (tmp_path / "resnest50-0.json").read_text() == "earlier"


def test_the_page_of_toy_runs(bench, runs, tmp_path):
    page = tmp_path / "docs" / "camvid_gpu.md"
    assert bench("camvid").main(["report", str(runs), "--page", str(page)]) == 0
    text = page.read_text()
    assert "Toy size" in text
    assert "## ResNeSt-50 and MMSegmentation's ResNeSt-50" in text
    assert (tmp_path / "docs" / "images" / "camvid_gpu.png").stat().st_size > 1000


def test_runs_that_do_not_belong_together_make_no_page(bench, tmp_path, capsys):
    report = bench("camvid_report")

    def run(seed=0, toy=False, gpu="one"):
        machine = {"gpu": gpu, "cpu": "x"}
        return {"recipe": "stack", "seed": seed, "toy": toy, "machine": machine, "history": []}

    assert report.what_does_not_belong([run(), run(seed=1)]) is None
    for runs, words in (
        ([run(), run()], "two runs of stack, seed 0"),
        ([run(), run(seed=1, toy=True)], "toy"),
        ([run(), run(seed=1, gpu="other")], "one, other"),
        ([], "no run"),
    ):
        for path in tmp_path.glob("*.json"):
            path.unlink()
        for index, one in enumerate(runs):
            (tmp_path / f"{index}.json").write_text(json.dumps(one))
        page = tmp_path / "page.md"
        assert bench("camvid").main(["report", str(tmp_path), "--page", str(page)]) == 2
        assert words in capsys.readouterr().err and not page.exists()


def test_comparisons_of_runs(bench):
    """Time to the lower of the two mean finals, and how many never got there."""
    report = bench("camvid_report")

    def run(recipe, seed, scores):
        history = [{"seconds": 10.0 * i, "mIoU": score} for i, score in enumerate(scores, 1)]
        return {"recipe": recipe, "seed": seed, "history": history}

    runs = [run("resnest50", 0, [40, 62, 70]), run("resnest50", 1, [50, 58, 66]),
            run("stack", 0, [30, 50, 64]), run("stack", 1, [20, 40, 56])]  # fmt: skip
    lines = report._comparison(runs, "resnest50", "stack")
    assert "time to 60.00" in lines[2]
    assert lines[4].endswith("| 68.00 ± 2.83 | 25.00 ± 7.07 s |")
    assert lines[5].endswith("| 60.00 ± 5.66 | 30.00 s, 1 of 2 never |")
    assert report._comparison(runs, "resnest50", "resnet50") == []


def test_a_schedule_fits_its_time(bench):
    camvid = bench("camvid")
    iterations = camvid.iterations_within(480, iteration=0.06, validation=3, fixed=8)
    assert 0.97 * 480 < 8 + camvid.VALIDATIONS * 3 + iterations * 0.06 <= 480
    args = type("Args", (), dict(data_root=None, seed=3, toy=False))
    cfg = camvid.prepare("resnest50", args, {"optim_wrapper.optimizer.lr": 0.002})
    camvid.set_length(cfg, iterations)
    first, poly = cfg.param_scheduler
    assert (cfg.train_cfg.max_iters, poly.end) == (iterations, iterations + 1)
    assert first.end == poly.begin == 300
    assert cfg.optim_wrapper.optimizer.lr == 0.002 and cfg.randomness == {"seed": 3}
    assert -(-iterations // cfg.train_cfg.val_interval) == camvid.VALIDATIONS
    assert cfg.model.backbone.arch == "resnest50" and cfg.model.backbone.init_cfg is None


# --- packing for a machine without a network


def test_packing_and_running_without_a_network(bench, camvid_root, tmp_path, monkeypatch):
    """The folder is whole, and its wheels are what the part that runs there imports."""
    offline = bench("offline")

    def fetch(wanted, folder, optional=False):
        folder.mkdir(exist_ok=True)
        with zipfile.ZipFile(folder / "tiny_part-1-py3-none-any.whl", "w") as wheel:
            wheel.writestr("tiny_part.py", "print('from the wheel')\n")
            info = "tiny_part-1.dist-info/"
            wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\nName: tiny-part\nVersion: 1")
            wheel.writestr(
                info + "WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            wheel.writestr(info + "RECORD", "tiny_part.py,,\n")
        return []

    monkeypatch.setattr(offline, "fetch", fetch)
    out = tmp_path / "offline"
    words = ["--out", str(out), "--data-root", str(camvid_root)]
    assert offline.main(words) == 0
    assert offline.main([*words, "--test", "--images", "1"]) == 0  # again, in its place
    assert sorted(path.name for path in (out / "camvid").iterdir()) == [
        "test", "testannot", "train", "trainannot", "val", "valannot",
    ]  # fmt: skip
    assert (out / "CONTENTS.txt").read_text().startswith("3 images")
    with pytest.raises(SystemExit, match="--limit"):
        offline.main([*words, "--limit", "0.001"])
    assert (out / "CONTENTS.txt").is_file() and not list(tmp_path.glob(".offline-*"))

    results = tmp_path / "results"
    site = tmp_path / "site"
    command = ["bash", str(ROOT / "benchmarks" / "offline.sh"), str(out), str(results)]
    environment = {**os.environ, "PYTHON": sys.executable, "SITE": str(site)}
    done = subprocess.run(
        [*command, "gpu.py", "--list"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "inference"
    assert (site / "tiny_part.py").is_file()
    done = subprocess.run([*command, "other.py"], env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "other.py" in done.stderr


def test_what_is_packed_is_what_is_pinned(bench):
    offline = bench("offline")
    pins = dict(pin.split("==") for pin in offline.pins([*offline.LACKING, "NumPy"]))
    assert set(pins) == {*offline.LACKING, "numpy"}
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert f"onedl-mmcv=={pins['onedl-mmcv']}" in lines
    with pytest.raises(SystemExit, match="nonsense"):
        offline.pins(["nonsense"])
