# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Compiles every kernel in Triton to machine code of NVIDIA's GPUs, which needs none of them.

Triton's interpreter takes what its compiler refuses. test_triton_kernels.py runs this.
"""

from __future__ import annotations

import re
import sys

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mmseg_resnest.kernels import triton_labels, triton_split_attention

CONSTANTS = {
    "STEPS": 4, "RADIX": 2, "DTYPE": tl.float32, "ROW_TAPS": 4, "COLUMN_TAPS": 4, "SOFTMAX": True,
}  # fmt: skip
# Pixels and channels of a program, and the strides that are 1.
LAYOUTS = {
    "first": (1024, 1, ("pixel_stride", "out_pixel", "g_pixel")),
    "last": (32, 64, ("channel_stride", "out_channel", "g_channel")),
}
POINTERS = {"sizes_ptr": "*i64", "row_first_ptr": "*i32", "column_first_ptr": "*i32"}
MAPS = ("y_ptr", "g_ptr", "scores_ptr")


def compiled(kernel, maps, ones, capability, out="fp32", **constants):
    """The kernel's PTX, for arguments whose addresses and counts are multiples of 16."""
    signature, values, hints = {}, {}, {}
    for place, name in enumerate(kernel.arg_names):
        if name in constants or name in ones:
            signature[name] = "constexpr"
            values[(place,)] = constants.get(name, 1)
            continue
        if name.endswith("_ptr"):
            kind = maps if name in MAPS else out if name == "out_ptr" else "fp32"
            signature[name] = POINTERS.get(name, f"*{kind}")
        else:
            signature[name] = "i32"
        hints[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=hints)
    result = triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options={"enable_fp_fusion": True}
    )
    assert len(result.asm["cubin"]) > 1000
    return result.asm["ptx"]


def main():
    done = 0
    for capability, maps in ((80, "fp16"), (90, "bf16"), (90, "fp32")):
        for layout, (pixels, channels, ones) in LAYOUTS.items():
            for name in ("_pooled_sums", "_weighted_sum", "_gradient_sums", "_gradient"):
                kernel = getattr(triton_split_attention, name)
                constants = {**CONSTANTS, "PIXELS": pixels, "CHANNELS": channels}
                constants = {k: v for k, v in constants.items() if k in kernel.arg_names}
                ptx = compiled(kernel, maps, ones, capability, maps, **constants)
                wide = re.findall(r"ld\.global\.v4\.b32", ptx)
                assert wide, f"{name}, channels {layout}: no load of 16 bytes"
                done += 1
        for name, ones in (
            ("_log_sums", ()),
            ("_labels", ("image_stride",)),
            ("_labels", ("views",)),
        ):
            kernel = getattr(triton_labels, name)
            constants = {k: v for k, v in CONSTANTS.items() if k in kernel.arg_names}
            out = "i64" if name == "_labels" else "fp32"
            compiled(kernel, maps, ones, capability, out, PIXELS=256, **constants)
            done += 1
    print(f"{done} compiled")


if __name__ == "__main__":
    sys.exit(main())
