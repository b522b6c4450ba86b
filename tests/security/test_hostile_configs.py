# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Configs in JSON and YAML are data: nothing in them runs, imports, reads or grows."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sandbox import Sandbox, tool

from mmseg_resnest.engine.config import load_config

pytestmark = pytest.mark.timeout(60)

LAUGHS = "a0: &a0 [ha, ha]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)
YAML = {
    "call": "a: !!python/object/apply:os.system [\"touch '{canary}'\"]\n",
    "new object": "a: !!python/object/new:os.system [\"touch '{canary}'\"]\n",
    "module": "a: !!python/module:{module}\n",
    "name": "a: !!python/name:{module}.Thing\n",
    "call of eval": 'a: !!python/object/apply:builtins.eval ["{code}"]\n',
    "tuple key": "? !!python/object/apply:os.system [\"touch '{canary}'\"]\n: 1\n",
    "aliases": LAUGHS,
    "alias of itself": "a: &a [*a]\n",
    "nested deep": "a: " + "[" * 50_000 + "]" * 50_000 + "\n",
    "nested mappings": "a: " + "{a: " * 20_000 + "1" + "}" * 20_000 + "\n",
    "a list": "- 1\n- 2\n",
    "text": "just text\n",
    "keys that are no text": "1: a\nnull: b\n[1, 2]: c\n",
    "tag": "a: !evil {}\n",
    "long number": "a: " + "9" * 100_000 + "\n",
}
#: As JSON, and as YAML of the same meaning.
TREES: dict[str, Any] = {
    "custom imports": {"custom_imports": {"imports": ["{module}"]}},
    "custom imports that may fail": {
        "custom_imports": {"imports": ["{module}"], "allow_failed_imports": True}
    },
    "base of Python": {"_base_": "evil.py"},
    "bases": {"_base_": ["evil.py"]},
    "base outside": {"_base_": "../outside/secret.txt"},
    "base of a data set": {"_base_": "{outside}/base.json"},
    "base of itself": {"_base_": "evil.json"},
    "base of a package": {"_base_": "mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py"},
    "base of a service": {"_base_": "http://127.0.0.1:9/evil.py"},
    "type of a program": {"model": {"type": "subprocess.Popen", "args": ["touch", "{canary}"]}},
    "type of a module": {"model": {"type": "{module}.Thing"}},
    "type of a scope": {"model": {"type": "{package}.Thing"}},
    "scope": {"model": {"type": "EncoderDecoder", "_scope_": "{package}"}},
    "default scope": {"default_scope": "{package}", "model": {"type": "EncoderDecoder"}},
    "hook of a module": {"custom_hooks": [{"type": "{module}.Thing"}]},
    "step of a module": {"train_pipeline": [{"type": "{module}.Thing"}]},
    "runner": {"runner_type": "{module}.Thing"},
    "environment": {"work_dir": "{{$HOME:x}}"},
    "base variable": {"work_dir": "{{_base_.model}}"},
    "reserved keys": {"filename": "x", "text": "y", "__class__": "os.system", "env_variables": 5},
    "deletion": {"_delete_": True},
    "methods": {"pop": 1, "get": 2, "items": 3, "keys": 4, "merge_from_dict": 5},
    "compile": {"compile": {"backend": "{module}"}},
    "launcher": {"env_cfg": {"dist_cfg": {"backend": "{module}.Thing"}}},
}


@pytest.fixture(autouse=True)
def bases(sandbox: Sandbox) -> None:
    """Python that a config may try to inherit from."""
    (sandbox.files / "evil.py").write_text(sandbox.code + "\n")
    (sandbox.outside / "base.json").write_text('{"secret": 1}')


def _texts(value: Any, seen: dict[int, Any]) -> Iterator[str]:
    """All texts of a tree, which may share its parts."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple) and id(value) not in seen:
        seen[id(value)] = value
        for item in (*value.keys(), *value.values()) if isinstance(value, dict) else value:
            yield from _texts(item, seen)


def check(path: Path, box: Sandbox) -> None:
    done = box.harmless(lambda: load_config(path), path.name, "config")
    if done.error is None:
        texts = set(_texts(done.value, {}))
        assert "secret" not in texts
        assert os.environ["HOME"] not in texts, "the environment was read"


@pytest.mark.parametrize("case", YAML)
def test_yaml(case: str, sandbox: Sandbox) -> None:
    path = sandbox.write("evil.yaml", sandbox.fill(YAML[case]))
    if case.startswith("nested"):  # a parser in C without a bound would end this process
        sandbox.survives(lambda: load_config(path))
    check(path, sandbox)


@pytest.mark.parametrize("case", TREES)
def test_trees(case: str, sandbox: Sandbox) -> None:
    for suffix in (".json", ".yml"):  # JSON is YAML
        check(sandbox.write(f"evil{suffix}", json.dumps(sandbox.fill(TREES[case]))), sandbox)


@pytest.mark.parametrize(
    "text",
    [b"", b"null", b"[]", b"5", b'"a"', b"\xff\xfe", b"{", b"[" * 200_000, b'{"a":' * 200_000,
     b'{"a": ' + b"9" * 100_000 + b"}", b"\0", b"\x80\x04."],
    ids=range(12),
)  # fmt: skip
def test_other_texts(text: bytes, sandbox: Sandbox) -> None:
    check(sandbox.write("evil.json", text), sandbox)


@pytest.mark.parametrize("case", ["custom imports", "base of Python", "type of a program",
                                  "type of a module", "scope"])  # fmt: skip
def test_commands_run_nothing_of_a_config(case: str, sandbox: Sandbox, subtests: Any) -> None:
    path = sandbox.write("evil.json", json.dumps(sandbox.fill(TREES[case])))
    for name in ("print-config", "train", "check-data"):
        with subtests.test(command=name):
            sandbox.harmless(lambda name=name: tool(name, path), "evil.json", "config")


def test_options_stay_text(sandbox: Sandbox) -> None:
    path = sandbox.write("good.json", '{"model": {"type": "EncoderDecoder"}, "work_dir": ""}')
    for value in (sandbox.code, "__import__('os')", "(1).__class__"):
        done = sandbox.harmless(lambda value=value: load_config(path, [f"work_dir={value}"]))
        assert done.error is not None or isinstance(done.value.work_dir, str)


@pytest.mark.parametrize("suffix", [".json", ".yaml"])
def test_a_plain_config_is_read(suffix: str, sandbox: Sandbox) -> None:
    text = '{"work_dir": "a b", "train_cfg": {"max_iters": 5}}'
    path = sandbox.write(f"good{suffix}", text)
    cfg = sandbox.harmless(lambda: load_config(path)).value
    assert (cfg.work_dir, cfg.train_cfg.max_iters) == ("a b", 5)
