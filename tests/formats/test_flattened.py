"""Flattened files: unwrapped as makedumpfile -R does, whatever the order of the records, and written for pipes."""

from __future__ import annotations

import os
import random
import struct
import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dumpxlate
from dumpxlate import errors
from dumpxlate.codecs.batch import decode, read_pages
from dumpxlate.formats.flattened import FORMAT
from dumpxlate.formats.flattened.writer import FlattenedSink
from dumpxlate.io.sink import FileSink, PipeSink
from dumpxlate.io.source import BytesSource, open_source
from dumpxlate.io.spliced import SplicedSource
from dumpxlate.pages import PageState
from dumpxlate.verify.check import check
from tests.builders import elf_cores, flattened
from tests.builders.flattened import END, record
from tests.builders.guest import small_guest
from tests.peers import peers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from dumpxlate.io.source import Source

HEADER = 4096
PAGE = 4096


def rearranged(stream: bytes) -> bytes:
    """What the records make when they are written one after the other."""
    out = bytearray()
    at = HEADER
    while True:
        offset, size = struct.unpack_from(">qq", stream, at)
        if (offset, size) == (-1, -1):
            return bytes(out)
        out += bytes(max(offset + size - len(out), 0))
        out[offset : offset + size] = stream[at + 16 : at + 16 + size]
        at += 16 + size


def unwrap(stream: bytes) -> SplicedSource:
    inner = FORMAT.unwrap(BytesSource(stream, "file"))
    assert isinstance(inner, SplicedSource)
    return inner


def wrapped(records: Iterable[tuple[int, bytes]], **options: object) -> bytes:
    return flattened.wrap(records=list(records), **options)  # type: ignore[arg-type]


def noise(size: int, seed: int = 1) -> bytes:
    return np.random.default_rng(seed).bytes(size)


# Real files.

KDUMPS = ["tiny/x64-long/kdump-zlib", "tiny/s390x/kdump-zlib", "tiny/aarch64/kdump-zlib", "tiny/arm/kdump-zlib"]
KDUMPS += [f"qemu-core/{machine}/{codec}.dump" for machine in ("pc", "q35") for codec in ("zlib", "lzo", "snappy")]


@pytest.mark.parametrize("name", KDUMPS)
def test_real_files_unwrap_as_their_records_say(
    shared: Path, unpacked: Callable[[Path], Path], tmp_path: Path, name: str
) -> None:
    path = unpacked(shared / "fixtures" / f"{name}.xz")
    expected = rearranged(path.read_bytes())
    with open_source(path) as source:
        assert FORMAT.detect(source)
        inner = unwrap(path.read_bytes())
        assert inner.view() == FORMAT.unwrap(source).view() == expected
        assert inner.complaint is None


@pytest.mark.peer
@pytest.mark.parametrize("name", KDUMPS)
def test_makedumpfile_rearranges_to_the_same(
    shared: Path, unpacked: Callable[[Path], Path], tmp_path: Path, name: str
) -> None:
    peers.require("makedumpfile")
    path = unpacked(shared / "fixtures" / f"{name}.xz")
    with open_source(path) as source:
        assert FORMAT.unwrap(source).view() == peers.rearrange(path, tmp_path / "out").read_bytes()


@pytest.mark.peer
@pytest.mark.parametrize("options", [("-c",), ("-E",), ()])
def test_files_of_makedumpfile(tmp_path: Path, options: tuple[str, ...]) -> None:
    """Its records end anywhere, also within a page's data; what is inside is ELF with -E."""
    peers.require("makedumpfile")
    guest = small_guest(excluded=(), high=False)
    path = tmp_path / "vmcore"
    path.write_bytes(elf_cores.core(guest))
    flat = tmp_path / "flat"
    flat.write_bytes(peers.flatten(path, *options))
    with dumpxlate.open(flat) as dump:
        assert dump.format == ("elf" if "-E" in options else "kdump")
        assert dump.variant.endswith("in flattened")
        found = dump.read_pages(guest.stored)
    assert [row.tobytes() for row in found] == [guest.pages[pfn] for pfn in guest.stored]


# What the records make.


@pytest.mark.parametrize("order", ["file", "reverse", "shuffle"])
@pytest.mark.parametrize("sizes", [64, 4096, [1, 5000, 16, 300]])
def test_any_order_and_size(order: str, sizes: int | list[int]) -> None:
    inner = noise(20_000) + bytes(9000) + noise(3000, 2)
    assert unwrap(flattened.wrap(inner, sizes=sizes, order=order)).view() == inner


def test_gaps_are_zero_and_the_last_record_makes_the_size() -> None:
    inner = unwrap(wrapped([(100, b"abc"), (9, b"z"), (200, b"end")]))
    assert inner.size == 203
    assert inner.view() == bytes(9) + b"z" + bytes(90) + b"abc" + bytes(97) + b"end"


def test_the_last_of_several_records_wins() -> None:
    """mdf@c763012: two records at one offset, the first of them zeros."""
    stream = wrapped([(0, bytes(64)), (64, b"tail"), (0, b"header".ljust(32, b"!")), (30, b"MIDDLE"), (34, b"--")])
    assert unwrap(stream).view() == rearranged(stream)
    assert unwrap(stream).view(28, 10) == b"!!MIDD--\0\0"


def test_what_follows_the_end_marker_is_ignored() -> None:
    stream = wrapped([(0, b"inner")], tail=record(0, b"later") + END)
    assert unwrap(stream).view() == b"inner"
    assert unwrap(stream).complaint is None


def test_truncated_behind_long_records(tmp_path: Path) -> None:
    """Where headers alone are read: whatever is left of the next one, and of a file that becomes shorter meanwhile."""
    size = 70_000
    stream = wrapped((number * size, bytes([number + 1]) * size) for number in range(12))
    for number in range(6, 12):
        header = HEADER + number * (size + 16)
        for left in (0, 1, 15, 16, 17, 2048):
            inner = unwrap(stream[: header + left])
            assert "truncated" in (inner.complaint or "")
            assert sum(inner.pieces.count.tolist()) == number * size + max(left - 16, 0)
    assert unwrap(stream).complaint is None
    path = tmp_path / "shrinks"
    path.write_bytes(stream)
    with open_source(path) as source:
        os.truncate(path, HEADER + 8 * (size + 16) + 5)
        with pytest.raises(errors.TruncatedDumpError):
            FORMAT.unwrap(source)


def test_no_byte_is_copied_inside_a_record() -> None:
    stream = wrapped([(8, noise(5000)), (5008, noise(100))])
    source = BytesSource(stream)
    body, at = FORMAT.unwrap(source).gather(np.array([1000, 5010]), np.array([4000, 90], np.int32))
    assert body.obj is source.view().obj
    assert at.tolist() == [HEADER + 16 + 992, HEADER + 32 + 5002]


@pytest.mark.parametrize("kind", ["bytes", "file"])
def test_ranges_over_seams_and_gaps(tmp_path: Path, kind: str) -> None:
    stream = wrapped([(0, noise(1000)), (1000, noise(500, 2)), (2000, noise(1000, 3))])
    expected = rearranged(stream)
    (tmp_path / "flat").write_bytes(stream)
    outer: Source = BytesSource(stream) if kind == "bytes" else open_source(tmp_path / "flat")
    with FORMAT.unwrap(outer) as inner:  # type: ignore[attr-defined]
        for low, size in [(990, 20), (0, 1500), (1400, 700), (1600, 100), (2999, 1), (0, 3000), (500, 0)]:
            body, at = inner.gather(np.array([low, 0, -1, 2990]), np.array([size, 10, 5, 20], np.int32))
            assert body[at[0] : at[0] + size] == inner.view(low, size) == expected[low : low + size]
            assert body[at[1] : at[1] + 10] == expected[:10]
            assert at[2] == -1
            assert at[3] + 20 > len(body)
        with pytest.raises(errors.TruncatedDumpError):
            inner.view(2999, 2)


RECORDS = st.lists(st.tuples(st.integers(0, 300), st.binary(min_size=1, max_size=60)), min_size=1, max_size=12)
RANGES = st.lists(st.tuples(st.integers(-3, 400), st.integers(0, 80)), max_size=8)


@settings(deadline=None, max_examples=300)
@given(records=RECORDS, ranges=RANGES)
def test_any_records_make_what_a_bytearray_makes(
    records: list[tuple[int, bytes]], ranges: list[tuple[int, int]]
) -> None:
    model = bytearray()
    for offset, data in records:
        model += bytes(max(offset + len(data) - len(model), 0))
        model[offset : offset + len(data)] = data
    inner = unwrap(wrapped(records))
    assert inner.view() == model
    offset, size = np.array(ranges, np.int64).reshape(-1, 2).T
    body, at = inner.gather(offset, size.astype(np.int32))
    for low, length, place in zip(offset.tolist(), size.tolist(), at.tolist(), strict=True):
        if low >= 0 and low + length <= len(model):
            assert body[place : place + length] == model[low : low + length]
        elif length:
            assert place < 0 or place + length > len(body)
    start, count = inner.data_runs()
    held = {at for low, many in zip(start.tolist(), count.tolist(), strict=True) for at in range(low, low + many)}
    assert not any(model[at] for at in range(len(model)) if at not in held)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from([1, 1500, 2015, 2016, 2032, 16_383, 65_536, 262_127, 262_128, 300_000]), max_size=24))
def test_records_of_any_length_follow_each_other(sizes: list[int]) -> None:
    """Headers are read many at once where records are short, and few where they are long: none is missed."""
    sizes = [*sizes, 40, 65_000, *range(1, 60)]
    end = np.cumsum(sizes).tolist()
    records = [
        (high - size, bytes([number % 255 + 1]) * size)
        for number, (size, high) in enumerate(zip(sizes, end, strict=True))
    ]
    inner = unwrap(wrapped(records))
    assert inner.complaint is None
    assert inner.view() == b"".join(data for _, data in records)


def test_many_records_are_indexed_in_arrays() -> None:
    """Two streams of records that alternate, as QEMU flushes descriptors and pages."""
    count = 20_000
    rows = np.zeros(count, [("offset", ">i8"), ("size", ">i8"), ("data", "V48")])
    place = np.arange(count) // 2 * 48 + np.arange(count) % 2 * (count // 2 * 48)
    rows["offset"], rows["size"] = place, 48
    rows["data"] = np.frombuffer(noise(48 * count), "V48")
    inner = unwrap(flattened.wrap(end=False) + rows.tobytes() + END)
    assert inner.view() == rows["data"][np.argsort(place)].tobytes()


# What is refused, or damaged.


@pytest.mark.parametrize("fields", [{"type": 2}, {"version": 2}, {"type": 0}])
def test_another_type_or_version(fields: dict[str, int]) -> None:
    with pytest.raises(errors.UnsupportedFeatureError, match="flattened header: type"):
        unwrap(flattened.wrap(b"inner", header=fields))


@pytest.mark.parametrize("signature", [b"makedumpfile 1.7", b"makedumpfil"])
def test_all_sixteen_bytes_of_the_signature_count(signature: bytes) -> None:
    """drgn@55a9b443 compared without the NULs."""
    stream = flattened.wrap(b"inner", header={"signature": signature})
    assert FORMAT.detect(BytesSource(stream)) is None
    assert FORMAT.detect(BytesSource(stream[:10])) is None


BAD = [
    (struct.pack(">qq", -5, 7), "offset -0x5, size 0x7"),
    (struct.pack(">qq", -1, 7), "offset -0x1, size 0x7"),
    (struct.pack(">qq", 0, 0), "offset 0x0, size 0x0"),
    (struct.pack(">qq", 0, -1), "offset 0x0, size -0x1"),
    (struct.pack(">qq", 0, -(1 << 63)), "size -0x8"),
    (record((1 << 46) + 1, b"far"), "offset 0x400000000001, size 0x3"),
    (record((1 << 63) - 2, b"over"), "offset 0x7ffffffffffffffe"),
    (struct.pack(">qq", 16, (1 << 63) - 1), "size 0x7fffffffffffffff"),
]


@pytest.mark.parametrize(("bad", "words"), BAD)
def test_a_bad_record_is_refused_or_passed_over(bad: bytes, words: str) -> None:
    with pytest.raises(errors.CorruptDumpError, match="flattened record") as caught:
        unwrap(flattened.wrap(records=[])[:HEADER] + bad + END)
    assert words in str(caught.value)
    for rest in ([(12, b"last" * 99)], [(12, b"lost" * 200), (812, b"more" * 90), (1172, bytes(99))]):
        inner = unwrap(flattened.wrap(raw={1: bad}, records=[(4, b"good"), *rest]))
        assert inner.view() == flat([(4, b"good"), *rest])
        assert inner.complaint
        assert words in inner.complaint
        assert f"{HEADER + 20:#x}" in inner.complaint
        held = {at for offset, body in [(4, b"good"), *rest] for at in range(offset, offset + len(body))}
        start, count = inner.lacks.runs()
        lacks = {at for low, size in zip(start, count, strict=True) for at in range(low, low + size)}
        assert lacks == set(range(inner.size)) - held


def flat(records: list[tuple[int, bytes]]) -> bytes:
    out = bytearray(max(offset + len(body) for offset, body in records))
    for offset, body in records:
        out[offset : offset + len(body)] = body
    return bytes(out)


@pytest.mark.parametrize("seed", range(20))
def test_records_on_both_sides_of_a_defect_count(seed: int) -> None:
    rng = random.Random(seed)
    records, ends = [], [0, 1 << 20]
    for _ in range(80):  # two buffers by turns, as makedumpfile has them for descriptors and pages
        buffer, size = rng.randrange(2), rng.choice([1000, 4096, 9000])
        records.append((ends[buffer], rng.randbytes(size)))
        ends[buffer] += size
    stream = bytearray(wrapped(records))
    places, at = [], HEADER
    for offset, body in records:
        places.append((at, at + 16 + len(body), offset, body))
        at += 16 + len(body)
    start = rng.randrange(HEADER + 9100, at - 40_000)
    length = rng.choice([1, 8, 500, 20_000])
    stream[start : start + length] = rng.choice([bytes(length), rng.randbytes(length)])
    inner = unwrap(bytes(stream))
    hit = next(index for index, place in enumerate(places) if place[1] > start)
    for index, (begin, end, offset, body) in enumerate(places):
        if end <= start or begin >= start + length:
            assert inner.view(offset, len(body)) == body, (index, hit)
            assert not inner.lacks.contains(np.arange(offset, offset + len(body))).any()
    gone = [place for place in places if place[0] < start + length and place[0] + 16 > start]
    assert not gone or inner.complaint or length == 1


def test_pages_that_a_defect_took_are_missing_and_not_zero(tmp_path: Path) -> None:
    guest = small_guest(excluded=(), high=False)
    whole = flattened.wrap(elf_cores.core(guest), sizes=(4096,), holes=False)
    at = whole.index(guest.pages[guest.stored[99]][:32]) // 4112 * 4112  # somewhere near that page's record
    stream = whole[:at] + bytes(12_000) + whole[at + 12_000 :]
    (tmp_path / "in").write_bytes(stream)
    with dumpxlate.open(tmp_path / "in") as dump:
        found = check(dump)
        out = np.zeros((len(guest.stored), 4096), np.uint8)
        states = read_pages(dump.pages, np.array(guest.stored), out)
        assert 2 <= found.missing.pages <= 5
        assert int((states == PageState.EXCLUDED).sum()) == found.missing.pages
        touched = [
            pfn
            for pfn, state, row in zip(guest.stored, states, out, strict=True)
            if state != PageState.EXCLUDED and row.tobytes() != guest.pages[pfn]
        ]
        assert len(touched) <= 2  # those in which the defect begins and ends
        bad = [pfn for pfn, state in zip(guest.stored, states, strict=True) if state == PageState.EXCLUDED]
        with pytest.raises(errors.PageUnavailableError):
            dump.read(bad[0] * 4096, 8)


def test_flattened_in_flattened_is_refused() -> None:
    with pytest.raises(errors.CorruptDumpError, match="another flattened file"):
        unwrap(flattened.wrap(flattened.wrap(b"inner")))


def test_truncated_everywhere() -> None:
    """Whatever is cut off: what is complete is kept, and the loss is told."""
    stream = wrapped([(0, b"first" * 3), (100, b"second"), (50, b"third")])
    whole = rearranged(stream)
    for length in range(16, len(stream)):
        if length < HEADER + 17:
            with pytest.raises(errors.CorruptDumpError):
                unwrap(stream[:length])
            continue
        inner = unwrap(stream[:length])
        assert inner.complaint
        assert "truncated" in inner.complaint
        kept = sum(inner.pieces.count.tolist())
        assert kept == sum(min(max(length - at, 0), size) for at, size in ((4112, 15), (4143, 6), (4165, 5)))
        for low, count in zip(inner.pieces.start.tolist(), inner.pieces.count.tolist(), strict=True):
            assert inner.view(low, count) == whole[low : low + count]
    assert unwrap(stream).complaint is None


def test_truncation_stops_a_conversion_unless_salvaged(tmp_path: Path) -> None:
    guest = small_guest(excluded=(), high=False)
    path = tmp_path / "flat"
    path.write_bytes(flattened.wrap(elf_cores.core(guest), sizes=5000, truncate=-40_000, holes=False))
    with dumpxlate.open(path) as dump:
        assert "truncated: flattened record" in dump.damage[0]
        with pytest.raises(errors.CorruptDumpError, match="--salvage"):
            dumpxlate.convert(dump, tmp_path / "out", "elf")
        report = dumpxlate.convert(dump, tmp_path / "out", "elf", salvage=True)
        assert not report.complete
        found = dump.read_pages(guest.stored[:8])
    assert [row.tobytes() for row in found] == [guest.pages[pfn] for pfn in guest.stored[:8]]


@pytest.mark.parametrize("share", range(5, 100, 5))
def test_no_page_of_a_truncated_dump_is_wrong(tmp_path: Path, share: int) -> None:
    """QEMU's order: header, bitmaps, then descriptors and pages in turn."""
    guest = small_guest(excluded=(), high=False)
    (tmp_path / "vmcore").write_bytes(elf_cores.core(guest))
    with dumpxlate.open(tmp_path / "vmcore") as dump:
        dumpxlate.convert(dump, tmp_path / "kdump", "kdump", allow_loss=True)
    whole = flattened.wrap((tmp_path / "kdump").read_bytes(), sizes=[4096, 700])
    (tmp_path / "cut").write_bytes(whole[: HEADER + (len(whole) - HEADER) * share // 100])
    try:
        dump = dumpxlate.open(tmp_path / "cut")
    except errors.CorruptDumpError as error:
        assert share < 50
        assert "truncated: flattened record" in str(error) or "end marker" in str(error)
        return
    with dump:
        assert dump.damage
        table = decode(dump.pages.fetch(dump.pages.locate(np.array(guest.stored))), PAGE).table
        held = [pfn for pfn, state in zip(guest.stored, table.state.tolist(), strict=True) if state in (2, 3)]
        assert len(held) > (share - 50) * len(guest.stored) // 100
        assert [row.tobytes() for row in dump.read_pages(held)] == [guest.pages[pfn] for pfn in held]


# Writing.


def stream_of(tmp_path: Path, write: Callable[[FlattenedSink], object]) -> bytes:
    path = tmp_path / "out"
    with FileSink(path, overwrite=True) as outer:
        sink = FlattenedSink(outer)
        write(sink)
        sink.commit()
    return path.read_bytes()


def test_writes_become_records(tmp_path: Path) -> None:
    def write(sink: FlattenedSink) -> None:
        assert sink.append([b"head", memoryview(b"er")]) == 0
        sink.write_at(100, b"ahead")
        sink.skip(10)
        assert sink.append([b"body"]) == 16
        sink.write_at(0, b"HEAD")
        assert sink.position == 20

    stream = stream_of(tmp_path, write)
    assert stream[:32] == b"makedumpfile\0\0\0\0" + struct.pack(">qq", 1, 1)
    assert not any(stream[32:HEADER])
    assert stream[-16:] == END
    assert rearranged(stream) == b"HEADer" + bytes(10) + b"body" + bytes(80) + b"ahead"


def test_small_writes_are_joined_and_large_ones_not_copied(tmp_path: Path) -> None:
    def write(sink: FlattenedSink) -> None:
        for _ in range(1000):
            sink.append([bytes(range(24))])
        sink.append([noise(1 << 20)])
        sink.append([b"x"])

    stream = stream_of(tmp_path, write)
    assert rearranged(stream) == bytes(range(24)) * 1000 + noise(1 << 20) + b"x"
    assert len(stream) - HEADER - len(rearranged(stream)) == 16 * 4  # three records and the end


def test_a_file_may_end_with_a_hole(tmp_path: Path) -> None:
    def write(sink: FlattenedSink) -> None:
        sink.append([b"x"])
        sink.skip(9999)

    assert rearranged(stream_of(tmp_path, write)) == b"x" + bytes(9999)


WRITES = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.binary(max_size=50)),
        st.tuples(st.just("skip"), st.integers(0, 50)),
        st.tuples(st.integers(0, 400), st.binary(max_size=50)),
    ),
    max_size=15,
)


@settings(deadline=None, max_examples=200)
@given(writes=WRITES)
def test_any_writes_give_the_same_file(
    tmp_path_factory: pytest.TempPathFactory, writes: list[tuple[object, ...]]
) -> None:
    folder = tmp_path_factory.mktemp("writes")

    def write(sink: FlattenedSink | FileSink) -> None:
        for kind, what in writes:
            if kind == "append":
                sink.append([what])  # type: ignore[list-item]
            elif kind == "skip":
                sink.skip(what)  # type: ignore[arg-type]
            else:
                sink.write_at(kind, what)  # type: ignore[arg-type]

    with FileSink(folder / "plain") as plain:
        write(plain)
        plain.commit()
    assert rearranged(stream_of(folder, write)) == (folder / "plain").read_bytes()


@pytest.fixture
def vmcore(tmp_path: Path) -> Path:
    path = tmp_path / "vmcore"
    path.write_bytes(elf_cores.core(small_guest(excluded=(), high=False)))
    return path


@pytest.mark.parametrize("asked", ["flattened", "kdump", "elf"])
def test_converted_files_hold_the_plain_ones(vmcore: Path, tmp_path: Path, asked: str) -> None:
    inner = "kdump" if asked == "flattened" else asked
    with dumpxlate.open(vmcore) as dump:
        plain = dumpxlate.convert(dump, tmp_path / "plain", inner, allow_loss=True)
        report = dumpxlate.convert(dump, tmp_path / "flat", asked, flattened=asked != "flattened", allow_loss=True)
    assert (plain.container, report.format, report.container) == (None, inner, "flattened")
    assert rearranged((tmp_path / "flat").read_bytes()) == (tmp_path / "plain").read_bytes()
    assert report.bytes_written == (tmp_path / "flat").stat().st_size


def test_what_seeks_is_flattened_for_a_pipe(vmcore: Path, tmp_path: Path) -> None:
    """And what does not is written as it is."""
    guest = small_guest(excluded=(), high=False)
    for format in ("kdump", "elf"):
        reader, writer = os.pipe()
        out = tmp_path / f"out.{format}"
        copy = threading.Thread(target=drain, args=(reader, out))
        copy.start()
        with dumpxlate.open(vmcore) as dump:
            report = dumpxlate.convert(dump, PipeSink(writer), format, allow_loss=True)
        os.close(writer)
        copy.join()
        assert report.container == ("flattened" if format == "kdump" else None)
        assert report.bytes_written == out.stat().st_size
        with dumpxlate.open(out) as dump:
            assert dump.format == format
            found = dump.read_pages(guest.stored)
        assert [row.tobytes() for row in found] == [guest.pages[pfn] for pfn in guest.stored]


def drain(fd: int, path: Path) -> None:
    with os.fdopen(fd, "rb") as source, path.open("wb") as target:
        while piece := source.read(1 << 16):
            target.write(piece)


def test_command_line(cli: Callable[..., object], vmcore: Path, tmp_path: Path) -> None:
    done = cli("convert", vmcore, "-o", "flat", "-t", "kdump", "--flattened", "--allow-loss")
    assert done.returncode == 0, done.stderr  # type: ignore[attr-defined]
    assert "kdump in flattened" in done.stderr  # type: ignore[attr-defined]
    assert (tmp_path / "flat").read_bytes().startswith(b"makedumpfile\0\0\0\0")


@pytest.mark.peer
def test_makedumpfile_rearranges_ours(vmcore: Path, tmp_path: Path) -> None:
    peers.require("makedumpfile")
    with dumpxlate.open(vmcore) as dump:
        dumpxlate.convert(dump, tmp_path / "plain", "kdump", allow_loss=True)
        dumpxlate.convert(dump, tmp_path / "flat", "flattened", allow_loss=True)
    assert peers.rearrange(tmp_path / "flat", tmp_path / "out").read_bytes() == (tmp_path / "plain").read_bytes()


def test_terabytes_that_no_record_covers_are_counted_and_not_looked_at(tmp_path: Path) -> None:
    """A hostile file may speak of any place: what lacks is counted in runs."""
    guest = small_guest(excluded=(), high=False)
    core = bytearray(elf_cores.core(guest))
    at = struct.unpack_from("<Q", core, 32)[0]
    loads = [row for row in range(at, at + 56 * 3, 56) if struct.unpack_from("<I", core, row)[0] == 1]
    struct.pack_into("<QQ", core, loads[-1] + 32, 1 << 44, 1 << 44)  # p_filesz, p_memsz
    stream = flattened.wrap(bytes(core), sizes=(4096,), holes=False)[:-16] + record((1 << 44) + (1 << 30), b"far")
    at = HEADER + 40 * 4112
    (tmp_path / "in").write_bytes(stream[:at] + b"\xee" * 16 + stream[at + 16 :])
    with dumpxlate.open(tmp_path / "in") as dump:
        found = check(dump)
        assert found.missing.pages > 1 << 31
        assert found.pages["stored"] + found.pages["zero"] < 1000
