"""Compressed files: unpacked to the last byte, without eating memory or disk, and salvaged where they break."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import zlib
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import IO, TYPE_CHECKING

import lz4.frame
import numpy as np
import pytest
import zstandard

import dumpxlate
from dumpxlate import errors
from dumpxlate.formats.compressed import FORMAT, unpack
from dumpxlate.formats.compressed.decompress import decompressor
from dumpxlate.formats.compressed.unpack import UnpackedFile
from dumpxlate.io.source import BytesSource, open_source
from tests.builders import elf_cores, flattened, lime
from tests.builders.codecs import lz4_frame, lz4_legacy, lzop
from tests.builders.guest import small_guest

if TYPE_CHECKING:
    from collections.abc import Callable

DATA = np.random.default_rng(3).bytes(2_000_000) + bytes(5 << 20) + b"words " * 200_000
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, 1),
    "xz": lambda data: lzma.compress(data, preset=0),
    "bzip2": bz2.compress,
    "zstd": zstandard.ZstdCompressor().compress,
    "lz4": lambda data: bytes(lz4.frame.compress(data, content_checksum=True)),
    "lzop": lzop,
}
KINDS = list(PACKERS)


@cache
def packed_data(kind: str) -> bytes:
    return PACKERS[kind](DATA)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))


def unwrap(packed: bytes) -> UnpackedFile:
    source = BytesSource(packed, "file")
    assert FORMAT.detect(source)
    found = FORMAT.unwrap(source)
    assert isinstance(found, UnpackedFile)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind(kind: str) -> None:
    with unwrap(packed_data(kind)) as inner:
        assert (inner.size, inner.name, inner.complaint) == (len(DATA), "file", None)
        assert inner.view() == DATA


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("padding", [0, 4, 4096])
def test_several_members_are_one_file(kind: str, padding: int) -> None:
    """As pigz -i, xz -T, pzstd and pbzip2 write them, with the zeros of a tape between and behind."""
    parts = [DATA[:100_000], b"", DATA[100_000:]]
    packed = b"".join(PACKERS[kind](part) + bytes(padding) for part in parts)
    with unwrap(packed) as inner:
        assert inner.view() == DATA
        assert inner.complaint is None


def test_zstd_with_a_skippable_frame_first() -> None:
    """pzstd begins with one."""
    packed = b"\x50\x2a\x4d\x18\x04\0\0\0size" + packed_data("zstd")
    with unwrap(packed) as inner:
        assert inner.view() == DATA


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lost", [1, 9, 20_000])
def test_a_truncated_file_gives_what_is_there(kind: str, lost: int) -> None:
    packed = packed_data(kind)[:-lost]
    with unwrap(packed) as inner:
        assert inner.complaint
        assert f"{kind}: truncated at {len(packed):#x}" in inner.complaint
        assert f"{inner.size:,} unpacked bytes" in inner.complaint
        assert inner.view() == DATA[: inner.size]
        assert inner.size > 800_000


@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_file_gives_what_stands_before(kind: str) -> None:
    noise = np.random.default_rng(4).bytes(5 << 20)
    packed = bytearray(PACKERS[kind](noise))
    middle = len(packed) // 2
    packed[middle : middle + 64] = bytes(64)
    with unwrap(bytes(packed)) as inner:
        # gzip finds out by the checksum at the end, the others where it happens; nothing before is lost.
        assert inner.complaint
        assert inner.complaint.startswith(f"{kind}: ")
        assert inner.view(0, 1 << 20) == noise[: 1 << 20]


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_that_unpacks(kind: str) -> None:
    for packed in (packed_data(kind)[:13], PACKERS[kind](b"")):
        with pytest.raises(errors.CorruptDumpError, match=f"file: {kind} at 0x"):
            unwrap(packed)


@pytest.mark.parametrize("kind", KINDS)
def test_rubbish_behind_the_last_member_is_told(kind: str) -> None:
    packed = packed_data(kind)
    with unwrap(packed + b"rubbish") as inner:
        assert inner.view() == DATA
        assert inner.complaint
        assert f"{len(packed):#x} is no further member" in inner.complaint


@pytest.mark.parametrize("flags", [0, 1, 2, 0x100, 0x303, 0x40, 0x800, 0x943])
@pytest.mark.parametrize("version", [0x1040, 0x0900])
def test_every_shape_of_an_lzop_file(flags: int, version: int) -> None:
    data = DATA[1_999_000:2_300_000]
    with unwrap(lzop(data, flags=flags, version=version, block=70_000)) as inner:
        assert inner.view() == data
        assert inner.complaint is None


def test_lzop_files_that_cannot_be() -> None:
    stored, packed = lzop(b"some text here"), lzop(bytes(4096))
    size = (4096).to_bytes(4, "big")
    for broken, error in (
        (stored.replace(b"text", b"tixt"), "checksum"),
        (lzop(b"some text here", method=9), "method 9"),
        (packed.replace(size, b"\x7f\0\0\0"), "bytes that are 2130706432 unpacked"),
        (packed.replace(bytes(4) + b"\x20", b"\xff" * 5), "no lzo1x: eresult"),
    ):
        with pytest.raises(errors.CorruptDumpError, match=error) as caught:
            unwrap(broken)
        assert "\\x" not in str(caught.value)  # no content in messages


SMALL = DATA[1_940_000:2_060_000]


@pytest.mark.parametrize("flags", [0x40, 0x60, 0x48, 0x70, 0x64, 0x7C])
@pytest.mark.parametrize("block", [1 << 16, 1 << 22])
@pytest.mark.parametrize("stored", [False, True])
def test_every_shape_of_an_lz4_frame(flags: int, block: int, stored: bool) -> None:
    """The first is what systemd-coredump writes."""
    with unwrap(lz4_frame(SMALL, flags=flags, block=block, stored=stored)) as inner:
        assert inner.view() == SMALL
        assert inner.complaint is None


def test_lz4_frames_of_the_older_layout() -> None:
    """As lz4 -l writes them: nothing ends such a frame but another one, padding, or the end of the file."""
    older, small = lz4_legacy(DATA), lz4_legacy(SMALL)
    for packed, data in (
        (older, DATA),
        (small * 2, SMALL * 2),
        (small + bytes(4096) + lz4_frame(SMALL), SMALL * 2),
        (lz4_frame(SMALL) + small + bytes(2), SMALL * 2),
    ):
        with unwrap(packed) as inner:
            assert inner.view() == data
            assert inner.complaint is None
    last = len(lz4_legacy(DATA[8 << 20 :])) - 4
    for lost in (1, last - 1, last - 4):
        with unwrap(older[:-lost]) as inner:
            assert inner.size == 8 << 20
            assert inner.complaint
            assert "truncated" in inner.complaint


def test_lz4_frames_that_are_skipped() -> None:
    skipped = b"\x50\x2a\x4d\x18\x05\0\0\0words"
    for packed in (skipped * 2 + lz4_frame(SMALL), lz4_frame(SMALL) + skipped, skipped + lz4_legacy(SMALL) + skipped):
        with unwrap(packed) as inner:
            assert inner.view() == SMALL
            assert inner.complaint is None
    for nothing in (skipped, skipped[:7], skipped + b"\x28\xb5", b"\x50\x2a\x4d\x18" + b"\xff" * 4 + lz4_frame(SMALL)):
        assert FORMAT.detect(BytesSource(nothing)) is None


def test_lz4_files_that_cannot_be() -> None:
    frame, older = lz4_frame(SMALL, flags=0x70, stored=True), lz4_legacy(bytes(4096))
    for broken in (
        frame[:6] + bytes([frame[6] ^ 1]) + frame[7:],  # the checksum of the header
        frame[:7] + b"\x01\0\x01\x80" + frame[11:],  # a block longer than blocks are
        older[:8] + b"\x0f\0\0" + older[11:],  # a copy from before the start
        older[:4] + b"\xff\xff\xff\x7f" + older[8:],
    ):
        with pytest.raises(errors.CorruptDumpError, match="file: lz4 at 0x") as caught:
            unwrap(broken)
        assert "\\x" not in str(caught.value)  # no content in messages
    for broken in (
        frame[:100] + bytes([frame[100] ^ 1]) + frame[101:],  # the checksum of a block
        lz4_frame(SMALL, flags=0x68, size=1 << 60),  # nobody believes it
    ):
        with unwrap(broken) as inner:
            assert inner.complaint
            assert "_" not in inner.complaint
            assert inner.size <= len(SMALL)


@pytest.mark.peer
@pytest.mark.parametrize(
    "switches", [["-1"], ["-9", "-BD"], ["-l"], ["-B4", "-BX", "--content-size"], ["--no-frame-crc"]]
)
def test_files_that_lz4_wrote(tmp_path: Path, switches: list[str]) -> None:
    if not shutil.which("lz4"):
        pytest.skip("lz4 is not installed")
    (tmp_path / "plain").write_bytes(DATA)
    subprocess.run(["lz4", "-q", *switches, "plain", "packed"], cwd=tmp_path, check=True)
    with unwrap((tmp_path / "packed").read_bytes() * 2) as inner:
        assert inner.view() == DATA * 2
        assert inner.complaint is None


@pytest.mark.parametrize(
    "head",
    [b"\x1f\x8b", b"\x1f\x8b\x07\0", b"BZh0", b"BZhello, world", b"\xfd7zXY\0", b"\x78\x9c", b"\x50\x2a\x4d", b""],
)
def test_what_only_looks_compressed(head: bytes) -> None:
    assert FORMAT.detect(BytesSource(head)) is None
    assert FORMAT.detect(BytesSource(head.ljust(100, b"\x07"))) is None


def test_a_zlib_stream_is_taken_for_lime_only() -> None:
    """LiME's compress=1; two bytes alone would claim one raw image in some thousands."""
    guest = small_guest(excluded=(), high=False)
    for level in (1, 6, 9):
        packed = zlib.compress(lime.build(guest), level)
        with unwrap(packed) as inner:
            assert inner.view() == lime.build(guest)
    assert FORMAT.detect(BytesSource(zlib.compress(b"AMiL" + DATA))) is None


def test_the_temporary_file_is_private_and_nameless(tmp_path: Path) -> None:
    with unwrap(packed_data("gzip")) as inner:
        assert list((tmp_path / "scratch").iterdir()) == []
        status = os.fstat(inner._fd)
        assert stat.S_IMODE(status.st_mode) == 0o600
        assert status.st_nlink == 0
        # Zeros are holes: 5 of 8 MiB.
        assert status.st_blocks * 512 < len(DATA) - (4 << 20)
        start, length = inner.data_runs()
        assert len(start) == 2
        assert int(length.sum()) < len(DATA) - (4 << 20)


def test_the_compressed_file_is_closed_once_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "file.gz"
    path.write_bytes(gzip.compress(elf_cores.core(small_guest(excluded=(), high=False))))
    before = len(list(Path("/proc/self/fd").iterdir()))
    with dumpxlate.open(path):
        # The temporary file's own, and the copy that its mapping keeps.
        assert len(list(Path("/proc/self/fd").iterdir())) == before + 2
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize("kind", KINDS)
def test_no_more_is_taken_in_before_what_is_there_is_given_out(kind: str) -> None:
    """Else the input would pile up in memory."""
    member = decompressor(kind)
    zeros = bytes(1 << 24)
    data, size = PACKERS[kind](zeros), 0
    while not member.eof:
        size += len(member.decompress(data, 1 << 16))
        data = b""
        assert member.eof or not member.needs_input or size == len(zeros)
    assert size == len(zeros)


def test_a_failure_leaves_nothing_open(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(errors.CorruptDumpError):
        unwrap(PACKERS["gzip"](b""))
    path = tmp_path / "file.gz"
    path.write_bytes(PACKERS["gzip"](b"\x7fELF" + bytes(99)))
    with pytest.raises(errors.FormatError):
        dumpxlate.open(path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_file_unpacks_to_so_many_bytes_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "MOST", len(DATA) - 1)
    with pytest.raises(errors.UnsupportedFeatureError, match="unpacks to more than"):
        unwrap(packed_data("xz"))
    monkeypatch.setattr(unpack, "MOST", len(DATA))
    unwrap(packed_data("xz")).close()


def test_room_is_left_on_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = SimpleNamespace(f_bavail=unpack.SPARE // 4096 - 1, f_frsize=4096)
    monkeypatch.setattr(os, "fstatvfs", lambda fd: disk)
    with pytest.raises(OSError, match=r"no room to unpack file: .*TMPDIR"):
        unwrap(packed_data("gzip"))
    unwrap(PACKERS["gzip"](bytes(1 << 20))).close()  # zeros take none


BOMB = """
import re, sys
from dumpxlate.formats.compressed import FORMAT
from dumpxlate.io.source import open_source
with FORMAT.unwrap(open_source(sys.argv[1])) as inner:
    assert inner.size == 1 << 29, inner.complaint
    assert not len(inner.data_runs()[0])
# Not ru_maxrss: a child inherits that from the process that started it.
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""


BOMBS: dict[str, Callable[[Path], IO[bytes]]] = {
    "gzip": lambda path: gzip.open(path, "wb", 1),  # noqa: SIM115
    "xz": lambda path: lzma.open(path, "wb", preset=0, check=lzma.CHECK_NONE),  # noqa: SIM115
    "zstd": lambda path: zstandard.open(path, "wb"),
    "lz4": lambda path: lz4.frame.open(path, "wb"),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_takes_neither_memory_nor_disk(tmp_path: Path, kind: str) -> None:
    """512 MiB of zeros: 16 KiB in zstd."""
    path = tmp_path / "bomb"
    with BOMBS[kind](path) as file:
        for _ in range(1 << 5):
            file.write(bytes(1 << 24))
    done = subprocess.run([sys.executable, "-c", BOMB, path], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 350 << 10


def test_a_dictionary_of_any_size_is_not_allocated() -> None:
    packed = bytearray(zstandard.ZstdCompressor(write_content_size=False).compress(DATA))
    assert packed[4] & 0x20 == 0  # not a single segment: a window descriptor follows
    packed[5] = 0xFF  # 3.75 TiB
    with pytest.raises(errors.UnsupportedFeatureError, match="too much memory"):
        unwrap(bytes(packed))
    header = bytearray(lzma.compress(DATA, preset=0)[:24])
    assert header[14:16] == b"\x21\x01"  # the LZMA2 filter, one byte of properties
    header[16] = 40  # 4 GiB
    header[20:24] = zlib.crc32(bytes(header[12:20])).to_bytes(4, "little")
    with pytest.raises(errors.UnsupportedFeatureError, match="memory"):
        unwrap(bytes(header) + lzma.compress(DATA, preset=0)[24:])


@pytest.mark.parametrize("kind", KINDS)
def test_dumps_are_opened_through_it(tmp_path: Path, kind: str) -> None:
    guest = small_guest(excluded=(), high=False)
    path = tmp_path / "dump.any"
    path.write_bytes(PACKERS[kind](flattened.wrap(elf_cores.core(guest), sizes=5000)))
    with dumpxlate.open(path) as dump:
        assert dump.format == "elf"
        assert dump.variant.endswith("in compressed, flattened")
        assert dump.name == str(path)
        found = dump.read_pages(guest.stored)
    assert [row.tobytes() for row in found] == [guest.pages[pfn] for pfn in guest.stored]


def test_damage_of_both_containers_is_told(tmp_path: Path) -> None:
    guest = small_guest(excluded=(), high=False)
    path = tmp_path / "dump"
    path.write_bytes(gzip.compress(flattened.wrap(elf_cores.core(guest), sizes=5000, holes=False))[:-5000])
    with dumpxlate.open(path) as dump:
        assert [words.split(":")[0] for words in dump.damage[:2]] == ["gzip", "truncated"]
        with pytest.raises(errors.CorruptDumpError, match="--salvage"):
            dumpxlate.convert(dump, tmp_path / "out")


def test_the_compressed_file_is_not_overwritten_by_its_conversion(tmp_path: Path) -> None:
    path = tmp_path / "dump.gz"
    path.write_bytes(gzip.compress(elf_cores.core(small_guest(excluded=(), high=False))))
    with dumpxlate.open(path) as dump, pytest.raises(errors.OutputError, match="is the input itself"):
        dumpxlate.convert(dump, path, overwrite=True)


def test_nothing_is_written_compressed() -> None:
    with open_source(__file__) as source:
        assert FORMAT.detect(source) is None
    assert FORMAT.wrap(None) is None  # type: ignore[arg-type]
