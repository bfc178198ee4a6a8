"""Many reads in one system call give what single reads give, also where the kernel takes none or few of them."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path

import numpy as np
import pytest

from dumpxlate.io import aio
from dumpxlate.io.source import PreadFile

DATA = random.Random(5).randbytes(300_000)


@pytest.fixture(autouse=True)
def _from_the_first_range_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aio, "PAYS", 0)


@pytest.fixture
def file(tmp_path: Path) -> int:
    path = tmp_path / "data"
    path.write_bytes(DATA)
    return os.open(path, os.O_RDONLY)


def ranges(count: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    return draw.integers(0, len(DATA) - 500, count), draw.integers(1, 500, count)


def available() -> None:
    if aio._context() is None:
        pytest.skip("this kernel or machine offers no AIO")


def read(fd: int, offset: np.ndarray, length: np.ndarray) -> tuple[np.ndarray | None, bytes]:
    into = np.zeros(int(length.sum()), np.uint8)
    at = np.cumsum(length) - length
    return aio.read_many(fd, offset, length, into, at), into.tobytes()


@pytest.mark.parametrize("count", [1, 31, 1023, 1024, 1025, 5000])
def test_every_range_is_read(file: int, count: int) -> None:
    available()
    offset, length = ranges(count)
    got, body = read(file, offset, length)
    assert got is not None
    assert got.tolist() == length.tolist()
    assert body == b"".join(DATA[at : at + size] for at, size in zip(offset.tolist(), length.tolist(), strict=True))


def test_end_of_file_and_failures_are_told_range_by_range(file: int) -> None:
    available()
    got, _ = read(file, np.array([0, len(DATA) - 10, len(DATA) + 5]), np.array([100, 100, 100]))
    assert got is not None
    assert got.tolist() == [100, 10, 0]
    os.close(file)
    assert aio.read_many(file, np.array([0]), np.array([8]), np.zeros(8, np.uint8), np.array([0])) is None


def test_threads_do_not_share_a_queue(file: int) -> None:
    available()
    wrong: list[int] = []

    def work(seed: int) -> None:
        for turn in range(20):
            offset, length = ranges(500, seed * 100 + turn)
            _, body = read(file, offset, length)
            expected = b"".join(DATA[at : at + size] for at, size in zip(offset.tolist(), length.tolist(), strict=True))
            if body != expected:
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("refusal", ["no context", "takes none"])
def test_a_source_reads_one_by_one_where_the_kernel_does_not(
    file: int, monkeypatch: pytest.MonkeyPatch, refusal: str
) -> None:
    if refusal == "no context":
        monkeypatch.setattr(aio, "_context", lambda: None)
    else:
        available()
        monkeypatch.setattr(aio._Context, "run", lambda self, count: False)
    source = PreadFile(file, "data", len(DATA))
    offset, length = ranges(2000)
    body, moved = source.gather(offset, length.astype(np.int32))
    for at, size, where in zip(offset.tolist(), length.tolist(), moved.tolist(), strict=True):
        assert body[where : where + size] == DATA[at : at + size]
    source.close()


def test_contexts_are_given_back(file: int) -> None:
    """Each takes a share of /proc/sys/fs/aio-max-nr: many threads one after another must not use it up."""
    available()

    def work() -> None:
        assert aio._context() is not None

    for _ in range(120):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert int(Path("/proc/sys/fs/aio-nr").read_text()) < 100 * 1024


def test_few_ranges_go_one_by_one(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A queue costs as much when it goes as many of them."""
    available()
    monkeypatch.setattr(aio, "PAYS", 100)
    monkeypatch.setattr(aio._Use, "ranges", 0)
    offset, length = ranges(60)
    assert read(file, offset, length)[0] is None
    assert read(file, offset, length)[0] is not None


def test_expected_ranges_need_no_single_calls(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    available()
    monkeypatch.setattr(aio, "PAYS", 100)
    monkeypatch.setattr(aio._Use, "ranges", 0)
    aio.expect(100)
    assert read(file, *ranges(60))[0] is None
    aio.expect(101)
    assert read(file, *ranges(60))[0] is not None


def test_a_queue_goes_while_other_work_is_done(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What few ranges follow go one by one, and a new queue is made where there are many again."""
    available()
    monkeypatch.setattr(aio, "PAYS", 100)
    monkeypatch.setattr(aio._Use, "ranges", 101)
    offset, length = ranges(60)
    assert read(file, offset, length)[0] is not None
    first, before = aio._context(), threading.active_count()
    aio.leave()
    aio.rest()
    assert threading.active_count() == before, "a process with two threads is not forked"
    blocks = np.zeros(1, np.uint64)
    assert first is not None
    assert aio._syscall(first._events, first._id.value, 0, 1, blocks.ctypes.data, 0) < 0, "the kernel still knows it"
    assert read(file, offset, length)[0] is None
    got, body = read(file, offset, length)
    assert got is not None
    assert body == b"".join(DATA[at : at + size] for at, size in zip(offset.tolist(), length.tolist(), strict=True))
