"""convert --resume: an interrupted conversion goes on, and ends as if nothing had happened."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import stat
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

import dumpxlate
from dumpxlate.errors import OutputError, UnsupportedFeatureError
from dumpxlate.format import Resumable, WriteOptions
from dumpxlate.io.sink import FileSink, PipeSink
from dumpxlate.registry import all_formats, find_format
from dumpxlate.writing import resume as module
from tests.builders import elf_cores, kdump, xendump
from tests.builders.guest import Guest, small_guest
from tests.test_matrix import Input, opened

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from dumpxlate.arrays import Int64s, UInt8s

    Cli = Callable[..., subprocess.CompletedProcess[str]]

TARGETS = [each.name for each in all_formats() if each.writes]
# Five batches and a bit, with a hole in the middle, zero pages, noise, and pages left out.
LARGE = small_guest(ranges=[(0, 0x9A0), (0x1100, 0xB00)], excluded=[3, 0x109, *range(0x1180, 0x1190)])
WHOLE = LARGE.but(
    pages=LARGE.pages | {pfn: bytes(4096) for pfn in LARGE.excluded},
    excluded=frozenset(),
)


@pytest.fixture(autouse=True)
def points_after_each_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVERY_BYTES", 1)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "in"
    path.write_bytes(elf_cores.core(LARGE, "makedumpfile"))
    return path


class Interrupted(BaseException):
    """What a signal raises, wherever the program is."""


class Failing(FileSink):
    """A disk that fails at the n-th write."""

    left = 0
    error: BaseException = Interrupted()

    def append(self, parts: Iterable[memoryview | bytes]) -> int:
        self._count()
        return super().append(parts)

    def append_sparse(self, body: UInt8s, at: Int64s, length: Int64s, place: Int64s, total: int) -> None:
        self._count()
        super().append_sparse(body, at, length, place, total)

    def _count(self) -> None:
        type(self).left -= 1
        if self.left < 0:
            # Some of it is written: the next run must not take it for durable.
            super().append([b"torn"])
            raise self.error


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> type[Failing]:
    from dumpxlate import pipeline
    from dumpxlate.writing import destination

    monkeypatch.setattr(destination, "FileSink", Failing)
    monkeypatch.setattr(pipeline, "FileSink", Failing)
    monkeypatch.setattr(Failing, "error", Interrupted())
    monkeypatch.setattr(Failing, "left", 1 << 30)
    return Failing


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def convert(source: Path, target: Path, format: str, options: WriteOptions | None = None, **how: Any) -> Any:
    with dumpxlate.open(source) as dump:
        return dumpxlate.convert(dump, target, format, options, allow_loss=True, **how)


def test_every_writer_can_go_on(source: Path) -> None:
    with dumpxlate.open(source) as dump:
        for name in TARGETS:
            assert isinstance(find_format(name).writer(dump, WriteOptions()), Resumable), name


@pytest.mark.parametrize("options", [{}, {"begin": 0x1234, "length": 0x1800000}], ids=["all", "window"])
@pytest.mark.parametrize("target", TARGETS)
def test_the_result_is_the_same_to_the_byte(
    source: Path, tmp_path: Path, failing: type[Failing], target: str, options: dict[str, int]
) -> None:
    if not set(options) <= set(find_format(target).options):
        pytest.skip(f"{target} takes no window")
    how = WriteOptions(**options)  # type: ignore[arg-type]
    whole = tmp_path / "whole"
    before = convert(source, whole, target, how)
    writes = (1 << 30) - failing.left
    out = tmp_path / "folder" / "out"
    out.parent.mkdir()
    rng = random.Random(target)
    went_on = 0
    for number in range(100):
        failing.left = rng.randrange(writes // 3, writes + 5) if number else max(writes * 2 // 3, 1)
        try:
            report = convert(source, out, target, how, resume=True)
            break
        except Interrupted as error:
            assert not out.exists()
            kept = names(out.parent)
            assert kept in ({".out.partial", ".out.journal"}, set())
            assert bool(kept) == any("goes on behind" in note for note in getattr(error, "__notes__", ()))
            went_on += bool(kept)
            failing.error = Interrupted()
    else:
        pytest.fail("it never came to an end")
    assert went_on
    assert report.resumed
    assert out.read_bytes() == whole.read_bytes()
    assert report.pages_out == before.pages_out
    assert names(out.parent) == names(tmp_path) - {"whole", "folder"} - {"whole.dxmap"} | {"out"} | (
        {"out.dxmap"} if target == "raw" else set()
    )
    if target == "raw":
        assert (out.parent / "out.dxmap").read_bytes() == (tmp_path / "whole.dxmap").read_bytes()


@pytest.mark.parametrize("hvm", [False, True])
@pytest.mark.parametrize("target", ["xendump", "elf"])
def test_dumps_keyed_by_machine_frames_go_on(tmp_path: Path, failing: type[Failing], hvm: bool, target: str) -> None:
    path = tmp_path / "in"
    path.write_bytes(xendump.build(WHOLE, hvm=hvm))
    given = Input("", "xendump", xendump.build, WHOLE, mapped=not hvm)
    with opened(path, given) as dump:
        dumpxlate.convert(dump, tmp_path / "whole", target, allow_loss=True)
        failing.left = 5 if target == "elf" else 7
        with pytest.raises(Interrupted):
            dumpxlate.convert(dump, tmp_path / "out", target, allow_loss=True, resume=True)
        failing.left = 1 << 30
        report = dumpxlate.convert(dump, tmp_path / "out", target, allow_loss=True, resume=True)
    assert report.resumed
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.parametrize("target", ["raw", "kdump", "elf"])
def test_pages_that_do_not_decode_are_remembered(tmp_path: Path, failing: type[Failing], target: str) -> None:
    bad = (7, 0x107, 0x1200)
    path = tmp_path / "in"
    path.write_bytes(kdump.build(LARGE, codec=lambda pfn, data: (1, b"\xffbad") if pfn in bad else (0, data)))
    how: dict[str, Any] = {
        "bad_pages": "skip",
        "options": WriteOptions(compress="zstd:1") if target == "kdump" else None,
    }
    before = convert(path, tmp_path / "whole", target, **how)
    failing.left = 5
    with pytest.raises(Interrupted):
        convert(path, tmp_path / "out", target, resume=True, **how)
    failing.left = 1 << 30
    report = convert(path, tmp_path / "out", target, resume=True, **how)
    assert report.resumed
    assert report.pages_out == before.pages_out
    assert report.pages_out["bad"] == 3
    for suffix in ("", ".dxmap") if target == "raw" else ("",):
        assert (tmp_path / f"out{suffix}").read_bytes() == (tmp_path / f"whole{suffix}").read_bytes()


def begun(source: Path, out: Path, failing: type[Failing], target: str = "elf", *, left: int = 4, **how: Any) -> None:
    failing.left, failing.error = left, Interrupted()
    with pytest.raises(Interrupted):
        convert(source, out, target, resume=True, **how)
    assert {f".{out.name}.partial", f".{out.name}.journal"} <= names(out.parent)
    failing.left = 1 << 30


def test_what_stays_is_the_owners_alone_and_holds_no_page_in_its_journal(
    source: Path, tmp_path: Path, failing: type[Failing]
) -> None:
    before = os.umask(0)
    try:
        begun(source, tmp_path / "out", failing)
    finally:
        os.umask(before)
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    journal = (tmp_path / ".out.journal").read_bytes()
    assert len(journal) < 4096
    entries = [json.loads(line.partition(b" ")[2]) for line in journal.splitlines()]
    assert entries[0]["schema"] == "dumpxlate.journal/1"
    assert set(entries[-1]) == {"pages", "position", "counts", "state"}


@pytest.mark.parametrize("change", ["content", "time", "options", "format", "version", "other input"])
def test_another_conversion_does_not_go_on_from_it(
    source: Path, tmp_path: Path, failing: type[Failing], monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    path, out = tmp_path / "in", tmp_path / "out"
    path.write_bytes(source.read_bytes())
    os.utime(path, ns=(1, 1))
    begun(path, out, failing)
    target, options = "elf", WriteOptions()
    if change == "content":
        with path.open("r+b") as file:
            file.seek(0x3000)
            file.write(b"!")
        os.utime(path, ns=(1, 1))
    elif change == "time":
        os.utime(path, ns=(1, 2))
    elif change == "options":
        options = WriteOptions(begin=0x1000)
    elif change == "format":
        target = "lime"
    elif change == "version":
        monkeypatch.setattr("dumpxlate.writing.identity.__version__", "9")
    else:
        path.write_bytes(elf_cores.core(small_guest(), "plain"))
    kept = {name: (tmp_path / name).read_bytes() for name in (".out.partial", ".out.journal")}
    with pytest.raises(OutputError, match=r"\.out\.partial: was left by another conversion") as caught:
        convert(path, out, target, options, resume=True)
    assert ".out.journal" in str(caught.value)
    assert {name: (tmp_path / name).read_bytes() for name in kept} == kept
    for name in kept:
        (tmp_path / name).unlink()
    assert convert(path, out, target, options, resume=True).resumed == 0


@pytest.mark.parametrize("torn", ["journal cut", "journal damaged", "journal gone", "file short", "file gone"])
def test_what_is_torn_is_not_trusted(source: Path, tmp_path: Path, failing: type[Failing], torn: str) -> None:
    out, journal, partial = tmp_path / "out", tmp_path / ".out.journal", tmp_path / ".out.partial"
    begun(source, out, failing)
    if torn == "journal cut":
        journal.write_bytes(journal.read_bytes()[:-3])
    elif torn == "journal damaged":
        content = bytearray(journal.read_bytes())
        content[len(content) // 3] ^= 4
        journal.write_bytes(content)
    elif torn == "journal gone":
        journal.unlink()
    elif torn == "file short":
        os.truncate(partial, 5000)
    else:
        partial.unlink()
    convert(source, out, "elf", resume=True)
    convert(source, tmp_path / "whole", "elf")
    assert out.read_bytes() == (tmp_path / "whole").read_bytes()
    assert names(tmp_path) == {"out", "whole"}


@pytest.mark.parametrize("laid", ["link", "hard link", "folder", "fifo"])
@pytest.mark.parametrize("which", [".out.partial", ".out.journal"])
def test_what_others_laid_there_is_not_followed(source: Path, tmp_path: Path, laid: str, which: str) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    path = tmp_path / which
    if laid == "link":
        path.symlink_to(victim)
    elif laid == "hard link":
        path.hardlink_to(victim)
    elif laid == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    with pytest.raises((OutputError, OSError)):
        convert(source, tmp_path / "out", "elf", resume=True)
    assert victim.read_bytes() == b"precious"
    assert not (tmp_path / "out").exists()


def test_two_at_once_are_refused(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with FileSink(out, partial=".out.partial", keep=True), pytest.raises(OutputError, match="another process"):
        convert(source, out, "elf", resume=True)


def test_where_there_is_no_going_on(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedFeatureError, match="pipe"):
        convert(source, PipeSink(1), "elf", resume=True)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedFeatureError, match="flattened"):
        convert(source, tmp_path / "out", "kdump", flattened=True, resume=True)
    with pytest.raises(ValueError, match="--part"), dumpxlate.open(source) as dump:
        from dumpxlate.pipeline import convert_set

        convert_set(dump, tmp_path / "out", "kdump", WriteOptions(), split=2, resume=True)
    assert names(tmp_path) == set()


def test_a_part_of_a_set_goes_on(source: Path, tmp_path: Path, failing: type[Failing]) -> None:
    options = WriteOptions(part=(2, 2))
    convert(source, tmp_path / "whole", "kdump", options)
    begun(source, tmp_path / "out", failing, "kdump", left=5, options=options)
    assert convert(source, tmp_path / "out", "kdump", options, resume=True).resumed
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_full_disk_keeps_what_there_is(source: Path, tmp_path: Path, failing: type[Failing]) -> None:
    failing.left, failing.error = 5, OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match="No space") as caught:
        convert(source, tmp_path / "out", "elf", resume=True)
    assert "goes on behind" in caught.value.__notes__[0]
    failing.left = 1 << 30
    assert convert(source, tmp_path / "out", "elf", resume=True, verify=True).resumed


def test_points_are_some_way_apart(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVERY_BYTES", 9 << 20)
    synced = []
    monkeypatch.setattr(FileSink, "sync", lambda self: synced.append(self.position))
    convert(source, tmp_path / "out", "elf", resume=True)
    assert 2 <= len(synced) <= 3  # of 16 MiB, and one at the end


def test_command(cli: Cli, tmp_path: Path) -> None:
    """A disk that is too small at first; the journal then has a point, since so much was written."""
    guest = Guest(pages=LARGE.pages, registers=())
    (tmp_path / "in").write_bytes(elf_cores.core(guest, "plain"))

    def limit() -> None:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (12 << 20, 12 << 20))

    code = "import dumpxlate.writing.resume as r; r.EVERY_BYTES = 1; from dumpxlate.cli import main; main()"
    command = [sys.executable, "-c", code, "convert", "in", "-o", "out", "--resume"]
    first = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, preexec_fn=limit)
    assert first.returncode == 2
    assert "file too large" in first.stderr
    assert ".out.partial and .out.journal stay: the same command goes on behind" in first.stderr
    assert "Traceback" not in first.stderr
    again = cli("convert", "in", "-o", "out", "--resume")
    assert again.returncode == 0, again.stderr
    assert "pages from an earlier run" in again.stderr
    assert cli("compare", "in", "out").returncode == 0
    assert names(tmp_path) == {"in", "out"}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_says_what_stays(tmp_path: Path, number: signal.Signals, code: int) -> None:
    (tmp_path / "in").write_bytes(elf_cores.core(LARGE, "makedumpfile"))
    program = (
        "import os, dumpxlate.writing.resume as r; r.EVERY_BYTES = 1\n"
        "mark = r.Resumption._mark\n"
        "def marked(*a):\n"
        "    mark(*a)\n"
        f"    os.kill(os.getpid(), {int(number)})\n"
        "r.Resumption._mark = marked\n"
        "from dumpxlate.cli import main; main()"
    )
    command = [sys.executable, "-c", program, "convert", "in", "-o", "out", "--resume", "--progress", "none"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == code
    assert "goes on behind" in done.stderr
    assert "Traceback" not in done.stderr
    assert names(tmp_path) == {"in", ".out.partial", ".out.journal"}
