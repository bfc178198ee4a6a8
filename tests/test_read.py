"""read: bytes on a pipe, a hexdump on a terminal, and the right exit code where there is nothing to read."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.builders import elf_cores, xen_core, xendump
from tests.builders.guest import small_guest
from tests.test_translate import MARK, VIRTUAL, paged_guest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Cli = Callable[..., subprocess.CompletedProcess[str]]

GUEST = small_guest()


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    style = next(name for name in elf_cores.STYLES if name.startswith("qemu"))
    (tmp_path / "dump").write_bytes(elf_cores.core(paged_guest(), style))
    return tmp_path / "dump"


def piped(cli: Cli, *words: str | Path) -> bytes:
    done = cli("read", *words, text=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout  # type: ignore[return-value]


def test_physical_bytes_on_a_pipe(cli: Cli, dump: Path) -> None:
    assert piped(cli, dump, "0x9123", str(len(MARK))) == MARK
    assert piped(cli, dump, "0x9123", str(len(MARK)), "--physical") == MARK
    guest = paged_guest()
    assert piped(cli, dump, "0xff8", "0x1010") == (guest.pages[0] + guest.pages[1] + guest.pages[2])[0xFF8:0x2008]
    assert piped(cli, dump, "0", "0") == b""


def test_virtual(cli: Cli, dump: Path) -> None:
    at, length = hex(VIRTUAL + 0x123), str(len(MARK))
    for words in ([], ["--cpu", "0"], ["--cr3", "0x1000"], ["--cpu", "1", "--cr3", "0x1000"]):
        assert piped(cli, dump, at, length, "--virtual", *words) == MARK
    assert piped(cli, dump, "0x9123", length, "--virtual", "--cpu", "1") == MARK


def test_more_than_a_piece(cli: Cli, tmp_path: Path) -> None:
    guest = small_guest(ranges=[(0, 600)], plain=True)
    (tmp_path / "dump").write_bytes(elf_cores.core(guest))
    assert piped(cli, "dump", "4000", "2M") == guest.run(0, 600)[4000 : 4000 + (2 << 20)]


def test_hexdump(cli: Cli, dump: Path) -> None:
    lines = cli("read", dump, "0x9123", "20", "--hex").stdout.splitlines()
    assert lines == [
        "0000000000009123  61 20 62 79 74 65 20 6f  66 20 74 68 65 20 70 61  |a byte of the pa|",
        "0000000000009133  67 65 00 00" + " " * 39 + "|ge..|",
    ]


def test_hexdump_on_a_terminal(dump: Path) -> None:
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "dumpxlate", "read", str(dump), "0x9123", "4"]
    with subprocess.Popen(command, stdout=follower) as process:
        os.close(follower)
        assert process.wait(60) == 0
        assert os.read(leader, 200).split(b"  ")[0] == b"0000000000009123"
    os.close(leader)


def test_machine_frames(cli: Cli, tmp_path: Path) -> None:
    pfn = next(pfn for pfn in GUEST.stored if pfn % 16 == 1)
    at = str(GUEST.mfns[pfn] * 4096)
    (tmp_path / "core").write_bytes(xen_core.build(GUEST))
    (tmp_path / "old").write_bytes(xendump.build(GUEST))
    for name in ("core", "old"):
        assert piped(cli, name, at, "4K", "--machine") == GUEST.pages[pfn]
    assert piped(cli, "core", str(pfn * 4096), "4K") == GUEST.pages[pfn]
    done = cli("read", "old", str(pfn * 4096), "1")
    assert (done.returncode, "keyed by machine frame" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["0xe000", "1"], "page 0xe is absent"),
        (["0xfff0000", "1"], "page 0xfff0 is absent"),
        (["0xfffe", "4"], "page 0x10 is absent"),
        ([hex(VIRTUAL + 0xFFF), "2", "--virtual"], "page 0xe is absent"),
        ([hex(VIRTUAL + 0x3000), "1", "--virtual"], f"address {VIRTUAL + 0x3000:#x}: unmapped: PT entry"),
        (["0x800000000000", "1", "--virtual"], "not canonical"),
    ],
)
def test_nothing_to_read(cli: Cli, dump: Path, words: list[str], said: str) -> None:
    done = cli("read", dump, *words)
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["0", "1", "--virtual", "--physical"],
        ["0", "1", "--cpu", "0"],
        ["0", "1", "--machine"],
        ["0xffffffffffffffff", "2", "--virtual"],
        ["0x10000000000000000", "1"],
        ["nowhere", "1"],
    ],
)
def test_usage(cli: Cli, dump: Path, words: list[str]) -> None:
    done = cli("read", dump, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
