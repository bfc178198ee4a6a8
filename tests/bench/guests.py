"""Guests to measure with: about 45 % zero pages, the rest pieces of real program files made unique for each page."""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

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


def pages(count: int) -> Iterator[NDArray[np.uint8]]:
    """Make the pages of a guest, a few thousand at a time, shape (n, 4096); always the same ones."""
    pool = _program_pages()
    random = np.random.default_rng(_SEED)
    for first in range(0, count, _BLOCK):
        length = min(_BLOCK, count - first)
        block = pool[random.integers(0, len(pool), length)]
        block[:, :8] = np.arange(first, first + length, dtype="<u8").view(np.uint8).reshape(-1, 8)
        # Zero pages come in runs, as free memory does.
        zero = np.repeat(random.random(-(-length // 8)) < _ZERO_SHARE, 8)[:length]
        block[zero] = 0
        yield block


def guest_map(count: int) -> NDArray[np.int64]:
    """A shuffled map: mfn of each pfn; every 17th pfn of the last eighth is a hole and gets -1."""
    random = np.random.default_rng(_SEED + 1)
    mfn = random.permutation(count).astype(np.int64) + 0x100000
    late = np.arange(count) > count * 7 // 8
    mfn[late & (np.arange(count) % 17 == 0)] = -1
    return mfn


def write_xendump(folder: Path, size: int) -> tuple[Path, Path]:
    """Write an old PV dump whose index is shuffled, and its map; gives both paths."""
    dump, p2m = folder / f"xendump-{size >> 20}m", folder / f"xendump-{size >> 20}m.map"
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
    for block in pages(count):
        where = place[first : first + len(block)]
        view[where[where >= 0]] = block[where >= 0]
        first += len(block)
    view.flush()
    return dump, p2m


def expected_pages(size: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
    """The pages that such a dump holds, by pfn, a few thousand at a time."""
    mfn = guest_map(size // PAGE)
    first = 0
    for block in pages(size // PAGE):
        keep = mfn[first : first + len(block)] >= 0
        yield np.flatnonzero(keep) + first, block[keep]
        first += len(block)
