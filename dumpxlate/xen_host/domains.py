"""Xen's list of domains: what each is, and where its memory map, shared_info and virtual processors are.

The list is read with a layout (``layouts``), from a domain's structure on; every link is checked against what a
hypervisor would have there, so a layout of another release, a torn page or a loop end the walk at once.
"""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from dumpxlate.errors import CorruptDumpError
from dumpxlate.xen import PAGE_SIZE
from dumpxlate.xen_host.frames import Kind, one_frame

if TYPE_CHECKING:
    from dumpxlate.arch.xen_vcpu import WordBits
    from dumpxlate.xen_host.frames import Frames
    from dumpxlate.xen_host.hypervisor import Hypervisor
    from dumpxlate.xen_host.layouts import Layout

__all__ = ["MAX_DOMID", "Domain", "DomainType", "Vcpu", "walk_domains"]

DomainType: TypeAlias = Literal["pv", "pvh", "hvm"]

MAX_DOMID = 0x7FF0
"""DOMID_FIRST_RESERVED of xen/include/public/xen.h: higher numbers are no guests."""

_MAX_VCPUS = 8192  # MAX_VIRT_CPUS of PV guests on x86-64
_EMULATES_ONLY_LAPIC = 1  # XEN_X86_EMU_LAPIC, xen/include/public/arch-x86/xen.h
_RFLAGS = 144
"""Of cpu_user_regs, whose first part is that of vcpu_guest_context."""
_ALWAYS_SET = 2  # bit 1 of rflags
_WHAT = "list of domains"


@dataclass(frozen=True, slots=True)
class Vcpu:
    """A virtual processor: its number, and the address of its ``struct vcpu`` in Xen."""

    number: int
    address: int


@dataclass(frozen=True, slots=True)
class Domain:
    """A domain of a Xen host.

    Attributes:
        number: its domid.
        type: how it runs; "hvm" stands for "pvh" too where only the frame table is known.
        uuid: its handle; all zero for domain 0, None where it is not known.
        pages: pages of memory that it owns.
        max_vcpus: processors that it may have, None where that is not known.
        word_bits: width of its words; a hardware guest's is 64.
        frame: machine frame of its ``struct domain``, by which Xen knows the owner of memory.
        shared_info: frame of its shared_info page, -1 where it is not known.
        tables: frame of the tables that map a hardware guest's memory, -1 for others.
        vcpus: its processors, as far as they are there.
    """

    number: int
    type: DomainType
    uuid: str | None
    pages: int
    max_vcpus: int | None
    word_bits: WordBits
    frame: int
    shared_info: int = -1
    tables: int = -1
    vcpus: tuple[Vcpu, ...] = ()

    @property
    def paravirtual(self) -> bool:
        """Whether its page tables hold machine frames."""
        return self.type == "pv"


@dataclass(frozen=True, slots=True)
class _Walk:
    """What a walk works with."""

    hypervisor: Hypervisor
    frames: Frames
    layout: Layout

    def word(self, address: int, width: Literal[1, 2, 4, 8] = 8) -> int:
        """Read a number."""
        return int.from_bytes(self.hypervisor.read(address, width, _WHAT), "little")

    def domain(self, address: int) -> tuple[Domain, int]:
        """Read a domain, and where the next one is."""
        at, hypervisor = self.layout, self.hypervisor
        frame = hypervisor.frame_of(address)
        if frame < 0 or address % PAGE_SIZE:
            raise CorruptDumpError(f"a domain at {address:#x}, where Xen keeps none", what=_WHAT)
        number = self.word(address, 2)
        where = f"domain {number} at {address:#x}"
        page = self.word(address + at.domain_shared_info)
        shared_info = hypervisor.frame_of(page)
        if number >= MAX_DOMID or (page and one_frame(self.frames, shared_info) != (frame, Kind.HEAP)):
            raise CorruptDumpError(f"{where}: has no shared_info of its own", what=_WHAT)
        pages = self.word(address + at.domain_tot_pages, 4)
        if pages > self.frames.count:
            raise CorruptDumpError(f"{where}: {pages:,} pages, the host has {self.frames.count:,}", what=_WHAT)
        tables = self.tables(address, where)
        handle = hypervisor.read(address + at.domain_handle, 16, _WHAT)
        narrow = tables < 0 and self.word(address + at.domain_is_32bit, 1) == 1
        max_vcpus, vcpus = self.vcpus(address, frame, where)
        found = Domain(
            number,
            self.type(address, tables),
            str(uuid.UUID(bytes=handle)),
            pages,
            max_vcpus,
            32 if narrow else 64,
            frame,
            shared_info,
            tables,
            vcpus,
        )
        return found, self.word(address + at.domain_next)

    def type(self, address: int, tables: int) -> DomainType:
        """Tell how a domain runs: PVH guests have a local APIC emulated, and nothing else."""
        if tables < 0:
            return "pv"
        return "hvm" if self.word(address + self.layout.domain_emulation_flags, 4) & ~_EMULATES_ONLY_LAPIC else "pvh"

    def tables(self, address: int, where: str) -> int:
        """Give the frame of the tables that map a domain's memory; a PV domain has none."""
        p2m = self.word(address + self.layout.domain_p2m)
        if not p2m:
            return -1
        if self.hypervisor.frame_of(p2m) < 0:
            raise CorruptDumpError(f"{where}: memory map at {p2m:#x}, where Xen keeps none", what=_WHAT)
        found = self.word(p2m + self.layout.p2m_phys_table)
        if found >= self.frames.count:
            raise CorruptDumpError(f"{where}: memory map at machine frame {found:#x}, beyond the host", what=_WHAT)
        return found or -1

    def vcpus(self, address: int, frame: int, where: str) -> tuple[int, tuple[Vcpu, ...]]:
        """Give how many processors a domain may have, and those that it has."""
        at = self.layout
        count = self.word(address + at.domain_max_vcpus, 4)
        table = self.word(address + at.domain_vcpu)
        if not count or not table:  # still being built
            return count, ()
        if count > _MAX_VCPUS or self.hypervisor.frame_of(table) < 0:
            raise CorruptDumpError(f"{where}: {count:,} processors, listed at {table:#x}", what=_WHAT)
        addresses = struct.unpack(f"<{count}Q", self.hypervisor.read(table, 8 * count, _WHAT))
        for number, each in enumerate(addresses):
            if each and (
                self.hypervisor.frame_of(each) < 0
                or self.word(each, 4) != number
                or self.word(each + at.vcpu_domain) != address
                or not self.is_sane(each, frame)
            ):
                raise CorruptDumpError(f"{where}: processor {number} at {each:#x} is none", what=_WHAT)
        return count, tuple(Vcpu(number, each) for number, each in enumerate(addresses) if each)

    def is_sane(self, vcpu: int, frame: int) -> bool:
        """Tell whether a processor's page tables, if it has any, are its domain's, and its flags are flags.

        Releases differ in little more than these places.
        """
        tables = self.word(vcpu + self.layout.vcpu_guest_table)
        if not tables:
            return True  # a hardware guest's, or not yet started
        flags = self.word(vcpu + self.layout.vcpu_user_regs + _RFLAGS)
        return one_frame(self.frames, tables)[0] == frame and flags & _ALWAYS_SET != 0 and flags < 1 << 32


def walk_domains(hypervisor: Hypervisor, frames: Frames, layout: Layout, first: int) -> tuple[Domain, ...]:
    """Read the domains from one on; Xen lists them ascending.

    Args:
        hypervisor: Xen's address space.
        frames: its frame table.
        layout: where members of its structures lie.
        first: address of the first domain's structure; 0 for none.

    Raises:
        CorruptDumpError: the list is torn or circular, or the layout is of another hypervisor.
    """
    walk = _Walk(hypervisor, frames, layout)
    found: list[Domain] = []
    address = first
    while address:
        domain, following = walk.domain(address)
        if found and domain.number <= found[-1].number:
            raise CorruptDumpError(f"domain {domain.number} follows domain {found[-1].number}: circular", what=_WHAT)
        found.append(domain)
        address = following
    return tuple(found)
