"""Read any memory dump that a hypervisor or a kernel wrote, and re-emit it as any other.

::

    import dumpxlate

    with dumpxlate.open("xen.core", p2m="map.bin") as dump:
        page = dump.read(0x1000, 4096)                  # bytes at a guest-physical address
        pages = dump.read_pages([0, 1, 2])              # uint8 array, shape (3, 4096)
        dumpxlate.convert(dump, "vmcore", "elf")

Names are imported when they are first used, so that the command line starts quickly.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from dumpxlate.version import __version__

if TYPE_CHECKING:
    from dumpxlate import errors
    from dumpxlate.dump import Dump
    from dumpxlate.format import OpenOptions
    from dumpxlate.p2m.files import MapKind
    from dumpxlate.pipeline import Report, convert
    from dumpxlate.registry import all_formats, detect

__all__ = ["Dump", "Report", "__version__", "all_formats", "convert", "detect", "errors", "open"]

_LAZY = {
    "Dump": "dumpxlate.dump",
    "Report": "dumpxlate.pipeline",
    "all_formats": "dumpxlate.registry",
    "convert": "dumpxlate.pipeline",
    "detect": "dumpxlate.registry",
}


def open(
    *paths: str | os.PathLike[str],
    format: str | None = None,
    p2m: str | os.PathLike[str] | None = None,
    p2m_format: MapKind | None = None,
    options: OpenOptions | None = None,
) -> Dump:
    """Open a dump; closing it, or leaving its ``with`` block, closes the file.

    Args:
        paths: the dump; several files where it is split into a set, in any order.
        format: name of its format; found out by its content if not given.
        p2m: map of a paravirtual guest, for a dump keyed by machine frames.
        p2m_format: kind of that map; found out if not given.
        options: what the content of the files does not tell (addresses of raw pieces, what missing memory is).

    Raises:
        FormatError: it is no dump, not of that format, or corrupt.
        MapError: the map cannot be read.
        OSError: a file cannot be read.
    """
    from dataclasses import replace

    from dumpxlate.registry import open_dump

    told = options.qemu.files if options and options.qemu else ()
    if p2m is None:
        return replace(open_dump(paths, format, options), consulted=told)
    from dumpxlate.p2m.files import read_map

    frames = read_map(p2m, p2m_format)
    return replace(open_dump(paths, format, options).with_p2m(frames), consulted=(*told, os.fspath(p2m)))


def __getattr__(name: str) -> Any:
    import importlib

    if name == "errors":
        return importlib.import_module("dumpxlate.errors")
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
