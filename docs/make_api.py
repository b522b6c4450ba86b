# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Writes docs/api.md: the public names with the first sentence of their docstrings.

    python docs/make_api.py

The site (docs/conf.py) adds the full docstrings below each table.
"""

import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType

PAGE = Path(__file__).with_name("api.md")
#: Headings with their modules.
ROOMS = {
    "The package": ("mmseg_resnest", "mmseg_resnest.errors"),
    "Inference": ("mmseg_resnest.inference", "mmseg_resnest.inference.label_errors"),
    "Engines": ("mmseg_resnest.runtimes", "mmseg_resnest.inference.engine"),
    "Models": ("mmseg_resnest.models",),
    "Weights": ("mmseg_resnest.weights",),
    "Data sets": ("mmseg_resnest.datasets",),
    "Evaluation": ("mmseg_resnest.evaluation",),
    "Configs and runs": (
        *("mmseg_resnest.engine.config", "mmseg_resnest.engine.resolve"),
        *("mmseg_resnest.engine.training", "mmseg_resnest.engine.testing"),
    ),
}
_HEAD = """# API

The names that are meant to be used from outside; everything else may change. Made by
`python docs/make_api.py`; `help(NAME)` in Python has arguments, shapes, units and errors.
"""


def public_names(module: str) -> list[str]:
    """The names of ``__all__`` but for modules, or else those that the module defines."""
    found = importlib.import_module(module)
    names = getattr(found, "__all__", None)
    if names is not None:
        return [name for name in names if not isinstance(getattr(found, name), ModuleType)]
    return [
        name
        for name, value in vars(found).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module
    ]


def first_sentence(value: object) -> str:
    """Of a docstring, in Markdown; the type of a value that has none."""
    if not (inspect.isclass(value) or inspect.isroutine(value)):
        return f"a value, `{type(value).__name__}`"
    text = " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split())
    text = re.sub(r":\w+:`~?\.*([^`]+)`", r"`\1`", text).replace("``", "`")
    return text.replace("|", "\\|")


def page() -> str:
    """The text of docs/api.md."""
    lines = [_HEAD]
    for heading, modules in ROOMS.items():
        lines.append(f"## {heading}\n")
        for module in modules:
            found = importlib.import_module(module)
            lines += [f"| `{module}` | |", "|---|---|"]
            lines += [
                f"| `{name}` | {first_sentence(getattr(found, name))} |"
                for name in public_names(module)
            ]
            lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
