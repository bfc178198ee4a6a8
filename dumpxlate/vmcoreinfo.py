"""VMCOREINFO: the text in which a kernel tells dump tools about itself.

Lines of ``KEY=value``, written by Linux's kernel/vmcore_info.c (crash_core.c before 6.9)::

    OSRELEASE=6.1.0-32-amd64
    PAGESIZE=4096
    SYMBOL(init_uts_ns)=ffffffff82a14a20        hex
    OFFSET(page.flags)=0                        decimal
    SIZE(page)=64                               decimal
    LENGTH(zone.free_area)=11                   decimal
    NUMBER(phys_base)=-16777216                 decimal with a sign, or hex with 0x
    KERNELOFFSET=1800000                        hex
    CRASHTIME=1700000000                        decimal

It is found as a note of an ELF or kdump file, or in the guest's memory, there with the note's header before it. All of
it is the guest's word: a line that makes no sense is left out, a value that makes no sense is absent.
"""

from __future__ import annotations

import re
from dataclasses import field
from typing import TYPE_CHECKING, NamedTuple

from dumpxlate.elf.notes import Note, parse_notes
from dumpxlate.errors import CorruptDumpError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

    from dumpxlate.structs import Endian

__all__ = ["MAX_BYTES", "MAX_LINES", "VmCoreInfo"]

MAX_BYTES = 1 << 20
"""Text that is looked at; kernels write a page or two."""

MAX_LINES = 1 << 14
"""Lines that are kept; kernels write a few hundred."""

_HEX = re.compile(r"(?:0[xX])?([0-9A-Fa-f]{1,16})")
_DECIMAL = re.compile(r"-?[0-9]{1,20}")
_MIN_PAGE, _MAX_PAGE = 1 << 12, 1 << 24
_EXPLICIT_HEX = re.compile(r"0[xX][0-9A-Fa-f]{1,16}")


class VmCoreInfo(NamedTuple):
    """The text and its lines.

    Every accessor gives None where the kernel did not say. Addresses are unsigned, so kernel addresses exceed 2**63.

    Attributes:
        text: the whole text as Latin-1, up to its first NUL.
        lines: value by key; the first of equal keys counts, as for crash.
    """

    text: str
    lines: Mapping[str, str] = field(repr=False, compare=False)

    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> Self:
        """Read the text itself: a note's desc, or what a kdump header points to."""
        text = bytes(data[:MAX_BYTES]).partition(b"\0")[0].decode("latin-1")
        lines: dict[str, str] = {}
        for line in text.split("\n"):
            key, equals, value = line.partition("=")
            if key and equals:
                lines.setdefault(key, value)
            if len(lines) == MAX_LINES:
                break
        return cls(text, lines)

    @classmethod
    def from_note(cls, note: Note | bytes | memoryview, endian: Endian = "<") -> Self:
        """Read a parsed note, or the bytes of one with its header, as they lie in a guest's memory.

        Raises:
            CorruptDumpError: the bytes do not begin with a VMCOREINFO note.
        """
        if isinstance(note, Note):
            return cls.from_bytes(note.desc)
        parsed = parse_notes(note[: MAX_BYTES + 64], endian, limit=1)
        if not parsed.notes or not parsed.notes[0].name.startswith("VMCOREINFO"):
            found = parsed.complaint or (f"named {parsed.notes[0].name!r}" if parsed.notes else "empty")
            raise CorruptDumpError(f"{found}, expected VMCOREINFO", what="vmcoreinfo note")
        return cls.from_bytes(parsed.notes[0].desc)

    def symbol(self, name: str) -> int | None:
        """Give the virtual address of a symbol."""
        return self._hex(f"SYMBOL({name})")

    def offset(self, field: str) -> int | None:
        """Give the offset of a structure's field, named ``struct.field``."""
        return self._decimal(f"OFFSET({field})")

    def size(self, name: str) -> int | None:
        """Give the size of a type in bytes."""
        return self._decimal(f"SIZE({name})")

    def length(self, name: str) -> int | None:
        """Give the number of elements of an array."""
        return self._decimal(f"LENGTH({name})")

    def number(self, name: str) -> int | None:
        """Give a number, which may be negative."""
        value = self.lines.get(f"NUMBER({name})", "").strip()
        return int(value, 16) if _EXPLICIT_HEX.fullmatch(value) else self._decimal(f"NUMBER({name})")

    @property
    def release(self) -> str | None:
        """What ``uname -r`` says."""
        return self.lines.get("OSRELEASE")

    @property
    def page_size(self) -> int | None:
        """The kernel's page size; None as well where the value can be no page size."""
        size = self._decimal("PAGESIZE") or 0
        return size if _MIN_PAGE <= size <= _MAX_PAGE and size.bit_count() == 1 else None

    @property
    def kernel_offset(self) -> int | None:
        """How far the kernel's virtual addresses moved at boot."""
        return self._hex("KERNELOFFSET")

    @property
    def phys_base(self) -> int | None:
        """What turns addresses of the kernel's text mapping into physical ones (x86-64); may be negative."""
        return self.number("phys_base")

    @property
    def crash_time(self) -> int | None:
        """When the kernel crashed, in seconds since 1970."""
        return self._decimal("CRASHTIME")

    def _hex(self, key: str) -> int | None:
        match = _HEX.fullmatch(self.lines.get(key, "").strip())
        return int(match[1], 16) if match else None

    def _decimal(self, key: str) -> int | None:
        value = self.lines.get(key, "").strip()
        return int(value) if _DECIMAL.fullmatch(value) else None
