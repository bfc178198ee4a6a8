"""A paravirtual guest's frames: by the list that it tells Xen of in shared_info, or by Xen's table of owners."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dumpxlate.errors import MapError
from dumpxlate.p2m.map import P2M, FrameRuns
from dumpxlate.p2m.shared_info import SharedInfo, parse_shared_info
from dumpxlate.xen import PAGE_SIZE
from dumpxlate.xen_host.frames import Kind

if TYPE_CHECKING:
    from dumpxlate.arch.xen_vcpu import WordBits
    from dumpxlate.xen_host.frames import Frames
    from dumpxlate.xen_host.hypervisor import Hypervisor

__all__ = ["from_m2p", "own_lists", "owned_only"]

_WIDTHS: tuple[WordBits, WordBits] = (64, 32)


def own_lists(hypervisor: Hypervisor, frames: Frames, owner: int) -> tuple[int, SharedInfo] | None:
    """Find the shared_info page of a guest that has told Xen of its p2m, among the pages of Xen's heap that it has.

    Its lists lie in its own memory, which the page's other fields, and grant tables, do not name.

    Returns:
        Its frame, and what it says; None where no page is such a one: the guest is not paravirtual.
    """
    for mfn in np.concatenate([*frames.held(owner, Kind.HEAP)]).tolist():
        block = hypervisor.page(mfn)
        for bits in _WIDTHS:
            try:
                info = parse_shared_info(block, bits)
            except MapError:
                continue
            roots = [info.frame_lists] * info.has_frame_lists + [info.p2m_cr3 // PAGE_SIZE] * bool(info.p2m_cr3)
            whose, kind = frames.owner(np.array(roots, np.int64).reshape(-1) if _sane(roots) else np.empty(0, np.int64))
            if info.max_pfn and len(whose) and (whose == owner).all() and (kind == Kind.MEMORY).all():
                return mfn, info
    return None


def _sane(roots: list[int]) -> bool:
    return all(0 < root < 1 << 52 for root in roots)


def owned_only(p2m: P2M, frames: Frames, owner: int) -> P2M:
    """Keep the pages of a map that the frame table says are the guest's; those of others become foreign ones."""
    own, others = [], []
    for pfn, mfn in p2m.chunks():
        mine = frames.owner(mfn)[0] == owner
        own.append(FrameRuns.from_pairs(pfn[mine], mfn[mine]))
        others.append(FrameRuns.from_pairs(pfn[~mine], mfn[~mine]))
    strangers = FrameRuns.join([*others, p2m.foreign])
    order = np.argsort(strangers.pfn, kind="stable")
    foreign = FrameRuns(strangers.pfn[order], strangers.frame[order], strangers.count[order])
    return P2M(FrameRuns.join(own), p2m.size, foreign=foreign, identity=p2m.identity)


def from_m2p(frames: Frames, owner: int) -> P2M:
    """Make a guest's map of what Xen's tables say: the frames that it owns, and the pfn of each.

    Where Xen knows two frames by one pfn, which it may while a guest moves its memory, the lower frame counts.
    """
    parts = []
    for mfn in frames.held(owner, Kind.MEMORY):
        pfn = frames.pfn(mfn)
        known = np.flatnonzero(pfn >= 0)
        order = known[np.argsort(pfn[known], kind="stable")]
        order = order[np.append(True, np.diff(pfn[order]) != 0)[: len(order)]]
        parts.append(FrameRuns.from_pairs(pfn[order], mfn[order]))
    return _disjoint(FrameRuns.join(parts))


def _disjoint(runs: FrameRuns) -> P2M:
    """Sort runs, and cut them where they overlap."""
    order = np.argsort(runs.pfn, kind="stable")
    pfn, frame, count = runs.pfn[order], runs.frame[order], runs.count[order]
    reach = np.maximum.accumulate(pfn + count) if len(pfn) else pfn
    cut = np.maximum(np.append(pfn[:1], reach[:-1]) - pfn, 0)
    left = cut < count
    return P2M(
        FrameRuns((pfn + cut)[left], (frame + cut)[left], (count - cut)[left]), int(reach[-1]) if len(pfn) else 0
    )
