"""Reads save images: finds the libxc stream inside its layers, and makes a dump of it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from dumpxlate.dump import Dump
from dumpxlate.errors import CorruptDumpError, TruncatedDumpError, UnsupportedFeatureError
from dumpxlate.formats.xen_stream import layout
from dumpxlate.formats.xen_stream.layout import LibxlHeader, RecordHeader, XlHeader
from dumpxlate.formats.xen_stream.libxc import Libxc, read_libxc
from dumpxlate.formats.xen_stream.saved_p2m import saved_p2m
from dumpxlate.structs import parse, size_of
from dumpxlate.xen import xen_machine

if TYPE_CHECKING:
    from dumpxlate.io.source import Source

__all__ = ["open_xen_stream"]

_SHOWN = 8
"""Broken records that are told one by one."""


@dataclass(slots=True)
class _Layers:
    """What stands around the libxc stream.

    Attributes:
        libxc: where the stream begins.
        names: the layers, from the outside.
        records: libxl's records by name.
        config: text of the domain's configuration.
    """

    libxc: int = 0
    names: list[str] = field(default_factory=list)
    records: Counter[str] = field(default_factory=Counter)
    config: bytes = b""


def open_xen_stream(source: Source) -> Dump:
    """Open a save image.

    Raises:
        UnsupportedFeatureError: the image of an older Xen, or of a kind that is not known.
        CorruptDumpError: headers or records contradict themselves.
    """
    layers = _layers(source)
    stream = read_libxc(source, layers.libxc)
    if layers.records and stream.end >= 0:
        _libxl_records(source, stream.end, layers, stream.remarks)
    cpus = stream.cpus()
    pages = stream.pages.store()
    stream.damage += stream.pages.rejected[:_SHOWN]
    if len(stream.pages.rejected) > _SHOWN:
        stream.damage.append(f"{len(stream.pages.rejected) - _SHOWN:,} more PAGE_DATA records are broken")
    if stream.paravirtual:
        stream.remarks.append(
            "page tables and cr3 of this paravirtual guest hold pfns, not machine frames: the stream carries them so, "
            "and translation needs no p2m map"
        )
    return Dump(
        format="xen_stream",
        variant=f"{'paravirtual' if stream.paravirtual else 'HVM or PVH'} guest, {' > '.join(layers.names)}",
        machine=replace(xen_machine(stream.bits, paravirtual=False), canonical=stream.paravirtual),
        pages=pages,
        sources=(source,),
        cpus=cpus,
        saved_p2m=saved_p2m(stream, pages),
        blocks=stream.blocks,
        attributes=_attributes(stream, layers),
        remarks=tuple(stream.remarks),
        damage=tuple(stream.damage),
    )


def _layers(source: Source) -> _Layers:
    """Find the libxc stream."""
    layers = _Layers()
    at = 0
    if _begins(source, at, layout.OLD_MAGIC):
        raise UnsupportedFeatureError(
            "an image of xm save (LinuxGuestRecord), as Xen wrote it before xl: only streams since Xen 4.6 are read",
            format="xen_stream",
            feature="LinuxGuestRecord",
        )
    if _begins(source, at, layout.XL_MAGIC[:27]):
        at = _xl_header(source, layers)
    if _begins(source, at, layout.LIBXL_IDENT):
        at = _libxl_header(source, at, layers)
    elif at and not _begins(source, at, layout.XENF_MARK):
        raise CorruptDumpError(
            "expected a libxl or a libxc stream behind the xl header", offset=at, what="xl save file"
        )
    layers.names.append("libxc")
    layers.libxc = at
    return layers


def _begins(source: Source, at: int, magic: bytes) -> bool:
    return at + len(magic) <= source.size and source.view(at, len(magic)) == magic


def _xl_header(source: Source, layers: _Layers) -> int:
    """Read the header of an xl save file; give where the stream begins."""
    header = parse(XlHeader, source.view(0, min(48, source.size)), 0, "<", what="xl header")
    if header.magic != layout.XL_MAGIC:
        raise CorruptDumpError(
            f"ends in {header.magic[27:].hex(' ')}: expected {layout.XL_MAGIC[27:].hex(' ')} "
            "(copied as text, with other line ends?)",
            offset=27,
            what="xl header",
        )
    if header.byteorder != layout.XL_BYTEORDER:
        raise UnsupportedFeatureError(
            f"an xl save file of byte order {header.byteorder:#x}, known is {layout.XL_BYTEORDER:#x}",
            format="xen_stream",
            feature="byte order",
        )
    known = layout.XL_MANDATORY_JSON | layout.XL_MANDATORY_STREAM_V2
    if header.mandatory_flags & ~known or not header.mandatory_flags & layout.XL_MANDATORY_STREAM_V2:
        raise UnsupportedFeatureError(
            f"an xl save file with mandatory flags {header.mandatory_flags:#x}: since Xen 4.6 they are 2, with 1 for a "
            "JSON configuration",
            format="xen_stream",
            feature="xl flags",
        )
    start, length = size_of(XlHeader), header.optional_data_len
    if length > layout.XL_OPTIONAL_LIMIT or (0 < length < 4):
        raise CorruptDumpError(f"optional data of {length:,} bytes", offset=44, what="xl header")
    if start + length > source.size:
        raise TruncatedDumpError("configuration", offset=start, wanted=length, available=source.size - start)
    if length:
        data = bytes(source.view(start, length))
        size = int.from_bytes(data[:4], "little")
        if size + 4 > length:
            raise CorruptDumpError(
                f"configuration of {size} bytes in {length} bytes of optional data", offset=start, what="xl header"
            )
        layers.config = data[4 : 4 + size]
    layers.names.append("xl")
    return start + length


def _libxl_header(source: Source, at: int, layers: _Layers) -> int:
    """Read libxl's header and records up to the one that the libxc stream follows; give where that begins."""
    size = size_of(LibxlHeader)
    header = parse(LibxlHeader, source.view(at, min(size, source.size - at)), 0, ">", what="libxl header")
    if header.version != layout.LIBXL_VERSION or header.options & layout.LIBXL_BIG_ENDIAN:
        raise UnsupportedFeatureError(
            f"libxl stream of version {header.version} with options {header.options:#x}: version 2 in little-endian "
            "order is known",
            format="xen_stream",
            feature="libxl version",
        )
    layers.names.append("libxl")
    found = _libxl_records(source, at + size, layers, [])
    if found < 0:
        raise CorruptDumpError("no LIBXC_CONTEXT record", offset=at + size, what="libxl stream")
    return found


def _libxl_records(source: Source, at: int, layers: _Layers, remarks: list[str]) -> int:
    """Pass over libxl's records; give what is behind LIBXC_CONTEXT, or -1 where there is none up to END."""
    while at + 8 <= source.size:
        record = parse(RecordHeader, source.view(at, 8), 0, "<")
        kind, at = record.type, at + 8
        if kind not in layout.LIBXL_NAMES and not kind & layout.OPTIONAL_RECORD:
            raise UnsupportedFeatureError(
                f"libxl record at {at - 8:#x} of type {kind:#x}, which must not be skipped",
                format="xen_stream",
                feature=f"libxl record type {kind:#x}",
            )
        layers.records[layout.LIBXL_NAMES.get(kind, f"{kind:#x}")] += 1
        if kind == layout.LIBXL_LIBXC_CONTEXT:
            return at + record.length
        if kind == layout.LIBXL_END:
            return -1
        at += (record.length + 7) // 8 * 8
    remarks.append("libxl's records break off before END: memory and processors are complete, devices may not be")
    return -1


def _attributes(stream: Libxc, layers: _Layers) -> dict[str, int | str]:
    """Say what the headers hold."""
    found: dict[str, int | str] = {
        "layers": ", ".join(layers.names),
        "stream_version": stream.version,
        "xen_version": f"{stream.domain.xen_major}.{stream.domain.xen_minor}",
        "domain_type": "PV" if stream.paravirtual else "HVM",
        "records": ", ".join(f"{name} {count}" for name, count in stream.counts.items()),
    }
    if layers.records:
        found["libxl_records"] = ", ".join(f"{name} {count}" for name, count in layers.records.items())
    name = _domain_name(layers.config)
    return found | ({"domain": name} if name else {})


def _domain_name(config: bytes) -> str:
    """Take the domain's name from its configuration, where that is JSON as libxl writes it."""
    try:
        name = json.loads(config.split(b"\0", 1)[0])["c_info"]["name"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    return name if isinstance(name, str) else ""
