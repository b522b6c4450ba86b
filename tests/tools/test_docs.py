# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The code blocks of the README and the documentation are run, or checked against the code.

Python is executed and configs are loaded, in a folder that holds what the pages speak of. Commands
are parsed with the tool's own parser; the configs, options and names in them must exist; the quick
ones are run. A block that needs more than a machine has is marked in the page, just before it, with
``<!-- not run: REASON -->``: it is compiled, and what it imports of this project must exist.
"""

from __future__ import annotations

import ast
import functools
import importlib
import io
import json
import re
import runpy
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from markdown_it import MarkdownIt
from PIL import Image
from tool_runs import ROOT, RunTool, Trained

from mmseg_resnest.engine.config import find_config, load_config
from mmseg_resnest.engine.model import build_model
from mmseg_resnest.weights import catalogue, find
from mmseg_resnest_cli.main import COMMANDS, SCRIPTS, parser_of
from mmseg_resnest_cli.main import main as run_command
from mmseg_resnest_cli.package import copy_configs, list_configs

PAGES = [
    *(
        ROOT / name
        for name in ("README.md", "CONTRIBUTING.md", "data/README.md", "configs/README.md")
    ),
    *sorted((ROOT / "docs").glob("*.md")),
]
TOOLS = {*COMMANDS, "make-model-zoo"}
#: Commands that take no time: they are run.
QUICK = ("configs", "print-config", "weights list", "weights info")
#: What else a page may tell its reader to type.
PROGRAMS = (
    *("export", "git", "grep", "ln", "mkdir", "pip", "pre-commit", "source", ".", "cd", "curl"),
    *("docker", "apt", "sbatch", "tensorboard", "jupyter", "mim"),
)
SHELL = ("", "bash", "sh", "shell", "console")
OTHER = ("json", "text", "yaml", "toml", "{toctree}", "{eval-rst}", "dockerfile", "html")
_MARK = re.compile(r"<!-- not run: (.+?) -->")
FILE_NAME = re.compile(r"# (\w+\.py)\b")
SYNOPSIS = re.compile(r"\[-|[\w\]]\|\w|\.\.\.(?!py)")
_PLACEHOLDER = re.compile(r"[A-Z][A-Z_0-9]*$")


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    kind: str
    text: str
    mark: str | None

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    """The fenced and the indented blocks of a page."""
    found, mark = [], None
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        if token.type in ("fence", "code_block"):
            line = token.map[0] + 1
            found.append(Block(page, line, token.info.strip(), token.content, mark))
        marked = _MARK.search(token.content) if token.type == "html_block" else None
        mark = marked[1] if marked else None
    return found


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
PYTHON = [block for block in BLOCKS if block.kind == "python"]
COMMANDS = [
    block
    for block in BLOCKS
    if block.kind in SHELL and not block.text.splitlines()[0].endswith("/")  # a tree of files
]


def inline_commands() -> list[str]:
    """The commands within sentences and tables, each once; not the bare names of tools."""
    found = {
        part.content: None
        for page in PAGES
        for token in MarkdownIt().enable("table").parse(page.read_text(encoding="utf-8"))
        for part in token.children or []
        if part.type == "code_inline" and re.match(r"(mmseg-resnest|python tools/)", part.content)
    }
    return list(found)


def named(blocks: list[Block]) -> list:
    return [pytest.param(block, id=block.name) for block in blocks]


def test_every_block_is_of_a_known_kind() -> None:
    assert len(PYTHON) > 10 and len(COMMANDS) > 30
    for block in BLOCKS:
        assert block.kind in ("python", *SHELL, *OTHER), f"{block.name}: {block.kind}"
        if block.kind == "yaml":
            assert list(yaml.safe_load_all(block.text))
        if block.kind == "json":
            json.loads(block.text)


# ------------------------------------------------------------------------------------------------
# Links


@functools.cache
def anchors(page: Path) -> set[str]:
    """What ``#...`` can point at: the headings, as GitHub and the site name them."""
    tokens = MarkdownIt().parse(page.read_text(encoding="utf-8"))
    titles = [tokens[i + 1] for i, token in enumerate(tokens) if token.type == "heading_open"]
    texts = ["".join(part.content for part in title.children) for title in titles]
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in texts}


def links(page: Path) -> Iterator[str]:
    for token in MarkdownIt().enable("table").parse(page.read_text(encoding="utf-8")):
        for part in token.children or []:
            target = part.attrGet("href") or part.attrGet("src")
            if target:
                yield str(target)


def broken(page: Path, target: str) -> bool:
    if re.match(r"[a-z]+:", target):
        return not re.fullmatch(r"https?://[\w.-]+\.\w+(/\S*)?", target)
    file, _, anchor = target.partition("#")
    path = page.parent / file if file else page
    return not path.exists() or bool(anchor and anchor not in anchors(path))


@pytest.mark.parametrize("page", [pytest.param(p, id=str(p.relative_to(ROOT))) for p in PAGES])
def test_links(page: Path) -> None:
    """Files and headings exist; addresses are whole (nothing is fetched)."""
    assert not [target for target in links(page) if broken(page, target)]


def test_broken_links_are_found() -> None:
    page = ROOT / "docs" / "faq.md"
    assert not broken(page, "metrics.md#two-runs-compared")
    for target in ("metrics.md#no-such", "no_such.md", "#no-such", "https:/x.y/z"):
        assert broken(page, target)


# ------------------------------------------------------------------------------------------------
# Python


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages take for granted: configs, a config for one's own data, runs, a photo."""
    folder = tmp_path_factory.mktemp("docs")
    copy_configs(folder / "configs")
    (folder / "configs" / "custom").mkdir()
    (folder / "configs" / "custom" / "mine.py").write_text(
        '_base_ = "../fcn_resnest50_ade20k.py"\n'
        "model = dict(decode_head=dict(num_classes=3), auxiliary_head=dict(num_classes=3))\n"
    )
    for name in ("photo.jpg", "street.jpg"):
        Image.effect_noise((96, 72), 50).convert("RGB").save(folder / name)
    for config in ("fcn_resnest14_scenes", "fcn_resnest14_camvid"):
        work_dir = folder / "work_dirs" / config
        work_dir.mkdir(parents=True)
        model = build_model(load_config(config))
        for name in ("last.pth", "best.pth"):
            torch.save({"state_dict": model.state_dict()}, work_dir / name)
    for block in PYTHON:  # files that a page has written down, by the name in their first line
        first = FILE_NAME.match(block.text)
        if first:
            (folder / first[1]).write_text(block.text, encoding="utf-8")
    return folder


def is_config(block: Block) -> bool:
    return re.search(r"^(_base_|custom_imports) =", block.text, re.M) is not None


@pytest.mark.parametrize("block", named(PYTHON))
def test_python(block: Block, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = compile(block.text, block.name, "exec")
    if block.mark:
        check_imports(block.text)
        return
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    if is_config(block):
        path = folder / f"block_{abs(hash(block.name))}.py"
        path.write_text(block.text, encoding="utf-8")
        load_config(path)
    elif (first := FILE_NAME.match(block.text)) is not None:
        importlib.import_module(Path(first[1]).stem)
    else:
        exec(code, {"__name__": "block"})


def check_imports(text: str) -> None:
    """What a text imports of this project and its stack exists."""
    for node in ast.walk(ast.parse(text)):
        named = node.module if isinstance(node, ast.ImportFrom) else None
        # MMDetection is not in this environment; tests/detect runs what imports it.
        if named and named.startswith("mm") and not named.startswith("mmdet"):
            module = importlib.import_module(named)
            assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


# ------------------------------------------------------------------------------------------------
# Commands


def commands(text: str) -> Iterator[list[str]]:
    """The words of each simple command of a shell script; redirections and loops are left out."""
    for line in text.replace("\\\n", " ").splitlines():
        if SYNOPSIS.search(line):
            yield shlex.split(line, comments=True)
            continue
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;>()")
        lexer.whitespace_split, lexer.commenters = True, "#"
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word.strip("|&;()>") or not word:
                words.append(word)
                continue
            if words and words[0] not in ("for", "done", "while", "fi", "if"):
                yield words[1:] if words[0] in ("do", "then") else words
            words = ["export"] if ">" in word else []  # what follows is the name of a file


@functools.cache
def parser(name: str):
    return parser_of(name)


def all_options(of) -> set[str]:
    found = set(of._option_string_actions)
    for action in of._actions:
        if isinstance(action.choices, dict):
            for sub in action.choices.values():
                found |= all_options(sub)
    return found


def tool_call(words: list[str]) -> tuple[str, list[str]] | None:
    """The tool that a command runs and its arguments; None where it runs none."""
    for i, word in enumerate(words):
        script = re.fullmatch(r"(?:.*/)?tools/(\w+)\.(py|sh)", word)
        if script:
            assert (ROOT / "tools" / f"{script[1]}.{script[2]}").is_file(), f"there is no {word}"
            return script[1].replace("_", "-"), words[i + 1 :]
        if word in ("mmseg-resnest", "mmseg_resnest") and (i == 0 or words[i - 1] == "-m"):
            rest = words[i + 1 :]
            return (rest[0], rest[1:]) if rest else ("--help", [])
    return None


def check_command(words: list[str], folder: Path, run: bool) -> None:
    while words and re.match(r"\w+=", words[0]):
        words = words[1:]
    if not words:
        return
    call = tool_call(words)
    if call is not None:
        check_tool(*call, folder, run)
    elif words[0] == "make":
        jobs = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
        for word in words[1:]:
            assert "=" in word or word in jobs, f"make has no job {word}"
    elif words[0] == "bash":
        assert (ROOT / words[1]).is_file(), f"there is no {words[1]}"
    elif words[0] == "python":
        if words[1] == "-c":
            compile(words[2], "python -c", "exec")
        elif words[1] != "-m":
            assert (ROOT / words[1]).is_file(), f"there is no {words[1]}"
    else:
        assert words[0] in PROGRAMS, f"{words[0]}: no command that a page should name"


def check_tool(name: str, arguments: list[str], folder: Path, run: bool) -> None:
    if name in ("completion", "--help", "--version", "COMMAND"):
        return
    assert name in TOOLS, f"there is no tool {name}"
    if name in SCRIPTS:
        for word in arguments:
            check_config_name(word, folder, (".py",))
        return
    known = parser(name)
    if SYNOPSIS.search(" ".join(arguments)) or "--help" in arguments:
        options = {o for a in arguments for o in re.findall(r"--[a-z][\w-]*", a)}
        assert options <= all_options(known), options - all_options(known)
        return
    values = vars(known.parse_args(arguments))
    for key in ("config", "diff", "base"):
        if isinstance(values.get(key), str):
            check_config_name(values[key], folder, ("",))
    checkpoint = values.get("checkpoint")
    if checkpoint and not _PLACEHOLDER.match(checkpoint) and "/" not in checkpoint.strip("./"):
        assert checkpoint in catalogue() or Path(checkpoint).suffix, checkpoint
    for entry in [values.get("name"), *(values.get("names") or [])]:
        if name in ("weights", "reproduce") and entry and not _PLACEHOLDER.match(entry):
            assert Path(entry).suffix or entry.startswith("hf://") or find(entry)
    if values.get("cfg_options") and not _PLACEHOLDER.match(values["config"]):
        load_config(find_config(folder / values["config"]), values["cfg_options"])
    if run and " ".join([name, *arguments]).startswith(QUICK):
        if any(map(_PLACEHOLDER.match, arguments)):
            return
        with redirect_stdout(io.StringIO()) as said, pytest.raises(SystemExit) as ended:
            run_command(name, arguments)
        assert not ended.value.code
        assert said.getvalue()


def check_config_name(word: str, folder: Path, endings: tuple[str, ...]) -> None:
    if _PLACEHOLDER.match(word) or not word.endswith(endings):
        return
    # A run or a published model stands for its config and checkpoint.
    if word.startswith(("work_dirs/", "hf://")):
        return
    there = (folder / word).exists() or (ROOT / word).exists() or find_config(word).is_file()
    assert there or word in list_configs(), f"there is no config {word}"


@pytest.mark.parametrize("block", named(COMMANDS))
def test_commands(block: Block, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bash = subprocess.run(["bash", "-n"], input=block.text, text=True, capture_output=True)
    assert not bash.returncode, bash.stderr
    monkeypatch.chdir(folder)
    if "--copy configs" in block.text:
        monkeypatch.chdir(folder / "work_dirs")
    for words in commands(block.text):
        check_command(words, folder, run=block.mark is None)


def is_mention(name: str, arguments: list[str]) -> bool:
    """Whether a text names a tool, a part of it or options, and no whole command."""
    if name not in TOOLS or name in SCRIPTS or not arguments:
        return not arguments
    subs = (action.choices for action in parser(name)._actions if isinstance(action.choices, dict))
    parts = {sub for choices in subs for sub in choices if sub not in ("list", "verify")}
    return all(word.startswith("-") or word in parts for word in arguments)


def test_inline_commands(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    checked = 0
    for line in inline_commands():
        for words in commands(line.replace("DATASET", "scenes")):
            name, arguments = tool_call(words) or ("", [])
            if is_mention(name, arguments):
                options = {word for word in arguments if word.startswith("-")}
                assert not options or options <= all_options(parser(name))
            else:
                check_command(words, folder, run=True)
                checked += 1
    assert checked > 30


def test_the_checks_can_fail(folder: Path) -> None:
    for line in (
        "python tools/train.py configs/no_such_config.py",
        "python tools/no_such_tool.py",
        "python tools/train.py CONFIG --no-such-option",
        "python tools/train.py configs/fcn_resnest50_ade20k.py --cfg-options model.no_such_key=1",
        "mmseg-resnest weights info no_such_model",
        "python tools/predict.py CONFIG no_such_model photo.jpg --out out",
        "make no_such_job",
        "python tools/weights.py [--no-such-option]",
        "frobnicate",
    ):
        with pytest.raises(Exception, match=r"no[_ ]such|frobnicate|no-such"):
            check_command(next(commands(line)), folder, run=True)
    with pytest.raises(AssertionError):
        check_imports("from mmseg_resnest import no_such_name")


def test_the_whole_run_of_get_started(trained: Trained, run_tool: RunTool) -> None:
    """Its commands one after the other, for the toy config, which has been trained already."""
    page = ROOT / "docs" / "get_started.md"
    (block,) = (b for b in blocks_of(page) if "prepare-data scenes" in b.text)
    photo = next((trained.toy.scenes / "images" / "validation").iterdir())
    stand_in = {
        "fcn_resnest14_scenes": "toy.py",
        "work_dirs/fcn_resnest14_scenes/last.pth": str(trained.checkpoint),
        "work_dirs/fcn_resnest14_scenes": str(trained.work_dir),
        "photo.jpg": str(photo),
    }
    ran = []
    for program, name, *arguments in commands(block.text):
        assert program == "mmseg-resnest"
        if name in ("prepare-data", "train"):  # what the fixture has done
            continue
        run_tool(
            f"{name.replace('-', '_')}.py",
            *(stand_in.get(a, a) for a in arguments),
            cwd=trained.toy.folder,
        ).check()
        ran.append(name)
    assert ran == ["check-data", "test", "predict", "report"]
    assert (trained.toy.folder / "report.html").is_file()
    assert list((trained.toy.folder / "out").glob("*_overlay.*"))


def test_the_table_of_public_names_is_current() -> None:
    make_api = runpy.run_path(str(ROOT / "docs" / "make_api.py"))
    stated = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert stated == make_api["page"](), "run: python docs/make_api.py"
