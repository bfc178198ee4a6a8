"""Kinds of machines: where each has its memory, and which type of machine is of which kind.

Sources: qemu hw/i386/pc_piix.c, pc_q35.c, microvm.c, xen/xen-hvm.c (xen_ram_init); hw/arm/virt.c, hw/riscv/virt.c,
hw/ppc/mac_newworld.c, spapr.c, hw/s390x/s390-virtio-ccw.c. Checked against ``info mtree -f`` of 7.2.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dumpxlate.errors import UnsupportedFeatureError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Board", "board_of"]

_4GIB = 4 << 30


@dataclass(frozen=True, slots=True)
class Board:
    """A kind of machine.

    Attributes:
        name: what users call it.
        arch: architecture, of those that may have this board the usual one.
        ram: address where memory begins.
        limit: a PC: RAM of this size and more is split.
        split: a PC: bytes that stay below 4 GiB then; 0 on machines without such a hole.
        raises: whether ``max-ram-below-4g`` may be more than the limit, which it takes the place of.
        pam: whether RAM can be switched in front of the ROMs below 1 MiB.
        roms: address of a block by its name.
        hidden: ranges (start, length) where something else than RAM is seen.
    """

    name: str
    arch: str
    ram: int = 0
    limit: int = 0
    split: int = 0
    raises: bool = False
    pam: bool = False
    roms: tuple[tuple[str, int], ...] = ()
    hidden: tuple[tuple[int, int], ...] = ()

    def below_4g(self, size: int, most: int | None = None) -> int:
        """Give how many of a machine's bytes of RAM lie below 4 GiB.

        Args:
            size: bytes of RAM in all.
            most: what ``max-ram-below-4g`` was set to; None where it was not given.
        """
        if not self.split:
            return size
        if self.raises:
            most = most or self.limit
            low = min(most, self.split) if size >= most and self.split < self.limit else most
        else:
            low = min(self.split if size >= self.limit else self.limit, most or _4GIB)
        return min(size, low)


_I440FX = Board("pc", "x86_64", limit=0xE0000000, split=0xC0000000, raises=True, pam=True)
_BOARDS: tuple[tuple[re.Pattern[str], Board], ...] = (
    (re.compile(r"isapc"), Board("isapc", "x86_64", limit=0xE0000000, split=0xE0000000, raises=True)),
    (re.compile(r"(pc-)?q35.*|.*-q35.*"), Board("q35", "x86_64", limit=0xB0000000, split=0x80000000, pam=True)),
    (
        # Split at 3.5 GiB until 2.0, so that large pages did not fit.
        re.compile(r"pc-(i440fx-)?[01]\..*|rhel[56]\..*"),
        Board("pc", "x86_64", limit=0xE0000000, split=0xE0000000, raises=True, pam=True),
    ),
    (re.compile(r"microvm"), Board("microvm", "x86_64", limit=0xC0000000, split=0xC0000000)),
    (re.compile(r"xenfv.*|xenpv"), Board("xenfv", "x86_64", limit=0xF0000000, split=0xF0000000, pam=True)),
    (re.compile(r"pc|pc-i440fx.*|.*-i440fx.*"), _I440FX),
    (re.compile(r"s390-ccw-virtio.*"), Board("s390-ccw-virtio", "s390x")),
    (re.compile(r"pseries.*"), Board("pseries", "ppc64")),
    (
        re.compile(r"mac99|g3beige"),
        # The NVRAM stands before the middle of the firmware.
        Board("mac99", "ppc64", roms=(("ppc_core99.bios", 0xFFF00000),), hidden=((0xFFF04000, 0x4000),)),
    ),
)
_VIRT = {
    "mach-virt.ram": Board("virt", "aarch64", ram=0x40000000),
    "riscv_virt_board.ram": Board("virt", "riscv64", ram=0x80000000),
}
"""Machines called "virt", which several architectures have, by the name of their memory."""

_BY_MEMORY = {"pc.ram": _I440FX, "s390.ram": Board("s390-ccw-virtio", "s390x"), **_VIRT}


def board_of(machine: str, names: Iterable[str] = ()) -> Board:
    """Find the kind of a machine.

    Args:
        machine: its type as ``-machine`` names it ("pc-q35-7.2", "virt"), or "" where nothing tells.
        names: names of its RAM blocks, which tell where the type does not.

    Raises:
        UnsupportedFeatureError: nobody told this program where such a machine has its memory.
    """
    names = tuple(names)
    if machine == "virt" or machine.startswith("virt-"):
        return next((_VIRT[name] for name in names if name in _VIRT), _VIRT["mach-virt.ram"])
    if not machine:
        board = next((_BY_MEMORY[name] for name in names if name in _BY_MEMORY), None)
    else:
        board = next((board for pattern, board in _BOARDS if pattern.fullmatch(machine)), None)
    if board is None:
        raise UnsupportedFeatureError(
            f"a machine of type {machine or 'unknown'}: where its memory lies is not known; --machine-type names one "
            "with the same layout (pc, q35, isapc, microvm, virt, pseries, mac99, s390-ccw-virtio)",
            feature="machine type",
        )
    return board
