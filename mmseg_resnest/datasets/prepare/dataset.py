# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What every published data set's preparation has in common."""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...io.processes import cpu_count
from ...io.up_to_date import file_state, fingerprint
from ...weights import download_file
from .archives import Archive, is_archive, list_archive
from .outputs import Item, Outputs
from .places import PREPARED, Files, Place, list_folder

# Raise when a data set's files would come out differently: what was made before is made again.
VERSION = 2


@dataclass
class Plan:
    """The files of a data set: ``items`` to make, samples of each split, notes for the user."""

    items: list[Item] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def take(
        self, target: str, place: Place, check: Callable[[Path], object] | None = None
    ) -> None:
        """Adds a file of a source as it is; ``check`` raises where it is not what it should be."""
        if place.size == 0:
            raise UserError("empty", place, "is empty; get it again")
        made_from = fingerprint(place)
        if place.kind == "file":  # what is staged or packed cannot be linked to
            item = Item(target, made_from, link=place.file, size=place.size, check=check)
        else:
            item = Item(target, made_from, make=place.read, size=place.size)
        self.items.append(item)

    def make(self, target: str, function: Callable[..., bytes], *arguments: object) -> None:
        """Adds a file that is computed; it is made again when any of the arguments changes."""
        made_from = fingerprint(VERSION, function, arguments)
        self.items.append(Item(target, made_from, make=partial(function, *arguments)))

    def write(self, target: str, lines: Sequence[str]) -> None:
        """Adds a text file."""
        self.make(target, bytes, "".join(f"{line}\n" for line in lines).encode())


@dataclass(frozen=True)
class DataSet:
    """A data set that can be prepared.

    Attributes:
        name: What the command line calls it.
        folder: Below the data root.
        archives: The official files.
        where: Where to get them, one sentence.
        expected: Samples of each split.
        plan: Finds the files; the second argument allows missing ones.
        wanted: Which files of a compressed tar file are needed: a pattern searched in their names.
        check: Looks at the finished folder of a complete data set.
        cached: Patterns of the files that training reads, images and labels, for the fast cache.
    """

    name: str
    folder: str
    archives: tuple[Archive, ...]
    where: str
    expected: Mapping[str, int]
    plan: Callable[[Files, bool], Plan]
    wanted: str = ""
    check: Callable[[Path], None] | None = None
    cached: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Report:
    """What a preparation found and did.

    ``counts`` holds the samples of each split, ``done`` how many files were ``made``, ``linked``,
    ``copied`` and ``kept``; ``unchanged`` says that nothing was to be done.
    """

    folder: Path
    counts: dict[str, int]
    done: dict[str, int]
    notes: list[str]
    unchanged: bool = False


def prepare(
    dataset: DataSet,
    root: str | os.PathLike[str],
    sources: Sequence[str | os.PathLike[str]] = (),
    download: bool = False,
    allow_incomplete: bool = False,
    jobs: int | None = None,
    link: str = "auto",
) -> Report:
    """Brings a data set into its layout below ``root`` (data/README.md).

    It can be killed and called again at any moment, and a call that finds everything done changes
    nothing. The sources are only read.

    Args:
        dataset: What to prepare.
        root: The data root.
        sources: Official archives, or folders that hold them or what they unpack to.
        download: Whether to fetch the archives, into ``root/downloads``.
        allow_incomplete: Take what is there where samples or archives are missing.
        jobs: Processes; None is one a core.
        link: How to put a file that is taken as it is: one of ``io.linking.LINKS``.

    Raises:
        UserError: A source is missing, damaged or unsafe, files are missing, or something else
            lies in the way.
    """
    root = Path(root)
    folder = root / dataset.folder
    paths = [Path(source) for source in sources]
    _check_options(dataset, folder, paths, download)
    with Outputs(folder) as outputs:
        about = outputs.record.about
        if about and about.get("data_set") != dataset.name:
            message = f"holds another data set ({about.get('data_set')}); name another --root"
            raise UserError("output-exists", folder, message)
        about["data_set"] = dataset.name
        listing = _Listing(dataset, outputs)
        facts: dict[str, Any] = {
            "version": VERSION,
            "sources": "download" if download else [listing.state(path) for path in paths],
        }
        before = about.get("facts") or {}
        facts["link"] = before.get("link", link) if link == "auto" else link
        report = outputs.finished("incomplete", "counts", "notes")
        if report and (allow_incomplete or not report["incomplete"]):
            if not download and not paths:
                facts["sources"] = before.get("sources")
            if outputs.is_as_recorded(facts):
                kept = {"kept": len(outputs.record.outputs)}
                return Report(folder, report["counts"], kept, report["notes"], unchanged=True)
        if download:
            public = [archive for archive in dataset.archives if archive.url]
            paths = [_fetch(archive, root / "downloads") for archive in public]
        elif not paths:
            message = "has changed since it was prepared; give --source PATH to make it again"
            raise UserError("dataset", folder, message)
        places = [place for path in paths for place in listing.expand(path)]
        plan = dataset.plan(Files(places, paths), allow_incomplete)
        for name in dict.fromkeys(listing.unhashed):
            how = "the CRC-32 of each of its files and " if name.endswith(".zip") else ""
            plan.notes.append(f"{name}: no published hash is known; {how}the counts were checked")
        incomplete = _check_counts(dataset, plan, allow_incomplete, paths)
        processes = cpu_count() if jobs is None else jobs
        done = outputs.run(plan.items, processes, link, dataset.name)
        if dataset.check is not None and not incomplete:
            dataset.check(folder)
        found = {"counts": plan.counts, "notes": plan.notes, "incomplete": incomplete}
        outputs.finish(facts, plan.items, found)
    return Report(folder, plan.counts, dict(done), plan.notes)


def _check_options(dataset: DataSet, folder: Path, paths: Sequence[Path], download: bool) -> None:
    public = any(archive.url for archive in dataset.archives)
    if download and paths:
        raise UserError("argument-missing", "--download", "excludes --source; give one of them")
    for path in paths:
        if not path.exists():
            raise UserError("not-found", f"--source {path}", f"does not exist; {dataset.where}")
    if download and not public:
        message = f"cannot be downloaded by a program; {dataset.where}"
        raise UserError("argument", dataset.name, message)
    if not download and not paths and not (folder / PREPARED / "record.json").is_file():
        options = f"--source PATH{' or --download' if public else ''}"
        raise UserError("argument-missing", dataset.name, f"give {options}; {dataset.where}")


def _fetch(archive: Archive, folder: Path) -> Path:
    """An official file in a folder: fetched, continued when it was cut, or already there."""
    assert archive.url is not None
    algorithm, digest = ("sha1", archive.sha1) if archive.sha1 else ("md5", archive.md5)
    file = folder / archive.name
    return download_file(archive.url, file, digest, algorithm, "--root names another")


class _Listing:
    """Lists the files of sources without what was made from them.

    Attributes:
        unhashed: Names of official archives of which no hash is known.
    """

    def __init__(self, dataset: DataSet, outputs: Outputs) -> None:
        self.outputs, self.unhashed, self._wanted = outputs, list[str](), dataset.wanted
        self._official = {archive.name: archive for archive in dataset.archives}
        # A source may be the data set's folder itself: what was made in it is not a source.
        recorded = outputs.record.outputs.items()
        self._made = {name for name, (*_, how) in recorded if how in ("made", "")}

    def _folder(self, path: Path) -> list[Place]:
        places = list(list_folder(path))
        top, target = path.resolve(), self.outputs.folder.resolve()
        if target != top and target.is_relative_to(top):
            below = f"{target.relative_to(top).as_posix()}/"
            return [place for place in places if not place.name.startswith(below)]
        if top.is_relative_to(target):
            inside = top.relative_to(target)
            return [p for p in places if (inside / p.name).as_posix() not in self._made]
        return places

    def state(self, path: Path) -> str:
        """A fingerprint of a source."""
        return fingerprint(path if path.is_file() else [str(path.resolve()), self._folder(path)])

    def expand(self, path: Path) -> Iterator[Place]:
        """The files of a source; official archives are hashed, once, and looked into."""
        if path.is_dir():
            for place in self._folder(path):
                if not is_archive(place.file):
                    if place.file.name in self._official:
                        self._is_hashed(place.file)
                    yield place
                elif place.file.name in self._official:
                    yield from self.expand(place.file)
            return
        official = self._is_hashed(path)
        if is_archive(path):
            yield from list_archive(path, self.outputs.staging, self._wanted, official)
        else:
            yield Place(path.name, path.stat().st_size, file_state(path), path)

    def _is_hashed(self, file: Path) -> bool:
        """Compares a file with its published hash, once; False where none is known."""
        archive = self._official.get(file.name)
        if archive is None:
            return False
        if not (archive.sha1 or archive.md5):
            self.unhashed.append(file.name)
            return False
        known = self.outputs.record.about.setdefault("hashed", [])
        key = fingerprint(file, archive.sha1 or archive.md5)
        if key not in known:
            archive.check(file)
            known.append(key)
            self.outputs.record.save()
        return True


def _check_counts(
    dataset: DataSet, plan: Plan, allow_incomplete: bool, paths: Sequence[Path]
) -> bool:
    """Whether samples are missing; an error unless that is allowed."""
    wrong = "; ".join(
        f"{split}: {plan.counts.get(split, 0):,} instead of {number:,}"
        for split, number in dataset.expected.items()
        if plan.counts.get(split, 0) != number
    )
    where = ", ".join(str(path) for path in paths)
    if not plan.items:
        raise UserError("dataset", where, f"holds no file of {dataset.name}; {dataset.where}")
    if wrong and not allow_incomplete:
        message = f"is incomplete ({wrong}); {dataset.where}; or accept that: --allow-incomplete"
        raise UserError("dataset", where, message)
    if wrong:
        plan.notes.append(f"incomplete: {wrong}")
    return bool(wrong)


def complete(
    names: Sequence[str],
    images: Container[str],
    labels: Container[str],
    sources: str,
    where: str,
    allow_incomplete: bool,
) -> list[str]:
    """The names of a list that have an image and a label map.

    Raises:
        UserError: One lacks one of the two and that is not allowed; ``where`` says what to get.
    """
    found = [name for name in names if name in images and name in labels]
    if len(found) < len(names) and not allow_incomplete:
        name = next(name for name in names if name not in images or name not in labels)
        what = "label map" if name in images else "image"
        message = f"{name} has no {what}; {where}; or leave such samples out: --allow-incomplete"
        raise UserError("dataset", sources, message)
    return found


def pair(
    plan: Plan,
    split: str,
    images: Mapping[str, Place],
    labels: Mapping[str, Place],
    allow_incomplete: bool,
) -> list[str]:
    """The names that have both an image and a label map, sorted.

    Raises:
        UserError: A name has only one of the two and that is not allowed.
    """
    single = sorted(set(images) ^ set(labels))
    if single:
        name = single[0]
        here, what = (images[name], "label map") if name in images else (labels[name], "image")
        if not allow_incomplete:
            message = f"has no {what}; add it, or leave such files out with --allow-incomplete"
            raise UserError("dataset", here, message)
        plan.notes.append(f"{split}: {len(single)} files without partner left out, e.g. {here}")
    return sorted(set(images) & set(labels))
