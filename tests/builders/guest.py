"""The model guest that the builders write and the tests look for.

Page *i* names itself: its first eight bytes are *i* (little-endian), and every 64-byte line repeats it with the
line's number in the top 16 bits, so a page at the wrong place and a page shifted by some lines both show.
Register slots hold their own name and the vcpu's index.
"""

from __future__ import annotations

import hashlib
import random
import struct
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .packing import runs

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = [
    "VMCOREINFO",
    "Guest",
    "far_guest",
    "named_block",
    "page",
    "pages_of",
    "register",
    "small_guest",
    "stored_runs",
]

VMCOREINFO = (
    "OSRELEASE=6.1.0-model\nPAGESIZE=4096\nSYMBOL(init_uts_ns)=ffffffff82610000\nSYMBOL(_stext)=ffffffff81000000\n"
    "OFFSET(page.flags)=0\nSIZE(page)=64\nLENGTH(zone.free_area)=11\nNUMBER(phys_base)=-90177536\n"
    "KERNELOFFSET=1ee00000\nCRASHTIME=1700000000\n"
)


def page(pfn: int, page_size: int = 4096, kind: str = "named") -> bytes:
    """Content of one page; ``kind`` is named, zero or noise (does not compress; still starts with its pfn)."""
    if kind == "zero":
        return bytes(page_size)
    if kind == "noise":
        return struct.pack("<Q", pfn) + hashlib.shake_128(b"noise%d" % pfn).digest(page_size - 8)
    if kind != "named":
        raise ValueError(kind)
    return b"".join(struct.pack("<Q", pfn | line << 48) * 8 for line in range(page_size // 64))


def named_block(first: int, count: int, page_size: int = 4096) -> bytes:
    """``count`` named pages in a row, made at once: the same bytes as ``page`` gives."""
    import numpy as np

    lines = np.arange(page_size // 64, dtype="<u8") << np.uint64(48)
    words = np.arange(first, first + count, dtype="<u8")[:, None] | lines
    return bytes(words.repeat(8, axis=1).astype("<u8").tobytes())


def register(name: str, vcpu: int, width: int = 8) -> int:
    """The number a register slot holds: its name as ASCII, least significant byte first, then the vcpu's index.

    A four-byte slot has room for three letters: the first and the last two of a longer name.
    """
    text = name.encode()
    if len(text) > width - 1:
        text = text[: width - 3] + text[-2:]
    return int.from_bytes(text.ljust(width - 1, b"\0") + bytes([vcpu]), "little")


@dataclass(frozen=True, kw_only=True)
class Guest:
    """What a dump should say about a guest.

    Attributes:
        pages: content of each pfn that a dump holds.
        excluded: pfns that are RAM, but were left out of the dump.
        twins: pfn -> the pfn whose content it shares.
        registers: of each vcpu, values for the slots that must not hold just their name (cr3).
        mfns: machine frame of each RAM pfn of a paravirtual guest.
    """

    page_size: int = 4096
    pages: dict[int, bytes]
    excluded: frozenset[int] = frozenset()
    twins: dict[int, int] = field(default_factory=dict)
    registers: tuple[dict[str, int], ...] = ({},)
    mfns: dict[int, int] = field(default_factory=dict)
    vmcoreinfo: str = VMCOREINFO

    @property
    def ram(self) -> list[int]:
        return sorted(self.pages.keys() | self.excluded)

    @property
    def stored(self) -> list[int]:
        return sorted(self.pages)

    @property
    def zeros(self) -> list[int]:
        return [pfn for pfn in self.stored if not any(self.pages[pfn])]

    @property
    def end_pfn(self) -> int:
        """One past the last RAM pfn: what headers call max_mapnr or max_pfn."""
        return max(self.ram, default=-1) + 1

    @property
    def nr_vcpus(self) -> int:
        return len(self.registers)

    def register(self, vcpu: int, name: str, width: int = 8) -> int:
        """What a register slot of this guest holds."""
        value = self.registers[vcpu].get(name)
        return register(name, vcpu, width) if value is None else value & (1 << 8 * width) - 1

    def run(self, first: int, count: int) -> bytes:
        """Content of consecutive pfns; a pfn without content reads as zeros."""
        return b"".join(self.pages.get(pfn, bytes(self.page_size)) for pfn in range(first, first + count))

    def memory(self, base: int = 0) -> bytes:
        """Flat image of all RAM from the page ``base`` on; only for guests without a far block."""
        return self.run(base, self.end_pfn - base)

    def but(self, **changes: Any) -> Guest:
        """A copy with some fields replaced."""
        return replace(self, **changes)


def pages_of(guest: Guest | Mapping[int, bytes]) -> dict[int, bytes]:
    """pfn -> content, of a guest or of a plain mapping."""
    return guest.pages if isinstance(guest, Guest) else dict(guest)


def small_guest(
    *,
    page_size: int = 4096,
    vcpus: int = 2,
    high: bool = True,
    plain: bool = False,
    ranges: Iterable[tuple[int, int]] | None = None,
    excluded: Iterable[int] | None = None,
    seed: int = 7,
) -> Guest:
    """A guest with everything that is awkward: a hole, RAM above 4 GiB, zero, noise, twin and excluded pages.

    Args:
        page_size: also scales the model: fewer pages where they are larger.
        vcpus: number of vcpus, each with the registers named after themselves.
        high: also a block from 4 GiB on (without it ``memory()`` is a small flat image).
        plain: only named pages, none excluded.
        ranges: (first pfn, count) of the RAM instead of the model's own.
        excluded: pfns left out instead of the model's own.
        seed: of the mfns' order.
    """
    step = 1 if page_size <= 4096 else 8
    blocks = [(0, 0xA0 // step), (0x100, 0x100 // step)] + [((1 << 32) // page_size, 0x40 // step)] * high
    blocks = list(ranges) if ranges is not None else blocks
    ram = [pfn for first, count in blocks for pfn in range(first, first + count)]
    last, count = blocks[-1]
    left_out = {3, 0x109, *range(0x110, 0x118), last + count - 1} if excluded is None else set(excluded)
    left_out = set() if plain else left_out & set(ram)
    pages: dict[int, bytes] = {}
    twins: dict[int, int] = {}
    for pfn in ram:
        if pfn in left_out:
            continue
        kind = "named" if plain else {5: "zero", 6: "zero", 9: "noise"}.get(pfn % 16, "named")
        pages[pfn] = page(pfn, page_size, kind)
        if not plain and pfn % 16 == 12 and pfn - 1 in pages:
            twins[pfn] = pfn - 1
            pages[pfn] = pages[pfn - 1]
    return Guest(
        page_size=page_size,
        pages=pages,
        excluded=frozenset(left_out),
        twins=twins,
        registers=tuple({} for _ in range(vcpus)),
        mfns=_mfns(ram, seed),
        vmcoreinfo=VMCOREINFO.replace("PAGESIZE=4096", f"PAGESIZE={page_size}"),
    )


def _mfns(ram: list[int], seed: int) -> dict[int, int]:
    """Half of the pages below, half above 2**20 (where a folded 32-bit cr3 differs), shuffled with some runs left."""
    frames = [0x3E800 + i if i % 2 else 0x140000 + i for i in range(len(ram))]
    frames.sort()
    pieces = [frames[at : at + 5] for at in range(0, len(frames), 5)]
    random.Random(seed).shuffle(pieces)
    return dict(zip(ram, (mfn for piece in pieces for mfn in piece), strict=True))


def far_guest(pfns: Iterable[int], page_size: int = 4096) -> Guest:
    """Named pages at a few far-apart pfns, for sparse files of any size."""
    pages = {pfn: page(pfn, page_size) for pfn in pfns}
    return Guest(page_size=page_size, pages=pages, mfns={pfn: pfn + (1 << 20) for pfn in pages})


def stored_runs(guest: Guest | Mapping[int, bytes]) -> list[tuple[int, int]]:
    """(first pfn, count) of each run of pages that a dump holds."""
    return runs(pages_of(guest))
