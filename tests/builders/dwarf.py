"""Debug information, DWARF 2 to 5: entries to bytes, and an ELF file around them."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .elf import EHDR, SHDR, SIZES
from .elf_notes import note
from .packing import pack

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["AT", "FORM", "TAG", "Die", "Strings", "base", "build", "elf_file", "member", "pointer", "structure"]

TAG = {
    "array": 0x01, "enum": 0x04, "formal": 0x05, "member": 0x0D, "pointer": 0x0F, "unit": 0x11, "structure": 0x13,
    "typedef": 0x16, "union": 0x17, "subrange": 0x21, "base": 0x24, "const": 0x26, "function": 0x2E,
    "variable": 0x34, "type_unit": 0x41,
}  # fmt: skip
AT = {
    "sibling": 0x01, "location": 0x02, "name": 0x03, "byte_size": 0x0B, "upper_bound": 0x2F, "count": 0x37,
    "data_member_location": 0x38, "declaration": 0x3C, "type": 0x49, "signature": 0x69, "str_offsets_base": 0x72,
    "addr_base": 0x73, "dwo_name": 0x76, "GNU_dwo_name": 0x2130,
}  # fmt: skip
FORM = {
    "addr": 0x01, "block2": 0x03, "data2": 0x05, "data4": 0x06, "data8": 0x07, "string": 0x08, "block1": 0x0A,
    "data1": 0x0B, "flag": 0x0C, "sdata": 0x0D, "strp": 0x0E, "udata": 0x0F, "ref_addr": 0x10, "ref4": 0x13,
    "sec_offset": 0x17, "exprloc": 0x18, "flag_present": 0x19, "ref_sig8": 0x20, "implicit_const": 0x21, "strx1": 0x25,
    "strx2": 0x26, "strx3": 0x27, "strx4": 0x28, "strp_alt": 0x1F21, "ref_alt": 0x1F20,
}  # fmt: skip
SIZES_OF = {"data1": 1, "flag": 1, "data2": 2, "data4": 4, "data8": 8, "ref4": 4, "strp_alt": 4, "ref_alt": 4,
            "ref_sig8": 8, "strx1": 1, "strx2": 2, "strx3": 3, "strx4": 4}  # fmt: skip


@dataclass(eq=False)
class Die:
    """An entry: (attribute, form, value) each; a value that refers to an entry is that entry."""

    tag: str
    values: list[tuple[str, str, Any]] = field(default_factory=list)
    children: list[Die] = field(default_factory=list)
    at: int = 0


class Strings:
    """A .debug_str under way; names that end alike share their bytes."""

    def __init__(self, body: bytes = b"\0") -> None:
        self.body = body

    def add(self, text: str) -> int:
        data = text.encode() + b"\0"
        if data not in self.body:
            self.body += data
        return self.body.index(data)


def base(name: str, size: int) -> Die:
    return Die("base", [("name", "strp", name), ("byte_size", "data1", size)])


def pointer(target: Die | None = None, size: int = 8) -> Die:
    return Die("pointer", [("byte_size", "data1", size)] + ([("type", "ref4", target)] if target else []))


def member(name: str | None, at: int | bytes, kind: Die, *, ref: str = "ref4", form: str = "strp") -> Die:
    """A member; bytes are a location expression, as DWARF 2 has it."""
    values: list[tuple[str, str, Any]] = [("name", form, name)] if name else []
    where = ("data_member_location", "block1" if isinstance(at, bytes) else "data2", at)
    return Die("member", [*values, ("type", ref, kind), where])


def structure(name: str | None, size: int, *members: Die, tag: str = "structure", form: str = "strp") -> Die:
    values: list[tuple[str, str, Any]] = [("name", form, name)] if name else []
    return Die(tag, [*values, ("byte_size", "data2", size)], list(members))


def uleb(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def build(
    units: Sequence[Sequence[Die]],
    *,
    version: int = 4,
    order: str = "<",
    address: int = 8,
    strings: Strings | None = None,
    shared: Strings | None = None,
    first_code: int = 1,
    types: Mapping[int, Sequence[Die]] | None = None,
    numbered: str = "",
    first_number: int = 0,
    addresses: Sequence[int] = (),
    split: str = "",
) -> dict[str, bytes]:
    """The sections .debug_info, .debug_abbrev and .debug_str of some units, and those that else are needed.

    Args:
        units: what stands in each below its unit entry.
        strings: takes the strings; ``shared`` those of the form strp_alt.
        first_code: of the abbreviations.
        types: what stands in type units, by their signature; the last of each is the type that it is of.
        numbered: the form in which strings have numbers (strx1 to strx4), as clang writes them, instead of strp.
        first_number: of a unit's strings that is used.
        addresses: those with numbers.
        split: name of the file that the rest of each unit is split off to.
    """
    strings = strings or Strings()
    maker = _Maker(version, order, address, strings, shared or Strings(), first_code, numbered, first_number)
    bases = [("str_offsets_base", "sec_offset", 0)] if numbered else []
    bases += [("addr_base", "sec_offset", 8)] if addresses else []
    if split:
        bases.append(("dwo_name" if version >= 5 else "GNU_dwo_name", "strp", split))
    roots = [Die("unit", [("name", "strp", "unit.c"), *bases], list(children)) for children in units]
    type_roots = {signature: Die("type_unit", list(bases), list(each)) for signature, each in (types or {}).items()}
    for _ in range(2):  # sizes do not depend on what references lead to
        maker.tables.clear()
        # Since DWARF 5 type units stand among the others.
        info = maker.info(roots, type_roots if version >= 5 else {})
        apart = maker.info([], type_roots) if version < 5 else b""
    made = {".debug_info": info, ".debug_abbrev": maker.abbrev(), ".debug_str": strings.body}
    made |= {".debug_types": apart} if apart else {}
    made |= {".debug_str_offsets": maker.string_offsets()} if numbered else {}
    table = b"".join(struct.pack(order + ("Q" if address == 8 else "I"), each) for each in addresses)
    return made | ({".debug_addr": struct.pack(order + "IHBB", 4 + len(table), 5, address, 0) + table} if table else {})


def address_ranges(
    units: Sequence[tuple[int, Sequence[tuple[int, int]]]], *, order: str = "<", address: int = 8, wide: bool = False
) -> bytes:
    """A .debug_aranges: offset of each unit in .debug_info, and the ranges (address, length) of its code."""
    out, pair = b"", struct.Struct(order + ("2Q" if address == 8 else "2I"))
    for unit, ranges in units:
        head = struct.pack(order + ("HQBB" if wide else "HIBB"), 2, unit, address, 0)
        before = 12 if wide else 4  # the length itself
        head += bytes(-(before + len(head)) % pair.size)
        body = head + b"".join(pair.pack(*each) for each in [*ranges, (0, 0)])
        out += struct.pack(order + "IQ", 0xFFFFFFFF, len(body)) if wide else struct.pack(order + "I", len(body))
        out += body
    return out


class _Maker:
    def __init__(
        self,
        version: int,
        order: str,
        address: int,
        strings: Strings,
        shared: Strings,
        first_code: int,
        numbered: str,
        first_number: int,
    ) -> None:
        self.version, self.order, self.address = version, order, address
        self.strings, self.shared, self.first = strings, shared, first_code
        self.numbered, self.first_number = numbered, first_number
        self.codes: dict[tuple[Any, ...], int] = {}
        self.tables: list[list[int]] = []  # offsets of a unit's strings, by their number

    def info(self, roots: Sequence[Die], types: Mapping[int, Die]) -> bytes:
        body = b""
        for root, signature in [(root, None) for root in roots] + [(root, each) for each, root in types.items()]:
            start = len(body)
            head = (11 if self.version < 5 else 12) + (0 if signature is None else 12)
            self.tables.append([0] * self.first_number)
            content = self.die(root, start, start + head)
            length = head - 4 + len(content)
            if self.version < 5:
                body += struct.pack(self.order + "IHIB", length, self.version, 0, self.address)
            else:
                kind = 1 if signature is None else 2
                body += struct.pack(self.order + "IHBBI", length, self.version, kind, self.address, 0)
            if signature is not None:
                body += struct.pack(self.order + "QI", signature, root.children[-1].at - start)
            body += content
        return body

    def string_offsets(self) -> bytes:
        """The tables of all units, each behind its header."""
        pack = struct.Struct(self.order + "I").pack
        return b"".join(
            struct.pack(self.order + "IHH", 4 + 4 * len(table), 5, 0) + b"".join(pack(at) for at in table)
            for table in self.tables
        )

    def number(self, text: str) -> int:
        """The number of a string in the last unit."""
        at, table = self.strings.add(text), self.tables[-1]
        if at not in table[self.first_number :]:
            table.append(at)
        return table.index(at, self.first_number)

    def base(self) -> int:
        """Where the table of the last unit begins: behind those before it, and its header."""
        return sum(8 + 4 * len(table) for table in self.tables[:-1]) + 8

    def die(self, die: Die, unit: int, at: int) -> bytes:
        die.at = at
        key = (die.tag, bool(die.children), tuple((name, self.form(form)) for name, form, _ in die.values))
        code = self.codes.setdefault(key, self.first + len(self.codes))
        out = uleb(code)
        for name, form, value in die.values:
            out += self.value(self.form(form), self.base() if name == "str_offsets_base" else value, unit)
        for child in die.children:
            out += self.die(child, unit, at + len(out))
        return out + (b"\0" if die.children else b"")

    def form(self, form: str) -> str:
        return self.numbered if self.numbered and form == "strp" else form

    def value(self, form: str, value: Any, unit: int) -> bytes:
        if form == "flag_present":
            return b""
        if form == "string":
            return bytes(value.encode() + b"\0")
        if form in ("block1", "exprloc"):
            return bytes([len(value)]) + bytes(value)
        if form == "udata":
            return uleb(value)
        if form == "strp":
            value = self.strings.add(value)
        elif form.startswith("strx"):
            value = self.number(value)
        elif form == "strp_alt":
            value = self.shared.add(value)
        elif isinstance(value, Die):
            value = value.at - (unit if form == "ref4" else 0)
        size = self.address if form == "addr" or (form == "ref_addr" and self.version == 2) else SIZES_OF.get(form, 4)
        return int(value & (1 << 8 * size) - 1).to_bytes(size, "little" if self.order == "<" else "big")

    def abbrev(self) -> bytes:
        out = b""
        for (tag, children, forms), code in self.codes.items():
            out += uleb(code) + uleb(TAG[tag]) + bytes([children])
            for name, form in forms:
                out += uleb(AT[name]) + uleb(FORM[form])
            out += b"\0\0"
        return out + b"\0"


def elf_file(
    sections: Mapping[str, bytes],
    *,
    bits: int = 64,
    order: str = "<",
    entry: int = 0,
    build_id: bytes = b"",
    symbols: Mapping[str, int] | None = None,
    compress: bool = False,
    compress_gnu: bool = False,
) -> bytes:
    """An ELF file with sections, without segments: what ``objcopy --only-keep-debug`` leaves.

    ``compress_gnu`` packs them as binutils did before 2016.
    """
    parts = [(name, 1, 0, body) for name, body in sections.items()]
    if compress_gnu:
        parts = [
            (name.replace(".debug", ".zdebug"), 1, 0, b"ZLIB" + struct.pack(">Q", len(body)) + zlib.compress(body))
            for name, _, _, body in parts
        ]
    if compress:
        header = order + ("IIQQ" if bits == 64 else "III")
        zeros = (0,) if bits == 64 else ()
        parts = [
            (name, 1, 0x800, struct.pack(header, 1, *zeros, len(body), 1) + zlib.compress(body))
            for name, _, _, body in parts
        ]
    if build_id:
        parts.append((".note.gnu.build-id", 7, 2, note("GNU", 3, build_id, order=order)))
    if symbols:
        parts += _symbol_table(symbols, bits, order)
    names = b"\0" + b"".join(name.encode() + b"\0" for name, *_ in parts) + b".shstrtab\0"
    parts.append((".shstrtab", 3, 0, names))
    ehsize, _, shentsize = SIZES[bits]
    body, headers = b"", pack(order, SHDR[bits], {})
    for name, kind, flags, content in parts:
        where = {"sh_offset": ehsize + len(body), "sh_size": len(content), "sh_flags": flags}
        headers += pack(order, SHDR[bits], {"sh_name": names.index(name.encode()), "sh_type": kind, **where})
        body += content
    header = {
        "magic": b"\x7fELF", "ei_class": bits // 32, "ei_data": 1 if order == "<" else 2, "ei_version": 1,
        "e_type": 3, "e_machine": 62, "e_version": 1, "e_entry": entry, "e_shoff": ehsize + len(body),
        "e_ehsize": ehsize, "e_shentsize": shentsize, "e_shnum": len(parts) + 1, "e_shstrndx": len(parts),
    }  # fmt: skip
    return pack(order, EHDR[bits], header) + body + headers


def _symbol_table(symbols: Mapping[str, int], bits: int, order: str) -> list[tuple[str, int, int, bytes]]:
    strings = b"\0"
    table = bytes(24 if bits == 64 else 16)
    for name, value in symbols.items():
        at = len(strings)
        strings += name.encode() + b"\0"
        if bits == 64:
            table += struct.pack(order + "IBBHQQ", at, 0x11, 0, 1, value, 8)
        else:
            table += struct.pack(order + "IIIBBH", at, value, 4, 0x11, 0, 1)
    return [(".symtab", 2, 0, table), (".strtab", 3, 0, strings)]
