# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Messages that tell what to do, and no test does it: where they are made, by the reason."""

from __future__ import annotations

Key = tuple[str, tuple[str, ...]]  # where, and words of the message


def _at(where: str, *words: str) -> Key:
    return where, words


REASONS: dict[str, list[Key]] = {
    "the same advice, to get a file again, is executed for archives and matrices": [
        _at("datasets/prepare/archives.py:_check_end"),
        _at("datasets/prepare/camvid.py:_check"),
        _at("datasets/prepare/pascal_context.py:_detail", "get it again"),
        _at("datasets/prepare/places.py:read", "get it again"),
        _at("datasets/prepare/places.py:check_file_size"),
    ],
    "the file that is missing is added in test_pascal.py": [
        _at("datasets/prepare/pascal_context.py:_plan", "--source"),
    ],
    "a file or a disk must change while it is read": [
        _at("datasets/prepare/build_cache.py:_write", "check the disk"),
        _at("datasets/prepare/labelme.py:_render", "run again"),
        _at("evaluation/submission.py:pack", "try again"),
    ],
    "a full disk cannot be had for a part of the folders of a process": [
        _at("engine/config/load.py:_explain_parse_error", "TMPDIR"),
        _at("cli/failures.py:explain_error", "the disk is full"),
        _at("cli/failures.py:_explain_os_error", "make room"),
    ],
    "no permission counts for the superuser, whom continuous integration often is": [
        _at("cli/failures.py:_explain_os_error", "change its permissions"),
    ],
    "memory must run out, which would end the tests": [
        _at("engine/failing_parts.py:_explain_batch", "memory does not suffice"),
        _at("engine/testing.py:_failure", "more memory than there is"),
        _at("cli/failures.py:explain_error", "its memory ran out"),
    ],
    "the same advice is executed for a worker that fails (bad_input.py)": [
        _at("cli/failures.py:explain_error", "train_dataloader.num_workers=0"),
    ],
    "the same advice is executed for the limit of open files (test_engine_remedies.py)": [
        _at("cli/failures.py:_too_many_files"),
    ],
    "the same advice is executed for the first batch (test_engine_remedies.py)": [
        _at("cli/failures.py:explain_error", "compare in_channels"),
    ],
    "needs published weights or the whole data set; test_reproduce.py, test_partial.py": [
        _at("engine/reproduce.py:_check_images", "--any-images"),
        _at("inference/load.py:published_config", "train from it"),
    ],
    "needs a GPU": [
        _at("inference/runtimes.py:_open_onnx", "onnxruntime-gpu"),
        _at("inference/runtimes.py:_open_openvino", "use device cpu"),
    ],
    "needs another installation": [
        _at("engine/reproduce.py:config_of", "install the package again"),
        _at("weights/torch_files.py:read_torch", "an old PyTorch"),
    ],
    "the same advice is executed for scores of one class a pixel (test_evaluation_remedies.py)": [
        _at("evaluation/multilabel.py:process", "after Resize"),
        _at("evaluation/multilabel.py:evaluate", "check the label files"),
        _at("evaluation/multilabel.py:_planes", "seg_map_path"),
    ],
    "the same advice is executed for configs of prepare-data custom and of checkpoints": [
        _at("engine/fit/text.py:_model", "take another config"),
        _at("engine/trained.py:_check_model"),
        _at("engine/trained.py:evaluated_folder", "evaluate it"),
    ],
    "no test does it yet": [
        _at("datasets/file_loading.py:refused", "use predict"),
        _at("datasets/label_map.py:_refuse_two_ways"),
        _at("datasets/transforms/loading.py:transform", "give the array"),
        _at("datasets/transforms/multilabel.py:load", "remove it"),
        _at("datasets/prepare/bands.py:_check_numbers", "--bands"),
        _at("datasets/prepare/bands.py:_measure", "--layout"),
        _at("datasets/prepare/custom.py:class_list", "see --ignore"),
        _at("datasets/prepare/custom.py:prepare_custom", "is for photos"),
        _at("datasets/prepare/planes.py:check_overlap", "--multilabel"),
        _at("datasets/prepare/planes.py:read_class_masks", "give the folder of images"),
        _at("datasets/prepare/planes.py:read_class_masks", "CLASS/NAME.png"),
        _at("datasets/prepare/planes.py:_written", "a config in text style"),
        _at("engine/fit/decide.py:_too_little_memory"),
        _at("engine/fit/decide.py:_length", "give more"),
        _at("engine/fit/steps.py:write_config"),
        _at("engine/fit/weights.py:_trained", "--base"),
        _at("engine/fit/weights.py:_published", "--base"),
        _at("export/int8.py:require_one_class", "export without it"),
        _at("export/network.py:_resize_step", "does not resize here"),
        _at("inference/video.py:predict_video", "--max-frames"),
        _at("models/multilabel.py:_targets", "load them by"),
        _at("models/segmentor.py:__init__", "set model.multilabel=True"),
        _at("cli/export_onnx.py:run", "is an exported file"),
        _at("cli/publish_model.py:run", "is an exported file"),
    ],
}
