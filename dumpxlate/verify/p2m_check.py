"""How much of what a PV guest's memory says makes sense under a map: its pages, tables, lists and VMCOREINFO."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from dumpxlate.dump import Space
from dumpxlate.errors import MapError
from dumpxlate.memory import PhysicalMemory
from dumpxlate.p2m.evidence import BOUND, Evidence, confidence, from_frames, from_lists, from_tables
from dumpxlate.p2m.lists import frame_list_leaves, tables_of
from dumpxlate.p2m.methods import find_map, machine_pages, page_tables, ways
from dumpxlate.p2m.shared_info import parse_shared_info
from dumpxlate.pageset import union
from dumpxlate.paging.addrxlat import as_addresses, page_walk
from dumpxlate.vmcoreinfo_search import find

if TYPE_CHECKING:
    from collections.abc import Callable

    from dumpxlate.dump import Dump
    from dumpxlate.p2m.map import P2M
    from dumpxlate.p2m.methods import Method
    from dumpxlate.progress import Progress
    from dumpxlate.vmcoreinfo import VmCoreInfo

__all__ = ["MapCheck", "check_map"]

_CHUNK = 1 << 20
_IMAGE = {64: 0xFFFF_FFFF_8000_0000, 32: 0xC000_0000}
"""Where the kernel's image is mapped linearly: __START_KERNEL_map of x86-64, PAGE_OFFSET of i386."""
_IMAGE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class MapCheck:
    """What a guest's memory says of a map.

    Attributes:
        evidence: what was counted.
        remarks: what could not be asked, and why.
    """

    evidence: tuple[Evidence, ...]
    remarks: tuple[str, ...]

    @property
    def confidence(self) -> float:
        """The lowest share, from 0 to 1."""
        return confidence(self.evidence)

    @property
    def makes_sense(self) -> bool:
        """Whether it is high enough for this guest's own map."""
        return self.confidence >= BOUND


def check_map(
    dump: Dump,
    p2m: P2M,
    *,
    progress: Callable[[Progress], None] | None = None,
    threads: int | None = None,
) -> MapCheck:
    """Hold a map against all that a guest's memory says of it.

    Args:
        dump: of a PV guest.
        p2m: the map.
        progress: called while memory is searched for VMCOREINFO.
        threads: workers of that search.

    Raises:
        MapError: the dump takes no map.
    """
    frames = machine_pages(dump)
    if frames is None:
        return _check_saved(dump, p2m)
    dump = replace(dump, frames=frames)
    memory, roots, bits = PhysicalMemory(frames), page_tables(dump), dump.machine.word_bits
    evidence, remarks = from_frames(p2m, frames.ram), []
    told = from_tables(p2m, memory, roots, bits, most=None)
    if not told:
        remarks.append("page tables: none of a vcpu are in the dump")
    listed, remark = _from_lists(dump, p2m, threads)
    info = dump.vmcoreinfo or _search(dump, progress, threads)
    placed = _from_vmcoreinfo(dump, p2m, info) if info else None
    if placed is None:
        remarks.append("VMCOREINFO: none in memory" if info is None else "VMCOREINFO: no page tables map its symbols")
    remarks += [remark] if remark else []
    return MapCheck((*evidence, *told, *listed, *([placed] if placed else [])), tuple(remarks))


def _check_saved(dump: Dump, p2m: P2M) -> MapCheck:
    """Compare a map with the one that a save image lists, which is all that is left of it there."""
    if dump.saved_p2m is None:
        raise MapError(f"{dump.name}: a {dump.format} dump without machine frames, on which no map can be checked")
    evidence = _compare(p2m, dump.saved_p2m, "entries are those of the p2m that was saved")
    return MapCheck((evidence,), ("page tables: those of a save image hold pfns",))


def _from_lists(dump: Dump, p2m: P2M, threads: int | None) -> tuple[list[Evidence], str]:
    """Compare a map with the guest's own list: as it told Xen of it, else as it is found; or say why there is none."""
    method: Method = (
        "shared-info" if any(way.method == "shared-info" and way.applies for way in ways(dump)) else "search"
    )
    try:
        own = find_map(dump, method, allow_misfit=True, threads=threads)
        told = [] if method == "search" else _own_pages(dump, p2m)
    except MapError as error:
        return [], f"lists: {str(error).removeprefix(f'{dump.name}: ')}"
    return [_compare(p2m, own.p2m, f"entries are those of the guest's own {own.how}"), *told], ""


def _own_pages(dump: Dump, p2m: P2M) -> list[Evidence]:
    """See whether a map knows the pages of the frame lists that the guest told Xen of."""
    assert dump.frames is not None
    info = parse_shared_info(dump.blocks["xen_shared_info"], dump.machine.word_bits)
    if not info.has_frame_lists:
        return []
    memory = PhysicalMemory(dump.frames)
    try:
        lists, leaves = frame_list_leaves(memory, info.frame_lists, info.max_pfn, info.word_bits)
    except MapError:
        return []  # they are torn, and the linear list was read instead
    return [from_lists(p2m, np.unique(np.concatenate((lists, leaves[leaves >= 0]))))]


def _compare(p2m: P2M, other: P2M, says: str) -> Evidence:
    """Count the pages that two maps have at the same frame, of those that either has."""
    pages = union(p2m.pages(), other.pages())
    agree = 0
    for first in range(0, pages.count, _CHUNK):
        pfn = pages.select(first, first + _CHUNK)
        agree += int(np.count_nonzero(p2m.mfn(pfn) == other.mfn(pfn)))
    return Evidence("entries", says, agree, pages.count)


def _search(dump: Dump, progress: Callable[[Progress], None] | None, threads: int | None) -> VmCoreInfo | None:
    """Find VMCOREINFO in machine memory: the text has a page of its own, so no map is needed to read it."""
    assert dump.frames is not None
    found = find(replace(dump, pages=dump.frames, space=Space.MACHINE), progress=progress, threads=threads)
    return found.info if found else None


def _from_vmcoreinfo(dump: Dump, p2m: P2M, info: VmCoreInfo) -> Evidence | None:
    """See whether the kernel's symbols are in the pages where its image lies, by what VMCOREINFO says of both."""
    assert dump.frames is not None
    bits = dump.machine.word_bits
    base, shift = _IMAGE[bits], info.phys_base or 0
    names = [key[7:-1] for key in info.lines if key.startswith("SYMBOL(")]
    addresses = [at for name in names if (at := info.symbol(name)) is not None and 0 <= at - base < _IMAGE_BYTES]
    memory, wanted = PhysicalMemory(dump.frames), as_addresses(addresses)
    for root in page_tables(dump):
        frame = page_walk(memory, root, tables_of(bits)).physical(wanted) // 4096
        held = memory.holds(frame)
        if held.any():
            place = (wanted - as_addresses([base])[0] + shift) // 4096
            agree = int(np.count_nonzero(p2m.pfn(frame[held]) == place[held]))
            says = "symbols of VMCOREINFO are in the page where the kernel's image has them"
            return Evidence("VMCOREINFO", says, agree, int(np.count_nonzero(held)))
    return None
