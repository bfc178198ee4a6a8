"""Whole ELF cores of a guest as one producer or another writes them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from .elf import Segment, build
from .elf_notes import MACHINES, cpu_notes, note, qemu_cpu, virtualbox_notes, vmcoreinfo, xen_crash_notes
from .guest import Guest, pages_of
from .packing import cut, runs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["STYLES", "core", "makedumpfile_segments", "segments"]


def segments(
    guest: Guest | Mapping[int, bytes], *, vaddr: int | None = None, most: int | None = None, page_size: int = 4096
) -> list[Segment]:
    """A whole PT_LOAD for each run of stored pages.

    Args:
        guest: or a plain mapping of pages, then of ``page_size``.
        vaddr: added to the physical address to make the virtual one.
        most: cut runs at so many pages.
        page_size: of a plain mapping.
    """
    model = guest if isinstance(guest, Guest) else Guest(pages=pages_of(guest), page_size=page_size)
    found = []
    for first, count in runs(model.pages):
        for start in range(first, first + count, most or count):
            length = min(most or count, first + count - start)
            found.append(_segment(model, start, length, length, vaddr))
    return found


def makedumpfile_segments(guest: Guest, *, vaddr: int | None = None) -> list[Segment]:
    """RAM as ``makedumpfile -E`` cuts it: included pages are filesz, the excluded ones behind them fill memsz.

    A run that begins with excluded pages gets a segment of its own with filesz 0 and offset 0.
    (makedumpfile keeps exclusions of fewer than 256 pages in the file; here every one counts.)
    """
    found: list[Segment] = []
    for first, count in runs(guest.ram):
        pieces = runs(pfn for pfn in range(first, first + count) if pfn in guest.pages)
        if not pieces or pieces[0][0] > first:
            pieces.insert(0, (first, 0))
        ends = [start for start, _ in pieces[1:]] + [first + count]
        found += [
            _segment(guest, start, length, end - start, vaddr)
            for (start, length), end in zip(pieces, ends, strict=True)
        ]
    return found


def _segment(guest: Guest, first: int, stored: int, count: int, vaddr: int | None) -> Segment:
    paddr = first * guest.page_size
    return Segment(
        paddr=paddr,
        vaddr=None if vaddr is None else vaddr + paddr,
        data=guest.run(first, stored),
        memsz=count * guest.page_size,
        lies={} if stored else {"p_offset": 0},
    )


def core(
    guest: Guest,
    style: str = "plain",
    *,
    arch: str = "x86_64",
    bits: int = 64,
    byte_order: str = "<",
    truncate: int | None = None,
) -> bytes:
    """A core as one producer writes it: see ``STYLES``; ``bits`` as that producer would choose them."""
    return cut(STYLES[style](guest, arch, bits, byte_order), truncate)


def _plain(guest: Guest, arch: str, bits: int, order: str) -> bytes:
    notes = cpu_notes(guest, arch, order)
    return build(segments(guest), notes, bits=bits, byte_order=order, machine=MACHINES[arch])


def _qemu(guest: Guest, arch: str, bits: int, order: str, *, style: str) -> bytes:
    """dump-guest-memory; the guest's VMCOREINFO last, as its vmcoreinfo device hands it out."""
    notes = cpu_notes(guest, arch, order)
    notes += [qemu_cpu(guest, vcpu) for vcpu in range(guest.nr_vcpus) if arch in ("x86_64", "i386")]
    notes += [vmcoreinfo(guest.vmcoreinfo, order=order)] * bool(guest.vmcoreinfo)
    return build(segments(guest), notes, bits=bits, byte_order=order, machine=MACHINES[arch], style=style)


def _vmcore(guest: Guest, arch: str, bits: int, order: str) -> bytes:
    """/proc/vmcore: the kernel's alias first, with bytes of its own; page-aligned data; one padded PT_NOTE."""
    base, text = (0xFFFF888000000000, 0xFFFFFFFF81000000) if bits == 64 else (0xC0000000, 0xF1000000)
    loads = [replace(load, flags=7) for load in segments(guest, vaddr=base)]
    first, count = runs(guest.pages)[0]
    alias = _segment(guest, first, count // 2, count // 2, text - first * guest.page_size)
    notes = [*cpu_notes(guest, arch, order), vmcoreinfo(guest.vmcoreinfo, order=order)]
    return build(
        [replace(alias, flags=7), *loads], notes, bits=bits, byte_order=order, machine=MACHINES[arch],
        align_data=4096, align_notes=4096,
    )  # fmt: skip


def _xen_host(guest: Guest, arch: str, bits: int, order: str) -> bytes:
    """/proc/vmcore of a Xen host: machine addresses and the hypervisor's notes."""
    notes = [*xen_crash_notes(guest, arch=arch), vmcoreinfo(guest.vmcoreinfo, name="VMCOREINFO_XEN")]
    return build(segments(guest, vaddr=0), notes, machine=MACHINES[arch], align_data=4096, align_notes=4096)


def _makedumpfile(guest: Guest, arch: str, bits: int, order: str) -> bytes:
    notes = [*cpu_notes(guest, arch, order), vmcoreinfo(guest.vmcoreinfo, order=order)]
    notes.append(note("ERASEINFO", 0, b"erase saved_command_line size 28\n", order=order))
    return build(makedumpfile_segments(guest), notes, bits=bits, byte_order=order, machine=MACHINES[arch])


def _virtualbox(guest: Guest, arch: str, bits: int, order: str) -> bytes:
    """dumpvmcore: flags PF_R, no virtual addresses, an MMIO range without bytes, EI_VERSION left 0."""
    mmio = Segment(paddr=0xF0000000, memsz=0x10000)
    loads = sorted([*segments(guest), mmio], key=lambda load: load.paddr)
    loads = [replace(load, vaddr=0, flags=4) for load in loads]
    return build(loads, virtualbox_notes(guest), machine=MACHINES[arch], header={"ei_version": 0})


def _gdb_script(guest: Guest, arch: str, bits: int, order: str) -> bytes:
    notes = [note("NONE", 0, b"EMPTY", order=order)]
    return build(segments(guest), notes, bits=bits, byte_order=order, machine=MACHINES[arch])


STYLES: dict[str, Callable[[Guest, str, int, str], bytes]] = {
    "plain": _plain,
    "qemu": partial(_qemu, style="plain"),  # 4.0 to 7.1
    "qemu72": partial(_qemu, style="qemu72"),
    "vmcore": _vmcore,
    "xen-host": _xen_host,
    "makedumpfile": _makedumpfile,
    "virtualbox": _virtualbox,
    "gdb-script": _gdb_script,
}
