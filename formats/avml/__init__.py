"""AVML version 2: blocks of physical memory, compressed with snappy, each behind a LiME-like header.

::

    { magic "AVML", version 2, first address, last address (inclusive), 8 zero bytes |
      snappy frames that unpack to that range | length of the frames, 8 bytes } ...

Ranges of RAM are cut into blocks of at most 16 MiB; avml leaves out those that are all zero, whose pages cannot be told
from a hole then, and this writer keeps them. A snappy stream is made of chunks of at most 64 KiB of memory, each with a
checksum; the reader notes where each chunk begins and unpacks those that are asked for. How long a stream is says only
the trailer behind it. Records of LiME's version 1 may stand between the blocks; a file of nothing else is ``lime``.

Sources: avml src/image.rs, snappy.rs; google snappy framing_format.txt; volatility3 layers/avml.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dumpxlate.format import Confidence, Match, only_one
from dumpxlate.lime import AVML_MAGIC, LIME_MAGIC

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dumpxlate.dump import Dump
    from dumpxlate.format import OpenOptions, WriteOptions, Writer
    from dumpxlate.io.source import Source

__all__ = ["FORMAT"]


class AvmlFormat:
    """Reads and writes AVML files."""

    name = "avml"
    title = "AVML version 2 (avml --compress)"
    suffixes = (".avml", ".lime.compressed")
    writes = True
    options = ("begin", "length")
    codecs = ("snappy",)
    concatenates = True

    def detect(self, source: Source) -> Match | None:
        """Recognise the magic of the first record, or of one behind LiME's own."""
        magic = bytes(source.view(0, min(source.size, len(AVML_MAGIC))))
        if magic == AVML_MAGIC:
            return Match(Confidence.SPECIFIC, "AVML magic")
        if magic == LIME_MAGIC:
            from dumpxlate.formats.avml.records import is_mixed

            return Match(Confidence.SPECIFIC, "AVML magic behind LiME records") if is_mixed(source) else None
        return None

    def open(self, sources: Sequence[Source], options: OpenOptions) -> Dump:
        """Read the headers of blocks and chunks."""
        from dumpxlate.formats.avml.reader import open_avml

        return open_avml(only_one(sources, self.name))

    def writer(self, dump: Dump, options: WriteOptions) -> Writer:
        """Plan an AVML file."""
        options.only(self.options, self.name)
        from dumpxlate.formats.avml.writer import AvmlWriter

        return AvmlWriter(dump, options)


FORMAT = AvmlFormat()
