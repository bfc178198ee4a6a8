"""Makes a dump of a migration stream."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dumpxlate.dump import Dump, Machine
from dumpxlate.errors import CorruptDumpError, PageUnavailableError
from dumpxlate.memory import PhysicalMemory
from dumpxlate.pageset import EMPTY
from dumpxlate.qemu.chipset import read_chipset
from dumpxlate.qemu.cpus import read_cpus
from dumpxlate.qemu.devices import devices
from dumpxlate.qemu.layout import board_of, lay_out, need_type
from dumpxlate.qemu.pages import StreamStore
from dumpxlate.qemu.stream import read_stream
from dumpxlate.vmcoreinfo import MAX_BYTES, VmCoreInfo

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dumpxlate.io.source import Source
    from dumpxlate.pageset import PageRuns
    from dumpxlate.qemu.devices import DeviceState
    from dumpxlate.qemu.layout import GuestLayout
    from dumpxlate.qemu.ram import BlockTable
    from dumpxlate.qemu.stream import Stream
    from dumpxlate.structs import Endian

__all__ = ["open_stream"]

_ELF_NOTE = 1
"""Kind of what a guest gives the vmcoreinfo device: an ELF note (qemu docs/specs/vmcoreinfo.rst)."""

_RUNS_TOLD = 4

_IGNORE = "x-ignore-shared"


def open_stream(
    source: Source,
    *,
    format: str,
    variant: str,
    machine: str | None = None,
    ram_below_4g: int | None = None,
    lacks: PageRuns = EMPTY,
) -> Dump:
    """Open a stream.

    Args:
        source: the stream, from its first byte.
        format: name of the format that was asked to open it.
        variant: what the stream is, for people.
        machine: type of the machine, where the user says it.
        ram_below_4g: bytes of RAM below 4 GiB, where the user says so.
        lacks: bytes of the stream that are missing in the file, and read as zero.

    Raises:
        UnsupportedFeatureError: another version of the stream, or a machine whose layout is not known.
        CorruptDumpError: the stream contradicts itself.
    """
    stream = read_stream(source)
    if lacks.count:
        stream.damage.insert(0, f"{lacks.count:,} bytes of the stream are missing: their clusters are not in the file")
    table = stream.table
    assert table is not None
    states = devices(stream)
    board = board_of(machine or stream.machine, [block.name for block in table.blocks])
    chipset = read_chipset(states, table.blocks)
    if not (machine or stream.machine) and ram_below_4g is None and chipset.above_4g is None:
        need_type(board, table.blocks)
    layout = lay_out(board, table.blocks, below_4g=ram_below_4g, chipset=chipset)
    arch, endian, cpus = read_cpus(states, board.arch)
    if not cpus:
        stream.remarks.append("registers are not read: the processors' states are not there, or not described")
    pages = _store(stream, table, layout, lacks)
    _complain(stream, layout, pages)
    vmcoreinfo = _vmcoreinfo(states, pages, endian, stream.remarks)
    return Dump(
        format=format,
        variant=variant,
        machine=Machine(arch, endian, stream.page_size, release=vmcoreinfo.release if vmcoreinfo else None),
        pages=pages,
        sources=(source,),
        cpus=cpus,
        vmcoreinfo=vmcoreinfo,
        attributes=_attributes(stream, layout, table),
        remarks=(*stream.remarks, *layout.remarks),
        damage=tuple(stream.damage),
    )


def _store(stream: Stream, table: BlockTable, layout: GuestLayout, lacks: PageRuns) -> StreamStore:
    return StreamStore(
        stream.source,
        stream.page_size,
        stream.page_size if table.mapped else stream.page_size + 8,
        stream.log,
        layout.placements,
        table.base,
        cut=bool(stream.damage or _sent_elsewhere(stream)),
        gaps=stream.gaps,
        lacks=lacks,
    )


def _sent_elsewhere(stream: Stream) -> bool:
    """Tell whether pages went over other connections (multifd).

    QEMU up to 7.2 leaves no mark of that. But no machine has nothing but zeros in its memory and its firmware, and what
    a stream leaves out for other reasons is not all the rest.
    """
    return bool(stream.flushes) or not (stream.log.has_content() or _IGNORE in stream.capabilities)


def _vmcoreinfo(
    states: Sequence[DeviceState], pages: StreamStore, endian: Endian, remarks: list[str]
) -> VmCoreInfo | None:
    """Read the note whose place the guest told QEMU's vmcoreinfo device."""
    state = next((state for state in states if state.name == "vmcoreinfo"), None)
    if state is None or not state.number("has_vmcoreinfo") or state.number("vmcoreinfo.guest_format") != _ELF_NOTE:
        return None
    address, size = state.number("vmcoreinfo.paddr") or 0, state.number("vmcoreinfo.size") or 0
    try:
        return VmCoreInfo.from_note(PhysicalMemory(pages).read(address, min(size, MAX_BYTES)), endian)
    except (PageUnavailableError, CorruptDumpError) as error:
        remarks.append(f"the guest's vmcoreinfo at {address:#x} is not read: {error}")
        return None


def _complain(stream: Stream, layout: GuestLayout, pages: StreamStore) -> None:
    """Say which memory is missing."""
    if pages.newer:
        stream.damage.append(_older(pages))
    if pages.unsent and (stream.flushes or (not stream.damage and _sent_elsewhere(stream))):
        sign = "" if stream.flushes else "; what it does hold are zero pages"
        stream.damage.append(
            f"{pages.unsent:,} pages went over other connections (multifd), which the file does not hold{sign}"
        )
    elif pages.unsent and not stream.damage:
        why = (
            "shared memory, which stays in a file of its own"
            if _IGNORE in stream.capabilities
            else "what the guest called free"
        )
        stream.remarks.append(f"{pages.unsent:,} pages of RAM are not in the stream: QEMU leaves out {why}")
    stream.damage += layout.damage
    if not stream.machine:
        stream.remarks.append(f"the stream names no type of machine: taken for {layout.board.name}")


def _older(pages: StreamStore) -> str:
    """Say which pages may have changed later than the file tells."""
    start, count = (column[:_RUNS_TOLD].tolist() for column in pages.older.runs())
    size, more = pages.page_size, len(pages.older.runs()[0]) > _RUNS_TOLD
    where = ", ".join(
        f"{first * size:#x} to {(first + length) * size:#x}" for first, length in zip(start, count, strict=True)
    )
    return (
        f"up to {pages.newer:,} of {pages.older.count:,} pages may be as they were before: newer copies of them may be "
        f"lost with what is passed over ({where}{', ...' if more else ''})"
    )


def _attributes(stream: Stream, layout: GuestLayout, table: BlockTable) -> dict[str, int | str]:
    """Say what the headers hold."""
    found: dict[str, int | str] = {"machine": stream.machine or "unknown", "board": layout.board.name}
    if stream.uuid:
        found["uuid"] = stream.uuid
    if stream.capabilities:
        found["capabilities"] = ", ".join(sorted(stream.capabilities))
    if layout.board.split:
        found["ram_below_4g"] = hex(layout.below_4g)
    unplaced = {table.blocks[number].name for number in layout.unplaced}
    found["ram_blocks"] = ", ".join(
        f"{block.name} {block.length:#x}{' (not in memory)' if block.name in unplaced else ''}"
        for block in table.blocks
    )
    found["ram_sections"] = stream.rounds
    found["devices"] = len(stream.sections)
    return found
