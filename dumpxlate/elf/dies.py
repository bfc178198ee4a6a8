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
import sys
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, NamedTuple

from dumpxlate.elf.dwarf_encoding import (
    ALTERNATE_REFERENCES,
    ALTERNATE_STRINGS,
    BLOCKS,
    LEB,
    LEB_BLOCKS,
    REFERENCES,
    STRING_INDEXES,
    Abbreviation,
    Abbreviations,
    size_of_form,
    sleb,
    uleb,
)
from dumpxlate.elf.dwarf_numbers import AT, FORM
from dumpxlate.elf.string_numbers import StringNumbers
from dumpxlate.elf.units import WHAT, Units
from dumpxlate.errors import CorruptDumpError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dumpxlate.elf.late import LateSection, Octets
    from dumpxlate.elf.units import Unit
    from dumpxlate.structs import Endian

__all__ = ["DebugSections", "Die", "Dies", "Value"]

_INDIRECT, _IMPLICIT_CONST = FORM["indirect"], FORM["implicit_const"]

_ENTRIES_LIMIT = 1 << 16
"""Entries below one."""
_TABLES = 128
"""Tables of abbreviations that are kept; one has some hundred rows."""
_WALKS = 16
"""Units of which is kept how far somebody walked over their entries."""


class DebugSections(NamedTuple):
    """The sections that entries are made of.

    Attributes:
        info: .debug_info; where it is late, the units that were looked at.
        abbrev: .debug_abbrev.
        strings: .debug_str.
        line_strings: .debug_line_str.
        string_offsets: .debug_str_offsets, which numbers strings.
        addresses: .debug_addr, which numbers addresses.
        ranges: .debug_aranges, which tells the units of addresses.
        types_at: where .debug_types begins, which DWARF 4 has type units in; it stands behind .debug_info here.
        late: what brings .debug_info, where it is not there.
    """

    info: Octets
    abbrev: bytes
    strings: bytes = b""
    line_strings: bytes = b""
    string_offsets: bytes = b""
    addresses: bytes = b""
    ranges: bytes = b""
    types_at: int = sys.maxsize
    late: LateSection | None = None

    @property
    def everything(self) -> bytes:
        """All of .debug_info."""
        return self.late.everything if self.late else bytes(self.info)


class Value(NamedTuple):
    """A value of an entry; a tuple, of which thousands are made in no time.

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


class Die(NamedTuple):
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
        section, at = self.file.strings(value.form), value.data
        if value.form in STRING_INDEXES:
            at = self.file.numbered(self.unit, "string", at)
        stop = section.find(b"\0", at) if at >= 0 else -1
        return section[at:stop] if stop >= 0 else None

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
        if value.form == FORM["ref_sig8"]:
            return self.file.type_unit(value.number)
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
        return self.file.behind_all(self.unit, self.after, int(self.has_children), budget)


class Dies:
    """The entries of a file.

    ``walked`` gives where entries right below a unit's first one begin, as far as somebody went who adds to it.

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
        self.units = Units(sections.info, endian, sections.types_at, sections.late)
        self.order: Literal["little", "big"] = "little" if endian == "<" else "big"
        self.numbers = StringNumbers(self)
        self._table = lru_cache(_TABLES)(self._abbreviations)
        self.walked = lru_cache(_WALKS)(self._outermost)
        self.base = lru_cache(_TABLES)(self._base)

    def unit_at(self, at: int) -> Unit | None:
        """Find the unit that an offset lies in, behind its header."""
        unit = self.units.around(at)
        return unit if unit and at >= unit.first else None

    def strings(self, form: int) -> bytes:
        """Give the section that strings of a form stand in; empty where it is not at hand."""
        if form == FORM["strp"] or form in STRING_INDEXES:
            return self.sections.strings
        if form == FORM["line_strp"]:
            return self.sections.line_strings
        if form in ALTERNATE_STRINGS and self.alternate:
            return self.alternate.sections.strings
        return b""

    def type_unit(self, signature: int) -> Die | None:
        """Give the type that a type unit is of; None where no unit has the signature.

        Raises:
            CorruptDumpError: it does not decode.
        """
        unit = self.units.of_type(signature)
        return None if unit is None else self.die(unit.start + unit.type_at, unit)

    def _base(self, unit: Unit, of: Literal["string", "address"]) -> int:
        """Give where the numbers of a unit's strings or addresses count from; -1 where it has none.

        Raises:
            CorruptDumpError: its first entry does not decode.
        """
        value = self.die(unit.first, unit).values.get(AT["str_offsets_base" if of == "string" else "addr_base"])
        return -1 if value is None else value.number

    def numbered(self, unit: Unit, of: Literal["string", "address"], number: int) -> int:
        """Give the offset of a string in .debug_str, or an address, by its number; -1 where there is none.

        Raises:
            CorruptDumpError: the unit's first entry does not decode.
        """
        section = self.sections.string_offsets if of == "string" else self.sections.addresses
        size, base = unit.offset_size if of == "string" else unit.address_size, self.base(unit, of)
        found = section[base + number * size : base + (number + 1) * size] if base >= 0 else b""
        return int.from_bytes(found, self.order) if len(found) == size else -1

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

    def behind_all(self, unit: Unit, at: int, depth: int, budget: int) -> tuple[int, int]:
        """Give where the entry behind a number of unfinished lists of children begins, and what is left of a budget.

        Raises:
            CorruptDumpError: more entries follow, or one does not decode.
        """
        start = at
        while depth and budget > 0:
            found, at = self.skip(unit, at)
            depth += int(found.children) if found else -1
            budget -= 1
        if budget <= 0:
            raise CorruptDumpError("entries below one do not end", offset=start, what=WHAT)
        return at, budget

    def skip(self, unit: Unit, at: int) -> tuple[Abbreviation | None, int]:
        """Pass over one entry, without decoding it where its size is fixed; gives no abbreviation for a list's end.

        Raises:
            CorruptDumpError: it does not decode.
        """
        try:
            code, after = uleb(self.sections.info, at)
            found = self.table(unit).get(code) if code else None
        except (IndexError, ValueError) as error:
            raise CorruptDumpError("an entry leaves its section", offset=at, what=WHAT) from error
        if not code:
            return None, after
        if found and found.size >= 0 and unit.is_usual:
            return found, after + found.size
        return found, self.die(at, unit).after

    def table(self, unit: Unit) -> Abbreviations:
        """Give the abbreviations of a unit."""
        return self._table(unit.abbrev)

    def _decode(self, unit: Unit, at: int) -> Die:
        code, after = uleb(self.sections.info, at)
        if not code:
            return Die(self, unit, at, tag=0, has_children=False, values={}, after=after)
        found = self.table(unit).get(code)
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
        if form == _INDIRECT:
            form, at = uleb(info, at)
        if form == _IMPLICIT_CONST:
            return Value(form, at, constant), at
        size = size_of_form(unit, form)
        if size is not None:
            after = at + size
            return Value(form, at, int.from_bytes(info[at:after], self.order) if size else 1), after
        if form in LEB:
            number, after = (sleb if form == FORM["sdata"] else uleb)(info, at)
            return Value(form, at, number), after
        if form == FORM["string"]:
            stop = info.find(b"\0", at, unit.stop)
            if stop < 0:
                raise ValueError("a string that does not end")
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
        return int.from_bytes(self.sections.info[at : at + size], self.order), at + size

    def _abbreviations(self, at: int) -> Abbreviations:
        return Abbreviations(self.sections.abbrev, at)

    def _outermost(self, unit: Unit) -> list[int]:
        """Give the list of the entries right below the one that a unit begins with, for others to go on with."""
        return [self.die(unit.first, unit).after]
