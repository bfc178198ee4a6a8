"""qemu_core: guest memory inside the core of a QEMU process (kernel, gcore, systemd-coredump).

::

    ELF core of a process: PT_LOAD at host addresses; notes: NT_PRPSINFO, NT_AUXV, NT_FILE, a few for each thread
    address_space_memory.current_map -> FlatView -> FlatRange[] -> MemoryRegion (-> alias ...) -> RAMBlock.host

The guest's memory is what QEMU mapped for it; which guest-physical range lies where stands in QEMU's own structures.
Where those are comes from the debug information of the very build, from a profile made of that, or from the user
(``--ram-block``). Without any of them RAM blocks are found by their looks, and laid out by the type of the machine.
Ranges count as in QEMU's own dumps: RAM and ROM, but neither memory of passed-through devices nor regions that are
marked as non-volatile.
Nothing is copied: pages are read where they lie in the core.

Sources: qemu scripts/dump-guest-memory.py, system/memory.c, system/memory_mapping.c, hw/misc/vmcoreinfo.c (releases
2.0 to 10.2); linux fs/binfmt_elf.c; core(5).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from dumpxlate.errors import UnsupportedFeatureError
from dumpxlate.format import Confidence, Match, only_one

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dumpxlate.dump import Dump
    from dumpxlate.format import OpenOptions, WriteOptions
    from dumpxlate.io.source import Source

__all__ = ["FORMAT"]

_MAGIC = b"\x7fELF"


class QemuCoreFormat:
    """Reads cores of QEMU processes."""

    name = "qemu_core"
    title = "core of a QEMU process (kernel, gcore, systemd-coredump)"
    suffixes = ()
    writes = False
    options: tuple[str, ...] = ()
    codecs: tuple[str, ...] = ("none",)

    def detect(self, source: Source) -> Match | None:
        """Recognise the core of a process whose name, or whose program, is QEMU's."""
        if source.size < 64 or source.view(0, len(_MAGIC)) != _MAGIC:
            return None
        from dumpxlate.formats.qemu_core.recognise import qemu_program

        program = qemu_program(source)
        return Match(Confidence.SPECIFIC, f"core of {program}") if program else None

    def open(self, sources: Sequence[Source], options: OpenOptions) -> Dump:
        """Find the guest's memory in the process."""
        from dumpxlate.formats.qemu_core.reader import open_core

        return open_core(only_one(sources, self.name), options)

    def writer(self, dump: Dump, options: WriteOptions) -> NoReturn:
        """Refuse.

        Raises:
            UnsupportedFeatureError: always: what lies around the guest's memory is a process.
        """
        raise UnsupportedFeatureError("is no format to write", format=self.name, feature="writing")


FORMAT = QemuCoreFormat()
