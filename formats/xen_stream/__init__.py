"""xen_stream: a suspended Xen domain as ``xl save`` or a migration writes it, since Xen 4.6.

::

    xl header, configuration | libxl records, of which LIBXC_CONTEXT is followed by
        image header | domain header | records: PAGE_DATA ..., vcpus, END
    | more libxl records, END

Each layer may be missing from the outside: what libvirt or a migration stores begins with libxl's or with libxc's
own header. A PAGE_DATA record names pfns with their types, then the pages of those that have content; pages lie at
any offset. A pfn may come again (live migration): the last copy counts.

The page tables of a paravirtual guest are translated on the way: they, cr3 and the gdt frames hold pfns here, so that
such a dump is read as that of an ordinary machine and needs no p2m map. The guest's own p2m list is stale.

The image of ``xm save`` (``LinuxGuestRecord``, until Xen 4.4) is recognised and refused.

Sources: xen docs/specs/libxl-migration-stream.pandoc and libxc-migration-stream.pandoc, tools/xl/xl.h, public
arch-x86/hvm/save.h; checked against ``xl save`` of Xen 4.17.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dumpxlate.errors import UnsupportedFeatureError
from dumpxlate.format import Confidence, Match, only_one

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dumpxlate.dump import Dump
    from dumpxlate.format import OpenOptions, WriteOptions, Writer
    from dumpxlate.io.source import Source

__all__ = ["FORMAT"]

_MAGICS = {
    b"Xen saved domain, xl format": "xl save file",
    b"LibxlFmt": "libxl stream",
    b"\xff" * 8 + b"XENF": "libxc stream",
    b"LinuxGuestRecord": "xm save image",
}


class XenStreamFormat:
    """Reads save images of Xen domains."""

    name = "xen_stream"
    title = "Xen save image or migration stream (xl save)"
    suffixes: tuple[str, ...] = ()
    writes = False
    options: tuple[str, ...] = ()
    codecs = ("none",)

    def detect(self, source: Source) -> Match | None:
        """Recognise any of the layers that a file may begin with."""
        for magic, what in _MAGICS.items():
            if source.size >= len(magic) and source.view(0, len(magic)) == magic:
                return Match(Confidence.SPECIFIC, f"magic of an {what}" if what[0] == "x" else f"magic of a {what}")
        return None

    def open(self, sources: Sequence[Source], options: OpenOptions) -> Dump:
        """Pass over all records once; pages are not touched."""
        from dumpxlate.formats.xen_stream.reader import open_xen_stream

        return open_xen_stream(only_one(sources, self.name))

    def writer(self, dump: Dump, options: WriteOptions) -> Writer:
        """Refuse: a stream that could be restored needs state that no dump has."""
        raise UnsupportedFeatureError("xen_stream files are read, not written", format=self.name, feature="writing")


FORMAT = XenStreamFormat()
