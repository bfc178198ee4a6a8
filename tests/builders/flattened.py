"""makedumpfile's flattened container: (offset, size, bytes) records of an inner file, for pipes."""

from __future__ import annotations

import random
import struct
from typing import TYPE_CHECKING

from .packing import cut, fields, pack

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["END", "record", "split", "wrap"]

HEADER = [("signature", "16s"), *fields("type version", "Q"), ("rest", "4064s")]
END = b"\xff" * 16

Record = tuple[int, bytes]


def record(offset: int, data: bytes, *, size: int | None = None) -> bytes:
    """One record; ``size`` may lie, and both numbers may be negative."""
    return struct.pack(">qq", offset, len(data) if size is None else size) + data


def split(inner: bytes, sizes: int | Sequence[int] = 65536, *, holes: bool = True) -> list[Record]:
    """Cut the inner file into records of one size, or of the given sizes in turn.

    With ``holes`` a record of zeros is left out, unless it is the last, which makes the inner file's size.
    """
    steps = [sizes] if isinstance(sizes, int) else list(sizes)
    found: list[Record] = []
    at = 0
    while at < len(inner):
        data = inner[at : at + steps[len(found) % len(steps)]]
        found.append((at, data))
        at += len(data)
    return [(at, data) for at, data in found if not holes or any(data) or at + len(data) == len(inner)]


def wrap(
    inner: bytes = b"",
    *,
    sizes: int | Sequence[int] = 65536,
    records: Iterable[Record] | None = None,
    order: str = "file",
    seed: int = 3,
    holes: bool = True,
    under: Iterable[Record] = (),
    over: Iterable[Record] = (),
    raw: Mapping[int, bytes] | None = None,
    end: bool = True,
    tail: bytes = b"",
    header: Mapping[str, int | bytes] | None = None,
    truncate: int | None = None,
) -> bytes:
    """A flattened file.

    Args:
        inner: the file to wrap, cut by ``split`` with ``sizes`` and ``holes``.
        records: the records themselves instead.
        order: of the records in the stream: file, reverse or shuffle.
        seed: of the shuffle.
        under: records put before all others: where they overlap they lose.
        over: records put behind all others: they win.
        raw: number of a record -> bytes put before it (a record with a bad offset or size, rubbish).
        end: whether the end marker is there.
        tail: bytes behind it.
        header: fields of the file header that shall lie (signature, type, version).
        truncate: keep that many bytes.
    """
    found = list(split(inner, sizes, holes=holes) if records is None else records)
    if order == "shuffle":
        random.Random(seed).shuffle(found)
    elif order != "file":
        found.sort(reverse={"reverse": True}[order])
    values: dict[str, int | bytes] = {"signature": b"makedumpfile", "type": 1, "version": 1}
    out = [pack(">", HEADER, values, header)]
    for number, (offset, data) in enumerate([*under, *found, *over]):
        out += [(raw or {}).get(number, b""), record(offset, data)]
    return cut(b"".join([*out, END * end, tail]), truncate)
