"""A guest whose kernel maps its memory linearly and keeps its p2m as Linux did in some year, with the symbols for it.

Everything is at virtual addresses of the linear map, but for the flat array of newer kernels, which is elsewhere; page
tables hold machine frames.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .p2m import INVALID, flat
from .xen_vcpu import fold_cr3

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from .guest import Guest

__all__ = ["KINDS", "Kernel", "linear_base", "with_kernel_tree", "with_tables"]

KINDS = ("pointer", "mapping", "two", "three")
"""xen_p2m_addr (3.19), phys_to_machine_mapping (Xen's own), p2m_top of two levels (2.6.32) and of three (2.6.37)."""


@dataclass(frozen=True)
class Kernel:
    """The guest, the symbols of its kernel, and what its p2m says."""

    guest: Guest
    symbols: dict[str, int]
    table: list[int]


def linear_base(width: int) -> int:
    """Where the kernel maps its memory from pfn 0 on."""
    return 0xFFFF888000000000 if width == 8 else 0xC0000000


def with_tables(
    guest: Guest, mapped: Mapping[int, int], *, at: Iterable[int], width: int = 8, linear: bool = True,
) -> Guest:  # fmt: skip
    """Write page tables into the guest's pages, and their cr3 into its vcpus.

    Args:
        guest: owner of the pages and mfns.
        mapped: virtual page address -> pfn, besides the linear map.
        at: pfns that are overwritten with tables, as they are needed.
        width: 4 levels for 8, 3 for 4.
        linear: map all pages linearly as well.
    """
    pool, levels = iter(at), 4 if width == 8 else 3
    owner = {mfn: pfn for pfn, mfn in guest.mfns.items()}
    top = next(pool)
    tables = {top: [0] * 512}
    if width == 8:  # what Xen has in every first table: entry 258 leads back to it, 256 to Xen's own
        tables[top][258] = guest.mfns[top] << 12 | 0x63
        tables[top][256] = 0x7777 << 12 | 0x25
    every = {linear_base(width) + pfn * 4096: pfn for pfn in guest.ram} if linear else {}
    for virtual, pfn in sorted({**every, **mapped}.items()):
        current = top
        for level in range(levels, 1, -1):
            slot = virtual >> 9 * level + 3 & 511
            if not tables[current][slot]:
                child = next(pool)
                tables[child] = [0] * 512
                tables[current][slot] = guest.mfns[child] << 12 | (0x067 if width == 8 or level < 3 else 1)
            current = owner[tables[current][slot] >> 12]
        tables[current][virtual >> 12 & 511] = guest.mfns[pfn] << 12 | 0x63
    cr3 = fold_cr3(guest.mfns[top], width)
    registers = tuple({**each, "cr3": cr3} for each in guest.registers)
    return guest.but(pages={**guest.pages, **{pfn: flat(words) for pfn, words in tables.items()}}, registers=registers)


def with_kernel_tree(
    guest: Guest, table: Sequence[int], kind: str, *, at: Iterable[int], width: int = 8, missing: bool = True,
) -> Kernel:  # fmt: skip
    """Write a kernel's p2m, its variables and its page tables into the guest's pages.

    Args:
        guest: owner of the pages and mfns.
        table: what the p2m says.
        kind: how it is kept, one of KINDS.
        at: pfns that are overwritten.
        width: guest's word.
        missing: kinds of p2m_top share a page of all-ones for ranges without memory, and for middle pages.
    """
    per, pool, base = 4096 // width, iter(at), linear_base(width)
    pages: dict[int, bytes] = {}
    form, mask = ("Q", INVALID) if width == 8 else ("I", 0xFFFFFFFF)
    variables = next(pool)

    def pointers(words: list[int], fill: int = 0) -> int:
        """A page of words; gives its address."""
        pfn = next(pool)
        pages[pfn] = struct.pack(f"<{per}{form}", *words, *[fill] * (per - len(words)))
        return base + pfn * 4096

    empty = pointers([], INVALID & mask)
    leaves = []
    for at_pfn in range(0, len(table), per):
        words = [entry & mask for entry in table[at_pfn : at_pfn + per]]
        shared = missing and kind in ("two", "three") and all(word == mask for word in words)
        leaves.append(empty if shared else pointers(words, mask))
    mapped: dict[int, int] = {}
    values: dict[str, int] = {"max_pfn": len(table), "end_pfn": 0}
    if kind in ("pointer", "mapping"):
        vaddr = 0xFFFFC90000000000 if width == 8 else 0xD0000000
        mapped = {vaddr + number * 4096: (leaf - base) // 4096 for number, leaf in enumerate(leaves)}
        values["xen_p2m_addr" if kind == "pointer" else "phys_to_machine_mapping"] = vaddr
        if kind == "pointer":  # mapped, and made, for more than there is
            mapped |= {vaddr + (len(leaves) + more) * 4096: (empty - base) // 4096 for more in range(2)}
            values |= {"xen_p2m_size": len(table) + per, "xen_p2m_last_pfn": len(table) - 1}
    elif kind == "three":
        no_middle = pointers([], empty)
        middles = [pointers(leaves[i : i + per], empty) for i in range(0, len(leaves), per)]
        values |= {"p2m_top": pointers(middles, no_middle), "p2m_mid_missing": no_middle, "p2m_missing": empty}
    symbols = {name: base + variables * 4096 + 16 + number * width for number, name in enumerate(values)}
    body = bytearray(4096)
    for name, value in values.items():
        struct.pack_into(f"<{form}", body, symbols[name] - base - variables * 4096, value)
    if kind == "two":  # an array in the kernel's own data, of every leaf it could have; may cross pages
        symbols |= {"p2m_top": base + variables * 4096 + 2048, "p2m_missing": empty}
        struct.pack_into(f"<{len(leaves)}{form}", body, 2048, *leaves)
        struct.pack_into(f"<{(4096 - 2048) // width - len(leaves)}{form}", body, 2048 + len(leaves) * width,
                         *[empty] * ((4096 - 2048) // width - len(leaves)))  # fmt: skip
    pages[variables] = bytes(body)
    built = with_tables(guest.but(pages={**guest.pages, **pages}), mapped, at=pool, width=width)
    return Kernel(built, symbols, list(table))
