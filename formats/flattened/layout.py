"""makedumpfile.h of makedumpfile 1.7: struct makedumpfile_header and makedumpfile_data_header, both big-endian."""

from __future__ import annotations

from typing import Annotated

from dumpxlate.structs import I64, struct

__all__ = [
    "END_FLAG_FLAT_HEADER",
    "MAX_OFFSET",
    "MAX_SIZE_MDF_HEADER",
    "SIGNATURE",
    "TYPE_FLAT_HEADER",
    "VERSION_FLAT_HEADER",
    "MakedumpfileDataHeader",
    "MakedumpfileHeader",
]

SIGNATURE = b"makedumpfile\0\0\0\0"
TYPE_FLAT_HEADER = 1
VERSION_FLAT_HEADER = 1
END_FLAG_FLAT_HEADER = -1
MAX_SIZE_MDF_HEADER = 4096
"""The first record begins here, whatever the page size."""

MAX_OFFSET = 1 << 46
"""Ours: no dump is larger than 64 TiB; a record beyond is not believed."""


@struct
class MakedumpfileHeader:
    """The file's header; the rest of its 4096 bytes is not used."""

    signature: Annotated[bytes, 16]
    type: I64
    version: I64


@struct
class MakedumpfileDataHeader:
    """The header of each record."""

    offset: I64
    buf_size: I64
