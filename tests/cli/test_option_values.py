# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Values of options that no command can use are refused before it does anything."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import pytest

from mmseg_resnest_cli.main import COMMANDS, SCRIPTS, parser_of
from mmseg_resnest_cli.options import UsageError
from mmseg_resnest_cli.package import copy_configs


def _numbers(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """The options of a parser, and of those below it, that take a number."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _numbers(inner)
        elif action.type is not None and action.help != argparse.SUPPRESS:
            values = [_convert(action, text) for text in ("0.5", "12", "200")]
            if any(type(value) in (int, float) for value in values):
                yield action


def _convert(action: argparse.Action, text: str) -> object:
    try:
        return action.type(text)  # type: ignore[operator,misc]
    except (argparse.ArgumentTypeError, ValueError):
        return None


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in SCRIPTS])
def test_numbers_are_in_a_range(name: str) -> None:
    for action in _numbers(parser_of(name)):
        if action.dest == "nodata":  # the value of pixels, whatever it is
            continue
        for text in ("nan", "inf", "-inf", "-1", "1e400", "1" + "0" * 40):
            assert _convert(action, text) is None, (action.option_strings, text)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("benchmark toy.py --batch-size 0", "--batch-size"),
        ("browse-data toy.py --seed -1", "--seed"),
        ("serve toy.py a.pth --port 70000", "--port"),
        ("predict toy.py a.pth a.png --out o --tile 5", "--tile"),
        ("predict toy.py a.pth a.png --out EMPTY", "--out"),
        ("train toy.py --work-dir EMPTY", "--work-dir"),
        ("classify crops toy.py --out EMPTY", "--out"),
        ("report EMPTY", "an argument"),
    ],
)
def test_an_error_names_the_option(words: str, named: str) -> None:
    name, *rest = ("" if word == "EMPTY" else word for word in words.split())
    with pytest.raises(UsageError, match=named):
        parser_of(name).parse_args(rest)


def test_configs_are_not_copied_below_a_file(tmp_path) -> None:
    (tmp_path / "file").touch()
    for wrong in (tmp_path / "file" / "configs", tmp_path / ("n" * 300)):
        with pytest.raises(UsageError, match="--copy"):
            copy_configs(wrong)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
