# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mmengine.config import Config
from yapf.yapflib import yapf_api
from yapf.yapflib.yapf_api import FormatCode

from mmseg_resnest.engine.config import FormattedOnce, config_as_text

TEXTS = st.one_of(
    st.text(st.sampled_from("{}$'\"\\\n:_ #()[]^~*ab"), max_size=30),
    st.sampled_from(["{{ fileBasename }}", "{{$HOME:x}}", "{{ _base_.a }}", "{{{{", "\\{{"]),
    st.text(st.characters(codec="utf-8"), max_size=30),
)


@given(st.lists(TEXTS, min_size=1, max_size=4))
@example(["{{$X:[^~]*}}", "}}',open('canary','w')]#"])
@example(["{{{{{", "'{{$HOME:\"}}"])
def test_every_text_comes_back(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    folder = tmp_path_factory.mktemp("config")
    cfg = Config(dict(texts=texts, deep=dict(er=[dict(text=texts[0], number=1.5)])))
    (folder / "c.py").write_text(config_as_text(cfg), encoding="utf-8")
    again = Config.fromfile(folder / "c.py")
    assert again.to_dict() == cfg.to_dict()
    assert not Path("canary").exists()


def test_a_text_without_braces_is_mmengines() -> None:
    cfg = Config(dict(a=dict(b=[1, "x"])))
    assert config_as_text(cfg) == cfg.pretty_text


def test_numbers_without_a_literal_come_back(tmp_path: Path) -> None:
    values = dict(a=[math.inf, -math.inf, math.nan], b=dict(inf=1, nan="inf, nan"), nan=math.inf)
    (tmp_path / "c.py").write_text(config_as_text(Config(values)), encoding="utf-8")
    assert repr(Config.fromfile(tmp_path / "c.py").to_dict()) == repr(values)


def test_the_text_is_formatted_again_where_a_value_has_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    formatted = []

    def format_code(text: str, **options: object) -> tuple[str, bool]:
        formatted.append(text)
        return FormatCode(text, **options)

    monkeypatch.setattr(yapf_api, "FormatCode", format_code)
    cfg = Config(dict(a=dict(b=[1, "x"]), c=2))
    once = copy.deepcopy(FormattedOnce.of(cfg))
    assert once.pretty_text == once.dump() == copy.deepcopy(once).pretty_text
    assert len(formatted) == 1
    once.a.b.append(3)
    assert once.pretty_text == Config(dict(a=dict(b=[1, "x", 3]), c=2)).pretty_text
    assert once.to_dict() == dict(a=dict(b=[1, "x", 3]), c=2)
    assert cfg.pretty_text == Config(dict(a=dict(b=[1, "x"]), c=2)).pretty_text
