"""LiME: ranges of physical memory, each behind a header with its addresses (version 1).

::

    { magic "EMiL", version, first address, last address (inclusive), 8 zero bytes | bytes of that range } ...

There is no header of the whole file and no end mark, and nothing tells of the machine. The ranges are what Linux calls
"System RAM", ascending; they need not begin or end at a page. Whether a page that no range holds is RAM cannot be told:
LiME itself writes every page (one that it cannot read as zeros), AVML without compression leaves out blocks of 16 MiB
that are all zero, and dumpxlate the pages that its input lacked, which it declares as a loss. LiME's *raw* mode has no
headers at all and is no LiME file; its compressed mode is one zlib stream (``compressed`` unpacks it).

Sources: LiME lime.h, main.c; volatility3 layers/lime.py; avml image.rs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dumpxlate.format import Confidence, Match, only_one
from dumpxlate.lime import LIME_MAGIC

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dumpxlate.dump import Dump
    from dumpxlate.format import OpenOptions, WriteOptions, Writer
    from dumpxlate.io.pipe import Pipe
    from dumpxlate.io.source import Source

__all__ = ["FORMAT"]


class LimeFormat:
    """Reads and writes LiME files."""

    name = "lime"
    title = "LiME (lime.ko, AVML without compression)"
    suffixes = (".lime",)
    writes = True
    options = ("begin", "length")
    codecs = ("none",)
    concatenates = True

    def detect(self, source: Source) -> Match | None:
        """Recognise the magic of the first range; a file with AVML's records behind it is AVML's."""
        if source.size < len(LIME_MAGIC) or source.view(0, len(LIME_MAGIC)) != LIME_MAGIC:
            return None
        return Match(Confidence.SIGNATURE, "LiME magic")

    def open(self, sources: Sequence[Source], options: OpenOptions) -> Dump:
        """Read the headers of the ranges."""
        from dumpxlate.formats.lime.reader import open_lime

        return open_lime(only_one(sources, self.name))

    def pieces(self, pipe: Pipe) -> Iterator[Dump]:
        """Give memory as it comes."""
        from dumpxlate.formats.lime.stream import lime_pieces

        return lime_pieces(pipe)

    def writer(self, dump: Dump, options: WriteOptions) -> Writer:
        """Plan a LiME file."""
        options.only(self.options, self.name)
        from dumpxlate.formats.lime.writer import LimeWriter

        return LimeWriter(dump, options)


FORMAT = LimeFormat()
