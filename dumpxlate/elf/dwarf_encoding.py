"""How entries of debug information are encoded (DWARF 2 to 5): tables of abbreviations, forms of values.

Sources: the DWARF 5 standard, sections 7.4 to 7.6; extensions of gcc and dwz as in binutils' dwarf2.def.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from dumpxlate.elf.dwarf_numbers import AT, FORM
from dumpxlate.elf.units import WHAT, Unit
from dumpxlate.errors import CorruptDumpError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dumpxlate.elf.late import Octets

__all__ = [
    "ALTERNATE_REFERENCES",
    "ALTERNATE_STRINGS",
    "BLOCKS",
    "LEB",
    "LEB_BLOCKS",
    "REFERENCES",
    "STRING_INDEXES",
    "Abbreviation",
    "Abbreviations",
    "size_of_form",
    "sleb",
    "uleb",
]

_CODES_LIMIT = 1 << 16
_ATTRIBUTES_LIMIT = 256
"""Attributes of one entry: compilers write 30 at most."""

_U = rb"[\x80-\xff]*+[\x00-\x7f]"
_DECLARATION = re.compile(
    rb"(?!\x00)(%b)(%b)(.)((?:(?!\x00\x00)%b(?:\x21%b|(?!\x21)%b))*+)\x00\x00" % (_U, _U, _U, _U, _U), re.DOTALL
)
"""An abbreviation: its code, tag, whether children follow, attributes each with its form (0x21 with a constant)."""


class Abbreviation(NamedTuple):
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
    """A table of abbreviations, read as far as it was needed: many that stand before the wanted one are passed over."""

    data: bytes
    at: int
    ended: bool = False
    _passed: dict[int, re.Match[bytes]] = field(default_factory=dict)
    _known: dict[int, Abbreviation] = field(default_factory=dict)

    def get(self, code: int) -> Abbreviation | None:
        """Find the abbreviation of a code."""
        found = self._known.get(code)
        if found is None:
            while code not in self._passed and not self.ended:
                self._pass()
            if code in self._passed:
                found = self._known[code] = _abbreviation(self._passed[code])
        return found

    def all(self) -> Iterator[tuple[bytes, Abbreviation]]:
        """Give all, each with its code as it stands in entries."""
        while not self.ended:
            self._pass()
        for code, match in self._passed.items():
            found = self.get(code)
            if found:
                yield match[1], found

    def _pass(self) -> None:
        if len(self._passed) >= _CODES_LIMIT:
            raise CorruptDumpError(f"more than {_CODES_LIMIT} abbreviations", offset=self.at, what=WHAT)
        match = _DECLARATION.match(self.data, self.at) if self.at < len(self.data) else None
        if match:
            self._passed.setdefault(uleb(match[1], 0)[0], match)
            self.at = match.end()
        elif self.data[self.at]:
            raise ValueError("an abbreviation that does not end")
        else:
            self.ended = True


def _abbreviation(match: re.Match[bytes]) -> Abbreviation:
    pairs, at, forms = match[4], 0, []
    while at < len(pairs):
        attribute, at = uleb(pairs, at)
        form, at = uleb(pairs, at)
        constant, at = sleb(pairs, at) if form == FORM["implicit_const"] else (0, at)
        forms.append((attribute, form, constant))
        if len(forms) > _ATTRIBUTES_LIMIT:  # some take no room in entries
            raise CorruptDumpError(
                f"more than {_ATTRIBUTES_LIMIT} attributes", offset=match.start(), what="abbreviation"
            )
    return Abbreviation(uleb(match[2], 0)[0], match[3] != b"\0", tuple(forms), *_usual_places(forms))


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


def uleb(data: Octets, at: int) -> tuple[int, int]:
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


def sleb(data: Octets, at: int) -> tuple[int, int]:
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
STRING_INDEXES = {FORM[name]: size for name, size in (("strx1", 1), ("strx2", 2), ("strx3", 3), ("strx4", 4))}
"""Forms of strings by their number, and bytes of that; compilers do not write one of variable length in programs."""
REFERENCES = _forms("ref1 ref2 ref4 ref8 ref_udata")
ALTERNATE_REFERENCES = _forms("ref_sup4 ref_sup8 GNU_ref_alt")
ALTERNATE_STRINGS = _forms("strp_sup GNU_strp_alt")


def size_of_form(unit: Unit, form: int) -> int | None:
    """Give the bytes of a value of a form that has a fixed size."""
    if form in _SIZES:
        return _SIZES[form]
    if form in _OFFSETS:
        return unit.address_size if form == FORM["ref_addr"] and unit.version == 2 else unit.offset_size
    return unit.address_size if form == FORM["addr"] else None


_USUAL = Unit(start=0, first=0, stop=0, version=5, address_size=8, offset_size=4, abbrev=0)
