"""The libxc stream: one pass over its records."""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from dumpxlate.arch.xen_vcpu import context_layout
from dumpxlate.errors import CorruptDumpError, UnsupportedFeatureError
from dumpxlate.formats.xen_stream import layout
from dumpxlate.formats.xen_stream.hvm import hvm_cpus
from dumpxlate.formats.xen_stream.layout import DomainHeader, ImageHeader
from dumpxlate.formats.xen_stream.pages import PageRecords
from dumpxlate.formats.xen_stream.resync import is_header, next_pages
from dumpxlate.structs import parse, size_of
from dumpxlate.xen import MAX_VCPUS, PAGE_SIZE, xen_cpus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dumpxlate.arch.xen_vcpu import WordBits
    from dumpxlate.dump import Cpu
    from dumpxlate.io.source import Source

__all__ = ["Libxc", "read_libxc"]

_BLOCK_LIMIT = 16 << 20
_MOST_DEFECTS = 256
"""Records that make no sense, behind which the walk goes on."""
_PAIR = struct.Struct("<II")
_HEADER = struct.Struct("<II")
"""A record header as plain numbers: a large guest has a quarter of a million records."""


@dataclass(slots=True)
class Libxc:
    """What a stream says.

    Attributes:
        source: the file.
        domain: kind of guest, and version of Xen.
        pages: its page records.
        version: version of the stream.
        bits: width of the guest.
        contexts: vcpu contexts of a PV guest, by number.
        blocks: records that are kept as they are.
        counts: records by name.
        remarks: oddities.
        damage: what is missing.
        end: offset behind the END record, -1 if there is none.
        p2m_pages: first pfn and end of the p2m, and the offset of the pfns of its pages.
    """

    source: Source
    domain: DomainHeader
    pages: PageRecords
    version: int
    bits: WordBits = 64
    contexts: dict[int, bytes] = field(default_factory=dict)
    blocks: dict[str, bytes] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    remarks: list[str] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)
    end: int = -1
    p2m_pages: tuple[int, int, int] | None = None

    @property
    def paravirtual(self) -> bool:
        """Whether it is a PV guest."""
        return self.domain.type == layout.DOMAIN_PV

    def cpus(self) -> tuple[Cpu, ...]:
        """Read the processors."""
        if not self.paravirtual:
            cpus, complaint = hvm_cpus(self.blocks.get("xen_hvm_context", b""))
            self.remarks += [complaint] if complaint else []
            return cpus
        order = sorted(self.contexts)
        return xen_cpus([self.contexts[number] for number in order], self.bits, order)


def read_libxc(source: Source, at: int) -> Libxc:
    """Pass over a stream.

    Raises:
        UnsupportedFeatureError: a version, a domain or a mandatory record that is not known.
        CorruptDumpError: headers or records contradict themselves.
    """
    stream = _headers(source, at)
    verifying = False
    for kind, body, length in _records(stream, at + size_of(ImageHeader) + size_of(DomainHeader)):
        name = layout.NAMES.get(kind, f"{kind:#x}")
        stream.counts[name] += 1
        if kind == layout.PAGE_DATA:
            if stream.paravirtual and not stream.counts["X86_PV_INFO"]:
                raise CorruptDumpError("comes before X86_PV_INFO", offset=body - 8, what="PAGE_DATA")
            if not verifying:
                stream.pages.add(body, length)
        elif kind == layout.VERIFY:
            verifying = True
        elif kind in _HANDLERS:
            _HANDLERS[kind](stream, body, length)
        elif kind not in layout.NAMES and not kind & layout.OPTIONAL_RECORD:
            raise UnsupportedFeatureError(
                f"record at {body - 8:#x} of type {kind:#x}, which no known version of the stream has and which must "
                "not be skipped",
                format="xen_stream",
                feature=f"record type {kind:#x}",
            )
    if stream.end < 0:
        stream.damage.append("the stream breaks off before its END record: pages or processors may be missing")
    return stream


def _headers(source: Source, at: int) -> Libxc:
    """Read image header and domain header."""
    image = parse(ImageHeader, source.view(at, min(24, source.size - at)), 0, ">", what="image header")
    if image.marker != (1 << 64) - 1 or image.id != 0x58454E46:
        raise CorruptDumpError(
            f"marker {image.marker:#x}, id {image.id:#x}: expected all ones and 0x58454e46",
            offset=at,
            what="image header",
        )
    if image.version not in layout.XENF_VERSIONS or image.options & layout.XENF_BIG_ENDIAN:
        raise UnsupportedFeatureError(
            f"libxc stream of version {image.version} with options {image.options:#x}: versions 2 and 3 in "
            "little-endian order are known",
            format="xen_stream",
            feature="stream version",
        )
    at += size_of(ImageHeader)
    domain = parse(DomainHeader, source.view(at, min(16, source.size - at)), 0, "<", what="domain header")
    if domain.type not in (layout.DOMAIN_PV, layout.DOMAIN_HVM):
        raise UnsupportedFeatureError(
            f"domain of type {domain.type}: x86 PV (1) and HVM (2) are known",
            format="xen_stream",
            feature="domain type",
        )
    if domain.page_shift != 12:
        raise CorruptDumpError(f"page shift {domain.page_shift}: expected 12", offset=at, what="domain header")
    return Libxc(source, domain, PageRecords(source), image.version)


def _records(stream: Libxc, at: int) -> Iterator[tuple[int, int, int]]:
    """Give type, place and length of each record up to END; of one that is cut off only if it holds pages.

    Where a header makes no sense, the walk goes on with the next record that has pages.
    """
    source = stream.source
    while at + _HEADER.size <= source.size:
        kind, length = _HEADER.unpack(source.view(at, _HEADER.size))
        body = at + _HEADER.size
        unknown = kind not in layout.NAMES and not kind & layout.OPTIONAL_RECORD
        unknown = unknown and not is_header(source, body + (length + 7) // 8 * 8)
        odd = length > layout.RECORD_LIMIT or body + length > source.size
        defects = len(stream.damage)
        # Zeros look like END, behind which there is only what the device model saved.
        early = kind == layout.END and source.size - body > PAGE_SIZE
        if (odd or unknown or early) and defects < _MOST_DEFECTS and (found := next_pages(source, at)) is not None:
            stream.damage.append(
                f"record at {at:#x} makes no sense (type {kind:#x}, {length:,} bytes): {found - at:,} bytes are left "
                f"out, up to the next pages at {found:#x}"
            )
            at = found
            continue
        if odd:
            name = layout.NAMES.get(kind, f"type {kind:#x}")
            stream.damage.append(
                f"truncated: record {name} at {at:#x} has {length:,} bytes, {source.size - body:,} follow"
            )
            if kind == layout.PAGE_DATA and length <= layout.RECORD_LIMIT:
                yield kind, body, length
            return
        if kind == layout.END:
            stream.end = body + length
        yield kind, body, length
        if kind == layout.END:
            return
        at = body + (length + 7) // 8 * 8


def _pv_info(stream: Libxc, body: int, length: int) -> None:
    width, levels = stream.source.view(body, 2) if length >= 2 else (0, 0)
    if (width, levels) not in ((4, 3), (8, 4)):
        raise CorruptDumpError(
            f"guest width {width} with {levels} levels of page tables: expected 4 with 3 or 8 with 4",
            offset=body - 8,
            what="X86_PV_INFO",
        )
    stream.bits = 64 if width == 8 else 32


def _p2m_frames(stream: Libxc, body: int, length: int) -> None:
    """Check and keep the list of the p2m's own pages; what those hold is as it was when the guest was saved."""
    start, end = _PAIR.unpack(stream.source.view(body, 8)) if length >= 8 else (1, 0)
    entries = PAGE_SIZE * 8 // stream.bits
    wanted = end // entries - start // entries + 1
    if end < start or length != 8 + 8 * wanted:
        raise CorruptDumpError(
            f"pfns {start:#x} to {end:#x} in {length} bytes: expected {8 + 8 * max(wanted, 0)}",
            offset=body - 8,
            what="X86_PV_P2M_FRAMES",
        )
    stream.p2m_pages = (start, end + 1, body + 8)


def _vcpu(stream: Libxc, body: int, length: int) -> None:
    """Keep a vcpu's context."""
    number = _PAIR.unpack(stream.source.view(body, 8))[0] if length >= 8 else MAX_VCPUS
    if number >= MAX_VCPUS or length - 8 < context_layout(stream.bits).size:
        stream.remarks.append(f"X86_PV_VCPU_BASIC at {body - 8:#x}: {length} bytes for vcpu {number}: left out")
        return
    stream.contexts[number] = bytes(stream.source.view(body + 8, length - 8))


def _keep(name: str, stream: Libxc, body: int, length: int) -> None:
    """Keep a record as it is."""
    if length > _BLOCK_LIMIT:
        stream.remarks.append(f"record at {body - 8:#x}: {length:,} bytes of {name} are left out")
    elif length:
        stream.blocks[name] = bytes(stream.source.view(body, length))


_HANDLERS: dict[int, Callable[[Libxc, int, int], None]] = {
    layout.X86_PV_INFO: _pv_info,
    layout.X86_PV_P2M_FRAMES: _p2m_frames,
    layout.X86_PV_VCPU_BASIC: _vcpu,
    layout.SHARED_INFO: partial(_keep, "xen_shared_info"),
    layout.HVM_CONTEXT: partial(_keep, "xen_hvm_context"),
    layout.HVM_PARAMS: partial(_keep, "xen_hvm_params"),
}
