"""What formats of bare memory have in common: raw images, LiME and AVML hold addresses and bytes, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dumpxlate.arch import by_name
from dumpxlate.dump import Machine
from dumpxlate.format import Loss, require_physical
from dumpxlate.window import Window

if TYPE_CHECKING:
    from dumpxlate.dump import Dump
    from dumpxlate.format import WriteOptions
    from dumpxlate.pageset import PageSet

__all__ = ["ASSUMED", "assumed_machine", "chosen_pages", "lost_facts", "lost_pages"]

ASSUMED = "the file does not name the machine: x86-64, little-endian, pages of 4 KiB are assumed"
"""What a reader says of the machine that it made up."""


def assumed_machine() -> Machine:
    """Make up the machine of a dump that says nothing of it."""
    return Machine(arch=by_name("x86_64"), endian="<", page_size=4096)


def chosen_pages(dump: Dump, options: WriteOptions, format: str) -> tuple[PageSet, PageSet]:
    """Give the RAM that is to be written, and the pages of it that have content.

    Args:
        dump: what is to be written.
        options: what the user asks.
        format: name of the target, for messages.

    Raises:
        MapError: the dump is keyed by machine frames.
        UnsupportedFeatureError: there is no RAM in the range.
    """
    require_physical(dump, format)
    window = Window.of(dump.pages, options)
    return window.cut(dump.pages.ram), window.cut(dump.pages.stored)


def lost_facts(dump: Dump, format: str, *, machine: bool = True) -> tuple[Loss, ...]:
    """Say what of a dump, its pages aside, is lost in a format of bare memory.

    Args:
        dump: what is to be written.
        format: name of the target.
        machine: whether its reader cannot know the machine.
    """
    lost = [f"registers of {len(dump.cpus)} vcpus"] if dump.cpus else []
    lost += ["VMCOREINFO"] if dump.vmcoreinfo else []
    lost += ["ELF notes"] if dump.notes else []
    lost += [f"block {name}" for name in dump.blocks]
    lost += ["the p2m map"] if dump.p2m else []
    mine, theirs = dump.machine, assumed_machine()
    if machine and (mine.arch.name, mine.endian, mine.page_size) != ("x86_64", theirs.endian, theirs.page_size):
        lost.append(f"that the machine is {mine.arch.name} with pages of {mine.page_size:,} bytes")
    return tuple(Loss(what, f"{format} holds memory only") for what in lost)


def lost_pages(ram: PageSet, stored: PageSet, format: str) -> tuple[Loss, ...]:
    """Say that left-out pages cannot be told from holes in a format that lists what it has."""
    missing = ram.count - stored.count
    lost = Loss(f"that {missing:,} pages are RAM", f"{format} does not tell left-out pages from holes")
    return (lost,) if missing else ()
