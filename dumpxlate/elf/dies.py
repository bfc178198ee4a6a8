"""Entries of debug information (DWARF 2 to 5), read one at a time from wherever they stand.

Reading all of a program's debug information costs minutes in Python, and a few structures of it are wanted. So
nothing is read in order: ``Dies`` decodes the entry at an offset, and its children, and nothing else. What the entries
of a unit look like (its abbreviations) is read up to the first one asked for.

::

    unit: length | version | [type] | address size | offset of its abbreviations | entries
    entry: code of its abbreviation (LEB128) | values, in the forms that the abbreviation lists

Sources: the DWARF 5 standard, sections 7.4 to 7.6; extensions of gcc and dwz as in binutils' dwarf2.def. Numbers are
named by pyelftools.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from elftools.dwarf.enums import ENUM_DW_AT, ENUM_DW_FORM, ENUM_DW_TAG

from dumpxlate.errors import CorruptDumpError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dumpxlate.structs import Endian

__all__ = ["AT", "FORM", "TAG", "DebugSections", "Die", "Dies", "Unit", "Value"]

AT: dict[str, int] = {str(name).removeprefix("DW_AT_"): number for name, number in ENUM_DW_AT.items()}
FORM: dict[str, int] = {str(name).removeprefix("DW_FORM_"): number for name, number in ENUM_DW_FORM.items()}
TAG: dict[str, int] = {str(name).removeprefix("DW_TAG_"): number for name, number in ENUM_DW_TAG.items()}

_UNITS_LIMIT = 1 << 18
"""Units of one file: Linux has 3,000, a browser 30,000."""
_ENTRIES_LIMIT = 1 << 16
"""Entries below one."""
_DEPTH_LIMIT = 64
_LONGEST_HEAD = 12
"""Bytes of an entry before its name: the code of its abbreviation, and a reference to its sibling (dwz)."""
_TABLES = 128
"""Tables of abbreviations that are kept; one has some hundred rows."""
_WHAT = "debug information"
_DWARF64 = 0xFFFFFFFF
_DWO, _TYPE = (4, 5), (2, 6)  # types of units whose headers are longer


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
class Unit:
    """One unit: what decoding its entries needs.

    Attributes:
        start: of its header, in .debug_info.
        first: of its first entry.
        stop: where it ends.
        version: of DWARF.
        address_size: bytes of an address.
        offset_size: bytes of an offset: 4, or 8 in 64-bit DWARF.
        abbrev: offset of its abbreviations.
    """

    start: int
    first: int
    stop: int
    version: int
    address_size: int
    offset_size: int
    abbrev: int


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
        raise CorruptDumpError(f"form {self.form:#x}: expected a number", offset=self.at, what=_WHAT)


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
        if value.form in _REFERENCES:
            return self.file.die(self.unit.start + value.number, self.unit)
        if value.form == FORM["ref_addr"]:
            return self.file.die(value.number)
        if value.form in _ALTERNATE_REFERENCES and self.file.alternate:
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
        if sibling is not None and sibling.form in _REFERENCES and self.unit.start + sibling.number > self.after:
            return self.unit.start + sibling.number, budget
        at, depth = self.after, int(self.has_children)
        while depth and budget > 0:
            below = self.file.die(at, self.unit)
            depth += int(below.has_children) if below.tag else -1
            at, budget = below.after, budget - 1
        if budget <= 0:
            raise CorruptDumpError("entries below one do not end", offset=self.at, what=_WHAT)
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
        self.units = tuple(_units(sections.info, endian))
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
        if form in _ALTERNATE_STRINGS and self.alternate:
            return self.alternate.sections.strings
        return b""

    def die(self, at: int, unit: Unit | None = None) -> Die:
        """Decode the entry at an offset.

        Raises:
            CorruptDumpError: there is none.
        """
        unit = unit or self.unit_at(at)
        if unit is None or not unit.first <= at < unit.stop:
            raise CorruptDumpError("no entry is there", offset=at, what=_WHAT)
        try:
            return self._decode(unit, at)
        except (IndexError, ValueError, struct.error) as error:
            raise CorruptDumpError("an entry leaves its section", offset=at, what=_WHAT) from error

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
                code, after = _uleb(self.sections.info, start)
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
            code, after = _uleb(self.sections.info, at)
            found = self._table(unit.abbrev).get(code) if code else None
        except (IndexError, ValueError) as error:
            raise CorruptDumpError("an entry leaves its section", offset=at, what=_WHAT) from error
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
        code, after = _uleb(self.sections.info, at)
        if not code:
            return Die(self, unit, at, tag=0, has_children=False, values={}, after=after)
        found = self._table(unit.abbrev).get(code)
        if found is None:
            raise CorruptDumpError(f"no abbreviation {code}", offset=at, what=_WHAT)
        values = {}
        for attribute, form, constant in found.forms:
            values[attribute], after = self._value(unit, form, after, constant)
        if after > unit.stop:
            raise CorruptDumpError("an entry leaves its unit", offset=at, what=_WHAT)
        return Die(self, unit, at, found.tag, found.children, values, after)

    def _value(self, unit: Unit, form: int, at: int, constant: int) -> tuple[Value, int]:
        """Read a value; gives where the next one stands, too."""
        info = self.sections.info
        if form == FORM["indirect"]:
            form, at = _uleb(info, at)
        if form == FORM["implicit_const"]:
            return Value(form, at, constant), at
        size = _size(unit, form)
        if size is not None:
            after = at + size
            return Value(form, at, int.from_bytes(info[at:after], self._order) if size else 1), after
        if form in _LEB:
            number, after = (_sleb if form == FORM["sdata"] else _uleb)(info, at)
            return Value(form, at, number), after
        if form == FORM["string"]:
            stop = info.index(b"\0", at, unit.stop)
            return Value(form, at, info[at:stop]), stop + 1
        length, start = self._block(form, at)
        if start + length > unit.stop:
            raise CorruptDumpError(f"a block of {length} bytes leaves its unit", offset=at, what=_WHAT)
        return Value(form, at, info[start : start + length]), start + length

    def _block(self, form: int, at: int) -> tuple[int, int]:
        """Give the length of a block and where it begins."""
        if form in _LEB_BLOCKS:
            return _uleb(self.sections.info, at)
        size = _BLOCKS.get(form)
        if size is None:
            raise CorruptDumpError(f"unknown form {form:#x}", offset=at, what=_WHAT)
        return int.from_bytes(self.sections.info[at : at + size], self._order), at + size

    def _abbreviations(self, at: int) -> _Abbreviations:
        return _Abbreviations(self.sections.abbrev, at)


@dataclass(frozen=True, slots=True)
class _Abbreviation:
    """How one kind of entry is encoded.

    Attributes:
        tag: what it describes.
        children: whether entries below it follow.
        forms: attribute, form and constant of each value.
        size: bytes of all values in a usual unit (addresses of 8 bytes, offsets of 4); -1 where it differs.
        sibling: where among them the reference to the next sibling is; -1 where none of 4 bytes is.
        name: where among them the name is, and its form; -1 where that differs.
    """

    tag: int
    children: bool
    forms: tuple[tuple[int, int, int], ...]
    size: int
    sibling: int
    name: tuple[int, int]


@dataclass(slots=True)
class _Abbreviations:
    """A table of abbreviations, read as far as it was needed."""

    data: bytes
    at: int
    known: dict[int, _Abbreviation] = field(default_factory=dict)
    ended: bool = False

    def get(self, code: int) -> _Abbreviation | None:
        """Find the abbreviation of a code."""
        while code not in self.known and not self.ended:
            if len(self.known) >= _ENTRIES_LIMIT:
                raise CorruptDumpError(f"more than {_ENTRIES_LIMIT} abbreviations", offset=self.at, what=_WHAT)
            self._read_one()
        return self.known.get(code)

    def _read_one(self) -> None:
        code, at = _uleb(self.data, self.at)
        if not code:
            self.ended = True
            return
        tag, at = _uleb(self.data, at)
        children, at = bool(self.data[at]), at + 1
        forms = []
        while True:
            attribute, at = _uleb(self.data, at)
            form, at = _uleb(self.data, at)
            if not attribute and not form:
                break
            constant = 0
            if form == FORM["implicit_const"]:
                constant, at = _sleb(self.data, at)
            forms.append((attribute, form, constant))
        self.known[code] = _Abbreviation(tag, children, tuple(forms), *_usual_places(forms))
        self.at = at


def _usual_places(forms: list[tuple[int, int, int]]) -> tuple[int, int, tuple[int, int]]:
    """Give the bytes that values take in a usual unit, and where the sibling's reference and the name are."""
    at, sibling, name = 0, -1, (-1, 0)
    for attribute, form, _ in forms:
        if attribute == AT["name"]:
            name = at, form
        if attribute == AT["sibling"] and form == FORM["ref4"]:
            sibling = at
        size = 0 if form == FORM["implicit_const"] else _size(_USUAL, form)
        if size is None:
            return -1, -1, name
        at += size
    return at, sibling, name


def _units(info: bytes, endian: Endian) -> Iterator[Unit]:
    """Walk over the headers of the units."""
    at, count = 0, 0
    while at < len(info):
        count += 1
        try:
            unit = _unit(info, at, endian)
        except struct.error as error:
            raise CorruptDumpError("a unit's header leaves the section", offset=at, what=_WHAT) from error
        if not 2 <= unit.version <= 5 or unit.stop > len(info) or unit.first > unit.stop or count > _UNITS_LIMIT:
            raise CorruptDumpError(
                f"unit of version {unit.version} and {unit.stop - at} bytes: expected versions 2 to 5, "
                f"{len(info) - at} bytes at most, and no more than {_UNITS_LIMIT} units",
                offset=at,
                what=_WHAT,
            )
        yield unit
        at = unit.stop


def _unit(info: bytes, start: int, endian: Endian) -> Unit:
    (length,) = struct.unpack_from(endian + "I", info, start)
    at, word, offset_size = start + 4, "I", 4
    if length == _DWARF64:
        (length,) = struct.unpack_from(endian + "Q", info, at)
        at, word, offset_size = at + 8, "Q", 8
    stop = at + length
    (version,) = struct.unpack_from(endian + "H", info, at)
    if version < 5:
        abbrev, address_size = struct.unpack_from(f"{endian}{word}B", info, at + 2)
        return Unit(start, at + 3 + offset_size, stop, version, address_size, offset_size, abbrev)
    kind, address_size, abbrev = struct.unpack_from(f"{endian}2B{word}", info, at + 2)
    longer = 8 if kind in _DWO else 8 + offset_size if kind in _TYPE else 0
    return Unit(start, at + 4 + offset_size + longer, stop, version, address_size, offset_size, abbrev)


def _uleb(data: bytes, at: int) -> tuple[int, int]:
    """Read an unsigned LEB128; gives where it ends, too."""
    byte = data[at]
    if byte < 0x80:
        return byte, at + 1
    value, shift = 0, 0
    while byte >= 0x80:
        value |= (byte & 0x7F) << shift
        shift += 7
        at += 1
        byte = data[at]
        if shift > 63:
            raise ValueError("LEB128 of more than 64 bits")
    return value | byte << shift, at + 1


def _sleb(data: bytes, at: int) -> tuple[int, int]:
    """Read a signed LEB128."""
    value, after = _uleb(data, at)
    bits = 7 * (after - at)
    return value - (1 << bits) if value >> (bits - 1) & 1 else value, after


def _forms(names: str) -> frozenset[int]:
    return frozenset(FORM[name] for name in names.split())


_SIZES = {
    FORM[name]: size
    for size, names in {
        0: "flag_present",
        1: "data1 flag ref1 strx1 addrx1",
        2: "data2 ref2 strx2 addrx2",
        3: "strx3 addrx3",
        4: "data4 ref4 strx4 addrx4 ref_sup4",
        8: "data8 ref8 ref_sig8 ref_sup8",
        16: "data16",
    }.items()
    for name in names.split()
}
_LEB = _forms("sdata udata ref_udata strx addrx loclistx rnglistx GNU_addr_index GNU_str_index")
_LEB_BLOCKS = _forms("block exprloc")
_BLOCKS = {FORM["block1"]: 1, FORM["block2"]: 2, FORM["block4"]: 4}
_OFFSETS = _forms("strp line_strp strp_sup sec_offset ref_addr GNU_ref_alt GNU_strp_alt")
_REFERENCES = _forms("ref1 ref2 ref4 ref8 ref_udata")
_ALTERNATE_REFERENCES = _forms("ref_sup4 ref_sup8 GNU_ref_alt")
_ALTERNATE_STRINGS = _forms("strp_sup GNU_strp_alt")


def _size(unit: Unit, form: int) -> int | None:
    """Give the bytes of a value of a form that has a fixed size."""
    if form in _OFFSETS:
        return unit.address_size if form == FORM["ref_addr"] and unit.version == 2 else unit.offset_size
    return unit.address_size if form == FORM["addr"] else _SIZES.get(form)


_USUAL = Unit(start=0, first=0, stop=0, version=5, address_size=8, offset_size=4, abbrev=0)
