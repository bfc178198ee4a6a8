"""Streams of QEMU with a defect in them: what stands behind it is read, and what it may have held is told."""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pytest

from dumpxlate.codecs.batch import read_pages
from dumpxlate.io.source import BytesSource
from dumpxlate.pages import PageState
from dumpxlate.qemu.resync import Resync
from dumpxlate.registry import open_from
from dumpxlate.verify.check import check
from tests.builders import qemu_stream as build
from tests.builders.guest import page

if TYPE_CHECKING:
    from dumpxlate.dump import Dump

RAM = 600
BLOCKS = {"pc.ram": RAM * 4096, "0000:00:02.0/vga.vram": 64 * 4096, "pc.bios": 16 * 4096}
FIRMWARE = (1 << 20) - 16
SEEN = {"pc.ram": 0, "pc.bios": FIRMWARE}


def open_bytes(data: bytes) -> Dump:
    return open_from([BytesSource(data)])


def noise(seed: object) -> bytes:
    return random.Random(f"{seed}").randbytes(4096)


@dataclass
class Sent:
    """A stream, and where in it the copies of each page are: the first byte of the record, and the one behind it."""

    data: bytes = b""
    copies: dict[int, list[tuple[int, int, bytes]]] = field(default_factory=dict)


def sent(seed: int, *, rounds: int = 1, footers: bool = True, zeros: float = 0.3) -> Sent:
    """All pages of all blocks in their order, then some of them again, in sections of some hundred KiB."""
    rng, out = random.Random(seed), Sent()
    foot = build.footer(2) if footers else b""
    data = bytearray(b"QEVM" + struct.pack(">I", 3) + build.configuration("pc-i440fx-7.2"))
    data += build.begin(2, "ram", 4, build.block_table(BLOCKS) + build.END_OF_RECORDS) + foot
    before, left = None, 0
    data += b"\x02" + struct.pack(">I", 2)
    for turn in range(rounds):
        for block, size in BLOCKS.items():
            for number in range(size // 4096):
                if turn and rng.random() < 0.8:
                    continue
                content = bytes(4096) if rng.random() < zeros else noise((turn, block, number))
                if left > 200_000:
                    data += build.END_OF_RECORDS + foot + b"\x02" + struct.pack(">I", 2)
                    left = 0
                start = len(data)
                name = None if before == block else block
                data += build.page(number, content, name) if any(content) else build.zero(number, name)
                before, left = block, left + len(data) - start
                if block in SEEN and not (block == "pc.ram" and 0xA0 <= number < 0x100):  # seen behind other things
                    copies = out.copies.setdefault(SEEN[block] + number, [])
                    copies.append((start, len(data), content))
    data += build.END_OF_RECORDS + foot + b"\x03" + struct.pack(">I", 2) + build.END_OF_RECORDS + foot
    data += build.device(50, ("dummy", 0, [("a", b"1234", 4)])) + b"\0" + build.vmdescription([])
    out.data = bytes(data)
    return out


def whole(dump: Dump) -> dict[int, bytes]:
    pfns = dump.pages.stored.select(0, 1 << 40)
    out = np.empty((len(pfns), 4096), np.uint8)
    good = np.isin(read_pages(dump.pages, pfns, out), (PageState.STORED, PageState.ZERO))
    return {int(pfn): row.tobytes() for pfn, row in zip(pfns[good], out[good], strict=True)}


def older(dump: Dump) -> set[int]:
    start, count = dump.pages.older.runs()  # type: ignore[attr-defined]
    return {
        pfn
        for first, length in zip(start.tolist(), count.tolist(), strict=True)
        for pfn in range(first, first + length)
    }


@pytest.mark.parametrize("footers", [True, False])
@pytest.mark.parametrize("rounds", [1, 4])
@pytest.mark.parametrize("seed", range(12))
def test_pages_on_both_sides_of_a_hole_are_there(seed: int, rounds: int, footers: bool) -> None:
    made = sent(seed, rounds=rounds, footers=footers)
    rng = random.Random(f"hole {seed}")
    length = rng.choice([9, 100, 5000, 60_000])
    low, high = len(made.data) // 20, len(made.data) - 100_000
    start = rng.randrange(low, high)
    body = bytearray(made.data)
    body[start : start + length] = rng.choice([bytes(length), rng.randbytes(length)])
    with open_bytes(bytes(body)) as dump:
        found, told = whole(dump), older(dump)
        behind = max(copy[0] for copies in made.copies.values() for copy in copies if copy[0] < start)
        for pfn, copies in made.copies.items():
            begin, end, content = copies[-1]
            if end <= start or begin >= start + length:
                assert found[pfn] == content, (pfn, begin, start, length)
            elif begin == behind:
                continue  # its head is whole: nothing tells that its content is not
            elif pfn in found:
                assert pfn in told, pfn
                assert found[pfn] in [copy[2] for copy in copies[:-1]]
            elif len(copies) == 1:
                assert dump.states([pfn]) == [PageState.EXCLUDED]
        lost = check(dump).missing.pages
        assert lost == sum(pfn not in found for pfn in made.copies)
        if lost:
            assert any("bytes up to 0x" in each and "are passed over" in each for each in dump.damage)
        if told:
            assert any("may be as they were before" in each for each in dump.damage)
        assert rounds > 1 or not told  # nothing was sent twice


@pytest.mark.parametrize("seed", range(6))
def test_many_defects_cost_the_pages_in_them_and_hardly_more(seed: int) -> None:
    made = sent(seed, zeros=0.1)
    rng = random.Random(f"many {seed}")
    body, hit = bytearray(made.data), set()
    for pfn in rng.sample([pfn for pfn in made.copies if 0 < pfn < RAM - 1], 30):
        begin, end, _ = made.copies[pfn][0]
        body[begin] ^= 0x80  # the address leaves every block
        hit.add(pfn)
        assert end > begin
    with open_bytes(bytes(body)) as dump:
        found = {pfn: content for pfn, content in whole(dump).items() if pfn in made.copies}
        between = {pfn for pfn in made.copies if pfn - 1 in hit and pfn + 1 in hit}  # one record proves nothing
        assert made.copies.keys() - hit - between <= found.keys() <= made.copies.keys() - hit
        assert all(content == made.copies[pfn][-1][2] for pfn, content in found.items())
        assert not dump.pages.older.count  # type: ignore[attr-defined]
        assert sum("passed over" in each for each in dump.damage) >= 9
        assert any("more such parts" in each for each in dump.damage)


def test_a_name_that_is_lost_does_not_put_pages_into_the_block_before() -> None:
    """The first record of a smaller block is damaged: what follows could be of either one."""
    table = build.block_table({"pc.ram": 64 * 4096, "pc.bios": 16 * 4096})
    first = [build.page(0, page(0), "pc.ram"), *(build.page(n, page(n)) for n in range(1, 64))]
    second = [build.page(0, noise(0), "pc.bios"), *(build.page(n, noise(n)) for n in range(1, 16))]
    data = build.stream(build.ram(table, b"".join(first + second)))
    at = data.index(second[0])
    with open_bytes(data[:at] + bytes(40) + data[at + 40 :]) as dump:
        found = whole(dump)
        assert found == {n: page(n) for n in range(64)}
        assert any("15 pages behind them are left out" in each for each in dump.damage)
        assert check(dump).missing.pages == 16


def test_pages_go_on_with_the_block_before_where_their_number_accounts_for_the_gap() -> None:
    table = build.block_table({"pc.ram": 64 * 4096, "pc.bios": 64 * 4096})
    records = [build.page(0, page(0), "pc.ram"), *(build.page(n, page(n)) for n in range(1, 30))]
    data = build.stream(build.ram(table, b"".join(records)))
    at = data.index(records[10])
    body = bytearray(data)
    body[at : at + 2 * 4104] = random.Random(1).randbytes(2 * 4104)
    with open_bytes(bytes(body)) as dump:
        assert whole(dump) == {n: page(n) for n in range(30) if n not in (10, 11)}
        assert "8,208 bytes up to" in dump.damage[0]


def test_changes_across_a_defect_make_a_bad_page() -> None:
    table = build.block_table({"pc.ram": 64 * 4096})
    change = lambda n: build.delta(n, b"\x00\x01Z")  # noqa: E731
    first = [build.page(0, page(0), "pc.ram"), *(build.page(n, page(n)) for n in range(1, 64))]
    again = [
        change(3),
        change(20),
        build.page(30, noise(30)),
        change(40),
        build.page(41, page(1)),
        change(45),
        change(50),
    ]
    data = build.stream(build.ram(table, b"".join(first), b"".join(again)))
    at = data.index(again[2])
    with open_bytes(data[:at] + b"\xff" + data[at + 1 :]) as dump:
        found = whole(dump)
        assert found[3] == b"Z" + page(3)[1:]
        assert found[41] == page(1)
        assert found[30] == page(30)
        assert older(dump) >= {30}
        assert check(dump).pages["bad"] == 3  # 40, 45 and 50: nothing tells that they did not change in between


def test_devices_behind_a_defect_among_the_pages_are_read() -> None:
    cpu = ("cpu", 0, [("env.regs", bytes(7) + b"\5" + bytes(120), 8), ("env.eip", bytes(6) + b"\x12\x34", 8)])
    records = [build.page(0, page(0), "pc.ram"), *(build.page(n, page(n)) for n in range(1, 30))]
    whole_ = build.stream(build.ram(build.block_table({"pc.ram": 30 * 4096}), b"".join(records)), devices=[cpu])
    for number in (10, 28, 29):
        at = whole_.index(records[number])
        with open_bytes(whole_[:at] + b"\xee" * 8 + whole_[at + 8 :]) as dump:
            assert dump.cpus[0].registers["eip"] == 0x1234
            assert whole(dump).keys() == set(range(30)) - {number}


def test_devices_behind_a_defect_among_the_devices_are_read() -> None:
    def cpu(number: int) -> build.Device:
        return ("cpu", number, [("env.regs", bytes(128), 8), ("env.eip", struct.pack(">Q", 0x1234 + number), 8)])

    devices = [("timer", 0, [("a", bytes(range(64)), 64)]), cpu(0), cpu(1), cpu(2)]
    table = build.ram(build.block_table({"pc.ram": 4096}), build.zero(0, "pc.ram"))
    data = build.stream(table, devices=devices)
    first = data.index(b"\x05timer") - 5  # the head of its section
    for start, stop in (
        (data.index(bytes(range(60))) + 60, data.index(b"\x7e\0\0\0\x65")),  # up to the processor's end
        (first, first + 5),
        (first, first + 3),
    ):
        for fill in (bytes(stop - start), b"\xee" * (stop - start)):
            with open_bytes(data[:start] + fill + data[stop:]) as dump:
                assert not dump.damage
                assert [each for each in dump.remarks if "states of devices from 0x" in each]
                assert dump.cpus[-1].registers["eip"] == 0x1236


def test_zeros_where_a_section_begins_are_no_end_of_the_stream() -> None:
    made = sent(3)
    at = made.data.index(build.footer(2) + b"\x02", len(made.data) // 2)
    with open_bytes(made.data[: at + 5] + bytes(5) + made.data[at + 10 :]) as dump:
        assert whole(dump).keys() >= made.copies.keys()
        assert dump.damage


@pytest.mark.parametrize("words", [0x28, 0x22, 0x08, 0x02, 0x60, 0x10, 0x120])
def test_a_search_in_what_looks_like_records_everywhere_ends(words: int) -> None:
    body = np.full(1 << 21, words, ">u8").tobytes()
    resync = Resync(BytesSource(body), 4096, (b"pc.ram",), 1 << 30, lambda at: False)
    assert resync.next_records(0) is None


def test_nothing_is_found_in_the_pages_of_a_guest() -> None:
    rng = np.random.default_rng(8)
    words = rng.integers(0, 1 << 40, 1 << 19, dtype=np.int64)
    words[::3] = rng.integers(0, 1 << 12, len(words[::3]))
    for order in "<>":
        resync = Resync(
            BytesSource(words.astype(f"{order}i8").tobytes()), 4096, (b"pc.ram",), 1 << 36, lambda at: False
        )
        assert resync.next_records(0) is None
