"""Bytes at physical addresses: pages one by one, over seams, and those that are not there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import dumpxlate
from dumpxlate import single
from dumpxlate.codecs.zlib import ZlibCodec
from dumpxlate.errors import PageUnavailableError
from tests.builders import flattened, kdump
from tests.builders.elf_cores import core
from tests.builders.guest import small_guest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.builders.guest import Guest

GUEST = small_guest()
BUILDERS: dict[str, Callable[[Guest], bytes]] = {
    "elf": lambda guest: core(guest, "makedumpfile"),
    "kdump": lambda guest: kdump.build(guest, codec=["zlib", "lzo", "snappy", "zstd"]),
    "flattened": lambda guest: flattened.wrap(kdump.build(guest)),
}


@pytest.fixture(params=BUILDERS)
def dump(request: pytest.FixtureRequest, tmp_path: Path) -> dumpxlate.Dump:
    path = tmp_path / request.param
    path.write_bytes(BUILDERS[request.param](GUEST))
    return dumpxlate.open(path)


def run_of(guest: Guest, length: int) -> int:
    """First of so many pages in a row that all have content."""
    return next(pfn for pfn in guest.stored if all(pfn + next_ in guest.pages for next_ in range(length)))


@pytest.mark.parametrize("pages", [1, 2, 8, 9])
def test_ranges_cross_pages(dump: dumpxlate.Dump, pages: int) -> None:
    first = run_of(GUEST, pages)
    content = b"".join(GUEST.pages[first + number] for number in range(pages))
    with dump:
        for skip, length in ((0, len(content)), (1, len(content) - 2), (4095, 1), (100, 0), (0, 4096)):
            assert dump.read(first * 4096 + skip, length) == content[skip : skip + length]


def test_what_is_not_there_is_said(dump: dumpxlate.Dump) -> None:
    excluded, absent = min(GUEST.excluded), next(pfn for pfn in range(1 << 20) if pfn not in GUEST.ram)
    with dump:
        for pfn, state in ((excluded, "excluded"), (absent, "absent"), (1 << 40, "absent")):
            with pytest.raises(PageUnavailableError, match=f"page {pfn:#x} is {state}") as caught:
                dump.read(pfn * 4096 + 8, 8)
            assert (caught.value.pfn, caught.value.state) == (pfn, state)
        with pytest.raises(ValueError, match="cannot read 4 bytes at -1"):
            dump.read(-1, 4)


def test_a_range_far_beyond_memory_is_not_allocated(dump: dumpxlate.Dump) -> None:
    with pytest.raises(PageUnavailableError):
        dump.read(0, 1 << 62)


@pytest.mark.parametrize("pfns", [[0.5], [1 << 63], [[0]], ["0"]])
def test_what_is_no_frame_number(dump: dumpxlate.Dump, pfns: list[Any]) -> None:
    for ask in (dump.read_pages, dump.states):
        with pytest.raises(ValueError, match="frame numbers are integers"):
            ask(pfns)


def test_only_so_many_groups_are_remembered(dump: dumpxlate.Dump, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(single, "_GROUP", 4)
    monkeypatch.setattr(single, "_GROUPS", 2)
    with dump:
        for _ in range(2):
            assert [dump.read(pfn * 4096, 4096) for pfn in GUEST.stored] == [GUEST.pages[pfn] for pfn in GUEST.stored]
        assert len(dump.memory._single._groups) == 2


def test_a_page_that_does_not_decode_is_bad(tmp_path: Path) -> None:
    pfn = next(pfn for pfn in GUEST.stored if any(GUEST.pages[pfn]))
    body = bytearray(kdump.build(GUEST, codec="zlib"))
    path = tmp_path / "kdump"
    path.write_bytes(body)
    with dumpxlate.open(path) as dump:
        table = dump.pages.locate(dump.pages.stored.select(0, dump.pages.stored.count))
        row = table.pfn.tolist().index(pfn)
    body[table.offset[row] : table.offset[row] + table.size[row]] = b"\xff" * int(table.size[row])
    path.write_bytes(body)
    with dumpxlate.open(path) as dump, pytest.raises(PageUnavailableError, match=f"page {pfn:#x} is bad"):
        dump.read(pfn * 4096, 4096)


def test_every_page_one_by_one_is_the_batch(dump: dumpxlate.Dump) -> None:
    with dump:
        pages = dump.read_pages(GUEST.stored)
        for _ in range(2):  # looked up, and remembered
            assert [dump.read(pfn * 4096, 4096) for pfn in GUEST.stored] == [row.tobytes() for row in pages]


def test_only_so_many_decoded_pages_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(single, "_KEPT_BYTES", 3 * 4096)
    (tmp_path / "kdump").write_bytes(kdump.build(GUEST, codec="zlib"))
    with dumpxlate.open(tmp_path / "kdump") as dump:
        for pfn in (*GUEST.stored, *reversed(GUEST.stored)):
            assert dump.read(pfn * 4096, 4096) == GUEST.pages[pfn]
            assert len(dump.memory._single._kept) <= 3
        assert dump.memory._single._kept


def test_a_page_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pfn = next(pfn for pfn in GUEST.stored if any(GUEST.pages[pfn]))
    (tmp_path / "kdump").write_bytes(kdump.build(GUEST, codec="zlib"))
    decoded: list[int] = []
    decode = ZlibCodec.decode

    def counted(codec: ZlibCodec, data: bytes, size: int) -> bytes:
        decoded.append(len(data))
        return decode(codec, data, size)

    monkeypatch.setattr(ZlibCodec, "decode", counted)
    with dumpxlate.open(tmp_path / "kdump") as dump:
        words = [dump.read(pfn * 4096 + at, 8) for at in range(0, 4096, 8)]
    assert b"".join(words) == GUEST.pages[pfn]
    assert len(decoded) == 1


def test_a_run_of_raw_pages_takes_no_table(tmp_path: Path) -> None:
    """2,048 pages in one run, and a few behind them: the first two groups are remembered as two offsets."""
    body = np.arange(2050 * 512, dtype="<u8").tobytes()
    (tmp_path / "raw").write_bytes(body)
    with dumpxlate.open(tmp_path / "raw", format="raw") as dump:
        for pfn in (0, 1023, 1024, 2047, 2048, 2049):
            assert dump.read(pfn * 4096, 4096) == body[pfn * 4096 : (pfn + 1) * 4096]
        assert [type(group) for group in dump.memory._single._groups.values()] == [int, int, tuple]
        with pytest.raises(PageUnavailableError, match="page 0x802 is absent"):
            dump.read(2050 * 4096, 1)


def test_a_file_that_became_shorter_has_bad_pages(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(bytes(range(256)) * 16 * 2000)
    with dumpxlate.open(tmp_path / "raw", format="raw") as dump:
        assert dump.read(1024 * 4096, 2) == b"\0\1"
        with (tmp_path / "raw").open("r+b") as file:
            file.truncate(1024 * 4096 + 100)
        for pfn in (1024, 1999):
            with pytest.raises(PageUnavailableError, match=f"page {pfn:#x} is bad"):
                dump.read(pfn * 4096, 2)
