"""libvirt: the header that ``virsh save``, managed save and snapshots of memory put before QEMU's stream.

::

    "LibvirtQemudSave", version, lengths | XML of the domain, cookie, padding | stream, perhaps compressed

A container: the stream inside is detected again, after unpacking where it is compressed. The header is in the byte
order of the host that wrote it. ``info`` shows the XML as it stands; nothing in it is expanded or followed. A file
that begins with ``LibvirtQemudPart`` was not written to its end, and is refused unless ``--salvage`` asks for what
is there.

Source: libvirt src/qemu/qemu_saveimage.h and qemu_saveimage.c; the sparse format is QEMU's mapped-ram.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dumpxlate.format import Confidence, Match

if TYPE_CHECKING:
    from dumpxlate.io.sink import Output
    from dumpxlate.io.source import Source

__all__ = ["FORMAT"]

_MAGICS = (b"LibvirtQemudSave", b"LibvirtQemudPart")


class LibvirtWrapper:
    """Takes libvirt's header away."""

    name = "libvirt"
    title = "libvirt save file around a QEMU stream (virsh save, managed save)"
    writes = False

    def detect(self, source: Source) -> Match | None:
        """Recognise the magic numbers."""
        if bytes(source.view(0, min(source.size, 16))) in _MAGICS:
            return Match(Confidence.SPECIFIC, "magic of a libvirt save file")
        return None

    def unwrap(self, source: Source) -> Source:
        """Give the stream."""
        from dumpxlate.formats.libvirt.header import unwrap

        return unwrap(source)

    def wrap(self, sink: Output) -> Output | None:
        """Nothing is written so: a save file is there to be restored, and no dump can be."""
        return None


FORMAT = LibvirtWrapper()
