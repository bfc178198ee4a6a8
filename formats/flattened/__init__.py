"""flattened: a dump written as records for a pipe, by ``makedumpfile -F`` and by QEMU.

::

    header, 4096 bytes | record | record | ... | end marker
    record: offset, size (both big-endian i64) | size bytes that belong at that offset of the file inside

A writer that cannot seek says with each piece where it belongs. Records come in any order, gaps between them are
zero, and of several records over a byte the last one in the stream counts, as if they were written one after the
other. The end marker is a record whose offset and size are both -1; what follows it is ignored. QEMU's
``dump-guest-memory`` writes kdump-compressed dumps so (``kdump-zlib`` and its like, hence libvirt too), makedumpfile
also ELF. The container says nothing of the machine and is big-endian always; the bytes inside keep their own order.

This is a container, not a dump format: what is inside is detected again. No byte is copied to read it.

Sources: makedumpfile makedumpfile.h and IMPLEMENTATION (struct makedumpfile_header, makedumpfile_data_header); qemu
dump/dump.c; crash makedumpfile.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dumpxlate.format import Confidence, Match
from dumpxlate.formats.flattened.layout import SIGNATURE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dumpxlate.io.pipe import Pipe
    from dumpxlate.io.sink import Output
    from dumpxlate.io.source import Source

__all__ = ["FORMAT"]


class FlattenedWrapper:
    """Opens and writes flattened files."""

    name = "flattened"
    title = "flattened dump (makedumpfile -F, QEMU and libvirt kdump-*): records for a pipe around a dump"
    writes = True

    def detect(self, source: Source) -> Match | None:
        """Recognise the signature, its NULs included."""
        if source.size < len(SIGNATURE) or source.view(0, len(SIGNATURE)) != SIGNATURE:
            return None
        return Match(Confidence.SPECIFIC, "signature makedumpfile")

    def unwrap(self, source: Source) -> Source:
        """Index the records."""
        from dumpxlate.formats.flattened.reader import open_flattened

        return open_flattened(source)

    def records(self, pipe: Pipe) -> Iterator[Sequence[tuple[int, memoryview]]]:
        """Give what the records hold as it comes."""
        from dumpxlate.formats.flattened.stream import flattened_records

        return flattened_records(pipe)

    def wrap(self, sink: Output) -> Output:
        """Write the header, and give a sink that makes records of what it is given."""
        from dumpxlate.formats.flattened.writer import FlattenedSink

        return FlattenedSink(sink)


FORMAT = FlattenedWrapper()
