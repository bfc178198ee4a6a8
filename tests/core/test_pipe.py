"""A pipe as input, and drawing ahead of it."""

from __future__ import annotations

import os
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from dumpxlate.codecs.workers import ahead
from dumpxlate.io.pipe import Pipe

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def ends() -> Iterator[tuple[Pipe, int]]:
    """A pipe, and the end to write to; a test may close that."""
    theirs, ours = os.pipe()
    yield Pipe(theirs, "in"), ours
    os.close(theirs)


def test_looking_takes_nothing(ends: tuple[Pipe, int]) -> None:
    pipe, end = ends
    os.write(end, b"abcdefgh")
    os.close(end)
    assert bytes(pipe.peek(3)) == b"abc"
    assert pipe.position == 0
    assert bytes(pipe.peek(100)) == b"abcdefgh"
    assert bytes(pipe.take(2)) == b"ab"
    assert pipe.position == 2
    assert bytes(pipe.read(4)) == b"cdef"
    buffer = bytearray(9)
    assert pipe.fill(memoryview(buffer)) == 2
    assert buffer.startswith(b"gh")
    assert pipe.position == 8
    assert bytes(pipe.peek(1)) == bytes(pipe.take(1)) == bytes(pipe.read(1)) == b""


def test_what_was_looked_at_stays_as_it_was(ends: tuple[Pipe, int]) -> None:
    pipe, end = ends
    os.write(end, b"ab")
    seen = pipe.peek(2)
    os.write(end, b"cd")
    os.close(end)
    assert bytes(pipe.peek(4)) == b"abcd"
    pipe.read(9)
    assert bytes(seen) == b"ab"


def test_bytes_that_come_one_by_one(ends: tuple[Pipe, int]) -> None:
    pipe, end = ends

    def write() -> None:
        for number in range(200):
            os.write(end, bytes([number]))
        os.close(end)

    writer = threading.Thread(target=write)
    writer.start()
    assert bytes(pipe.take(7)) == bytes(range(7))
    assert bytes(pipe.read(100)) == bytes(range(7, 107))
    pipe.drain()
    assert pipe.position == 200
    writer.join()


def test_a_stop_ends_waiting(ends: tuple[Pipe, int]) -> None:
    pipe, end = ends
    os.write(end, b"ab")
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(bytes(pipe.read(10))))
    reader.start()
    pipe.stop()
    reader.join(20)
    assert not reader.is_alive()
    assert found[0] in (b"", b"ab")
    os.close(end)


def test_items_are_drawn_ahead_but_not_far() -> None:
    drawn: list[int] = []

    def items() -> Iterator[int]:
        for number in range(10):
            drawn.append(number)
            yield number

    with closing(ahead(items(), lambda: None)) as found:
        assert next(found) == 0
        deadline = time.monotonic() + 20
        while len(drawn) < 3 and time.monotonic() < deadline:
            time.sleep(0.001)
        assert drawn == [0, 1, 2]
        assert list(found) == list(range(1, 10))


def test_what_drawing_raises_comes_in_its_turn() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("third")

    found = ahead(items(), lambda: None)
    assert [next(found), next(found)] == [1, 2]
    with pytest.raises(ValueError, match="third"):
        next(found)


def test_leaving_early_stops_and_waits(ends: tuple[Pipe, int]) -> None:
    pipe, end = ends
    os.write(end, b"abc")
    before = threading.active_count()
    with closing(ahead((bytes(pipe.take(1)) for _ in range(9)), pipe.stop)) as found:
        assert next(found) == b"a"
    assert threading.active_count() == before
    os.close(end)
