"""How debug information is encoded (DWARF 2 to 5): headers of units, tables of abbreviations, forms of values.

Sources: the DWARF 5 standard, sections 7.4 to 7.6; extensions of gcc and dwz as in binutils' dwarf2.def. Numbers are
named by pyelftools.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from elftools.dwarf.enums import ENUM_DW_AT, ENUM_DW_FORM, ENUM_DW_TAG

from dumpxlate.errors import CorruptDumpError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dumpxlate.structs import Endian

__all__ = [
    "ALTERNATE_REFERENCES",
    "ALTERNATE_STRINGS",
    "AT",
    "BLOCKS",
    "FORM",
    "LEB",
    "LEB_BLOCKS",
    "REFERENCES",
    "TAG",
    "WHAT",
    "Abbreviations",
    "Unit",
    "read_units",
    "size_of_form",
    "sleb",
    "uleb",
]

AT: dict[str, int] = {str(name).removeprefix("DW_AT_"): number for name, number in ENUM_DW_AT.items()}
FORM: dict[str, int] = {str(name).removeprefix("DW_FORM_"): number for name, number in ENUM_DW_FORM.items()}
TAG: dict[str, int] = {str(name).removeprefix("DW_TAG_"): number for name, number in ENUM_DW_TAG.items()}

WHAT = "debug information"

_UNITS_LIMIT = 1 << 18
"""Units of one file: Linux has 3,000, a browser 30,000."""
_CODES_LIMIT = 1 << 16
_DWARF64 = 0xFFFFFFFF
_DWO, _TYPE = (4, 5), (2, 6)  # types of units whose headers are longer


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
class Abbreviations:
    """A table of abbreviations, read as far as it was needed."""

    data: bytes
    at: int
    known: dict[int, _Abbreviation] = field(default_factory=dict)
    ended: bool = False

    def get(self, code: int) -> _Abbreviation | None:
        """Find the abbreviation of a code."""
        while code not in self.known and not self.ended:
            if len(self.known) >= _CODES_LIMIT:
                raise CorruptDumpError(f"more than {_CODES_LIMIT} abbreviations", offset=self.at, what=WHAT)
            self._read_one()
        return self.known.get(code)

    def _read_one(self) -> None:
        code, at = uleb(self.data, self.at)
        if not code:
            self.ended = True
            return
        tag, at = uleb(self.data, at)
        children, at = bool(self.data[at]), at + 1
        forms = []
        while True:
            attribute, at = uleb(self.data, at)
            form, at = uleb(self.data, at)
            if not attribute and not form:
                break
            constant = 0
            if form == FORM["implicit_const"]:
                constant, at = sleb(self.data, at)
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
        size = 0 if form == FORM["implicit_const"] else size_of_form(_USUAL, form)
        if size is None:
            return -1, -1, name
        at += size
    return at, sibling, name


def read_units(info: bytes, endian: Endian) -> Iterator[Unit]:
    """Walk over the headers of the units."""
    at, count = 0, 0
    while at < len(info):
        count += 1
        try:
            unit = _unit(info, at, endian)
        except struct.error as error:
            raise CorruptDumpError("a unit's header leaves the section", offset=at, what=WHAT) from error
        if not 2 <= unit.version <= 5 or unit.stop > len(info) or unit.first > unit.stop or count > _UNITS_LIMIT:
            raise CorruptDumpError(
                f"unit of version {unit.version} and {unit.stop - at} bytes: expected versions 2 to 5, "
                f"{len(info) - at} bytes at most, and no more than {_UNITS_LIMIT} units",
                offset=at,
                what=WHAT,
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


def uleb(data: bytes, at: int) -> tuple[int, int]:
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


def sleb(data: bytes, at: int) -> tuple[int, int]:
    """Read a signed LEB128."""
    value, after = uleb(data, at)
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
LEB = _forms("sdata udata ref_udata strx addrx loclistx rnglistx GNU_addr_index GNU_str_index")
LEB_BLOCKS = _forms("block exprloc")
BLOCKS = {FORM["block1"]: 1, FORM["block2"]: 2, FORM["block4"]: 4}
_OFFSETS = _forms("strp line_strp strp_sup sec_offset ref_addr GNU_ref_alt GNU_strp_alt")
REFERENCES = _forms("ref1 ref2 ref4 ref8 ref_udata")
ALTERNATE_REFERENCES = _forms("ref_sup4 ref_sup8 GNU_ref_alt")
ALTERNATE_STRINGS = _forms("strp_sup GNU_strp_alt")


def size_of_form(unit: Unit, form: int) -> int | None:
    """Give the bytes of a value of a form that has a fixed size."""
    if form in _OFFSETS:
        return unit.address_size if form == FORM["ref_addr"] and unit.version == 2 else unit.offset_size
    return unit.address_size if form == FORM["addr"] else _SIZES.get(form)


_USUAL = Unit(start=0, first=0, stop=0, version=5, address_size=8, offset_size=4, abbrev=0)
