"""Dumps that are only recognised: named with what they are, and never taken for raw."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import dumpxlate
from dumpxlate import errors
from dumpxlate.format import OpenOptions, WriteOptions
from dumpxlate.formats.foreign import FORMAT
from dumpxlate.io.source import BytesSource
from dumpxlate.registry import all_formats, detect

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    Cli = Callable[..., subprocess.CompletedProcess[str]]

# The bytes as the formats' documents print them; not taken from the program.
MAGICS = {
    "ed 23 8f 61 73 01 19 a8": "LKCD",
    "a8 19 01 73 61 8f 23 ed": "LKCD",
    "cd 23 8f 61 73 01 19 a8": "LKCD",
    "a8 19 01 73 61 8f 23 cd": "LKCD",
    "a8 19 01 73 61 8f 23 fd": "s390",
    "73 61 64 75 6d 70 00 00": "sadump",
    "50 41 47 45 44 55 4d 50": "32-bit Windows crash dump",
    "50 41 47 45 44 55 36 34": "64-bit Windows crash dump",
    "4d 44 4d 50": "minidump",
    "68 69 62 72": "hibernation",
    "48 49 42 52": "hibernation",
    "77 61 6b 65": "hibernation",
    "57 41 4b 45": "hibernation",
    "52 53 54 52": "hibernation",
    "d0 be d0 be": "VMware",
    "d1 ba d1 ba": "VMware",
    "d2 ba d2 ba": "VMware",
    "d2 be d2 be": "VMware",
    "d3 be d3 be": "VMware",
    "14 20 28 01": "Hyper-V",
}


@pytest.mark.parametrize(("magic", "words"), MAGICS.items())
def test_each_is_named(tmp_path: Path, magic: str, words: str) -> None:
    path = tmp_path / "dump"
    path.write_bytes(bytes.fromhex(magic).ljust(8192, b"\0"))
    with pytest.raises(errors.UnsupportedFeatureError, match=f"dump: .*{words}.*recognised, but not read: .") as caught:
        dumpxlate.open(path)
    assert caught.value.feature


@pytest.mark.parametrize("magic", MAGICS)
def test_all_bytes_of_a_magic_count(magic: str) -> None:
    body = bytes.fromhex(magic)
    assert FORMAT.detect(BytesSource(body))
    assert FORMAT.detect(BytesSource(body[:-1])) is None
    assert FORMAT.detect(BytesSource(body[:-1] + bytes([body[-1] ^ 1]))) is None
    assert FORMAT.detect(BytesSource(b"\0" + body)) is None


@pytest.mark.parametrize("magic", MAGICS)
def test_no_other_format_claims_them(magic: str) -> None:
    source = BytesSource(bytes.fromhex(magic).ljust(4096, b"\0"))
    assert detect(source)[0] is FORMAT
    assert {each.name for each in all_formats() if each.detect(source)} <= {"foreign", "raw"}


def test_nothing_is_opened_or_written() -> None:
    with pytest.raises(errors.UnsupportedFeatureError, match="none of the kinds"):
        FORMAT.open([BytesSource(b"something")], OpenOptions())
    with pytest.raises(errors.UnsupportedFeatureError, match="no format to write"):
        FORMAT.writer(None, WriteOptions())  # type: ignore[arg-type]
    assert not FORMAT.writes


def test_the_command_line_says_so(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "dump").write_bytes(b"PAGEDU64".ljust(4096, b"\0"))
    done = cli("info", "dump")
    assert done.returncode == 3
    assert "WinDbg opens it" in done.stderr
    listed = cli("formats").stdout
    row = next(line for line in listed.splitlines() if line.split()[:1] == ["foreign"])
    assert row.split()[1:3] == ["no", "no"]
