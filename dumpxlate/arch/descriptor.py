"""What the program knows of an architecture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from dumpxlate.arch.registers import RegisterLayout
    from dumpxlate.structs import Endian

__all__ = ["Arch"]


@dataclass(frozen=True, slots=True)
class Arch:
    """One architecture.

    Attributes:
        name: as ``uname -m`` says it, without byte order or revision.
        elf_machine: ``e_machine``.
        word_bits: width of a general register.
        endians: the byte orders it is found with, the usual one first.
        page_size: the usual one; a dump may say another.
        prstatus: Linux's NT_PRSTATUS desc, in full.
        prstatus_pid: offset of ``pr_pid`` (u32) in it.
        pc: name of the instruction pointer.
        sp: name of the stack pointer.
        other_prstatus: forms that other producers gave the note, told apart by their size.
    """

    name: str
    elf_machine: int
    word_bits: Literal[32, 64]
    endians: tuple[Endian, ...]
    page_size: int
    prstatus: RegisterLayout
    prstatus_pid: int
    pc: str
    sp: str
    other_prstatus: tuple[RegisterLayout, ...] = ()
