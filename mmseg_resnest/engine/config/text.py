# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A config as Python text that MMEngine reads back as it was."""

from __future__ import annotations

import io
import itertools
import re
import tokenize
from typing import cast

from mmengine.config import Config

from ..._stack import config_tree


class FormattedOnce(Config):
    """A config whose text is formatted again only where its values have changed.

    A run writes the text to its log, its work folder, its curves and its checkpoints.
    """

    @classmethod
    def of(cls, cfg: Config) -> FormattedOnce:
        """The same values, shared with ``cfg``."""
        made = cls.__new__(cls)
        made.__setstate__(cfg.__getstate__())
        return made

    @property
    def pretty_text(self) -> str:
        """As MMEngine's."""
        values = repr(config_tree(self))
        known = self.__dict__.get("_formatted", (None, ""))
        if known[0] != values:
            known = values, super().pretty_text
            self.__dict__["_formatted"] = known  # as an attribute it would be a key of the config
        return cast(str, known[1])


def config_as_text(cfg: Config) -> str:
    """The text of a config, for a file that will be read again: ``pretty_text``, made readable.

    MMEngine replaces ``{{...}}`` in the text of a config before that runs, which would change a
    value or end the text it stands in; the second brace is written as an escape sequence. Its text
    has ``inf`` and ``nan`` for numbers of which Python has no literal.
    """
    text = cfg.pretty_text
    if "{{" not in text and not re.search(r"\b(inf|nan)\b", text):
        return text
    starts = [0]
    for line in text.split("\n"):
        starts.append(starts[-1] + len(line) + 1)
    parts, done = [], 0
    tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    for token, following in itertools.pairwise(tokens):
        new = token.string
        if token.type == tokenize.STRING:
            new = new.replace("{{", "{\\x7b")
        elif new in ("inf", "nan") and following.string != "=":  # not the name of a key
            new = f"float({new!r})"
        if new != token.string:
            begin = starts[token.start[0] - 1] + token.start[1]
            parts += [text[done:begin], new]
            done = starts[token.end[0] - 1] + token.end[1]
    return "".join([*parts, text[done:]])
