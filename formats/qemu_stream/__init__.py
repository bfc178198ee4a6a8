"""qemu_stream: QEMU's migration stream, in a file of its own or as a snapshot (savevm) in a qcow2 image.

::

    "QEVM", version | type of the machine | RAM: table of blocks, page records | devices | their description

Of several copies of a page the last one counts. Where the blocks lie follows from the machine's type and from
registers of its chipset; registers of processors are read by the description that QEMU puts behind the devices.
Pages that are compressed, or sent as changes (XBZRLE), are read too, as are mapped-ram files. Pages that went over
other connections (multifd) are not in the file.

In a qcow2 image the stream of a snapshot lies behind the end of the disk, in clusters; nothing is copied.

Sources: qemu migration/savevm.c, ram.c, docs/interop/qcow2.txt; checked against streams of QEMU 7.2 and 10.0
and images of 7.2.
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

_MAGICS = {b"QEVM": "magic of a QEMU migration stream", b"QFI\xfb": "magic of a qcow2 image"}


class QemuStreamFormat:
    """Reads migration streams."""

    name = "qemu_stream"
    title = "QEMU migration stream (migrate to a file, savevm in qcow2)"
    suffixes: tuple[str, ...] = ()
    writes = False
    options: tuple[str, ...] = ()
    codecs = ("none", "zlib")

    def detect(self, source: Source) -> Match | None:
        """Recognise the magic numbers."""
        what = _MAGICS.get(bytes(source.view(0, min(source.size, 4))))
        return Match(Confidence.SPECIFIC, what) if what else None

    def open(self, sources: Sequence[Source], options: OpenOptions) -> Dump:
        """Pass over all records once; pages are not touched."""
        from dumpxlate.formats.qemu_stream.reader import open_qemu_stream

        return open_qemu_stream(only_one(sources, self.name), options)

    def writer(self, dump: Dump, options: WriteOptions) -> Writer:
        """Refuse: a stream that could be restored needs the state of all devices, which no dump has."""
        raise UnsupportedFeatureError("qemu_stream files are read, not written", format=self.name, feature="writing")


FORMAT = QemuStreamFormat()
