"""Bytes in: every kind of source against plain slices, and what is refused without hanging."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import socket
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dumpxlate.errors import TruncatedDumpError, UnknownFormatError, UnsupportedFeatureError
from dumpxlate.io import source as module
from dumpxlate.io import spool
from dumpxlate.io.joined import ConcatenatedSource, TailedSource
from dumpxlate.io.source import BytesSource, PreadFile, open_source
from dumpxlate.io.spool import MappedFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from dumpxlate.arrays import Int32s, Int64s
    from dumpxlate.io.source import Source

DATA = random.Random(5).randbytes(10_000)
SIZE = len(DATA)


def ints(values: Iterable[int]) -> Int64s:
    return np.array(list(values), np.int64)


def sizes(values: Iterable[int]) -> Int32s:
    return np.array(list(values), np.int32)


def mapped(path: Path) -> Source:
    return MappedFile(os.open(path, os.O_RDONLY), str(path), path.stat().st_size)


def read(path: Path) -> Source:
    return open_source(path)


def plain(path: Path) -> Source:
    return BytesSource(path.read_bytes(), str(path))


def tailed(path: Path) -> Source:
    return TailedSource(BytesSource(DATA[:6000], str(path)), DATA[6000:])


def tailed_read(path: Path) -> Source:
    path.write_bytes(DATA[:6000])
    return TailedSource(read(path), DATA[6000:])


def joined(path: Path) -> Source:
    """Parts with seams at 0, 4096, 6000 (with an empty part between) and 6001."""
    edges = [0, 0, 4096, 6000, 6000, 6001, SIZE]
    return ConcatenatedSource([BytesSource(DATA[low:high], str(path)) for low, high in pairwise(edges)])


def joined_read(path: Path) -> Source:
    parts = []
    for number, piece in enumerate((DATA[:4096], DATA[4096:6000], DATA[6000:])):
        part = path.with_name(f"{path.name}{number or ''}")
        part.write_bytes(piece)
        parts.append(read(part) if number % 2 else mapped(part))
    return ConcatenatedSource(parts)


KINDS = [mapped, read, plain, tailed, tailed_read, joined, joined_read]


@pytest.fixture(params=KINDS)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Source]:
    path = tmp_path / "data"
    path.write_bytes(DATA)
    opened = request.param(path)
    yield opened
    opened.close()


def test_each_kind_is_what_it_should_be(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(DATA)
    for make, kind in ((mapped, MappedFile), (read, PreadFile)):
        with contextlib.closing(make(path)) as opened:
            assert isinstance(opened, kind)


def test_views(source: Source, tmp_path: Path) -> None:
    assert (source.name, source.size) == (str(tmp_path / "data"), SIZE)
    assert source.view() == DATA
    for offset, length in [(0, 0), (0, 1), (5, 100), (5990, 20), (6000, 1), (SIZE - 1, 1), (SIZE, 0), (5999, 2)]:
        found = source.view(offset, length)
        assert bytes(found) == DATA[offset : offset + length]
        assert found.readonly
        assert bytes(source.view(offset)) == DATA[offset:]


@pytest.mark.parametrize(
    ("offset", "length"), [(0, SIZE + 1), (SIZE, 1), (SIZE + 5, None), (-1, 1), (-5, None), (5, -1), (1 << 70, 4)]
)
def test_views_that_leave_the_source(source: Source, offset: int, length: int | None) -> None:
    with pytest.raises(TruncatedDumpError) as caught:
        source.view(offset, length)
    assert str(caught.value).startswith(f"{source.name}: range")
    assert "-" not in str(caught.value).partition("needs")[2]
    assert caught.value.offset == offset


ranges_of = st.lists(
    st.tuples(st.integers(0, SIZE) | st.integers(5900, 6100), st.sampled_from([0, 1, 7, 64, 4096])), max_size=20
)


def gathered(source: Source, ranges: list[tuple[int, int]]) -> None:
    """Ranges inside read as they should, those outside point outside of the body, skipped ones are negative."""
    offset, size = ints(each[0] for each in ranges), sizes(each[1] for each in ranges)
    body, moved = source.gather(offset, size)
    assert moved.dtype == np.int64
    assert len(moved) == len(ranges)
    for (begin, length), at in zip(ranges, moved.tolist(), strict=True):
        if begin < 0:
            assert at < 0
        elif begin + length <= SIZE:
            assert bytes(body[at : at + length]) == DATA[begin : begin + length]
        else:
            assert at + length > len(body)


@pytest.mark.parametrize("kind", KINDS)
def test_gather_is_slices(tmp_path_factory: pytest.TempPathFactory, kind: Callable[[Path], Source]) -> None:
    path = tmp_path_factory.mktemp("gather") / "data"
    path.write_bytes(DATA)
    with contextlib.closing(kind(path)) as source:

        @settings(deadline=None, max_examples=60)
        @given(ranges=ranges_of)
        @example(ranges=[])
        @example(ranges=[(0, 4096), (0, 4096), (4096, 1904)])
        @example(ranges=[(5990, 20)])
        @example(ranges=[(6000, 64), (0, 64)])
        @example(ranges=[(-1, 0), (10, 7), (-1, 0)])
        @example(ranges=[(-1, 0)])
        @example(ranges=[(SIZE - 1, 64), (3, 7)])
        @example(ranges=[(SIZE, 1), (SIZE + 4096, 4096), (-1, 0), (5999, 64)])
        @example(ranges=[((1 << 63) - 1, 4096), (8, 64), (6000, 7)])
        @example(ranges=[((1 << 63) - 4096, 4096)])
        @example(ranges=[(SIZE, 0), (0, 0)])
        def check(ranges: list[tuple[int, int]]) -> None:
            gathered(source, ranges)

        check()
        dice = random.Random(6)
        for count in (5, 30, 200):
            gathered(source, [(dice.randrange(SIZE), dice.choice([1, 64, 1000])) for _ in range(count)])
            gathered(source, sorted((dice.randrange(80) * 64, 64) for _ in range(count)))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (mapped, [-1, 0, 5999, 6000]),
        (read, [-1, 0, 5999, 6000]),
        (plain, [-1, 0, 5999, 6000]),
        (tailed, [-1, 0, 5999, -1]),
        (joined, [-1] * 4),
    ],
)
def test_where_in_the_file_bytes_are(tmp_path: Path, kind: Callable[[Path], Source], expected: list[int]) -> None:
    path = tmp_path / "data"
    path.write_bytes(DATA)
    with contextlib.closing(kind(path)) as source:
        assert source.place(ints([-1, 0, 5999, 6000])).tolist() == expected


@pytest.mark.parametrize("kind", [mapped, read, tailed, tailed_read, joined, joined_read])
def test_a_negative_size_brings_nothing(tmp_path: Path, kind: Callable[[Path], Source]) -> None:
    """An unsigned size of a hostile file, cut to 32 bits."""
    path = tmp_path / "data"
    path.write_bytes(DATA)
    with contextlib.closing(kind(path)) as source:
        body, moved = source.gather(ints([100, 6000, 300]), sizes([-50, 16, -(1 << 31)]))
        assert bytes(body[moved[1] : moved[1] + 16]) == DATA[6000:6016]
        assert len(body) == 16
        assert moved[[0, 2]].tolist() == [16, 16]


@pytest.mark.parametrize("kind", [mapped, read])
def test_gather_reads_neighbours_in_one_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Callable[[Path], Source]
) -> None:
    """In the order of the file, whatever the order asked for, into the order asked for."""
    path = tmp_path / "data"
    path.write_bytes(DATA)
    calls: list[tuple[int, int]] = []
    preadv = os.preadv

    def spy(fd: int, buffers: list[memoryview], offset: int) -> int:
        calls.append((offset, len(buffers[0])))
        return preadv(fd, buffers, offset)

    with contextlib.closing(kind(path)) as source:
        monkeypatch.setattr(module.os, "preadv", spy)
        gathered(source, [(9000, 10), (9010, 7), (-1, 0), (0, 4096), (SIZE, 5), (4096, 64), (5000, 7)])
    assert calls == [(0, 4096 + 64), (5000, 7), (9000, 17)]


def test_short_reads_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "data"
    path.write_bytes(DATA)
    preadv = os.preadv
    with contextlib.closing(read(path)) as source:
        monkeypatch.setattr(module.os, "preadv", lambda fd, parts, at: preadv(fd, [parts[0][:7]], at))
        assert source.view(3, 100) == DATA[3:103]
        gathered(source, [(50, 64), (5000, 64), (5064, 7)])


@pytest.mark.parametrize("kind", [mapped, read])
def test_a_file_that_shrinks_meanwhile(tmp_path: Path, kind: Callable[[Path], Source]) -> None:
    """An error of ours, where pages of a mapping would be a SIGBUS."""
    path = tmp_path / "data"
    path.write_bytes(DATA)
    with contextlib.closing(kind(path)) as source:
        os.truncate(path, 4000)
        with pytest.raises(TruncatedDumpError) as caught:
            source.gather(ints([3900, 100]), sizes([200, 8]))
        assert (caught.value.wanted, caught.value.available) == (200, 100)
        assert caught.value.path == str(path)


def test_a_large_table_reads_holes_as_zeros_without_memory(tmp_path: Path) -> None:
    path = tmp_path / "data"
    with path.open("wb") as file:
        file.truncate(1 << 40)
        file.seek(1 << 31)
        file.write(b"data")
    with open_source(path) as source:
        found = source.view(1 << 30, 1 << 31)
        assert found[(1 << 30) : (1 << 30) + 4] == b"data"
        assert (found[0], found[-1]) == (0, 0)
        with pytest.raises(UnsupportedFeatureError, match="1,099,511,627,776 bytes"):
            source.view()
        os.truncate(path, 1 << 31)
        with pytest.raises(TruncatedDumpError) as caught:
            source.view(1 << 30, 1 << 31)
        assert caught.value.available == 1 << 30


def test_tables_of_a_file_that_shrinks_are_never_mapped(tmp_path: Path) -> None:
    """What has a name can be made shorter by others: a view of it must be an error then, and no SIGBUS later."""
    path = tmp_path / "data"
    path.write_bytes(DATA)
    with open_source(path) as source:
        before = source.view(5000, 100)
        os.truncate(path, 4000)
        assert before == DATA[5000:5100]
        with pytest.raises(TruncatedDumpError) as caught:
            source.view(3900, 200)
        assert (caught.value.offset, caught.value.wanted, caught.value.available) == (3900, 200, 100)


def test_views_of_a_mapping_copy_nothing(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(DATA)
    with contextlib.closing(mapped(path)) as source:
        one, other = np.frombuffer(source.view(0, 100), np.uint8), np.frombuffer(source.view(), np.uint8)
        assert np.shares_memory(one, other)
        del one, other


def rss_of(path: Path) -> int:
    """Bytes of a file that are mapped into this process and resident."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            inside = line.endswith(str(path))
        elif inside and words[0] == "Rss:":
            total += 1024 * int(words[1])
    return total


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs /proc")
def test_what_was_viewed_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table as large as memory is read through a mapping while pages are gathered."""
    path = tmp_path / "large"
    path.write_bytes(DATA * 800)
    monkeypatch.setattr(spool, "_RELEASE_EVERY", 4)
    with contextlib.closing(mapped(path)) as source:
        rows = np.frombuffer(source.view(), np.uint8)
        before = int(rows.sum())
        assert rss_of(path) > 4 << 20
        for _ in range(4):
            gathered(source, [(0, 64)])
        assert rss_of(path) < 1 << 20
        assert int(rows.sum()) == before
        del rows


holes_of = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=5)


@settings(deadline=None, max_examples=30)
@given(pieces=holes_of, rest=st.integers(0, 5000))
@example(pieces=[], rest=4096)
@example(pieces=[(0, 60)], rest=0)
@example(pieces=[(59, 1)], rest=5)
def test_holes_are_known_to_be_zero(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[tuple[int, int]], rest: int
) -> None:
    """Whatever the file system says, nothing but zeros lies outside, and on one with holes most of them are seen."""
    path = tmp_path_factory.getbasetemp() / "sparse"
    block = 1 << 16
    with path.open("wb") as file:
        for first, count in pieces:
            file.seek(first * block)
            file.write(b"\xee" * count * block)
        file.truncate(80 * block + rest + 1)
    for kind in (mapped, read):
        with contextlib.closing(kind(path)) as source:
            start, length = source.data_runs()
            assert start.dtype == length.dtype == np.int64
            assert (length > 0).all()
            assert (start[1:] > (start + length)[:-1]).all()
            covered = np.zeros(source.size, bool)
            for low, count in zip(start.tolist(), length.tolist(), strict=True):
                assert 0 <= low < low + count <= source.size
                covered[low : low + count] = True
            assert not np.frombuffer(path.read_bytes(), np.uint8)[~covered].any()
    path.unlink()


def test_a_sparse_file_has_no_data(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    if path.stat().st_blocks:
        pytest.skip("the file system has no holes")
    with open_source(path) as source:
        assert source.size == 1 << 40
        assert [column.tolist() for column in source.data_runs()] == [[], []]


@pytest.mark.parametrize("error", [22, 5])
def test_a_file_system_that_cannot_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    path = tmp_path / "data"
    path.write_bytes(DATA)

    def refuse(*args: object) -> None:
        raise OSError(error, "x")

    with open_source(path) as source:
        monkeypatch.setattr(module.os, "lseek", refuse)
        assert [column.tolist() for column in source.data_runs()] == [[0], [SIZE]]


def test_a_file_that_shrinks_between_two_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "data"
    path.write_bytes(DATA)
    answers = iter([0])

    def answer(*args: object) -> int:
        for at in answers:
            return at
        raise OSError(6, "No such device or address")

    with open_source(path) as source:
        monkeypatch.setattr(module.os, "lseek", answer)
        start, length = source.data_runs()
        assert len(start) == len(length)


def test_a_tail_is_data_behind_the_holes_of_its_file(tmp_path: Path) -> None:
    path, block = tmp_path / "data", 1 << 20
    for head, end, expected in ((b"x", 4, [(0, 1), (4, 1)]), (b"", 4, [(4, 1)]), (b"x", 1, [(0, 2)])):
        with path.open("wb") as file:
            file.write(head * block)
            file.truncate(end * block)
        with TailedSource(open_source(path), bytes(block)) as source:
            start, length = source.data_runs()
            assert list(zip((start // block).tolist(), (length // block).tolist(), strict=True)) == expected


@pytest.mark.parametrize("kind", [plain, tailed, joined])
def test_other_sources_know_of_no_holes(tmp_path: Path, kind: Callable[[Path], Source]) -> None:
    path = tmp_path / "data"
    path.write_bytes(bytes(SIZE))
    assert [column.tolist() for column in kind(path).data_runs()] == [[0], [SIZE]]


def test_close_is_allowed_twice_and_while_views_live(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(DATA)
    before = set(Path("/proc/self/fd").iterdir()) if Path("/proc/self/fd").exists() else set()
    for kind in (mapped, read, plain, tailed):
        source = kind(path)
        view = source.view(10, 20)
        rows = np.frombuffer(source.view(), np.uint8)
        source.close()
        source.close()
        assert bytes(view) == DATA[10:30]
        assert rows[9] == DATA[9]
        del view, rows, source
    if before:
        assert set(Path("/proc/self/fd").iterdir()) <= before


def test_with_blocks_close(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(DATA)
    with open_source(path) as source:
        assert source.view(0, 4) == DATA[:4]
    with pytest.raises(OSError, match="Bad file descriptor"):
        source.view(0, 4)


@pytest.mark.parametrize("make", [mapped, read])
@pytest.mark.parametrize(
    "wrap", [lambda inner: TailedSource(inner, b"tail"), lambda inner: ConcatenatedSource([inner])]
)
def test_what_is_around_a_file_closes_it(
    tmp_path: Path, make: Callable[[Path], Source], wrap: Callable[[Source], Source]
) -> None:
    path = tmp_path / "data"
    path.write_bytes(DATA)
    inner = make(path)
    wrap(inner).close()
    with pytest.raises((ValueError, OSError)):
        inner.view(0, 4)


def as_folder(path: Path) -> None:
    path.mkdir()


def as_fifo(path: Path) -> None:
    os.mkfifo(path)


def as_empty(path: Path) -> None:
    path.touch()


@pytest.mark.parametrize(("make", "words"), [(as_folder, "a directory"), (as_fifo, "a pipe"), (as_empty, "is empty")])
def test_what_is_no_file_with_content(tmp_path: Path, make: Callable[[Path], None], words: str) -> None:
    path = tmp_path / "odd"
    make(path)
    with pytest.raises(UnknownFormatError, match=words) as caught:
        open_source(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_devices_and_sockets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownFormatError, match="a character device"):
        open_source("/dev/zero")
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listener, contextlib.chdir(tmp_path):
        listener.bind(path.name)
        with pytest.raises((OSError, UnknownFormatError)):
            open_source(path.name)


def test_a_pipe_that_somebody_writes_to_is_still_a_pipe(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    try:
        os.write(fd, DATA[:100])
        with pytest.raises(UnknownFormatError, match="a pipe"):
            open_source(path)
        assert os.read(fd, 200) == DATA[:100], "nothing of it was read"
    finally:
        os.close(fd)


def test_errors_of_the_system_pass_through(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_source(tmp_path / "missing")
    path = tmp_path / "data"
    path.write_bytes(DATA)
    with pytest.raises(NotADirectoryError):
        open_source(path / "below")


def test_no_permission(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(DATA)
    path.chmod(0)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        with pytest.raises(PermissionError):
            open_source(path)
    finally:
        if root:
            os.seteuid(0)


def test_a_refused_file_leaves_no_descriptor(tmp_path: Path) -> None:
    folder = Path("/proc/self/fd")
    if not folder.exists():
        pytest.skip("needs /proc")
    as_empty(tmp_path / "empty")
    before = len(list(folder.iterdir()))
    for name in (tmp_path, tmp_path / "empty", Path("/dev/zero")):
        with pytest.raises(UnknownFormatError):
            open_source(name)
    assert len(list(folder.iterdir())) == before


def test_the_descriptor_blocks_and_is_not_inherited(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(DATA)
    with contextlib.closing(read(path)) as source:
        assert isinstance(source, PreadFile)
        assert os.get_blocking(source._fd)
        assert not os.get_inheritable(source._fd)


def test_paths_of_any_kind(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(DATA)
    (tmp_path / "link").symlink_to(path)
    for name in (str(path), path, str(tmp_path / "link")):
        with open_source(name) as source:
            assert source.name == os.fspath(name)
            assert source.view() == DATA


@pytest.mark.parametrize("data", [b"", b"abc", bytearray(b"abc"), memoryview(b"xabc")[1:]])
def test_bytes_of_any_kind(data: bytes) -> None:
    with BytesSource(data) as source:
        assert (source.name, source.size) == ("<bytes>", len(data))
        assert source.view() == bytes(data)
        assert source.view().readonly


def test_a_fork_opens_its_files_once_more(tmp_path: Path) -> None:
    """What is done to the parent's open file, such as to move in it, does not reach the child's."""
    path = tmp_path / "file"
    path.write_bytes(DATA)
    with open_source(path) as source:
        path.unlink()
        child = os.fork()
        if not child:
            os.lseek(source._fd, 7, os.SEEK_SET)
            os._exit(source.read(0, len(DATA)) != DATA)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert os.lseek(source._fd, 0, os.SEEK_CUR) != 7


def test_a_file_that_may_not_be_opened_again_is_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(DATA)

    def refuse(*arguments: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    with open_source(path) as source:
        with monkeypatch.context() as patch:  # pytest itself opens folders when it removes them
            patch.setattr(os, "open", refuse)
            source.reopen()
        assert source.read(0, len(DATA)) == DATA
