"""Record headers of LiME, which AVML shares: struct lime_mem_range_header of LiME's lime.h, little-endian."""

from __future__ import annotations

import re
from itertools import islice
from typing import TYPE_CHECKING, Annotated

from dumpxlate.errors import CorruptDumpError, FormatError, UnsupportedFeatureError
from dumpxlate.structs import U32, U64, pack, parse, size_of, struct

if TYPE_CHECKING:
    from collections.abc import Callable

    from dumpxlate.io.source import Source

__all__ = [
    "AVML_MAGIC",
    "AVML_VERSION",
    "LIME_MAGIC",
    "LIME_VERSION",
    "RECORD",
    "LimeHeader",
    "check_record",
    "next_record",
    "record",
]

LIME_MAGIC = b"EMiL"
LIME_VERSION = 1
AVML_MAGIC = b"AVML"
AVML_VERSION = 2
MAX_ADDRESS = 1 << 62
"""Ours: physical addresses have 52 bits on any machine of today."""


@struct
class LimeHeader:
    """What stands before the bytes of each range of memory."""

    magic: Annotated[bytes, 4]
    version: U32
    s_addr: U64
    e_addr: U64
    reserved: U64


RECORD = size_of(LimeHeader)
_FIRST_WINDOW, _LARGEST_WINDOW = 64 << 10, 16 << 20
_MOST_TRIES = 64
"""Places that are looked at closely: memory may be full of what looks like headers."""


def check_record(header: LimeHeader, at: int) -> None:
    """Refuse a header that cannot be right.

    Raises:
        UnsupportedFeatureError: another version.
        CorruptDumpError: the range is empty or ends nowhere.
    """
    known = {LIME_MAGIC: LIME_VERSION, AVML_MAGIC: AVML_VERSION}.get(header.magic)
    if known is None:
        raise CorruptDumpError(
            f"begins with {header.magic.hex(' ')}, expected {LIME_MAGIC.hex(' ')}", offset=at, what="range header"
        )
    if header.version != known:
        raise UnsupportedFeatureError(
            f"range header at {at:#x}: version {header.version}, expected {known}", feature="version"
        )
    if not header.s_addr <= header.e_addr < MAX_ADDRESS:
        raise CorruptDumpError(
            f"addresses {header.s_addr:#x} to {header.e_addr:#x}: expected an end at or behind the start, "
            f"below {MAX_ADDRESS:#x}",
            offset=at,
            what="range header",
        )


def record(magic: bytes, version: int, start: int, length: int) -> bytes:
    """Make the header of a range."""
    return pack(LimeHeader(magic, version, start, start + length - 1, 0), "<")


def next_record(
    source: Source, at: int, lowest: int, magics: tuple[bytes, ...], follows: Callable[[LimeHeader, int], bool]
) -> int | None:
    """Find the next header behind a defect.

    Args:
        source: the file.
        at: where a header makes no sense.
        lowest: address that the next range begins at, or above; ranges ascend.
        magics: of the kinds of headers looked for.
        follows: looks at what comes behind a header at an offset: memory may hold what looks like one.

    Returns:
        Where it is; None if there is none.
    """
    versions = {LIME_MAGIC: LIME_VERSION, AVML_MAGIC: AVML_VERSION}
    begins = [re.escape(magic + versions[magic].to_bytes(4, "little")) for magic in magics]
    wanted = re.compile(b"|".join(begins))
    tries, start, window = _MOST_TRIES, at + 1, _FIRST_WINDOW
    while start < source.size - RECORD and tries:
        body = source.view(start, min(window + RECORD, source.size - start))
        for found in islice(wanted.finditer(body), tries):
            place, tries = start + found.start(), tries - 1
            if found.start() + RECORD > len(body):
                break
            header = parse(LimeHeader, body, found.start(), "<")
            if _is_sound(header, place) and header.s_addr >= lowest and follows(header, place):
                return place
        start, window = start + window, min(2 * window, _LARGEST_WINDOW)
    return None


def _is_sound(header: LimeHeader, at: int) -> bool:
    try:
        check_record(header, at)
    except FormatError:
        return False
    return not header.reserved
