"""The map beside a raw image: ``NAME.dxmap``, JSON (``dumpxlate.rawmap/1``), what the image itself cannot say.

::

    {
      "schema": "dumpxlate.rawmap/1",
      "size": 8388608,                     bytes of the image that it belongs to
      "base": "0x0",                       physical address of the image's first byte
      "page_size": 4096,
      "machine": {"arch": "x86_64", "elf_machine": 62, "word_bits": 64, "byte_order": "little"},
      "ram": [["0x0", "0x9f000"], ...],    ranges of RAM, the end exclusive, ascending; the rest is not RAM
      "missing": [["0x3000", "0x4000"]]    RAM whose content is not in the image
    }
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dumpxlate.arch import by_machine_or_unknown
from dumpxlate.dump import Machine
from dumpxlate.errors import CorruptDumpError
from dumpxlate.pageset import PageRuns

if TYPE_CHECKING:
    from dumpxlate.pageset import PageSet
    from dumpxlate.structs import Endian

__all__ = ["SUFFIX", "RawMap", "find_map", "pack_map"]

SUFFIX = ".dxmap"
_SCHEMA = "dumpxlate.rawmap/1"
_LONGEST = 32 << 20
"""Bytes of a map that are read: a million ranges, which take ten times as much as Python's objects."""

_PACKED_SUFFIXES = (".gz", ".xz", ".zst", ".bz2")
_ORDERS: dict[str, Endian] = {"little": "<", "big": ">"}


@dataclass(frozen=True, slots=True)
class RawMap:
    """What stands in a map.

    Attributes:
        size: bytes of the image.
        base: physical address of its first byte.
        machine: what was dumped.
        ram: pages of RAM.
        missing: those of them whose content is not in the image.
    """

    size: int
    base: int
    machine: Machine
    ram: PageSet
    missing: PageSet


def pack_map(content: RawMap) -> bytes:
    """Write a map."""
    machine = content.machine
    size = machine.page_size
    return json.dumps(
        {
            "schema": _SCHEMA,
            "size": content.size,
            "base": hex(content.base),
            "page_size": size,
            "machine": {
                "arch": machine.arch.name,
                "elf_machine": machine.arch.elf_machine,
                "word_bits": machine.word_bits,
                "byte_order": "little" if machine.endian == "<" else "big",
            },
            "ram": _ranges(content.ram, size),
            "missing": _ranges(content.missing, size),
        }
    ).encode()


def _ranges(pages: PageSet, page_size: int) -> list[tuple[str, str]]:
    start, count = pages.runs()
    ends = (start + count) * page_size
    return [(hex(low), hex(high)) for low, high in zip((start * page_size).tolist(), ends.tolist(), strict=True)]


def find_map(name: str, size: int) -> RawMap | None:
    """Read the map beside an image, if there is one; beside a compressed image it may be that of the unpacked one.

    Args:
        name: path of the image.
        size: its size.

    Raises:
        CorruptDumpError: it is no map, or that of another image.
    """
    for image in (name, *(name.removesuffix(suffix) for suffix in _PACKED_SUFFIXES if name.endswith(suffix))):
        path = Path(image + SUFFIX)
        try:
            if path.is_file():
                return _parse(_text(path), size)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise CorruptDumpError(f"{path.name} beside it is no {_SCHEMA}: {error}") from error
        except CorruptDumpError as error:
            raise CorruptDumpError(f"{path.name} beside it: {error}") from None
    return None


def _text(path: Path) -> bytes:
    with path.open("rb") as file:
        text = file.read(_LONGEST + 1)
    if len(text) > _LONGEST:
        raise CorruptDumpError(f"has more than {_LONGEST:,} bytes")
    return text


def _parse(text: bytes, size: int) -> RawMap:
    content = json.loads(text)
    if content["schema"] != _SCHEMA:
        raise ValueError(f"schema is {content['schema']!r}")
    if content["size"] != size:
        raise CorruptDumpError(f"is the map of an image of {content['size']:,} bytes, this one has {size:,}")
    machine = _machine(content["machine"], int(content["page_size"]))
    base = int(content["base"], 16)
    if base < 0 or base % machine.page_size:
        raise ValueError(f"base is {base:#x}")
    ram, missing = (_pages(content[key], base, size, machine.page_size) for key in ("ram", "missing"))
    return RawMap(size, base, machine, ram, missing)


def _machine(content: dict[str, Any], page_size: int) -> Machine:
    if page_size < 512 or page_size > 1 << 20 or page_size & (page_size - 1):
        raise ValueError(f"page_size is {page_size}")
    endian = _ORDERS[content["byte_order"]]
    arch = by_machine_or_unknown(int(content["elf_machine"]), int(content["word_bits"]), endian)
    return Machine(arch=arch, endian=endian, page_size=page_size)


def _pages(ranges: list[list[str]], base: int, size: int, page_size: int) -> PageRuns:
    """Read ranges of addresses; they must lie in the image."""
    edges = np.array([[int(low, 16), int(high, 16)] for low, high in ranges], np.int64).reshape(-1, 2)
    low, high = edges.T
    sane = (low >= base) & (low < high) & (high <= -(-(base + size) // page_size) * page_size)
    if not sane.all() or (edges % page_size).any() or (low[1:] < high[:-1]).any():
        raise ValueError("ranges are not ascending, of whole pages, and inside the image")
    return PageRuns.from_runs(low // page_size, (high - low) // page_size)
