# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Tables of the results of benchmarks/run.py; makes docs/benchmarks.md of the committed ones.

python benchmarks/report.py            write docs/benchmarks.md
python benchmarks/report.py --check    only say whether it is up to date
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
RESULTS = ROOT / "benchmarks" / "results"
HEAD = """# Benchmarks

Made by `python benchmarks/report.py` from the files in `benchmarks/results/`, which
`python benchmarks/run.py [NAME ...]` writes. Each variant runs in its own process; the processes
take turns, and a ratio compares two runs of one turn. Times are the median and, in brackets, the
quartiles. Memory is the peak beyond what was there before. "Equal" is the share of labels that
equal the reference's, or 100 % where a section compares something else and it agrees.
"""


def _seconds(summary: dict[str, Any]) -> str:
    middle, low, high = (1e3 * summary[key] for key in ("median", "low", "high"))
    if middle >= 1e4:
        return f"{middle / 1e3:.1f} s ({low / 1e3:.1f} to {high / 1e3:.1f})"
    return f"{middle:.0f} ms ({low:.0f} to {high:.0f})"


def _ratio(summary: dict[str, Any]) -> str:
    return f"{summary['median']:.2f} ({summary['low']:.2f} to {summary['high']:.2f})"


def _bytes(count: int | None) -> str:
    return "not known" if count is None else f"{count / 2**20:.1f} MiB"


def _equal(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.4f} %"


def _memory(count: int | None) -> str:
    return "memory not known" if count is None else f"{count / 2**30:.0f} GiB"


def _part(share: float) -> str:
    return f"1/{round(1 / share, 1):g}" if share < 1 else f"{round(share, 2):g} times"


def _reached(short: list[str]) -> str:
    return f"not reached by {', '.join(short)}" if short else "reached by every case"


def _threads(variants: dict[str, Any]) -> str:
    """The threads of torch, of which most variants have the same number."""
    numbers = [figures["threads"] for figures in variants.values()]
    usual = max(set(numbers), key=numbers.count)
    others = [
        f"{variant} {one['threads']}"
        for variant, one in variants.items()
        if one["threads"] != usual
    ]
    text = f"{usual} thread{'' if usual == 1 else 's'}"
    return f"{text} ({', '.join(others)})" if others else text


def _per_second(figures: dict[str, Any]) -> str:
    rate = figures.get("images", 0) / figures["seconds"]["median"]
    return f"{rate:.3g}" if rate else ""


def _cost(name: str, form: Callable[[Any], str]) -> Callable[[dict[str, Any]], str]:
    return lambda figures: form(figures["costs"][name]) if "costs" in figures else ""


#: Columns of some comparisons: the key that they need, and the cell of a variant's figures.
_MORE: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "images/s": ("images", _per_second),
    "parameters": ("costs", _cost("parameters", lambda count: f"{count / 1e6:.1f} M")),
    "FLOPs": ("costs", _cost("flops", lambda count: f"{count / 1e9:.0f} G")),
    "published mIoU": ("costs", _cost("published", str)),
}


def markdown(result: dict[str, Any]) -> str:
    """One comparison as a section."""
    machine = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [f"## {result['title']}", "", f"`python benchmarks/run.py {result['name']}`.", ""]
    lines += [result["note"], ""]
    every = [one for measured in result["cases"].values() for one in measured["variants"].values()]
    more = {title: cell for title, (key, cell) in _MORE.items() if any(key in one for one in every)}
    titles = ["case", "variant", "time", "CPU time", "times as fast", "by CPU time", "extra memory"]
    titles += ["equal", *more]
    lines += [f"| {' | '.join(titles)} |", "|" + len(titles) * "---|"]
    for case, measured in result["cases"].items():
        for variant, figures in measured["variants"].items():
            reference = variant == result["reference"]
            cells = [
                case,
                variant,
                _seconds(figures["seconds"]),
                _seconds(figures["cpu_seconds"]),
                "1" if reference else _ratio(figures["speed"]),
                "1" if reference else _ratio(figures["cpu_speed"]),
                _bytes(figures["peak_bytes"]),
                _equal(figures.get("agreement")),
                *(cell(figures) for cell in more.values()),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    for case, measured in result["cases"].items():
        lines.append(
            f"- {case}: {measured['what']}; {_threads(measured['variants'])}; "
            f"{measured['repeats']} turns."
        )
    cases = result["cases"]
    for variant, least in result["least"].items():
        found = {
            c: one["variants"][variant]["speed"]["median"]
            for c, one in cases.items()
            if variant in one["variants"]
        }
        if not found:
            continue
        several = isinstance(least, dict)
        aims = least if several else dict.fromkeys(found, least)
        short = [f"{case} ({speed:.2f})" for case, speed in found.items() if speed < aims[case]]
        short += [f"{case} (not measured)" for case in cases if case not in found]
        aim = ", ".join(f"{c} {value:g}" for c, value in least.items()) if several else f"{least:g}"
        lines.append(f"- Aim, times as fast: {aim}; {_reached(short)}.")
    for variant, most in result["most_memory"].items():
        shares = {
            case: one["variants"][variant]["peak_bytes"]
            / max(one["variants"][result["reference"]]["peak_bytes"], 1)
            for case, one in cases.items()
            if one["variants"].get(variant, {}).get("peak_bytes") is not None
        }
        if not shares:
            continue
        short = [f"{case} ({_part(share)})" for case, share in shares.items() if share > most]
        aim = f"{_part(most)} of" if most < 1 else _part(most)
        lines.append(f"- Aim, extra memory: {aim} the reference's; {_reached(short)}.")
    lines += [f"- {variant}: {what}." for variant, what in result.get("remarks", {}).items()]
    for what, why in result["not_run"].items():
        lines.append(f"- Not run: {what}: {why}.")
    load = ", ".join(f"{value:.1f}" for value in machine["load"])
    gpu = machine["gpu"] or "none"
    lines.append(
        f"- Machine: {machine['cpu']}, {machine['cores']} cores, {machine['instructions']}, "
        f"{_memory(machine['memory_bytes'])}, {machine['system']}, GPU {gpu}; load {load}"
        f"{'; ' + machine['remark'] if machine['remark'] else ''}. {versions}. Commit "
        f"{machine['commit'][:12]}{' with changes' if machine['changed_files'] else ''}."
    )
    return "\n".join(lines) + "\n"


def page(folder: Path = RESULTS) -> str:
    """The page of docs/."""
    results = [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))]
    sections = [markdown(result) for result in results] or ["No results are committed yet.\n"]
    return "\n".join([HEAD, *sections])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--check", action="store_true", help="only check; exit 1 if outdated")
    args = parser.parse_args(argv)
    text = page()
    current = PAGE.exists() and PAGE.read_text("utf-8") == text
    if args.check:
        print(f"{PAGE.relative_to(ROOT)} is {'current' if current else 'outdated'}")
        return int(not current)
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
