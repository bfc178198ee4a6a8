"""Xen's save images, as in docs/specs/libxl-migration-stream.pandoc and libxc-migration-stream.pandoc of Xen 4.17."""

from __future__ import annotations

from typing import Annotated

from dumpxlate.structs import U16, U32, U64, struct

XL_MAGIC = b"Xen saved domain, xl format\n \0 \r"
LIBXL_IDENT = b"LibxlFmt"
XENF_MARK = b"\xff" * 8 + b"XENF"
OLD_MAGIC = b"LinuxGuestRecord"
"""What xend's ``xm save`` wrote before Xen 4.1's xl; crash reads it."""

XL_BYTEORDER = 0x01020304
XL_MANDATORY_JSON, XL_MANDATORY_STREAM_V2 = 1, 2
XL_OPTIONAL_LIMIT = 1 << 20

LIBXL_VERSION = 2
LIBXL_BIG_ENDIAN = 1
LIBXL_END, LIBXL_LIBXC_CONTEXT = 0, 1
LIBXL_NAMES = {
    0: "END",
    1: "LIBXC_CONTEXT",
    2: "EMULATOR_XENSTORE_DATA",
    3: "EMULATOR_CONTEXT",
    4: "CHECKPOINT_END",
    5: "CHECKPOINT_STATE",
}

XENF_VERSIONS = (2, 3)
XENF_BIG_ENDIAN = 1
DOMAIN_PV, DOMAIN_HVM = 1, 2

OPTIONAL_RECORD = 1 << 31
RECORD_LIMIT = 128 << 20

END = 0x00
PAGE_DATA = 0x01
X86_PV_INFO = 0x02
X86_PV_P2M_FRAMES = 0x03
X86_PV_VCPU_BASIC = 0x04
SHARED_INFO = 0x07
HVM_CONTEXT = 0x09
HVM_PARAMS = 0x0A
VERIFY = 0x0D
NAMES = {
    0x00: "END",
    0x01: "PAGE_DATA",
    0x02: "X86_PV_INFO",
    0x03: "X86_PV_P2M_FRAMES",
    0x04: "X86_PV_VCPU_BASIC",
    0x05: "X86_PV_VCPU_EXTENDED",
    0x06: "X86_PV_VCPU_XSAVE",
    0x07: "SHARED_INFO",
    0x08: "X86_TSC_INFO",
    0x09: "HVM_CONTEXT",
    0x0A: "HVM_PARAMS",
    0x0B: "TOOLSTACK",
    0x0C: "X86_PV_VCPU_MSRS",
    0x0D: "VERIFY",
    0x0E: "CHECKPOINT",
    0x0F: "CHECKPOINT_DIRTY_PFN_LIST",
    0x10: "STATIC_DATA_END",
    0x11: "X86_CPUID_POLICY",
    0x12: "X86_MSR_POLICY",
}

PAGES_LIMIT = 1 << 20
"""Entries in one PAGE_DATA record; Xen's tools put 1024 into one."""

PAGE_NOTAB, PAGE_BROKEN, PAGE_XALLOC, PAGE_XTAB = 0x0, 0xD, 0xE, 0xF
PAGES_WITH_CONTENT = (0x0, 0x1, 0x2, 0x3, 0x4, 0x9, 0xA, 0xB, 0xC)
"""NOTAB, L1 to L4 tables, and pinned ones."""
PAGES_WITHOUT = (PAGE_BROKEN, PAGE_XALLOC, PAGE_XTAB)


@struct
class XlHeader:
    """struct save_file_header of tools/xl/xl.h."""

    magic: Annotated[bytes, 32]
    byteorder: U32
    mandatory_flags: U32
    optional_flags: U32
    optional_data_len: U32


@struct
class LibxlHeader:
    """struct libxl__sr_hdr, big-endian."""

    ident: Annotated[bytes, 8]
    version: U32
    options: U32


@struct
class ImageHeader:
    """struct xc_sr_ihdr, big-endian."""

    marker: U64
    id: U32
    version: U32
    options: U16
    pad1: U16
    pad2: U32


@struct
class DomainHeader:
    """struct xc_sr_dhdr."""

    type: U32
    page_shift: U16
    pad: U16
    xen_major: U32
    xen_minor: U32


@struct
class RecordHeader:
    """struct xc_sr_rhdr, and struct libxl__sr_rec_hdr."""

    type: U32
    length: U32
