"""Maps of a PV guest: flat files, numpy files, text, ``xen-mfndump``, and the lists in its own memory."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .guest import Guest
from .xen_vcpu import fold_cr3, shared_info

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = [
    "FrameLists",
    "entries",
    "flat",
    "m2p_text",
    "mfndump",
    "npy",
    "text",
    "with_frame_lists",
    "with_linear_list",
]

INVALID = (1 << 64) - 1
FOREIGN, IDENTITY = 1 << 63, 1 << 62
_SUFFIX = {0: "", 13: " broken", 14: " xalloc", 15: " invalid"}
_SUFFIX |= {level: f" L{level}" for level in range(1, 5)} | {8 + level: f" pinned L{level}" for level in range(1, 5)}


def entries(
    mfns: Mapping[int, int] | Guest, *, size: int | None = None, foreign: Mapping[int, int] | None = None,
    identity: Iterable[int] = (), invalid: Iterable[int] = (), width: int = 8,
) -> list[int]:  # fmt: skip
    """p2m entry of each pfn from 0 on, as the guest holds it; no entry is all-ones (of 64 bits always).

    Args:
        mfns: pfn -> mfn, or a guest that has them.
        size: number of entries (default: to the last pfn).
        foreign: pfn -> mfn of another domain's page: the top bit of the word is set.
        identity: pfns that map to themselves (device holes): the second highest bit is set.
        invalid: pfns whose entry is taken away.
        width: of the guest's word: where the two flag bits are.
    """
    frames = mfns.mfns if isinstance(mfns, Guest) else mfns
    shift = 64 - 8 * width
    special = {pfn: FOREIGN >> shift | mfn for pfn, mfn in (foreign or {}).items()}
    special |= {pfn: IDENTITY >> shift | pfn for pfn in identity}
    special |= dict.fromkeys(invalid, INVALID)
    table = {**frames, **special}
    return [table.get(pfn, INVALID) for pfn in range(max(table, default=-1) + 1 if size is None else size)]


def flat(table: Sequence[int], *, width: int = 8, byte_order: str = "<") -> bytes:
    """Bare array of u64 or u32, index = pfn."""
    return struct.pack(
        f"{byte_order}{len(table)}{'Q' if width == 8 else 'I'}", *(x & (1 << 8 * width) - 1 for x in table)
    )


def npy(table: Sequence[int] | Sequence[tuple[int, int]], *, dtype: str = "<u8") -> bytes:
    """A numpy file: one column (index = pfn) or rows of (pfn, mfn); signed types get -1 for no entry."""
    import numpy as np

    array = np.array(table, dtype="u8").astype(dtype)
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def text(
    pairs: Iterable[tuple[int, int]], *, style: str = "hex", separator: str = " ", comments: Sequence[str] = (),
    newline: str = "\n",
) -> bytes:  # fmt: skip
    """Two columns pfn, mfn: style hex (0x), bare (hex without 0x), dec; comments are spread between the lines."""
    show = {"hex": "{:#x}", "bare": "{:x}", "dec": "{:d}"}[style]
    lines = [separator.join((show.format(pfn), show.format(mfn))) for pfn, mfn in pairs]
    for number, comment in enumerate(comments):
        lines.insert(min(2 * number, len(lines)), comment)
    return "".join(line + newline for line in lines).encode()


def mfndump(
    table: Sequence[int],
    *,
    domid: int = 1,
    width: int = 8,
    types: Mapping[int, int] | None = None,
    size: int | None = None,
    first: int = 0,
    noise: Mapping[int, str] | None = None,
    tail: bool = True,
) -> bytes:
    """What ``xen-mfndump dump-p2m`` prints.

    Args:
        table: entry of each pfn; all-ones and flagged entries print as they are, with type 0xf.
        domid: number in the first and last line.
        width: guest's word.
        types: pfn -> page type (1-4 and 9-12 page tables, 13 broken, 14 xalloc, 15 invalid).
        size: the P2M size that the second line claims.
        first: pfn of the first entry.
        noise: number of the data line -> a line that is put before it.
        tail: False leaves the closing line out (cut output).
    """
    flags = (FOREIGN | IDENTITY) >> (64 - 8 * width)
    lines = [
        f" --- Dumping P2M for domain {domid} ---",
        f" Guest Width: {width}, PT Levels: {3 + width // 8} P2M size: = {len(table) if size is None else size}",
    ]
    for row, mfn in enumerate(table):
        kind = (types or {}).get(first + row, 15 if mfn == INVALID or mfn & flags else 0)
        lines += [noise[row]] if noise and row in noise else []
        lines.append(f"  pfn={first + row:#x} ==> mfn={mfn:#x} (type {kind:#x}){_SUFFIX.get(kind, ' <invalid type>')}")
    lines += [f" --- End of P2M for domain {domid} ---"] * tail
    return ("\n".join(lines) + "\n").encode()


def m2p_text(m2p: Mapping[int, int], *, max_mfn: int | None = None) -> bytes:
    """What ``xen-mfndump dump-m2p`` prints: every mfn below ``max_mfn``, all-ones where it is nobody's."""
    top = max(m2p) + 1 if max_mfn is None else max_mfn
    lines = [" --- Dumping M2P ---", f" Max MFN: {top}"]
    lines += [f"  mfn={mfn:#x} ==> pfn={m2p.get(mfn, INVALID):#x}" for mfn in range(top)]
    return ("\n".join([*lines, " --- End of M2P ---"]) + "\n").encode()


@dataclass(frozen=True)
class FrameLists:
    """A guest whose memory holds its own p2m, and the way in."""

    guest: Guest
    shared_info: bytes
    table: list[int]
    frame_list_list: int
    cr3: int


def with_frame_lists(
    guest: Guest, table: Sequence[int], *, width: int = 8, at: Iterable[int], missing: int | None = None,
    cut_top: int | None = None,
) -> FrameLists:  # fmt: skip
    """Write the three-level frame list into the guest's own pages.

    Args:
        guest: owner of the pages and mfns.
        table: what the leaves say.
        width: guest's word: 512 or 1024 entries a page.
        at: pfns whose pages are overwritten, in the order top, middle pages, leaves.
        missing: pfn of a shared page of all-ones used for every leaf without a valid entry, as Linux does.
        cut_top: value for the top word instead of the mfn (0, all-ones).
    """
    per = 4096 // width
    pool = iter(at)
    pages, frames = dict(guest.pages), guest.mfns

    def pack(words: list[int]) -> bytes:
        return flat([*words, *[0] * (per - len(words))], width=width)

    top = next(pool)
    leaves = [list(table[i : i + per]) for i in range(0, len(table), per)]
    middles = [next(pool) for _ in range(0, len(leaves), per)]
    names: list[int] = []
    for leaf in leaves:
        shared = missing is not None and all(entry == INVALID for entry in leaf)
        names.append(missing if shared and missing is not None else next(pool))
        pages[names[-1]] = flat([*leaf, *[INVALID] * (per - len(leaf))], width=width)
    for number, middle in enumerate(middles):
        pages[middle] = pack([frames[pfn] for pfn in names[number * per : (number + 1) * per]])
    pages[top] = pack([frames[pfn] for pfn in middles])
    word = frames[top] if cut_top is None else cut_top
    info = shared_info(width=width, max_pfn=len(table), frame_list_list=word)
    return FrameLists(guest.but(pages=pages), info, list(table), word, 0)


def with_linear_list(
    guest: Guest, table: Sequence[int], *, width: int = 8, at: Iterable[int], vaddr: int | None = None,
    frame_list_list: int = INVALID, generation: int = 0,
) -> FrameLists:  # fmt: skip
    """Write the flat p2m list and the page tables that map it (4 levels, or 3 of a PAE guest) into the guest's pages.

    ``at`` names the pfns that are overwritten: the leaves of the list first, then page tables as they are needed.
    Table entries hold machine frames; the guest's vcpu 0 gets the cr3 too.
    """
    vaddr = vaddr if vaddr is not None else 0xFFFFC90000000000 if width == 8 else 0xD0000000
    per, levels = 4096 // width, 4 if width == 8 else 3
    pool, frames = iter(at), guest.mfns
    pages = dict(guest.pages)
    tables: dict[int, list[int]] = {}

    def new_table() -> int:
        pfn = next(pool)
        tables[pfn] = [0] * 512
        return pfn

    leaves = []
    for i in range(0, len(table), per):
        leaf = list(table[i : i + per])
        leaves.append(next(pool))
        pages[leaves[-1]] = flat([*leaf, *[INVALID] * (per - len(leaf))], width=width)
    owner = {frames[pfn]: pfn for pfn in frames}
    top = new_table()
    for number, leaf_pfn in enumerate(leaves):
        where, current = vaddr + number * 4096, top
        for level in range(levels, 1, -1):
            slot = where >> (9 * level + 3) & 511
            if not tables[current][slot]:
                child = new_table()
                tables[current][slot] = frames[child] << 12 | (0x067 if width == 8 or level < 3 else 1)
            current = owner[tables[current][slot] >> 12]
        tables[current][where >> 12 & 511] = frames[leaf_pfn] << 12 | 0x63
    pages |= {pfn: flat(words) for pfn, words in tables.items()}
    cr3 = fold_cr3(frames[top], width)
    registers = ({**guest.registers[0], "cr3": cr3}, *guest.registers[1:])
    info = shared_info(
        width=width, max_pfn=len(table), frame_list_list=frame_list_list, p2m_cr3=cr3, p2m_vaddr=vaddr,
        p2m_generation=generation,
    )  # fmt: skip
    return FrameLists(guest.but(pages=pages, registers=registers), info, list(table), frame_list_list, cr3)
