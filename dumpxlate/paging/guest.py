"""All that a guest's processors map: what a dump with virtual addresses is written from."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dumpxlate.errors import UnsupportedFeatureError
from dumpxlate.memory import PhysicalMemory
from dumpxlate.paging.addrxlat import PageWalk
from dumpxlate.paging.mappings import by_memory
from dumpxlate.paging.virtual import kernel_translation, processor_translation, translates

if TYPE_CHECKING:
    from dumpxlate.dump import Cpu, Dump
    from dumpxlate.paging.addrxlat import Translation
    from dumpxlate.paging.mappings import Mappings

__all__ = ["guest_mappings"]

_TABLES = 1 << 21
"""Tables of all processors together from which on no further processor's are walked: minutes, of hostile ones."""

_USER = 3  # privilege level in the two lowest bits of cs


def guest_mappings(dump: Dump) -> Mappings | None:
    """Put the mappings of every processor's tables together, by physical address.

    Processors without paging are passed over, as QEMU does. Where no processor's tables are known or in the dump, the
    kernel's own are walked, as VMCOREINFO tells of them.

    Returns:
        The mappings; None if no processor has paging, so that virtual addresses are physical ones.

    Raises:
        UnsupportedFeatureError: no page tables are known.
        MapError: a PV guest's page tables need its map.
    """
    known = [cpu for cpu in dump.cpus if "cr3" in cpu.registers]
    paged = [cpu for cpu in known if translates(dump, cpu.registers)]
    if known and not paged:
        return None
    memory = PhysicalMemory(dump.pages, dump.machine.endian)
    found = [walk for cpu in paged if (walk := processor_translation(dump, memory, cpu))]
    if not found or any(_needs_kernel(dump, cpu) for cpu in paged):
        kernel = kernel_translation(dump, memory)
        found += [kernel] if kernel else []
    if not found:
        raise UnsupportedFeatureError(
            "no page tables are known: the dump has neither a usable cr3 nor VMCOREINFO "
            "(--vmcoreinfo search looks for it in memory)",
            path=dump.name,
            feature="paging",
        )
    return _together(_different(found))


def _together(walks: list[Translation]) -> Mappings:
    """Join one by one, so that what hundreds of processors map alike is kept once."""
    found = by_memory([])
    for number, each in enumerate(walks):
        if found.tables > _TABLES:
            return replace(found, faults={**found.faults, "vcpus not walked": len(walks) - number})
        found = by_memory([found, each.mappings()])
    return found


def _needs_kernel(dump: Dump, cpu: Cpu) -> bool:
    """Say whether a processor may run on tables that lack the kernel: in user mode, with page-table isolation."""
    if dump.machine.paravirtual or dump.machine.canonical:
        return False  # a PV guest's kernel is not in ring 0, and its cr3 always has the kernel
    return cpu.registers.get("cs", 0) & _USER == _USER


def _different(found: list[Translation]) -> list[Translation]:
    """Drop walks of tables that another one starts from too: idle processors share them."""
    first = {(each.root, each.mode.name) if isinstance(each, PageWalk) else id(each): each for each in found[::-1]}
    return list(first.values())[::-1]
