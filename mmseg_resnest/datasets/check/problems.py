# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What can be wrong with a data set: the kinds, how grave each is, and how one is told."""

from __future__ import annotations

from dataclasses import dataclass

from ...io.text import printable

__all__ = ["KINDS", "Problem"]

ERROR, WARNING = "error", "warning"

# Kind: (severity, heading). An error breaks training, or teaches or scores something wrong; a
# warning may be meant.
KINDS: dict[str, tuple[str, str]] = {
    "empty_split": (ERROR, "splits without samples"),
    "missing_image": (ERROR, "label maps without an image"),
    "missing_label": (ERROR, "images without a label map"),
    "empty_file": (ERROR, "empty files"),
    "broken_file": (ERROR, "truncated, damaged or unreadable files"),
    "size_mismatch": (ERROR, "image and label map differ in size"),
    "label_out_of_range": (ERROR, "labels that are no class"),
    "colour_label": (ERROR, "label maps in colour"),
    "jpeg_label": (ERROR, "label maps saved with loss (JPEG)"),
    "label_16bit": (ERROR, "label maps with 16 bits or more"),
    "palette_label": (ERROR, "palette label maps read as colours, or with the classes mixed up"),
    "absurd_size": (ERROR, "absurd sizes"),
    "num_classes": (ERROR, "number of classes"),
    "reduce_zero_label": (ERROR, "reduce_zero_label"),
    "ignore_index": (ERROR, "ignore_index"),
    "leaked_image": (ERROR, "the same image in two splits"),
    "conflicting_labels": (ERROR, "the same image with different label maps"),
    "duplicate_image": (WARNING, "the same image twice in a split"),
    "rotated_image": (WARNING, "images with an EXIF rotation"),
    "wrong_extension": (WARNING, "extensions that lie about the format"),
    "grey_image": (WARNING, "grey images"),
    "cmyk_image": (WARNING, "CMYK images"),
    "alpha_image": (WARNING, "images with transparency"),
    "deep_image": (WARNING, "images with 16 bits a channel"),
    "unreadable_name": (WARNING, "names that programs stumble over"),
    "left_out": (WARNING, "images that are never read"),
    "class_only_val": (WARNING, "classes that cannot be learnt"),
    "class_never": (WARNING, "classes that never occur"),
}


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        kind: A key of ``KINDS``.
        file: The file, or the config key.
        what: What is wrong, e.g. ``the label map holds 12 (34 pixels)``.
        effect: What it would do in training.
        fix: How to mend it.
        split: The split it was found in; empty for the whole config.
        severity: ``error`` or ``warning``; by default the kind's.
    """

    kind: str
    file: str
    what: str
    effect: str
    fix: str
    split: str = ""
    severity: str = ""

    def __post_init__(self) -> None:
        assert self.kind in KINDS, self.kind
        if not self.severity:
            object.__setattr__(self, "severity", KINDS[self.kind][0])

    @property
    def message(self) -> str:
        """The problem in one line."""
        return printable(f"{self.file}: {self.what}; {self.effect}; {self.fix}")

    def as_dict(self) -> dict[str, str]:
        """The problem as plain data."""
        return {
            "kind": self.kind,
            "severity": self.severity,
            "split": self.split,
            "file": printable(self.file),
            "what": self.what,
            "effect": self.effect,
            "fix": self.fix,
        }
