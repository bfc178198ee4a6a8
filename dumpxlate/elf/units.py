"""Units of debug information (DWARF 2 to 5): their headers, each read when it is first wanted.

::

    length | version | [type] | address size | offset of its abbreviations | [signature and place of its type] | entries

Sources: the DWARF 5 standard, section 7.5.1; of version 4, sections 7.5.1.1 and 7.5.1.2.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from dumpxlate.errors import CorruptDumpError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dumpxlate.elf.late import LateSection, Octets
    from dumpxlate.structs import Endian

__all__ = ["WHAT", "Unit", "Units"]

WHAT = "debug information"

_UNITS_LIMIT = 1 << 18
"""Units of one file: Linux has 3,000, a browser 30,000."""
_FEW = 16
"""Units that are looked at one by one."""
_DWARF64 = 0xFFFFFFFF
_LENGTHS, _LONGEST_HEADER = 12, 64
"""Bytes of a unit's length, where it is long, and no fewer than a header has."""
_DWO, _TYPE = (4, 5), (2, 6)  # types of units whose headers are longer


class Unit(NamedTuple):
    """One unit: what decoding its entries needs.

    Attributes:
        start: of its header, in .debug_info.
        first: of its first entry.
        stop: where it ends.
        version: of DWARF.
        address_size: bytes of an address.
        offset_size: bytes of an offset: 4, or 8 in 64-bit DWARF.
        abbrev: offset of its abbreviations.
        signature: by which others refer to the type that it is of; None for what is no type unit.
        type_at: where that type is, from the unit's start.
    """

    start: int
    first: int
    stop: int
    version: int
    address_size: int
    offset_size: int
    abbrev: int
    signature: int | None = None
    type_at: int = 0

    @property
    def is_usual(self) -> bool:
        """Whether values have the sizes that abbreviations count with."""
        return self.offset_size == 4 and self.address_size == 8 and self.version > 2


class Units:
    """The units of a file, in their order.

    Args:
        info: .debug_info.
        endian: byte order.
        types_at: where .debug_types begins, which stands behind it.
        late: what brings it, where it is not there.
    """

    def __init__(self, info: Octets, endian: Endian, types_at: int, late: LateSection | None) -> None:
        self._info, self._late = info, late
        self._endian: Endian = endian
        self._types_at = types_at
        self._known: dict[int, Unit] = {}

    def __iter__(self) -> Iterator[Unit]:
        """Give all units.

        Raises:
            CorruptDumpError: the header of one makes no sense, or they do not follow one another.
        """
        return map(self._unit, self._starts)

    def beginning(self, at: int) -> Unit | None:
        """Give the unit that an index says to begin at an offset; None where it cannot."""
        try:
            return self._unit(at) if at < len(self._info) else None
        except CorruptDumpError:
            return None

    def around(self, at: int) -> Unit | None:
        """Find the unit that an offset lies in, its header too.

        Raises:
            CorruptDumpError: its header makes no sense, or the units before it do not follow one another.
        """
        if len(self._known) <= _FEW:  # walking over all of them takes longer
            for unit in self._known.values():
                if unit.start <= at < unit.stop:
                    return unit
        index = bisect_right(self._starts, at) - 1
        return self._unit(self._starts[index]) if index >= 0 and at < len(self._info) else None

    @cached_property
    def _starts(self) -> list[int]:
        return _starts(self._info, self._endian, self._late)

    def of_type(self, signature: int) -> Unit | None:
        """Find the type unit with a signature."""
        return self._types.get(signature)

    @cached_property
    def _types(self) -> dict[int, Unit]:
        return {unit.signature: unit for unit in self if unit.signature is not None}

    def _unit(self, start: int) -> Unit:
        found = self._known.get(start)
        if found is None:
            if self._late:
                self._late.bring(start, start + _LONGEST_HEADER)
            found = _unit(self._info, start, self._endian, is_type=start >= self._types_at)
            if self._late:
                self._late.bring(found.start, found.stop)
            self._known[start] = found
        return found


def _starts(info: Octets, endian: Endian, late: LateSection | None) -> list[int]:
    """Walk over the units by their lengths."""
    at, starts, end = 0, [], len(info)
    word, wide = struct.Struct(endian + "I").unpack_from, struct.Struct(endian + "Q").unpack_from
    while at < end:
        starts.append(at)
        if late:
            late.bring(at, at + _LENGTHS)
        try:
            (length,) = word(info, at)
            after = at + 4 + length if length != _DWARF64 else at + 12 + wide(info, at + 4)[0]
        except struct.error as error:
            raise CorruptDumpError("a unit's header leaves the section", offset=at, what=WHAT) from error
        if after > end or len(starts) > _UNITS_LIMIT:
            raise CorruptDumpError(
                f"a unit of {after - at} bytes: expected {end - at} at most, and no more than {_UNITS_LIMIT} units",
                offset=at,
                what=WHAT,
            )
        at = after
    return starts


def _unit(info: Octets, start: int, endian: Endian, *, is_type: bool) -> Unit:
    """Read the header of a unit, which begins in the section."""
    try:
        unit = _header(info, start, endian, is_type=is_type)
    except struct.error as error:
        raise CorruptDumpError("a unit's header leaves the section", offset=start, what=WHAT) from error
    if not 2 <= unit.version <= 5 or not unit.first <= unit.stop <= len(info):
        raise CorruptDumpError(
            f"unit of version {unit.version} and {unit.stop - start:,} bytes: expected versions 2 to 5, and "
            f"{unit.first - start} to {len(info) - start:,} bytes",
            offset=start,
            what=WHAT,
        )
    return unit


def _header(info: Octets, start: int, endian: Endian, *, is_type: bool) -> Unit:
    (length,) = struct.unpack_from(endian + "I", info, start)
    at, word, offset_size = start + 4, "I", 4
    if length == _DWARF64:
        (length,) = struct.unpack_from(endian + "Q", info, at)
        at, word, offset_size = at + 8, "Q", 8
    stop = at + length
    (version,) = struct.unpack_from(endian + "H", info, at)
    if version < 5:
        abbrev, address_size = struct.unpack_from(f"{endian}{word}B", info, at + 2)
        first = at + 3 + offset_size
    else:
        kind, address_size, abbrev = struct.unpack_from(f"{endian}2B{word}", info, at + 2)
        first, is_type = at + 4 + offset_size + (8 if kind in _DWO else 0), kind in _TYPE
    signature, type_at = None, 0
    if is_type:
        signature, type_at = struct.unpack_from(f"{endian}Q{word}", info, first)
        first += 8 + offset_size
    return Unit(start, first, stop, version, address_size, offset_size, abbrev, signature, type_at)
