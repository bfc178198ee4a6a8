"""The search for VMCOREINFO: planted by the tests at awkward places, among fakes, and left by real kernels."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

import dumpxlate
from dumpxlate.elf.notes import Note
from dumpxlate.io.source import BytesSource
from dumpxlate.registry import open_from
from dumpxlate.vmcoreinfo import VmCoreInfo
from dumpxlate.vmcoreinfo_search import MAX_CANDIDATES, Found, find, with_vmcoreinfo
from tests.builders import elf, kdump, lime
from tests.builders.elf_notes import cpu_notes, note, vmcoreinfo
from tests.builders.guest import VMCOREINFO, Guest, page, small_guest, stored_runs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from dumpxlate.dump import Dump
    from dumpxlate.progress import Progress

SIZE = 4096
NOTE = vmcoreinfo(VMCOREINFO)
HEAD = len(NOTE) - len(VMCOREINFO) - (-len(VMCOREINFO) % 4)  # of a note, before its text
LONG = VMCOREINFO + "".join(f"SYMBOL(function_{number})=ffffffff81{number:06x}\n" for number in range(500))
BASE = 0x100 * SIZE
PLAIN = small_guest(plain=True, high=False)


def planted(pieces: Mapping[int, bytes | str], guest: Guest = PLAIN) -> Guest:
    """A guest with bytes of its memory replaced, by address."""
    pages = {pfn: bytearray(content) for pfn, content in guest.pages.items()}
    for start, piece in pieces.items():
        data = piece.encode() if isinstance(piece, str) else piece
        for at, byte in enumerate(data, start):
            pages[at // SIZE][at % SIZE] = byte
    return guest.but(pages={pfn: bytes(content) for pfn, content in pages.items()}, vmcoreinfo="")


def opened(data: bytes) -> Dump:
    return open_from([BytesSource(data, "dump")])


def elf_of(guest: Guest, *notes: bytes, at: int = 0, **options: Any) -> bytes:
    """``at`` moves the pages in the file, so that their bytes are aligned to nothing."""
    runs = stored_runs(guest)
    loads = [elf.Segment(paddr=first * SIZE, data=guest.run(first, count)) for first, count in runs]
    odd = [note("ODD", 77, bytes(4 * at))] if at else []
    return elf.build(loads, [*cpu_notes(guest), *odd, *notes], **options)


def found_in(pieces: Mapping[int, bytes | str], **options: Any) -> Found | None:
    return find(opened(elf_of(planted(pieces))), **({"threads": 0} | options))


def expect(found: Found | None, address: int, form: str, text: str = VMCOREINFO) -> None:
    assert found is not None
    assert (hex(found.address), found.form) == (hex(address), form)
    assert found.info.text == text


@pytest.mark.parametrize("offset", [0, 1, 2, 3, 4, 5, 6, 7, 1001, 2050])
def test_text_at_any_offset(offset: int) -> None:
    expect(found_in({BASE + offset: VMCOREINFO + "\0"}), BASE + offset, "text")


@pytest.mark.parametrize("offset", [0, 1, 2, 3, 4002])
def test_note_at_any_offset(offset: int) -> None:
    expect(found_in({BASE + offset: NOTE}), BASE + offset + HEAD, "note")


@pytest.mark.parametrize("before", [1, 5, 9, 10, 11, 12, 23, 24, 30, 200])
@pytest.mark.parametrize("form", ["text", "note"])
def test_across_a_page_border(before: int, form: str) -> None:
    border = BASE + 0x40 * SIZE
    head, data = (HEAD, NOTE) if form == "note" else (0, (VMCOREINFO + "\0").encode())
    expect(found_in({border - before: data}), border - before + head, form)


@pytest.mark.parametrize("before", [1, 3, 9, 10, 11, 30])
def test_across_the_border_of_two_batches(before: int) -> None:
    """Guests of over 4 MiB are searched in several."""
    guest = small_guest(plain=True, ranges=[(0, 2100)])
    border = 1024 * SIZE
    dump = opened(elf_of(planted({border - before: VMCOREINFO + "\0"}, guest)))
    for threads in (0, 2):
        expect(find(dump, threads=threads), border - before, "text")


@pytest.mark.parametrize("shift", [0, 1, 3])
def test_pages_that_lie_anywhere_in_the_file(shift: int) -> None:
    dump = opened(elf_of(planted({BASE + 8: NOTE}), at=1, align_data=1) if not shift else _shifted(shift))
    expect(find(dump, threads=0), BASE + 8 + HEAD, "note")


def _shifted(shift: int) -> bytes:
    guest = planted({BASE + 8: NOTE})
    first, *rest = stored_runs(guest)
    loads = [elf.Segment(paddr=first[0] * SIZE, data=guest.run(*first) + bytes(shift))]
    loads += [elf.Segment(paddr=start * SIZE, data=guest.run(start, count)) for start, count in rest]
    return elf.build(loads, cpu_notes(guest))


def test_a_text_of_several_pages() -> None:
    assert len(LONG) > 3 * SIZE
    expect(found_in({BASE + 100: LONG + "\0"}), BASE + 100, "text", LONG)


def test_a_text_longer_than_any_kernel_writes_is_cut_at_a_line() -> None:
    endless = (VMCOREINFO + "SYMBOL(x)=ffffffff81000000\n" * 4000)[: 0x18 * SIZE]
    found = found_in({BASE: endless})
    assert found is not None
    assert len(endless) > 1 << 16 >= len(found.info.text) > (1 << 16) - 40
    assert found.info.text.endswith("\n")


def test_a_text_ends_where_memory_does() -> None:
    """The page behind it is not in the dump: what is there is whole lines."""
    guest = planted({0x1FF * SIZE + 4000: VMCOREINFO[:96]})
    assert find(opened(elf_of(guest)), threads=0) is None  # too little is left
    guest = planted({0x1FF * SIZE + SIZE - 300: LONG[:300]})
    found = find(opened(elf_of(guest)), threads=0)
    assert found is not None
    assert found.info.text == LONG[:300].rpartition("\n")[0] + "\n"


def test_the_note_wins_wherever_it_is() -> None:
    expect(found_in({BASE: LONG + "\0", BASE + 0x20 * SIZE: NOTE}), BASE + 0x20 * SIZE + HEAD, "note")


def test_the_longest_text_wins() -> None:
    places = {BASE: VMCOREINFO + "\0", BASE + 0x20 * SIZE: LONG + "\0", BASE + 0x40 * SIZE: VMCOREINFO + "\0"}
    expect(found_in(places), BASE + 0x20 * SIZE, "text", LONG)


def test_a_note_ends_where_it_says() -> None:
    """The rest of the kernel's buffer may hold an older, longer text."""
    expect(found_in({BASE: NOTE + b"SYMBOL(older)=1\n"}), BASE + HEAD, "note")


FAKES = {
    "a format string": "OSRELEASE=%s\n\0BUILD-ID=%20phN\n",
    "a shell's variable": "OSRELEASE=6.1.0\nexport OSRELEASE\n",
    "another page size": VMCOREINFO.replace("PAGESIZE=4096", "PAGESIZE=8192"),
    "no page size": VMCOREINFO.replace("PAGESIZE=4096\n", ""),
    "hardly a symbol": VMCOREINFO.replace("SYMBOL", "NUMBER"),
    "a line that is none": VMCOREINFO.replace("SIZE(page)=64", "SIZE page 64"),
    "no release": VMCOREINFO.replace("6.1.0-model", "model"),
    "a torn one": VMCOREINFO[:60] + "\0" + VMCOREINFO[60:],
    "bytes in it": VMCOREINFO.encode()[:60] + b"\xff" + VMCOREINFO.encode()[60:],
}


@pytest.mark.parametrize("fake", FAKES.values(), ids=FAKES)
def test_fakes_are_passed_over(fake: bytes | str) -> None:
    data = fake.encode() if isinstance(fake, str) else fake
    assert found_in({BASE: data + b"\0", BASE + 2 * SIZE: vmcoreinfo(data) + b"\0"}) is None
    expect(found_in({BASE: data + b"\0", BASE + 0x30 * SIZE + 3: NOTE}), BASE + 0x30 * SIZE + 3 + HEAD, "note")


LIARS = {
    "a length beyond the text": note("VMCOREINFO", 0, VMCOREINFO.encode(), descsz=len(VMCOREINFO) + 500),
    "a length of nothing": note("VMCOREINFO", 0, VMCOREINFO.encode(), descsz=0),
    "a length of all": note("VMCOREINFO", 0, VMCOREINFO.encode(), descsz=0xFFFFFFFF),
    "another name": note("VMCOREINFX", 0, VMCOREINFO.encode()),
    "another type": note("VMCOREINFO", 5, VMCOREINFO.encode()),
}


@pytest.mark.parametrize("liar", LIARS.values(), ids=LIARS)
def test_a_note_that_lies_is_bare_text(liar: bytes) -> None:
    expect(found_in({BASE: liar + b"\0"}), BASE + HEAD, "text")


def test_two_texts_without_a_gap_are_two() -> None:
    expect(found_in({BASE: VMCOREINFO * 2 + "\0"}), BASE, "text")


@pytest.mark.parametrize("word", ["OSRELEASE=", "OSRELEASE=5", "OSRELEASE=5\n", VMCOREINFO[:60].ljust(128, "\0")])
def test_a_guest_full_of_fakes_stays_bounded(word: str) -> None:
    full = (word.encode() * (SIZE // len(word) + 1))[:SIZE]
    pages = dict.fromkeys(range(8192), full)
    dump = opened(elf_of(Guest(pages=pages)))
    started = time.monotonic()
    assert find(dump, threads=0) is None
    assert time.monotonic() - started < 20  # some 2 s here


def test_after_so_many_candidates_it_gives_up() -> None:
    fake = VMCOREINFO.replace("4096", "8192").encode().ljust(SIZE // 4, b"\0") * 4
    pages = dict.fromkeys(range(MAX_CANDIDATES // 4 + 1), fake)
    few = MAX_CANDIDATES // 4 - 2
    assert find(opened(elf_of(Guest(pages={**pages, few: NOTE.ljust(SIZE, b"\0")}))), threads=0)
    assert find(opened(elf_of(Guest(pages={**pages, len(pages): NOTE.ljust(SIZE, b"\0")}))), threads=0) is None


CODECS = ["zlib", "lzo", "snappy", "zstd", "raw"]


@pytest.mark.parametrize("codec", CODECS)
def test_in_compressed_pages(codec: str) -> None:
    guest = planted({BASE + SIZE - 100: NOTE}, small_guest())
    dump = opened(kdump.build(guest, codec=codec, vmcoreinfo=None))
    assert dump.vmcoreinfo is None
    expect(find(dump), BASE + SIZE - 100 + HEAD, "note")


def test_in_a_format_without_notes() -> None:
    expect(find(opened(lime.build(planted({BASE + 77: NOTE}))), threads=0), BASE + 77 + HEAD, "note")


def test_big_endian_guests_write_their_numbers_so() -> None:
    text = VMCOREINFO.replace("4096", "65536")
    guest = planted({BASE: vmcoreinfo(text, order=">")})
    loads = [elf.Segment(paddr=first * SIZE, data=guest.run(first, count)) for first, count in stored_runs(guest)]
    expect(find(opened(elf.build(loads, byte_order=">", machine=21)), threads=0), BASE + HEAD, "note", text)


def test_nothing_to_find() -> None:
    assert find(opened(elf_of(PLAIN)), threads=0) is None
    assert find(opened(elf_of(Guest(pages={5: page(5)}))), threads=2) is None


def test_progress_is_told() -> None:
    told: list[Progress] = []
    assert found_in({}, progress=told.append) is None
    assert (told[-1].phase, told[-1].done, told[-1].total) == ("search", len(PLAIN.pages) * SIZE, told[-1].done)


class TestWith:
    def test_takes_the_place_of_the_old_one(self) -> None:
        dump = opened(elf_of(PLAIN, vmcoreinfo(VMCOREINFO), note("ODD", 1, b"kept")))
        new = VmCoreInfo.from_bytes(VMCOREINFO.replace("6.1.0-model", "7.0.0").encode())
        changed = with_vmcoreinfo(dump, new)
        assert (changed.vmcoreinfo, changed.machine.release) == (new, "7.0.0")
        assert "VMCOREINFO" not in {each.name for each in changed.notes}
        assert Note("ODD", 1, b"kept") in changed.notes
        assert (dump.machine.release, changed.pages) == ("6.1.0-model", dump.pages)


@pytest.mark.parametrize(("name", "address"), [("pvh1", 0x51A0018), ("pv1", 0x4D94018)])
def test_real_guests_of_xen(shared: Path, unpacked: Callable[[Path], Path], name: str, address: int) -> None:
    """The format string, the note and the bare text are all in memory."""
    with dumpxlate.open(unpacked(shared / "fixtures" / "xen-linux" / f"{name}.core.xz")) as dump:
        assert dump.vmcoreinfo is None
        started = time.monotonic()
        found = find(dump)
        assert time.monotonic() - started < 5  # 0.05 s here
    assert found is not None
    assert (hex(found.address), found.form, len(found.info.text)) == (hex(address), "note", 3246)
    assert found.info.release == "6.1.0-56-cloud-amd64"
    assert found.info.symbol("_stext") == 0xFFFFFFFF81000000
