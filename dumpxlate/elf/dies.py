"""Entries of debug information (DWARF 2 to 5), read one at a time from wherever they stand.

Reading all of a program's debug information costs minutes in Python, and a few structures of it are wanted. So
nothing is read in order: ``Dies`` decodes the entry at an offset, and its children, and nothing else. What the entries
of a unit look like (its abbreviations) is read up to the first one asked for.

::

    unit: length | version | [type] | address size | offset of its abbreviations | entries
    entry: code of its abbreviation (LEB128) | values, in the forms that the abbreviation lists

Sources: the DWARF 5 standard, sections 2 and 7.5.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from dumpxlate.elf.dwarf_encoding import (
    ALTERNATE_REFERENCES,
    ALTERNATE_STRINGS,
    AT,
    BLOCKS,
    FORM,
    LEB,
    LEB_BLOCKS,
    REFERENCES,
    WHAT,
    Abbreviations,
    Unit,
    read_units,
    size_of_form,
    sleb,
    uleb,
)
from dumpxlate.errors import CorruptDumpError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dumpxlate.structs import Endian

__all__ = ["DebugSections", "Die", "Dies", "Value"]

_ENTRIES_LIMIT = 1 << 16
"""Entries below one."""
_DEPTH_LIMIT = 64
_LONGEST_HEAD = 12
"""Bytes of an entry before its name: the code of its abbreviation, and a reference to its sibling (dwz)."""
_TABLES = 128
"""Tables of abbreviations that are kept; one has some hundred rows."""


@dataclass(frozen=True, slots=True)
class DebugSections:
    """The sections that entries are made of.

    Attributes:
        info: .debug_info.
        abbrev: .debug_abbrev.
        strings: .debug_str.
        line_strings: .debug_line_str.
    """

    info: bytes
    abbrev: bytes
    strings: bytes = b""
    line_strings: bytes = b""


@dataclass(frozen=True, slots=True)
class Value:
    """A value of an entry.

    Attributes:
        form: how it is encoded.
        at: where it stands in .debug_info.
        data: a number, also for offsets and references; bytes of blocks and of strings in place.
    """

    form: int
    at: int
    data: int | bytes

    @property
    def number(self) -> int:
        """The value as a number.

        Raises:
            CorruptDumpError: it is a block.
        """
        if isinstance(self.data, int):
            return self.data
        raise CorruptDumpError(f"form {self.form:#x}: expected a number", offset=self.at, what=WHAT)


@dataclass(frozen=True, slots=True, eq=False)
class Die:
    """A debugging information entry.

    Attributes:
        file: the entries that it is one of.
        unit: the unit that it stands in.
        at: where, in .debug_info.
        tag: what it describes; 0 for the end of a list of children.
        has_children: whether entries below it follow.
        values: by number of the attribute.
        after: where the next entry begins.
    """

    file: Dies
    unit: Unit
    at: int
    tag: int
    has_children: bool
    values: dict[int, Value]
    after: int

    def number(self, name: str, default: int = 0) -> int:
        """Give an attribute that is a number.

        Raises:
            CorruptDumpError: it is a block.
        """
        value = self.values.get(AT[name])
        return default if value is None else value.number

    def text(self, name: str = "name") -> bytes | None:
        """Give an attribute that is a string; None where there is none, or it is in a file that is not at hand."""
        value = self.values.get(AT[name])
        if value is None:
            return None
        if isinstance(value.data, bytes):
            return value.data
        section = self.file.strings(value.form)
        stop = section.find(b"\0", value.data)
        return section[value.data : stop] if stop >= 0 else None

    def target(self, name: str) -> Die | None:
        """Follow an attribute that refers to another entry; None where there is none, or in a file not at hand.

        Raises:
            CorruptDumpError: the reference leads nowhere.
        """
        value = self.values.get(AT[name])
        if value is None:
            return None
        if value.form in REFERENCES:
            return self.file.die(self.unit.start + value.number, self.unit)
        if value.form == FORM["ref_addr"]:
            return self.file.die(value.number)
        if value.form in ALTERNATE_REFERENCES and self.file.alternate:
            return self.file.alternate.die(value.number)
        return None

    def children(self) -> Iterator[Die]:
        """Give the entries right below this one.

        Raises:
            CorruptDumpError: one does not decode, or they do not end.
        """
        at, budget = self.after, _ENTRIES_LIMIT if self.has_children else 0
        while self.has_children:
            child = self.file.die(at, self.unit)
            if not child.tag:
                return
            yield child
            at, budget = child.behind(budget - 1)

    def behind(self, budget: int = _ENTRIES_LIMIT) -> tuple[int, int]:
        """Give where the entry behind this one and all below it begins, and what is left of a number of entries.

        Raises:
            CorruptDumpError: more entries than that follow.
        """
        sibling = self.values.get(AT["sibling"])
        if sibling is not None and sibling.form in REFERENCES and self.unit.start + sibling.number > self.after:
            return self.unit.start + sibling.number, budget
        at, depth = self.after, int(self.has_children)
        while depth and budget > 0:
            below = self.file.die(at, self.unit)
            depth += int(below.has_children) if below.tag else -1
            at, budget = below.after, budget - 1
        if budget <= 0:
            raise CorruptDumpError("entries below one do not end", offset=self.at, what=WHAT)
        return at, budget


class Dies:
    """The entries of a file.

    Args:
        sections: where they stand.
        endian: byte order of the file.
        alternate: entries that this file shares with others (dwz), where that file is at hand.

    Raises:
        CorruptDumpError: the units do not follow one another.
    """

    def __init__(self, sections: DebugSections, endian: Endian, *, alternate: Dies | None = None) -> None:
        self.sections = sections
        self.endian: Endian = endian
        self.alternate = alternate
        self.units = tuple(read_units(sections.info, endian))
        self._starts = [unit.start for unit in self.units]
        self._order: Literal["little", "big"] = "little" if endian == "<" else "big"
        self._table = lru_cache(_TABLES)(self._abbreviations)

    def unit_at(self, at: int) -> Unit | None:
        """Find the unit that an offset lies in, behind its header."""
        index = bisect_right(self._starts, at) - 1
        unit = self.units[index] if index >= 0 else None
        return unit if unit and unit.first <= at < unit.stop else None

    def strings(self, form: int) -> bytes:
        """Give the section that strings of a form stand in; empty where it is not at hand."""
        if form == FORM["strp"]:
            return self.sections.strings
        if form == FORM["line_strp"]:
            return self.sections.line_strings
        if form in ALTERNATE_STRINGS and self.alternate:
            return self.alternate.sections.strings
        return b""

    def die(self, at: int, unit: Unit | None = None) -> Die:
        """Decode the entry at an offset.

        Raises:
            CorruptDumpError: there is none.
        """
        unit = unit or self.unit_at(at)
        if unit is None or not unit.first <= at < unit.stop:
            raise CorruptDumpError("no entry is there", offset=at, what=WHAT)
        try:
            return self._decode(unit, at)
        except (IndexError, ValueError, struct.error) as error:
            raise CorruptDumpError("an entry leaves its section", offset=at, what=WHAT) from error

    def named_at(self, at: int, forms: frozenset[int], tags: frozenset[int]) -> Iterator[Die]:
        """Decode the entries, of some tags, whose name may be what stands at an offset.

        Args:
            at: where in .debug_info the name is, or what refers to it.
            forms: how names are encoded that look so.
            tags: what the entries describe.

        Raises:
            CorruptDumpError: abbreviations do not decode.
        """
        unit = self.unit_at(at)
        if unit is None:
            return
        for start in range(at - 1, max(at - _LONGEST_HEAD, unit.first) - 1, -1):
            try:
                code, after = uleb(self.sections.info, start)
                found = self._table(unit.abbrev).get(code) if code and after <= at else None
            except (IndexError, ValueError):
                continue
            if found and found.tag in tags and found.name[1] in forms and after + found.name[0] == at:
                yield self.die(start, unit)

    def begins_at(self, unit: Unit, at: int) -> bool:
        """Tell whether an entry of a unit really begins at an offset: walks over those before it, from the first.

        Raises:
            CorruptDumpError: they do not decode.
        """
        around, here = unit.first, self.die(unit.first, unit).after
        for _ in range(_DEPTH_LIMIT):
            while here < at:
                around, here = here, self._behind(unit, here)
                if here == around:  # the end of a list of children
                    return False
            if here == at:
                return True
            here = self.die(around, unit).after
            if here > at:
                return False
        return False

    def _behind(self, unit: Unit, at: int) -> int:
        """Give where the entry behind one and all below it begins, without decoding it where its size is fixed."""
        try:
            code, after = uleb(self.sections.info, at)
            found = self._table(unit.abbrev).get(code) if code else None
        except (IndexError, ValueError) as error:
            raise CorruptDumpError("an entry leaves its section", offset=at, what=WHAT) from error
        if not code:
            return at
        if found and found.size >= 0 and unit.offset_size == 4 and unit.address_size == 8:
            if not found.children:
                return after + found.size
            if found.sibling >= 0:
                after += found.sibling
                return unit.start + int.from_bytes(self.sections.info[after : after + 4], self._order)
        return self.die(at, unit).behind()[0]

    def _decode(self, unit: Unit, at: int) -> Die:
        code, after = uleb(self.sections.info, at)
        if not code:
            return Die(self, unit, at, tag=0, has_children=False, values={}, after=after)
        found = self._table(unit.abbrev).get(code)
        if found is None:
            raise CorruptDumpError(f"no abbreviation {code}", offset=at, what=WHAT)
        values = {}
        for attribute, form, constant in found.forms:
            values[attribute], after = self._value(unit, form, after, constant)
        if after > unit.stop:
            raise CorruptDumpError("an entry leaves its unit", offset=at, what=WHAT)
        return Die(self, unit, at, found.tag, found.children, values, after)

    def _value(self, unit: Unit, form: int, at: int, constant: int) -> tuple[Value, int]:
        """Read a value; gives where the next one stands, too."""
        info = self.sections.info
        if form == FORM["indirect"]:
            form, at = uleb(info, at)
        if form == FORM["implicit_const"]:
            return Value(form, at, constant), at
        size = size_of_form(unit, form)
        if size is not None:
            after = at + size
            return Value(form, at, int.from_bytes(info[at:after], self._order) if size else 1), after
        if form in LEB:
            number, after = (sleb if form == FORM["sdata"] else uleb)(info, at)
            return Value(form, at, number), after
        if form == FORM["string"]:
            stop = info.index(b"\0", at, unit.stop)
            return Value(form, at, info[at:stop]), stop + 1
        length, start = self._block(form, at)
        if start + length > unit.stop:
            raise CorruptDumpError(f"a block of {length} bytes leaves its unit", offset=at, what=WHAT)
        return Value(form, at, info[start : start + length]), start + length

    def _block(self, form: int, at: int) -> tuple[int, int]:
        """Give the length of a block and where it begins."""
        if form in LEB_BLOCKS:
            return uleb(self.sections.info, at)
        size = BLOCKS.get(form)
        if size is None:
            raise CorruptDumpError(f"unknown form {form:#x}", offset=at, what=WHAT)
        return int.from_bytes(self.sections.info[at : at + size], self._order), at + size

    def _abbreviations(self, at: int) -> Abbreviations:
        return Abbreviations(self.sections.abbrev, at)
