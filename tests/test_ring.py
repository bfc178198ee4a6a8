"""Several processes write one output in turn: the same bytes and the same words as one would, whatever goes wrong.

They are forked only where a process has no other thread, which pytest's has: so each test starts Python anew.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from dumpxlate.registry import all_formats
from tests.builders import elf_cores, kdump
from tests.builders.guest import small_guest
from tests.core.test_forks import ONE_FORK

if TYPE_CHECKING:
    from pathlib import Path

TARGETS = [each.name for each in all_formats() if each.writes]

# Eleven batches and a bit, with a hole in the middle, zero pages, noise, and pages left out.
LARGE = small_guest(ranges=[(0, 0x19A0), (0x3100, 0x1300)], excluded=[3, 0x109, *range(0x3180, 0x3190)])
ODD = [4, 1025, 1026, 2557, 0x3201]  # two of them meet where a batch ends and another process goes on

CONVERSION = """
import json, os, signal, sys, time
from dumpxlate.writing import pump, ring

pump._WIDE_BYTES = pump.BATCH_BYTES
parent, batches, ways = os.getpid(), [], []
prepare, share = pump.Pump.prepare, pump.share

def watched(self, window):
    batches.append(window)
    trouble(os.getpid() != parent, batches)
    return prepare(self, window)

def told(*arguments):
    ways.append(share(*arguments))
    return ways[-1]

pump.Pump.prepare, pump.share = watched, told

def trouble(child, batches):
    pass

{trouble}

from dumpxlate.cli import main
try:
    main()
finally:
    json.dump({{"batches": len(batches), "shared": ways}}, open(os.environ["TOLD"], "w"))
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ring") / "in.elf"
    path.write_bytes(elf_cores.core(LARGE, "makedumpfile"))
    return path


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ring") / "in.kdump"
    path.write_bytes(kdump.build(LARGE, descriptors={pfn: {"flags": 0x40} for pfn in ODD}))
    return path


def start(folder: Path, *arguments: str | Path, trouble: str = "") -> subprocess.Popen[str]:
    script = CONVERSION.format(trouble=trouble)
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "TOLD": str(folder / "told")}
    command = [sys.executable, "-c", script, "convert", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )


def convert(folder: Path, *arguments: str | Path, trouble: str = "") -> tuple[int, str, Any]:
    """Exit code, what was said, and what the processes did."""
    process = start(folder, *arguments, trouble=trouble)
    _, words = process.communicate(timeout=120)
    told = folder / "told"
    return process.returncode, words, json.loads(told.read_text()) if told.exists() else None


@pytest.mark.parametrize("target", TARGETS)
def test_the_output_is_the_same(tmp_path: Path, source: Path, target: str) -> None:
    for workers in ("0", "2", "3"):
        name = f"out.{workers}"
        code, words, told = convert(tmp_path, source, "-o", name, "--to", target, "--threads", workers, "--allow-loss")
        assert code == 0, words
        if workers != "0" and target not in ("avml",):
            assert told["shared"] == [True]
            assert 0 < told["batches"] < 12
    outputs = {(tmp_path / f"out.{workers}").read_bytes() for workers in "023"}
    assert len(outputs) == 1
    beside = {path.read_bytes() for path in tmp_path.glob("out.?.*")}
    assert len(beside) == (target == "raw")


BUSY = """
from dumpxlate.io import writeback
writeback.EVERY, writeback.HELD_BACK = 1 << 10, 0
begin, begun = writeback.start_writeback, []

def slow(fd, offset, length):
    begun.append(os.getpid())
    time.sleep(0.02)
    begin(fd, offset, length)
    assert length > 0

writeback.start_writeback = slow
import atexit
atexit.register(lambda: print(*begun))
"""


@pytest.mark.parametrize("target", ["elf", "kdump", "lime"])
def test_a_disk_that_is_at_work_meanwhile(tmp_path: Path, source: Path, target: str) -> None:
    """The thread for it is no reason not to fork, and one process has it."""
    assert convert(tmp_path, source, "-o", "plain", "--to", target, "--threads", "0", "--allow-loss")[0] == 0
    process = start(tmp_path, source, "-o", "out", "--to", target, "--threads", "3", "--allow-loss", trouble=BUSY)
    said, words = process.communicate(timeout=120)
    assert process.returncode == 0, words
    assert len(said.split()) > 1
    assert set(said.split()) == {str(process.pid)}
    assert json.loads((tmp_path / "told").read_text())["shared"] == [True]
    assert (tmp_path / "out").read_bytes() == (tmp_path / "plain").read_bytes()


SLOW_QUEUE = """
import threading
from dumpxlate.io import aio

def leave():
    aio.rest()
    aio._Use.leaving = threading.Thread(target=time.sleep, args=(0.2,))
    aio._Use.leaving.start()

aio.leave = leave
"""


def test_a_queue_that_takes_its_time_to_go(tmp_path: Path, source: Path) -> None:
    """It is waited for: with its thread there would be no forks for the next file of a set."""
    command = (source, "-o", "out", "--to", "kdump", "--split", "2", "--threads", "2", "--allow-loss")
    code, words, told = convert(tmp_path, *command, trouble=SLOW_QUEUE)
    assert code == 0, words
    assert told["shared"] == [True, True]


@pytest.mark.parametrize(
    "command", [["check"], ["check", "--first", "2"], ["compare", "--first", "3"], ["checksum", "--runs", "5"]]
)
def test_what_reads_says_the_same(tmp_path: Path, source: Path, damaged: Path, command: list[str]) -> None:
    files = [damaged, source] if command[0] == "compare" else [damaged]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    said = []
    for workers in ("0", "2", "3"):
        program = [sys.executable, "-m", "dumpxlate", *command, *map(str, files), "--threads", workers, "--json"]
        done = subprocess.run(program, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.stdout, done.stderr
        told = json.loads(done.stdout)
        told.pop("seconds", None)
        said.append((done.returncode, done.stderr, told))
    assert said[0] == said[1] == said[2]


@pytest.mark.parametrize("how", ["stop", "skip", "zero"])
def test_bad_pages_are_told_alike(tmp_path: Path, damaged: Path, how: str) -> None:
    said = []
    for workers in ("0", "2", "3"):
        (tmp_path / workers).mkdir()
        command = (damaged, "-o", "out", "--to", "elf", "--bad-pages", how, "--threads", workers, "--report", "report")
        code, words, _ = convert(tmp_path / workers, *command)
        report = tmp_path / workers / "report"
        told = json.loads(report.read_text()) if report.exists() else {}
        said.append((code, words.rsplit(",", 1)[0], {key: each for key, each in told.items() if key != "seconds"}))
    assert said[0] == said[1] == said[2]
    code, words, told = said[0]
    assert code == (5 if how == "stop" else 4)
    assert ("page 0x4:" in words) == (how == "stop")
    assert told.get("pages_out", {}).get("bad", 0) == (0 if how == "stop" else len(ODD))


KILLED = """
def trouble(child, batches):
    if child and len(batches) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("workers", ["2", "4"])
def test_a_process_that_is_killed_ends_it(tmp_path: Path, source: Path, workers: str) -> None:
    code, words, _ = convert(
        tmp_path, source, "-o", "out", "--to", "raw", "--threads", workers, "--allow-loss", trouble=KILLED
    )
    assert code == 2
    assert (
        words.splitlines()[-1] == "dumpxlate: out: a process that was writing it was killed; was there enough memory?"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["told"]


FULL = """
from dumpxlate.io.sink import FileSink
release = FileSink.release
def full(self):
    if os.getpid() != parent and len(batches) >= {when}:
        raise OSError(28, "No space left on device")
    release(self)
FileSink.release = full
"""


@pytest.mark.parametrize("when", [1, 6])
def test_a_disk_that_fails_behind_the_token(tmp_path: Path, source: Path, when: int) -> None:
    """Also when it does so for the very last batch, of which nobody waits for the bytes."""
    code, words, told = convert(
        tmp_path, source, "-o", "out", "--to", "elf", "--threads", "2", trouble=FULL.format(when=when)
    )
    assert (code, told["shared"]) == (2, [])
    assert words == "dumpxlate: out: no space left on device\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["told"]


def test_what_goes_wrong_in_another_process_keeps_its_kind(tmp_path: Path, source: Path) -> None:
    trouble = """
class Odd(ValueError):
    def __init__(self, one, two):
        super().__init__(f"{one} {two}")

def trouble(child, batches):
    if child:
        raise Odd("odd", "thing") if {odd} else MemoryError("no more")
"""
    for odd, words in ((True, "Odd: odd thing"), (False, "no more")):
        code, said, _ = convert(
            tmp_path, source, "-o", "out", "--threads", "2", trouble=trouble.replace("{odd}", str(odd))
        )
        assert code != 0
        assert words in said.splitlines()[-1]


def test_without_more_processes_threads_do_it(tmp_path: Path, source: Path) -> None:
    code, words, told = convert(tmp_path, source, "-o", "out", "--to", "elf", "--threads", "3", trouble=ONE_FORK)
    assert code == 0, words
    assert told == {"batches": 12, "shared": [False]}
    assert convert(tmp_path, source, "-o", "one", "--to", "elf", "--threads", "0")[0] == 0
    assert (tmp_path / "out").read_bytes() == (tmp_path / "one").read_bytes()


SLOW = """
def trouble(child, batches):
    if child:
        open("child", "w").write(str(os.getpid()))
        time.sleep(600)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_no_process_outlives_the_first(tmp_path: Path, source: Path, number: int, code: int) -> None:
    slow = SLOW if number != signal.SIGKILL else SLOW.replace("600", "1.5")
    process = start(tmp_path, source, "-o", "out", "--to", "elf", "--threads", "2", trouble=slow)
    child = None
    while child is None:
        time.sleep(0.02)
        assert process.poll() is None
        text = (tmp_path / "child").read_text() if (tmp_path / "child").exists() else ""
        child = int(text) if text else None
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == code
    until = time.monotonic() + 60
    while is_there(child):
        assert time.monotonic() < until
        time.sleep(0.05)
    assert not (tmp_path / "out").exists()
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".partial"]


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
