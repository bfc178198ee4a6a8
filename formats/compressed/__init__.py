"""compressed: a whole dump in gzip, xz, zstd, lz4, bzip2 or lzop; dumps travel so.

A container, not a dump format: what is inside is detected again. The file is unpacked once into a nameless temporary
file (mode 0600, gone when it is closed) in the folder that ``TMPDIR`` names, and mapped from there: memory does not
grow with it, runs of zeros take no room, and the free space of the disk bounds what a hostile file can do. Several
members or frames one behind the other are one file, as the tools take them. LiME's compressed mode, a bare zlib stream,
is recognised by what it holds.

Sources: RFC 1952 (gzip); the .xz file format; RFC 8878 (zstd); lz4's frame
format; bzip2's manual; LiME deflate.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dumpxlate.format import Confidence, Match

if TYPE_CHECKING:
    from dumpxlate.io.sink import Output
    from dumpxlate.io.source import Source

__all__ = ["FORMAT"]


class CompressedWrapper:
    """Unpacks compressed files."""

    name = "compressed"
    title = "gzip, xz, zstd, lz4, bzip2 or lzop around a dump"
    writes = False

    def detect(self, source: Source) -> Match | None:
        """Recognise the magic numbers."""
        from dumpxlate.formats.compressed.kinds import kind_of

        kind = kind_of(source)
        return Match(Confidence.SPECIFIC, f"{kind} magic") if kind else None

    def unwrap(self, source: Source) -> Source:
        """Unpack the file."""
        from dumpxlate.formats.compressed.unpack import unpack

        return unpack(source)

    def wrap(self, sink: Output) -> Output | None:
        """Nothing is written compressed as a whole: pages could not be reached in it."""
        return None


FORMAT = CompressedWrapper()
