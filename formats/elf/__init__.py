"""ELF vmcore: guest memory in the PT_LOAD segments of an ELF core file.

::

    ELF header | program headers | [section header 0] | notes | memory, one stretch a PT_LOAD

Each PT_LOAD says at which physical address (p_paddr) its bytes belong; memory beyond p_filesz, up to p_memsz, is RAM
that the file leaves out. p_vaddr is their virtual address where the producer walked page tables (QEMU with
``paging=true``, ``convert --paging``): several segments then show the same bytes of the file. PT_NOTE segments hold one
NT_PRSTATUS for each processor, the kernel's VMCOREINFO, and what the producer adds: QEMU (``dump-guest-memory``,
``virsh dump --memory-only``), Linux (/proc/vmcore), makedumpfile (``-E``), VirtualBox (``dumpvmcore``) and others write
the same container, each with quirks of its own, which the reader names where it meets them. With more than 65534
program headers their count is in section header 0 (PN_XNUM).

Xen's ``xl dump-core`` also writes ELF, but keeps everything in sections: that is ``xen_core``, not this format. So
is the core of an ordinary process, which is refused.

Sources: elf(5); qemu dump/dump.c; linux fs/proc/vmcore.c, fs/proc/kcore.c; makedumpfile elf_info.c; VirtualBox
DBGFCoreWrite.cpp.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dumpxlate.format import Confidence, Match, only_one

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dumpxlate.dump import Dump
    from dumpxlate.format import OpenOptions, WriteOptions, Writer
    from dumpxlate.io.source import Source

__all__ = ["FORMAT"]

_MAGIC = b"\x7fELF"


class ElfFormat:
    """Reads and writes ELF vmcores."""

    name = "elf"
    title = "ELF vmcore (QEMU, /proc/vmcore, makedumpfile -E, VirtualBox)"
    suffixes = (".elf", ".vmcore")
    writes = True
    options = ("begin", "length", "paging")
    codecs = ("none",)

    def detect(self, source: Source) -> Match | None:
        """Recognise the ELF magic; formats that live in ELF sections are more specific."""
        if source.size < len(_MAGIC) or source.view(0, len(_MAGIC)) != _MAGIC:
            return None
        return Match(Confidence.SIGNATURE, "ELF magic")

    def open(self, sources: Sequence[Source], options: OpenOptions) -> Dump:
        """Read headers and notes."""
        from dumpxlate.formats.elf.reader import open_elf

        return open_elf(only_one(sources, self.name), options)

    def writer(self, dump: Dump, options: WriteOptions) -> Writer:
        """Plan an ELF vmcore."""
        options.only(self.options, self.name)
        from dumpxlate.formats.elf.writer import ElfWriter

        return ElfWriter(dump, options)


FORMAT = ElfFormat()
