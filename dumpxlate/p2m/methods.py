"""The ways to a guest's p2m that a dump itself offers, and finding it by the first that leads there.

===============  ===================================================================================================
method           where the map is taken from
===============  ===================================================================================================
``sections``     what the file says: ``.xen_p2m`` of a domain core, the p2m frames of a save image, a note of ours;
                 identity for guests whose frames are physical addresses already (HVM, PVH)
``shared-info``  the lists that the guest told Xen of (frame lists, or the linear list)
``tree``         the kernel's own variables, by its symbols and the page tables of a vcpu
``search``       machine pages that look like a p2m, if enough speaks for them
===============  ===================================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from dumpxlate.dump import Space
from dumpxlate.errors import MapError, PageUnavailableError
from dumpxlate.p2m.map import P2M, FrameRuns
from dumpxlate.pageset import difference
from dumpxlate.stores import MISS_LIMIT, RemappedStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from dumpxlate.dump import Dump
    from dumpxlate.elf.symbols import Symbols
    from dumpxlate.memory import PhysicalMemory
    from dumpxlate.p2m.evidence import Evidence
    from dumpxlate.pages import PageStore
    from dumpxlate.pageset import PageRuns
    from dumpxlate.progress import Progress

__all__ = ["METHODS", "FoundMap", "Method", "Way", "find_map", "machine_pages", "page_tables", "ways"]

Method: TypeAlias = Literal["sections", "shared-info", "tree", "search"]
METHODS: tuple[Method, ...] = get_args(Method)
"""In the order in which they are tried: the surest and quickest first."""

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Way:
    """Whether a method can be tried on a dump.

    Attributes:
        method: its name.
        applies: whether the dump has what it starts from.
        why: what that is, or what is missing.
    """

    method: Method
    applies: bool
    why: str


@dataclass(frozen=True, slots=True)
class FoundMap:
    """A map that was found in a dump.

    Attributes:
        p2m: the map.
        method: how it was found.
        how: where it was.
        evidence: what speaks for it, where it was searched for.
        strangers: entries that name frames which the dump does not have, of another domain mostly: they are left out.
    """

    p2m: P2M
    method: Method
    how: str
    evidence: tuple[Evidence, ...] = ()
    strangers: int = 0

    @property
    def confidence(self) -> float | None:
        """How sure a map is that was searched for, from 0 to 1; None where the dump says where it is."""
        from dumpxlate.p2m.evidence import confidence

        return confidence(self.evidence) if self.evidence else None

    def __str__(self) -> str:
        sure = "" if self.confidence is None else f", confidence {self.confidence:.1%}"
        left = f", left out {self.strangers:,} for frames that the dump does not have" if self.strangers else ""
        return f"{self.method}: {self.how}: {self.p2m.runs.total:,} pages{sure}{left}"


@dataclass(frozen=True)
class _Task:
    """What a method has to work with."""

    dump: Dump
    symbols: Symbols | None = None
    progress: Callable[[Progress], None] | None = None
    threads: int | None = None

    @cached_property
    def frames(self) -> PageStore:
        """The guest's pages by machine frame."""
        found = machine_pages(self.dump)
        assert found is not None
        return found

    @property
    def memory(self) -> PhysicalMemory:
        """Machine memory, as far as it is the guest's."""
        from dumpxlate.memory import PhysicalMemory

        return PhysicalMemory(self.frames)


def machine_pages(dump: Dump) -> PageStore | None:
    """Give a PV guest's pages by machine frame: as its dump has them, or back through the map in it."""
    if not dump.machine.paravirtual:
        return None
    if dump.frames is not None:
        return dump.frames
    return RemappedStore(dump.pages, dump.p2m.inverted()) if dump.p2m is not None else None


def ways(dump: Dump, symbols: Symbols | None = None) -> tuple[Way, ...]:
    """Say which methods can be tried on a dump; looks at its headers only."""
    task = _Task(dump, symbols)
    return tuple(Way(method, *_APPLIES[method](task)) for method in METHODS)


def find_map(
    dump: Dump,
    method: Method | None = None,
    *,
    symbols: Symbols | None = None,
    allow_misfit: bool = False,
    progress: Callable[[Progress], None] | None = None,
    threads: int | None = None,
) -> FoundMap:
    """Find a guest's p2m in its dump.

    Args:
        dump: the dump; where it is not of a PV guest, the map is the identity.
        method: the only one to try; None for all of them, until one leads to a map.
        symbols: the guest's kernel's, for ``tree``.
        allow_misfit: take a map as well that names pages which the dump lacks, or leaves out pages that it has.
        progress: called while memory is searched.
        threads: workers of the search; 0 does all in this thread.

    Raises:
        MapError: there is none to be found so; says of each method why not.
        CorruptDumpError: the dump's index cannot be read.
    """
    task = _Task(dump, symbols, progress, threads)
    tried = []
    for name in METHODS if method is None else (method,):
        applies, why = _APPLIES[name](task)
        if applies:
            try:
                return _checked(task, _FIND[name](task), allow_misfit=allow_misfit)
            except (MapError, PageUnavailableError) as error:
                why = str(error)
        tried.append(f"{name}: {why.removeprefix(f'{name}: ')}")
    raise MapError(f"{dump.name}: no p2m map found in it: {'; '.join(tried)}: give one with --p2m MAP")


def _checked(task: _Task, found: FoundMap, *, allow_misfit: bool) -> FoundMap:
    """Compare a map with the pages of the dump, and leave out what is none of them.

    Raises:
        MapError: too many pages of either are missing from the other.
    """
    if found.method == "sections":
        return found
    from dumpxlate.p2m.evidence import known_frames

    p2m, held = found.p2m, task.frames.ram
    strangers, known = known_frames(p2m, held)
    unmapped = held.count - known
    pages = p2m.runs.total
    fits = strangers.count <= MISS_LIMIT * pages and unmapped <= MISS_LIMIT * held.count
    if not fits and not allow_misfit:
        raise MapError(
            f"{found.how} does not fit this dump: {strangers.count:,} of {pages:,} mapped pages are not in it, "
            f"{unmapped:,} of {held.count:,} pages in it are not mapped; up to {MISS_LIMIT:.0%} of either is accepted"
        )
    if not strangers.count or not fits:
        return found
    own = P2M(_only(p2m, difference(p2m.pages(), strangers)), p2m.size, foreign=p2m.foreign, identity=p2m.identity)
    return FoundMap(own, found.method, found.how, found.evidence, strangers.count)


def _only(p2m: P2M, pages: PageRuns) -> FrameRuns:
    """Keep the runs of some pages; a run of the map may be cut by them, and one of them by the map."""
    parts = []
    for first in range(0, pages.count, _CHUNK):
        pfn = pages.select(first, first + _CHUNK)
        parts.append(FrameRuns.from_pairs(pfn, p2m.mfn(pfn)))
    return FrameRuns.join(parts)


def _keyed_by_mfn(dump: Dump) -> str:
    """Say why there is no machine memory to look into; nothing if there is."""
    if dump.machine.paravirtual:
        known = dump.frames is not None or dump.p2m is not None
        return "" if known else "the pages of this file are keyed by pfn, and by no mfn"
    if dump.saved_p2m is not None:
        return "page tables of a save image hold pfns, and the lists in its pages are stale"
    return "not a paravirtual guest"


def _sections_apply(task: _Task) -> tuple[bool, str]:
    dump = task.dump
    if dump.p2m is not None:
        return True, f"the {dump.format} file has the map, or it was given"
    if dump.saved_p2m is not None:
        return True, "the file lists the pages of the p2m, as it was when the guest was saved"
    if not dump.machine.paravirtual and dump.space is Space.PHYSICAL:
        return True, "identity: not a paravirtual guest, its frame numbers are physical addresses already"
    return False, "the file has no map"


def _sections(task: _Task) -> FoundMap:
    dump = task.dump
    own = dump.p2m or dump.saved_p2m
    if own is not None:
        return FoundMap(own, "sections", _sections_apply(task)[1])
    start, count = dump.pages.ram.runs()
    return FoundMap(P2M(FrameRuns(start, start, count), dump.pages.ram.stop), "sections", "identity")


def _shared_info_applies(task: _Task) -> tuple[bool, str]:
    keyed, block = _keyed_by_mfn(task.dump), task.dump.blocks.get("xen_shared_info")
    if keyed:
        return False, keyed
    if not block:
        return False, "the file has no shared_info"
    from dumpxlate.p2m.shared_info import parse_shared_info

    try:
        info = parse_shared_info(block, task.dump.machine.word_bits)
    except MapError as error:
        return False, str(error)
    lists = [f"frame lists at machine frame {info.frame_lists:#x}"] * info.has_frame_lists
    lists += [f"a linear list at {info.p2m_vaddr:#x}"] * bool(info.p2m_cr3)
    changing = ", which it was just changing" if info.is_changing else ""
    if not lists:
        return False, "in shared_info the guest tells of no p2m"
    return True, f"shared_info tells of {' and '.join(lists)} with {info.max_pfn:,} entries{changing}"


def _shared_info(task: _Task) -> FoundMap:
    from dumpxlate.p2m.shared_info import from_shared_info, parse_shared_info

    info = parse_shared_info(task.dump.blocks["xen_shared_info"], task.dump.machine.word_bits)
    p2m, how = from_shared_info(task.memory, info)
    return FoundMap(p2m, "shared-info", how)


def _tree_applies(task: _Task) -> tuple[bool, str]:
    keyed = _keyed_by_mfn(task.dump)
    if keyed:
        return False, keyed
    if not page_tables(task.dump):
        return False, "the file has no cr3 of a vcpu"
    if task.symbols is None:
        return False, "the kernel's symbols are needed: --symbols vmlinux or System.map"
    return True, "symbols, and the page tables of a vcpu"


def _tree(task: _Task) -> FoundMap:
    from dumpxlate.p2m.evidence import BOUND, LINEAR, from_frames, from_tables
    from dumpxlate.p2m.tree import from_symbols

    assert task.symbols is not None
    roots, bits = page_tables(task.dump), task.dump.machine.word_bits
    p2m, how = from_symbols(task.memory, roots, task.symbols, bits)
    # Another kernel's symbols may lead to the right pages in the wrong place: the linear map tells.
    evidence = from_frames(p2m, task.frames.ram) + from_tables(p2m, task.memory, roots, bits)
    linear = next((each for each in evidence if each.name == LINEAR), None)
    if linear is None or linear.share < BOUND:
        raise MapError(f"{how}: the kernel maps its memory otherwise, are these its symbols? {linear or ''}".rstrip())
    return FoundMap(p2m, "tree", how, tuple(evidence))


def _search_applies(task: _Task) -> tuple[bool, str]:
    keyed = _keyed_by_mfn(task.dump)
    return not keyed, keyed or "machine pages can be searched for what looks like a p2m"


def _search(task: _Task) -> FoundMap:
    from dumpxlate.p2m.search import search

    dump = task.dump
    found = search(task.frames, page_tables(dump), dump.machine.word_bits, progress=task.progress, threads=task.threads)
    return FoundMap(found.p2m, "search", found.how, found.evidence)


def page_tables(dump: Dump) -> tuple[int, ...]:
    """Give the machine addresses of the vcpus' first page tables, each once."""
    known = (cpu.registers.get("cr3", 0) & -4096 for cpu in dump.cpus)
    return tuple(dict.fromkeys(root for root in known if root > 0))


_APPLIES: dict[Method, Callable[[_Task], tuple[bool, str]]] = {
    "sections": _sections_apply,
    "shared-info": _shared_info_applies,
    "tree": _tree_applies,
    "search": _search_applies,
}
_FIND: dict[Method, Callable[[_Task], FoundMap]] = {
    "sections": _sections,
    "shared-info": _shared_info,
    "tree": _tree,
    "search": _search,
}
