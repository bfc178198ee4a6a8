"""The first bytes of dumps that are only recognised.

Sources: crash lkcd_common.h, sadump.h, vmware_vmss.h; libkdumpfile s390dump.c; volatility3 layers/crash.py; rekall's
hibernation layer; Hyper-V's key-value storage as described by
dissect.hypervisor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from dumpxlate.io.source import Source

__all__ = ["KINDS", "Kind", "kind_of"]


class Kind(NamedTuple):
    """One kind of file.

    Attributes:
        name: short, for programs.
        what: what it is.
        advice: why it is not read, or what to do.
        magics: what such files begin with.
    """

    name: str
    what: str
    advice: str
    magics: tuple[bytes, ...]


_WINDOWS = "WinDbg opens it"

KINDS = (
    Kind(
        "lkcd",
        "an LKCD dump (Linux Kernel Crash Dump, before kdump)",
        "crash and libkdumpfile open it",
        (
            b"\xed\x23\x8f\x61\x73\x01\x19\xa8",
            b"\xa8\x19\x01\x73\x61\x8f\x23\xed",
            b"\xcd\x23\x8f\x61\x73\x01\x19\xa8",
            b"\xa8\x19\x01\x73\x61\x8f\x23\xcd",
        ),
    ),
    Kind(
        "s390",
        "an s390 stand-alone dump",
        "zgetdump turns it into an ELF vmcore (zgetdump -f elf)",
        (b"\xa8\x19\x01\x73\x61\x8f\x23\xfd",),
    ),
    Kind(
        "sadump",
        "a sadump image (Fujitsu's stand-alone dump)",
        "crash opens it; makedumpfile turns it into a kdump-compressed one",
        (b"sadump\0\0",),
    ),
    Kind(
        "vmware",
        "a VMware snapshot or suspended state (vmss, vmsn)",
        "crash and Volatility open it together with its .vmem; the .vmem itself is raw up to 3 GiB of memory",
        (b"\xd0\xbe\xd0\xbe", b"\xd1\xba\xd1\xba", b"\xd2\xba\xd2\xba", b"\xd2\xbe\xd2\xbe", b"\xd3\xbe\xd3\xbe"),
    ),
    Kind(
        "hyperv",
        "a Hyper-V storage file (vmrs, vmcx)",
        "where its memory stands is not published",
        (b"\x14\x20\x28\x01",),
    ),
    Kind("windows-64", "a 64-bit Windows crash dump", _WINDOWS, (b"PAGEDU64",)),
    Kind("windows-32", "a 32-bit Windows crash dump", _WINDOWS, (b"PAGEDUMP",)),
    Kind("minidump", "a Windows minidump of one process", "it is no image of physical memory", (b"MDMP",)),
    Kind(
        "hibernation",
        "a Windows hibernation file",
        "its pages are compressed in a way of each Windows release; Volatility opens some",
        (b"hibr", b"HIBR", b"wake", b"WAKE", b"RSTR"),
    ),
)

_LONGEST = max(len(magic) for kind in KINDS for magic in kind.magics)


def kind_of(source: Source) -> Kind | None:
    """Tell which kind a file is of."""
    head = bytes(source.view(0, min(source.size, _LONGEST)))
    return next((kind for kind in KINDS if head.startswith(kind.magics)), None)
