"""A Xen host in a dump: its hypervisor, its domains, and how they were found.

Domains are found in one of three ways, the surest first:

1. with ``xen-syms``, whose build id must be that of the hypervisor in the dump: the list that ``domain_list`` begins,
   read with the layout that its debug information tells, else with that of a release (``layouts``);
2. without it: the frame table names the structure of every domain that owns memory, of which domain 0 is the first of
   the list; each known release's layout is tried until one makes sense of all of them;
3. where none does: the frame table alone. It tells numbers, pages and owners, and memory can be extracted with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dumpxlate.elf.container import ELF_MAGIC, read_elf
from dumpxlate.elf.dwarf import read_debug_info
from dumpxlate.elf.sections import build_id_of, build_id_of_notes
from dumpxlate.elf.symbols import read_symbols
from dumpxlate.errors import CorruptDumpError, FormatError, UnknownFormatError, UnsupportedFeatureError
from dumpxlate.io.source import open_source
from dumpxlate.xen import PAGE_SIZE
from dumpxlate.xen_host.crash_note import host_signs
from dumpxlate.xen_host.domains import MAX_DOMID, Domain, walk_domains
from dumpxlate.xen_host.frames import Frames
from dumpxlate.xen_host.hypervisor import DIRECT_MAP, find_hypervisor
from dumpxlate.xen_host.layouts import RELEASES, Layout, layout_of
from dumpxlate.xen_host.shared import own_lists

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable

    from dumpxlate.dump import Dump
    from dumpxlate.elf.symbols import Symbols
    from dumpxlate.io.source import Source
    from dumpxlate.progress import Progress
    from dumpxlate.xen_host.frames import Holdings
    from dumpxlate.xen_host.hypervisor import Hypervisor

__all__ = ["Host", "open_host"]

_BUILD_ID_BYTES = 64


@dataclass(frozen=True, slots=True)
class Host:
    """A Xen host.

    Attributes:
        dump: the dump of it.
        hypervisor: Xen's address space.
        frames: Xen's tables of machine frames.
        domains: its domains, ascending by number.
        layout: where members of Xen's structures lie; None where only the frame table was of use.
        how: how the domains were found, in words for people.
    """

    dump: Dump
    hypervisor: Hypervisor
    frames: Frames
    domains: tuple[Domain, ...]
    layout: Layout | None
    how: str

    def domain(self, number: int) -> Domain:
        """Give a domain by its number.

        Raises:
            ValueError: there is none; the message lists those that there are.
        """
        for domain in self.domains:
            if domain.number == number:
                return domain
        numbers = ", ".join(str(each.number) for each in self.domains)
        raise ValueError(f"{self.dump.name}: no domain {number}: there are {numbers}")


def open_host(
    dump: Dump,
    xen_syms: str | os.PathLike[str] | None = None,
    *,
    progress: Callable[[Progress], None] | None = None,
    threads: int | None = None,
) -> Host:
    """Find the domains of a Xen host.

    Args:
        dump: of the whole host, keyed by machine frames.
        xen_syms: the hypervisor's file of symbols, with debug information or without, or its map of symbols.
        progress: called while memory is searched, which is rarely needed.
        threads: workers of that search.

    Raises:
        UnsupportedFeatureError: it is no dump of a Xen host, or xen-syms is not of this hypervisor.
        CorruptDumpError: Xen's structures are torn or circular.
        UnknownFormatError: xen-syms is no file with symbols.
        OSError: it cannot be read.
    """
    hypervisor = find_hypervisor(dump, progress=progress, threads=threads)
    frames = Frames(hypervisor)
    if xen_syms is not None:
        return _by_symbols(dump, hypervisor, frames, xen_syms)
    owners = _domain_owners(hypervisor, frames)
    first = DIRECT_MAP + next(iter(owners.values())).owner * PAGE_SIZE
    layout, domains, complaints = _by_layout(hypervisor, frames, first, _likely(dump), owners)
    if layout:
        return Host(dump, hypervisor, frames, domains, layout, f"frame table, and the layout of {layout.name}")
    complaint = f"; no known layout fits: {complaints[-1]}" if complaints else ""
    listed = tuple(_domain_of(hypervisor, frames, number, owner) for number, owner in owners.items())
    return Host(dump, hypervisor, frames, listed, None, f"frame table{complaint}")


def _domain_owners(hypervisor: Hypervisor, frames: Frames) -> dict[int, Holdings]:
    """Find the domains that own memory by the frame table, ascending by number.

    Raises:
        CorruptDumpError: there is none.
    """
    owners = {}
    for each in frames.holdings():
        number = int.from_bytes(hypervisor.read(DIRECT_MAP + each.owner * PAGE_SIZE, 2, "struct domain"), "little")
        if number < MAX_DOMID and each.memory and each.heap:
            owners[number] = each
    if not owners:
        raise CorruptDumpError("no domain owns any memory", what="frame table")
    return dict(sorted(owners.items()))


def _domain_of(hypervisor: Hypervisor, frames: Frames, number: int, owner: Holdings) -> Domain:
    """Describe a domain by what the frame table knows: a guest with lists of its frames is paravirtual."""
    found = own_lists(hypervisor, frames, owner.owner)
    if found is None:
        return Domain(number, "hvm", None, owner.memory, None, 64, owner.owner)
    shared_info, info = found
    return Domain(number, "pv", None, owner.memory, None, info.word_bits, owner.owner, shared_info)


def _by_layout(
    hypervisor: Hypervisor, frames: Frames, first: int, layouts: Iterable[Layout], owners: Iterable[int]
) -> tuple[Layout | None, tuple[Domain, ...], list[str]]:
    """Try layouts in turn: the one that makes sense of the list, what it says, and why others do not.

    Args:
        hypervisor: Xen's address space.
        frames: its frame table.
        first: address of the list's first domain.
        layouts: to be tried.
        owners: numbers of the domains that own memory, which the list must have.
    """
    complaints = []
    for layout in layouts:
        try:
            domains = walk_domains(hypervisor, frames, layout, first)
        except CorruptDumpError as error:
            complaints.append(f"{layout.name}: {error}")
        else:
            missing = set(owners) - {domain.number for domain in domains}
            if not missing:
                return layout, domains, complaints
            complaints.append(f"{layout.name}: domains {sorted(missing)} own memory, and are not in the list")
    return None, (), complaints


def _likely(dump: Dump) -> tuple[Layout, ...]:
    """Give the layouts of releases, first that of the one that the crash note names."""
    signs = host_signs(dump)
    name = f"Xen {signs.release}" if signs else ""
    return tuple(sorted(RELEASES, key=lambda layout: layout.name != name))


def _by_symbols(dump: Dump, hypervisor: Hypervisor, frames: Frames, xen_syms: str | os.PathLike[str]) -> Host:
    """Find domains by the list that a symbol names."""
    symbols = read_symbols(xen_syms)
    head = symbols.address("domain_list")
    if head is None:
        raise UnsupportedFeatureError(f"{xen_syms}: has no symbol domain_list, expected xen-syms", feature="xen-syms")
    _check_build(hypervisor, symbols, xen_syms)
    first = int.from_bytes(hypervisor.read(head, 8, "domain_list"), "little")
    own = _debug_layout(xen_syms)
    owners = () if own else _domain_owners(hypervisor, frames)  # debug information is believed, a table is compared
    layout, domains, complaints = _by_layout(hypervisor, frames, first, (own,) if own else _likely(dump), owners)
    if layout is None or not domains:
        raise CorruptDumpError(f"cannot be read with {xen_syms}: {'; '.join(complaints) or 'empty'}")
    how = "its debug information" if own else f"the layout of {layout.name}"
    return Host(dump, hypervisor, frames, domains, layout, f"domain_list of xen-syms, and {how}")


def _check_build(hypervisor: Hypervisor, symbols: Symbols, xen_syms: str | os.PathLike[str]) -> None:
    """Compare the build id in xen-syms with the hypervisor's.

    Raises:
        UnsupportedFeatureError: they differ.
    """
    place = symbols.address("__note_gnu_build_id_start")
    with open_source(xen_syms) as source:
        wanted = build_id_of(source, read_elf(source)) if _is_elf(source) else None
    if place is None or wanted is None:
        return
    try:
        found = build_id_of_notes(hypervisor.read(place, _BUILD_ID_BYTES, "build id"), "<")
    except CorruptDumpError:
        found = None
    if found != wanted:
        raise UnsupportedFeatureError(
            f"{xen_syms}: is of another hypervisor: build id {wanted}, this host's is {found or 'elsewhere'}",
            feature="xen-syms",
        )


def _debug_layout(xen_syms: str | os.PathLike[str]) -> Layout | None:
    """Read the layout from debug information, if there is any."""
    with open_source(xen_syms) as source:
        if not _is_elf(source):
            return None
        try:
            return layout_of(read_debug_info(source))
        except UnknownFormatError:
            return None
        except FormatError as error:
            error.path = error.path or str(xen_syms)
            raise


def _is_elf(source: Source) -> bool:
    """Tell xen-syms from its map of symbols, which is text."""
    return bytes(source.view(0, min(source.size, len(ELF_MAGIC)))) == ELF_MAGIC
