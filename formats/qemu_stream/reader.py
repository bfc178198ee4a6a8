"""Opens streams, those in qcow2 images too."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from dumpxlate.errors import UnsupportedFeatureError
from dumpxlate.formats.qemu_stream.qcow2 import MAGIC as QCOW2
from dumpxlate.formats.qemu_stream.qcow2 import snapshot_stream
from dumpxlate.qemu.dump import open_stream

if TYPE_CHECKING:
    from dumpxlate.dump import Dump
    from dumpxlate.format import OpenOptions
    from dumpxlate.io.source import Source

__all__ = ["open_qemu_stream"]

_FORMAT = "qemu_stream"


def open_qemu_stream(source: Source, options: OpenOptions) -> Dump:
    """Open a stream, or that of a snapshot in a qcow2 image.

    Raises:
        UnsupportedFeatureError: a variant that is not handled, or an image without the snapshot that is asked for.
        CorruptDumpError: the file contradicts itself.
    """
    how = partial(open_stream, format=_FORMAT, machine=options.machine, ram_below_4g=options.ram_below_4g)
    if bytes(source.view(0, min(source.size, 4))) != QCOW2:
        if options.snapshot is not None:
            raise UnsupportedFeatureError(
                "a snapshot was named, but this is a stream and no qcow2 image", format=_FORMAT, feature="snapshot"
            )
        return how(source, variant="migration stream")
    inner, snapshot = snapshot_stream(source, options.snapshot)
    dump = how(inner, variant=f"snapshot {snapshot.name!r} in a qcow2 image", lacks=inner.lacks)
    told: dict[str, int | str] = {
        "snapshot": snapshot.name,
        "snapshot_taken": snapshot.taken,
        "snapshots": snapshot.others,
    }
    return replace(dump, attributes=told | dict(dump.attributes))
