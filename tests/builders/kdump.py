"""kdump-compressed (``KDUMP   ``) and its ancestor DISKDUMP: every version, width, order and codec."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .codecs import CODECS
from .elf_notes import cpu_notes, note
from .guest import Guest
from .packing import align, cut, fields, pack, place, put, runs, write_sparse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

__all__ = ["HEADERS", "UTSNAME", "bitmap", "build", "far", "parts", "sparse_huge", "split_set", "sub_slots"]

_UTSNAME = fields("sysname nodename release version machine domainname", "65s")
_NUMBERS = fields(
    "status block_size sub_hdr_size bitmap_blocks max_mapnr total_ram_blocks device_blocks written_blocks current_cpu"
    " nr_cpus",
    "I",
)


def _header(word: str, pad: str) -> list[tuple[str, str]]:
    head = [("signature", "8s"), ("header_version", "I"), *_UTSNAME, ("pad", pad)]
    return [*head, *fields("tv_sec tv_usec", word), *_NUMBERS]


HEADERS = {"64": _header("Q", "6s"), "packed": _header("I", "2s"), "natural": _header("I", "2s")}
UTSNAME = {
    "sysname": b"Linux", "nodename": b"model", "release": b"6.1.0-model", "version": b"#1 SMP Model",
    "machine": b"x86_64", "domainname": b"(none)",
}  # fmt: skip
_SUB = [  # (name, type, first version that has it)
    ("phys_base", "long", 0), ("dump_level", "int", 1), ("split", "int", 2), ("start_pfn", "long", 2),
    ("end_pfn", "long", 2), ("offset_vmcoreinfo", "u64", 3), ("size_vmcoreinfo", "long", 3), ("offset_note", "u64", 4),
    ("size_note", "long", 4), ("offset_eraseinfo", "u64", 5), ("size_eraseinfo", "long", 5), ("start_pfn_64", "u64", 6),
    ("end_pfn_64", "u64", 6), ("max_mapnr_64", "u64", 6),
]  # fmt: skip


def sub_slots(layout: str, version: int = 6) -> tuple[dict[str, tuple[int, int]], int]:
    """name -> (offset, width) of the sub header's fields, and its size; layouts 64, packed (i386), natural (ARM)."""
    long = 8 if layout == "64" else 4
    slots: dict[str, tuple[int, int]] = {}
    at = 0
    for name, type, since in _SUB:
        if since > version:
            break
        width = {"long": long, "int": 4, "u64": 8}[type]
        at = align(at, min(width, 4 if layout == "packed" else 8))
        slots[name] = (at, width)
        at += width
    return slots, at


def bitmap(pfn_runs: Iterable[tuple[int, int]], size: int) -> bytes:
    """``size`` bytes with the bits of the (first pfn, count) runs set, least significant bit first."""
    image = bytearray(size)
    for first, count in pfn_runs:
        head = min(-first % 8, count)
        for pfn in (*range(first, first + head), *range(first + head + (count - head) // 8 * 8, first + count)):
            image[pfn >> 3] |= 1 << (pfn & 7)
        whole = (count - head) // 8
        image[first + head >> 3 : (first + head >> 3) + whole] = b"\xff" * whole
    return bytes(image)


def build(guest: Guest, *, truncate: int | None = None, **options: Any) -> bytes:
    """A kdump file; ``options`` are those of ``parts``, ``truncate`` keeps that many bytes."""
    return cut(place(parts(guest, **options)), truncate)


def parts(
    guest: Guest,
    *,
    signature: bytes = b"KDUMP   ",
    version: int = 6,
    layout: str = "64",
    byte_order: str = "<",
    codec: str | Sequence[str] | Callable[[int, bytes], tuple[int, bytes]] = "zlib",
    shared_zero: bool = True,
    ram: Iterable[tuple[int, int]] | None = None,
    max_mapnr: int | None = None,
    single_bitmap: bool = False,
    bitmap_blocks: int | None = None,
    notes: Sequence[bytes] | None = None,
    vmcoreinfo: str | None = "note",
    eraseinfo: bytes = b"",
    split: tuple[int, int] | None = None,
    written: int | None = None,
    reverse: bool = False,
    gap: int = 0,
    utsname: Mapping[str, bytes] | None = None,
    header: Mapping[str, int | bytes] | None = None,
    sub: Mapping[str, int] | None = None,
    descriptors: Mapping[int, Mapping[str, int]] | None = None,
) -> list[tuple[int, bytes]]:
    """The (offset, bytes) that make a kdump file, headers first.

    Args:
        guest: its pages get descriptors, its excluded ones only their bit in the first bitmap.
        signature: or ``DISKDUMP``.
        version: header version, 0 to 6: fields of the sub header that are younger are not there.
        layout: 64, packed (32-bit, i386 and QEMU) or natural (32-bit, ARM).
        byte_order: ``<`` or ``>``.
        codec: one name, several in turn, or a function (pfn, page) -> (flags, bytes); a codec that does not make a
            page smaller leaves it raw.
        shared_zero: one raw page of zeros for all zero pages, first of all data.
        ram: runs of the first bitmap instead of the guest's RAM.
        max_mapnr: instead of one past the last RAM pfn.
        single_bitmap: only the second bitmap.
        bitmap_blocks: room for the bitmaps instead of just enough.
        notes: ELF notes without VMCOREINFO (default: PRSTATUS of each cpu).
        vmcoreinfo: ``note``: a note, and offset and size of its text; ``bare``: text without a note; ``hidden``: a
            note that offset_vmcoreinfo does not tell; None: none.
        eraseinfo: text at the end of the file.
        split: (start_pfn, end_pfn) of this part of a split dump.
        written: so many descriptors are written, then the disk was full.
        reverse: page data in descending order.
        gap: bytes between descriptors and data.
        utsname: fields that differ from ``UTSNAME``.
        header: fields of the header that shall lie; likewise ``sub`` of the sub header.
        descriptors: pfn -> fields (offset, size, flags, page_flags) of its descriptor that shall lie.
    """
    size = guest.page_size
    top = guest.end_pfn if max_mapnr is None else max_mapnr
    slots, sub_size = sub_slots(layout, version)
    area, where = _notes_area(guest, size + align(sub_size, 8), version, byte_order, notes, vmcoreinfo)
    sub_blocks = align(align(sub_size, 8) + len(area), size) // size
    one = max(align(align(top, 8) // 8, size) // size, 1)
    blocks = (one if single_bitmap else 2 * one) if bitmap_blocks is None else bitmap_blocks
    half = (blocks if single_bitmap else blocks // 2) * size
    table_at = (1 + sub_blocks + blocks) * size
    start, end = split or (0, 1 << 62)
    mine = [pfn for pfn in guest.stored if start <= pfn < end]
    data_at = table_at + 24 * len(guest.stored) + gap
    encode = codec if callable(codec) else _encoder([codec] if isinstance(codec, str) else codec)
    table, data = _pages(guest, mine if written is None else mine[:written], data_at, encode, shared_zero, reverse)
    names = [codec] if isinstance(codec, str) else [] if callable(codec) else codec
    values: dict[str, int | bytes] = {
        "signature": signature, "header_version": version, **UTSNAME, **(utsname or {}), "tv_sec": 1700000000,
        "status": (CODECS[names[0]][0] if names else 0) | 8 * (written is not None), "block_size": size,
        "sub_hdr_size": sub_blocks, "bitmap_blocks": blocks, "max_mapnr": min(top, 0xFFFFFFFF),
        "nr_cpus": guest.nr_vcpus,
    }  # fmt: skip
    where |= {"dump_level": 30 * bool(guest.excluded) | shared_zero}
    where |= {"max_mapnr_64": top, "offset_eraseinfo": data_at + len(data), "size_eraseinfo": len(eraseinfo)}
    if not eraseinfo:
        where["offset_eraseinfo"] = 0
    if split:
        where |= {"split": 1, "start_pfn": start, "end_pfn": end, "start_pfn_64": start, "end_pfn_64": end}
    second = bitmap(runs(guest.stored), half)
    return [
        (0, pack(byte_order, HEADERS[layout], values, header)),
        (size, _sub_header(slots, sub_size, byte_order, where, sub or {})),
        (size + align(sub_size, 8), area),
        ((1 + sub_blocks) * size, (b"" if single_bitmap else bitmap(ram or runs(guest.ram), half)) + second),
        (table_at, _descriptors(mine, table, byte_order, descriptors or {})),
        (data_at, data + eraseinfo),
    ]


@dataclass(frozen=True)
class _Where:
    offset: int
    size: int
    flags: int


def _notes_area(
    guest: Guest, at: int, version: int, order: str, notes: Sequence[bytes] | None, style: str | None
) -> tuple[bytes, dict[str, int]]:
    """Bytes behind the sub header, and the fields that tell where notes and VMCOREINFO are in them."""
    text = guest.vmcoreinfo.encode() if style else b""
    area = b"".join(cpu_notes(guest, order=order) if notes is None else notes) if version >= 4 else b""
    as_note = style in ("note", "hidden") and version >= 4
    text_at = len(area) + 24 * as_note
    area += note("VMCOREINFO", 0, text, order=order) if as_note else b""
    where = {"offset_note": at, "size_note": len(area)} if area else {}
    if style == "bare" or (style and version == 3):
        area += text
    if style in ("note", "bare") and version >= 3:
        where |= {"offset_vmcoreinfo": at + text_at, "size_vmcoreinfo": len(text)}
    return area, where


def _sub_header(
    slots: Mapping[str, tuple[int, int]], size: int, order: str, values: Mapping[str, int], lies: Mapping[str, int]
) -> bytes:
    """Fields that this version does not have are dropped from ``values``, but must not be lied about."""
    image = bytearray(size)
    for name, value in {**{name: values[name] for name in values if name in slots}, **lies}.items():
        put(image, order, slots[name], value)
    return bytes(image)


def _encoder(names: Sequence[str]) -> Callable[[int, bytes], tuple[int, bytes]]:
    def encode(pfn: int, page: bytes) -> tuple[int, bytes]:
        flag, compress = CODECS[names[pfn % len(names)]]
        packed = compress(page)
        return (flag, packed) if len(packed) < len(page) else (0, page)

    return encode


def _pages(
    guest: Guest, pfns: Sequence[int], at: int, encode: Callable[[int, bytes], tuple[int, bytes]], shared_zero: bool,
    reverse: bool,
) -> tuple[dict[int, _Where], bytes]:  # fmt: skip
    """Where each page lies, and the data."""
    zero = bytes(guest.page_size)
    data = bytearray(zero if shared_zero else b"")
    table: dict[int, _Where] = {}
    for pfn in reversed(pfns) if reverse else pfns:
        if shared_zero and guest.pages[pfn] == zero:
            table[pfn] = _Where(at, len(zero), 0)
            continue
        flags, body = encode(pfn, guest.pages[pfn])
        table[pfn] = _Where(at + len(data), len(body), flags)
        data += body
    return table, bytes(data)


def _descriptors(
    pfns: Sequence[int], table: Mapping[int, _Where], order: str, lies: Mapping[int, Mapping[str, int]]
) -> bytes:
    form = [("offset", "Q"), ("size", "I"), ("flags", "I"), ("page_flags", "Q")]
    none = _Where(0, 0, 0)
    rows = ((pfn, table.get(pfn, none)) for pfn in pfns)
    return b"".join(
        pack(order, form, {"offset": row.offset, "size": row.size, "flags": row.flags}, lies.get(pfn))
        for pfn, row in rows
    )


def split_set(guest: Guest, count: int, **options: Any) -> list[bytes]:
    """The parts of a ``makedumpfile --split`` dump, cut at multiples of the last pfn."""
    top = guest.end_pfn
    edges = [top * part // count for part in range(count)] + [top]
    return [build(guest, split=(edges[part], edges[part + 1]), **options) for part in range(count)]


def sparse_huge(
    path: Path,
    pages: Mapping[int, bytes],
    *,
    nr_pages: int,
    page_size: int = 4096,
    stored: Sequence[tuple[int, int]] | None = None,
) -> Path:
    """A sparse file with a raw page for every pfn below ``nr_pages``; only ``pages`` (by pfn) have content.

    The descriptors are really written: 24 bytes for each page. With ``stored``, runs (first pfn, count), only those
    pages have one, the rest of RAM was left out.
    """
    import numpy as np

    runs_of = stored or [(0, nr_pages)]
    held = sum(count for _, count in runs_of)
    guest = Guest(page_size=page_size, pages={})
    head = parts(guest, codec="raw", max_mapnr=nr_pages, shared_zero=False)
    bits_at, half = head[3][0], len(head[3][1]) // 2
    table_at = bits_at + 2 * half
    data_at = align(table_at + 24 * held, page_size)
    bits = bitmap([(0, nr_pages)], half), bitmap(runs_of, half)
    write_sparse(path, data_at + held * page_size, [*head[:3], (bits_at, bits[0]), (bits_at + half, bits[1])])
    row = np.dtype([("offset", "<u8"), ("size", "<u4"), ("flags", "<u4"), ("page_flags", "<u8")])
    with path.open("r+b") as file:
        file.seek(table_at)
        for first in range(0, held, 1 << 20):
            table = np.zeros(min(1 << 20, held - first), row)
            table["offset"] = data_at + np.arange(first, first + len(table), dtype="u8") * np.uint64(page_size)
            table["size"] = page_size
            file.write(table.tobytes())
        for pfn, data in pages.items():
            below = sum(min(max(pfn - first, 0), count) for first, count in runs_of)
            file.seek(data_at + below * page_size)
            file.write(data)
    return path


def far(
    path: Path,
    pages: Mapping[int, bytes],
    *,
    top: int,
    ram: Iterable[tuple[int, int]],
    split: tuple[int, int] | None = None,
    bitmap_blocks: int | None = None,
    keep: int | None = None,
) -> Path:
    """A sparse file of raw pages that lie far apart: bitmaps of ``top`` pages, with holes where no bit is set.

    Args:
        path: where to.
        pages: content by pfn.
        top: max_mapnr.
        ram: runs (first pfn, count) of the bitmap of RAM.
        split: the pfns (first, one past the last) of a part: the bitmaps are those of all pages.
        bitmap_blocks: blocks of both bitmaps if not as many as needed.
        keep: raw pages that are in the file if not all: the rest was cut off.
    """
    half = (bitmap_blocks or 2 * align(align(top, 8) // 8, 4096) // 4096) * 2048
    sub = {"max_mapnr_64": top}
    if split:
        sub |= {"split": 1, "start_pfn_64": split[0], "end_pfn_64": split[1]}
    header = {"bitmap_blocks": half // 2048, "max_mapnr": min(top, 0xFFFFFFFF)}
    head = parts(Guest(pages={0: bytes(4096)}), codec="raw", header=header, sub=sub)
    bits_at = head[3][0]
    held = [pfn for pfn in sorted(pages) if split is None or split[0] <= pfn < split[1]]
    table_at = bits_at + 2 * half
    data_at = table_at + 24 * len(held)
    table = b"".join(struct.pack("<QIIQ", data_at + 4096 * row, 4096, 0, 0) for row in range(len(held)))
    data = b"".join(pages[pfn] for pfn in held)
    bits = [(bits_at + at, piece) for at, piece in _bitmap_pieces(ram)]
    bits += [(bits_at + half + at, piece) for at, piece in _bitmap_pieces(runs(sorted(pages)))]
    end = data_at + 4096 * (len(held) if keep is None else keep)
    return write_sparse(path, end, [*head[:3], *bits, (table_at, table), (data_at, data[: end - data_at])])


def _bitmap_pieces(pfn_runs: Iterable[tuple[int, int]]) -> list[tuple[int, bytes]]:
    """The (offset, bytes) of a bitmap, in pieces of 4096 bytes that have a bit."""
    each = 8 * 4096
    of_piece: dict[int, list[tuple[int, int]]] = {}
    for first, count in pfn_runs:
        for piece in range(first // each, (first + count - 1) // each + 1):
            low, high = max(first, piece * each), min(first + count, (piece + 1) * each)
            of_piece.setdefault(piece, []).append((low - piece * each, high - low))
    return [(piece * 4096, bitmap(inside, 4096)) for piece, inside in of_piece.items()]
