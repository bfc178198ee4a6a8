"""Bytes out: files that appear only when complete, pipes, and raw pages onto either."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dumpxlate.emit import TrimmedSink, append_pages, by_run
from dumpxlate.errors import OutputError
from dumpxlate.io import sink as module
from dumpxlate.io import writeback
from dumpxlate.io.sink import SHORTEST_HOLE, FileSink, PipeSink
from dumpxlate.io.writeback import start_writeback
from dumpxlate.pages import PageBatch, PageState, PageTable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

DATA = random.Random(9).randbytes(100_000)


@contextlib.contextmanager
def committed(path: Path, **options: object) -> Iterator[FileSink]:
    with FileSink(path, **options) as sink:  # type: ignore[arg-type]
        yield sink
        sink.commit()


def only(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that has no files without a name."""
    monkeypatch.setattr(module.os, "O_TMPFILE", os.O_DIRECTORY)  # what open(2) makes of it there: EISDIR


def test_a_file_has_no_name_before_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with FileSink(path) as sink:
        assert sink.append([b"abc"]) == 0
        assert (only(tmp_path), sink.partial) == ([], None)
        sink.commit()
        assert only(tmp_path) == ["out"]
    assert path.read_bytes() == b"abc"
    assert path.stat().st_nlink == 1


def test_a_file_appears_when_it_is_complete(tmp_path: Path, named: None) -> None:
    path = tmp_path / "out"
    with FileSink(path) as sink:
        assert sink.seekable
        assert sink.append([b"abc", memoryview(b"def"), b""]) == 0
        assert sink.append([]) == 6
        assert sink.append([b"ghi"]) == 6
        assert sink.position == 9
        assert not path.exists()
        (partial,) = only(tmp_path)
        assert partial.startswith(".out.")
        sink.commit()
        assert only(tmp_path) == ["out"]
    assert path.read_bytes() == b"abcdefghi"
    assert only(tmp_path) == ["out"]


def test_nothing_is_a_file_too(tmp_path: Path) -> None:
    with committed(tmp_path / "out"):
        pass
    assert (tmp_path / "out").read_bytes() == b""


@pytest.mark.parametrize("umask", [0, 0o22, 0o77, 0o777])
def test_only_the_owner_may_read_it(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "out"
    before = os.umask(umask)
    try:
        with FileSink(path, partial=".partial") as sink:
            (partial,) = tmp_path.iterdir()
            assert stat.S_IMODE(partial.stat().st_mode) == 0o600
            sink.commit()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        path.chmod(0o666)
        with committed(path, overwrite=True) as sink:
            sink.append([b"x"])
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        os.umask(before)


@pytest.mark.parametrize("existing", [None, b"old"])
def test_a_failure_leaves_no_trace(tmp_path: Path, existing: bytes | None) -> None:
    path = tmp_path / "out"
    if existing:
        path.write_bytes(existing)
        inode = path.stat().st_ino
    with pytest.raises(KeyboardInterrupt), FileSink(path, overwrite=True) as sink:
        sink.append([b"new"])
        raise KeyboardInterrupt
    assert only(tmp_path) == ["out"] * bool(existing)
    if existing:
        assert (path.read_bytes(), path.stat().st_ino) == (existing, inode)


def test_leaving_without_commit_is_giving_up(tmp_path: Path) -> None:
    with FileSink(tmp_path / "out") as sink:
        sink.append([b"new"])
    assert only(tmp_path) == []
    sink.abort()


@pytest.mark.parametrize("step", ["fsync", "link", "ftruncate"])
def test_a_commit_that_fails_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"), FileSink(tmp_path / "out") as sink:
        sink.append([b"new"])
        sink.skip(10)
        monkeypatch.setattr(module.os, step, full)
        if step == "link":  # its fallback is a rename
            monkeypatch.setattr(module.os, "rename", full)
        sink.commit()
    assert only(tmp_path) == []


def test_a_write_that_fails_leaves_no_trace(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"too large|Invalid argument"), FileSink(tmp_path / "out") as sink:
        sink.skip((1 << 63) - 2)
        sink.append([b"abcdef"])
    assert only(tmp_path) == []


def test_an_existing_file_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"old")
    with pytest.raises(OutputError, match="exists") as caught:
        FileSink(path)
    assert caught.value.path == str(path)
    assert path.read_bytes() == b"old"
    assert only(tmp_path) == ["out"]


def test_an_existing_file_is_replaced_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"a much longer old content")
    with FileSink(path, overwrite=True) as sink:
        sink.append([b"new"])
        assert path.read_bytes() == b"a much longer old content"
        sink.commit()
    assert path.read_bytes() == b"new"
    assert only(tmp_path) == ["out"]


def hard_link(target: Path, name: Path) -> None:
    name.hardlink_to(target)


def soft_link(target: Path, name: Path) -> None:
    name.symlink_to(target)


def relative_link(target: Path, name: Path) -> None:
    name.symlink_to(target.name)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("link", [hard_link, soft_link, relative_link])
def test_the_input_is_never_the_output(tmp_path: Path, link: Callable[[Path, Path], None], *, overwrite: bool) -> None:
    path, other = tmp_path / "in", tmp_path / "other"
    path.write_bytes(b"dump")
    link(path, other)
    missing, another = tmp_path / "missing", tmp_path / "another"
    another.touch()
    for target, inputs in [
        (path, [path]),
        (other, [path]),
        (path, [str(other)]),
        # An input that cannot be looked at does not hide those behind it.
        (path, [missing, another, other]),
        (tmp_path / "." / ".." / tmp_path.name / "in", [path]),
    ]:
        with pytest.raises(OutputError, match="is the input itself"):
            FileSink(target, overwrite=overwrite, inputs=inputs)
    assert path.read_bytes() == b"dump"
    assert not missing.exists()
    assert only(tmp_path) == ["another", "in", "other"]


def test_another_file_is_not_the_input(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"dump")
    (tmp_path / "out").write_bytes(b"dump")
    with committed(tmp_path / "out", overwrite=True, inputs=[tmp_path / "in"]) as sink:
        sink.append([b"new"])
    with committed(tmp_path / "new", inputs=[tmp_path / "in", tmp_path / "missing"]):
        pass
    assert (tmp_path / "in").read_bytes() == b"dump"


@pytest.mark.parametrize("overwrite", [False, True])
def test_only_regular_files_are_replaced(tmp_path: Path, *, overwrite: bool) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "to_null").symlink_to("/dev/null")
    (tmp_path / "to_fifo").symlink_to("fifo")
    (tmp_path / "to_folder").symlink_to("folder")
    before = only(tmp_path)
    for name in ("folder", "fifo", "to_null", "to_fifo", "to_folder"):
        with pytest.raises(OutputError, match="not a regular file"):
            FileSink(tmp_path / name, overwrite=overwrite)
    with pytest.raises(OutputError, match="not a regular file"):
        FileSink("/dev/null", overwrite=overwrite)
    assert only(tmp_path) == before
    assert (tmp_path / "to_null").is_symlink()


def test_a_link_that_leads_nowhere_is_refused_or_replaced_itself(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.symlink_to("nowhere")
    with pytest.raises(OutputError, match="exists"):
        FileSink(path)
    with committed(path, overwrite=True) as sink:
        sink.append([b"new"])
    assert not path.is_symlink()
    assert (path.read_bytes(), only(tmp_path)) == (b"new", ["out"])


@pytest.mark.parametrize("name", ["new/", "", ".", "..", "/", "folder/"])
def test_names_of_no_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with contextlib.chdir(tmp_path), pytest.raises(OutputError):
        FileSink(name, overwrite=True)
    assert only(tmp_path) == ["folder"]


def test_a_folder_that_is_missing_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        FileSink(tmp_path / "missing" / "out")
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        FileSink(tmp_path / "file" / "out")


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, "€" * 85, "𝄞" * 63])
def test_the_longest_names(tmp_path: Path, name: str) -> None:
    assert 250 < len(name.encode()) <= 255
    with committed(tmp_path / name) as sink:
        sink.append([b"new"])
    assert only(tmp_path) == [name]


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_appears_while_writing_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, links: bool
) -> None:
    path = tmp_path / "out"
    if not links:
        no_links(monkeypatch)
    with pytest.raises(OutputError, match="appeared while it was being written"), FileSink(path) as sink:
        sink.append([b"new"])
        path.write_bytes(b"somebody else's")
        sink.commit()
    assert path.read_bytes() == b"somebody else's"
    assert only(tmp_path) == ["out"]


def no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(module.os, "link", refuse)


def test_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_links(monkeypatch)
    with committed(tmp_path / "out") as sink:
        sink.append([b"new"])
    assert (only(tmp_path), (tmp_path / "out").read_bytes()) == (["out"], b"new")


def test_holes_are_holes(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with committed(path) as sink:
        sink.append([b"head"])
        sink.skip(64 << 20)
        assert sink.append([b"middle"]) == 4 + (64 << 20)
        sink.skip(64 << 20)
    found = path.stat()
    assert found.st_size == 10 + (128 << 20)
    assert found.st_blocks * 512 < 1 << 20
    with path.open("rb") as file:
        assert file.read(8) == b"head\0\0\0\0"
        file.seek(4 + (64 << 20) - 2)
        assert file.read(10) == b"\0\0middle\0\0"


def test_writing_back_and_ahead(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with committed(path) as sink:
        sink.append([b"........"])
        sink.write_at(2, b"ab")
        sink.write_at(12, memoryview(b"ahead"))
        assert sink.position == 8
        assert sink.append([b"!"]) == 8
    assert path.read_bytes() == b"..ab....!\0\0\0ahead"


parts_of = st.lists(st.binary(max_size=9), max_size=30)


@settings(deadline=None, max_examples=60)
@given(groups=st.lists(parts_of, max_size=4), most=st.integers(1, 20), few=st.integers(1, 5))
def test_short_writes_are_continued(
    tmp_path_factory: pytest.TempPathFactory, groups: list[list[bytes]], most: int, few: int
) -> None:
    path = tmp_path_factory.mktemp("short") / "out"
    pwritev = os.pwritev

    def little(fd: int, parts: Sequence[memoryview], offset: int) -> int:
        assert 0 < len(parts) <= few
        return pwritev(fd, [b"".join(parts)[:most]], offset)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.os, "pwritev", little)
        patch.setattr(module, "_IOV_MAX", few)
        patch.setattr(module.os, "fsync", lambda fd: None)
        with committed(path) as sink:
            starts = [sink.append(iter(group)) for group in groups]
            assert sink.position == sum(len(part) for group in groups for part in group)
    assert starts == [len(b"".join(b"".join(group) for group in groups[:at])) for at in range(len(groups))]
    assert path.read_bytes() == b"".join(b"".join(group) for group in groups)


def test_more_parts_than_one_call_takes(tmp_path: Path) -> None:
    parts = [DATA[at : at + 20] for at in range(0, len(DATA), 20)]
    assert len(parts) > 2 * 1024
    with committed(tmp_path / "out") as sink:
        sink.append(parts)
    assert (tmp_path / "out").read_bytes() == DATA


def test_parts_of_other_shapes(tmp_path: Path) -> None:
    words = np.arange(12, dtype="<u4").reshape(3, 4)
    with committed(tmp_path / "out") as sink:
        assert sink.append([words.data, np.empty((0, 4), "<u4").data]) == 0
        assert sink.position == 48
    assert (tmp_path / "out").read_bytes() == words.tobytes()


@contextlib.contextmanager
def pipe() -> Iterator[tuple[PipeSink, list[bytes]]]:
    """A pipe and a reader at its other end."""
    reader, writer = os.pipe()
    heard: list[bytes] = []

    def listen() -> None:
        while piece := os.read(reader, 1 << 16):
            heard.append(piece)

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        yield PipeSink(writer), heard
    finally:
        os.close(writer)
        thread.join()
        os.close(reader)


def test_a_pipe_gets_everything_in_order() -> None:
    parts = [DATA[at : at + 33] for at in range(0, len(DATA), 33)]
    with pipe() as (sink, heard):
        assert (sink.seekable, sink.name, sink.position) == (False, "<stdout>", 0)
        with sink:
            assert sink.append(parts) == 0
            sink.skip(0)
            sink.skip((2 << 20) + 5)
            assert sink.append([b"end"]) == len(DATA) + (2 << 20) + 5
            sink.commit()
        assert sink.position == len(DATA) + (2 << 20) + 8
    assert b"".join(heard) == DATA + bytes((2 << 20) + 5) + b"end"


def test_a_pipe_cannot_go_back() -> None:
    with pipe() as (sink, heard):
        sink.append([b"abcdef"])
        with pytest.raises(OutputError, match="<stdout>: cannot seek back to 0x2"):
            sink.write_at(2, b"x")
    assert b"".join(heard) == b"abcdef"


def test_a_pipe_that_nobody_reads() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        with pytest.raises(BrokenPipeError):
            PipeSink(writer).append([b"x"])
    finally:
        os.close(writer)


PAGE = 4096
STATES = [PageState.STORED, PageState.ZERO, PageState.BAD, PageState.EXCLUDED]


class Recorder:
    """A sink that remembers what was asked of it."""

    seekable = True

    def __init__(self) -> None:
        self.data = bytearray()
        self.holes: list[int] = []

    @property
    def position(self) -> int:
        return len(self.data)

    def append(self, parts: Sequence[memoryview]) -> int:
        start = len(self.data)
        for part in parts:
            self.data += part
        return start

    def skip(self, length: int) -> None:
        self.holes.append(length)
        self.data += bytes(length)

    def write_at(self, offset: int, data: memoryview) -> None:
        raise AssertionError(offset)


@settings(deadline=None, max_examples=80)
@given(runs=st.lists(st.tuples(st.sampled_from(STATES), st.integers(1, 20)), max_size=6), seed=st.integers(0, 99))
def test_raw_pages_in_order_with_zeros_between(runs: list[tuple[PageState, int]], seed: int) -> None:
    check_pages(runs, seed)


@pytest.mark.parametrize("seed", range(6))
def test_many_raw_pages(seed: int) -> None:
    dice = random.Random(seed)
    check_pages([(dice.choice([PageState.STORED, *STATES]), dice.randrange(1, 9)) for _ in range(60)], seed)


def check_pages(runs: list[tuple[PageState, int]], seed: int) -> None:
    states = np.array([state for state, count in runs for _ in range(count)], np.uint8)
    count = len(states)
    body = random.Random(seed).randbytes(PAGE * 24)
    # Some neighbours in the body, some not, some twice.
    stored = states == PageState.STORED
    place = np.random.default_rng(seed).integers(0, 24, count) if seed % 2 else np.cumsum(stored) % 24
    table = PageTable(
        np.arange(count, dtype=np.int64),
        states,
        np.zeros(count, np.uint8),
        np.where(stored, place * PAGE, -1),
        np.where(stored, np.int32(PAGE), np.int32(0)),
    )
    sink = Recorder()
    append_pages(sink, PageBatch(table, memoryview(body)), PAGE)
    expected = b"".join(
        body[at * PAGE : (at + 1) * PAGE] if here else bytes(PAGE)
        for at, here in zip(place.tolist(), stored.tolist(), strict=True)
    )
    assert bytes(sink.data) == expected
    check_file(PageBatch(table, memoryview(body)), expected)
    lengths = [0]
    for here in stored.tolist():
        lengths = [*lengths, 0] if here else [*lengths[:-1], lengths[-1] + PAGE]
    assert sink.holes == [length for length in lengths if length >= SHORTEST_HOLE]


def check_file(batch: PageBatch, expected: bytes) -> None:
    """The same into a file, behind something else and twice, with as much of it in holes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "out"
        with committed(path) as sink:
            sink.append([b"h" * PAGE])
            append_pages(sink, batch, PAGE)
            append_pages(sink, batch, PAGE)
        assert path.read_bytes() == b"h" * PAGE + expected * 2


@settings(deadline=None, max_examples=60)
@given(pfns=st.sets(st.integers(0, 60), max_size=40))
def test_a_batch_is_cut_where_its_pfns_jump(pfns: set[int]) -> None:
    ordered = np.array(sorted(pfns), np.int64)
    table = PageTable.raw(ordered, ordered * PAGE, PAGE)
    found = list(by_run(PageBatch(table, memoryview(b""))))
    assert [pfn for batch in found for pfn in batch.table.pfn.tolist()] == ordered.tolist()
    assert [place for batch in found for place in batch.table.offset.tolist()] == (ordered * PAGE).tolist()
    assert all((np.diff(batch.table.pfn) == 1).all() for batch in found)
    ends = [(int(batch.table.pfn[0]), int(batch.table.pfn[-1])) for batch in found]
    assert all(before + 1 < after for (_, before), (after, _) in pairwise(ends))


@settings(deadline=None, max_examples=80)
@given(
    groups=st.lists(st.lists(st.binary(max_size=9), max_size=4) | st.integers(0, 20), max_size=6),
    skip=st.integers(0, 40),
    length=st.integers(0, 60),
)
def test_a_trimmed_sink_is_a_slice(groups: list[list[bytes] | int], skip: int, length: int) -> None:
    inner = Recorder()
    sink = TrimmedSink(inner, skip, length)
    everything = b""
    for group in groups:
        if isinstance(group, int):
            sink.skip(group)
            everything += bytes(group)
        else:
            sink.append(group)
            everything += b"".join(group)
        assert bytes(inner.data) == everything[skip : skip + length]
        assert sink.position == inner.position


def test_a_signal_before_the_with_block_leaves_nothing(tmp_path: Path) -> None:
    """The sink exists, the block that would remove it was never entered."""
    code = "import sys; from dumpxlate.io.sink import FileSink; kept = FileSink(sys.argv[1]); raise KeyboardInterrupt"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "out"], capture_output=True)
    assert b"KeyboardInterrupt" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
    """Ranges that the disk was set to work on, for small files."""
    ranges: list[tuple[int, int]] = []
    monkeypatch.setattr(writeback, "EVERY", 10)
    monkeypatch.setattr(writeback, "HELD_BACK", 3)
    monkeypatch.setattr(writeback, "start_writeback", lambda _fd, offset, length: ranges.append((offset, length)))
    yield ranges
    assert threading.active_count() == 1


def test_the_disk_is_set_to_work_while_more_is_written(tmp_path: Path, asked: list[tuple[int, int]]) -> None:
    """Each byte once, in ranges that follow each other; what is left is for the sync at the end."""
    with committed(tmp_path / "out") as sink:
        for part in (b"1234", b"567890", b"abc"):
            sink.append([part])
            sink.rest()
        sink.skip(20)
        sink.append([b"end"])
    assert asked == [(0, 10), (10, 23)]


def test_a_disk_that_is_slow_is_given_more_at_once(
    tmp_path: Path, asked: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One thread at a time; nobody waits for it but who ends the file."""
    free = threading.Event()
    note = writeback.start_writeback

    def slow(fd: int, offset: int, length: int) -> None:
        assert free.wait(60)
        note(fd, offset, length)

    monkeypatch.setattr(writeback, "start_writeback", slow)
    with committed(tmp_path / "out") as sink:
        for _ in range(5):
            sink.append([b"0123456789abc"])
        free.set()
        sink.rest()
        sink.append([b"end"])
    assert asked == [(0, 10), (10, 55)]


@pytest.mark.parametrize("how", ["abort", "commit"])
def test_the_file_is_open_while_a_thread_works_on_it(
    tmp_path: Path, asked: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    note = writeback.start_writeback

    def slow(fd: int, offset: int, length: int) -> None:
        time.sleep(0.05)
        os.fstat(fd)
        note(fd, offset, length)

    monkeypatch.setattr(writeback, "start_writeback", slow)
    sink = FileSink(tmp_path / "out")
    sink.append([b"0123456789abcdef"])
    sink.abort() if how == "abort" else sink.commit()
    assert asked == [(0, 13)]


def test_a_fork_leaves_the_disk_to_its_parent(tmp_path: Path, asked: list[tuple[int, int]]) -> None:
    sink = FileSink(tmp_path / "out")
    child = os.fork()
    if not child:
        sink.append([bytes(100)])
        os._exit(len(asked) + threading.active_count())
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    sink.position = 100
    sink.append([b"more"])
    sink.commit()
    assert asked == [(0, 101)]


def test_signals_are_not_for_the_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked: set[signal.Signals | int] = set()
    monkeypatch.setattr(
        writeback, "start_writeback", lambda *_: blocked.update(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
    )
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with committed(tmp_path / "out") as sink:
        sink.skip(1 << 30)
        sink.append([b"end"])
    assert blocked >= {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_writing_back_does_not_fail(tmp_path: Path) -> None:
    """Where it cannot be done the sync at the end finds out."""
    with (tmp_path / "file").open("wb") as file:
        file.write(b"some")
        file.flush()
        start_writeback(file.fileno(), 0, 4)
    start_writeback(-1, 0, 4)
    assert (tmp_path / "file").read_bytes() == b"some"
