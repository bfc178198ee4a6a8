"""The command line of a process, from its stack; what QEMU was told of its machine there.

The kernel puts the arguments at the end of the stack::

    argc | argv[0] ... argv[argc - 1] 0 | environment ... 0 | auxiliary vector ... 0 | strings

NT_PRPSINFO has only 80 bytes of them, and libvirt's command lines have thousands.

Sources: linux fs/binfmt_elf.c (create_elf_tables); qemu-options.hx.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from dumpxlate.errors import CorruptDumpError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dumpxlate.formats.qemu_core.process import Process

__all__ = ["MachineOptions", "arguments", "has_default_pc", "machine_options", "shown_arguments"]

_AT_RANDOM = 25
_SHOWN = 79
_STACK = 8 << 20
_WORDS = 1 << 16
_ARGUMENT = 1 << 16
_FIRST = {"machine": "type", "M": "type", "m": "size"}
"""Options, and what their first value is where it has no name."""
_SIZE = re.compile(r"(\d{1,18})([bkmgt]?)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class MachineOptions:
    """What ``-machine`` and ``-m`` say; None where they do not.

    Attributes:
        type: of the machine.
        ram_below_4g: bytes of RAM below 4 GiB at most.
        memory: bytes of RAM that the machine begins with.
    """

    type: str | None = None
    ram_below_4g: int | None = None
    memory: int | None = None


def arguments(process: Process) -> tuple[str, ...]:
    """Give the arguments of a process; none where they are not in the core."""
    try:
        return _arguments(process)
    except (CorruptDumpError, struct.error):
        return ()


def shown_arguments(process: Process) -> tuple[str, ...]:
    """Give the arguments that NT_PRPSINFO shows, without one that is cut."""
    words = process.arguments.split()
    return tuple(words[:-1] if len(process.arguments) >= _SHOWN else words)


def _arguments(process: Process) -> tuple[str, ...]:
    near = process.auxv.get(_AT_RANDOM)
    memory, size = process.memory, process.pointer
    if near is None or not process.auxv:
        return ()
    held = memory.held(near)
    low = max(held[0], near - _STACK) if held else near
    stack = memory.read(low, near - low, "stack")
    word = process.endian + ("Q" if size == 8 else "I")
    head = [value for pair in list(process.auxv.items())[:3] for value in pair]
    at = stack.rfind(struct.pack(process.endian + word[1] * len(head), *head))
    if at < 0:
        return ()
    words = np.frombuffer(
        stack, f"{process.endian}u{size}", min(at // size, _WORDS), at - min(at // size, _WORDS) * size
    )
    ends = np.flatnonzero(words == 0)  # of the arguments, then of the environment
    if len(ends) < 2:
        return ()
    # Behind argc as many pointers follow as it says; nothing else before them does that.
    stop = int(ends[-2])
    for count in range(1, stop):
        if int(words[stop - count - 1]) == count:
            return tuple(_string(process, int(each)) for each in words[stop - count : stop])
    return ()


def _string(process: Process, at: int) -> str:
    memory = process.memory
    held = memory.held(at)
    data = memory.read(at, min(held[1] - at, _ARGUMENT) if held else 1, "argument")
    return data.partition(b"\0")[0].decode("utf-8", "replace")


def machine_options(words: Sequence[str]) -> MachineOptions:
    """Read ``-machine``, ``-M`` and ``-m``; later ones add to earlier ones."""
    found: dict[str, str] = {}
    for option, value in pairwise(words):
        first = _FIRST.get(option.lstrip("-")) if option.startswith("-") else None
        for number, part in enumerate(value.split(",") if first else ()):
            key, equals, text = part.partition("=")
            if equals:
                found[key] = text
            elif number == 0 and first:
                found[first] = key
    below, size = found.get("max-ram-below-4g", ""), found.get("size", "")
    return MachineOptions(found.get("type"), _bytes(below), _bytes(f"{size}m" if size.isdecimal() else size))


def has_default_pc(process: Process, words: Sequence[str]) -> bool:
    """Whether a PC whose command line names no machine is of type pc.

    That is so for the programs of QEMU itself. Those that distributions make have defaults of their own (qemu-kvm,
    qemu-system-x86_64-microvm), and a file of options may name a machine.
    """
    if not words or any(word in ("-readconfig", "--readconfig") for word in words):
        return False
    name = process.program_files[0].name if process.program_files else words[0]
    return name.removesuffix(" (deleted)").rpartition("/")[2] in ("qemu-system-x86_64", "qemu-system-i386")


def _bytes(text: str) -> int | None:
    match = _SIZE.fullmatch(text)
    return int(match[1]) << {"k": 10, "m": 20, "g": 30, "t": 40}.get(match[2].lower(), 0) if match else None
