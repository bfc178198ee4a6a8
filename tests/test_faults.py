"""Whatever fails while an output is written, its name holds the old file or a complete new one, and nothing strays."""

from __future__ import annotations

import enum
import os
import random
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

import dumpxlate
from dumpxlate.io.sink import PipeSink
from dumpxlate.registry import all_formats
from tests.builders import elf_cores, kdump
from tests.faults import inject, kills
from tests.faults.calls import Calls

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Cli = Callable[..., subprocess.CompletedProcess[str]]

TARGETS = [each.name for each in all_formats() if each.writes]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return inject.source(tmp_path_factory.mktemp("faults"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "folder"
    path.mkdir()
    return path


WAYS: dict[str, tuple[dict[str, Any], bytes | None]] = {
    "new": ({}, None),
    "replace": ({}, inject.OLD),
    "verify": ({"verify": True}, inject.OLD),
    "resume": ({"resume": True}, None),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("target", TARGETS)
def test_every_call_may_fail(source: Path, folder: Path, target: str, way: str) -> None:
    how, before = WAYS[way]
    tally = inject.Tally()
    inject.every_call(inject.Conversion(folder, source, target, how, before), tally, step=4)
    assert tally.wrong == []
    assert tally.faults > 10
    assert tally.ends["nothing" if before is None else "old"] > 0


def test_every_call_may_fail_where_temporary_files_have_names(
    source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY)
    tally = inject.Tally()
    for before in (None, inject.OLD):
        inject.every_call(inject.Conversion(folder, source, "elf", {}, before), tally)
    assert tally.wrong == []


def test_a_temporary_file_that_cannot_be_removed_is_named(
    source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY)
    conversion = inject.Conversion(folder, source, "elf")
    raised = conversion.run(Calls(8, lasting=True))
    (stray,) = folder.iterdir()
    assert raised is not None
    assert any(str(stray) in note and "remove it" in note for note in raised.__notes__)


@pytest.mark.parametrize("target", TARGETS)
def test_short_writes(source: Path, folder: Path, target: str) -> None:
    conversion = inject.Conversion(folder, source, target)
    assert conversion.run(Calls()) is None
    whole = conversion.out.read_bytes()
    conversion.clean()
    rng = random.Random(target)
    assert conversion.run(Calls(most=lambda: rng.choice([1, 7, 4095, 4097, 1 << 20]))) is None
    assert conversion.out.read_bytes() == whole


def test_interrupted_system_calls(source: Path, tmp_path: Path) -> None:
    """A signal every millisecond, with a handler, while a slow reader lets writes block."""
    reader, writer = os.pipe()
    heard: list[bytes] = []

    def listen() -> None:
        while piece := os.read(reader, 5000):
            heard.append(piece)

    thread = threading.Thread(target=listen)
    thread.start()
    seen = []
    before = signal.signal(signal.SIGALRM, lambda *args: seen.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        with dumpxlate.open(source) as dump:
            dumpxlate.convert(dump, PipeSink(writer), "elf")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        os.close(writer)
        thread.join()
        os.close(reader)
    with dumpxlate.open(source) as dump:
        dumpxlate.convert(dump, tmp_path / "out", "elf")
    assert len(seen) > 5
    assert b"".join(heard) == (tmp_path / "out").read_bytes()


# Power loss: what had been asked of the disk, and in which order.


class Disk:
    """What a disk may hold if power is lost.

    A name may be on the disk from the moment on that it was given, and must be once its folder was synced; the bytes of
    a file are on the disk only when it was synced behind its last write.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self.names: dict[str, int] = {}
        self.folders: set[int] = set()
        self.dirty: set[int] = set()
        self.named = self.synced = False
        self.wrong: list[str] = []

    def open(self, fd: int, path: object, flags: int, *rest: object) -> None:
        self.dirty.discard(fd)
        self.folders.discard(fd)
        if flags & os.O_DIRECTORY and flags & os.O_TMPFILE != os.O_TMPFILE:
            self.folders.add(fd)
        else:
            self.names[str(path)] = fd

    def write(self, result: object, fd: int, *rest: object) -> None:
        self.dirty.add(fd)
        if self.named and self.names.get(self.target) == fd:
            self.wrong.append("written to after it had its name")

    pwritev = pwrite = ftruncate = write

    def fsync(self, result: object, fd: int) -> None:
        self.synced |= self.named and fd in self.folders
        self.dirty.discard(fd)

    def link(self, result: object, source: str, name: str) -> None:
        fd = int(source.rsplit("/", 1)[1]) if source.startswith("/proc/") else self.names[source]
        self.names[name] = fd
        if name == self.target:
            self.named = True
            if fd in self.dirty:
                self.wrong.append("named before its content was durable")

    rename = link

    def unlink(self, *rest: object) -> None: ...

    fchmod = unlink


def lost_power(log: list[tuple[str, tuple[Any, ...], dict[str, Any], Any]], target: str) -> list[str]:
    """Find what in a run could leave a target that is neither old nor complete if power were lost at some moment."""
    disk = Disk(target)
    for name, args, _, result in log:
        getattr(disk, name)(result, *args)
    wrong = disk.wrong if disk.named else ["never named"]
    return wrong if disk.synced else [*wrong, "the name was never made durable"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("target", TARGETS)
def test_power_may_be_lost_at_any_moment(source: Path, folder: Path, target: str, way: str) -> None:
    how, before = WAYS[way]
    conversion = inject.Conversion(folder, source, target, how, before)
    conversion.clean()
    calls = Calls()
    assert conversion.run(calls) is None
    assert lost_power(calls.log, "out") == []
    if target == "raw":
        assert lost_power(calls.log, "out.dxmap") == []


def test_the_model_of_power_loss_finds_mistakes(source: Path, folder: Path) -> None:
    conversion = inject.Conversion(folder, source, "elf")
    calls = Calls()
    conversion.run(calls)
    without = [each for each in calls.log if each[0] != "fsync"]
    assert lost_power(without, "out") == ["named before its content was durable", "the name was never made durable"]
    last = max(at for at, each in enumerate(calls.log) if each[0] == "fsync")
    assert lost_power(calls.log[:last], "out") == ["the name was never made durable"]


def test_a_point_is_only_told_when_it_is_durable(source: Path, folder: Path) -> None:
    conversion = inject.Conversion(folder, source, "elf", {"resume": True})
    calls = Calls()
    assert conversion.run(calls) is None
    opened = {str(args[0]): result for name, args, _, result in calls.log if name == "open"}
    partial, journal = opened[".out.partial"], opened[str(folder / ".out.journal")]
    dirty, points = False, 0
    for name, args, _, _ in calls.log:
        if name in ("pwritev", "ftruncate") and args[0] == partial:
            dirty = True
        elif name == "fsync" and args[0] == partial:
            dirty = False
        elif name == "pwrite" and args[0] == journal:
            points += 1
            assert not dirty or points == 1
    assert points > 2


# Real disks.


@pytest.mark.parametrize("kilobytes", [60, 1000, 9000])
@pytest.mark.parametrize("kind", ["tmpfs", "ext4 in a file"])
def test_a_real_disk_that_is_full(cli: Cli, source: Path, tmp_path: Path, kind: str, kilobytes: int) -> None:
    with kills.small_disk(tmp_path, kind, kilobytes) as (disk, why):
        if disk is None:
            pytest.skip(why)
        before = {path.name for path in disk.iterdir()}
        for target in ("elf", "kdump", "raw"):
            arguments = ["--allow-loss", "--compress", "none"] if target == "kdump" else ["--allow-loss"]
            done = cli("convert", source, "-t", target, *arguments, "-o", disk / "out")
            assert (done.returncode, "no space left on device" in done.stderr) == (2, True), done.stderr
            assert {path.name for path in disk.iterdir()} == before


# Signals and pipes.


@pytest.mark.parametrize("target", ["elf", "kdump"])
def test_killed_at_any_moment(tmp_path: Path, target: str) -> None:
    tally = kills.kill(tmp_path, kills=4, seed=5, formats=[target], megabytes=24)
    assert tally.wrong == []
    assert tally.kills == 4


def test_resumed_after_kills(tmp_path: Path) -> None:
    tally = kills.resume(tmp_path, kills=4, seed=5, formats=["kdump"], megabytes=48)
    assert tally.wrong == []
    assert tally.kills == 4


def test_a_reader_that_goes_away(source: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dumpxlate", "convert", source, "-o", "-"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.read(4) == b"\x7fELF"
        process.stdout.close()
        words = process.stderr.read().decode()
    assert process.returncode == 2
    assert words == "dumpxlate: broken pipe\n"


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals(source: Path, tmp_path: Path, number: signal.Signals, verify: bool) -> None:
    program = (
        "import os, dumpxlate.io.sink as s\n"
        "sync = s.FileSink.sync\n"
        "def synced(self):\n"
        f"    sync(self); os.kill(os.getpid(), {int(number)})\n"
        "s.FileSink.sync = synced\n"
        "from dumpxlate.cli import main; main()"
    )
    (tmp_path / "out").write_bytes(inject.OLD)
    command = [sys.executable, "-c", program, "convert", str(source), "-o", "out", "--force", *["--verify"] * verify]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 128 + number
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out").read_bytes() == inject.OLD


def test_nohup_is_honoured(source: Path, tmp_path: Path) -> None:
    program = "import os, signal; from dumpxlate.cli.guard import catch_termination; catch_termination()\n"
    program += "os.kill(os.getpid(), signal.SIGHUP); print('still here')"

    def ignore() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, preexec_fn=ignore)
    assert done.stdout == "still here\n"


# An input that does not stay what it is.

CHANGE = """
import os, sys, dumpxlate
from dumpxlate.errors import CorruptDumpError
path, out, how = sys.argv[1:4]
calls = []
def change(progress):
    calls.append(progress.done)
    if len(calls) == 2:
        if how == "shrink":
            os.truncate(path, os.path.getsize(path) // 2)
        elif how == "grow":
            os.truncate(path, os.path.getsize(path) + 4096)
        elif how == "write":
            with open(path, "r+b") as file:
                file.seek(-8192, 2); file.write(b"other")
            os.utime(path, ns=(5, 5))
        elif how == "replace":
            os.rename(path, path + ".away"); open(path, "wb").close()
with dumpxlate.open(path) as dump:
    try:
        report = dumpxlate.convert(dump, out, "lime", allow_loss=True, threads=0, progress=change,
                                   salvage=len(sys.argv) > 4)
        print("done", *report.damage)
    except CorruptDumpError as error:
        print("refused", error)
"""


def changing(path: Path, tmp_path: Path, how: str, *more: str) -> str:
    command = [sys.executable, "-c", CHANGE, str(path), str(tmp_path / "out"), how, *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, (done.returncode, done.stderr)
    return done.stdout


@pytest.mark.parametrize("how", ["shrink", "grow", "write"])
@pytest.mark.parametrize("format", ["elf", "kdump"])
def test_an_input_that_changes(tmp_path: Path, how: str, format: str) -> None:
    path = tmp_path / "in"
    build = elf_cores.core if format == "elf" else kdump.build
    path.write_bytes(build(inject.GUEST))  # type: ignore[operator]
    words = changing(path, tmp_path, how)
    assert words.startswith("refused")
    assert ("changed while it was read" in words) or how == "shrink"
    assert not (tmp_path / "out").exists()


def test_an_input_that_changes_is_taken_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.write_bytes(elf_cores.core(inject.GUEST))
    words = changing(path, tmp_path, "write", "salvage")
    assert words.startswith("done")
    assert "changed while it was read" in words
    assert (tmp_path / "out").exists()


def test_an_input_that_is_replaced_is_still_the_one_that_was_opened(tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.write_bytes(elf_cores.core(inject.GUEST))
    assert changing(path, tmp_path, "replace") == "done\n"


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="looking at an enum's class runs no Python code there")
def test_numpy_asks_no_enum(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sample: Callable[[str], Path]) -> None:
    """It forgets what is raised while it asks: a SIGTERM was lost once in two hundred times."""
    asked: list[str] = []
    look = enum.EnumMeta.__getattr__

    def noted(cls: type[enum.Enum], name: str) -> object:
        if name.startswith("__array"):
            asked.append(f"{cls.__name__}.{name}")
        return look(cls, name)

    monkeypatch.setattr(enum.EnumMeta, "__getattr__", noted)
    for name in ("elf/x64-long.elf", "kdump/x64-long.kdump"):
        with dumpxlate.open(sample(name)) as dump:
            for target in ("elf", "kdump", "raw", "lime"):
                dumpxlate.convert(dump, tmp_path / f"{target}.out", target, allow_loss=True, overwrite=True, threads=0)
            dump.states([0])
    assert asked == []
