"""The rule for one page of entries: machine frames become the guest's own."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Self

import numpy as np

if TYPE_CHECKING:
    from dumpxlate.arch.xen_vcpu import WordBits
    from dumpxlate.arrays import Bools, Int64s, UInt64s
    from dumpxlate.p2m.map import P2M, FrameRuns

__all__ = ["ENTRIES", "PRESENT", "WRITABLE", "Counts", "Frames", "Rule", "frames_of"]

ENTRIES = 512
PRESENT, WRITABLE = np.uint64(1), np.uint64(2)

_LARGE = np.uint64(1 << 7)
_FRAME = np.uint64(0x000F_FFFF_FFFF_F000)  # bits 51:12
_SHIFT = np.uint64(12)


@dataclass(frozen=True, slots=True)
class Counts:
    """What was done to entries, by number.

    Attributes:
        entries: present ones that hold the guest's frame now.
        foreign: those of them that lead to another domain's page, under the pfn that the guest shows it at.
        identity: those that lead to a device, under its own address.
        unknown: cleared, since the frame is no memory of the guest.
        large: cleared, since a large page's frames do not follow each other in the guest.
        hypervisor: Xen's own, cleared.
    """

    entries: int = 0
    foreign: int = 0
    identity: int = 0
    unknown: int = 0
    large: int = 0
    hypervisor: int = 0

    def __add__(self, other: Self) -> Self:
        return type(self)(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))


class Frames:
    """A guest's map, asked backwards: its own memory first, then foreign frames, then devices."""

    def __init__(self, p2m: P2M) -> None:
        self._p2m = p2m
        self._aliases = p2m.aliases
        self._own = p2m.inverse
        self._foreign = p2m.foreign.inverse()
        self._identity = p2m.identity.inverse()

    def find(self, frame: Int64s) -> tuple[Int64s, int, int]:
        """Give the pfn of each machine frame, -1 where it has none; and how many are foreign, and devices."""
        pfn = self._own.find(frame)
        foreign = _fill(pfn, frame, self._foreign)
        return pfn, foreign, _fill(pfn, frame, self._identity)

    def first(self, pfn: Int64s) -> Int64s:
        """Give for each pfn the one that ``find`` names for its frame: another where several share it."""
        if not self._aliases:
            return pfn
        found = self._own.find(self._p2m.mfn(pfn))
        return np.where(found >= 0, found, pfn)

    def find_block(self, frame: Int64s, count: int) -> Int64s:
        """Give the pfn of the first of ``count`` frames; -1 unless it is a multiple of that, and all follow."""
        pfn = self._own.find(frame)
        last = frame + count - 1
        # Between two frames of one run every frame is of it.
        run = np.searchsorted(self._own.pfn, frame, side="right")
        whole = (np.searchsorted(self._own.pfn, last, side="right") == run) & (self._own.find(last) >= 0)
        return np.where((pfn >= 0) & (pfn % count == 0) & whole, pfn, -1)


def _fill(pfn: Int64s, frame: Int64s, runs: FrameRuns) -> int:
    """Look up what is still unknown; give how many were found."""
    left = np.flatnonzero(pfn < 0)
    if not len(runs.pfn) or not len(left):
        return 0
    pfn[left] = runs.find(frame[left])
    return int((pfn[left] >= 0).sum())


def frames_of(words: UInt64s) -> Int64s:
    """Give the frame field of entries."""
    found: Int64s = ((words & _FRAME) >> _SHIFT).astype(np.int64)
    return found


@dataclass(frozen=True, slots=True)
class Rule:
    """How the tables of one kind of guest are rewritten.

    Attributes:
        frames: the guest's map, backwards.
        top: level of the table that cr3 names: 4, or 3 for a 32-bit guest, which has PAE.
        xen_level: level of the tables that have slots of Xen's own: those of level 4, or in a 32-bit guest the one of
            level 2 that maps the highest GiB.
        xen_slots: first of these slots, and one past the last (HYPERVISOR_VIRT_START and _END of Xen's public headers).
        top_entries: entries that a top-level table has.
    """

    frames: Frames
    top: int
    xen_level: int
    xen_slots: tuple[int, int]
    top_entries: int

    @classmethod
    def of(cls, p2m: P2M, word_bits: WordBits) -> Self:
        """Give the rule for guests of a width."""
        if word_bits == 64:
            return cls(Frames(p2m), 4, 4, (256, 272), ENTRIES)
        return cls(Frames(p2m), 3, 2, (428, ENTRIES), 4)

    def apply(self, words: UInt64s, level: int, xen: Bools) -> tuple[UInt64s, Counts]:
        """Rewrite tables.

        Args:
            words: their entries as they are, uint64, shape (n, 512).
            level: of all of them.
            xen: which of them have slots of Xen's own, shape (n,).

        Returns:
            The new entries, shape (n, 512), and what was done.
        """
        out = words.copy()
        first, stop = self.xen_slots
        rows = np.flatnonzero(xen)
        hypervisor = int((out[rows, first:stop] & PRESENT).sum())
        out[rows, first:stop] = 0
        at = np.flatnonzero(self.present(out, level))
        flat = out.reshape(-1)
        entry = flat[at]
        large = self._is_large(entry, level)
        flat[at], counts = self._small(entry)
        if large.any():
            flat[at], counts = self._mixed(entry, large, level)
        return out, counts + Counts(hypervisor=hypervisor)

    def present(self, words: UInt64s, level: int) -> Bools:
        """Tell which words of tables are present entries, shape (n, 512)."""
        found: Bools = words & PRESENT != 0
        if level == self.top:
            found[:, self.top_entries :] = False
        return found

    def children(self, words: UInt64s, level: int) -> tuple[Int64s, Bools]:
        """Give where tables that have been rewritten lead: pfns of tables, and which of them have slots of Xen's."""
        found = self.present(words, level) & ~self._is_large(words, level)
        xen = np.zeros(words.shape, bool)
        if level - 1 == self.xen_level:
            xen[:, self.top_entries - 1] = True
        return frames_of(words[found]), xen[found]

    def _is_large(self, words: UInt64s, level: int) -> Bools:
        if level == 1 or level == self.top:
            return np.zeros(words.shape, bool)
        found: Bools = words & _LARGE != 0
        return found

    def _small(self, entry: UInt64s) -> tuple[UInt64s, Counts]:
        pfn, foreign, identity = self.frames.find(frames_of(entry))
        known = pfn >= 0
        new = np.where(known, entry & ~_FRAME | pfn.astype(np.uint64) << _SHIFT, np.uint64(0))
        right = int(known.sum())
        return new, Counts(right, foreign, identity, unknown=len(entry) - right)

    def _mixed(self, entry: UInt64s, large: Bools, level: int) -> tuple[UInt64s, Counts]:
        """Rewrite entries of which some lead to large pages."""
        new = np.zeros(len(entry), np.uint64)
        new[~large], counts = self._small(entry[~large])
        span = 1 << 9 * (level - 1)
        base = frames_of(entry[large]) & -span
        pfn = self.frames.find_block(base, span)
        known = pfn >= 0
        # The lowest bit of the field is PAT, and stays.
        rest = entry[large] & ~(base.astype(np.uint64) << _SHIFT)
        new[large] = np.where(known, rest | pfn.astype(np.uint64) << _SHIFT, np.uint64(0))
        right = int(known.sum())
        return new, counts + Counts(right, large=int(large.sum()) - right)
