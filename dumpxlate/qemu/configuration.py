"""Fields of a stream, and the section with its configuration, which QEMU writes first since 2.4.

Source: qemu migration/savevm.c (vmstate_configuration).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dumpxlate.errors import CorruptDumpError, UnsupportedFeatureError
from dumpxlate.io.window import SlidingWindow

if TYPE_CHECKING:
    from dumpxlate.io.source import Source

__all__ = ["Configuration", "Fields", "read_configuration"]

_SUBSECTION = 5
_WHAT = "configuration"
_LONGEST_NAME, _MOST_CAPABILITIES = 255, 256
_PAGE_SIZE = 4096
_NAMED = re.compile(rb"[\x20-\x7e]+")


class Fields:
    """Reads numbers and names of a stream that is passed over once.

    Args:
        source: the stream; it stays open.
    """

    def __init__(self, source: Source) -> None:
        self.window = SlidingWindow(source, size=1 << 20)

    def bytes(self, at: int, length: int, what: str) -> bytes:
        """Read bytes."""
        view, begin = self.window.at(at, length, what=what)
        return bytes(view[begin : begin + length])

    def u32(self, at: int, what: str) -> int:
        """Read a number of four bytes."""
        return int.from_bytes(self.bytes(at, 4, what), "big")

    def name(self, at: int, what: str) -> tuple[str, int]:
        """Read a name behind its length of one byte; gives what follows."""
        length = self.bytes(at, 1, what)[0]
        text = self.bytes(at + 1, length, what)
        if not _NAMED.fullmatch(text):
            raise CorruptDumpError(f"expected a name, found {text[:16].hex(' ')}", offset=at, what=what)
        return text.decode(), at + 1 + length

    def close(self) -> None:
        """Let the file go."""
        self.window.close()


@dataclass(frozen=True, slots=True)
class Configuration:
    """What a stream says of itself: type of the machine, the guest's uuid, what it was made with, bytes a page."""

    machine: str
    uuid: str = ""
    capabilities: frozenset[str] = frozenset()
    page_size: int = _PAGE_SIZE


def read_configuration(fields: Fields, at: int) -> tuple[int, Configuration]:
    """Read machine type and subsections; gives what follows, and what they say.

    Raises:
        CorruptDumpError: a field cannot be.
        UnsupportedFeatureError: a subsection that is not known, whose end therefore is not, or short pages.
    """
    length = fields.u32(at, _WHAT)
    if length > _LONGEST_NAME:
        raise CorruptDumpError(f"machine type of {length} bytes", offset=at, what=_WHAT)
    machine = fields.bytes(at + 4, length, _WHAT)
    if not _NAMED.fullmatch(machine):
        raise CorruptDumpError("the machine type is no name", offset=at, what=_WHAT)
    at += 4 + length
    uuid, capabilities, page_size = "", frozenset[str](), _PAGE_SIZE
    while fields.bytes(at, 1, _WHAT)[0] == _SUBSECTION:
        name, after = fields.name(at + 1, _WHAT)
        body = after + 4
        if name == "configuration/target-page-bits":
            at, page_size = body + 4, _page_size(fields, body)
        elif name == "configuration/capabilities":
            at, capabilities = _capabilities(fields, body)
        elif name == "configuration/uuid":
            at, uuid = body + 16, fields.bytes(body, 16, _WHAT).hex()
        else:
            raise UnsupportedFeatureError(f"subsection {name!r}", feature=name)
    return at, Configuration(machine.decode(), uuid, capabilities, page_size)


def _page_size(fields: Fields, at: int) -> int:
    bits = fields.u32(at, _WHAT)
    if not 10 <= bits <= 16:
        raise CorruptDumpError(f"pages of 2^{bits} bytes", offset=at, what=_WHAT)
    if bits < 12:
        raise UnsupportedFeatureError(f"pages of {1 << bits} bytes", feature="page size")
    return 1 << bits


def _capabilities(fields: Fields, at: int) -> tuple[int, frozenset[str]]:
    count, at = fields.u32(at, _WHAT), at + 4
    if count > _MOST_CAPABILITIES:
        raise CorruptDumpError(f"{count} capabilities", offset=at - 4, what=_WHAT)
    names = set()
    for _ in range(count):
        name, at = fields.name(at, _WHAT)
        names.add(name)
    return at, frozenset(names)
