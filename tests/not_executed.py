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
    "the same advice is executed for the limit of open files (test_machine_remedies.py)": [
        _at("cli/failures.py:_too_many_files"),
    ],
    "the same advice is executed for the first batch (test_engine_remedies.py)": [
        _at("cli/failures.py:explain_error", "compare in_channels"),
    ],
    "needs published weights or the whole data set; test_reproduce.py, test_partial.py": [
        _at("engine/reproduce.py:_check_number", "--any-images"),
        _at("inference/load.py:published_config", "train from it"),
        _at("inference/load.py:published_config", "train a segmentation model"),
    ],
    "needs a GPU": [
        _at("runtimes/sessions.py:open_onnx", "onnxruntime-gpu"),
        _at("runtimes/sessions.py:open_openvino", "use device cpu"),
        _at("runtimes/engines.py:use_engine", "use device cpu"),
    ],
    "needs another installation": [
        _at("models/classification.py:", "install a pair"),
        _at("engine/reproduce.py:config_of", "install the package again"),
        _at("weights/torch_files.py:read_torch", "an old PyTorch"),
    ],
    "compiles for three quarters of an hour; make test-detect does it": [
        _at("models/detection.py:_import_operators"),
    ],
    "the same advice is executed for scores of one class a pixel (test_evaluation_remedies.py)": [
        _at("evaluation/multilabel.py:process", "after Resize"),
        _at("evaluation/multilabel.py:compute_metrics", "check the label files"),
        _at("evaluation/multilabel.py:_planes", "seg_map_path"),
    ],
    "the same advice is executed for configs of prepare-data custom and of checkpoints": [
        _at("engine/fit/text.py:_model", "take another config"),
        _at("engine/trained.py:_check_model"),
        _at("engine/trained.py:evaluated_folder", "evaluate it"),
    ],
}
