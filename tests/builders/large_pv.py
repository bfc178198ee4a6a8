"""A large PV guest in a sparse file: only its own lists, page tables and the file's index take room.

Every pfn has a page. Machine memory comes in blocks of 2 MiB in random order, as Xen's allocator gives it, and some of
them in single pages.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np

from .elf import EHDR, SHDR
from .guest import Guest
from .packing import pack
from .xen_core import MAGIC_PV, NAMES, notes
from .xen_vcpu import context, fold_cr3, shared_info

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["LINEAR", "LIST", "POINTER", "write_large_core"]

LINEAR, LIST = 0xFFFF888000000000, 0xFFFFC90000000000
POINTER = LINEAR + 0x1000
"""Address of ``xen_p2m_addr``; ``xen_p2m_size`` follows it."""


def machine_frames(pages: int, scattered: float, seed: int = 5) -> NDArray[np.int64]:
    """mfn of each pfn: shuffled blocks of 512, of which a share is shuffled page by page."""
    random = np.random.default_rng(seed)
    block = random.permutation(pages // 512).astype(np.int64) * 512 + 0x100000
    mfn = (block[:, None] + np.arange(512)).reshape(-1)
    single = np.flatnonzero(np.repeat(random.random(pages // 512) < scattered, 512))
    mfn[single] = mfn[random.permutation(single)]
    return mfn


def write_large_core(path: Path, gib: int, *, scattered: float = 0.05) -> NDArray[np.int64]:
    """Write a domain core of so many GiB, a multiple of one; gives the mfn of each pfn."""
    pages = gib << 18
    mfn = machine_frames(pages, scattered)
    content: dict[int, bytes] = {}
    free = iter(range(2, pages))

    def put(words: NDArray[np.int64]) -> NDArray[np.int64]:
        """Put words into as many pages as they fill; gives the machine frames of these."""
        filled = np.zeros(-(-len(words) // 512) * 512, np.int64)
        filled[: len(words)] = words
        at = [next(free) for _ in range(len(filled) // 512)]
        for number, pfn in enumerate(at):
            content[pfn] = filled[number * 512 : (number + 1) * 512].astype("<i8").tobytes()
        return mfn[at]

    leaves = put(mfn)
    top = int(put(put(leaves))[0])
    content[1] = struct.pack("<QQ", LIST, pages).ljust(4096, b"\0")
    tables = [put(put(put(each << 12 | 0x63) << 12 | 0x67) << 12 | 0x67) for each in (mfn, leaves)]
    first = np.zeros(512, np.int64)
    for address, table in zip((LINEAR, LIST), tables, strict=True):
        first[address >> 39 & 511] = int(table[0]) << 12 | 0x67
    root = int(put(first)[0])
    _write(path, mfn, content, top, root)
    return mfn


def _write(path: Path, mfn: NDArray[np.int64], content: dict[int, bytes], top: int, root: int) -> None:
    pages = len(mfn)
    info = shared_info(max_pfn=pages, frame_list_list=top, p2m_cr3=fold_cr3(root), p2m_vaddr=LIST)
    guest = Guest(pages={}, registers=({"cr3": fold_cr3(root)},))
    parts = {
        ".note.Xen": b"".join(notes(magic=MAGIC_PV, nr_vcpus=1, nr_pages=pages)),
        ".xen_prstatus": context(guest, 0),
        ".xen_shared_info": info,
    }
    names = [*NAMES, ".xen_p2m"]
    strings = b"\0" + b"".join(name.encode() + b"\0" for name in names)
    at, where = 64 * (len(names) + 2), {}
    for name, body in parts.items():
        where[name] = (at, len(body))
        at += len(body)
    start = at + 4095 & -4096
    where[".xen_pages"] = (start, pages * 4096)
    where[".xen_p2m"] = (start + pages * 4096, pages * 16)
    where[".shstrtab"] = (start + pages * 4112, len(strings))
    entsize = {".xen_prstatus": 5168, ".xen_shared_info": 4096, ".xen_pages": 4096, ".xen_p2m": 16}
    table = bytes(64)
    for name in names:
        kind = {".shstrtab": 3, ".note.Xen": 7}.get(name, 1)
        form = {"sh_name": strings.index(name.encode() + b"\0"), "sh_type": kind, "sh_entsize": entsize.get(name, 0)}
        table += pack("<", SHDR[64], form | dict(zip(("sh_offset", "sh_size"), where[name], strict=True)))
    header = {
        "magic": b"\x7fELF", "ei_class": 2, "ei_data": 1, "ei_version": 1, "e_type": 4, "e_machine": 62,
        "e_version": 1, "e_shoff": 64, "e_ehsize": 64, "e_shentsize": 64, "e_shnum": len(names) + 1, "e_shstrndx": 1,
    }  # fmt: skip
    with path.open("wb") as file:
        file.write(pack("<", EHDR[64], header) + table)
        for name, body in [*parts.items(), (".shstrtab", strings)]:
            file.seek(where[name][0])
            file.write(body)
        for pfn, body in content.items():
            file.seek(start + pfn * 4096)
            file.write(body)
        file.seek(where[".xen_p2m"][0])
        file.write(np.stack((np.arange(pages, dtype="<i8"), mfn.astype("<i8")), axis=1).tobytes())
