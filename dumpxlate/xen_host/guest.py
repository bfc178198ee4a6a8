"""One domain of a Xen host as a dump of its own: the same pages, by the guest's frame numbers. Nothing is copied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dumpxlate.dump import Dump, Space
from dumpxlate.errors import CorruptDumpError, MapError, UnsupportedFeatureError
from dumpxlate.memory import PhysicalMemory
from dumpxlate.p2m.lists import frame_lists_reach, read_frame_lists
from dumpxlate.p2m.shared_info import from_shared_info, parse_shared_info
from dumpxlate.stores import RemappedStore
from dumpxlate.xen import xen_machine
from dumpxlate.xen_host.crash_note import host_signs
from dumpxlate.xen_host.host import open_host
from dumpxlate.xen_host.nested import read_nested_tables
from dumpxlate.xen_host.shared import from_m2p, owned_only
from dumpxlate.xen_host.vcpus import read_vcpus

if TYPE_CHECKING:
    import os

    from dumpxlate.p2m.map import P2M
    from dumpxlate.xen_host.domains import Domain
    from dumpxlate.xen_host.host import Host

__all__ = ["domain_dump", "guest_dump"]


@dataclass(frozen=True, slots=True)
class _Found:
    """A guest's map, where it is from, and what could not be had."""

    p2m: P2M
    how: str
    remarks: tuple[str, ...] = ()


def domain_dump(dump: Dump, number: int, xen_syms: str | os.PathLike[str] | None = None) -> Dump:
    """See one domain of a host's dump.

    Args:
        dump: of the whole host; closing it closes what this gives.
        number: the domain's number.
        xen_syms: the hypervisor's symbols, as for ``open_host``.

    Raises:
        UnsupportedFeatureError: it is no dump of a Xen host, or xen-syms is not of this hypervisor.
        CorruptDumpError: Xen's structures, or the tables of the guest's memory, are torn or circular.
        MapError: domain 0 is all that can be found, by the list of its frames in a note, and that is torn.
        ValueError: there is no such domain.
    """
    try:
        host = open_host(dump, xen_syms)
    except UnsupportedFeatureError as error:
        signs = host_signs(dump)
        if number or signs is None or not signs.dom0_frame_lists or error.feature != "xen host":
            raise
        return _by_note(dump, signs.dom0_frame_lists)
    return guest_dump(host, host.domain(number))


def guest_dump(host: Host, domain: Domain) -> Dump:
    """See one domain of an opened host.

    Raises:
        CorruptDumpError: Xen's structures, or the tables of the guest's memory, are torn or circular.
    """
    dump = host.dump
    found = _hardware_map(host, domain) if not domain.paravirtual else _own_map(host, domain)
    cpus, missing = read_vcpus(host, domain)
    block = _shared_info(host, domain)
    uuid = {"domain_uuid": domain.uuid} if domain.uuid else {}
    return Dump(
        format=dump.format,
        variant=f"domain {domain.number} ({domain.type}) of a Xen host, in {dump.variant}",
        machine=xen_machine(domain.word_bits, paravirtual=domain.paravirtual),
        pages=RemappedStore(dump.pages, found.p2m, whole=False),
        space=Space.PHYSICAL,
        sources=dump.sources,
        cpus=cpus,
        vmcoreinfo=None if domain.number else dump.vmcoreinfo,  # a kexec in domain 0 leaves its kernel's own
        p2m=found.p2m if domain.paravirtual else None,
        blocks={"xen_shared_info": block} if block else {},
        attributes={"domain": domain.number, **uuid, "domain_found_by": host.how, "memory_found_by": found.how},
        remarks=(*dump.remarks, *found.remarks, *missing),
        damage=dump.damage,
    )


def _by_note(dump: Dump, frame_lists: int) -> Dump:
    """See domain 0 by nothing but the list of its frames that the crash note names."""
    memory = PhysicalMemory(dump.pages)
    p2m = read_frame_lists(memory, frame_lists, frame_lists_reach(memory, frame_lists, 64), 64).trimmed()
    return Dump(
        format=dump.format,
        variant=f"domain 0 (pv) of a Xen host, in {dump.variant}",
        machine=xen_machine(64, paravirtual=True),
        pages=RemappedStore(dump.pages, p2m, whole=False),
        sources=dump.sources,
        vmcoreinfo=dump.vmcoreinfo,
        p2m=p2m,
        attributes={"domain": 0, "memory_found_by": "frame lists of the crash note"},
        remarks=(*dump.remarks, "registers are not known: the hypervisor's structures are not in the dump"),
        damage=dump.damage,
    )


def _shared_info(host: Host, domain: Domain) -> bytes:
    return host.hypervisor.page(domain.shared_info) if domain.shared_info >= 0 else b""


def _own_map(host: Host, domain: Domain) -> _Found:
    """Read a PV guest's own p2m, by the crash note or by shared_info; where that is torn, Xen's table of owners."""
    memory = host.hypervisor.virtual.memory
    problem = "it has no shared_info"
    try:
        if domain.shared_info >= 0:
            info = parse_shared_info(_shared_info(host, domain), domain.word_bits)
            signs = host_signs(host.dump)
            if domain.number == 0 and signs and signs.dom0_frame_lists:
                p2m = read_frame_lists(memory, signs.dom0_frame_lists, info.max_pfn, domain.word_bits)
                how = "frame lists of the crash note"
            else:
                p2m, how = from_shared_info(memory, info)
            return _Found(owned_only(p2m, host.frames, domain.frame), how)
    except MapError as error:
        problem = str(error)
    p2m = from_m2p(host.frames, domain.frame)
    if not p2m.runs.total:
        raise CorruptDumpError(f"domain {domain.number}: no memory found: {problem}", what="p2m")
    return _Found(p2m, "machine-to-phys and frame table", (f"the guest's own p2m is of no use: {problem}",))


def _hardware_map(host: Host, domain: Domain) -> _Found:
    """Read the tables that map a hardware guest's memory; where they are not known, Xen's table of owners."""
    if domain.tables >= 0:
        memory = host.hypervisor.virtual.memory
        return _Found(read_nested_tables(memory, domain.tables, host.frames.count), "nested page tables")
    left_out = "pages of Xen's and of other domains that are mapped into the guest are left out"
    return _Found(from_m2p(host.frames, domain.frame), "machine-to-phys and frame table", (left_out,))
