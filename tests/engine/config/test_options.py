# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mmengine.config import Config, DictAction
from user_errors import raises_user_error

from mmseg_resnest.engine.config import config_as_text, load_config, parse_cfg_options
from mmseg_resnest.engine.config.options import apply_options
from mmseg_resnest_cli.options import ArgumentParser, add_config_options

ROOT = Path(__file__).resolve().parents[3]
CAMVID = ROOT / "configs" / "fcn_resnest14_camvid.py"


def read(text: str) -> Any:
    return parse_cfg_options([f"a.b={text}"])["a.b"]


def read_by_mmengine(text: str) -> Any:
    parser = argparse.ArgumentParser()
    parser.add_argument("--options", nargs="+", action=DictAction)
    return parser.parse_args(["--options", f"a.b={text}"]).options["a.b"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        # as MMEngine
        ("3", 3), ("1e-3", 1e-3), ("-1", -1), ("True", True), ("false", False), ("None", None),
        ("1_000", 1000), ("0x10", "0x10"), ("none", "none"), ("~/data", "~/data"),
        ("text=more", "text=more"), ("", ""), ("[]", []), ("()", ()), ("(1)", (1,)),
        ("[1,2]", [1, 2]), ("(1, 2)", (1, 2)), ("x,y", ["x", "y"]), ("x,", ["x"]),
        ("[(a,b), [1,2], false]", [("a", "b"), [1, 2], False]), ("[[1]]", [[1]]),
        ("['a', \"b\"]", ["a", "b"]), ("iter_{}.pth", "iter_{}.pth"), ("{}.pth", "{}.pth"),
        ("don't", "don't"), (r"C:\new", r"C:\new"),
        # spaces within text
        ("my data/mine", "my data/mine"), ("[traffic light,car]", ["traffic light", "car"]),
        (" a b , c ", ["a b", "c"]), ("data (old)/x", "data (old)/x"),
        # quoted text
        ("'a, b'", "a, b"), ("['a, (b', c]", ["a, (b", "c"]), ("'1'", "1"), ("''", ""),
        (r"'it\'s'", "it's"), ('"a\\tb\\d"', "a\tb\\d"), ("['']", [""]), ("'a=b, c=d'", "a=b, c=d"),
        # dictionaries
        ("{}", {}), ("dict()", {}), ("{type: SGD, lr: 1e-3}", {"type": "SGD", "lr": 1e-3}),
        ("{'type': 'SGD', \"lr\": 0.1,}", {"type": "SGD", "lr": 0.1}), ("{a:1}", {"a": 1}),
        ("dict(type=SGD, lr=0.1)", {"type": "SGD", "lr": 0.1}), ("{1: x}", {1: "x"}),
        ("dict(type='x, y', a=dict(b=[1, (2,)]))", {"type": "x, y", "a": {"b": [1, (2,)]}}),
        ("[dict(type=A), {type: B, c: null}]", [{"type": "A"}, {"type": "B", "c": None}]),
        ("dict(url=http://x:80/y?a=b)", {"url": "http://x:80/y?a=b"}),
        ("{a: http://x:80, 'b.c': {d: e f}}", {"a": "http://x:80", "b.c": {"d": "e f"}}),
    ],
)  # fmt: skip
def test_values_are_read(text: str, value: object) -> None:
    assert read(text) == value
    assert repr(read(text)) == repr(value)  # kinds, too


_TEXTS = st.text(st.characters(exclude_categories=[]), max_size=6)
_LEAVES = _TEXTS | st.integers(-(10**30), 10**30) | st.floats() | st.booleans() | st.none()
_KEYS = _TEXTS | st.integers() | st.booleans() | st.none()
_VALUES = st.recursive(
    _LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(_KEYS, inner, max_size=3)
    ),
    max_leaves=8,
)


def same(one: Any, other: Any) -> bool:
    return repr(one) == repr(other)  # 1 is not True, nan is nan


@given(_VALUES)
def test_what_python_writes_is_read_back(value: Any) -> None:
    assert same(read(repr(value)), value)


@given(st.text("ab1-+.e_',\"()[]{}:= \\dict", max_size=25) | st.text(max_size=20))
def test_any_text_is_a_value_or_one_error(text: str) -> None:
    try:
        changed([f"+model.x={text}"], model={"type": "A"})
    except Exception as error:
        with raises_user_error("argument", "--cfg-options +model.x"):
            raise error from None


_WORDS = st.text("abcxyzTRUEtrue019-+._/\\:=*%é", min_size=1, max_size=6) | st.sampled_from(
    ["True", "false", "None", "1", "-2", "3.5", "1e-3", "inf", "1_0", "don't", "http://a:1", "a=b"]
)
_NESTED = st.recursive(
    _WORDS,
    lambda inner: st.builds(
        lambda items, form: form.format(",".join(items)),
        st.lists(inner, min_size=0, max_size=4),
        st.sampled_from(["[{}]", "({})"]),
    ),
    max_leaves=8,
)
_SPACED = _NESTED | st.builds(  # MMEngine takes [a],[b] for one list, and never ends
    lambda first, rest, comma: comma.join([first, *rest]),
    _WORDS,
    st.lists(_NESTED, max_size=3),
    st.sampled_from([",", ", ", " , "]),
)


@given(_SPACED)
def test_mmengines_notation_keeps_its_meaning(text: str) -> None:
    """What differs on purpose: spaces within text, quoted text, braces, null, lost characters."""
    assert same(read(text), read_by_mmengine(text))


@pytest.mark.parametrize(
    "option",
    [
        *("a", "=3", "a..b=3", " a=3", "+=1", "a=[1", "a=[1,(2]", "a=x)", "a={b: 1", "a={b: 1)"),
        *("a='b", "a='b'c", "a=['b]", "a={b}", "a={1, 2}", "a={: 1}", "a={[1]: 2}", "a={([],): 1}"),
        *("a=dict(1)", "a=dict(b=1, b=2)", "a={b: 1, b: 2}", "a=dict(**b)", "a=dict(b.c=1)"),
        *("a=" + 5000 * "[", "a=" + 5000 * "[" + 5000 * "]", "a=" + 60 * "{a: " + 60 * "}"),
    ],
)
def test_malformed_options(option: str) -> None:
    with raises_user_error("argument", f"--cfg-options {option}"):
        load_config(CAMVID, [option])


def test_nothing_is_executed(tmp_path: Path) -> None:
    text = f"__import__('pathlib').Path({str(tmp_path / 'x')!r}).touch()"
    for value in (text, f"[{text}]", f"dict(a={text})", f"{{a: {text}}}"):
        read(value)
    assert not list(tmp_path.iterdir())


def test_the_option_may_be_repeated() -> None:
    parser = ArgumentParser()
    add_config_options(parser)
    args = parser.parse_args(["--cfg-options", "a=1", "b=2", "--cfg-options", "c=3"])
    assert parse_cfg_options(args.cfg_options) == {"a": 1, "b": 2, "c": 3}


def test_of_a_key_given_twice_the_last_one_counts(caplog: pytest.LogCaptureFixture) -> None:
    assert parse_cfg_options(["a=1", "b=2", "a=3"]) == {"a": 3, "b": 2}
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def changed(options: list[str] | dict[str, Any], **values: Any) -> Config:
    cfg = Config({"default_scope": "mmseg_resnest", **values})
    apply_options(cfg, options if isinstance(options, dict) else parse_cfg_options(options))
    return cfg


HOOKS = [dict(type="EMAHook", momentum=0.1), dict(type="NonFiniteHook")]


@pytest.mark.parametrize(
    ("options", "hooks"),
    [
        (["custom_hooks.0.momentum=0.2"], [dict(type="EMAHook", momentum=0.2), HOOKS[1]]),
        (["custom_hooks.1={type: EMAHook}"], [HOOKS[0], dict(type="EMAHook")]),
        (["custom_hooks.0={_delete_: true, type: A}"], [dict(type="A"), HOOKS[1]]),
        (["custom_hooks.0.momentum=1", "custom_hooks.1.on_nonfinite=skip"],
         [dict(type="EMAHook", momentum=1), dict(type="NonFiniteHook", on_nonfinite="skip")]),
        (["custom_hooks=[dict(type=A, b='c, d')]"], [dict(type="A", b="c, d")]),
        (["custom_hooks=None"], None),
        (["custom_hooks.0._delete_=True", "custom_hooks.0.type=A"], [dict(type="A"), HOOKS[1]]),
        ({"custom_hooks": {"1": dict(begin=3)}}, [HOOKS[0], dict(type="NonFiniteHook", begin=3)]),
    ],
)  # fmt: skip
def test_places_in_lists(options: Any, hooks: Any) -> None:
    cfg = changed(options, custom_hooks=HOOKS)
    assert cfg.custom_hooks == hooks
    assert all(one.type for one in cfg.custom_hooks or ())  # as MMEngine's dictionaries
    assert HOOKS[0]["momentum"] == 0.1


def test_tuples_and_numbers_in_lists() -> None:
    cfg = changed(
        ["model.sizes.1=5", "model.milestones.0=7", "model.deep.0.1.x=2"],
        model=dict(sizes=(1, 2), milestones=[1, 2], deep=[[0, dict(x=1)]]),
    )
    assert cfg.model == dict(sizes=(1, 5), milestones=[7, 2], deep=[[0, dict(x=2)]])


SGD = dict(optimizer=dict(type="SGD", lr=0.1, momentum=0.9))


@pytest.mark.parametrize(
    ("options", "optimizer"),
    [
        (["optim_wrapper.optimizer={lr: 1}"], dict(type="SGD", lr=1, momentum=0.9)),
        (["optim_wrapper={optimizer: {lr: 1}}"], dict(type="SGD", lr=1, momentum=0.9)),
        (["optim_wrapper.optimizer=dict(_delete_=True, type=AdamW)"], dict(type="AdamW")),
        (["optim_wrapper=dict(optimizer=dict(_delete_=True, type=AdamW))"], dict(type="AdamW")),
        (["optim_wrapper.optimizer.betas=(0.8,0.9)", "optim_wrapper.optimizer.type=AdamW",
          "optim_wrapper.optimizer._delete_=True"], dict(type="AdamW", betas=(0.8, 0.9))),
        (["optim_wrapper.optimizer={type: AdamW}", "optim_wrapper.optimizer._delete_=True"],
         dict(type="AdamW")),
        (["optim_wrapper.optimizer={lr: 1}", "optim_wrapper.optimizer.lr=2"],
         dict(type="SGD", lr=2, momentum=0.9)),
        (["optim_wrapper.optimizer.lr=2", "optim_wrapper.optimizer={lr: 1}"],
         dict(type="SGD", lr=1, momentum=0.9)),
        (["optim_wrapper.optimizer._delete_=False"], SGD["optimizer"]),
    ],
)  # fmt: skip
def test_dictionaries_are_merged_as_where_a_config_inherits(options: Any, optimizer: Any) -> None:
    cfg = changed(options, optim_wrapper=SGD)
    assert cfg.optim_wrapper.optimizer == optimizer
    # MMEngine's own merging agrees where it reads the same
    assert Config.fromstring(config_as_text(cfg), ".py").optim_wrapper.optimizer == optimizer


def test_one_that_two_keys_share_is_changed_for_the_one() -> None:
    """``test_dataloader = val_dataloader`` in a config file."""
    shared = dict(batch_size=1, dataset=dict(type="ScenesDataset", pipeline=[dict(type="A", b=1)]))
    cfg = Config({})
    cfg.val_dataloader = shared
    dict.__setitem__(cfg._cfg_dict, "test_dataloader", cfg.val_dataloader)
    apply_options(cfg, {"test_dataloader.dataset.pipeline.0.b": 2})
    assert cfg.val_dataloader == shared
    assert cfg.test_dataloader.dataset.pipeline[0] == dict(type="A", b=2)


def test_modules_of_custom_imports_are_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hook_of_a_user.py").write_text(
        "from mmengine.hooks import Hook\nfrom mmseg_resnest.registry import HOOKS\n"
        "@HOOKS.register_module()\nclass HookOfAUser(Hook):\n    pass\n"
    )
    options = ["custom_hooks=[{type: HookOfAUser}]", "custom_imports.imports=[hook_of_a_user]"]
    with raises_user_error("config-value", "--cfg-options custom_imports"):
        load_config(CAMVID, options)
    monkeypatch.syspath_prepend(tmp_path)
    assert load_config(CAMVID, options).custom_hooks[0].type == "HookOfAUser"


def test_a_mapping_is_taken_as_it_is() -> None:
    cfg = load_config(CAMVID, {"data_root": "my, data", "train_cfg": dict(max_iters=7)})
    assert cfg.train_dataloader.dataset.data_root == "my, data"
    assert (cfg.train_cfg.max_iters, cfg.train_cfg.type) == (7, "IterBasedTrainLoop")


def test_data_root_with_spaces_and_commas() -> None:
    for option, root in (("my data/mine", "my data/mine"), ("'a, b'", "a, b"), ("'7'", "7")):
        cfg = load_config(CAMVID, [f"data_root={option}"])
        assert cfg.test_dataloader.dataset.data_root == root
    for option in ("a, b", "7"):
        with raises_user_error("config-value", "--cfg-options data_root"):
            load_config(CAMVID, [f"data_root={option}"])


def test_a_new_key_that_nothing_reads_is_said(caplog: pytest.LogCaptureFixture) -> None:
    assert load_config(CAMVID, ["+mine=1"]).mine == 1
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_options_change_what_they_name() -> None:
    cfg = load_config(
        CAMVID,
        [
            "train_cfg.max_iters=7",
            "model.backbone.with_cp=True",  # not in the config, but an option of ResNeSt
            "optim_wrapper.clip_grad.max_norm=1",  # a new dictionary for an option of OptimWrapper
            "+model.test_cfg.anything=1",
            "default_hooks.checkpoint.interval=3",
        ],
    )
    assert cfg.train_cfg.max_iters == 7
    assert cfg.model.backbone.with_cp is True
    assert cfg.optim_wrapper.clip_grad == dict(max_norm=1)
    assert cfg.model.test_cfg.anything == 1
    assert cfg.default_hooks.checkpoint.interval == 3


@pytest.mark.parametrize(
    ("option", "code", "named"),
    [
        ("model.backbone.with_cpp=True", "config-key", "model.backbone.with_cp"),
        ("model.decode_head.chanels=3", "config-key", "model.decode_head.channels"),
        ("model.test_cfg.mod=slide", "config-key", "model.test_cfg.mode"),
        ("train_dataloader.num_worker=3", "config-key", "train_dataloader.num_workers"),
        ("num_classes=3", "config-key", "+num_classes="),
        ("model.backbone.arch.blocks=3", "config-key", "model.backbone.arch"),
        ("train_pipeline.99.type=x", "config-key", "train_pipeline"),
        ("train_cfg.max_iters=True", "config-value", "a number"),
        ("auto_scale_lr.enable=3", "config-value", "True or False"),
    ],
)
def test_options_that_would_do_nothing_are_refused(option: str, code: str, named: str) -> None:
    with raises_user_error(code, f"--cfg-options {option.partition('=')[0]}") as info:
        load_config(CAMVID, [option])
    assert named in info.value.message


def test_options_that_the_config_has_are_said(caplog: pytest.LogCaptureFixture) -> None:
    length = load_config(CAMVID).train_cfg.max_iters
    load_config(CAMVID, [f"train_cfg.max_iters={length + 1}"])
    assert not caplog.records
    load_config(CAMVID, [f"train_cfg.max_iters={length}", f"train_cfg=dict(max_iters={length})"])
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2 and all("changes nothing" in text for text in said)
