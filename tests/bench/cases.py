"""The cases: what we run, what the peer runs, and how the result is checked before a time counts."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from tests.bench import guests
from tests.readers import elf_segments

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

US = (sys.executable, "-m", "dumpxlate")


@dataclass(frozen=True)
class Prepared:
    """A case ready to run."""

    ours: tuple[str, ...]
    peer: tuple[str, ...]
    outputs: tuple[Path, ...]
    check: Callable[[], None]


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        name: how to ask for it.
        peer: what it is measured against, in words.
        target: wall-time ratio peer/ours that is wanted.
        prepare: makes the inputs in a folder.
    """

    name: str
    peer: str
    target: float
    prepare: Callable[[Path, int], Prepared]


def _xendump_to_elf(folder: Path, size: int, *, copied: str) -> Prepared:
    """Old Xen dump to ELF, against a copy of the output (whose zero pages are holes) or of the input (all written)."""
    dump, p2m = guests.write_xendump(folder, size)
    out, copy, model = folder / "out.elf", folder / "copy", folder / "model.elf"
    ours = (*US, "convert", str(dump), "--p2m", str(p2m), "--progress", "none", "-o")
    if not model.exists():
        subprocess.run([*ours, str(model)], check=True)
    # The copy is made durable, as ours is.
    peer = ("sh", "-c", f"cp {model if copied == 'output' else dump} {copy} && sync {copy}")
    return Prepared((*ours, str(out)), peer, (out, copy), lambda: _same_pages(out, size))


def _same_pages(vmcore: Path, size: int) -> None:
    """Compare every page of a vmcore with the model guest, without dumpxlate."""
    body = np.memmap(vmcore, np.uint8, "r")
    at = np.full(size // guests.PAGE, -1, np.int64)
    for kind, offset, _, paddr, filesz, _ in elf_segments(vmcore):
        if kind == 1:
            first, count = paddr // guests.PAGE, filesz // guests.PAGE
            at[first : first + count] = offset + np.arange(count) * guests.PAGE
    for pfn, block in guests.expected_pages(size):
        offset = at[pfn]
        if (offset < 0).any():
            raise AssertionError(f"{vmcore}: page {pfn[offset < 0][0]:#x} is missing")
        rows = np.lib.stride_tricks.sliding_window_view(body, guests.PAGE)[offset]
        if not (rows == block).all():
            raise AssertionError(f"{vmcore}: pages from {pfn[0]:#x} on differ")
        at[pfn] = -1
    if (at >= 0).any():
        raise AssertionError(f"{vmcore}: has pages that the guest has not")


CASES = (
    Case(
        "xendump-elf", "cp of the output (holes stay holes), and sync", 0.8, partial(_xendump_to_elf, copied="output")
    ),
    Case(
        "xendump-elf-in",
        "cp of the input (the same pages, all written), and sync",
        0.8,
        partial(_xendump_to_elf, copied="input"),
    ),
)
