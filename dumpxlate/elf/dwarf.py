"""Debug information of a program: where members of structures lie, and where variables are. Nothing else is read.

::

    with open_debug_info("qemu-system-x86_64.debug") as info:
        info.field("FlatRange.addr.start")      # Field(offset=16, size=16, kind="base", ...)
        info.size("FlatRange")                  # 64
        info.address("address_space_memory")    # as linked; add the load bias

One structure out of 200 MB costs milliseconds (``die_search``). The first complete definition counts. Debug information
that dwz moved into a file that several programs share is followed there. What gcc and clang write is read, type units
too; what they left beside the program (split DWARF, ``.dwo``) is only named.

Sources: the DWARF 5 standard, chapters 4 and 5; dwz(1).
"""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING, NamedTuple, Self

from dumpxlate.elf.address_ranges import units_of_addresses
from dumpxlate.elf.container import read_elf
from dumpxlate.elf.die_search import named
from dumpxlate.elf.dies import DebugSections, Dies
from dumpxlate.elf.dwarf_encoding import uleb
from dumpxlate.elf.dwarf_numbers import AT, TAG
from dumpxlate.elf.sections import build_id_of, late_section, section_bytes
from dumpxlate.elf.symbols import elf_symbols
from dumpxlate.elf.units import WHAT
from dumpxlate.errors import CorruptDumpError, FormatError, UnknownFormatError

if TYPE_CHECKING:
    from dumpxlate.elf.container import ElfFile
    from dumpxlate.elf.dies import Die
    from dumpxlate.elf.symbols import Symbols
    from dumpxlate.elf.units import Unit
    from dumpxlate.io.source import Source

__all__ = ["AlternateFile", "DebugInfo", "Field", "alternate_of", "read_debug_info"]

_STRUCTS = frozenset(TAG[name] for name in ("structure_type", "union_type", "class_type"))
_TYPEDEF, _VARIABLE, _FUNCTION = (frozenset({TAG[name]}) for name in ("typedef", "variable", "subprogram"))
_QUALIFIERS = {TAG[name] for name in ("typedef", "const_type", "volatile_type", "restrict_type", "atomic_type")}
_KINDS = {
    TAG["base_type"]: "base",
    TAG["pointer_type"]: "pointer",
    TAG["array_type"]: "array",
    TAG["enumeration_type"]: "enum",
    **dict.fromkeys(_STRUCTS, "struct"),
}
_CHAIN_LIMIT = 64
_NAMELESS_LIMIT = 1024
"""Nameless structures in one: those of QEMU's processors have some ten."""
_UNITS_LOOKED_AT = 4096
"""Units that are asked whether they are split; programs have them all alike, but for those in assembler."""
_OP_ADDR, _OP_PLUS_UCONST, _OP_ADDRX = 0x03, 0x23, 0xA1


class Field(NamedTuple):
    """Where a member of a structure lies.

    Attributes:
        offset: from the structure's start, bytes.
        size: bytes; 0 where the type does not tell.
        kind: "base", "pointer", "struct", "array", "enum" or "other".
        element: bytes of an element, for arrays.
    """

    offset: int
    size: int
    kind: str
    element: int = 0


class AlternateFile(NamedTuple):
    """The file that dwz moved shared entries to: its name as the link has it, and its build id."""

    name: str
    build_id: str


class DebugInfo:
    """What a program's debug information says of the names asked for. A ``with`` block closes the files it owns.

    Args:
        file: the file's headers.
        dies: its entries.
        symbols: its symbol table, if it has one.
        build_id: names the build.
    """

    def __init__(self, file: ElfFile, dies: Dies, symbols: Symbols | None, build_id: str | None) -> None:
        self.build_id = build_id
        self.entry = file.header.e_entry
        self.machine = file.header.e_machine
        self.bits = file.bits
        self.endian = file.endian
        self.dies = dies
        self._symbols = symbols
        self._types: dict[str, Die | None] = {}
        self._known: dict[tuple[int, int], dict[bytes, tuple[int, Die]]] = {}
        self._near: tuple[Unit, ...] = ()
        self._owned = contextlib.ExitStack()

    def own(self, files: contextlib.ExitStack) -> Self:
        """Take over what is to be closed with this."""
        self._owned.push(files.pop_all())
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._owned.close()

    def begin_beside(self, *names: str) -> None:
        """Look for types first in the units that have some functions, of those names that there are.

        A type that is declared in many units and defined in one is found so without looking at all of them. Where
        the addresses of functions do not lead to units, the first name is searched for, of a variable too.

        Raises:
            CorruptDumpError: the debug information contradicts itself.
        """
        addresses = {address for name in names if (address := self._symbol(name)) is not None}
        places = units_of_addresses(self.dies.sections.ranges, self.endian, addresses).values()
        found = [unit for at in places if (unit := self.dies.units.beginning(at))]
        if not found:
            first = (die.unit for die in named(self.dies, names[0], _VARIABLE | _FUNCTION) if die.file is self.dies)
            found = list(itertools.islice(first, 1))
        self._near = tuple(dict.fromkeys([*self._near, *found]))

    def split_off(self) -> str | None:
        """Name a file that compilers left debug information in (split DWARF, ``.dwo``); None where none is met.

        Raises:
            CorruptDumpError: the debug information contradicts itself.
        """
        for unit in itertools.islice(self.dies.units, _UNITS_LOOKED_AT):
            first = self.dies.die(unit.first, unit)
            name = first.text("dwo_name") or first.text("GNU_dwo_name")
            if name:
                return name.decode("utf-8", "replace")
        return None

    def size(self, name: str) -> int | None:
        """Give the bytes of a structure or of another named type; None where there is none of that name.

        Raises:
            CorruptDumpError: the debug information contradicts itself.
        """
        found = self._type(name)
        return None if found is None else _size(found)

    def field(self, path: str) -> Field | None:
        """Find a member, of a member, ... of a structure; members of nameless ones count as its own.

        Args:
            path: a structure's tag or the name of a typedef, then members: "FlatRange.addr.start".

        Returns:
            Where it lies, or None where the structure, or a member on the way, does not exist.

        Raises:
            CorruptDumpError: the debug information contradicts itself.
        """
        first, *members = path.split(".")
        die: Die | None = self._type(first)
        offset = 0
        for name in members:
            found = self._members(die).get(name.encode()) if die else None
            if found is None:
                return None
            offset, die = offset + found[0] + _location(found[1]), self._complete(found[1].target("type"))
        return None if die is None else _described(die, offset)

    def address(self, name: str) -> int | None:
        """Give the address that a variable or a function is linked to; None where there is none of that name.

        Raises:
            CorruptDumpError: the debug information contradicts itself.
        """
        found = self.variable(name)
        return None if found is None else found[1]

    def variable(self, *names: str) -> tuple[str, int] | None:
        """Give the first of some names that a variable has, and the address that it is linked to.

        The symbol table is asked first, for all of them: it is small. A variable inside a function is found by its own
        name all the same, although compilers add a number to its symbol.

        Raises:
            CorruptDumpError: the debug information contradicts itself.
        """
        for place in (self._symbol, self._located):
            for name in names:
                address = place(name)
                if address is not None:
                    return name, address
        return None

    def _symbol(self, name: str) -> int | None:
        return self._symbols.address(name) if self._symbols else None

    def _located(self, name: str) -> int | None:
        """Give the address of a variable as its entry has it."""
        for die in named(self.dies, name, _VARIABLE, near=self._near):
            value = die.values.get(AT["location"])
            at = _address(die, value.data) if value and isinstance(value.data, bytes) else -1
            if at >= 0:
                return at
        return None

    def _members(self, die: Die) -> dict[bytes, tuple[int, Die]]:
        key = id(die.file), die.at
        if key not in self._known:
            self._known[key] = _members(die)
        return self._known[key]

    def _complete(self, die: Die | None) -> Die | None:
        """Strip names and qualifiers off a type; where a unit has only declared it, find the definition."""
        found = _stripped(die)
        if found is not None and found.tag in _STRUCTS and AT["declaration"] in found.values:
            if AT["signature"] in found.values:
                return found.target("signature")
            name = found.text()
            return self._type(name.decode("latin-1")) if name else None
        return found

    def _type(self, name: str) -> Die | None:
        """Find the complete definition of a type: of a structure by its tag, else by what a typedef calls it."""
        if name not in self._types:
            others = (die.unit for die in self._types.values() if die and die.file is self.dies)
            near = dict.fromkeys((*self._near, *others))
            found = next(named(self.dies, name, _STRUCTS | {TAG["base_type"]}, near=near), None)
            if found is None:
                types = (_stripped(die) for die in named(self.dies, name, _TYPEDEF, near=near))
                found = next((die for die in types if die and AT["declaration"] not in die.values), None)
            self._types[name] = found
        return self._types[name]


def read_debug_info(source: Source, *, file: ElfFile | None = None, alternate: DebugInfo | None = None) -> DebugInfo:
    """Read the debug information of a program, or of the file that it was split off to.

    Entries are read from the source when they are looked at: it must stay open.

    Args:
        source: the file.
        file: its headers, where somebody has read them.
        alternate: what ``alternate_of`` names, where it is at hand.

    Raises:
        UnknownFormatError: it has no debug information.
        CorruptDumpError: it contradicts itself.
    """
    try:
        file = file or read_elf(source)
        sections = _sections(source, file)
        if not sections.info:
            raise UnknownFormatError("has no debug information (.debug_info)")
        dies = Dies(sections, file.endian, alternate=alternate.dies if alternate else None)
        try:
            symbols = elf_symbols(source, file)
        except UnknownFormatError:
            symbols = None
        return DebugInfo(file, dies, symbols, build_id_of(source, file))
    except FormatError as error:
        error.path = error.path or source.name
        raise


def _sections(source: Source, file: ElfFile) -> DebugSections:
    """Read the sections; what .debug_types holds is put behind what .debug_info holds."""
    types, abbrev, strings, line_strings, offsets, addresses, ranges = (
        section_bytes(source, file, f".debug_{name}")
        for name in ("types", "abbrev", "str", "line_str", "str_offsets", "addr", "aranges")
    )
    late = None if types else late_section(source, file, ".debug_info")
    info = late.data if late else section_bytes(source, file, ".debug_info") + types
    types_at = len(info) - len(types)
    return DebugSections(info, abbrev, strings, line_strings, offsets, addresses, ranges, types_at, late)


def alternate_of(source: Source, file: ElfFile | None = None) -> AlternateFile | None:
    """Say where dwz moved the entries that a file shares with others.

    Args:
        source: the file.
        file: its headers, where somebody has read them.

    Raises:
        CorruptDumpError: the headers contradict the file.
    """
    name, _, build_id = section_bytes(source, file or read_elf(source), ".gnu_debugaltlink").partition(b"\0")
    return AlternateFile(name.decode("utf-8", "replace"), build_id.hex()) if build_id else None


def _stripped(die: Die | None) -> Die | None:
    """Follow typedefs and qualifiers to the type itself; None for void, and for what is not at hand."""
    for _ in range(_CHAIN_LIMIT):
        if die is None or die.tag not in _QUALIFIERS:
            return die
        die = die.target("type")
    raise CorruptDumpError("a type is defined by itself", what=WHAT)


def _members(die: Die) -> dict[bytes, tuple[int, Die]]:
    """Give the members of a structure by name; with each where the structure is that it lies right in."""
    found: dict[bytes, tuple[int, Die]] = {}
    holders = [(die, 0)]
    for holder, start in holders:
        if len(holders) > _NAMELESS_LIMIT:
            raise CorruptDumpError("structures inside one another do not end", offset=die.at, what=WHAT)
        for child in holder.children() if holder.tag in _STRUCTS else ():
            if child.tag != TAG["member"]:
                continue
            label = child.text()
            if label is not None:
                found.setdefault(label, (start, child))
            elif (nameless := _stripped(child.target("type"))) is not None:
                holders.append((nameless, start + _location(child)))
    return found


def _address(variable: Die, location: bytes) -> int:
    """Give the address that a variable has always, or by its number; -1 where its place differs."""
    operation, size = location[:1], variable.unit.address_size
    if operation == bytes([_OP_ADDR]) and len(location) == 1 + size:
        return int.from_bytes(location[1:], variable.file.order)
    if operation == bytes([_OP_ADDRX]):
        return variable.file.numbered(variable.unit, "address", _operand(variable, location))
    return -1


def _operand(die: Die, expression: bytes) -> int:
    """Give the number that the first operation of an expression has.

    Raises:
        CorruptDumpError: it has none.
    """
    try:
        return uleb(expression, 1)[0]
    except (IndexError, ValueError) as error:
        raise CorruptDumpError("an operation without its number", offset=die.at, what=WHAT) from error


def _location(member: Die) -> int:
    """Give the offset of a member; DWARF 2 has it as an expression."""
    value = member.values.get(AT["data_member_location"])
    if value is None:
        return member.number("data_bit_offset") // 8
    if isinstance(value.data, int):
        return value.data
    if value.data[:1] != bytes([_OP_PLUS_UCONST]):
        raise CorruptDumpError("a member without a fixed place", offset=member.at, what=WHAT)
    return _operand(member, value.data)


def _described(die: Die, offset: int) -> Field:
    kind = _KINDS.get(die.tag, "other")
    element = _size(_stripped(die.target("type"))) if kind == "array" else 0
    return Field(offset, _size(die), kind, element)


def _size(die: Die | None, depth: int = 0) -> int:
    """Give the bytes of a type; 0 where it does not tell."""
    if die is None or depth > _CHAIN_LIMIT:
        return 0
    if AT["byte_size"] in die.values or die.tag != TAG["array_type"]:
        pointer = die.unit.address_size if die.tag == TAG["pointer_type"] else 0
        return die.number("byte_size", pointer)
    size = _size(_stripped(die.target("type")), depth + 1)
    for child in die.children():
        if child.tag == TAG["subrange_type"]:
            size *= child.number("count", child.number("upper_bound", -1) + 1)
    return size
