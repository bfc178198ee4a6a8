"""What all builders share: headers from field tables, alignment, cutting, sparse files."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

__all__ = ["align", "cut", "fields", "pack", "place", "put", "runs", "slots", "write_sparse"]

Value = int | bytes


def pack(
    order: str, table: Sequence[tuple[str, str]], values: Mapping[str, Value], lies: Mapping[str, Value] | None = None
) -> bytes:
    """Pack ``table`` (name, struct code) without padding; ``lies`` override ``values``, the rest is zero.

    Numbers are cut to their field, so that -1 is all-ones. A name that the table does not have is a KeyError: a
    misspelt override would make a test pass for nothing.
    """
    given = {**values, **(lies or {})}
    unknown = given.keys() - {name for name, _ in table}
    if unknown:
        raise KeyError(f"no such fields: {sorted(unknown)}")
    return b"".join(_field(order + code, given.get(name, 0)) for name, code in table)


def _field(code: str, value: Value) -> bytes:
    if code.endswith("s"):
        return struct.pack(code, value or b"")
    assert isinstance(value, int)
    return struct.pack(code, value & (1 << 8 * struct.calcsize(code)) - 1)


def fields(names: str, code: str) -> list[tuple[str, str]]:
    """A field table: the names (separated by blanks), all of one struct code."""
    return [(name, code) for name in names.split()]


def slots(start: int, width: int, names: str) -> dict[str, tuple[int, int]]:
    """name -> (offset, width) of slots that follow each other."""
    return {name: (start + width * slot, width) for slot, name in enumerate(names.split())}


def put(image: bytearray, order: str, slot: tuple[int, int], value: int) -> None:
    """Store an unsigned number, cut to its width, in a slot (offset, width)."""
    offset, width = slot
    struct.pack_into(order + {1: "B", 2: "H", 4: "I", 8: "Q"}[width], image, offset, value & (1 << 8 * width) - 1)


def align(number: int, step: int) -> int:
    """Round up to a multiple of ``step``."""
    return -(-number // step) * step


def cut(data: bytes, truncate: int | None) -> bytes:
    """The first ``truncate`` bytes (negative: all but so many); everything for None."""
    return data if truncate is None else data[:truncate]


def place(parts: Iterable[tuple[int, bytes]]) -> bytes:
    """A file with each part at its offset, zeros in the gaps; a later part overwrites an earlier one."""
    parts = list(parts)
    image = bytearray(max((offset + len(data) for offset, data in parts), default=0))
    for offset, data in parts:
        image[offset : offset + len(data)] = data
    return bytes(image)


def runs(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """(start, count) of each run of consecutive numbers, ascending."""
    found: list[tuple[int, int]] = []
    for number in sorted(set(numbers)):
        if found and number == sum(found[-1]):
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((number, 1))
    return found


def write_sparse(path: Path, size: int, parts: Iterable[tuple[int, bytes]]) -> Path:
    """A file of ``size`` bytes that only takes disk space where a part lies."""
    with path.open("wb") as file:
        file.truncate(size)
        for offset, data in parts:
            file.seek(offset)
            file.write(data)
    return path
