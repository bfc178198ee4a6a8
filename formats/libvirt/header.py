"""Reads libvirt's header; what is behind it is a source of its own."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import numpy as np

from dumpxlate.errors import CorruptDumpError, TruncatedDumpError, UnsupportedFeatureError
from dumpxlate.extents import Extents
from dumpxlate.io.spliced import SplicedSource
from dumpxlate.structs import U32, parse, size_of, struct

if TYPE_CHECKING:
    from dumpxlate.io.source import Source
    from dumpxlate.structs import Endian

__all__ = ["SavedStream", "unwrap"]

_PARTIAL = b"LibvirtQemudPart"
_VERSIONS = (1, 2)
_COMPRESSIONS = ("raw", "gzip", "bzip2", "xz", "lzop", "zstd", "sparse")
_XML_SHOWN = 256 << 10
"""Bytes of XML that are kept: that of a large domain has 30 KB."""

_NAME = re.compile(r"<name>([^<>&]{1,256})</name>")


@struct
class SaveHeader:
    """struct _virQEMUSaveHeader, in the byte order of the host."""

    magic: Annotated[bytes, 16]
    version: U32
    data_len: U32
    was_running: U32
    format: U32
    cookie_offset: U32
    unused: Annotated[bytes, 56]


class SavedStream(SplicedSource):
    """The stream behind the header.

    Attributes:
        attributes: what the header says.
    """

    def __init__(self, outer: Source, start: int, complaint: str | None, attributes: dict[str, int | str]) -> None:
        size = outer.size - start
        all_of_it = Extents(np.zeros(1, np.int64), np.array([size], np.int64), np.array([start], np.int64))
        super().__init__(outer, all_of_it, size, complaint)
        self.attributes = attributes


def unwrap(source: Source) -> SavedStream:
    """Give the stream of a save file.

    Raises:
        UnsupportedFeatureError: a version or a compression that is not known.
        CorruptDumpError: the header contradicts itself.
        TruncatedDumpError: the file ends in the XML, or with it.
    """
    header = _header(source)
    start = size_of(SaveHeader) + header.data_len
    if start >= source.size:
        raise TruncatedDumpError(
            "libvirt header", offset=size_of(SaveHeader), wanted=header.data_len + 1, available=source.size - 92
        )
    if header.format >= len(_COMPRESSIONS):
        raise UnsupportedFeatureError(
            f"a libvirt save file of format {header.format}: 0 to {len(_COMPRESSIONS) - 1} are known",
            format="libvirt",
            feature=f"format {header.format}",
        )
    if header.cookie_offset and header.cookie_offset >= header.data_len:
        raise CorruptDumpError(
            f"a cookie at {header.cookie_offset:#x} of {header.data_len:#x} bytes", offset=32, what="libvirt header"
        )
    xml = _xml(source, header)
    name = _NAME.search(xml)
    told: dict[str, int | str] = {"domain": name[1]} if name else {}
    told |= {
        "libvirt_version": header.version,
        "was_running": int(bool(header.was_running)),
        "compression": _COMPRESSIONS[header.format],
        "domain_xml": xml,
    }
    partial = header.magic == _PARTIAL
    complaint = "libvirt was interrupted while it wrote this file (LibvirtQemudPart)" if partial else None
    return SavedStream(source, start, complaint, told)


def _header(source: Source) -> SaveHeader:
    """Read the header in the byte order in which its version makes sense."""
    head = source.view(0, min(source.size, size_of(SaveHeader)))
    orders: tuple[Endian, ...] = ("<", ">")
    found = [parse(SaveHeader, head, 0, endian, what="libvirt header") for endian in orders]
    for header in found:
        if header.version in _VERSIONS:
            return header
    raise UnsupportedFeatureError(
        f"a libvirt save file of version {min(header.version for header in found)}: 1 and 2 are known",
        format="libvirt",
        feature="version",
    )


def _xml(source: Source, header: SaveHeader) -> str:
    """Give the domain's XML as text; it ends at a NUL, behind which the cookie is."""
    length = min(header.data_len, _XML_SHOWN)
    text = bytes(source.view(size_of(SaveHeader), length)).split(b"\0", 1)[0]
    return text.decode("utf-8", "replace")
