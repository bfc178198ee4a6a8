"""Record headers of LiME, which AVML shares: struct lime_mem_range_header of LiME's lime.h, little-endian."""

from __future__ import annotations

from typing import Annotated

from dumpxlate.errors import CorruptDumpError, UnsupportedFeatureError
from dumpxlate.structs import U32, U64, pack, size_of, struct

__all__ = ["AVML_MAGIC", "AVML_VERSION", "LIME_MAGIC", "LIME_VERSION", "RECORD", "LimeHeader", "check_record", "record"]

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
