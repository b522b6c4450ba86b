# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The rules of ``mmseg-resnest check-data``; reports, docs and ``--ignore`` use this table."""

from __future__ import annotations

from dataclasses import dataclass

from ...io.text import printable

ERROR, WARNING = "error", "warning"
_STOPS = "training stops at this sample"
_INDEX_ERROR = "training stops with an index error or a CUDA assert"
_COPY = "copy or download it again"


@dataclass(frozen=True)
class Rule:
    """One thing that the check looks for.

    ``name`` is as in reports and ``--ignore``. ``severity`` is ``error`` (training stops, or learns
    or scores something wrong) or ``warning`` (it may be meant); ``effect`` is that on training.
    """

    name: str
    severity: str
    title: str
    effect: str
    remedy: str


RULES = {
    rule.name: rule
    for rule in (
        Rule("empty_split", ERROR, "splits without samples",
             "training does not start, or has nothing to validate on",
             "check data_root, data_prefix, ann_file and img_suffix (data/README.md)"),
        Rule("missing_image", ERROR, "missing images",
             "training stops at this sample, or never uses its label map",
             "add the image, or remove its label map or its line in ann_file"),
        Rule("missing_label", ERROR, "missing label maps",
             _STOPS, "add the label map, or remove its image from the data set"),
        Rule("empty_file", ERROR, "empty files", _STOPS, _COPY),
        Rule("broken_file", ERROR, "truncated, damaged or unreadable files",
             f"{_STOPS}, or learns noise from it", f"{_COPY}; check its permissions"),
        Rule("size_mismatch", ERROR, "image and label map differ in size",
             "training stops at the crop, or labels the wrong pixels",
             "find the image's own label map, or resize it with nearest-neighbour sampling"),
        Rule("label_out_of_range", ERROR, "labels that are not classes",
             _INDEX_ERROR,
             "correct the label map, or the data set's classes, reduce_zero_label or label_map"),
        Rule("colour_label", ERROR, "label maps in colour",
             "training stops: a label map has one number a pixel",
             "convert the colours to class indices (prepare-data custom --format colour)"),
        Rule("jpeg_label", ERROR, "label maps saved with loss (JPEG)",
             "training learns wrong classes near borders, or stops at a label out of range",
             "save the original label map as PNG; the JPEG cannot be repaired"),
        Rule("label_16bit", ERROR, "label maps with 16 bits or more",
             "training keeps the lower 8 bits", "save the classes as 8-bit PNG"),
        Rule("palette_label", ERROR, "palette label maps whose colours and indices disagree",
             "training learns one class as another, or stops at colours",
             "convert its colours to class indices, or put the classes into the palette's order"),
        Rule("absurd_size", ERROR, "absurd sizes",
             "training runs out of memory, or sees padding and a few enlarged pixels",
             "find the image in its proper size, or remove it"),
        Rule("num_classes", ERROR, "number of classes",
             "training stops with an index error or learns nothing, or the model predicts classes "
             "that do not exist",
             "set num_classes of the heads and the data set's metainfo.classes to the same number"),
        Rule("reduce_zero_label", ERROR, "reduce_zero_label",
             "training stops at a label out of range, or learns every class as its neighbour",
             "remove reduce_zero_label from the config; give converted files a data set type of "
             "their own"),
        Rule("ignore_index", ERROR, "ignore_index",
             "training stops at a label out of range, or ignores or scores the wrong pixels",
             "use one ignore_index for heads, metric and data set, and one that is not a class"),
        Rule("channels", ERROR, "images of other channels than the model takes",
             "training stops at the first batch with such an image",
             "change color_type of the loader, or mean and std of model.data_preprocessor and "
             "model.backbone.in_channels; where only some images are so, save them as the others"),
        Rule("mixed_sizes", ERROR, "images of two sizes in a batch",
             "validation or testing stops at this batch", "set batch_size to 1"),
        Rule("leaked_image", ERROR, "the same image in two splits",
             "scores are too good: the model has seen the image",
             "remove it from one of the splits"),
        Rule("conflicting_labels", ERROR, "the same image with different label maps",
             "training learns two answers for one image", "keep the right label map"),
        Rule("duplicate_image", WARNING, "the same image twice in a split",
             "training sees it twice as often", "remove one of them"),
        Rule("rotated_image", WARNING, "images with an EXIF rotation",
             "training rotates the image, but never its label map",
             "rotate the pixels, remove the tag (mogrify -auto-orient) and check the label map"),
        Rule("wrong_extension", WARNING, "extensions of another format",
             "training reads the file by its contents, other programs go by its name",
             "rename it and set the data set's suffix, or save it in the format of its name"),
        Rule("grey_image", WARNING, "grey images",
             "training reads the grey as three equal colours",
             "nothing if it is meant; otherwise find the image in colour"),
        Rule("cmyk_image", WARNING, "CMYK images",
             "training reads other colours than a viewer shows",
             "convert it to RGB with its colour profile"),
        Rule("alpha_image", WARNING, "images with transparency",
             "training sees the colours under the transparent parts",
             "put it on a background and save it as RGB"),
        Rule("values", WARNING, "values that mean and std do not fit",
             "the network begins with numbers far from those it is made for, or without contrast",
             "set mean and std of model.data_preprocessor to those of the images, or read other "
             "values"),
        Rule("deep_image", WARNING, "images with 16 bits a channel",
             "training keeps the upper 8, which may be nearly black", "scale it to 8 bits"),
        Rule("several_pages", WARNING, "files of several pages",
             "training reads the first page alone",
             "save each page as a file of its own; where they are bands, prepare-data custom reads "
             "them all"),
        Rule("unreadable_name", WARNING, "names that programs cannot print",
             "training reads the file, but cannot write its name to logs, lists and results",
             "rename the image and its label map"),
        Rule("left_out", WARNING, "images that are never read",
             "training never sees it",
             "rename or convert it, set img_suffix, or move it elsewhere"),
        Rule("class_only_val", WARNING, "classes that cannot be learnt",
             "training cannot learn it; its IoU will be 0 and lowers the mean",
             "move images that show it to train, or leave the class out (label_map={NAME: "
             "'ignore'} and a lower num_classes)"),
        Rule("class_never", WARNING, "classes that never occur",
             "training cannot learn it; where it is predicted, its IoU is 0",
             "check the class list and the labels, or leave the class out (label_map={NAME: "
             "'ignore'} and a lower num_classes)"),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """A rule that a file or a config key breaks; ``split`` is empty for the whole config.

    Severity and remedy are the rule's by default.
    """

    rule: str
    file: str
    what: str
    split: str = ""
    severity: str = ""
    remedy: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "severity", self.severity or RULES[self.rule].severity)
        object.__setattr__(self, "remedy", self.remedy or RULES[self.rule].remedy)

    @property
    def effect(self) -> str:
        """What happens in training."""
        return RULES[self.rule].effect

    @property
    def message(self) -> str:
        """The problem in one line."""
        return printable(f"{self.file}: {self.what}; {self.effect}; {self.remedy}")

    def as_dict(self) -> dict[str, str]:
        """The problem as plain data, as in ``--json``."""
        return {
            "kind": self.rule,
            "severity": self.severity,
            "split": self.split,
            "file": printable(self.file),
            "what": self.what,
            "effect": self.effect,
            "fix": self.remedy,
        }
