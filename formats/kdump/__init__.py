"""kdump-compressed: makedumpfile's and QEMU's dump with a bitmap of pages and each page compressed by itself.

::

    header | sub header, notes | bitmap of RAM | bitmap of pages in the file | 24-byte descriptors | page data

Everything is counted in blocks of the guest's page size. Pages have no table by pfn: the n-th set bit of the second
bitmap belongs to the n-th descriptor, which says where the page's bytes are and how they are compressed (raw, zlib,
LZO, Snappy, zstd; one file mixes them, since a page that does not shrink stays raw). All zero pages share one block.

Headers are written in the width and byte order of the dumped machine, which the file does not name, in seven versions
(0 to 6) and three layouts of the sub header. The format descends from Red Hat's diskdump, whose files are read too. A
set of files that ``makedumpfile --split`` wrote is opened as one dump, its parts in any order.

QEMU's ``kdump-zlib``, ``-lzo`` and ``-snappy`` are this format inside the container ``flattened``.

Sources: makedumpfile diskdump_mod.h, IMPLEMENTATION; crash diskdump.c; libkdumpfile diskdump.c; qemu dump/dump.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dumpxlate.format import Confidence, Match

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dumpxlate.dump import Dump
    from dumpxlate.format import OpenOptions, WriteOptions, Writer
    from dumpxlate.io.source import Source

__all__ = ["FORMAT"]

_SIGNATURES = {b"KDUMP   ": "KDUMP signature", b"DISKDUMP": "DISKDUMP signature"}


class KdumpFormat:
    """Reads and writes kdump-compressed dumps."""

    name = "kdump"
    title = "kdump-compressed (makedumpfile, QEMU and libvirt kdump-*, diskdump)"
    suffixes = (".kdump",)
    writes = True
    options = ("compress", "begin", "length", "part")
    codecs = ("none", "zlib", "lzo", "snappy", "zstd")

    def detect(self, source: Source) -> Match | None:
        """Recognise the signature."""
        detail = _SIGNATURES.get(bytes(source.view(0, 8))) if source.size >= 8 else None
        return Match(Confidence.SPECIFIC, detail) if detail else None

    def open(self, sources: Sequence[Source], options: OpenOptions) -> Dump:
        """Read headers and notes of a dump, or of the parts of a split one."""
        from dumpxlate.formats.kdump.reader import open_kdump

        return open_kdump(sources)

    def writer(self, dump: Dump, options: WriteOptions) -> Writer:
        """Plan a kdump-compressed dump, or one part of a split one."""
        options.only(self.options, self.name)
        from dumpxlate.formats.kdump.writer import KdumpWriter

        return KdumpWriter(dump, options)


FORMAT = KdumpFormat()
