"""What the Xen formats share: virtual processors to and from vcpu_guest_context, and what none of them can carry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dumpxlate.arch import by_name, i386
from dumpxlate.arch.xen_vcpu import CONTEXT_32, CONTEXT_64, context_bytes, context_layout, to_core_registers
from dumpxlate.dump import Cpu, Machine
from dumpxlate.elf.notes import NT_PRSTATUS
from dumpxlate.guest_notes import OWN

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from dumpxlate.arch.xen_vcpu import WordBits
    from dumpxlate.dump import Dump
    from dumpxlate.elf.notes import Note

__all__ = [
    "MAX_FRAME",
    "MAX_VCPUS",
    "PAGE_SIZE",
    "context_width",
    "uncarried",
    "xen_contexts",
    "xen_cpus",
    "xen_machine",
]

PAGE_SIZE = 4096

MAX_FRAME = 1 << 40
"""Frames from here on cannot be: x86 and Arm have physical addresses of 52 bits."""

MAX_VCPUS = 4096


def context_width(context: bytes) -> WordBits:
    """Tell the width of the guest that a context belongs to.

    64-bit tools keep a 32-bit guest's context at the start of a 64-bit slot. Then cr3 is where the shorter layout has
    it, and nothing is where the longer one would; a 64-bit guest keeps a table of trap handlers in the first place.
    """
    if len(context) < CONTEXT_64.size:
        return 32
    wide, narrow = CONTEXT_64.unpack(context, "<"), CONTEXT_32.unpack(context, "<")
    return 32 if narrow["cr3"] and not wide["cr3"] else 64


def xen_cpus(contexts: Sequence[bytes], word_bits: WordBits, index: Sequence[int] | None = None) -> tuple[Cpu, ...]:
    """Read virtual processors; their raw contexts are kept under ``xen``.

    Args:
        contexts: as Xen's tools wrote them; a longer slot is cut, a shorter one left out.
        word_bits: width of the guest.
        index: number of each processor, counted from 0 if not given.
    """
    layout = context_layout(word_bits)
    return tuple(
        Cpu(number, to_core_registers(layout.unpack(context, "<")), {"xen": context[: layout.size]})
        for number, context in zip(index or range(len(contexts)), contexts, strict=True)
        if len(context) >= layout.size
    )


def xen_machine(word_bits: WordBits, *, paravirtual: bool) -> Machine:
    """Describe an x86 guest of Xen."""
    return Machine(by_name("x86_64" if word_bits == 64 else "i386"), "<", PAGE_SIZE, paravirtual=paravirtual)


def xen_contexts(dump: Dump, word_bits: WordBits) -> tuple[bytes, ...]:
    """Give the context of each processor: as Xen wrote it where it is known, else made of the registers."""
    size = context_layout(word_bits).size
    contexts = []
    for cpu in dump.cpus:
        known = cpu.raw.get("xen", b"")
        if len(known) != size:
            rename = i386.widen if word_bits == 64 else i386.narrow
            known = context_bytes({**rename(cpu.registers), **cpu.registers}, word_bits)
        contexts.append(known)
    return tuple(contexts)


def uncarried(dump: Dump, *, blocks: Collection[str] = ()) -> tuple[str, ...]:
    """Say what of a dump Xen's own formats have no place for.

    Args:
        dump: what is to be written.
        blocks: names of the blocks that the target does hold.
    """
    lost = [f"block {name}" for name in dump.blocks if name not in blocks]
    left_out = dump.pages.ram.count - dump.pages.stored.count
    if left_out:
        lost.append(f"that {left_out:,} pages are RAM, left out of the dump")
    if dump.vmcoreinfo:
        lost.append("VMCOREINFO")
    notes = sorted({note.name for note in dump.notes if not _is_known(note)})
    if notes:
        lost.append(f"ELF notes of {', '.join(notes)}")
    # A context holds all that NT_PRSTATUS does; of QEMU's note, or of a HVM save record, only a part.
    wider = {name for cpu in dump.cpus for name in cpu.raw if "xen" not in cpu.raw} - {"prstatus"}
    if wider:
        lost.append(f"descriptor tables and segments of the vcpus ({', '.join(sorted(wider))})")
    return tuple(lost)


def _is_known(note: Note) -> bool:
    """Whether a note's content is in the dump's processors, map, blocks or VMCOREINFO too."""
    return note.name in (OWN, "QEMU", "VMCOREINFO") or (note.name == "CORE" and note.type == NT_PRSTATUS)
