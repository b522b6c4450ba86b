# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The documentation as a site: `make docs` runs Sphinx on the repository's Markdown files.

The source folder is the repository, not docs/, so that links between the files mean the same in the
repository and on the site; links to configs and code become downloads.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

from make_api import ROOMS  # noqa: E402
from mmcv.transforms.utils import cache_randomness  # noqa: E402

import mmseg_resnest  # noqa: E402

# Rooms whose names come from modules below them.
_ROOMS = ("inference", "models", "weights", "datasets", "evaluation")
_IMPORTED = {f"mmseg_resnest.{room}": ["   :imported-members:"] for room in _ROOMS}
_IMPORTED["mmseg_resnest.inference"].append("   :exclude-members: ImageInput")

# mmcv's decorator of methods can be asked for by an instance only; autodoc asks the class.
_of_instance = cache_randomness.__get__
cache_randomness.__get__ = lambda self, instance, owner=None: (
    self if instance is None else _of_instance(self, instance, owner)
)

project = "mmseg-resnest"
author = "mmseg-resnest authors"
project_copyright = "mmseg-resnest authors, Apache License 2.0"
release = version = mmseg_resnest.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
root_doc = "docs/index"
include_patterns = ["docs/**.md", "README.md", "*/README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
exclude_patterns = [
    ".*",
    "build",
    "data/*/**",
    "work_dirs",
    "docs/notebooks",
    "benchmarks/README.md",
]
myst_heading_anchors = 4
highlight_language = "none"  # indented blocks are commands

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # a NamedTuple's fields would be described twice

html_theme = "furo"
html_title = "mmseg-resnest"
html_extra_path = ["site"]  # index.html, which leads to docs/index.html
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
copybutton_exclude = ".linenos, .gp, .go"


def _toctree(app, docname, source):
    """Take up pages that are there, and leave out those that are not."""
    if docname != root_doc:
        return
    pages = {p.stem for p in (ROOT / "docs").glob("*.md")} - {"index"}
    lines = source[0].splitlines()
    kept = [n for n in lines if not re.fullmatch(r"[a-z_]+", n) or n in pages]
    more = sorted(pages - set(kept))
    place = kept.index("<!-- other pages -->")
    kept[place : place + 1] = [
        "```{toctree}",
        ":hidden:",
        ":caption: More",
        "",
        *more,
        "```",
    ] * bool(more)
    source[0] = "\n".join(kept) + "\n"


def _reference(app, docname, source):
    """Add the full docstrings to docs/api.md, which has tables for those who read it elsewhere."""
    if docname != "docs/api":
        return
    lines = ["", "## In full", ""]
    for heading, modules in ROOMS.items():
        lines += [f"### {heading}: all of it", "", "```{eval-rst}"]
        for module in modules:
            if module == "mmseg_resnest":
                lines.append(".. py:module:: mmseg_resnest")
            else:
                lines += [f".. automodule:: {module}", *_IMPORTED.get(module, ())]
            lines.append("")
        lines += ["```", ""]
    source[0] += "\n".join(lines)


def setup(app):
    """Called by Sphinx."""
    app.connect("source-read", _toctree)
    app.connect("source-read", _reference)
