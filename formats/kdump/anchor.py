"""A page whose content is known: the one with the kernel's own name, at an address that VMCOREINFO tells.

``init_uts_ns`` holds a new_utsname: six texts of 65 bytes, of which the first is the system's name and the third the
release that the headers of a dump have too. Sources: kernel/crash_core.c, arch/x86/kernel/crash_core_64.c,
arch/arm64/kernel/crash_core.c, include/linux/utsname.h.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dumpxlate.errors import DumpxlateError
from dumpxlate.formats.kdump.store import KdumpStore
from dumpxlate.formats.kdump.table import DescriptorTable
from dumpxlate.memory import PhysicalMemory

if TYPE_CHECKING:
    from dumpxlate.bitmap import PageBitmap
    from dumpxlate.formats.kdump.fit import Stretch
    from dumpxlate.formats.kdump.header import Part
    from dumpxlate.vmcoreinfo import VmCoreInfo

__all__ = ["Anchor", "anchor_of"]

_TEXT = 65
_NAME, _RELEASE = b"Linux\0", 2
_PLACES = (0, 4)
"""Where the texts are in init_uts_ns: behind a counter of references in kernels before 5.11."""
_SHORTEST = 4
_KERNEL_MAP = 0xFFFFFFFF80000000
"""__START_KERNEL_map of x86-64."""


class Anchor:
    """The page.

    Args:
        part: the file.
        address: where init_uts_ns is in physical memory.
        release: of the kernel.
    """

    def __init__(self, part: Part, address: int, release: str) -> None:
        self._part, self._address, self._release = part, address, release.encode()

    @property
    def pfn(self) -> int:
        """The page's number."""
        return self._address // self._part.block_size

    def proves(self, bitmap: PageBitmap, stretch: Stretch) -> bool:
        """Tell whether the name stands there, if descriptors belong to pages so."""
        table = DescriptorTable.of_stretches(self._part, (stretch,))
        store = KdumpStore(self._part, bitmap, table)
        size = self._part.block_size
        length = min(_PLACES[-1] + (_RELEASE + 1) * _TEXT, size - self._address % size)
        try:
            text = PhysicalMemory(store, self._part.endian).read(self._address, length)
        except DumpxlateError:
            return False
        wanted = self._release + b"\0"
        return any(
            text[at : at + len(_NAME)] == _NAME and text[at + _RELEASE * _TEXT :][: len(wanted)] == wanted
            for at in _PLACES
        )


def anchor_of(part: Part, info: VmCoreInfo | None, release: str | None) -> Anchor | None:
    """Find the page; None where VMCOREINFO does not tell it."""
    symbol = info.symbol("init_uts_ns") if info else None
    if info is None or symbol is None or not release or len(release) < _SHORTEST:
        return None
    base, offset = info.phys_base, info.number("kimage_voffset")
    if offset is not None:
        address = symbol - (offset & (1 << 64) - 1)
    elif base is not None and symbol >= _KERNEL_MAP:
        address = symbol - _KERNEL_MAP + base
    else:
        return None
    return Anchor(part, address, release) if 0 <= address < part.max_mapnr * part.block_size else None
