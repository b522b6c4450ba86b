# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A config as Python text that MMEngine reads back as it was."""

from __future__ import annotations

import io
import tokenize

from mmengine.config import Config


def config_as_text(cfg: Config) -> str:
    """The text of a config, for a file that will be read again: ``pretty_text`` without ``{{``.

    MMEngine replaces ``{{...}}`` in the text of a config before that runs, which would change a
    value or end the text it stands in; the second brace is written as an escape sequence.
    """
    text = cfg.pretty_text
    if "{{" not in text:
        return text
    starts = [0]
    for line in text.split("\n"):
        starts.append(starts[-1] + len(line) + 1)
    parts, done = [], 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.STRING:
            begin = starts[token.start[0] - 1] + token.start[1]
            end = starts[token.end[0] - 1] + token.end[1]
            parts += [text[done:begin], text[begin:end].replace("{{", "{\\x7b")]
            done = end
    return "".join([*parts, text[done:]])
