"""What the headers of a dump say of a Xen host: the note that a crashed hypervisor leaves, or where its processors are.

The note (name ``Xen``, type XEN_ELFNOTE_CRASH_INFO) is a row of words of the hypervisor's width
(xen/include/public/elfnote.h, xen/include/xen/elfcore.h; makedumpfile.h tells the same versions apart by size)::

    0, 1  major and minor version
    2     address of the rest of the version
    3-6   changeset, compiler, and when it ran
    7     tainted
    8     dom0_pfn_to_mfn_frame_list_list; since Xen 3.3 in word 9, with xen_phys_start here

Without it, as in a dump made by another hypervisor around the host, a processor's interrupt table tells: only Xen has
its own at addresses that it keeps from every guest.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dumpxlate.elf.notes import NT_XEN_CRASH_INFO, NT_XEN_CRASH_REGS
from dumpxlate.errors import PageUnavailableError

if TYPE_CHECKING:
    from dumpxlate.dump import Dump

__all__ = ["HostSigns", "host_signs"]

_XEN_FROM, _XEN_TO = 0xFFFF_8200_0000_0000, 0xFFFF_8300_0000_0000
"""Per-domain mappings up to the direct map: neither Linux nor a guest of Xen's has anything there."""
_TEXT_BYTES = 16


@dataclass(frozen=True, slots=True)
class HostSigns:
    """What tells that a dump is of a whole Xen host.

    Attributes:
        evidence: what was seen, in words for people.
        version: of the hypervisor, where the note says it.
        dom0_frame_lists: frame of domain 0's list of frame lists, 0 where there is none.
        phys_start: machine address of the hypervisor's image, -1 where the note does not say it.
    """

    evidence: str
    version: str | None = None
    dom0_frame_lists: int = 0
    phys_start: int = -1

    @property
    def release(self) -> str:
        """The first two numbers of the version, which the layout of structures goes with."""
        return ".".join(re.findall(r"\d+", self.version or "")[:2])


def host_signs(dump: Dump) -> HostSigns | None:
    """Tell whether a dump is of a whole Xen host, by its headers alone; None where nothing says so."""
    kinds = {note.type: bytes(note.desc) for note in dump.notes if note.name == "Xen"}
    if NT_XEN_CRASH_INFO in kinds:
        return _from_note(dump, kinds[NT_XEN_CRASH_INFO])
    if NT_XEN_CRASH_REGS in kinds:
        return HostSigns("note XEN_ELFNOTE_CRASH_REGS")
    for cpu in dump.cpus:
        place = cpu.registers.get("idt_base", 0)
        if dump.machine.arch.name == "x86_64" and _XEN_FROM <= place < _XEN_TO:
            return HostSigns(f"processor {cpu.index} has its interrupt table at {place:#x}, in the hypervisor's range")
    return None


def _from_note(dump: Dump, desc: bytes) -> HostSigns:
    """Read the note; a size that no version wrote is evidence all the same."""
    evidence = "note XEN_ELFNOTE_CRASH_INFO"
    width = 8 if len(desc) in (64, 72, 80) else 4
    if len(desc) % width or not 8 <= len(desc) // width <= 10:
        return HostSigns(f"{evidence} of {len(desc)} bytes, expected 64 to 80")
    words = struct.unpack(f"<{len(desc) // width}{'Q' if width == 8 else 'I'}", desc)
    lists = words[-1] if len(words) > 8 else 0
    version = f"{words[0]}.{words[1]}{_text(dump, words[2])}"
    return HostSigns(evidence, version, lists, words[8] if len(words) == 10 else -1)


def _text(dump: Dump, address: int) -> str:
    """Read the rest of the version, such as ``.7``; nothing where it is not in the dump."""
    try:
        text = dump.read(address, _TEXT_BYTES).partition(b"\0")[0].decode("latin-1")
    except PageUnavailableError:
        return ""
    return text if text.isprintable() else ""
