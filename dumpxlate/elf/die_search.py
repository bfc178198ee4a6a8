"""Finds entries of debug information by name, without reading it in order.

A name is found by searching .debug_info for the offset that it has in .debug_str, or, in the units that number their
strings, for its number. Both look like other numbers: an entry counts only when walking over its unit leads to it.

Sources: the DWARF 5 standard, sections 2.15 and 7.5.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import islice
from typing import TYPE_CHECKING, TypeAlias

from dumpxlate.elf.dwarf_encoding import STRING_INDEXES, uleb
from dumpxlate.elf.dwarf_numbers import AT, FORM
from dumpxlate.elf.search import places
from dumpxlate.elf.units import WHAT
from dumpxlate.errors import CorruptDumpError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from dumpxlate.elf.dies import Die, Dies
    from dumpxlate.elf.units import Unit

__all__ = ["named"]

_Encoding: TypeAlias = "tuple[bytes, frozenset[int]]"
"""Bytes that a name is in an entry, and the forms that look so."""

_STRP, _IN_PLACE = frozenset({FORM["strp"]}), frozenset({FORM["string"]})
_STRP_ALTERNATE = frozenset({FORM["strp_sup"], FORM["GNU_strp_alt"]})
_STRINGS_LIMIT = 256
_CANDIDATES_LIMIT = 1 << 16
_SEARCHES_LIMIT = 16
"""Times that all units are searched for one name: a unit has a string once, two names may end alike."""
_HEADS_LIMIT = 1024
"""Kinds of entries with names that one unit has: real ones have some thirty."""
_ENTRIES_LIMIT = 1 << 20
"""Entries below one."""
_DEPTH_LIMIT = 64
_LONGEST_HEAD = 12
"""Bytes of an entry before its name: the code of its abbreviation, and a reference to its sibling (dwz)."""


def named(dies: Dies, name: str, tags: frozenset[int], *, near: Collection[Unit] = ()) -> Iterator[Die]:
    """Find complete definitions by name.

    A name's offset looks like other numbers: an entry counts only when walking over its unit leads to it.

    Args:
        dies: where.
        name: exactly.
        tags: what they describe.
        near: units that are searched first: structures that belong together are found together.

    Raises:
        CorruptDumpError: there are more candidates than any program has.
    """
    budget = _CANDIDATES_LIMIT
    for candidates in (_in_place(dies, name, tags, near), _by_number(dies, name, tags, near)):
        for die in candidates:
            budget -= 1
            if budget < 0:
                raise CorruptDumpError(f"too many entries may be {name!r}", what=WHAT)
            if die and AT["declaration"] not in die.values and _begins_at(dies, die.unit, die.at):
                yield die
    if dies.alternate:
        yield from named(dies.alternate, name, tags)


def _in_place(dies: Dies, name: str, tags: frozenset[int], near: Collection[Unit]) -> Iterator[Die | None]:
    """Find what may be entries with a name, or with its offset; None for each place that is none."""
    encodings = []
    for encoding in _encodings(dies, name):
        encodings.append(encoding)
        for unit in near:
            yield from _encoded(dies, encoding, dies.sections.info[unit.first : unit.stop], unit.first, tags)
    for encoding in encodings:
        yield from _encoded(dies, encoding, dies.sections.everything, 0, tags)


def _encoded(dies: Dies, name: _Encoding, entries: bytes, start: int, tags: frozenset[int]) -> Iterator[Die | None]:
    """Find what may be entries with a name that is encoded in one way, among those from some offset on."""
    pattern, forms = name
    for at in places(entries, pattern):
        yield None
        yield from _named_at(dies, start + at, forms, tags)


def _by_number(dies: Dies, name: str, tags: frozenset[int], near: Collection[Unit]) -> Iterator[Die | None]:
    """Find what may be entries with the number of a name: units number their strings (DWARF 5, as clang writes it).

    Raises:
        CorruptDumpError: units share so much that searching them would not end.
    """
    found: list[tuple[Unit, int]] = []
    work = _SEARCHES_LIMIT * len(dies.sections.info)
    for unit, number in (row for at in _offsets(dies.sections.strings, name) for row in dies.numbers.of(at)):
        work -= unit.stop - unit.start
        if work < 0:
            raise CorruptDumpError(f"too many units number {name!r}", offset=unit.start, what=WHAT)
        found.append((unit, number))
    found.sort(key=lambda row: row[0] not in near)
    for unit, number in found:
        yield None
        yield from _numbered(dies, unit, number, tags)


def _encodings(dies: Dies, name: str) -> Iterator[_Encoding]:
    """Give what a name may be in an entry, the likely first."""
    text = name.encode() + b"\0"
    shared = dies.alternate.sections.strings if dies.alternate else b""
    for strings, forms in ((dies.sections.strings, _STRP), (shared, _STRP_ALTERNATE)):
        yield from ((at.to_bytes(4, dies.order), forms) for at in _offsets(strings, name))
    yield text, _IN_PLACE


def _offsets(strings: bytes, name: str) -> Iterator[int]:
    """Find where a name stands among strings; linkers let a string end another one, which is the less likely."""
    ends = []
    for at in islice(places(strings, name.encode() + b"\0"), _STRINGS_LIMIT):
        if at and strings[at - 1]:
            ends.append(at)
        else:
            yield at
    yield from ends


def _named_at(dies: Dies, at: int, forms: frozenset[int], tags: frozenset[int]) -> Iterator[Die]:
    """Decode the entries, of some tags, whose name may be what stands at an offset.

    Args:
        dies: where.
        at: where in .debug_info the name is, or what refers to it.
        forms: how names are encoded that look so.
        tags: what the entries describe.

    Raises:
        CorruptDumpError: abbreviations do not decode.
    """
    unit = dies.unit_at(at)
    if unit is None:
        return
    for start in range(at - 1, max(at - _LONGEST_HEAD, unit.first) - 1, -1):
        try:
            code, after = uleb(dies.sections.info, start)
            found = dies.table(unit).get(code) if code and after <= at else None
        except (IndexError, ValueError):
            continue
        if found and found.tag in tags and found.name[1] in forms and after + found.name[0] == at:
            yield from _entry(dies, unit, start)


def _numbered(dies: Dies, unit: Unit, number: int, tags: frozenset[int]) -> Iterator[Die]:
    """Decode the entries of a unit, of some tags, whose name may be the string of a number.

    Raises:
        CorruptDumpError: abbreviations do not decode.
    """
    info = dies.sections.info
    for width, heads in _heads(dies, unit, tags).items():
        if number >> 8 * width:
            continue
        pattern = number.to_bytes(width, dies.order)
        for at in places(info[unit.first : unit.stop], pattern):
            for gap, code in heads:
                start = unit.first + at - gap - len(code)
                if start >= unit.first and info[start : start + len(code)] == code:
                    yield from _entry(dies, unit, start)


def _entry(dies: Dies, unit: Unit, at: int) -> Iterator[Die]:
    """Decode what looks like an entry; nothing where it does not decode, and none begins there.

    Raises:
        CorruptDumpError: one begins there.
    """
    try:
        yield dies.die(at, unit)
    except CorruptDumpError:
        if _begins_at(dies, unit, at):
            raise


def _heads(dies: Dies, unit: Unit, tags: frozenset[int]) -> dict[int, list[tuple[int, bytes]]]:
    """Give the codes of entries, of some tags, whose names have numbers: by width, with the bytes between."""
    found: dict[int, list[tuple[int, bytes]]] = {}
    try:
        for code, shape in dies.table(unit).all():
            gap, form = shape.name
            if shape.tag in tags and gap >= 0 and form in STRING_INDEXES:
                found.setdefault(STRING_INDEXES[form], []).append((gap, code))
    except (IndexError, ValueError) as error:
        raise CorruptDumpError("abbreviations leave their section", offset=unit.abbrev, what=WHAT) from error
    if sum(map(len, found.values())) > _HEADS_LIMIT:
        raise CorruptDumpError(f"more than {_HEADS_LIMIT} kinds of names", offset=unit.abbrev, what=WHAT)
    return found


def _begins_at(dies: Dies, unit: Unit, at: int) -> bool:
    """Tell whether an entry of a unit really begins at an offset: walks over those before it, from the first.

    Raises:
        CorruptDumpError: they do not decode.
    """
    outer = dies.walked(unit)
    while outer[-1] < at:
        after = _behind(dies, unit, outer[-1])
        if after == outer[-1]:  # the end of the list
            return False
        outer.append(after)
    if at < outer[0]:
        return False
    around = outer[bisect_right(outer, at) - 1]
    for _ in range(_DEPTH_LIMIT):
        if around == at:
            return True
        here = dies.die(around, unit).after
        if here > at:
            return False
        while here < at:
            around, here = here, _behind(dies, unit, here)
            if here == around:
                return False
        around = at if here == at else around
    return False


def _behind(dies: Dies, unit: Unit, at: int) -> int:
    """Give where the entry behind one and all below it begins; where it is itself, for the end of a list."""
    found, after = dies.skip(unit, at)
    if found is None:
        return at
    if not found.children:
        return after
    if found.sibling >= 0 and found.size >= 0 and unit.is_usual:
        place = after - found.size + found.sibling
        following = unit.start + int.from_bytes(dies.sections.info[place : place + 4], dies.order)
        if following > after:
            return following
    return dies.behind_all(unit, after, 1, _ENTRIES_LIMIT)[0]
