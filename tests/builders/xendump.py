"""The old Xen dump of 3.0.x: six words, vcpu contexts, an index of machine frames, pages."""

from __future__ import annotations

import random
import struct
from typing import TYPE_CHECKING

from .guest import Guest, page, pages_of
from .packing import align, cut, fields, pack, place, write_sparse
from .xen_vcpu import contexts as vcpu_contexts

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

__all__ = ["MAGIC_HVM", "MAGIC_PV", "arrange", "build", "save_image", "sparse_huge"]

MAGIC_PV, MAGIC_HVM = 0xF00FEBED, 0xF00FEBEE
NO_PAGE = (1 << 64) - 1
HEADER = fields("magic nr_vcpus nr_pages ctxt_offset index_offset pages_offset", "I")


def arrange(guest: Guest | Mapping[int, bytes], order: str | Sequence[int] = "shuffle", *, seed: int = 1) -> list[int]:
    """The pfns in file order: shuffle, pfn, mfn, rmfn (descending), or exactly the given pfns."""
    pfns = sorted(pages_of(guest))
    mfns = _mfns(guest)
    if not isinstance(order, str):
        return list(order)
    if order == "shuffle":
        random.Random(seed).shuffle(pfns)
    elif order != "pfn":
        pfns.sort(key=lambda pfn: mfns[pfn], reverse={"mfn": False, "rmfn": True}[order])
    return pfns


def build(
    guest: Guest | Mapping[int, bytes],
    *,
    magic: int | None = None,
    hvm: bool = False,
    hvm_flag: bool = False,
    entry_size: int = 8,
    width: int | None = None,
    contexts: Sequence[bytes] | None = None,
    context_size: int | None = None,
    order: str | Sequence[int] = "shuffle",
    seed: int = 1,
    dense: bool = False,
    invalid: Iterable[int] = (),
    duplicates: Iterable[int] = (),
    mfns: Mapping[int, int] | None = None,
    page_size: int | None = None,
    byte_order: str = "<",
    ctxt_offset: int = 24,
    index_offset: int | None = None,
    pages_offset: int | None = None,
    header: Mapping[str, int] | None = None,
    padding: bytes = b"",
    stale_tail: bytes = b"",
    truncate: int | None = None,
) -> bytes:
    """An xc_core file.

    Args:
        guest: pages (and vcpus, mfns); a plain mapping has one vcpu and mfn = pfn.
        magic: instead of what ``hvm`` says.
        hvm: magic of an HVM guest.
        hvm_flag: bit 1 in every vcpu's flags: an HVM guest as Xen 3.0.3 wrote it, with the PV magic.
        entry_size: 8 or 4 bytes per index entry.
        width: guest's word, 8 or 4; default: 4 with 2800-byte contexts.
        contexts: the vcpu records themselves.
        context_size: 5168 or 2800; default by the entry size.
        order: see ``arrange``; pfns may be named that have no page (with ``dense``, the holes).
        seed: of the shuffle.
        dense: pfn order from 0 on with an all-ones entry and a zero page for each hole (HVM of Xen 3.0.3).
        invalid: rows (counted in the finished index) at which an all-ones entry with a zero page is put.
        duplicates: pfns whose entry is repeated at the end, with a page that must lose.
        mfns: pfn -> entry instead of the guest's own.
        page_size: instead of the guest's.
        byte_order: ``>`` for the big-endian file that no x86 tool writes.
        ctxt_offset: where the contexts really are; likewise ``index_offset``, ``pages_offset``.
        header: fields of the file header that shall lie.
        padding: bytes between index and pages instead of zeros.
        stale_tail: bytes after the last page.
        truncate: keep that many bytes (negative: drop that many).
    """
    pages = pages_of(guest)
    size = page_size or (guest.page_size if isinstance(guest, Guest) else 4096)
    frames = dict(mfns) if mfns is not None else _mfns(guest)
    context_size = context_size or (5168 if entry_size == 8 else 2800)
    width = width or (4 if context_size == 2800 else 8)
    if contexts is None:
        flags = 0x26 if hvm_flag else 0x24
        contexts = vcpu_contexts(guest, width=width, size=context_size, flags=flags, order=byte_order)
    rows = list(range(max(pages) + 1)) if dense else arrange(guest, order, seed=seed)
    index = [(frames.get(pfn, NO_PAGE) if pfn in pages else NO_PAGE, pages.get(pfn, bytes(size))) for pfn in rows]
    index += [(frames[pfn], page(pfn, size, "noise")) for pfn in duplicates]
    for row in sorted(invalid):
        index.insert(row, (NO_PAGE, bytes(size)))
    entries = _entries([entry for entry, _ in index], entry_size, byte_order)
    index_at = ctxt_offset + sum(map(len, contexts)) if index_offset is None else index_offset
    pages_at = align(index_at + len(entries), size) if pages_offset is None else pages_offset
    values = {
        "magic": magic if magic is not None else MAGIC_HVM if hvm else MAGIC_PV,
        "nr_vcpus": len(contexts), "nr_pages": len(index),
        "ctxt_offset": ctxt_offset, "index_offset": index_at, "pages_offset": pages_at,
    }  # fmt: skip
    content = b"".join(data for _, data in index) + stale_tail
    parts = [(ctxt_offset, b"".join(contexts)), (index_at, entries), (index_at + len(entries), padding)]
    return cut(place([*parts, (pages_at, content), (0, pack(byte_order, HEADER, values, header))]), truncate)


def sparse_huge(
    path: Path, pages: Mapping[int, bytes], *, nr_pages: int, mfn_of_row: int = 1 << 20, entry_size: int = 8
) -> Path:
    """A sparse file of ``nr_pages`` rows: row *i* holds mfn ``mfn_of_row + i``; only ``pages`` (by row) have content.

    The index is really written, so 2**28 rows take 2 GiB of disk; the pages between the given ones are holes.
    """
    import numpy as np

    context = vcpu_contexts({})[0]
    index_at = 24 + len(context)
    pages_at = align(index_at + nr_pages * entry_size, 4096)
    values = (MAGIC_PV, 1, nr_pages, 24, index_at, pages_at)
    parts = [(0, struct.pack("<6I", *values)), (24, context)]
    step = 1 << 20
    entries = (
        (
            index_at + at * entry_size,
            (np.arange(at, min(at + step, nr_pages)) + mfn_of_row).astype(f"<u{entry_size}").tobytes(),
        )
        for at in range(0, nr_pages, step)
    )
    write_sparse(path, pages_at + nr_pages * 4096, parts)
    with path.open("r+b") as file:
        for offset, data in (*entries, *((pages_at + row * 4096, data) for row, data in pages.items())):
            file.seek(offset)
            file.write(data)
    return path


def save_image(
    guest: Guest,
    *,
    word: int = 8,
    config: bytes = b"(domain (name model))",
    batch: int = 100,
    repeats: Iterable[int] = (),
    absent: Iterable[int] = (),
    verify_marker: bool = False,
    extended_info: bool = False,
    truncate: int | None = None,
) -> bytes:
    """The image of the old ``xm save`` (``LinuxGuestRecord``).

    Args:
        guest: its pages; every other pfn below the last is listed as not in the map.
        word: width of the tool, 8 or 4.
        config: the configuration text.
        batch: pages per batch.
        repeats: pfns also written, with wrong content, in an earlier batch: the last copy wins.
        absent: pfns listed in a batch with the type "no page" (0xF).
        verify_marker: put a count of -1 before the last batch.
        extended_info: begin with the all-ones word of later images.
        truncate: keep that many bytes.
    """

    def words(numbers: Iterable[int]) -> bytes:
        return _entries(numbers, word, "<")

    out = [b"LinuxGuestRecord", struct.pack(">i", len(config)), config]
    out += [words([-1])] * extended_info
    frames = [guest.mfns.get(pfn, 0) for pfn in range(align(guest.end_pfn, 4096 // word) // (4096 // word))]
    out += [words([guest.end_pfn]), words(frames)]
    early = [(pfn, page(pfn ^ 1, 4096, "noise")) for pfn in repeats]
    listed = sorted({**guest.pages, **dict.fromkeys(absent, b"")}.items())
    batches = [early] * bool(early) + [listed[at : at + batch] for at in range(0, len(listed), batch)]
    for number, rows in enumerate(batches):
        out += [struct.pack("<i", -1)] * (verify_marker and number == len(batches) - 1)
        out.append(struct.pack("<i", len(rows)))
        out.append(words(pfn if data else pfn | 0xF0000000 for pfn, data in rows))
        out += [data for _, data in rows]
    missing = [pfn for pfn in range(guest.end_pfn) if pfn not in guest.pages] if guest.end_pfn < 1 << 20 else []
    out += [struct.pack("<i", 0), struct.pack("<I", len(missing)), words(missing)]
    out += [vcpu_contexts(guest, width=word)[0], bytes(4096)]
    return cut(b"".join(out), truncate)


def _mfns(guest: Guest | Mapping[int, bytes]) -> dict[int, int]:
    own = guest.mfns if isinstance(guest, Guest) else {}
    return own or {pfn: pfn for pfn in pages_of(guest)}


def _entries(numbers: Iterable[int], entry_size: int, byte_order: str) -> bytes:
    numbers = [number & (1 << 8 * entry_size) - 1 for number in numbers]
    return struct.pack(f"{byte_order}{len(numbers)}{'Q' if entry_size == 8 else 'I'}", *numbers)
