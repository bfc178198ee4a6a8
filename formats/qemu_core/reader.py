"""Makes a dump of the core of a QEMU process: what is known of the build, then memory, then processors."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dumpxlate.arch import arm, by_machine_or_unknown, by_name, i386, x86_64
from dumpxlate.dump import Cpu, Dump, Machine
from dumpxlate.errors import CorruptDumpError, PageUnavailableError, UnsupportedFeatureError
from dumpxlate.formats.qemu_core.cpus import read_cpus
from dumpxlate.formats.qemu_core.load_address import load_bias
from dumpxlate.formats.qemu_core.missing import missing_ram
from dumpxlate.formats.qemu_core.process import read_process, without_holes
from dumpxlate.formats.qemu_core.ram import GuestRam, Reader, guest_ram, overlaps
from dumpxlate.memory import PhysicalMemory
from dumpxlate.pageset import EMPTY, PageRuns, difference, union
from dumpxlate.qemu.knowledge import find_profile
from dumpxlate.segments import index_segments
from dumpxlate.stores import IndexedStore
from dumpxlate.vmcoreinfo import MAX_BYTES, VmCoreInfo

if TYPE_CHECKING:
    from dumpxlate.arch import Arch
    from dumpxlate.arrays import Int64s
    from dumpxlate.format import OpenOptions
    from dumpxlate.formats.qemu_core.process import Process
    from dumpxlate.io.source import Source
    from dumpxlate.structs import Endian

__all__ = ["open_core"]

_PAGE = 4096
_EFER_LMA = 1 << 10
_MSR_LITTLE_ENDIAN = 1
_ELF_NOTE = 1
"""Kind of what a guest gives the vmcoreinfo device (qemu docs/specs/vmcoreinfo.rst)."""
_DEVICE = struct.Struct("<HHIQ")
_TARGET = re.compile(r"qemu-system-(\w+)")
_BLOCKS_SHOWN = 32


@dataclass(slots=True)
class _Found:
    """What was found out of a core.

    Attributes:
        ram: the guest's memory.
        how: where that is from, in half a line.
        reader: reads QEMU's structures, where they are known.
        remarks: what is to be said of it.
        attributes: for info to show.
        damage: what of the memory makes no sense.
    """

    ram: GuestRam
    how: str
    reader: Reader | None
    remarks: list[str]
    attributes: dict[str, int | str]
    damage: list[str] = field(default_factory=list)


def open_core(source: Source, options: OpenOptions) -> Dump:
    """Open the core of a QEMU process.

    Raises:
        UnsupportedFeatureError: the core holds nothing of the guest's memory, what is known is of another build, or
            memory is not found without debug information.
        CorruptDumpError: the core contradicts itself.
        OSError: a file that the user named cannot be read.
    """
    process = read_process(source)
    found = _find(process, options)
    found.damage += [*found.ram.damage, *overlaps(found.ram)]
    lacking = missing_ram(process, found.ram, by_hand=bool(options.qemu and options.qemu.ram))
    pages, remarks = _store(source, process, found.ram, options, _PAGE)
    if not pages.index.pages().count:
        reason = "; ".join([*found.damage, *lacking]) or "QEMU has none"
        raise UnsupportedFeatureError(f"no guest memory: {reason}", format="qemu_core", feature="guest memory")
    if _as_zero(process, options):
        found.remarks += [f"taken for zero (--missing zero): {said}" for said in lacking]
        lacking = ()
    cpus = read_cpus(found.reader, found.remarks) if found.reader else ()
    arch, endian, cpus = _machine(process, cpus)
    vmcoreinfo = _vmcoreinfo(found.reader, pages, endian, found.remarks) if found.reader else None
    page_size = (vmcoreinfo and vmcoreinfo.page_size) or _PAGE
    if page_size != _PAGE:
        pages, remarks = _store(source, process, found.ram, options, page_size)
    return Dump(
        format="qemu_core",
        variant=f"core of {process.program or 'a program whose name is lost'}, guest memory {found.how}",
        machine=Machine(arch, endian, page_size, release=vmcoreinfo.release if vmcoreinfo else None),
        pages=pages,
        sources=(source,),
        cpus=cpus,
        vmcoreinfo=vmcoreinfo,
        attributes={**found.attributes, **_attributes(process, found.ram)},
        remarks=(*process.remarks, *found.remarks, *remarks),
        damage=(*found.damage, *lacking),
    )


def _as_zero(process: Process, options: OpenOptions) -> bool:
    """Whether the user wants zero pages for what the core leaves out; what was cut off its end is lost all the same."""
    return options.missing == "zero" and not process.memory.lost


def _find(process: Process, options: OpenOptions) -> _Found:
    """Find the guest's memory: as the user says, as QEMU's structures say, or by its looks."""
    hints = options.qemu
    if hints and hints.ram:
        rows = [(each.start, each.length, each.host) for each in hints.ram]
        return _Found(GuestRam.of(rows), "as given by hand", None, [], {})
    profile = find_profile(hints, process.build_id)
    if profile is None:
        return _infer(process, options)
    if profile.bits != process.file.bits or profile.endian != process.endian:
        raise UnsupportedFeatureError(
            f"{profile.source} is of a host of another kind than the core's", format="qemu_core", feature="build id"
        )
    remarks = (
        [] if process.build_id else ["the core does not tell its build id: whether the knowledge fits is not sure"]
    )
    reader = Reader(process, profile, load_bias(process, profile.entry, remarks))
    try:
        ram = guest_ram(reader)
    except CorruptDumpError as error:
        error.args = (f"{error.args[0]}; the core is damaged, or {profile.source} is of another build",)
        raise
    return _Found(ram, "as QEMU's structures say", reader, remarks, {"knowledge": profile.source})


def _infer(process: Process, options: OpenOptions) -> _Found:
    """Find the guest's memory without knowledge of the build; the command line tells what machine it was."""
    from dumpxlate.formats.qemu_core.command_line import arguments, has_default_pc, machine_options, shown_arguments
    from dumpxlate.formats.qemu_core.inferred import infer_ram

    words = arguments(process)
    told = machine_options(words or shown_arguments(process))
    x86 = _arch(process) in (x86_64.ARCH, i386.ARCH)
    machine, says = told.type, "its command line"
    if options.machine:
        machine, says = options.machine, "--machine-type"
    elif not machine and x86 and has_default_pc(process, words):
        machine, says = "pc", "assumed as QEMU's default, since its command line names none"
    elif not machine:
        says = "the names of the blocks"
    below = told.ram_below_4g if options.ram_below_4g is None else options.ram_below_4g
    found = infer_ram(process, machine, below, says, size=told.memory, x86=x86)
    remarks = [*found.evidence, "registers are not read without debug information (--debug-file, --profile)"]
    return _Found(found.ram, "inferred", None, remarks, found.attributes)


def _store(
    source: Source, process: Process, ram: GuestRam, options: OpenOptions, page_size: int
) -> tuple[IndexedStore, list[str]]:
    """Index the pages where they lie in the core; holes of a sparse core are zero pages."""
    held = process.memory.stretches(ram.start, ram.length, ram.host)
    data = without_holes(held, source, page_size)
    index = index_segments(source, data.start, data.length, data.offset, page_size)
    there, known = _touched(held.start, held.length, page_size), _touched(ram.start, ram.length, page_size)
    zero, missing = difference(there, index.extents.pages()), difference(known, there)
    if _as_zero(process, options):
        zero, missing = union(zero, missing), EMPTY
    lost, excluded = (missing, EMPTY) if process.memory.lost else (EMPTY, missing)
    pages = IndexedStore(index.source, page_size, index.extents, zero=zero, excluded=excluded, lost=lost)
    return pages, index.remarks("ranges of memory")


def _touched(start: Int64s, length: Int64s, page_size: int) -> PageRuns:
    """Give the pages that ranges of bytes touch."""
    first = start // page_size
    return PageRuns.from_runs(first, -(-(start + length) // page_size) - first)


def _machine(process: Process, cpus: tuple[Cpu, ...]) -> tuple[Arch, Endian, tuple[Cpu, ...]]:
    """Name the guest's architecture, as its first processor's mode tells it: so do QEMU's own dumps of x86.

    Registers of another width than the program's name promises are those of 32-bit code.
    """
    arch = _arch(process)
    first = cpus[0].registers if cpus else {}
    if arch.name == "x86_64" and not first.get("efer", _EFER_LMA) & _EFER_LMA:
        arch = i386.ARCH
    if arch.name == "aarch64" and "cpsr" in first:
        arch = arm.ARCH
    if arch is i386.ARCH:
        cpus = tuple(Cpu(cpu.index, i386.narrow(cpu.registers), cpu.raw) for cpu in cpus)
    little = any(cpu.registers.get("msr", 0) & _MSR_LITTLE_ENDIAN for cpu in cpus)
    if arch.name == "ppc64":
        return arch, "<" if little else ">", cpus
    return arch, arch.endians[0], cpus


def _arch(process: Process) -> Arch:
    """Take the architecture from the name of the program; qemu-kvm runs guests of the host's own."""
    names = [each.name for each in process.files] + [process.arguments, process.program]
    for name in names:
        match = _TARGET.search(name)
        if match:
            try:
                return by_name("x86_64" if match[1].startswith("x86") else match[1])
            except UnsupportedFeatureError:
                continue
    return by_machine_or_unknown(process.file.header.e_machine, process.file.bits, process.endian)


def _vmcoreinfo(reader: Reader, pages: IndexedStore, endian: Endian, remarks: list[str]) -> VmCoreInfo | None:
    """Read the note whose place the guest told QEMU's vmcoreinfo device.

    The device keeps, packed and little-endian: u16 format of the host, u16 format of the guest, u32 size, u64 address.
    """
    variable, place = reader.variable("vmcoreinfo_state"), reader.profile.place("VMCoreInfoState.vmcoreinfo")
    if variable is None or place is None:
        return None
    try:
        state = reader.process.word(variable, reader.process.pointer, "vmcoreinfo_state")
        if not state or not reader.member(state, "VMCoreInfoState.has_vmcoreinfo"):
            return None
        data = reader.process.memory.read(state + place.offset, _DEVICE.size, "vmcoreinfo")
        _, kind, size, address = _DEVICE.unpack(data)
        if kind != _ELF_NOTE:
            return None
        return VmCoreInfo.from_note(PhysicalMemory(pages).read(address, min(size, MAX_BYTES)), endian)
    except (CorruptDumpError, PageUnavailableError) as error:
        remarks.append(f"the guest's vmcoreinfo is not read: {error}")
        return None


def _attributes(process: Process, ram: GuestRam) -> dict[str, int | str]:
    """Say what was found, for info to show."""
    found: dict[str, int | str] = {"program": process.program or "unknown", "ranges": len(ram.start)}
    if process.build_id:
        found["build_id"] = process.build_id
    if ram.blocks:
        listed = [f"{block.name} {block.length:#x}" for block in ram.blocks[:_BLOCKS_SHOWN]]
        rest = len(ram.blocks) - len(listed)
        found["ram_blocks"] = ", ".join([*listed, *([f"{rest} more"] if rest else [])])
    return found
