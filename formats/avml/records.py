"""Finds the blocks of an AVML file and the chunks in them: headers only, nothing is unpacked."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dumpxlate.errors import CorruptDumpError, FormatError, TruncatedDumpError
from dumpxlate.formats.avml.frames import CHUNK, COMPRESSED, FIRST_SKIPPABLE, IDENTIFIER, RAW, STREAM
from dumpxlate.io.windowed import WindowedReader
from dumpxlate.lime import AVML_MAGIC, LIME_MAGIC, RECORD, LimeHeader, check_record, next_record
from dumpxlate.structs import parse

if TYPE_CHECKING:
    from dumpxlate.io.source import Source

__all__ = ["Blocks", "find_blocks", "is_mixed"]

_HEAD = 4
_CHECKSUM = 4
_TRAILER = 8
_LONGEST = 128 << 10
"""Bytes of a chunk that are believed: 64 KiB that snappy could not shrink have 76,490."""
_MIXED_LIMIT = 1 << 16
_MOST_DEFECTS = 1 << 10
"""Broken blocks behind which the walk goes on."""


@dataclass(slots=True)
class Blocks:
    """What a file holds, in its order.

    The bytes that everything unpacks to, one block behind the other, are what offsets of chunks and blocks count.

    Attributes:
        ranges: first address, length and offset of each block, one after the other.
        chunks: bytes it unpacks to, place in the file and bytes there of each chunk. Memory that is not compressed
            is cut into chunks too, whose length there is the same.
        packed: whether each chunk is one of snappy's.
        remarks: oddities.
        damage: what is missing at the end.
        broken: addresses (from, up to) of blocks that are not there to their ends.
    """

    ranges: array[int] = field(default_factory=lambda: array("q"))
    chunks: array[int] = field(default_factory=lambda: array("q"))
    packed: bytearray = field(default_factory=bytearray)
    remarks: list[str] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)
    broken: list[tuple[int, int]] = field(default_factory=list)
    size: int = 0

    def add(self, length: int, at: int, there: int, *, packed: bool) -> None:
        """Take the next chunk."""
        self.chunks.extend((length, at, there))
        self.packed.append(packed)
        self.size += length


def is_mixed(source: Source) -> bool:
    """Tell whether a file that begins with LiME's records has AVML's behind them."""
    reader, at = WindowedReader(source), 0
    for _ in range(_MIXED_LIMIT):
        try:
            header = parse(LimeHeader, reader.read(at, RECORD), 0, "<")
            check_record(header, at)
        except FormatError:
            return False
        if header.magic == AVML_MAGIC:
            return True
        at += RECORD + header.e_addr - header.s_addr + 1
    return False


def find_blocks(source: Source) -> Blocks:
    """Walk over all blocks and their chunks; behind what is broken, the walk goes on with the next block.

    Raises:
        FormatError: the first block makes no sense.
    """
    found = Blocks()
    reader, at, lowest = WindowedReader(source), 0, 0
    while at < source.size:
        number, before = len(found.ranges) // 3, found.size
        header = None
        try:
            header = _header(reader, at)
            end = at + RECORD
            if header.magic == LIME_MAGIC:
                end = _plain(source, end, header, found)
            else:
                end = _trailer(reader, end, _chunks(source, reader, end, header, found), number, found)
        except FormatError as error:
            if not found.size:
                raise
            if header:
                found.broken.append((header.s_addr, header.e_addr + 1))
                lowest = header.e_addr + 1
            end = _behind(source, at, lowest) if len(found.damage) < _MOST_DEFECTS else source.size
            left = "what follows is left out" if end == source.size else f"the next block is at {end:#x}"
            found.damage.append(f"block {number} at {at:#x}: {error}; {left}")
        if header and found.size > before:
            found.ranges.extend((header.s_addr, found.size - before, before))
            lowest = header.e_addr + 1
        at = end
    return found


def _behind(source: Source, at: int, lowest: int) -> int:
    """Give where the next block is, whose snappy stream begins as all do; the end of the file if there is none."""

    def follows(_: LimeHeader, place: int) -> bool:
        begin = place + RECORD
        return bytes(source.view(begin, min(len(IDENTIFIER), source.size - begin))) == IDENTIFIER

    place = next_record(source, at, lowest, (AVML_MAGIC,), follows)
    return source.size if place is None else place


def _header(reader: WindowedReader, at: int) -> LimeHeader:
    header = parse(LimeHeader, reader.read(at, RECORD), 0, "<", what="block header")
    check_record(header, at)
    if header.reserved and header.magic == AVML_MAGIC:
        raise CorruptDumpError(f"reserved bytes are {header.reserved:#x}, expected 0", offset=at, what="block header")
    return header


def _plain(source: Source, at: int, header: LimeHeader, found: Blocks) -> int:
    """Take a block that is not compressed."""
    length = header.e_addr - header.s_addr + 1
    end = min(at + length, source.size)
    for begin in range(at, end, CHUNK):
        there = min(CHUNK, end - begin)
        found.add(there, begin, there, packed=False)
    if end < at + length:
        raise TruncatedDumpError("block", offset=at, wanted=length, available=source.size - at)
    return end


def _chunks(source: Source, reader: WindowedReader, at: int, header: LimeHeader, found: Blocks) -> int:
    """Take the chunks of a block until they make up its range; gives where they end."""
    left = header.e_addr - header.s_addr + 1
    first = reader.read(at, len(IDENTIFIER))
    if first != IDENTIFIER[: len(first)]:
        raise CorruptDumpError(f"begins with {first[:4].hex(' ')}: no snappy stream", offset=at, what="block")
    while left:
        head = reader.read(at, _HEAD + _CHECKSUM + 3)
        size = int.from_bytes(head[1:_HEAD], "little")
        if len(head) < _HEAD or at + _HEAD + size > source.size:
            raise TruncatedDumpError("snappy chunk", offset=at, wanted=_HEAD + size, available=source.size - at)
        kind = head[0]
        if kind in (COMPRESSED, RAW):
            length = size - _CHECKSUM if kind == RAW else _varint(head[_HEAD + _CHECKSUM :])
            if not (0 < length <= min(CHUNK, left) and _CHECKSUM < size <= _LONGEST):
                raise CorruptDumpError(
                    f"{size} bytes that unpack to {length}: expected 1 to {min(CHUNK, left)}",
                    offset=at,
                    what="snappy chunk",
                )
            found.add(length, at, _HEAD + size, packed=True)
            left -= length
        elif kind < FIRST_SKIPPABLE:
            raise CorruptDumpError(f"type {kind:#04x} is not known", offset=at, what="snappy chunk")
        at += _HEAD + size
    return at


def _varint(head: memoryview) -> int:
    """Read the length in front of a snappy block; 64 KiB take three bytes."""
    value = 0
    for place, byte in enumerate(head):
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value
    return -1


def _trailer(reader: WindowedReader, start: int, at: int, number: int, found: Blocks) -> int:
    """Check the length behind the chunks, which padding may still precede; gives where the next block begins."""
    while True:
        body = reader.read(at, _TRAILER)
        if len(body) < _TRAILER:
            raise TruncatedDumpError("length of the block", offset=at, wanted=_TRAILER, available=len(body))
        value = int.from_bytes(body, "little")
        if value == at - start:
            return at + _TRAILER
        size = int.from_bytes(body[1:_HEAD], "little")
        if not FIRST_SKIPPABLE <= body[0] < STREAM or not reader.read(at + _HEAD + size, 1):
            found.remarks.append(
                f"block {number} ends with a length of {value:#x} at {at:#x}, expected {at - start:#x}; it is ignored"
            )
            return at + _TRAILER
        at += _HEAD + size
