"""AVML files: blocks of snappy frames, unpacked where they are asked for, and written."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import dumpxlate
from dumpxlate import errors
from dumpxlate.codecs.batch import decode
from dumpxlate.format import Confidence, OpenOptions, WriteOptions
from dumpxlate.formats.avml import FORMAT
from dumpxlate.formats.avml.reader import ChunkedSource
from dumpxlate.formats.avml.records import find_blocks
from dumpxlate.io.sink import PipeSink
from dumpxlate.io.source import BytesSource, open_source
from dumpxlate.pages import PageState
from tests.builders import avml, codecs, elf_cores, lime
from tests.builders.guest import far_guest, page, small_guest, stored_runs
from tests.peers import peers

if TYPE_CHECKING:
    from pathlib import Path

    from dumpxlate.dump import Dump
    from tests.builders.guest import Guest

PAGE = 4096
CHUNK = 65536
BLOCK = 16 << 20


def read(data: bytes) -> Dump:
    source = BytesSource(data, "file")
    match = FORMAT.detect(source)
    assert match
    assert match.confidence is Confidence.SPECIFIC
    return FORMAT.open([source], OpenOptions())


def assert_pages(dump: Dump, expected: dict[int, bytes]) -> None:
    pfns = sorted(expected)
    found = dump.read_pages(pfns)
    assert [pfn for pfn, row in zip(pfns, found, strict=True) if row.tobytes() != expected[pfn]] == []


def runs(pages: Any) -> list[tuple[int, int]]:
    return list(zip(*(column.tolist() for column in pages.runs()), strict=True))


def many(first: int, count: int) -> dict[int, bytes]:
    return {pfn: page(pfn) for pfn in range(first, first + count)}


@pytest.fixture
def guest() -> Guest:
    return small_guest()


@pytest.mark.parametrize(
    "options", [{}, {"raw_chunks": True}, {"chunk": 5000}, {"padding": b"pad"}, {"padding": b"p" * 200}]
)
def test_every_page(guest: Guest, options: dict[str, Any]) -> None:
    with read(avml.build(guest, **options)) as dump:
        assert (dump.format, dump.variant, dump.damage) == ("avml", "version 2", ())
        assert runs(dump.pages.ram) == stored_runs(guest)
        assert_pages(dump, guest.pages)
        assert not any("ends with a length" in remark for remark in dump.remarks)
        assert any("cannot be told from holes" in remark for remark in dump.remarks)


def test_chunks_are_found_without_unpacking(guest: Guest) -> None:
    """And each is unpacked once for a batch, whatever the number of its pages."""
    data = avml.build(many(0, 100))
    blocks = find_blocks(BytesSource(data))
    assert np.array(blocks.chunks).reshape(-1, 3)[:, 0].tolist() == [CHUNK] * 6 + [4 * PAGE]
    with read(data) as dump:
        batch = dump.pages.fetch(dump.pages.locate(np.array([1, 2, 3, 17, 40], np.int64)))
        assert len(batch.body) == 3 * CHUNK
        assert decode(batch, PAGE).table.state.tolist() == [PageState.STORED] * 5


def test_several_blocks_for_one_range() -> None:
    pages = many(0, 64)
    with read(avml.build(pages, most=10 * PAGE)) as dump:
        assert runs(dump.pages.ram) == [(0, 64)]
        assert dump.attributes["blocks"] == 7
        assert_pages(dump, pages)


def test_zero_blocks_are_missing() -> None:
    pages = many(0, 12) | {pfn: bytes(PAGE) for pfn in range(4, 8)}
    with read(avml.build(pages, most=4 * PAGE)) as dump:
        assert runs(dump.pages.ram) == [(0, 4), (8, 4)]
    with read(avml.build(pages, most=4 * PAGE, keep_zero=True)) as dump:
        assert runs(dump.pages.ram) == [(0, 12)]
        assert_pages(dump, pages)


def test_blocks_that_do_not_end_at_pages() -> None:
    memory = b"".join(many(0, 40).values())
    ranges = [(0x800, memory[0x800:0x11234]), (0x11234, memory[0x11234:0x20000]), (0x20100, memory[0x20100:0x20200])]
    with read(avml.build(ranges)) as dump:
        expected = {pfn: memory[pfn * PAGE : (pfn + 1) * PAGE] for pfn in range(1, 32)}
        expected[0] = bytes(0x800) + memory[0x800:PAGE]
        expected[32] = bytes(0x100) + memory[0x20100:0x20200] + bytes(PAGE - 0x200)
        assert_pages(dump, expected)


def test_of_overlapping_blocks_the_first_counts() -> None:
    with read(avml.build([(0x1000, page(1) + page(2)), (0x2000, b"\xee" * PAGE + page(3))])) as dump:
        assert_pages(dump, many(1, 3))
        assert any("blocks overlap: 4,096 bytes" in remark for remark in dump.remarks)


@pytest.mark.parametrize("plain", [{0}, {1}, {2}, {0, 1}])
def test_records_of_both_versions(plain: set[int]) -> None:
    pieces = [(0, page(0) + page(1)), (0x10000, b"".join(many(16, 60).values())), (0x100000, page(256))]
    with read(avml.build(pieces, plain=plain)) as dump:
        assert_pages(dump, many(0, 2) | many(16, 60) | {256: page(256)})


def test_only_records_of_lime_are_left_to_it(guest: Guest) -> None:
    assert FORMAT.detect(BytesSource(lime.build(guest))) is None
    assert FORMAT.detect(BytesSource(lime.build(guest)[:-5])) is None
    for head in (b"", b"AVM", b"EMiL", b"EMiLxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"):
        assert FORMAT.detect(BytesSource(head)) is None


def test_a_mixed_file_is_not_ambiguous(tmp_path: Path) -> None:
    (tmp_path / "dump").write_bytes(avml.build([(0, page(0)), (0x10000, page(16))], plain={0}))
    with dumpxlate.open(tmp_path / "dump") as dump:
        assert dump.format == "avml"


@pytest.mark.parametrize("kind", ["bytes", "file"])
def test_any_range_of_what_is_unpacked(tmp_path: Path, kind: str) -> None:
    memory = b"".join(many(0, 70).values())
    data = avml.build([(0, memory[:150_000]), (1 << 30, memory[150_000:])], chunk=7000, plain={1})
    (tmp_path / "file").write_bytes(data)
    outer = BytesSource(data) if kind == "bytes" else open_source(tmp_path / "file")
    rng = np.random.default_rng(1)
    with ChunkedSource(outer, find_blocks(outer)) as inner:
        assert inner.size == len(memory)
        for _ in range(40):
            offset = np.sort(rng.integers(-2, len(memory) + 10, 12))
            size = rng.integers(1, 20_000, 12).astype(np.int32)
            body, at = inner.gather(offset, size)
            for low, length, place in zip(offset.tolist(), size.tolist(), at.tolist(), strict=True):
                if low >= 0 and low + length <= len(memory):
                    assert body[place : place + length] == memory[low : low + length]
                else:
                    assert place < 0 or place + length > len(body)
        assert inner.view(69_000, 3000) == memory[69_000:72_000]


# Wrong files.


def test_a_wrong_checksum_costs_its_own_chunk_only() -> None:
    pages = many(0, 100)
    with read(avml.build(pages, corrupt={0: 2})) as dump:
        table = decode(dump.pages.fetch(dump.pages.locate(np.arange(100, dtype=np.int64))), PAGE).table
        assert np.flatnonzero(table.state == PageState.BAD).tolist() == list(range(32, 48))
        assert_pages(dump, {pfn: data for pfn, data in pages.items() if pfn not in range(32, 48)})


def test_a_bad_chunk_stops_a_conversion_unless_told(tmp_path: Path) -> None:
    (tmp_path / "dump").write_bytes(avml.build(many(0, 100), corrupt={0: 2}))
    with dumpxlate.open(tmp_path / "dump") as dump:
        with pytest.raises(errors.CorruptPageError, match="page 0x20"):
            dumpxlate.convert(dump, tmp_path / "out")
        report = dumpxlate.convert(dump, tmp_path / "out", bad_pages="zero")
        assert report.pages_out["bad"] == 16


def test_a_bad_chunk_where_a_block_ends_inside_a_page() -> None:
    data = avml.build([(0x800, page(0)[0x800:] + page(1))], corrupt={0: 0})
    with pytest.raises(errors.CorruptDumpError, match="snappy chunk at 0x2a: it, or one soon after it"):
        read(data)


@pytest.mark.parametrize("value", [0, 5, 1 << 60])
def test_a_wrong_length_behind_a_block_is_told(value: int) -> None:
    """avml's own converter does not look at it."""
    with read(avml.build(many(0, 20), most=10 * PAGE, trailers={0: value})) as dump:
        assert_pages(dump, many(0, 20))
        assert any(f"block 0 ends with a length of {value:#x}" in remark for remark in dump.remarks)


def test_truncated_everywhere() -> None:
    pages = many(0, 60)
    whole = avml.build(pages, most=40 * PAGE, chunk=10 * PAGE)
    ends = np.array(find_blocks(BytesSource(whole)).chunks).reshape(-1, 3)
    ends = ends[:, 1] + ends[:, 2]
    second = whole.index(b"AVML", 4)
    near = {int(end) + step for end in (*ends, 32, second, second + 32, len(whole)) for step in range(-12, 13)}
    for length in sorted(at for at in near | set(range(4, len(whole), 61)) if at < len(whole)):
        if length < ends[0]:
            with pytest.raises(errors.TruncatedDumpError):
                read(whole[:length])
            continue
        with read(whole[:length]) as dump:
            kept = 10 * int((ends <= length).sum())
            assert runs(dump.pages.stored) == [(0, kept)]
            # The header of a block that is cut says that all of it is RAM.
            assert runs(dump.pages.ram) == [(0, 40 if kept < 40 else 60 if length >= second + 32 else 40)]
            if length != second:  # else nothing tells that more was to come
                assert "truncated" in dump.damage[0], length
            if length % 7 == 0:
                assert_pages(dump, many(0, kept))


WRONG = [
    ({"magic": 0x4C4D5642}, errors.CorruptDumpError, "begins with 42 56 4d 4c"),
    ({"version": 1}, errors.UnsupportedFeatureError, "version 1, expected 2"),
    ({"version": 3}, errors.UnsupportedFeatureError, "version 3, expected 2"),
    ({"reserved": 1}, errors.CorruptDumpError, "reserved bytes are 0x1, expected 0"),
    ({"s_addr": 0x9000_0000}, errors.CorruptDumpError, "addresses 0x90000000 to 0x"),
    ({"e_addr": (1 << 64) - 1}, errors.CorruptDumpError, "to 0xffffffffffffffff"),
    ({"e_addr": 0x10010}, errors.CorruptDumpError, "snappy chunk"),
]


@pytest.mark.parametrize(("fields", "error", "words"), WRONG)
def test_a_wrong_header_is_refused_or_passed_over(
    fields: dict[str, int], error: type[errors.FormatError], words: str
) -> None:
    pieces = [(0x10000, page(16)), (0x10000, page(16)), (0x40000, page(64))]
    with pytest.raises(error) as caught:
        FORMAT.open([BytesSource(avml.build(pieces, headers={0: fields}))], OpenOptions())
    assert words in str(caught.value)
    with read(avml.build(pieces, headers={1: fields})) as dump:
        assert words in dump.damage[0]
        assert dump.damage[0].startswith("block 1 at ")
        assert len(dump.damage) == 1
        assert runs(dump.pages.ram) == [(16, 1), (64, 1)]
        assert dump.read(64 * PAGE, PAGE) == page(64)


def block(frames: bytes, size: int = PAGE) -> bytes:
    return lime.record_header(avml.AVML, 2, 0, size) + frames + struct.pack("<Q", len(frames))


def chunk(kind: int, body: bytes) -> bytes:
    return struct.pack("<I", len(body) << 8 | kind) + body


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        (chunk(1, b"crc." + page(0)), "begins with 01 04 10 00: no snappy stream"),
        (codecs.snappy_frames(b"")[:10] + chunk(2, b"what"), "type 0x02"),
        (codecs.snappy_frames(b"")[:10] + chunk(0x7F, b"what"), "type 0x7f"),
        (codecs.snappy_frames(b"")[:10] + chunk(1, b"crc."), "unpack to 0"),
        (codecs.snappy_frames(b"")[:10] + chunk(0, b"crc.\xff\xff\xff"), "unpack to -1"),
        (codecs.snappy_frames(b"")[:10] + chunk(0, b"crc.\x81\x80\x04"), "unpack to 65537"),
        (codecs.snappy_frames(page(0) + page(1)), "unpack to 8192: expected 1 to 4096"),
        (codecs.snappy_frames(b"")[:10] + b"\x00\xff\xff\xff" + bytes(50), "truncated"),
        (chunk(0xFE, b"padding") + codecs.snappy_frames(page(0)), "begins with fe 07 00 00"),
    ],
)
def test_wrong_chunks(frames: bytes, words: str) -> None:
    with pytest.raises(errors.CorruptDumpError) as caught:
        FORMAT.open([BytesSource(block(frames))], OpenOptions())
    assert words in str(caught.value)


def test_skippable_chunks_are_passed_over() -> None:
    """Another stream identifier too: streams one behind the other are one."""
    first, second = codecs.snappy_frames(page(0)), codecs.snappy_frames(page(1))
    with read(block(first + chunk(0x80, b"skip") + chunk(0xFE, b"pad") + second + chunk(0xFD, b""), 2 * PAGE)) as dump:
        assert_pages(dump, many(0, 2))
        assert not any("ends with a length" in remark for remark in dump.remarks)


# Writing.


@pytest.fixture
def vmcore(tmp_path: Path, guest: Guest) -> Path:
    path = tmp_path / "vmcore"
    path.write_bytes(elf_cores.core(guest.but(vmcoreinfo="")))
    return path


def blocks_of(data: bytes) -> list[tuple[int, int, bytes]]:
    """(first address, last address, memory) of each block, chunks and checksums looked at one by one."""
    found, at = [], 0
    while at < len(data):
        magic, version, first, last, reserved = struct.unpack_from("<IIQQQ", data, at)
        assert (magic, version, reserved) == (avml.AVML, 2, 0)
        start = at = at + 32
        assert data[at : at + 10] == b"\xff\x06\0\0sNaPpY"
        at += 10
        memory = b""
        while len(memory) < last - first + 1:
            (word,) = struct.unpack_from("<I", data, at)
            body = data[at + 4 : at + 4 + (word >> 8)]
            piece = body[4:] if word & 255 else unsnappy(body[4:])
            assert struct.unpack("<I", body[:4])[0] == codecs.crc32c_masked(piece)
            assert len(piece) <= CHUNK
            memory += piece
            at += 4 + len(body)
        assert struct.unpack_from("<Q", data, at) == (at - start,)
        at += 8
        found.append((first, last, memory))
    return found


def unsnappy(data: bytes) -> bytes:
    """A raw snappy block, by hand."""
    at = shift = size = 0
    while True:
        size |= (data[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if data[at - 1] < 128:
            break
    out = bytearray()
    while at < len(data):
        tag = data[at]
        at += 1
        if tag & 3 == 0:
            length = tag >> 2
            if length >= 60:
                extra = length - 59
                length = int.from_bytes(data[at : at + extra], "little")
                at += extra
            out += data[at : at + length + 1]
            at += length + 1
            continue
        if tag & 3 == 1:
            length, offset = (tag >> 2 & 7) + 4, (tag >> 5) << 8 | data[at]
            at += 1
        else:
            width = 2 if tag & 3 == 2 else 4
            length, offset = (tag >> 2) + 1, int.from_bytes(data[at : at + width], "little")
            at += width
        for _ in range(length):
            out.append(out[-offset])
    assert len(out) == size
    return bytes(out)


def test_blocks_as_they_should_be(vmcore: Path, tmp_path: Path, guest: Guest) -> None:
    with dumpxlate.open(vmcore) as dump:
        report = dumpxlate.convert(dump, tmp_path / "out", "avml", allow_loss=True)
    found = blocks_of((tmp_path / "out").read_bytes())
    assert [(first, memory) for first, _, memory in found] == lime.ranges(guest)
    assert all(last == first + len(memory) - 1 for first, last, memory in found)
    assert [loss.what for loss in report.losses] == ["registers of 2 vcpus", "ELF notes"]
    assert (tmp_path / "out").stat().st_size == report.bytes_written


def test_blocks_of_16_mib_with_the_zero_ones(tmp_path: Path) -> None:
    """A range over four blocks, of which the second is zero, which avml would leave out; and one of a single page."""
    per = BLOCK // PAGE
    guest = far_guest([*range(5, 5 + per), 2 * per + 5, 4 * per + 4, 5 * per + 99])
    pages = {pfn: bytes(PAGE) for pfn in range(5, 4 * per + 5)} | guest.pages
    (tmp_path / "in").write_bytes(lime.build(pages))
    with dumpxlate.open(tmp_path / "in") as dump:
        dumpxlate.convert(dump, tmp_path / "out", "avml")
    data = (tmp_path / "out").read_bytes()
    with dumpxlate.open(tmp_path / "out") as dump:
        assert runs(dump.pages.ram) == [(5, 4 * per), (5 * per + 99, 1)]
        assert_pages(dump, pages)
    assert data.count(b"AVML\2\0\0\0") == 5


def test_left_out_pages_are_a_loss(tmp_path: Path, guest: Guest) -> None:
    (tmp_path / "vmcore").write_bytes(elf_cores.core(guest.but(vmcoreinfo=""), "makedumpfile"))
    with dumpxlate.open(tmp_path / "vmcore") as dump:
        with pytest.raises(errors.LossyConversionError, match="pages are RAM"):
            dumpxlate.convert(dump, tmp_path / "out", "avml")
        dumpxlate.convert(dump, tmp_path / "out", "avml", allow_loss=True)
    with dumpxlate.open(tmp_path / "out") as dump:
        assert_pages(dump, guest.pages)


def test_to_a_pipe_and_a_window(vmcore: Path, tmp_path: Path, guest: Guest) -> None:
    options = WriteOptions(begin=2 * PAGE, length=9 * PAGE)
    with dumpxlate.open(vmcore) as dump, (tmp_path / "out").open("wb") as file:
        dumpxlate.convert(dump, PipeSink(file.fileno()), "avml", options, allow_loss=True)
    inside = {pfn: data for pfn, data in guest.pages.items() if 2 <= pfn < 11}
    assert [(first, memory) for first, _, memory in blocks_of((tmp_path / "out").read_bytes())] == lime.ranges(inside)


@pytest.mark.peer
def test_volatility_reads_ours(vmcore: Path, tmp_path: Path, guest: Guest) -> None:
    peers.require("volatility3")
    with dumpxlate.open(vmcore) as dump:
        dumpxlate.convert(dump, tmp_path / "out", "avml", allow_loss=True)
    try:
        seen = peers.volatility(tmp_path / "out", guest.stored)
    except peers.PeerError as error:
        if "snappy" in str(error).lower():
            pytest.skip("Volatility has no snappy library here")
        raise
    assert seen.layers == ("FileLayer", "AVMLLayer")
    assert dict(seen.pages) == {pfn: zlib.crc32(data) for pfn, data in guest.pages.items()}
