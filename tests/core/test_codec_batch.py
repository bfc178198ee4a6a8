"""Batches decoded, gathered, searched for zeros and encoded, against plain Python over one page at a time."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dumpxlate.codecs import codec_for, from_name
from dumpxlate.codecs.batch import decode, encode, gather, mark_zero, read_pages
from dumpxlate.pages import BATCH_BYTES, CodecId, PageBatch, PageState, PageTable
from dumpxlate.pageset import PageRuns
from tests.builders import codecs as built
from tests.builders import guest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dumpxlate.arrays import Int64s, UInt8s

PS = 64
STORED, ZERO, BAD, ABSENT = PageState.STORED, PageState.ZERO, PageState.BAD, PageState.ABSENT
PAGES = [bytes([number]) * 8 + bytes(PS - 8) for number in range(1, 20)]
ENCODERS: dict[CodecId, Callable[[bytes], bytes]] = {
    CodecId.RAW: bytes,
    CodecId.ZLIB: zlib.compress,
    CodecId.LZO: built.lzo,
    CodecId.SNAPPY: built.snappy,
    CodecId.ZSTD: built.zstd,
}

Row = tuple[int, int, int, int]
"""State, codec, offset and size of a page."""


def make(rows: Sequence[Row], body: bytes) -> PageBatch:
    columns = [np.array([row[number] for row in rows], np.int64) for number in range(4)]
    table = PageTable(
        np.arange(len(rows), dtype=np.int64),
        columns[0].astype(np.uint8),
        columns[1].astype(np.uint8),
        columns[2],
        columns[3].astype(np.int32),
    )
    return PageBatch(table, memoryview(body))


def packed(pages: Sequence[tuple[CodecId, bytes]], lead: bytes = b"") -> PageBatch:
    """A batch of encoded pages in a row."""
    rows, body = [], lead
    for id, page in pages:
        data = ENCODERS[id](page)
        rows.append((STORED, id, len(body), len(data)))
        body += data
    return make(rows, body)


def contents(batch: PageBatch) -> list[tuple[int, bytes]]:
    """State and bytes of each row, by plain slices."""
    table = batch.table
    rows = zip(table.state.tolist(), table.offset.tolist(), table.size.tolist(), strict=True)
    return [(state, bytes(batch.body[at : at + size]) if state == STORED else b"") for state, at, size in rows]


def assert_sound(batch: PageBatch) -> None:
    """Widths as everywhere in the program, and no place for a page that has no bytes."""
    table = batch.table
    assert [column.dtype for column in (table.pfn, table.state, table.codec, table.offset, table.size)] == [
        np.int64, np.uint8, np.uint8, np.int64, np.int32,
    ]  # fmt: skip
    elsewhere = table.state != STORED
    assert (table.offset[elsewhere] == -1).all()
    assert (table.size[elsewhere] == 0).all()
    stored = table.stored()
    assert (stored.offset >= 0).all()
    assert (stored.offset + stored.size <= len(batch.body)).all()


class TestDecode:
    def test_every_codec_in_one_batch(self) -> None:
        pages = [(id, PAGES[number]) for number, id in enumerate([*ENCODERS, *ENCODERS, *reversed(ENCODERS)])]
        batch = packed(pages, lead=b"header")
        found = decode(batch, PS)
        assert contents(found) == [(STORED, page) for _, page in pages]
        assert not found.table.codec.any()
        assert found.table.offset.tolist() == list(range(0, len(pages) * PS, PS))
        assert len(found.body) == len(pages) * PS
        assert_sound(found)

    def test_raw_pages_are_not_copied(self) -> None:
        batch = make([(STORED, 0, 3, PS), (ZERO, 0, -1, 0), (STORED, 0, 3 + 5 * PS, PS)], bytes(7 * PS))
        assert decode(batch, PS) is batch

    def test_pages_without_bytes_keep_their_state(self) -> None:
        rows = [(ABSENT, 0, -1, 0), (PageState.EXCLUDED, 0, -1, 0), (ZERO, 0, -1, 0), (BAD, 0, -1, 0)]
        assert decode(make(rows, b""), PS).table.state.tolist() == [0, 1, 2, 4]
        data = zlib.compress(PAGES[0])
        mixed = decode(make([*rows, (STORED, 1, 0, len(data)), rows[0]], data), PS)
        assert contents(mixed) == [*((row[0], b"") for row in rows), (STORED, PAGES[0]), (ABSENT, b"")]
        assert_sound(mixed)

    def test_the_input_is_not_changed(self) -> None:
        batch = packed([(CodecId.ZLIB, PAGES[0]), (CodecId.RAW, PAGES[1])])
        batch.table.offset[1] = 1 << 40
        before = [column.copy() for column in (batch.table.state, batch.table.offset, batch.table.size)]
        decode(batch, PS)
        for column, old in zip((batch.table.state, batch.table.offset, batch.table.size), before, strict=True):
            assert (column == old).all()

    @pytest.mark.parametrize("id", [one for one in ENCODERS if one])
    def test_a_page_that_does_not_decode(self, id: CodecId) -> None:
        data = [ENCODERS[id](page) for page in (PAGES[0], bytes(2 * PS), PAGES[1], PAGES[2])]
        body = b"".join(data)
        ends = np.cumsum([len(one) for one in data]).tolist()
        rows = [(STORED, id, end - len(one), len(one)) for one, end in zip(data, ends, strict=True)]
        rows[2] = (STORED, id, rows[2][2], rows[2][3] - 1)
        found = decode(make(rows, body), PS)
        assert contents(found) == [(STORED, PAGES[0]), (BAD, b""), (BAD, b""), (STORED, PAGES[2])]
        assert bytes(found.body[PS : 3 * PS]) == bytes(2 * PS), "the place of a bad page is zero"
        assert_sound(found)

    def test_rle(self) -> None:
        data = b"\0\x3f\x07"
        assert contents(decode(make([(STORED, CodecId.RLE, 0, 3)], data), PS)) == [(STORED, b"\x07" * PS)]

    def test_shared_bytes(self) -> None:
        data = zlib.compress(PAGES[3])
        found = decode(make([(STORED, 1, 0, len(data))] * 3, data), PS)
        assert contents(found) == [(STORED, PAGES[3])] * 3

    @pytest.mark.parametrize("page_size", [1024, 4096, 16384, 65536])
    def test_page_sizes(self, page_size: int) -> None:
        pages = [guest.page(number, page_size) for number in range(3)]
        body = b"".join(data := [zlib.compress(page) for page in pages])
        at = np.cumsum([0, *map(len, data)]).tolist()
        found = decode(make([(STORED, 1, at[n], len(one)) for n, one in enumerate(data)], body), page_size)
        assert contents(found) == [(STORED, page) for page in pages]


HOSTILE = [
    (STORED, 0, -1, PS), (STORED, 0, -PS, PS), (STORED, 0, 1 << 62, PS), (STORED, 0, (1 << 63) - 1, PS),
    (STORED, 0, -(1 << 63), PS), (STORED, 0, 4 * PS - 1, PS), (STORED, 0, 4 * PS, PS), (STORED, 0, 0, 0),
    (STORED, 0, 0, -1), (STORED, 0, PS, -PS), (STORED, 0, 0, PS - 1), (STORED, 0, 0, PS + 1),
    (STORED, 0, 0, (1 << 31) - 1), (STORED, 1, 4 * PS, 5), (STORED, 1, 0, 4 * PS + 1), (STORED, 6, 0, PS),
    (STORED, 255, 0, PS), (STORED, 1, 5, 0),
]  # fmt: skip


class TestHostileTables:
    """Offsets and sizes as a file may claim them."""

    @pytest.mark.parametrize("row", HOSTILE, ids=str)
    @pytest.mark.parametrize("operation", [decode, gather, mark_zero])
    def test_a_row_outside_the_body_is_bad(self, operation: Callable[[PageBatch, int], PageBatch], row: Row) -> None:
        body = b"".join(PAGES[:4])
        found = operation(make([(STORED, 0, PS, PS), row, (STORED, 0, 3 * PS, PS)], body), PS)
        assert contents(found) == [(STORED, PAGES[1]), (BAD, b""), (STORED, PAGES[3])]
        assert_sound(found)

    @pytest.mark.parametrize("row", HOSTILE, ids=str)
    def test_encode(self, row: Row) -> None:
        found = encode(make([row, (STORED, 0, PS, PS)], b"".join(PAGES[:4])), from_name("zlib"), PS)
        assert contents(found)[0] == (BAD, b"")
        assert zlib.decompress(contents(found)[1][1]) == PAGES[1]

    def test_a_body_smaller_than_a_page(self) -> None:
        for body in (b"", b"x", bytes(PS - 1)):
            for operation in (decode, gather, mark_zero):
                assert contents(operation(make([(STORED, 0, 0, PS)], body), PS)) == [(BAD, b"")]

    @given(
        st.lists(
            st.tuples(
                st.sampled_from(list(PageState)),
                st.integers(0, 8),
                st.one_of(st.integers(-3, 300), st.integers(-(1 << 63), (1 << 63) - 1)),
                st.one_of(st.sampled_from([0, PS]), st.integers(-(1 << 31), (1 << 31) - 1)),
            ),
            max_size=12,
        )
    )
    def test_nothing_is_raised(self, rows: list[Row]) -> None:
        body = (packed([(id, PAGES[id]) for id in ENCODERS]).body.tobytes() + bytes(3 * PS))[:300]
        raw = decode(make(rows, body), PS)
        assert set(raw.table.codec[raw.table.state == STORED].tolist()) <= {0}
        for found in (gather(raw, PS), mark_zero(raw, PS), encode(raw, from_name("snappy"), PS)):
            assert len(found.table) == len(rows)
            stored = found.table.stored()
            assert ((stored.offset >= 0) & (stored.offset + stored.size <= len(found.body))).all()


class TestGather:
    def test_one_span_is_not_copied(self) -> None:
        body = b"head" + b"".join(PAGES[:4])
        batch = make([(ABSENT, 0, -1, 0), *((STORED, 0, 4 + at, PS) for at in range(0, 4 * PS, PS))], body)
        assert gather(batch, PS) is batch
        for rows in ([], [(ZERO, 0, -1, 0)], [(STORED, 0, 7, PS)]):
            assert (batch := make(rows, body)) and gather(batch, PS) is batch

    @given(
        st.lists(st.tuples(st.integers(0, 40 * PS), st.booleans()), min_size=1, max_size=30),
        st.booleans(),
        st.sampled_from([0, 1, 8]),
    )
    def test_pages_from_anywhere(self, places: list[tuple[int, bool]], aligned: bool, lead: int) -> None:
        body = np.random.default_rng(1).integers(0, 256, 41 * PS + lead, np.uint8).tobytes()
        rows = [
            (STORED, 0, (at // PS * PS if aligned else at) + lead, PS) if stored else (ABSENT, 0, -1, 0)
            for at, stored in places
        ]
        batch = make(rows, body)
        found = gather(batch, PS)
        assert contents(found) == contents(batch)
        offset = found.table.stored().offset
        assert (offset[1:] - offset[:-1] == PS).all(), "in row order, without gaps"
        assert_sound(found)

    def test_the_last_page_of_a_body(self) -> None:
        body = b"".join(PAGES)
        last = len(body) - PS
        assert contents(gather(make([(STORED, 0, last, PS), (STORED, 0, 0, PS)], body), PS)) == [
            (STORED, PAGES[-1]),
            (STORED, PAGES[0]),
        ]

    def test_encoded_pages_are_refused(self) -> None:
        with pytest.raises(ValueError, match="encoded"):
            gather(packed([(CodecId.ZLIB, PAGES[0])]), PS)


class TestMarkZero:
    @given(
        st.lists(st.sampled_from(["zero", "first", "last", "middle", "full", "absent"]), max_size=30),
        st.sampled_from([0, 1, 3, 8]),
        st.booleans(),
    )
    def test_against_python(self, kinds: list[str], lead: int, scattered: bool) -> None:
        made = {
            "zero": bytes(PS),
            "first": b"\x01" + bytes(PS - 1),
            "last": bytes(PS - 1) + b"\x80",
            "middle": bytes(17) + b"\x10" + bytes(PS - 18),
            "full": b"\xff" * PS,
        }
        body, rows = bytearray(lead), []
        for number, kind in enumerate(kinds):
            rows.append((ABSENT, 0, -1, 0) if kind == "absent" else (STORED, 0, len(body), PS))
            body += made.get(kind, b"") + b"\xee" * (scattered * number % 3)
        batch = make(rows, bytes(body))
        found = mark_zero(batch, PS)
        expected = {"zero": ZERO, "absent": ABSENT}
        assert found.table.state.tolist() == [expected.get(kind, STORED) for kind in kinds]
        assert [one for one in contents(found) if one[0] == STORED] == [
            (STORED, made[kind]) for kind in kinds if kind not in expected
        ]
        assert_sound(found)
        assert (found is batch) == ("zero" not in kinds)

    def test_encoded_zeros_stay(self) -> None:
        batch = packed([(CodecId.ZLIB, bytes(PS))])
        assert mark_zero(batch, PS) is batch

    def test_4_kib(self) -> None:
        pages = [bytes(4096), guest.page(1), bytes(4095) + b"\1", bytes(4096)] * 5
        batch = make([(STORED, 0, 4096 * number, 4096) for number in range(20)], b"".join(pages))
        assert mark_zero(batch, 4096).table.state.tolist() == [ZERO, STORED, STORED, ZERO] * 5


class TestEncode:
    @pytest.mark.parametrize("name", ["zlib", "zlib:9", "lzo", "snappy", "zstd", "rle"])
    def test_pages_that_shrink_and_pages_that_do_not(self, name: str) -> None:
        pages = [guest.page(1), guest.page(2, kind="noise"), bytes(4096), guest.page(3, kind="noise")]
        rows = [(STORED, 0, 4096 * number, 4096) for number in range(4)]
        batch = make([rows[3], (ABSENT, 0, -1, 0), *rows[:3]], b"".join(pages))
        codec = from_name(name)
        found = encode(batch, codec, 4096)
        table = found.table
        order = [pages[3], b"", *pages[:3]]
        is_raw = [True, True, False, True, False]
        assert [one == CodecId.RAW for one in table.codec.tolist()] == is_raw
        assert set(table.codec.tolist()) == {CodecId.RAW, codec.id}
        stored = table.stored()
        assert stored.offset.tolist() == [0, *np.cumsum(stored.size)[:-1].tolist()], "packed"
        assert len(found.body) == stored.size.sum()
        for (state, data), raw, page in zip(contents(found), is_raw, order, strict=True):
            assert state == (STORED if page else ABSENT)
            assert not raw or data == page
            assert raw or len(data) < 4096
        assert contents(decode(found, 4096)) == [(STORED if page else ABSENT, page) for page in order]
        assert_sound(found)

    def test_zlib_of_another_program(self) -> None:
        found = encode(make([(STORED, 0, 0, 4096)], guest.page(9)), from_name("zlib"), 4096)
        assert zlib.decompress(found.body) == guest.page(9)

    def test_encoded_pages_pass(self) -> None:
        batch = packed([(CodecId.LZO, PAGES[0]), (CodecId.RAW, PAGES[1]), (CodecId.ZSTD, PAGES[2])], lead=b"xx")
        found = encode(batch, from_name("zlib"), PS)
        assert found.table.codec.tolist() == [CodecId.LZO, CodecId.ZLIB, CodecId.ZSTD]
        assert contents(found)[0] == contents(batch)[0]
        assert contents(found)[2] == contents(batch)[2]
        assert found.table.offset[0] == 0

    @pytest.mark.parametrize("name", ["zlib", "lzo", "snappy", "zstd", "rle"])
    @given(kinds=st.lists(st.sampled_from(["named", "noise", "zlib", "zero", "bad"]), max_size=12), gap=st.booleans())
    def test_mixtures_against_one_page_at_a_time(self, name: str, kinds: list[str], gap: bool) -> None:
        codec, size = from_name(name), 4096
        body, rows, wanted = bytearray(b"lead"), [], []
        for number, kind in enumerate(kinds):
            page = guest.page(number, size, "noise" if kind == "noise" else "named")
            data = zlib.compress(page) if kind == "zlib" else page
            encoded = codec.encode(memoryview(data))
            if kind in ("zero", "bad"):
                rows.append((ZERO if kind == "zero" else BAD, 0, -1, 0))
                wanted.append((rows[-1][0], b""))
                continue
            rows.append((STORED, CodecId.ZLIB if kind == "zlib" else CodecId.RAW, len(body), len(data)))
            body += data + b"gap" * gap
            wanted.append((STORED, encoded if kind != "zlib" and len(encoded) < size else data))
        found = encode(make(rows, bytes(body)), codec, size)
        assert contents(found) == wanted
        assert len(found.body) == sum(len(data) for _, data in wanted), "packed"
        assert_sound(found)

    def test_nothing(self) -> None:
        found = encode(make([(ZERO, 0, -1, 0)], b""), from_name("zlib"), PS)
        assert (contents(found), len(found.body)) == ([(ZERO, b"")], 0)

    def test_raw_codec(self) -> None:
        batch = make([(STORED, 0, PS, PS), (STORED, 0, 0, PS)], PAGES[0] + PAGES[1])
        found = encode(batch, codec_for(CodecId.RAW), PS)
        assert contents(found) == [(STORED, PAGES[1]), (STORED, PAGES[0])]
        assert found.table.offset.tolist() == [0, PS]


@dataclass
class DictStore:
    """A store that is a dict from pfn to (codec, data), and notes what it is asked."""

    pages: dict[int, tuple[CodecId, bytes]]
    zero: frozenset[int] = frozenset()
    page_size: int = PS
    asked: list[list[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.stored = self.ram = PageRuns.from_pfns(np.array(sorted({*self.pages, *self.zero}), np.int64))

    def locate(self, pfn: Int64s) -> PageTable:
        self.asked.append(pfn.tolist())
        rows, at = [], 0
        for one in pfn.tolist():
            id, data = self.pages.get(one, (CodecId.RAW, b""))
            state = STORED if data else ZERO if one in self.zero else ABSENT
            rows.append((state, id, at if data else -1, len(data)))
            at += len(data)
        table = make(rows, b"").table
        return PageTable(pfn, table.state, table.codec, table.offset, table.size)

    def fetch(self, table: PageTable) -> PageBatch:
        return PageBatch(table, memoryview(b"".join(self.pages.get(one, (0, b""))[1] for one in table.pfn.tolist())))


class TestReadPages:
    STORE: ClassVar = {number: (id, ENCODERS[id](PAGES[number])) for number, id in enumerate([*ENCODERS, *ENCODERS])}

    def read(self, store: DictStore, pfn: list[int]) -> tuple[list[int], list[bytes]]:
        out: UInt8s = np.full((len(pfn), store.page_size), 0xEE, np.uint8)
        states = read_pages(store, np.array(pfn, np.int64), out)
        assert states.dtype == np.uint8
        return states.tolist(), [row.tobytes() for row in out]

    @given(st.lists(st.integers(-1, 15), max_size=40))
    def test_any_order(self, pfn: list[int]) -> None:
        store = DictStore(self.STORE, frozenset({12, 13}))
        states, found = self.read(store, pfn)
        assert states == [STORED if one in self.STORE else ZERO if one in store.zero else ABSENT for one in pfn]
        assert found == [PAGES[one] if one in self.STORE else bytes(PS) for one in pfn]
        for asked in store.asked:
            assert asked == sorted(set(asked)), "a store is asked in ascending order, each page once"

    def test_a_page_that_does_not_decode_reads_as_zeros(self) -> None:
        store = DictStore({3: (CodecId.ZLIB, b"no zlib"), 4: (CodecId.RAW, PAGES[4])})
        assert self.read(store, [4, 3, 4]) == ([STORED, BAD, STORED], [PAGES[4], bytes(PS), PAGES[4]])

    def test_more_than_a_batch(self) -> None:
        """What is read at once stays within a batch."""
        size = BATCH_BYTES // 4
        store = DictStore({number: (CodecId.RAW, bytes([number]) * size) for number in range(9)}, page_size=size)
        pfn = [8, 0, 3, 3, 3, 7, 9, 1, 2, 5]
        states, found = self.read(store, pfn)
        assert states == [STORED] * 6 + [ABSENT] + [STORED] * 3
        assert [row[0] for row in found] == [8, 0, 3, 3, 3, 7, 0, 1, 2, 5]
        assert all(row == row[:1] * size for row in found)
        assert [len(asked) for asked in store.asked] == [3, 4, 2]
