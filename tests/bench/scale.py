"""``python -m tests.bench.scale``: memory and time against the size of the guest, from 1 GiB to 16 TiB.

The inputs are sparse: 64 MiB of each guest are data, in 64 pieces all over its memory, the rest is holes of the file
(ELF, old Xen dump) or left out by the dump (kdump). The index is always the whole one: the bitmaps of a 16 TiB guest
are 1 GiB, the index of an old Xen dump of 1 TiB is 2 GiB.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tests.bench.case import US
from tests.bench.measure import Runs, run, with_bytecode
from tests.bench.report import Curve, write_curves
from tests.builders import elf, kdump, xendump
from tests.builders.guest import named_block

if TYPE_CHECKING:
    from collections.abc import Callable

PAGE = 4096
MIB, GIB = 1 << 20, 1 << 30
PIECES, PIECE = 64, 256
SIZES = (1, 16, 256, 1024, 4096, 16384 - 64)  # GiB; ext4 has no file of 16 TiB


@dataclass(frozen=True)
class Point:
    """What one command took on one guest: seconds, and the most anonymous and resident memory in bytes."""

    format: str
    gib: int
    command: str
    seconds: float
    anonymous: int
    resident: int


def pieces(count: int) -> list[int]:
    """First pfn of each piece of data."""
    return [int(pfn) for pfn in np.linspace(0, count - PIECE, PIECES)]


def data(count: int) -> dict[int, bytes]:
    """The pages that have content."""
    found = {}
    for first in pieces(count):
        block = named_block(first, PIECE)
        found |= {first + page: block[page * PAGE : (page + 1) * PAGE] for page in range(PIECE)}
    return found


def make_elf(path: Path, count: int) -> Path:
    """One PT_LOAD, nearly all of it a hole of the file."""
    return elf.sparse_huge(path, data(count), ram=[(0, count)])


def make_kdump(path: Path, count: int) -> Path:
    """Both bitmaps whole, descriptors for the pages that are there."""
    stored = [(first, PIECE) for first in pieces(count)]
    return kdump.sparse_huge(path, data(count), nr_pages=count, stored=stored)


def make_xendump(path: Path, count: int) -> Path:
    """An index of every page."""
    return xendump.sparse_huge(path, {}, nr_pages=count)


def commands(format: str, path: Path, out: Path, gib: int) -> dict[str, tuple[str, ...]]:
    """What is run on a guest; what takes a time that grows with its memory only as long as that is bearable."""
    quiet = ("--progress", "none", "--force", "-o", str(out))
    found = {"info": (*US, "info", str(path))}
    if format == "xendump":
        found["map"] = (*US, "map", str(path))
    elif format == "kdump" or gib <= 256:
        found["convert"] = (*US, "convert", str(path), "-t", "kdump", *quiet)
    return found


MAKE: dict[str, Callable[[Path, int], Path]] = {"elf": make_elf, "kdump": make_kdump, "xendump": make_xendump}


def measure(folder: Path, formats: list[str], largest: int) -> list[Point]:
    """Build, run and remove, one guest after the other."""
    points = []
    for format in formats:
        for gib in (size for size in SIZES if size <= largest):
            if format == "xendump" and gib > 1024:
                continue  # the pages stand behind the index, and their offset has 32 bits
            path, out = folder / f"{format}-{gib}", folder / "out"
            MAKE[format](path, gib * GIB // PAGE)
            for name, command in commands(format, path, out, gib).items():
                runs = Runs(watched=True)
                run(command, runs)
                points.append(Point(format, gib, name, runs.seconds[0], runs.anonymous, runs.resident))
                print(line(points[-1]), flush=True)
                out.unlink(missing_ok=True)
            path.unlink()
    return points


def line(point: Point) -> str:
    return (
        f"{point.format:<9}{point.gib:>7} GiB  {point.command:<8}{point.seconds:>9.2f} s"
        f"{point.anonymous / MIB:>8.0f} MiB anonymous{point.resident / MIB:>8.0f} MiB resident"
    )


def write_plot(path: Path, points: list[Point]) -> None:
    """Draw time and anonymous memory against the size of the guest."""
    lines = list(dict.fromkeys((point.format, point.command) for point in points))
    panels = []
    for title, value in (
        ("seconds", lambda point: point.seconds),
        ("anonymous, MiB", lambda point: point.anonymous / MIB),
    ):
        curves = [
            Curve(" ".join(each), [(p.gib, value(p)) for p in points if (p.format, p.command) == each])
            for each in lines
        ]
        panels.append((title, curves))
    write_curves(path, panels)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.scale", description=__doc__)
    parser.add_argument("formats", nargs="*", help=f"some of: {', '.join(MAKE)}")
    parser.add_argument("--largest", type=int, default=SIZES[-1], help="GiB of the largest guest")
    parser.add_argument("--folder", type=Path, help="where the sparse files go (a temporary one)")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--plot", type=Path, help="draw time and memory into this SVG file")
    args = parser.parse_args()
    if unknown := set(args.formats) - MAKE.keys():
        parser.error(f"no such format: {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory(prefix="dumpxlate-scale-", dir=args.folder) as folder:
        with_bytecode(Path(folder))
        points = measure(Path(folder), args.formats or list(MAKE), args.largest)
    if args.json:
        args.json.write_text(json.dumps([asdict(point) for point in points], indent=1) + "\n")
    if args.plot:
        write_plot(args.plot, points)


if __name__ == "__main__":
    sys.exit(main())
