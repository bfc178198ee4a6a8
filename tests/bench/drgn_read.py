"""Reads every page of a kdump file through drgn, as kdump_read.c does through libkdumpfile; prints pages and digest.

python drgn_read.py FILE [--time-only]
"""

from __future__ import annotations

import sys
from pathlib import Path

import drgn

PAGE = 4096
TEXT = b"""OSRELEASE=6.1.0
PAGESIZE=4096
SYMBOL(init_uts_ns)=ffffffff82414a00
SYMBOL(swapper_pg_dir)=ffffffff82410000
SYMBOL(_stext)=ffffffff81000000
NUMBER(phys_base)=0
KERNELOFFSET=0
"""


def main(path: str, *, time_only: bool) -> None:
    program = drgn.Program(vmcoreinfo=TEXT)
    program.set_core_dump(path)
    pages = total = 0
    for first in range(0, int(Path(path).with_suffix(".pages").read_text()), 256):
        # A page that is not there spoils the whole read: then one by one.
        for pfn, block in _read(program, first, 256):
            pages += len(block) // PAGE
            if not time_only:
                total += _digest(pfn, block)
    print(pages, total % (1 << 64))


def _read(program: drgn.Program, first: int, count: int) -> list[tuple[int, bytes]]:
    try:
        return [(first, program.read(first * PAGE, count * PAGE, physical=True))]
    except drgn.FaultError:
        if count == 1:
            return []
    return [*_read(program, first, count // 2), *_read(program, first + count // 2, count // 2)]


def _digest(pfn: int, block: bytes) -> int:
    import numpy as np

    from tests.bench.guests import digest

    pages = np.frombuffer(block, np.uint8).reshape(-1, PAGE)
    return digest(np.arange(pfn, pfn + len(pages)), pages)


if __name__ == "__main__":
    main(sys.argv[1], time_only="--time-only" in sys.argv)
