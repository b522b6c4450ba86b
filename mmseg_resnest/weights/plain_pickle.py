# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Reads pickles of tensors and plain data; nothing that a pickle names is ever called.

A pickle is a program for a stack machine. This machine knows only the instructions that
``torch.save`` writes; a name is a row of the table in :mod:`.pickle_names` (a value, or a function
that checks its arguments) or ends the reading. Memory is bounded by the size of the file: sizes in
a pickle are checked before anything is allocated, and what copies data has a budget.
"""

from __future__ import annotations

import pickle
import struct
from collections import Counter, OrderedDict
from collections.abc import Callable
from pickle import decode_long
from typing import Any, BinaryIO

from .pickle_names import (
    HISTORY,
    NAMES,
    Budget,
    Damaged,
    Name,
    NotAllowed,
    Storage,
    Unfinished,
    check_value,
    checked_key,
    new_history,
    versions,
)

#: Instructions in one pickle; a training checkpoint has some hundred thousand.
MAX_INSTRUCTIONS = 5_000_000
#: Levels of containers; training checkpoints have about 8.
MAX_DEPTH = 100
#: Values that a record may have when what is shared is counted each time it is used.
MAX_VALUES = 20_000_000
_MAX_NAME = 256


class _Machine:
    """Runs one pickle; see :func:`read_pickle`."""

    def __init__(
        self, file: BinaryIO, end: int, budget: Budget, storage: Callable[[tuple], Storage]
    ) -> None:
        self._file, self._left = file, end - file.tell()
        self._budget, self._storage = budget, storage
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        for _ in range(MAX_INSTRUCTIONS):
            code = self._take(1)
            if code == pickle.STOP:
                return self._pop()
            instruction = _INSTRUCTIONS.get(code)
            if instruction is None:
                raise Damaged(f"an instruction that torch.save does not write ({code[0]:#04x})")
            instruction(self)
        raise Damaged(f"more than {MAX_INSTRUCTIONS:,} instructions")

    def _take(self, count: int) -> bytes:
        self._left -= count
        if self._left < 0:
            raise Damaged("it ends early")
        data = self._file.read(count)
        if len(data) != count:
            raise Damaged("it ends early")
        return data

    def _unpack(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _line(self) -> str:
        line = self._file.readline(_MAX_NAME)
        self._left -= len(line)
        if not line.endswith(b"\n") or self._left < 0:
            raise Damaged("a damaged name")
        return line[:-1].decode()

    def _pop(self) -> Any:
        return self._stack.pop()

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop_mark(self) -> list[Any]:
        items = self._stack
        self._stack = self._marks.pop()
        return items

    def mark(self) -> None:
        self._marks.append(self._stack)
        self._stack = []

    def name(self) -> None:
        module, name = self._line(), self._line()
        full = f"{'builtins' if module == '__builtin__' else module}.{name}"
        if full not in NAMES:
            raise NotAllowed(full)
        self._push(NAMES[full])

    def call(self) -> None:
        args, function = self._pop(), self._pop()
        if not isinstance(function, Name) or function.call is None or type(args) is not tuple:
            raise Damaged("a call of something that is not a function")
        self._push(function.call(self._budget, args))

    def new(self) -> None:
        args, kind = self._pop(), self._pop()
        if not isinstance(kind, Name) or kind.name != HISTORY or args != ():
            raise Damaged("an object that is not plain data")
        self._push(new_history())

    def build(self) -> None:
        state, target = self._pop(), self._stack[-1]
        if isinstance(target, Unfinished):
            self._stack[-1] = target.finish(self._budget, state)
            if target.key is not None:
                self._memo[target.key] = self._stack[-1]
        elif type(target) is OrderedDict and type(state) is dict:
            target.__dict__.update(versions(self._budget, state))
        else:
            raise Damaged("a state for something that has none")

    def persistent(self) -> None:
        reference = self._pop()
        if type(reference) is not tuple:
            raise Damaged("a damaged reference to a storage")
        self._push(self._storage(reference))

    def append(self, items: list[Any]) -> None:
        if type(self._stack[-1]) is not list:
            raise Damaged("items for something that is not a list")
        self._stack[-1].extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) not in (dict, OrderedDict, Counter):
            raise Damaged("keys for something that is not a mapping")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[checked_key(key)] = value

    def tuple_of(self, count: int) -> None:
        if len(self._stack) < count:
            raise Damaged("a damaged tuple")
        self._stack[-count:] = [tuple(self._stack[-count:])]

    def text(self) -> None:
        self._push(str(self._take(self._unpack("<I")), "utf-8", "surrogatepass"))

    def get(self, form: str) -> None:
        self._push(self._memo[self._unpack(form)])

    def put(self, form: str) -> None:
        key, value = self._unpack(form), self._stack[-1]
        self._memo[key] = value
        if isinstance(value, Unfinished):
            value.key = key


def _pusher(make: Callable[[_Machine], Any]) -> Callable[[_Machine], None]:
    return lambda machine: machine._push(make(machine))


_INSTRUCTIONS: dict[bytes, Callable[[_Machine], object]] = {
    pickle.PROTO: lambda machine: machine._take(1),
    pickle.MARK: _Machine.mark,
    pickle.GLOBAL: _Machine.name,
    pickle.REDUCE: _Machine.call,
    pickle.NEWOBJ: _Machine.new,
    pickle.BUILD: _Machine.build,
    pickle.BINPERSID: _Machine.persistent,
    pickle.APPEND: lambda machine: machine.append([machine._pop()]),
    pickle.APPENDS: lambda machine: machine.append(machine._pop_mark()),
    pickle.SETITEM: lambda machine: machine.set_items([machine._pop(), machine._pop()][::-1]),
    pickle.SETITEMS: lambda machine: machine.set_items(machine._pop_mark()),
    pickle.TUPLE: _pusher(lambda machine: tuple(machine._pop_mark())),
    pickle.TUPLE1: lambda machine: machine.tuple_of(1),
    pickle.TUPLE2: lambda machine: machine.tuple_of(2),
    pickle.TUPLE3: lambda machine: machine.tuple_of(3),
    pickle.EMPTY_TUPLE: _pusher(lambda machine: ()),
    pickle.EMPTY_LIST: _pusher(lambda machine: []),
    pickle.EMPTY_DICT: _pusher(lambda machine: {}),
    pickle.NONE: _pusher(lambda machine: None),
    pickle.NEWTRUE: _pusher(lambda machine: True),
    pickle.NEWFALSE: _pusher(lambda machine: False),
    pickle.BININT: _pusher(lambda machine: machine._unpack("<i")),
    pickle.BININT1: _pusher(lambda machine: machine._unpack("<B")),
    pickle.BININT2: _pusher(lambda machine: machine._unpack("<H")),
    pickle.LONG1: _pusher(lambda machine: decode_long(machine._take(machine._unpack("<B")))),
    pickle.BINFLOAT: _pusher(lambda machine: machine._unpack(">d")),
    pickle.BINUNICODE: _Machine.text,
    pickle.SHORT_BINSTRING: _pusher(lambda m: m._take(m._unpack("<B")).decode()),
    pickle.BINGET: lambda machine: machine.get("<B"),
    pickle.LONG_BINGET: lambda machine: machine.get("<I"),
    pickle.BINPUT: lambda machine: machine.put("<B"),
    pickle.LONG_BINPUT: lambda machine: machine.put("<I"),
}


def read_pickle(
    file: BinaryIO, end: int, budget: Budget, storage: Callable[[tuple], Storage]
) -> Any:
    """Reads one pickle from where an open file stands; it then stands behind the pickle.

    Args:
        file: The file.
        end: Where the pickle ends at the latest, bytes from the file's beginning.
        budget: Of the whole file.
        storage: Gives the storage that a persistent id refers to.

    Returns:
        Dictionaries, lists, tuples, sets, numbers, text, bytes, tensors, parameters, torch's types
        and sizes, NumPy arrays and numbers, and MMEngine's ``HistoryBuffer``.

    Raises:
        NotAllowed: It names something that is neither a tensor nor plain data.
        Damaged: It is damaged, or would take more memory than its size justifies. Damage can
            raise other exceptions too, such as IndexError, KeyError and TypeError.
    """
    value = _Machine(file, end, budget, storage).run()
    _check(value)
    return value


def _check(root: Any) -> None:
    """Plain data alone; no depth at which a recursion would fail, no loops, no multiplication."""
    check_value(root)
    totals: dict[int, tuple[int, int]] = {}  # of finished containers: levels, values
    open_: set[int] = set()
    todo: list[tuple[Any, bool]] = [(root, False)]
    while todo:
        value, finished = todo.pop()
        children = _children(value)
        if children is None or id(value) in totals:
            continue
        if finished:
            depth = count = 1
            for child in children:
                levels, values = totals.get(id(child), (0, 1))
                depth, count = max(depth, levels + 1), count + values
            if depth > MAX_DEPTH:
                raise Damaged(f"nested deeper than {MAX_DEPTH} levels")
            if count > MAX_VALUES:
                raise Damaged(f"more than {MAX_VALUES:,} values")
            totals[id(value)] = depth, count
            open_.discard(id(value))
            continue
        if id(value) in open_:
            raise Damaged("a container that contains itself")
        open_.add(id(value))
        todo.append((value, True))
        for child in children:
            check_value(child)
            if _children(child) is not None:
                todo.append((child, False))


def _children(value: Any) -> Any:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) or type(value) is tuple else None
