# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Every message that tells what to do has a test that does it, or a reason why none does."""

from __future__ import annotations

import pytest
from advice import Site, advice, remedied, sites
from not_executed import REASONS


def _same(site: Site, where: str, words: tuple[str, ...]) -> bool:
    return site.where == where and all(word in site.text for word in words)


def _left() -> list[str]:
    """The messages without a case and without a reason."""
    return [
        f"{site.where}, line {site.line}: {site.text}"
        for site in advice()
        if not any(_same(site, *case) for case in remedied())
        and not any(_same(site, *key) for keys in REASONS.values() for key in keys)
    ]


def test_advice_is_executed() -> None:
    """New messages may wait for their case, a few of them."""
    left = _left()
    assert len(left) < len(advice()) / 20, "\n".join(["no test does what these say:", *left])


@pytest.mark.long
def test_every_advice_is_executed() -> None:
    left = _left()
    assert not left, "\n".join(["no test does what these say:", *left])


def test_what_is_not_executed_is_there() -> None:
    for keys in REASONS.values():
        for key in keys:
            assert any(_same(site, *key) for site in advice()), key


def test_cases_are_of_messages_that_there_are() -> None:
    where = {site.where for site in sites()}
    assert {case[0] for case in remedied()} <= where
