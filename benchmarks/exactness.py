# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""How far each ResNeSt is from the published network, with the same weights.

For every architecture and output stride, the published network (the authors' package, resnest
0.0.5) gets seeded weights; this package's backbone, MMSegmentation's and timm's get the same ones.
The table shows the largest difference over the largest magnitude, for the worst of the four
stages, in float32 (where the order of sums alone makes about 1e-6).

    python benchmarks/exactness.py [--arch NAME ...] [--output-stride 8 16 32]

timm needs torchvision, which fits only the torch of its own build: `benchmarks/peers.sh DIR --list`
makes an environment with both, DIR/bin/python.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from harness import arguments
from models import stock_backbone
from peers import missing
from resnest.torch.resnet import Bottleneck, ResNet
from torch import Tensor, nn

from mmseg_resnest.models import ARCHITECTURES, ResNeSt
from mmseg_resnest.registry import MODELS

STAGES = ("layer1", "layer2", "layer3", "layer4")
IMAGE = (1, 3, 97, 129)
TIMM_NAMES = {
    "resnest14": "resnest14d",
    "resnest26": "resnest26d",
    "resnest50": "resnest50d",
    "resnest101": "resnest101e",
    "resnest200": "resnest200e",
    "resnest269": "resnest269e",
    "resnest50_fast_1s4x24d": "resnest50d_1s4x24d",
    "resnest50_fast_4s2x40d": "resnest50d_4s2x40d",
}
NOT_OFFERED = "not offered"


def published(arch: str, output_stride: int) -> nn.Module:
    """The authors' network with weights that keep activations of order one."""
    columns = ARCHITECTURES[arch]
    network = ResNet(
        Bottleneck,
        list(columns["blocks"]),
        radix=columns["radix"],
        groups=columns["groups"],
        bottleneck_width=columns["base_width"],
        deep_stem=True,
        stem_width=columns["stem_width"],
        avg_down=True,
        avd=True,
        avd_first=columns["avd_first"],
        **{8: dict(dilated=True), 16: dict(dilation=2), 32: {}}[output_stride],
    )
    generator = torch.Generator().manual_seed(0)
    for name, tensor in network.state_dict().items():
        if name.endswith("running_mean"):
            tensor.normal_(0, 0.1, generator=generator)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif tensor.dim() == 1 and name.endswith("weight"):
            low, high = (0.1, 0.3) if name.endswith("bn3.weight") else (0.5, 1.5)
            tensor.uniform_(low, high, generator=generator)
        elif name.endswith("bias"):
            tensor.normal_(0, 0.1, generator=generator)
        elif tensor.dim() == 4:
            fan_in = tensor[0].numel()
            tensor.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
    return network.eval()


def stages(network: nn.Module, images: Tensor, activation: str = "relu") -> list[Tensor]:
    """The four stages of a network with the published names."""
    x = getattr(network, activation)(network.bn1(network.conv1(images)))
    x = network.maxpool(x)
    outputs = []
    for name in STAGES:
        x = getattr(network, name)(x)
        outputs.append(x)
    return outputs


def ours(arch: str, output_stride: int, state: dict[str, Tensor]) -> Callable:
    model = ResNeSt(arch, output_stride=output_stride)
    model.load_state_dict(state)
    return model.eval()


def stock(arch: str, output_stride: int, state: dict[str, Tensor]) -> Callable | str:
    """MMSegmentation's ResNeSt, dilated as in its own configs."""
    if arch not in ("resnest50", "resnest101", "resnest200"):
        return NOT_OFFERED
    depth = int(arch.removeprefix("resnest"))
    model = MODELS.build(stock_backbone(ARCHITECTURES[arch], depth, output_stride))
    renamed = {}
    for key, value in state.items():
        head, _, rest = key.partition(".")
        renamed[{"conv1": f"stem.{rest}", "bn1": f"stem.7.{rest}"}.get(head, key)] = value
    model.load_state_dict(renamed)
    model.eval()
    return model


def timm(
    arch: str, output_stride: int, state: dict[str, Tensor], device: str = "cpu"
) -> Callable | str:
    if missing("timm"):
        return "not importable"
    if arch not in TIMM_NAMES:
        return NOT_OFFERED
    import timm as package

    model = package.create_model(TIMM_NAMES[arch], output_stride=output_stride, num_classes=0)
    model.load_state_dict(state)
    model.eval().to(device)
    return lambda images: stages(model, images, "act1")


PEERS = {"mmseg-resnest": ours, "MMSegmentation": stock, "timm": timm}


@torch.no_grad()
def measure(arch: str, output_stride: int) -> dict[str, float | str]:
    """The worst stage's relative difference for each peer, or why it is missing."""
    reference = published(arch, output_stride)
    state = {k: v for k, v in reference.state_dict().items() if not k.startswith("fc.")}
    images = torch.randn(IMAGE, generator=torch.Generator().manual_seed(1))
    expected = stages(reference, images)
    result: dict[str, float | str] = {}
    for name, build in PEERS.items():
        network = build(arch, output_stride, state)
        if isinstance(network, str):
            result[name] = network
            continue
        actual = network(images)
        result[name] = max(
            float((a - e).abs().max() / e.abs().max())
            for a, e in zip(actual, expected, strict=True)
        )
    return result


def cell(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.1e}" if value < 1e-3 else f"**{value:.1%}**"


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--arch", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument("--output-stride", nargs="+", type=int, choices=(8, 16, 32),
                        default=[8, 16, 32])  # fmt: skip
    args = parser.parse_args()
    print(f"| architecture | output stride | {' | '.join(PEERS)} |")
    print("|---|---|" + "---|" * len(PEERS))
    for arch, output_stride in itertools.product(args.arch, args.output_stride):
        result = measure(arch, output_stride)
        cells = " | ".join(cell(result[name]) for name in PEERS)
        print(f"| {arch} | {output_stride} | {cells} |", flush=True)
    if why := missing("timm"):
        print(f"\ntimm: {why}")


if __name__ == "__main__":
    main()
