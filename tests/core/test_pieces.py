"""Memory in pieces: the same pages as in one, whatever the ranges are."""

from __future__ import annotations

import os
import random
import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dumpxlate import pieces
from dumpxlate.errors import UnsupportedFeatureError
from dumpxlate.io.pipe import Pipe
from dumpxlate.pieces import Gathering

if TYPE_CHECKING:
    from dumpxlate.segments import SegmentIndex

PAGE = 64
PIECE = 256


def pipe_of(data: bytes) -> Pipe:
    theirs, ours = os.pipe()

    def write() -> None:
        with os.fdopen(ours, "wb") as file:
            file.write(data)

    threading.Thread(target=write, daemon=True).start()
    return Pipe(theirs)


def pages_of(index: SegmentIndex) -> dict[int, bytes]:
    pfn = index.extents.pages().select(0, index.extents.pages().count)
    offset = index.extents.offsets(pfn, PAGE)
    body, at = index.source.gather(offset, np.full(len(pfn), PAGE, np.int32))
    return {number: bytes(body[low : low + PAGE]) for number, low in zip(pfn.tolist(), at.tolist(), strict=True)}


@given(st.lists(st.integers(0, 4 * PIECE), max_size=12, unique=True), st.integers(0, 99))
def test_pages_are_those_of_the_ranges(edges: list[int], seed: int) -> None:
    edges = sorted(edges)
    ranges = list(zip(edges[::2], edges[1::2], strict=False))
    memory = random.Random(seed).randbytes(4 * PIECE)
    model: dict[int, bytearray] = {}
    for low, high in ranges:
        for address in range(low, high):
            model.setdefault(address // PAGE, bytearray(PAGE))[address % PAGE] = memory[address]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "BATCH_BYTES", PIECE)
        pipe = pipe_of(b"".join(memory[low:high] for low, high in ranges))
        gathering = Gathering(pipe, PAGE)
        found = [index for low, high in ranges for index in gathering.take(low, high - low)]
        found.append(gathering.rest())
    pages: dict[int, bytes] = {}
    for index in found:
        new = pages_of(index)
        assert not set(new) & set(pages)
        assert not new or not pages or min(new) > max(pages)
        pages |= new
    assert pages == {pfn: bytes(data) for pfn, data in model.items()}
    os.close(pipe.fd)


def test_memory_that_comes_twice_is_refused() -> None:
    gathering = Gathering(pipe_of(bytes(100)), PAGE)
    list(gathering.take(1000, 50))
    with pytest.raises(UnsupportedFeatureError, match="memory from 0x419 on comes behind memory up to 0x41a"):
        list(gathering.take(1049, 50))


def test_a_pipe_that_ends_first() -> None:
    gathering = Gathering(pipe_of(b"x" * 100), PAGE)
    assert list(gathering.take(PAGE, 1 << 40)) == []
    assert gathering.end == PAGE + 100
    assert pages_of(gathering.rest()) == {1: b"x" * PAGE, 2: b"x" * 36 + bytes(28)}


def test_many_short_ranges_are_no_large_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "_SEGMENTS", 10)
    gathering = Gathering(pipe_of(b"x" * 100), PAGE)
    found = [index for number in range(100) for index in gathering.take(number * 2 * PAGE, 1)]
    assert len(found) > 5
    assert sum(len(pages_of(index)) for index in (*found, gathering.rest())) == 100
