"""What an opened dump is: a machine, its processors, its pages, and what else the file tells."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Literal, Self

import numpy as np

from dumpxlate.codecs.batch import read_pages
from dumpxlate.memory import PhysicalMemory
from dumpxlate.pages import PageState, damage_of
from dumpxlate.stores import RemappedStore, UnkeyedStore

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from dumpxlate.arch import Arch
    from dumpxlate.arrays import Int64s, UInt8s
    from dumpxlate.elf.notes import Note
    from dumpxlate.elf.symbols import Symbols
    from dumpxlate.io.source import Source
    from dumpxlate.p2m.map import P2M
    from dumpxlate.p2m.methods import FoundMap, Method
    from dumpxlate.pages import PageStore
    from dumpxlate.paging.virtual import VirtualMemory
    from dumpxlate.progress import Progress
    from dumpxlate.stores import MapFit
    from dumpxlate.structs import Endian
    from dumpxlate.vmcoreinfo import VmCoreInfo
    from dumpxlate.xen_host.domains import Domain

__all__ = ["Cpu", "Dump", "Machine", "Space"]


class Space(StrEnum):
    """What the frame numbers of a page store mean."""

    PHYSICAL = "guest physical"
    """pfn: the guest's own (pseudo-)physical memory."""
    MACHINE = "machine"
    """mfn: frames of the host."""


@dataclass(frozen=True, slots=True)
class Cpu:
    """One virtual processor.

    Attributes:
        index: its number in the dump; gaps are possible.
        registers: values by canonical name ("rip", "cr3"), as far as the dump has them.
        raw: the blocks of bytes they came from, by the name of their layout.
    """

    index: int
    registers: Mapping[str, int] = field(default_factory=dict)
    raw: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Machine:
    """The dumped machine.

    Attributes:
        arch: register layouts and names.
        endian: byte order of the guest.
        page_size: bytes a page.
        release: release of the kernel, where the dump names it.
        paravirtual: a Xen PV guest, whose page tables and cr3 hold machine frames.
        canonical: a Xen PV guest whose page tables and cr3 hold its own frames, as Xen saves them.
    """

    arch: Arch
    endian: Endian
    page_size: int
    release: str | None = None
    paravirtual: bool = False
    canonical: bool = False

    @property
    def word_bits(self) -> Literal[32, 64]:
        """Width of the guest's word."""
        return self.arch.word_bits


@dataclass(frozen=True, slots=True)
class Dump:
    """An opened dump. Use it in a ``with`` block, or close it.

    Attributes:
        format: name of the format.
        variant: which kind of that format, in words for people.
        machine: what was dumped.
        pages: the page store.
        space: what the store's frame numbers mean.
        sources: the files, in the order of their parts.
        cpus: virtual processors.
        notes: ELF notes that are not otherwise understood; they pass to formats that have notes.
        vmcoreinfo: the kernel's description of itself.
        p2m: the guest's map, where known.
        frames: the same pages keyed by mfn, where a map can still be applied to this dump.
        saved_p2m: the map that a PV guest had when it was saved; nothing in its image needs it, since Xen wrote pfns
            in the place of mfns.
        blocks: structures of the hypervisor as they are, by name ("xen_shared_info"); they pass to formats that have
            a place for them.
        attributes: what only this format has, for info to show.
        remarks: oddities of the file that were tolerated.
        damage: what is missing or broken, as far as opening the file shows it.
        consulted: names of other files that told something of it: a map, symbols, a profile.
        memory: bytes and words at addresses of that space.
    """

    format: str
    variant: str
    machine: Machine
    pages: PageStore
    space: Space = Space.PHYSICAL
    sources: tuple[Source, ...] = ()
    cpus: tuple[Cpu, ...] = ()
    notes: tuple[Note, ...] = ()
    vmcoreinfo: VmCoreInfo | None = None
    p2m: P2M | None = None
    frames: PageStore | None = None
    saved_p2m: P2M | None = None
    blocks: Mapping[str, bytes] = field(default_factory=dict)
    attributes: Mapping[str, int | str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    damage: tuple[str, ...] = ()
    consulted: tuple[str, ...] = ()
    memory: PhysicalMemory = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Keep one reader of memory, which remembers where the pages are that it was asked for."""
        object.__setattr__(self, "memory", PhysicalMemory(self.pages, self.machine.endian))

    @property
    def defects(self) -> tuple[str, ...]:
        """What is missing or broken, its index read; a conversion stops at it unless asked to salvage."""
        return (*self.damage, *(line for line in damage_of(self.pages) if line not in self.damage))

    @property
    def name(self) -> str:
        """Name of the file, or of the first of several."""
        return self.sources[0].name if self.sources else "<dump>"

    @property
    def files(self) -> tuple[str, ...]:
        """Names of all files that were read, none of which may become an output."""
        return (*(source.name for source in self.sources), *self.consulted)

    def with_p2m(self, p2m: P2M) -> Dump:
        """See a dump that is keyed by machine frames through a map; nothing is read or copied.

        Raises:
            ValueError: the dump has no machine frames, so a map means nothing for it.
            MapError: the index of a domain core is lost, and the map is not of the moment of the dump.
        """
        if self.frames is None:
            raise ValueError(f"{self.name}: a {self.format} dump keyed by pfn takes no p2m map")
        frames = self.frames.keyed(p2m) if isinstance(self.frames, UnkeyedStore) else self.frames
        return replace(self, frames=frames, pages=RemappedStore(frames, p2m), space=Space.PHYSICAL, p2m=p2m)

    def find_p2m(self, method: Method | None = None, *, symbols: Symbols | None = None) -> FoundMap:
        """Find the guest's map in the dump itself; ``dump.with_p2m(found.p2m)`` applies it.

        Args:
            method: the only one to try (dumpxlate.p2m.methods); None for all of them, until one leads to a map.
            symbols: the guest's kernel's (dumpxlate.elf.symbols), for the method ``tree``.

        Raises:
            MapError: there is none to be found so; says of each method why not.
        """
        from dumpxlate.p2m.methods import find_map

        return find_map(self, method, symbols=symbols)

    def fit(self) -> MapFit | None:
        """Compare the map that was applied with the machine frames that the file holds; None if none was."""
        pages = self.pages
        if self.machine.canonical:
            from dumpxlate.canonical.store import CanonicalStore

            pages = pages.inner if isinstance(pages, CanonicalStore) else pages
        return pages.fit() if isinstance(pages, RemappedStore) else None

    def canonical(self, *, progress: Callable[[Progress], None] | None = None, threads: int | None = None) -> Dump:
        """See a paravirtual guest as an ordinary one: page tables and cr3 hold its own frames, wherever they are read.

        ``dumpxlate.canonical.guest.canonical`` also tells what was done. A dump of another guest is given as it is.

        Args:
            progress: called after each batch of the search for page tables.
            threads: workers; 0 does all in this thread, None takes one for each processor, up to 8.

        Raises:
            MapError: the guest's p2m map is not known.
            UnsupportedFeatureError: the dump names no page tables.
        """
        from dumpxlate.canonical.guest import canonical

        return canonical(self, progress=progress, threads=threads)[0]

    def domains(self, xen_syms: str | os.PathLike[str] | None = None) -> tuple[Domain, ...]:
        """List the domains of a Xen host, whose whole memory this dump is of.

        Args:
            xen_syms: the hypervisor's file of symbols; without it, tables of known releases and Xen's own are used.

        Raises:
            UnsupportedFeatureError: it is no dump of a Xen host, or xen_syms is not of this hypervisor.
            CorruptDumpError: Xen's structures are torn or circular.
        """
        from dumpxlate.xen_host.host import open_host

        return open_host(self, xen_syms).domains

    def domain(self, number: int, xen_syms: str | os.PathLike[str] | None = None) -> Dump:
        """See one domain of a Xen host as a dump of its own, keyed by its own frame numbers; nothing is copied.

        Args:
            number: the domain's number; 0 is the one that runs the host.
            xen_syms: as for ``domains``.

        Raises:
            UnsupportedFeatureError: it is no dump of a Xen host, or xen_syms is not of this hypervisor.
            CorruptDumpError: Xen's structures, or the tables of the domain's memory, are torn or circular.
            ValueError: there is no such domain.
        """
        from dumpxlate.xen_host.guest import domain_dump

        told = () if xen_syms is None else (os.fspath(xen_syms),)
        return replace(domain_dump(self, number, xen_syms), consulted=(*self.consulted, *told))

    def read(self, address: int, length: int) -> bytes:
        """Read bytes at an address of the dump's space (guest physical, or machine).

        Raises:
            PageUnavailableError: a page in the range has no content.
        """
        return self.memory.read(address, length)

    def read_pages(self, pfn: Int64s | list[int] | range) -> UInt8s:
        """Read whole pages.

        Args:
            pfn: frame numbers, in any order, n of them.

        Returns:
            Their bytes, uint8, shape (n, page_size). Pages without content are zero; ``states`` tells which.

        Raises:
            ValueError: one is no integer of 63 bits.
        """
        wanted = _frame_numbers(pfn)
        out = np.empty((len(wanted), self.machine.page_size), np.uint8)
        read_pages(self.pages, wanted, out)
        return out

    def virtual(self, cpu: int | None = None, *, cr3: int | None = None) -> VirtualMemory:
        """See memory as a processor does; nothing is read yet.

        Args:
            cpu: number of the processor; if not given, the first whose page tables are known.
            cr3: page tables to use instead of the processor's own, as a cr3 names them (of a PV guest: by mfn).

        Raises:
            UnsupportedFeatureError: no page tables are known, or not those of this machine.
            MapError: a PV guest's page tables need its map.
            ValueError: there is no such processor.
        """
        from dumpxlate.paging.virtual import virtual_memory

        return virtual_memory(self, cpu=cpu, cr3=cr3)

    def states(self, pfn: Int64s | list[int] | range) -> list[PageState]:
        """Tell what the dump knows of each page, without reading it."""
        return [PageState(state) for state in self.pages.locate(_frame_numbers(pfn)).state.tolist()]

    def close(self) -> None:
        """Close the files."""
        for source in self.sources:
            source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _frame_numbers(pfn: Int64s | list[int] | range) -> Int64s:
    """Make an array of what a caller has.

    Raises:
        ValueError: one is no integer of 63 bits.
    """
    given = np.asarray(pfn)
    if not given.size:
        return np.empty(0, np.int64)
    if given.dtype.kind not in "iu" or given.ndim != 1 or given.max() >= 1 << 63:
        raise ValueError("frame numbers are integers of 63 bits, in one row")
    return given.astype(np.int64, copy=False)
