"""Where the words of a bitmap are: read by blocks, wherever a file has them, holes and all."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dumpxlate.bitmap import PageBitmap
from dumpxlate.errors import CorruptDumpError, TruncatedDumpError
from dumpxlate.extents import Extents
from dumpxlate.io.bits import BLOCK, BLOCK_BYTES, ArrayBits, InvertedBits, JoinedBits, SourceBits
from dumpxlate.io.joined import ConcatenatedSource, TailedSource
from dumpxlate.io.source import BytesSource, open_source
from dumpxlate.io.spliced import SplicedSource
from dumpxlate.io.spool import MappedFile

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dumpxlate.arrays import Int64s
    from dumpxlate.io.bits import Bits
    from dumpxlate.io.source import Source

quick = settings(deadline=None, max_examples=60)
LENGTH = 5 * BLOCK_BYTES + 333
BODY = np.random.default_rng(16).integers(0, 256, LENGTH, np.uint8).tobytes()
AT = 77
FILE = bytes(AT) + BODY + b"\xff" * 500


def as_read(path: Path) -> Source:
    return open_source(path)


def as_mapped(path: Path) -> Source:
    return MappedFile(os.open(path, os.O_RDONLY), "mapped", len(FILE))


def as_bytes(path: Path) -> Source:
    return BytesSource(path.read_bytes())


def as_tailed(path: Path) -> Source:
    whole = path.read_bytes()
    return TailedSource(BytesSource(whole[:3000]), whole[3000:])


def as_joined(path: Path) -> Source:
    whole = path.read_bytes()
    return ConcatenatedSource([BytesSource(whole[:3000]), BytesSource(whole[3000:4000]), BytesSource(whole[4000:])])


def as_spliced(path: Path) -> Source:
    """Pieces of odd lengths, the last one first in the outer file."""
    whole = path.read_bytes()
    start, count = ints(0, 1500, 4001), ints(1500, 2501, len(whole) - 4001)
    outer = whole[4001:] + whole[:4001]
    return SplicedSource(
        BytesSource(outer), Extents(start, count, ints(len(whole) - 4001, len(whole) - 2501, 0)), len(whole)
    )


def ints(*values: int) -> Int64s:
    return np.array(values, np.int64)


def rows(body: bytes) -> list[bytes]:
    """Whole blocks, the last filled up with zeros."""
    return [body[at : at + BLOCK_BYTES].ljust(BLOCK_BYTES, b"\0") for at in range(0, len(body), BLOCK_BYTES)]


def taken(bits: Bits, *block: int) -> list[bytes]:
    words = bits.take(ints(*block))
    assert (words.shape, words.dtype) == ((len(block), BLOCK), np.uint64)
    return [row.tobytes() for row in words]


@pytest.mark.parametrize("kind", [as_read, as_mapped, as_bytes, as_tailed, as_joined, as_spliced])
@pytest.mark.parametrize(
    "block", [(0,), (5,), (4, 5), (0, 1, 2, 3, 4, 5), (5, 0), (3, 1, 1, 2), (0, 2, 3, 5), (5, 5)], ids=str
)
def test_blocks_in_any_order(tmp_path: Path, kind: Callable[[Path], Source], block: tuple[int, ...]) -> None:
    (tmp_path / "file").write_bytes(FILE)
    with contextlib.closing(kind(tmp_path / "file")) as source:
        bits = SourceBits(source, AT, LENGTH)
        assert bits.blocks == 6
        assert taken(bits, *block) == [rows(BODY)[number] for number in block]
        assert [column.tolist() for column in bits.used()] == [[0], [6]]


@pytest.mark.parametrize("words", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK])
def test_words_in_memory(words: int) -> None:
    bits = ArrayBits(np.frombuffer(BODY, "<u8", words))
    assert bits.blocks == -(-words // BLOCK)
    assert sum(bits.used()[1].tolist()) == bits.blocks
    if words:
        last = bits.blocks - 1
        assert taken(bits, last, 0) == [rows(BODY[: words * 8])[number] for number in (last, 0)]


def test_made_of_others() -> None:
    one, other = SourceBits(BytesSource(BODY), 0, LENGTH), ArrayBits(np.frombuffer(BODY[::-1], "<u8", 6 * BLOCK - 100))
    flipped = bytes(byte ^ 0xFF for byte in BODY.ljust(6 * BLOCK_BYTES, b"\0"))
    assert taken(InvertedBits(one), 5, 2) == [rows(flipped)[5], rows(flipped)[2]]
    reverse = BODY[::-1][: (6 * BLOCK - 100) * 8].ljust(6 * BLOCK_BYTES, b"\0")
    both = bytes(a | b for a, b in zip(BODY.ljust(6 * BLOCK_BYTES, b"\0"), reverse, strict=True))
    assert taken(JoinedBits(one, other), 0, 5, 1) == [rows(both)[number] for number in (0, 5, 1)]


@quick
@given(
    pieces=st.lists(st.tuples(st.integers(0, 59), st.integers(1, 3)), max_size=6),
    at=st.integers(0, 20000),
    length=st.integers(0, 60 << 12),
)
@example(pieces=[(0, 60)], at=0, length=60 << 12)
@example(pieces=[], at=5, length=60 << 12)
@example(pieces=[(3, 1)], at=(3 << 12) - 1, length=2)
@example(pieces=[(3, 1)], at=4 << 12, length=4096)
def test_holes_are_passed_over(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[tuple[int, int]], at: int, length: int
) -> None:
    """What is not told to be used is zero, and of a bitmap in a hole nothing is."""
    path = tmp_path_factory.getbasetemp() / "holes"
    with path.open("wb") as file:
        for first, count in pieces:
            file.seek(first << 12)
            file.write(b"\xee" * (count << 12))
        file.truncate(80 << 12)
    body = path.read_bytes()[at : at + length]
    with open_source(path) as source:
        bits = SourceBits(source, at, length)
        start, count = bits.used()
        inside = np.zeros(bits.blocks, bool)
        for first, number in zip(start.tolist(), count.tolist(), strict=True):
            assert 0 <= first < first + number <= bits.blocks
            assert not inside[first : first + number].any()
            inside[first : first + number] = True
        assert (start[1:] > (start + count)[:-1]).all()
        assert [number for number, row in enumerate(rows(body)) if any(row) and not inside[number]] == []
        if not path.stat().st_blocks:
            assert not inside.any()
    path.unlink()


def test_holes_of_both_count() -> None:
    """What one file has no bytes for, the other may have."""

    class Holey(BytesSource):
        def data_runs(self, start: int = 0, stop: int | None = None) -> tuple[Int64s, Int64s]:
            return self.runs

    sources = Holey(bytes(500 * BLOCK_BYTES)), Holey(bytes(500 * BLOCK_BYTES))
    sources[0].runs = ints(0, 201 * BLOCK_BYTES - 1), ints(1, 2)
    sources[1].runs = ints(BLOCK_BYTES), ints(BLOCK_BYTES)
    bits = [SourceBits(source, 0, source.size) for source in sources]
    assert [column.tolist() for column in bits[0].used()] == [[0, 200], [1, 2]]
    assert [column.tolist() for column in JoinedBits(*bits).used()] == [[0, 200], [2, 2]]
    assert [column.tolist() for column in InvertedBits(bits[0]).used()] == [[0], [500]]
    sources[0].runs = ints(0, 10 * BLOCK_BYTES, 499 * BLOCK_BYTES), ints(1, 1, BLOCK_BYTES)
    assert [column.tolist() for column in bits[0].used()] == [[0, 499], [11, 1]]  # nine blocks are read along


@pytest.mark.parametrize(("at", "length"), [(0, len(FILE) + 1), (len(FILE), 1), (-1, 5), (1 << 62, 1 << 62)])
def test_beyond_the_file(at: int, length: int) -> None:
    with pytest.raises(TruncatedDumpError):
        SourceBits(BytesSource(FILE, "file"), at, length)


def test_a_file_that_becomes_shorter(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(FILE)
    with open_source(path) as source:
        bits = SourceBits(source, AT, LENGTH)
        os.truncate(path, 2000)
        with pytest.raises(TruncatedDumpError):
            bits.take(ints(1))
        with pytest.raises(TruncatedDumpError):
            bits.used()


def test_a_file_that_changes(tmp_path: Path) -> None:
    """A bit more or less would move all pages behind it; what was counted must still be there."""
    path = tmp_path / "file"
    path.write_bytes(FILE)
    with open_source(path) as source:
        pages = PageBitmap(SourceBits(source, AT, LENGTH))
        before = pages.rank(ints(3 * 8 * BLOCK_BYTES + 100))
        with path.open("r+b") as file:
            file.seek(AT + 2 * BLOCK_BYTES + 9)
            file.write(bytes([BODY[2 * BLOCK_BYTES + 9] ^ 0x10]))
        assert pages.rank(ints(3 * 8 * BLOCK_BYTES + 100)) == before  # another block
        for ask in (
            lambda: pages.rank(ints(2 * 8 * BLOCK_BYTES + 5)),
            lambda: pages.contains(ints(2 * 8 * BLOCK_BYTES + 5)),
            lambda: pages.select(0, pages.count),
            pages.runs,
        ):
            with pytest.raises(
                CorruptDumpError, match=r"file: .*changed while it was read, at the pages from 0x4000 on"
            ):
                ask()
