"""Which of a machine's RAM blocks are its memory.

A board gives its memory a name of its own. Where the user gave it backends instead, one for all memory or one for each
NUMA node, blocks have the names of those; and DIMMs that were plugged in have backends too, which nothing but the name
tells from the others. How much memory the machine began with, which a PC has in its CMOS, tells which they are.

Sources: qemu hw/core/machine.c (machine_run_board_init), hw/core/numa.c, hw/mem/pc-dimm.c, hw/tpm/tpm_ppi.c; libvirt
src/qemu/qemu_alias.c (qemuAssignDeviceMemoryAlias), qemu_command.c (qemuBuildMemoryCellBackendProps).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import chain, combinations
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["MainMemory", "find_memory", "is_device_ram", "listed", "main_memory"]

_MAIN = {
    "pc.ram", "microvm.ram", "s390.ram", "ppc_spapr.ram", "ppc_core99.ram", "ppc_heathrow.ram", "mach-virt.ram",
    "riscv_virt_board.ram",
}  # fmt: skip
"""Names that boards give their memory, and libvirt too."""

_PCI = r"[0-9a-f]{4,8}:[0-9a-f]{2}:.*"
_OWN = r"(.*/)?(synic-[0-9]+-(msg|event)-page|tpm-crb-cmd|mach-virt\.(secure-)?tag)"
"""Memory of devices without a place on a bus: Hyper-V's pages, the TPM's command buffer, Arm's memory tags."""
_NO_MEMORY = re.compile(
    rf"/rom@.*|{_PCI}|.*(\.|-|/)(v?ram|rom|bios|fifo|mrom)[0-9]*|.*\.flash[0-9]*|isa-bios|.*vram.*|(.*/)?tpm-ppi|{_OWN}"
)
"""Names of blocks that are certainly not main memory; those in _MAIN are looked for first."""

_DEVICE_RAM = re.compile(rf"(?!.*\.rom$)(?:{_PCI}|{_OWN}|(vga|qxl)\.(vga)?v(ram|rom)|vmsvga\.fifo)")
"""Names of blocks that QEMU's own dumps have where the guest sees them: not the ROM of a card, which it hardly ever
does, and not the TPM's page (tpm-ppi), which is left out there too (memory_region_is_ram_device)."""

_OBJECTS = "/objects/"
"""Stands before the names of backends on machines before 4.0."""

_NODE = re.compile(r"ram-node[0-9]+")
"""What libvirt calls the memory of a NUMA node."""

_PLUGGED = re.compile(r"(mem)?((nv)?dimm|virtiop?mem|epc)[-_.]?[0-9]*|[npv]mem[-_.]?[0-9]*")
"""What libvirt and QEMU's documentation call the memory of a DIMM and the like."""

_SLACK = 128 << 10
"""Bytes that the CMOS may leave out: it counts in units of 64 KiB, below and above 4 GiB."""

_WRAPS = 1 << 40
"""Where the CMOS begins at zero again."""

_MOST_BACKENDS = 12
"""Blocks whose sums are looked at: one more doubles the work."""

_TOLD = 16
"""Blocks that a message names."""


@dataclass(frozen=True, slots=True)
class MainMemory:
    """The blocks that are a machine's memory.

    Attributes:
        blocks: their numbers, in the order in which they follow each other.
        apart: numbers of blocks that were plugged in, whose address nothing tells.
        doubt: why it may be others, or these in another order; "" where that is certain.
    """

    blocks: tuple[int, ...]
    apart: tuple[int, ...] = ()
    doubt: str = ""


def listed(names: Sequence[str]) -> str:
    """Name blocks, the first few of many."""
    more = len(names) - _TOLD
    return ", ".join(names[:_TOLD]) + (f" and {more:,} more" if more > 0 else "")


def is_device_ram(name: str) -> bool:
    """Tell whether a block is memory of a device that the guest may see."""
    return bool(_DEVICE_RAM.fullmatch(name))


def main_memory(names: Sequence[str]) -> tuple[int, ...]:
    """Find the blocks that are the machine's memory by their names, in the order in which they follow each other.

    That is the one with the name that the machine gives it, or else the backends that the user named, without those
    that have the names of DIMMs; those of NUMA nodes follow each other by the numbers in their names.
    """
    known = tuple(number for number, name in enumerate(names) if _short(name) in _MAIN)
    if known:
        return known[:1]
    backends = _backends(names)
    nodes = [number for number in backends if _NODE.fullmatch(_short(names[number]))]
    fixed = [number for number in backends if not _PLUGGED.fullmatch(_short(names[number]))]
    return _in_order(names, nodes or fixed or backends)


def find_memory(names: Sequence[str], lengths: Sequence[int], told: int | None = None) -> MainMemory:
    """Find the blocks that are the machine's memory.

    Args:
        names: of all RAM blocks.
        lengths: their bytes.
        told: bytes that the machine began with, as its CMOS tells; None where nothing tells.
    """
    usual, backends = main_memory(names), [number for number in _backends(names) if lengths[number]]
    if any(_short(names[number]) in _MAIN for number in usual) or len(backends) < 2:
        return _memory(backends, usual)
    if told is not None and sum(lengths[number] for number in usual) != told:
        fitting = _of_size(lengths, backends, told)
        usual = _in_order(names, fitting[0]) if fitting else usual
        if len(fitting) > 1:
            every, taken = ([names[number] for number in some] for some in (backends, usual))
            why = f"{listed(every)}: which of them the machine began with is not told; {listed(taken)} is taken"
            return _memory(backends, usual, why)
    return _memory(backends, usual, _doubt(names, lengths, usual, told))


def _doubt(names: Sequence[str], lengths: Sequence[int], blocks: Sequence[int], told: int | None) -> str:
    """Say why several blocks may not be what they are taken for; "" where their names or their size tell."""
    if len(blocks) == 1 or all(_NODE.fullmatch(_short(names[number])) for number in blocks):
        return ""
    if told is None or not _fits(sum(lengths[number] for number in blocks), told, _SLACK):
        why = "whether these are NUMA nodes or DIMMs that were plugged in is not told"
    elif len({_natural(names[number])[0] for number in blocks}) > 1:
        why = "in which order these NUMA nodes follow each other is not told"
    else:
        return ""
    return f"{listed([names[number] for number in blocks])}: {why}; they are laid out one behind the other"


def _memory(backends: Iterable[int], blocks: tuple[int, ...], doubt: str = "") -> MainMemory:
    taken = set(blocks)
    apart = tuple(number for number in backends if number not in taken)
    return MainMemory(blocks, apart, doubt)


def _of_size(lengths: Sequence[int], backends: Sequence[int], told: int) -> list[tuple[int, ...]]:
    """Find the choices of backends that have a size together."""
    if len(backends) > _MOST_BACKENDS:
        return []
    every = list(chain.from_iterable(combinations(backends, count) for count in range(1, len(backends) + 1)))
    for slack in (1, _SLACK):
        fitting = [each for each in every if _fits(sum(lengths[number] for number in each), told, slack)]
        if fitting:
            return fitting
    return []


def _fits(size: int, told: int, slack: int) -> bool:
    return (size - told) % _WRAPS < slack


def _backends(names: Sequence[str]) -> list[int]:
    """Give the blocks that may be memory, by their names."""
    short = [_short(name) for name in names]
    return [number for number, name in enumerate(short) if name in _MAIN or not _NO_MEMORY.fullmatch(name)]


def _short(name: str) -> str:
    return name.removeprefix(_OBJECTS)


def _in_order(names: Sequence[str], numbers: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(numbers, key=lambda number: _natural(names[number])))


def _natural(name: str) -> tuple[str, int]:
    stem = name.rstrip("0123456789")
    return stem, int(name[len(stem) :] or 0) if len(name) - len(stem) < 10 else 0
