# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What every data set's preparation has in common."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...io.atomic import atomic_write
from ...io.json_files import read_json
from ...io.processes import cpu_count
from .fetch import fetch
from .sources import Archive, Files, Place, file_stamp, is_archive, list_archive, list_folder
from .work import Item, Workspace

# Raise when a data set's files would come out differently: what was made before is made again.
VERSION = 1


@dataclass
class Plan:
    """The files of a data set.

    Attributes:
        items: The files to make.
        counts: How many samples each split has.
        notes: What the user should know: what was left out, what is missing.
    """

    items: list[Item] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def take(
        self, target: str, place: Place, check: Callable[[Path], object] | None = None
    ) -> None:
        """Adds a file of a source as it is; ``check`` raises where a file is not what it is."""
        if place.size == 0:
            raise UserError("empty", place, "is empty; get it again")
        if place.kind == "file":  # what is staged or packed cannot be linked to
            self.items.append(
                Item(target, place.stamp, link=place.file, size=place.size, check=check)
            )
        else:
            self.items.append(Item(target, place.stamp, make=place.read, size=place.size))

    def make(self, target: str, key: str, make: Callable[[], bytes]) -> None:
        """Adds a file that is computed; ``key`` says from what."""
        self.items.append(Item(target, f"{key} v{VERSION}", make=make))

    def write(self, target: str, lines: Sequence[str]) -> None:
        """Adds a text file."""
        self.put(target, "".join(f"{line}\n" for line in lines).encode())

    def put(self, target: str, data: bytes) -> None:
        """Adds a file of a known content."""
        self.items.append(Item(target, hashlib.sha1(data).hexdigest(), make=_Constant(data)))


@dataclass(frozen=True)
class _Constant:
    data: bytes

    def __call__(self) -> bytes:
        return self.data


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

    Attributes:
        folder: The data set's folder.
        counts: Samples of each split.
        done: Files ``made``, ``linked``, ``copied`` and ``kept``.
        notes: What the user should know.
        unchanged: Whether nothing was to be done.
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
        link: How to put a file that is taken as it is: one of ``work.LINKS``.

    Returns:
        What was found and done.

    Raises:
        UserError: A source is missing, damaged or unsafe, files are missing, or something else
            lies in the way.
    """
    root = Path(root)
    folder = root / dataset.folder
    if download and sources:
        raise UserError(
            "dataset", "", "--source and --download exclude each other; give one of them"
        )
    paths = [Path(source) for source in sources]
    for path in paths:
        if not path.exists():
            raise UserError("not-found", f"--source {path}", f"does not exist; {dataset.where}")
    if not download and not paths and not (folder / ".prepare" / "record.json").is_file():
        raise UserError(
            "dataset",
            dataset.name,
            f"give --source PATH{' or --download' if _public(dataset) else ''}; {dataset.where}",
        )
    if download and not _public(dataset):
        raise UserError(
            "dataset", dataset.name, f"cannot be downloaded by a program; {dataset.where}"
        )
    with Workspace(folder) as work:
        own = {
            target for target, done in work.journal.items() if done.how == "made"
        }  # a source may be this folder itself: what was made in it is no source
        facts: dict[str, Any] = {
            "data_set": dataset.name,
            "version": VERSION,
            "sources": "download" if download else [_fingerprint(p, folder, own) for p in paths],
        }
        record = work.record()
        if record and record["facts"].get("data_set") == dataset.name:
            record = work.record("incomplete", "counts", "notes")
        if record and record.get("facts", {}).get("data_set") != dataset.name:
            raise UserError(
                "dataset",
                folder,
                f"holds another data set, {record.get('facts', {}).get('name')!r}, made"
                " by `prepare_data.py custom`; name another place with --root",
            )
        if record and (allow_incomplete or not record["report"]["incomplete"]):
            if not download and not paths:
                facts = record["facts"]
            if work.is_as_recorded(facts):
                report = record["report"]
                kept = {"kept": record["files"]}
                return Report(folder, report["counts"], kept, report["notes"], unchanged=True)
        if download:
            paths = [
                fetch(archive, root / "downloads") for archive in dataset.archives if archive.url
            ]
        elif not paths:
            raise UserError(
                "resume-changed",
                folder,
                "has changed since it was prepared; give --source PATH to mend it",
            )
        unhashed: list[str] = []
        places = [place for path in paths for place in _expand(dataset, path, work, own, unhashed)]
        plan = dataset.plan(Files(places, paths), allow_incomplete)
        for name in dict.fromkeys(unhashed):
            how = "the CRC-32 of each of its files and " if name.endswith(".zip") else ""
            plan.notes.append(
                f"{name}: its publisher gives no hash that is known here; {how}the counts were"
                " checked"
            )
        incomplete = _check_counts(dataset, plan, allow_incomplete, paths)
        done = work.run(plan.items, cpu_count() if jobs is None else jobs, link, dataset.name)
        if dataset.check is not None and not incomplete:
            dataset.check(folder)
        report = {"counts": plan.counts, "notes": plan.notes, "incomplete": incomplete}
        work.finish(facts, plan.items, report)
    return Report(folder, plan.counts, dict(done), plan.notes)


def _public(dataset: DataSet) -> bool:
    return any(archive.url for archive in dataset.archives)


def _list_source(path: Path, folder: Path, own: set[str]) -> list[Place]:
    """The files of a folder that is a source, without what was made from it.

    Args:
        path: The source.
        folder: The data set's folder; it may lie in the source, or be the source itself.
        own: What was made in the data set's folder, as paths in it.
    """
    places = list(list_folder(path))
    top, target = path.resolve(), folder.resolve()
    if target != top and target.is_relative_to(top):
        below = f"{target.relative_to(top).as_posix()}/"
        return [place for place in places if not place.name.startswith(below)]
    if top.is_relative_to(target):
        inside = top.relative_to(target)
        return [place for place in places if (inside / place.name).as_posix() not in own]
    return places


def _fingerprint(path: Path, folder: Path, own: set[str]) -> list[str]:
    """Path and state of a source, as JSON keeps it."""
    if path.is_file():
        return [str(path.resolve()), file_stamp(path)]
    digest = hashlib.sha1()
    for place in _list_source(path, folder, own):
        digest.update(f"{place.name}\0{place.stamp}\n".encode())
    return [str(path.resolve()), digest.hexdigest()]


def _expand(
    dataset: DataSet, path: Path, work: Workspace, own: set[str], unhashed: list[str]
) -> Iterator[Place]:
    """The files of a source; archives are hashed, once, and looked into.

    The names of official archives that have no known hash are added to ``unhashed``.
    """
    official = {archive.name: archive for archive in dataset.archives}
    if path.is_dir():
        for place in _list_source(path, work.folder, own):
            if is_archive(place.file):
                if place.file.name in official:
                    yield from _expand(dataset, place.file, work, own, unhashed)
            else:
                if place.file.name in official:
                    _check_hash(official[place.file.name], place.file, work)
                yield place
        return
    hashed = False
    if path.name in official:
        hashed = _check_hash(official[path.name], path, work)
        if not hashed:
            unhashed.append(path.name)
    if is_archive(path):
        yield from list_archive(path, work.staging, dataset.wanted, hashed)
    else:
        yield Place(path.name, path.stat().st_size, file_stamp(path), path)


def _check_hash(archive: Archive, file: Path, work: Workspace) -> bool:
    """Compares a file with its published hash, once; False where none is known."""
    if not (archive.sha1 or archive.md5):
        return False
    known_file = work.hidden / "hashes.json"
    try:
        known = read_json(known_file, str(known_file))
    except UserError:
        known = {}
    if not isinstance(known, dict):
        known = {}
    key = f"{file.resolve()} {file_stamp(file)} {archive.sha1 or archive.md5}"
    if key not in known:
        known[key] = archive.check(file)
        atomic_write(known_file, json.dumps(known, indent=1))
    return True


def _check_counts(
    dataset: DataSet, plan: Plan, allow_incomplete: bool, paths: Sequence[Path]
) -> bool:
    """Whether samples are missing; an error unless that is allowed."""
    wrong = [
        f"{split}: {plan.counts.get(split, 0):,} instead of {number:,}"
        for split, number in dataset.expected.items()
        if plan.counts.get(split, 0) != number
    ]
    where = ", ".join(str(path) for path in paths)
    if not plan.items:
        raise UserError("dataset", where, f"holds no file of {dataset.name}; {dataset.where}")
    if wrong and not allow_incomplete:
        raise UserError(
            "dataset",
            where,
            f"is not the whole of {dataset.name} ({'; '.join(wrong)}); {dataset.where}; or"
            " take what is there with --allow-incomplete",
        )
    if wrong:
        plan.notes.append(f"incomplete: {'; '.join(wrong)}")
    return bool(wrong)


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
    alone = sorted(set(images) ^ set(labels))
    if alone:
        name = alone[0]
        here, what = (images[name], "label map") if name in images else (labels[name], "image")
        if not allow_incomplete:
            raise UserError(
                "dataset",
                here,
                f"has no {what}; add it, or leave such files out with --allow-incomplete",
            )
        plan.notes.append(f"{split}: {len(alone)} files without partner left out, e.g. {here}")
    return sorted(set(images) & set(labels))
