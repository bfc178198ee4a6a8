"""The guest's memory without debug information: RAM blocks by their looks, their places by the type of the machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dumpxlate.errors import UnsupportedFeatureError
from dumpxlate.formats.qemu_core.block_search import BlockList, find_blocks
from dumpxlate.formats.qemu_core.missing import LIMITS
from dumpxlate.formats.qemu_core.ram import GuestRam
from dumpxlate.formats.qemu_core.shared_only import only_memory
from dumpxlate.qemu.layout import Block, Chipset, board_of, lay_out, need_type

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dumpxlate.formats.qemu_core.process import Process

__all__ = ["Inferred", "infer_ram"]


@dataclass(frozen=True, slots=True)
class Inferred:
    """Guest memory that was inferred.

    Attributes:
        ram: the memory.
        evidence: what it was inferred from, for people.
        attributes: for info to show.
    """

    ram: GuestRam
    evidence: tuple[str, ...]
    attributes: dict[str, int | str]


def infer_ram(
    process: Process, machine: str | None, below_4g: int | None, told: str, *, size: int | None, x86: bool
) -> Inferred:
    """Find RAM blocks, and lay them out.

    Args:
        process: the process.
        machine: type of the machine; None where nothing tells.
        below_4g: bytes of RAM below 4 GiB, where somebody says so.
        told: who says what type of machine it is.
        size: bytes of RAM that it began with; None where nothing tells.
        x86: whether it is a PC.

    Raises:
        UnsupportedFeatureError: no RAM block is found, or the machine's layout is not known.
    """
    found, found_by, remarks = _find(process)
    # Memory of passed-through devices has no name, and is no guest memory.
    blocks = [block for block in found.blocks if block.name]
    sizes = [Block(block.name, block.length) for block in blocks]
    if not machine and x86:
        machine, told = _any_pc(sizes)
    board = board_of(machine or "", [block.name for block in blocks])
    layout = lay_out(board, sizes, below_4g=below_4g, chipset=Chipset(size=size))
    evidence = (
        (
            f"inferred, without debug information: {len(found.blocks)} RAM blocks, found by {found_by}, are laid out "
            f"as on a machine of type {board.name} ({told})"
        ),
        *remarks,
        *layout.remarks,
    )
    attributes: dict[str, int | str] = {"board": board.name}
    if board.split:
        attributes["ram_below_4g"] = hex(layout.below_4g)
    rows = [(each.start, each.length, blocks[each.block].host + each.offset) for each in layout.placements]
    apart = [f"{said}; debug information tells it (--debug-file, --profile)" for said in layout.damage]
    return Inferred(GuestRam.of(rows, found.blocks, (*found.damage, *apart)), evidence, attributes)


def _find(process: Process) -> tuple[BlockList, str, tuple[str, ...]]:
    """Find RAM blocks, how they are found, and what is to be said of that.

    Raises:
        UnsupportedFeatureError: there is none.
    """
    found = find_blocks(process)
    if found.blocks:
        return found, "their names and their list", ()
    block = only_memory(process)
    if block:
        said = (
            "only shared memory is in the core: what the guest had beside it (ROMs, memory of devices, memory that was "
            "not shared) is missing, and nothing tells how much that is: set bit 0 of /proc/PID/coredump_filter, too"
        )
        return BlockList((block,)), "size alone, since QEMU's own structures are not in the core", (said,)
    if process.memory.lost:
        raise UnsupportedFeatureError(
            f"no guest memory is found: truncated: {process.memory.lost:,} bytes that the core promises lie beyond its "
            f"end, and QEMU's own structures with them: {LIMITS}",
            format="qemu_core",
            feature="RAM blocks",
        )
    raise UnsupportedFeatureError(
        "no RAM block is found by its looks: give the debug information of this QEMU (--debug-file), a profile of "
        "it (--profile), or the memory by hand (--ram-block START:LENGTH:HVA)",
        format="qemu_core",
        feature="RAM blocks",
    )


def _any_pc(blocks: Sequence[Block]) -> tuple[str, str]:
    """Give the type of a PC that nothing names, and how it is known; one that stands for both usual kinds.

    Raises:
        UnsupportedFeatureError: the memory is so large that they differ.
    """
    if any(block.name == "microvm.ram" for block in blocks):
        return "microvm", "the names of the blocks"
    need_type(board_of("pc"), blocks)
    return "pc", "pc and q35 are alike with so little memory"
