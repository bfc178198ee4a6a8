"""xendump: the memory image that Xen's tools wrote before Xen 3.1 (``xm dump-core``, 2005 to 2007).

::

    header, 24 bytes | vcpu contexts | page index | padding to 4096 | pages

A paravirtual guest's index holds the mfn of each page, in the order of the hypervisor's page list: neither sorted nor
in the order of the guest's memory. Which pfn a page has stands nowhere in the file; the guest's p2m map tells. A fully
virtualised guest's pages are in the order of its physical memory, so that there the index is its map.

Widths differ with the tools that wrote the file: index entries of 4 or 8 bytes, vcpu contexts of 2800 or 5168. The
reader derives them from the offsets in the header. Since February 2007 ``xen_core`` has taken the place of this format.

Sources: xen tools/libxc/xc_core.c and xenctrl.h of 2005 to 2007; crash xendump.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dumpxlate.format import Confidence, Match, only_one

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dumpxlate.dump import Dump
    from dumpxlate.format import OpenOptions, WriteOptions, Writer
    from dumpxlate.io.source import Source

__all__ = ["FORMAT"]

_MAGICS = (b"\xed\xeb\x0f\xf0", b"\xee\xeb\x0f\xf0", b"\xf0\x0f\xeb\xed", b"\xf0\x0f\xeb\xee")


class XenDumpFormat:
    """Reads and writes old Xen dumps."""

    name = "xendump"
    title = "old Xen dump (xc_core_header, before Xen 3.1)"
    suffixes = (".xendump",)
    writes = True
    options: tuple[str, ...] = ()
    codecs = ("none",)

    def detect(self, source: Source) -> Match | None:
        """Recognise the magic number, in either byte order."""
        if source.size < 4 or source.view(0, 4) not in _MAGICS:
            return None
        return Match(Confidence.SPECIFIC, "xc_core_header magic")

    def open(self, sources: Sequence[Source], options: OpenOptions) -> Dump:
        """Read the header and the vcpu contexts; the index waits until a page is asked for."""
        from dumpxlate.formats.xendump.reader import open_xendump

        return open_xendump(only_one(sources, self.name))

    def writer(self, dump: Dump, options: WriteOptions) -> Writer:
        """Plan an old Xen dump."""
        options.only(self.options, self.name)
        from dumpxlate.formats.xendump.writer import XenDumpWriter

        return XenDumpWriter(dump, options)


FORMAT = XenDumpFormat()
