"""What the states of devices tell about where memory lies.

Sources: qemu hw/i386/pc.c (pc_cmos_init), hw/pci-host/i440fx.c, q35.c, pam.c, hw/display/vga.c, qxl.c,
vmware_vga.c, hw/misc/ivshmem.c; the headers of the PCI specification.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from dumpxlate.qemu.layout import UNKNOWN, Chipset, Window

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dumpxlate.qemu.devices import DeviceState
    from dumpxlate.qemu.layout import Block

__all__ = ["read_chipset"]

_PAM = {"I440FX": 0x59, "mch": 0x90}
"""First of the seven PAM registers in the configuration space of a host bridge."""

_READ_FROM_RAM = 1
_CMOS = 128
"""Bytes of CMOS, which stand first in the clock's state."""

_CMOS_ABOVE = slice(0x5B, 0x5E)
"""RAM above 4 GiB in units of 64 KiB."""

_CMOS_EXTENDED, _CMOS_BELOW = slice(0x30, 0x32), slice(0x34, 0x36)
"""RAM from 1 MiB on in KiB, which reaches to 64 MiB; RAM from 16 MiB up to 4 GiB in units of 64 KiB."""

_ALL_PLANES, _CHAIN_4 = 0x0F, 0x08
_VBE_ENABLE = 4
_WINDOWS = ((0xA0000, 0x20000), (0xA0000, 0x10000), (0xB0000, 0x8000), (0xB8000, 0x8000))
"""Where the memory of a screen is seen by the bits 2 and 3 of its graphics register 6."""

_MEMORY_ENABLED = 2
_COMMAND, _BAR, _ROM_BAR, _HEADER = 0x04, 0x10, 0x30, 0x40
_PORTS, _ROM_ENABLED = 1, 1
"""Lowest bits of a BAR that leads to ports, not memory, and of that of a ROM."""

_BARS = {"vga.vram": 0, "qxl.vgavram": 0, "qxl.vram": 1, "qxl.vrom": 2, "vmsvga.fifo": 2, "bochs-display-vram": 0}
"""Number of the BAR behind which a device's block is, by the end of its name."""
_SHARED_MEMORY = re.compile(r"ivshmem(-plain|-doorbell)?")
_SHARED_MEMORY_BAR = 2
"""Its block has the name that the user gave the backend."""

_CLASS, _SCREEN = 0x0B, 3


def read_chipset(states: Sequence[DeviceState], blocks: Sequence[Block]) -> Chipset:
    """Read what is known of a PC's chipset.

    Args:
        states: of all devices.
        blocks: the RAM blocks; those of PCI devices begin with the device's place.
    """
    above, size, shadowed = None, None, UNKNOWN.shadowed
    for state in states:
        kind = state.name.split("/")[-1]
        if kind == "mc146818rtc" and len(state.body) >= _CMOS:
            above = int.from_bytes(state.body[_CMOS_ABOVE], "little") << 16
            size = _size(state.body, above)
        elif kind in _PAM and len(config := state.config()) == 256:
            shadowed = _shadowed(config[_PAM[kind] : _PAM[kind] + 7])
    windows = tuple(filter(None, map(_window, states)))
    return Chipset(above, shadowed, _bars(states, blocks), windows, size)


def _bars(states: Sequence[DeviceState], blocks: Sequence[Block]) -> dict[str, int]:
    """Give where the blocks of PCI devices are seen, -1 where one is not, nothing for those that nothing is known of.

    Of a device with two states (virtio-vga) one has the configuration. On machines before 2.4, and with VMware's
    screen, a block has no place in its name: then it is the screen's, if there is but one.
    """
    configs = {state.place: config for state in states if len(config := state.config()) >= _HEADER}
    shared = {state.place for state in states if _SHARED_MEMORY.fullmatch(state.name.partition("/")[2])}
    screens = [place for place, config in configs.items() if config[_CLASS] == _SCREEN]
    found = {}
    for block in blocks:
        place, slash, name = block.name.rpartition("/")
        if not slash and len(screens) == 1 and name in _BARS:
            place = screens[0]
        number = _SHARED_MEMORY_BAR if place in shared else _BARS.get(name, -1)
        address = _bar(block, number, configs.get(place, b""))
        if address is not None:
            found[block.name] = address
    return found


def _size(cmos: bytes, above: int) -> int | None:
    """Give how much RAM a machine began with; None where it does not say, or has less than 1 MiB."""
    extended, below = (int.from_bytes(cmos[part], "little") for part in (_CMOS_EXTENDED, _CMOS_BELOW))
    if not extended and not below:
        return None
    return above + ((16 << 20) + (below << 16) if below else (1 << 20) + (extended << 10))


def _shadowed(pam: bytes) -> tuple[bool, ...]:
    """Read the PAM registers: of the first only the upper half counts, for 0xf0000; then two areas in each."""
    halves = [half for register in pam[1:] for half in (register & 0xF, register >> 4)]
    return tuple(bool(half & _READ_FROM_RAM) for half in (*halves, pam[0] >> 4))


def _bar(block: Block, number: int, config: bytes) -> int | None:
    """Give where a PCI device's block is seen, -1 where it is not, None where that is not known.

    Args:
        block: the block.
        number: of the BAR; -1 where that is not known.
        config: the device's configuration space.
    """
    if not config:
        return None
    if block.name.endswith("vga.vram") and config[_BAR] & _PORTS:
        number = 1  # VMware's has its ports there
    at, width, mask = _BAR + 4 * number, 4, ~0xF
    if block.name.endswith(".rom"):
        at, mask = _ROM_BAR, ~0x7FF
        if not config[at] & _ROM_ENABLED:
            return -1
    elif number < 0 or config[at] & _PORTS:
        return None
    elif config[at] & 6 == 4:
        width = 8
    address = int.from_bytes(config[at : at + width], "little") & mask
    if not config[_COMMAND] & _MEMORY_ENABLED:
        return -1
    return address if address and address % (block.length or 1) == 0 and address < 1 << 52 else -1


def _window(state: DeviceState) -> Window | None:
    """Tell what is seen of a screen's memory in the VGA window as it is (vga_update_memory_access)."""
    sequencer, graphics = state.bytes_of("vga/sr"), state.bytes_of("vga/gr")
    if len(sequencer) < 5 or len(graphics) < 7 or not state.place:
        return None
    vbe = state.numbers("vga/vbe_regs")
    enabled = len(vbe) > _VBE_ENABLE and vbe[_VBE_ENABLE] & 1
    if not enabled and (sequencer[2] & _ALL_PLANES != _ALL_PLANES or not sequencer[4] & _CHAIN_4):
        return None
    choice = graphics[6] >> 2 & 3
    start, length = _WINDOWS[choice]
    bank = (state.number("vga/bank_offset") or 0) if choice == 1 else 0
    return Window(f"{state.place}/vga.vram", start, length, bank)
