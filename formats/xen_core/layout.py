"""Xen's domain core, as in docs/misc/dump-core-format.txt and tools/libs/guest/xg_core.h of Xen 4.17."""

from __future__ import annotations

from typing import Annotated

from dumpxlate.structs import U64, struct

SHSTRTAB = ".shstrtab"
NOTE_XEN = ".note.Xen"
XEN_PRSTATUS = ".xen_prstatus"
XEN_SHARED_INFO = ".xen_shared_info"
XEN_PAGES = ".xen_pages"
XEN_P2M = ".xen_p2m"
XEN_PFN = ".xen_pfn"

SHT_PROGBITS, SHT_STRTAB, SHT_NOTE = 1, 3, 7

XC_CORE_MAGIC = 0xF00FEBED
XC_CORE_MAGIC_HVM = 0xF00FEBEE

FORMAT_VERSION_CURRENT = 1
"""Major number 0 in the upper half, minor number 1 in the lower; there has been no other."""

CONTEXT_SLOT = 5168
"""sh_entsize of .xen_prstatus since 2009, for 32-bit guests too."""

EI_ABIVERSION = 1
"""What libxc puts there, and other writers of cores do not."""


@struct
class DumpcoreHeader:
    """struct xen_dumpcore_elfnote_header_desc."""

    xch_magic: U64
    xch_nr_vcpus: U64
    xch_nr_pages: U64
    xch_page_size: U64


@struct
class DumpcoreXenVersion:
    """struct xen_dumpcore_elfnote_xen_version_desc, as 64-bit tools lay it out."""

    major_version: U64
    minor_version: U64
    extra_version: Annotated[bytes, 16]
    compiler: Annotated[bytes, 64]
    compile_by: Annotated[bytes, 16]
    compile_domain: Annotated[bytes, 32]
    compile_date: Annotated[bytes, 32]
    capabilities: Annotated[bytes, 1024]
    changeset: Annotated[bytes, 64]
    virt_start: U64
    pagesize: U64
