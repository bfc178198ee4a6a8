"""shared_info: the page that Xen and a PV guest share, and where it says that the guest's p2m is.

Layout: struct shared_info in xen/include/public/xen.h, its x86 part in arch-x86/xen.h. The fields have not moved since
Xen 3.0; those of the linear list were padding, and zero, before 4.6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dumpxlate.errors import MapError, TruncatedDumpError
from dumpxlate.p2m.lists import read_frame_lists, read_linear_list
from dumpxlate.structs import U32, U64, parse, struct

if TYPE_CHECKING:
    from dumpxlate.arch.xen_vcpu import WordBits
    from dumpxlate.memory import PhysicalMemory
    from dumpxlate.p2m.map import P2M

__all__ = ["SharedInfo", "from_shared_info", "parse_shared_info"]

_PLACE: dict[WordBits, int] = {64: 3088, 32: 2316}
"""Offset of ``arch.max_pfn``."""


@struct
class _Arch64:
    """struct arch_shared_info of a 64-bit guest."""

    max_pfn: U64
    pfn_to_mfn_frame_list_list: U64
    nmi_reason: U64
    p2m_cr3: U64
    p2m_vaddr: U64
    p2m_generation: U64


@struct
class _Arch32:
    """struct arch_shared_info of a 32-bit guest."""

    max_pfn: U32
    pfn_to_mfn_frame_list_list: U32
    nmi_reason: U32
    p2m_cr3: U32
    p2m_vaddr: U32
    p2m_generation: U32


@dataclass(frozen=True, slots=True)
class SharedInfo:
    """What a guest tells Xen of its p2m.

    Attributes:
        word_bits: width of the guest.
        max_pfn: entries of the p2m.
        frame_lists: mfn of the list of frame lists; 0 where the guest has not told it.
        p2m_cr3: page tables by which the linear list is mapped, folded; 0 where there is no such list.
        p2m_vaddr: where it is.
        p2m_generation: odd while the guest changes it.
    """

    word_bits: WordBits
    max_pfn: int
    frame_lists: int
    p2m_cr3: int
    p2m_vaddr: int
    p2m_generation: int

    @property
    def has_frame_lists(self) -> bool:
        """Whether it tells of frame lists; all ones tells that there is only the linear list."""
        return self.frame_lists not in (0, (1 << self.word_bits) - 1)

    @property
    def is_changing(self) -> bool:
        """Whether the guest was just changing its list."""
        return bool(self.p2m_cr3) and self.p2m_generation % 2 == 1


def parse_shared_info(block: bytes, word_bits: WordBits) -> SharedInfo:
    """Read the page.

    Raises:
        MapError: it is too short.
    """
    layout: type[_Arch64 | _Arch32] = _Arch64 if word_bits == 64 else _Arch32
    try:
        found = parse(layout, block, _PLACE[word_bits], "<", what="shared_info")
    except TruncatedDumpError as error:
        raise MapError(str(error)) from None
    return SharedInfo(
        word_bits,
        found.max_pfn,
        found.pfn_to_mfn_frame_list_list,
        found.p2m_cr3,
        found.p2m_vaddr,
        found.p2m_generation,
    )


def from_shared_info(memory: PhysicalMemory, info: SharedInfo) -> tuple[P2M, str]:
    """Read the list that a guest told Xen of: the frame lists, else the linear list.

    Args:
        memory: machine memory.
        info: what the guest told.

    Returns:
        The map, and which list it is from.

    Raises:
        MapError: it told of none, or of none that is one.
    """
    problem = None
    if info.has_frame_lists:
        try:
            found = read_frame_lists(memory, info.frame_lists, info.max_pfn, info.word_bits)
        except MapError as error:
            problem = error
        else:
            return found, f"frame lists at machine frame {info.frame_lists:#x}"
    if info.p2m_cr3:
        found = read_linear_list(memory, info.p2m_cr3, info.p2m_vaddr, info.max_pfn, info.word_bits)
        instead = f", since of the frame lists {problem}" if problem else ""
        return found, f"linear list at {info.p2m_vaddr:#x}{instead}"
    raise problem or MapError("shared_info: the guest has told of no p2m: neither frame lists nor a linear list")
