"""Bytes at physical addresses: pages one by one, over seams, and those that are not there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import dumpxlate
from dumpxlate import single
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
