# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Published checkpoints in the published configs give what the published code gives."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config

from mmseg_resnest.registry import MODELS
from mmseg_resnest.weights import analyse, load_into

ROOT = Path(__file__).parents[2]
CONFIGS = {
    "fcn_resnest50_ade": "fcn_resnest50_ade20k",
    "psp_resnest50_ade": "pspnet_resnest50_ade20k",
    "deeplab_resnest50_ade": "deeplabv3_resnest50_ade20k",
    "encnet_resnest50_ade": "encnet_resnest50_ade20k",
    "deeplab_resnest101_pcontext": "deeplabv3_resnest101_pascal_context",
}
TOLERANCE = 1e-5  # of the largest magnitude; the golden folder's README


def difference(found: torch.Tensor, wanted: np.ndarray) -> float:
    assert found.shape == wanted.shape
    return float(np.abs(found.numpy() - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize("name", CONFIGS)
def test_golden_segmentor(name, golden_folder, seeded_weights):
    case = json.loads((golden_folder / "manifest.json").read_text())[name]
    weights, image, outputs = seeded_weights.load_case(name)
    config = Config.fromfile(ROOT / "configs" / f"{CONFIGS[name]}.py").model
    config.pop("data_preprocessor", None)
    with torch.device("meta"):
        model = MODELS.build(config).eval()
    model.to_empty(device="cpu")  # no time on numbers that the checkpoint replaces
    assert model.decode_head.num_classes == case["num_classes"]

    found = analyse(weights)
    assert found.is_segmentor and found.layout == "published"
    assert not found.left_out and not found.added
    load_into(model, found.state_dict)

    batch = torch.from_numpy(image)
    size = tuple(batch.shape[2:])
    with torch.no_grad():
        features = model.extract_feat(batch)
        main, auxiliary = model.decode_head(features), model.auxiliary_head(features)
    se = None
    if isinstance(main, (list, tuple)):
        main, se = main
    scores = {
        key: F.interpolate(value, size, mode="bilinear", align_corners=True)[0]
        for key, value in (("logits", main), ("aux", auxiliary))
    }
    step = max(1, case["num_classes"] // 16)
    checked = {"labels"}
    labels = scores["logits"].argmax(0)
    assert np.array_equal(labels.numpy(), outputs["labels"].squeeze())
    for key, value in scores.items():
        part = value[::step, ::3, ::3][:16]
        assert difference(part[None], outputs[key]) <= TOLERANCE, key
        checked.add(key)
    if se is not None:
        assert difference(se.reshape(outputs["se"].shape), outputs["se"]) <= TOLERANCE
        checked.add("se")
    assert checked == set(outputs)
