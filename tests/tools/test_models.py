# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""``mmseg-resnest models``: the table, and measurements of this machine beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from user_errors import printed_error

from mmseg_resnest.engine.model_costs import keep_benchmark
from mmseg_resnest.weights import catalogue
from mmseg_resnest_cli import main
from mmseg_resnest_cli.package import list_configs

Result = tuple[int, str, str]


@pytest.fixture
def run(
    tmp_path: Path, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    monkeypatch.setenv("MMSEG_RESNEST_CACHE", str(tmp_path / "cache"))

    def run_it(*args: str) -> Result:
        with pytest.raises(SystemExit) as exit_info:
            main("models", list(args))
        return exit_info.value.code or 0, *capfd.readouterr()

    return run_it


def test_the_table_has_every_model_with_its_published_numbers(run: Callable[..., Result]) -> None:
    rows = {row["name"]: row for row in json.loads(run("--json")[1])}
    assert sorted(rows) == sorted(list_configs())
    for entry in catalogue().values():
        if entry.task != "segmentation":
            continue
        row = rows[entry.config.removeprefix("configs/").removesuffix(".py")]
        if row["weights"] == entry.name:
            scores = {protocol: numbers["mIoU"] for protocol, numbers in entry.metrics.items()}
            assert (row["published"], row["licence"]) == (scores, entry.licence)
        else:
            assert catalogue()[row["weights"]].config == entry.config
    assert rows["fcn_resnest14_camvid"]["licence"] is None
    text = run("segformer", "ade20k")[1]
    assert [line.split()[0] for line in text.splitlines()[1:4]] == [
        f"segformer_mitb{size}_ade20k" for size in "024"
    ]
    assert "37.41 / 38.34" in text and text.count("LicenseRef-NVIDIA-non-commercial") == 3
    assert "--measure" in text
    # weights to start from have a licence as well
    assert "(LicenseRef-NVIDIA" not in text and "(Apache-2.0)" in run("segnext", "cityscapes")[1]


def test_what_was_measured_stands_beside_it(run: Callable[..., Result]) -> None:
    runs = dict(images_per_second=4.0, memory_bytes=300 << 20, batch=1)
    result = dict(shape=[512, 512], device="CPU, 3 threads", testing=runs, training=None)
    keep_benchmark("segformer_mitb0_ade20k", result)
    text = run("segformer", "ade20k")[1]
    assert "250 ms, 300 MiB" in text and "here: CPU, 3 threads" in text
    assert "a step here" not in text
    keep_benchmark("segformer_mitb0_ade20k", dict(result, training=dict(runs, batch=2)))
    assert "500 ms, 300 MiB (batch 2)" in run("segformer", "ade20k")[1]


@pytest.mark.parametrize(
    "words", [["nothing-has-this"], ["--measure", "nothing"], ["--train"], ["--device", "cpu"]]
)
def test_wrong_words_are_one_error(run: Callable[..., Result], words: list[str]) -> None:
    code, out, err = run(*words)
    assert code == 2 and not out
    assert printed_error(err)


@pytest.mark.long
def test_a_model_is_measured(run: Callable[..., Result]) -> None:
    name = "fcn_resnest14_camvid"
    code, out, _ = run(
        "--measure", name, "--train", "--seconds", "0.1", "--device", "cpu", "--json"
    )
    (row,) = json.loads(out)
    assert code == 0 and row["name"] == name
    assert row["measured"]["testing"]["batch"] == 1 and row["measured"]["training"]["batch"] == 2
    assert row["measured"]["training"]["memory_bytes"] > row["kept"]
    code, out, err = run("--measure", name, "--seconds", "0.1", "--device", "no-such-device")
    assert code == 1 and f"not measured: {name}" in err
