"""xen_core: the memory of one Xen domain in ELF sections (``xl dump-core``, ``virsh dump`` on Xen, since Xen 3.1).

::

    ELF header | section headers | .note.Xen | .xen_prstatus | [.xen_shared_info] | padding to a page
        | .xen_pages | .xen_p2m or .xen_pfn | .shstrtab

There are no program headers. Page *i* of ``.xen_pages`` belongs to entry *i* of the index behind it: for a
paravirtual guest ``.xen_p2m`` names both pfn and machine frame of each page, so that this file is its own p2m map;
for HVM, PVH and Arm guests ``.xen_pfn`` names the pfn. Slots that Xen's tools could not fill are all ones, at the
end. Since index and section names come last, a truncated file has lost both. ``.xen_prstatus`` holds a
vcpu_guest_context for each vcpu that is online.

Sources: xen docs/misc/dump-core-format.txt, tools/libs/guest/xg_core.c; checked against ``xl dump-core`` of Xen 4.17.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dumpxlate.format import only_one

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dumpxlate.dump import Dump
    from dumpxlate.format import Match, OpenOptions, WriteOptions, Writer
    from dumpxlate.io.source import Source

__all__ = ["FORMAT"]

_MAGIC = b"\x7fELF"


class XenCoreFormat:
    """Reads and writes cores of Xen domains."""

    name = "xen_core"
    title = "Xen domain core in ELF sections (xl dump-core)"
    suffixes = (".xencore",)
    writes = True
    options: tuple[str, ...] = ()
    codecs = ("none",)

    def detect(self, source: Source) -> Match | None:
        """Recognise an ELF core by its Xen sections, or by Xen's first note where their names are lost."""
        if source.size < 64 or source.view(0, len(_MAGIC)) != _MAGIC:
            return None
        from dumpxlate.formats.xen_core.recognise import recognise

        return recognise(source)

    def open(self, sources: Sequence[Source], options: OpenOptions) -> Dump:
        """Read headers, notes and vcpu contexts; the index waits until a page is asked for."""
        from dumpxlate.formats.xen_core.reader import open_xen_core

        return open_xen_core(only_one(sources, self.name))

    def writer(self, dump: Dump, options: WriteOptions) -> Writer:
        """Plan a domain core."""
        options.only(self.options, self.name)
        from dumpxlate.formats.xen_core.writer import XenCoreWriter

        return XenCoreWriter(dump, options)


FORMAT = XenCoreFormat()
