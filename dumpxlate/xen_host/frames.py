"""Xen's two tables with an entry for every machine frame: whose it is, and as what its owner knows it.

The *machine-to-phys table* has a u64 for each frame: the pfn (or gfn) of its owner. The *frame table* has a ``struct
page_info`` of 32 bytes, whose parts used here lie where they did in Xen 4.3 (xen/arch/x86/include/asm/mm.h)::

    0   list links
    8   count_info   bit 63 allocated to a domain, bit 62 Xen's own page that a domain may map
    16  type_info
    24  u32 owner    frame of its struct domain, 0 if it has none
    28  u32 for the TLB

Both count frames without gaps. Where memory is far apart, Xen may compress the frame numbers of the second (pdx);
then the owners make no sense, and no domain is found.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

from dumpxlate.paging.addrxlat import signed
from dumpxlate.xen import MAX_FRAME, PAGE_SIZE
from dumpxlate.xen_host.hypervisor import DIRECT_MAP, FRAME_TABLE, M2P

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dumpxlate.arrays import Int64s, UInt64s
    from dumpxlate.xen_host.hypervisor import Hypervisor

__all__ = ["Frames", "Holdings", "Kind", "one_frame"]

_INFO_BYTES = 32
_IN_PAGE = PAGE_SIZE // _INFO_BYTES
_COUNT, _OWNER = 1, 3  # words of an entry
_OWNER_BITS = np.uint64(0xFFFF_FFFF)


class Kind(IntEnum):
    """What a frame is to its owner."""

    MEMORY = 0
    """Part of its memory."""
    HEAP = 1
    """Of Xen's heap, for the domain to map: shared_info, grant tables."""
    NONE = 2
    """It has no owner: free, or Xen's own."""


@dataclass(frozen=True, slots=True)
class Holdings:
    """What the frame table says of one owner: numbers of frames, by what they are to it.

    Attributes:
        owner: frame of its struct domain.
        memory: part of its memory.
        heap: of Xen's heap.
    """

    owner: int
    memory: int = 0
    heap: int = 0


@dataclass(frozen=True, slots=True)
class Frames:
    """The two tables of a host."""

    hypervisor: Hypervisor

    @property
    def count(self) -> int:
        """Machine frames up to the end of the host's memory."""
        return self.hypervisor.store.ram.stop

    def pfn(self, mfn: Int64s) -> Int64s:
        """Give what each frame's owner knows it by, -1 where nobody does."""
        known = (mfn >= 0) & (mfn < self.count)
        words, held = self.hypervisor.words(signed(M2P) + np.where(known, mfn, 0) * 8)
        found = words.astype(np.int64)  # all ones, "nobody", become -1
        return np.where(known & held & (found >= 0) & (found < MAX_FRAME), found, -1)

    def owner(self, mfn: Int64s) -> tuple[Int64s, Int64s]:
        """Give the frame of the struct domain that each frame belongs to, -1 for none, and the frame's ``Kind``."""
        known = (mfn >= 0) & (mfn < self.count)
        at = signed(FRAME_TABLE) + np.where(known, mfn, 0) * _INFO_BYTES
        (count, held), (owner, _) = (self.hypervisor.words(at + word * 8) for word in (_COUNT, _OWNER))
        found, kind = _read(count, owner)
        lacking = ~known | ~held
        found[lacking], kind[lacking] = -1, Kind.NONE
        return found, kind

    def holdings(self) -> tuple[Holdings, ...]:
        """Count what every owner has; reads the whole frame table, 8 MiB for each GiB of the host."""
        counts: dict[int, list[int]] = {}
        for _, owner, kind in self._all():
            known = (owner > 0) & (owner < self.count)  # pages of no memory have an owner of all ones
            code, number = np.unique(owner[known] * 2 + kind[known], return_counts=True)
            for each, count in zip(code.tolist(), number.tolist(), strict=True):
                counts.setdefault(each // 2, [0, 0])[each % 2] += count
        return tuple(Holdings(owner, *each) for owner, each in sorted(counts.items()))

    def held(self, owner: int, kind: Kind) -> Iterator[Int64s]:
        """Find the frames that are something to an owner, ascending, in batches; reads the whole frame table."""
        for mfn, whose, what in self._all():
            yield mfn[(whose == owner) & (what == kind)]

    def _all(self) -> Iterator[tuple[Int64s, Int64s, Int64s]]:
        """Read the frame table: frames, owners, kinds, a quarter of a million at a time."""
        length = min(self.count * _INFO_BYTES, DIRECT_MAP - FRAME_TABLE)
        for page, words in self.hypervisor.table(FRAME_TABLE, length):
            mfn = (page[:, None] * _IN_PAGE + np.arange(_IN_PAGE)).reshape(-1)
            rows = words.reshape(-1, _INFO_BYTES // 8)
            owner, kind = _read(rows[:, _COUNT], rows[:, _OWNER])
            inside = mfn < self.count
            yield mfn[inside], owner[inside], kind[inside]


def _read(count: UInt64s, owner: UInt64s) -> tuple[Int64s, Int64s]:
    """Give owner and kind of frames by two words of their entries."""
    bits, whose = count.astype(np.int64), (owner & _OWNER_BITS).astype(np.int64)
    owned = (bits < 0) & (whose > 0)
    kind = np.where(bits >> 62 & 1, Kind.HEAP, Kind.MEMORY)
    return np.where(owned, whose, -1), np.where(owned, kind, Kind.NONE)


def one_frame(frames: Frames, mfn: int) -> tuple[int, Kind]:
    """Give owner and kind of a single frame, whatever number is taken for one."""
    if not 0 <= mfn < frames.count:
        return -1, Kind.NONE
    owner, kind = frames.owner(np.array([mfn], np.int64))
    return int(owner[0]), Kind(int(kind[0]))
