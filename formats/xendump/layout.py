"""xc_core_header, as in tools/libxc/xenctrl.h of Xen 3.0.0 to 3.0.4."""

from __future__ import annotations

from dumpxlate.structs import U32, struct

XC_CORE_MAGIC = 0xF00FEBED
XC_CORE_MAGIC_HVM = 0xF00FEBEE

PAGE_SIZE = 4096

CONTEXT_SIZES = (2800, 5168)
"""sizeof(vcpu_guest_context_t) for 32-bit and for 64-bit tools."""

MAX_PAGES = 1 << 28
MAX_VCPUS = 4096

HVM_MMIO_START = 0xF0000
"""HVM_BELOW_4G_MMIO_START >> 12 of Xen 3.0: from here to 4 GiB a fully virtualised guest has no memory."""
HVM_MMIO_PAGES = 0x10000


@struct
class XcCoreHeader:
    """struct xc_core_header."""

    xch_magic: U32
    xch_nr_vcpus: U32
    xch_nr_pages: U32
    xch_ctxt_offset: U32
    xch_index_offset: U32
    xch_pages_offset: U32
