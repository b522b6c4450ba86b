# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The command ``mmseg-resnest``: every tool of ``tools/`` as a subcommand, in any folder.

It lies beside the package because importing that takes seconds, which a list of commands should
not. The tools themselves are the scripts of ``tools/``, which the installed package holds where
OpenMMLab's ``mim`` looks for them, ``mmseg_resnest/.mim/tools``.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import importlib.util
import os
import re
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["main", "run_command"]

PROGRAM = "mmseg-resnest"
SHELLS = ("bash", "zsh", "tcsh")
# The order of the list; tools that are named nowhere come last.
GROUPS = {
    "Start": ("demo", "configs"),
    "Data": ("prepare-data", "check-data", "browse-data"),
    "Train and evaluate": (
        *("train", "dist-train", "slurm-train", "test", "dist-test"),
        *("reproduce", "compare-runs", "report", "benchmark"),
    ),
    "Use a model": ("predict", "demo-app", "export-onnx", "publish-model", "serve"),
    "Weights and configs": ("weights", "convert-checkpoint", "print-config"),
}
_OF_THE_REPOSITORY = {"make_model_zoo.py"}  # writes its pages

_COMPLETION = "completion"
_COMPLETION_HELP = f"""usage: {PROGRAM} completion bash|zsh|tcsh

Print what teaches a shell to complete the commands and their options.

  bash   {PROGRAM} completion bash > ~/.local/share/bash-completion/completions/{PROGRAM}
  zsh    {PROGRAM} completion zsh > DIR/_{PROGRAM}      (DIR: a folder of $fpath, before compinit)
  tcsh   {PROGRAM} completion tcsh | source /dev/stdin"""


def package_folder() -> Path:
    """Where the package lies, found without importing it."""
    spec = importlib.util.find_spec("mmseg_resnest")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def tools() -> dict[str, Path]:
    """The script of each subcommand, by the name of that."""
    return {
        file.stem.replace("_", "-"): file
        for file in sorted((package_folder() / ".mim" / "tools").iterdir())
        if file.suffix in (".py", ".sh")
        and not file.name.startswith("_")
        and file.name not in _OF_THE_REPOSITORY
    }


def summary(tool: Path) -> str:
    """The first sentence of what a script says of itself, read without running it."""
    text = tool.read_text(encoding="utf-8")
    if tool.suffix == ".py":
        text = ast.get_docstring(ast.parse(text)) or ""
    else:
        comments = [line[2:] for line in text.splitlines() if line.startswith("# ")]
        text = comments[1] if len(comments) > 1 else ""
    sentence = re.split(r"[.:;](?:\s|$)", text, maxsplit=1)[0]
    return " ".join(sentence.split())


def usage() -> str:
    """The list of commands."""
    found = tools()
    listed = {name for names in GROUPS.values() for name in names}
    groups = {**GROUPS, "More": tuple(name for name in found if name not in listed)}
    width = max(map(len, found))
    lines = [
        f"usage: {PROGRAM} COMMAND [arguments]",
        "",
        "ResNeSt for semantic segmentation: the published models, recipes and protocol.",
    ]
    for title, names in groups.items():
        there = [name for name in names if name in found]
        if there:
            lines += ["", title]
            lines += [f"  {name:<{width}}  {summary(found[name])}" for name in there]
    return "\n".join(
        [
            *lines,
            "",
            f"{PROGRAM} COMMAND --help     arguments and examples of one",
            f"{PROGRAM} completion bash    completion of commands and options: bash, zsh, tcsh",
            f"{PROGRAM} --version",
            "",
            f"First steps: {PROGRAM} demo",
        ]
    )


def load_tool(tool: Path) -> Any:
    """The module of a Python tool."""
    # What the scripts import first makes a clone's package found; here it has been.
    sys.modules.setdefault("_checkout", types.ModuleType("_checkout"))
    spec = importlib.util.spec_from_file_location(f"_mmseg_resnest_{tool.stem}", tool)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def completion(shell: str) -> str:
    """The completion script of a shell.

    Args:
        shell: One of :data:`SHELLS`.
    """
    import shtab

    from mmseg_resnest.engine.cli import parser_of

    top = argparse.ArgumentParser(PROGRAM)
    top.add_argument("--version", action="store_true", help="print the version")
    commands = top.add_subparsers(dest="command")
    for name, tool in tools().items():
        about = summary(tool)
        if tool.suffix == ".sh":
            parser = commands.add_parser(name, help=about)
            parser.add_argument("arguments", nargs="*", help="see --help").complete = shtab.FILE  # type: ignore[attr-defined]
            continue
        sys.argv = [f"{PROGRAM} {name}"]
        try:
            parser = parser_of(load_tool(tool).main)
        except ImportError:  # of an extra that is not installed: complete its name only
            commands.add_parser(name, help=about)
            continue
        commands.add_parser(name, help=about, add_help=False)
        commands.choices[name] = parser
        _complete_paths(parser, shtab)
    commands.add_parser(_COMPLETION, help="print a completion script").add_argument(
        "shell", choices=SHELLS
    )
    return shtab.complete(top, shell)


def _complete_paths(parser: argparse.ArgumentParser, shtab: Any) -> None:
    """Mark the arguments that are files and folders, as their names say."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                _complete_paths(sub, shtab)
        elif action.choices is None and action.nargs != 0:
            metavar = action.metavar if isinstance(action.metavar, str) else ""
            name = f"{metavar} {action.dest}".upper()
            if re.search(r"\b(DIR|FOLDER|WORK_DIRS?)\b", name):
                action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
            elif re.search(
                r"\b(CONFIG|CHECKPOINT|FILE(\.\w+)?|INPUT|SOURCE|PATH|SRC|DST|BASE|OUT)\b", name
            ):
                action.complete = shtab.FILE  # type: ignore[attr-defined]


def run_command(argv: Sequence[str]) -> int:
    """Run a subcommand; a tool ends the process itself.

    Args:
        argv: The arguments of the command line.

    Returns:
        The exit code of what is no tool: 0, or 2 for a command that does not exist.
    """
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    name, rest = argv[0].replace("_", "-"), list(argv[1:])
    if name in ("--version", "-V"):
        text = (package_folder() / "version.py").read_text(encoding="utf-8")
        values = [n.value for n in ast.parse(text).body if isinstance(n, ast.Assign)]
        print(f"{PROGRAM} {ast.literal_eval(values[0])}")
        return 0
    if name == _COMPLETION:
        if len(rest) == 1 and rest[0] in SHELLS:
            print(completion(rest[0]))
            return 0
        print(_COMPLETION_HELP, file=sys.stderr if rest not in (["-h"], ["--help"]) else None)
        return 0 if rest in (["-h"], ["--help"]) else 2
    found = tools()
    if name not in found:
        near = difflib.get_close_matches(name, found, n=2, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        print(f"error: {argv[0]} is no command{hint} (see: {PROGRAM} --help)", file=sys.stderr)
        return 2
    tool = found[name]
    if tool.suffix == ".sh":
        environment = {"PYTHON": sys.executable, **os.environ}
        os.execvpe("bash", ["bash", str(tool), *rest], environment)
    # What the tool's help, hints and errors call it; see mmseg_resnest.engine.cli.as_invoked.
    sys.argv = [f"{PROGRAM} {name}", *rest]
    module = load_tool(tool)
    from mmseg_resnest.engine.cli import run_tool

    run_tool(module.main, rest)


def main() -> None:
    """The entry point."""
    try:
        code = run_command(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # mmseg-resnest | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    sys.exit(code)


if __name__ == "__main__":
    main()
