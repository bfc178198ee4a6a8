"""raw: memory as it is; offset in the file is physical address.

There is no header, so a file is taken for raw only if nothing else claims it and its size is a multiple of 4096. What
the machine is and which pages are RAM, nothing tells: dumpxlate writes that into a small JSON file beside the image
(``NAME.dxmap``, see ``map_file.py``) and reads it from there. Without it every byte is taken for RAM of an x86-64
machine. Holes of a sparse file are zero pages and are never read.

Images in pieces (QEMU's ``pmemsave`` of each range, Qualcomm's ``DDRCS0.BIN``) are opened together with the physical
address of each: ``low.bin@0 high.bin@0x100000000``. What looks like raw but is not: LiME's *raw* mode and VMware's
.vmem beyond 3 GiB put RAM ranges one behind the other, so that everything behind the first hole is shifted; give the
ranges as pieces then.

Sources: qemu hmp-commands.hx (pmemsave); LiME README; crash ramdump.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dumpxlate.format import Confidence, Match

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dumpxlate.dump import Dump
    from dumpxlate.format import OpenOptions, WriteOptions, Writer
    from dumpxlate.io.pipe import Pipe
    from dumpxlate.io.source import Source

__all__ = ["FORMAT"]

_PAGE = 4096


class RawFormat:
    """Reads and writes raw images."""

    name = "raw"
    title = "raw image, whole or in pieces (pmemsave, ramdump, LiME padded)"
    suffixes = (".raw", ".bin", ".mem")
    writes = True
    options = ("begin", "length")
    codecs = ("none",)
    concatenates = True

    def detect(self, source: Source) -> Match | None:
        """Accept anything of whole pages, with the least confidence."""
        if not source.size or source.size % _PAGE:
            return None
        return Match(Confidence.FALLBACK, f"nothing else, and a multiple of {_PAGE} bytes")

    def open(self, sources: Sequence[Source], options: OpenOptions) -> Dump:
        """Find out which parts of the files are holes, and look for the map beside a single one."""
        from dumpxlate.formats.raw.reader import open_raw

        return open_raw(sources, options)

    def pieces(self, pipe: Pipe) -> Iterator[Dump]:
        """Give memory as it comes."""
        from dumpxlate.formats.raw.stream import raw_pieces

        return raw_pieces(pipe)

    def writer(self, dump: Dump, options: WriteOptions) -> Writer:
        """Plan a raw image."""
        options.only(self.options, self.name)
        from dumpxlate.formats.raw.writer import RawWriter

        return RawWriter(dump, options)


FORMAT = RawFormat()
