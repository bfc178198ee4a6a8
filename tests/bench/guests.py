"""Guests to measure with: about 45 % zero pages, the rest pieces of real program files made unique for each page."""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Blocks: TypeAlias = Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]

PAGE = 4096
_BLOCK = 4096  # pages made in one go
_ZERO_SHARE = 0.45
_SEED = 20


def _program_pages(limit: int = 64 << 20) -> NDArray[np.uint8]:
    """Pages of the shared libraries beside the interpreter and of the system."""
    found: list[NDArray[np.uint8]] = []
    size = 0
    for folder in ("/usr/lib/x86_64-linux-gnu", "/usr/lib64", str(Path(sys.base_prefix) / "lib"), "/usr/lib"):
        for path in sorted(Path(folder).glob("*.so*")) if Path(folder).is_dir() else []:
            if size >= limit or path.is_symlink():
                continue
            body = np.fromfile(path, np.uint8)[: 4 << 20]
            found.append(body[: len(body) // PAGE * PAGE].reshape(-1, PAGE))
            size += len(body)
    return np.concatenate(found)


def pages(count: int, *, full: bool = False) -> Iterator[NDArray[np.uint8]]:
    """Make the pages of a guest, a few thousand at a time, shape (n, 4096); always the same ones, none zero if full."""
    pool = _program_pages()
    random = np.random.default_rng(_SEED)
    for first in range(0, count, _BLOCK):
        length = min(_BLOCK, count - first)
        block = pool[random.integers(0, len(pool), length)]
        block[:, :8] = np.arange(first, first + length, dtype="<u8").view(np.uint8).reshape(-1, 8)
        # Zero pages come in runs, as free memory does.
        zero = np.repeat(random.random(-(-length // 8)) < _ZERO_SHARE, 8)[:length]
        if not full:
            block[zero] = 0
        yield block


def guest_map(count: int) -> NDArray[np.int64]:
    """A shuffled map: mfn of each pfn; every 17th pfn of the last eighth is a hole and gets -1."""
    random = np.random.default_rng(_SEED + 1)
    mfn = random.permutation(count).astype(np.int64) + 0x100000
    late = np.arange(count) > count * 7 // 8
    mfn[late & (np.arange(count) % 17 == 0)] = -1
    return mfn


def ram(count: int) -> NDArray[np.int64]:
    """The pfns that a plain guest has: no VGA window, and a hole of 256 pages behind every sixteenth of memory."""
    pfn = np.arange(count)
    return pfn[((pfn < 0xA0) | (pfn >= 0x100)) & (pfn % (count // 16) < count // 16 - 256)]


def digest(pfn: NDArray[np.int64], block: NDArray[np.uint8]) -> int:
    """What kdump_read.c makes of pages: a sum that depends on every word and on its place."""
    weight = np.arange(1, PAGE // 4, 2, dtype=np.uint64)
    sums = (block.view("<u8") * weight).sum(axis=1, dtype=np.uint64)
    return int((sums * (2 * pfn + 1).astype(np.uint64)).sum(dtype=np.uint64))


def ram_pages(size: int) -> Blocks:
    """The pages of the plain guest by pfn, a few thousand at a time."""
    there = np.zeros(size // PAGE, bool)
    there[ram(size // PAGE)] = True
    first = 0
    for block in pages(size // PAGE):
        keep = there[first : first + len(block)]
        yield np.flatnonzero(keep) + first, block[keep]
        first += len(block)


def expected_digest(folder: Path, size: int) -> tuple[int, int]:
    """Number of pages of the plain guest, and the digest of all."""
    kept = folder / f"digest-{size >> 20}m"
    if not kept.exists():
        found = [(len(pfn), digest(pfn, block)) for pfn, block in ram_pages(size)]
        kept.write_text(f"{sum(each[0] for each in found)} {sum(each[1] for each in found) % (1 << 64)}")
    count, total = kept.read_text().split()
    return int(count), int(total)


def write_elf(folder: Path, size: int) -> Path:
    """Write the plain guest as an ELF vmcore: one PT_LOAD a run, every page in the file."""
    path = folder / f"guest-{size >> 20}m.elf"
    if path.exists():
        return path
    pfn = ram(size // PAGE)
    opens = np.flatnonzero(np.append(True, np.diff(pfn) != 1))
    count = np.diff(opens, append=len(pfn))
    with path.with_suffix(".new").open("wb") as file:
        file.write(b"\x7fELF\2\1\1" + bytes(9))
        file.write(struct.pack("<HHIQQQIHHHHHH", 4, 62, 1, 0, 64, 0, 0, 64, 56, len(opens) + 1, 0, 0, 0))
        prstatus = struct.pack("<III8s", 5, 336, 1, b"CORE") + struct.pack("<32xI300x", 1)
        start = -(-(64 + 56 * (len(opens) + 1) + len(prstatus)) // PAGE) * PAGE
        at = 64 + 56 * (len(opens) + 1)
        file.write(struct.pack("<IIQQQQQQ", 4, 0, at, 0, 0, len(prstatus), len(prstatus), 0))
        for first, length in zip(opens.tolist(), count.tolist(), strict=True):
            address, bytes_ = int(pfn[first]) * PAGE, length * PAGE
            file.write(struct.pack("<IIQQQQQQ", 1, 7, start + first * PAGE, address, address, bytes_, bytes_, 0))
        file.write(prstatus)
        file.seek(start)
        for _, block in ram_pages(size):
            file.write(block.data)
    return path.with_suffix(".new").rename(path)


def write_raw(folder: Path, size: int) -> Path:
    """Write the plain guest as it lies in memory; what it lacks is zero."""
    path = folder / f"guest-{size >> 20}m.raw"
    if not path.exists():
        view = np.memmap(path.with_suffix(".new"), np.uint8, "w+", 0, (size // PAGE, PAGE))
        for pfn, block in ram_pages(size):
            view[pfn] = block
        view.flush()
        path.with_suffix(".new").rename(path)
    return path


def write_xendump(folder: Path, size: int, *, full: bool = False) -> tuple[Path, Path]:
    """Write an old PV dump whose index is shuffled, and its map; gives both paths."""
    name = f"xendump-{size >> 20}m{'-full' * full}"
    dump, p2m = folder / name, folder / f"{name}.map"
    count = size // PAGE
    if dump.exists() and p2m.exists():
        return dump, p2m
    mfn = guest_map(count)
    mfn.astype("<u8").tofile(p2m)
    pfn = np.flatnonzero(mfn >= 0)
    order = np.random.default_rng(_SEED + 2).permutation(len(pfn))
    place = np.full(count, -1, np.int64)
    place[pfn[order]] = np.arange(len(pfn))
    index_at = 24 + 5168
    pages_at = (index_at + 8 * len(pfn) + PAGE - 1) // PAGE * PAGE
    with dump.open("wb") as file:
        file.write(struct.pack("<6I", 0xF00FEBED, 1, len(pfn), 24, index_at, pages_at))
        file.write(bytes(5168))
        file.write(mfn[pfn[order]].astype("<u8").tobytes())
        file.truncate(pages_at + len(pfn) * PAGE)
    view = np.memmap(dump, np.uint8, "r+", pages_at, (len(pfn), PAGE))
    first = 0
    for block in pages(count, full=full):
        where = place[first : first + len(block)]
        view[where[where >= 0]] = block[where >= 0]
        first += len(block)
    view.flush()
    return dump, p2m


def expected_pages(size: int, *, full: bool = False) -> Blocks:
    """The pages that such a dump holds, by pfn, a few thousand at a time."""
    mfn = guest_map(size // PAGE)
    first = 0
    for block in pages(size // PAGE, full=full):
        keep = mfn[first : first + len(block)] >= 0
        yield np.flatnonzero(keep) + first, block[keep]
        first += len(block)
