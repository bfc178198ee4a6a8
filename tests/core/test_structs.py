"""On-disk structures against plain struct: fields, both byte orders, bytes, and every bound."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import struct as plain
import tracemalloc
from typing import TYPE_CHECKING, Annotated

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dumpxlate.errors import TruncatedDumpError
from dumpxlate.structs import I8, I16, I32, I64, U8, U16, U32, U64, dtype_of, pack, parse, size_of, struct, table

if TYPE_CHECKING:
    from dumpxlate.structs import Endian


@struct
class Every:
    """One field of each type, none of them aligned."""

    tag: Annotated[bytes, 3]
    u8: U8
    u16: U16
    u32: U32
    u64: U64
    i8: I8
    i16: I16
    i32: I32
    i64: I64
    rest: Annotated[bytes, 5]


CODE = "3sBHIQbhiq5s"
SIZE = 3 + 1 + 2 + 4 + 8 + 1 + 2 + 4 + 8 + 5
both_endians = pytest.mark.parametrize("endian", ["<", ">"])


@st.composite
def values(draw: st.DrawFn) -> tuple[bytes | int, ...]:
    unsigned = [draw(st.integers(0, (1 << bits) - 1)) for bits in (8, 16, 32, 64)]
    signed = [draw(st.integers(-(1 << bits - 1), (1 << bits - 1) - 1)) for bits in (8, 16, 32, 64)]
    return (draw(st.binary(min_size=3, max_size=3)), *unsigned, *signed, draw(st.binary(min_size=5, max_size=5)))


@given(values(), st.sampled_from("<>"), st.integers(0, 9))
def test_parse_and_pack_are_plain_struct(row: tuple[bytes | int, ...], endian: Endian, offset: int) -> None:
    data = plain.pack(endian + CODE, *row)
    found = parse(Every, b"x" * offset + data + b"y", offset, endian)
    assert dataclasses.astuple(found) == row
    assert pack(found, endian) == data
    assert pack(Every(*row), endian) == data  # type: ignore[arg-type]


@given(st.lists(values(), max_size=5), st.sampled_from("<>"), st.integers(0, 9))
def test_table_is_plain_struct(rows: list[tuple[bytes | int, ...]], endian: Endian, offset: int) -> None:
    body = b"x" * offset + b"".join(plain.pack(endian + CODE, *row) for row in rows) + b"y"
    found = table(Every, memoryview(body), offset, len(rows), endian)
    assert found.shape == (len(rows),)
    assert found.dtype.names == tuple(field.name for field in dataclasses.fields(Every))
    for got, row in zip(found, rows, strict=True):
        assert [got[at].tobytes() if isinstance(row[at], bytes) else int(got[at]) for at in range(10)] == list(row)


@both_endians
def test_sizes(endian: Endian) -> None:
    assert size_of(Every) == SIZE == dtype_of(Every, endian).itemsize
    assert dtype_of(Every, endian)["u32"] == np.dtype(f"{endian}u4")
    assert dtype_of(Every, endian) is dtype_of(Every, endian)


def test_two_byte_orders_differ() -> None:
    body = bytes(range(1, SIZE + 1))
    assert parse(Every, body, 0, "<").u16 == 0x0605
    assert parse(Every, body, 0, ">").u16 == 0x0506
    assert int(table(Every, body, 0, 1, ">")["u16"][0]) == 0x0506


def test_a_structure_is_a_frozen_value() -> None:
    value = parse(Every, bytes(SIZE), 0, "<")
    with pytest.raises(dataclasses.FrozenInstanceError):
        value.u8 = 1  # type: ignore[misc]
    assert value == parse(Every, bytes(SIZE), 0, ">")
    assert not hasattr(value, "__dict__")
    assert type(value.u64) is int


@struct
class Pair:
    """Two fields."""

    low: U8
    high: U16


def test_a_structure_does_what_a_dataclass_does() -> None:
    assert Pair(1, 2) == Pair(1, high=2) == Pair(high=2, low=1) == dataclasses.replace(Pair(1, 3), high=2)
    assert Pair(1, 2) != Pair(1, 3)
    assert Pair(1, 2) != (1, 2)
    assert {Pair(1, 2), Pair(1, 2), Pair(2, 1)} == {Pair(1, 2), Pair(2, 1)}
    assert repr(Pair(1, 2)) == "Pair(low=1, high=2)"
    assert copy.deepcopy(Pair(1, 2)) == pickle.loads(pickle.dumps(Pair(1, 2))) == Pair(1, 2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        del Pair(1, 2).low


@pytest.mark.parametrize(
    ("values", "named"),
    [((), {}), ((1,), {}), ((1, 2, 3), {}), ((1, 2), {"low": 1}), ((1,), {"low": 1}), ((1,), {"middle": 1})],
)
def test_a_structure_takes_each_field_once(values: tuple[int, ...], named: dict[str, int]) -> None:
    with pytest.raises(TypeError, match=r"^Pair takes low, high, each once$"):
        Pair(*values, **named)


@pytest.mark.parametrize(("size", "offset"), [(SIZE - 1, 0), (SIZE, 1), (0, 0), (SIZE, SIZE), (SIZE, 1 << 70)])
def test_parse_names_what_is_cut_off(size: int, offset: int) -> None:
    with pytest.raises(TruncatedDumpError) as caught:
        parse(Every, bytes(size), offset, "<")
    assert caught.value.what == "Every"
    assert (caught.value.offset, caught.value.wanted, caught.value.available) == (offset, SIZE, size - offset)
    with pytest.raises(TruncatedDumpError, match=r"^sub-header"):
        parse(Every, bytes(size), offset, "<", what="sub-header")


def test_parse_and_table_never_count_from_the_end() -> None:
    for offset in (-1, -SIZE):
        with pytest.raises(TruncatedDumpError):
            parse(Every, bytes(4 * SIZE), offset, "<")
        with pytest.raises(TruncatedDumpError):
            table(Every, bytes(4 * SIZE), offset, 1, "<")


@pytest.mark.parametrize(
    ("offset", "count"), [(0, 4), (1, 3), (SIZE, 3), (4 * SIZE, 0), (0, -1), (0, 1 << 62), (1 << 70, 1)]
)
def test_table_checks_the_count_before_anything(offset: int, count: int) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(TruncatedDumpError) as caught:
            table(Every, bytes(3 * SIZE), offset, count, "<", what="descriptors")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert caught.value.what == "descriptors"
    assert caught.value.wanted == count * SIZE


@pytest.mark.parametrize("body", [b"", b"abc"])
def test_no_rows_fit_anywhere_inside(body: bytes) -> None:
    assert table(Every, body, len(body), 0, "<").shape == (0,)
    assert table(Every, body, len(body), 0, "<").dtype == dtype_of(Every, "<")


@pytest.mark.parametrize("count", [0, 2])
def test_a_table_is_read_only_and_no_copy(count: int) -> None:
    body = bytearray(2 * SIZE)
    rows = table(Every, memoryview(body), 0, count, "<")
    assert not rows.flags.writeable
    if count:
        body[SIZE + 3] = 9
        assert int(rows["u8"][1]) == 9


def test_pack_refuses_what_does_not_fit() -> None:
    value = Every(b"abc", 256, 0, 0, 0, 0, 0, 0, 0, b"")
    with pytest.raises(plain.error):
        pack(value, "<")
