"""Structures of kdump-compressed files, named as in makedumpfile's diskdump_mod.h.

The header exists with 8-byte and with 4-byte ``long``; the sub header in three layouts, because compilers align its
64-bit members differently:

======== ======================== ===========================================================
layout   64-bit members lie       written for
======== ======================== ===========================================================
64       at multiples of 8        64-bit machines
packed   where they come          i386; QEMU writes it for every 32-bit machine
natural  at multiples of 8        32-bit Arm, MIPS and PowerPC, by makedumpfile
======== ======================== ===========================================================
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, TypeAlias

import numpy as np

from dumpxlate.pages import CodecId
from dumpxlate.structs import I32, U32, U64, struct

if TYPE_CHECKING:
    from dumpxlate.arrays import Int64s, UInt8s

__all__ = [
    "DUMP_DH_COMPRESSED_INCOMPLETE",
    "FLAG_OF_CODEC",
    "INVALID_CODEC",
    "KDUMP_SIGNATURE",
    "LAST_VERSION",
    "SIGNATURES",
    "SUB_SIZES",
    "DiskDumpHeader32",
    "DiskDumpHeader64",
    "Header",
    "KdumpSubHeader32",
    "KdumpSubHeader32Packed",
    "KdumpSubHeader64",
    "PageDesc",
    "SubHeader",
    "codecs_of_flags",
]

KDUMP_SIGNATURE = b"KDUMP   "
SIGNATURES = (KDUMP_SIGNATURE, b"DISKDUMP")
LAST_VERSION = 6

DUMP_DH_COMPRESSED_INCOMPLETE = 0x8
"""Status bit: the writer ran out of space."""

FLAG_OF_CODEC = {
    CodecId.RAW: 0x0,
    CodecId.ZLIB: 0x1,  # DUMP_DH_COMPRESSED_ZLIB and so on, in the status and in descriptors
    CodecId.LZO: 0x2,
    CodecId.SNAPPY: 0x4,
    CodecId.ZSTD: 0x20,
}

INVALID_CODEC = 0xFF
_CODEC_OF_FLAG = np.full(256, INVALID_CODEC, np.uint8)
for _codec, _flag in FLAG_OF_CODEC.items():
    _CODEC_OF_FLAG[_flag] = _codec

_Text: TypeAlias = Annotated[bytes, 65]


def codecs_of_flags(flags: Int64s) -> UInt8s:
    """Give the codec that each descriptor's flags say, INVALID_CODEC where they say none or several."""
    return _CODEC_OF_FLAG[np.minimum(flags, 0xFF)]


@struct
class DiskDumpHeader64:
    """disk_dump_header of a 64-bit machine, without its array of tasks."""

    signature: Annotated[bytes, 8]
    header_version: U32
    sysname: _Text
    nodename: _Text
    release: _Text
    version: _Text
    machine: _Text
    domainname: _Text
    pad: Annotated[bytes, 6]
    tv_sec: U64
    tv_usec: U64
    status: U32
    block_size: U32
    sub_hdr_size: I32
    bitmap_blocks: U32
    max_mapnr: U32
    total_ram_blocks: U32
    device_blocks: U32
    written_blocks: U32
    current_cpu: U32
    nr_cpus: U32


@struct
class DiskDumpHeader32:
    """disk_dump_header of a 32-bit machine; it has no 64-bit member, so that all compilers agree."""

    signature: Annotated[bytes, 8]
    header_version: U32
    sysname: _Text
    nodename: _Text
    release: _Text
    version: _Text
    machine: _Text
    domainname: _Text
    pad: Annotated[bytes, 2]
    tv_sec: U32
    tv_usec: U32
    status: U32
    block_size: U32
    sub_hdr_size: I32
    bitmap_blocks: U32
    max_mapnr: U32
    total_ram_blocks: U32
    device_blocks: U32
    written_blocks: U32
    current_cpu: U32
    nr_cpus: U32


@struct
class KdumpSubHeader64:
    """kdump_sub_header of a 64-bit machine; SUB_SIZES tells how much of it a version has."""

    phys_base: U64
    dump_level: U32
    split: U32
    start_pfn: U64
    end_pfn: U64
    offset_vmcoreinfo: U64
    size_vmcoreinfo: U64
    offset_note: U64
    size_note: U64
    offset_eraseinfo: U64
    size_eraseinfo: U64
    start_pfn_64: U64
    end_pfn_64: U64
    max_mapnr_64: U64


@struct
class KdumpSubHeader32Packed:
    """kdump_sub_header of i386, and of QEMU for every 32-bit machine."""

    phys_base: U32
    dump_level: U32
    split: U32
    start_pfn: U32
    end_pfn: U32
    offset_vmcoreinfo: U64
    size_vmcoreinfo: U32
    offset_note: U64
    size_note: U32
    offset_eraseinfo: U64
    size_eraseinfo: U32
    start_pfn_64: U64
    end_pfn_64: U64
    max_mapnr_64: U64


@struct
class KdumpSubHeader32:
    """kdump_sub_header of 32-bit machines whose 64-bit members are aligned to eight bytes."""

    phys_base: U32
    dump_level: U32
    split: U32
    start_pfn: U32
    end_pfn: U32
    pad1: Annotated[bytes, 4]
    offset_vmcoreinfo: U64
    size_vmcoreinfo: U32
    pad2: Annotated[bytes, 4]
    offset_note: U64
    size_note: U32
    pad3: Annotated[bytes, 4]
    offset_eraseinfo: U64
    size_eraseinfo: U32
    pad4: Annotated[bytes, 4]
    start_pfn_64: U64
    end_pfn_64: U64
    max_mapnr_64: U64


@struct
class PageDesc:
    """page_desc: where the bytes of one page are."""

    offset: U64
    size: U32
    flags: U32
    page_flags: U64


Header: TypeAlias = DiskDumpHeader64 | DiskDumpHeader32
SubHeader: TypeAlias = KdumpSubHeader64 | KdumpSubHeader32Packed | KdumpSubHeader32

SUB_SIZES: dict[type[SubHeader], tuple[int, ...]] = {
    KdumpSubHeader64: (8, 12, 32, 48, 64, 80, 104),
    KdumpSubHeader32Packed: (4, 8, 20, 32, 44, 56, 80),
    KdumpSubHeader32: (4, 8, 20, 36, 52, 68, 96),
}
"""Bytes of the sub header that each version of the file has; what lies behind them means nothing."""
