"""Symbol tables: an ELF file as a linker leaves it, and System.map."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["elf_symbols", "system_map"]


def elf_symbols(
    symbols: Mapping[str, int] | Sequence[tuple[str, int, bool]], *, bits: int = 64,
    undefined: Iterable[str] = (), strip: bool = False,
) -> bytes:  # fmt: skip
    """An ELF file with nothing but a symbol table: (name, value, global); names that end alike share their string."""
    rows = [(name, value, True) for name, value in symbols.items()] if not isinstance(symbols, list) else symbols
    rows = [*rows, *((name, None, True) for name in undefined)]
    strings = b"\0"
    for name in sorted({name for name, _, _ in rows}, key=len, reverse=True):
        if name.encode() + b"\0" not in strings:
            strings += name.encode() + b"\0"
    table = bytes(24 if bits == 64 else 16)
    for name, value, is_global in rows:
        at, info, section = strings.index(name.encode() + b"\0"), 1 | is_global << 4, 0 if value is None else 1
        if bits == 64:
            table += struct.pack("<IBBHQQ", at, info, 0, section, value or 0, 8)
        else:
            table += struct.pack("<IIIBBH", at, value or 0, 4, info, 0, section)
    names = b"\0.symtab\0.strtab\0.shstrtab\0"
    head, entry = (64, 64) if bits == 64 else (52, 40)
    parts = [] if strip else [(1, 2, table), (9, 3, strings)]
    parts.append((17, 3, names))
    at = head + entry * (len(parts) + 1)
    headers, content = bytes(entry), b""
    for name_at, kind, body in parts:
        where = (at + len(content), len(body))
        if bits == 64:
            headers += struct.pack("<IIQQQQIIQQ", name_at, kind, 0, 0, *where, 0, 0, 1, 0)
        else:
            headers += struct.pack("<10I", name_at, kind, 0, 0, *where, 0, 0, 1, 0)
        content += body
    ident = b"\x7fELF" + bytes([bits // 32, 1, 1]).ljust(12, b"\0")
    form = "<HHIQQQIHHHHHH" if bits == 64 else "<HHIIIIIHHHHHH"
    count = len(parts) + 1
    header = struct.pack(form, 2, 62 if bits == 64 else 3, 1, 0, 0, head, 0, head, 0, 0, entry, count, count - 1)
    return ident + header + headers + content


def system_map(symbols: Mapping[str, int] | Sequence[tuple[str, int, str]], *, newline: str = "\n") -> bytes:
    """``nm``'s listing: (name, value, type letter)."""
    rows = [(name, value, "B") for name, value in symbols.items()] if not isinstance(symbols, list) else symbols
    return "".join(f"{value:016x} {letter} {name}{newline}" for name, value, letter in rows).encode()
