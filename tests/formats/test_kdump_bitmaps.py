"""kdump-compressed files whose bitmap of pages has lost or gained bits: every page behind it would be another one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import dumpxlate
from dumpxlate.formats.kdump import bitmaps
from dumpxlate.verify.check import check
from tests.builders import kdump
from tests.builders.guest import Guest, small_guest

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    Cli = Callable[..., subprocess.CompletedProcess[str]]

FILTERED = small_guest()
WHOLE = small_guest(excluded=(), high=False)
KINDS: tuple[dict[str, Any], ...] = (
    {"codec": "zlib"},
    {"codec": "raw"},
    {"codec": "zlib", "shared_zero": False},
    {"codec": "lzo", "byte_order": ">", "utsname": {"machine": b"s390x"}},
    {"codec": "zstd", "layout": "packed", "utsname": {"machine": b"i686"}},
)


@pytest.fixture(params=["kept", "read"], autouse=True)
def bitmaps_kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bitmaps in memory, as those of small dumps are; and read by blocks, as those of huge ones are."""
    if request.param == "read":
        monkeypatch.setattr(bitmaps, "_RESIDENT", 0)


def lose_a_bit(bits: bytearray) -> None:
    bits[1] ^= 1


def gain_a_bit(bits: bytearray) -> None:
    at = next(at for at, byte in enumerate(bits) if byte != 0xFF)
    bits[at] |= bits[at] + 1


def lose_the_beginning(bits: bytearray) -> None:
    bits[:8] = bytes(8)


def lose_all(bits: bytearray) -> None:
    bits[:] = bytes(len(bits))


DEFECTS = (lose_a_bit, gain_a_bit, lose_the_beginning, lose_all)


def broken(guest: Guest, defect: Callable[[bytearray], None], **options: Any) -> bytes:
    """A file whose second bitmap has a defect, within the pfns that it tells of."""
    whole = bytearray(kdump.build(guest, **options))
    at, both = kdump.parts(guest, **options)[3]
    first = at + len(both) // 2
    bits = whole[first : first + guest.end_pfn // 8]
    defect(bits)
    whole[first : first + len(bits)] = bits
    return bytes(whole)


@pytest.mark.parametrize("defect", DEFECTS)
@pytest.mark.parametrize("options", KINDS, ids=str)
@pytest.mark.parametrize("guest", [FILTERED, WHOLE], ids=["filtered", "whole"])
def test_it_is_damage(
    tmp_path: Path, guest: Guest, options: dict[str, Any], defect: Callable[[bytearray], None]
) -> None:
    """A whole dump is read by its other bitmap; of a filtered one nothing is given that nothing proves."""
    if guest is FILTERED and options.get("layout"):
        pytest.skip("32-bit headers for a guest above 4 GiB")
    path = tmp_path / "in"
    path.write_bytes(broken(guest, defect, **options))
    with dumpxlate.open(path) as dump:
        assert any(f"there are {len(guest.stored):,} descriptors" in line for line in dump.damage), dump.damage
        if guest is FILTERED and not any("taken instead" in line for line in dump.damage):
            assert any("nothing tells where the defect is, and no page has an address" in line for line in dump.damage)
            assert dump.pages.stored.count == 0
            missing = check(dump).missing
            assert missing.pages == dump.pages.lost.count  # type: ignore[attr-defined]
            assert {run.reason for run in missing.first} <= {"nothing tells for sure which descriptors are theirs"}
            return
        found = dump.read_pages(guest.stored)
        assert [pfn for pfn, row in zip(guest.stored, found, strict=True) if row.tobytes() != guest.pages[pfn]] == []
        assert check(dump).pages["stored"] + check(dump).pages["zero"] == len(guest.stored)


@pytest.mark.parametrize(
    "options", [*KINDS, {"gap": 512}, {"reverse": True}, {"written": 100}, {"single_bitmap": True}]
)
def test_sound_files_are_none_of_it(tmp_path: Path, options: dict[str, Any]) -> None:
    path = tmp_path / "in"
    path.write_bytes(kdump.build(WHOLE, **options))
    with dumpxlate.open(path) as dump:
        assert not any("descriptors" in line for line in dump.damage), dump.damage


def test_a_conversion_asks_first(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(broken(FILTERED, lose_a_bit))
    refused = cli("convert", "in", "-o", "out")
    assert (refused.returncode, (tmp_path / "out").exists()) == (5, False)
    assert "--salvage" in refused.stderr
    saved = cli("convert", "in", "-o", "out", "--salvage", "--bad-pages", "skip")
    assert saved.returncode == 4
    assert "no page has an address" in saved.stderr


# A page of known content: the kernel's name.

ANCHOR = 0x108
"""Its pfn in the guest."""


def with_name(guest: Guest, at: int = 4, pfn: int = ANCHOR, *, arm: bool = False) -> Guest:
    """A guest with init_uts_ns where VMCOREINFO says."""
    name = b"".join(text.ljust(65, b"\0") for text in (b"Linux", b"model", b"6.1.0-model", b"#1", b"x86_64"))
    body = bytes(0x80) + bytes(at) + name
    address = pfn * 4096 + 0x80
    if arm:
        info = f"OSRELEASE=6.1.0-model\nSYMBOL(init_uts_ns)={0xFFFF800008000000 + address:x}\n"
        info += f"NUMBER(kimage_voffset)={0xFFFF800008000000:#x}\n"
    else:
        info = f"OSRELEASE=6.1.0-model\nSYMBOL(init_uts_ns)={0xFFFFFFFF80000000 + address + 0x100000:x}\n"
        info += f"NUMBER(phys_base)={-0x100000}\n"
    pages = guest.pages | {pfn: body.ljust(4096, b"\x11")}
    return guest.but(pages=pages, vmcoreinfo=info)


def changed(guest: Guest, pfns: dict[int, bool], **options: Any) -> bytes:
    """A file with some bits of its second bitmap set or cleared."""
    whole = bytearray(kdump.build(guest, **options))
    at, both = kdump.parts(guest, **options)[3]
    for pfn, held in pfns.items():
        place = at + len(both) // 2 + pfn // 8
        whole[place] = whole[place] & ~(1 << pfn % 8) | held << pfn % 8
    return bytes(whole)


@pytest.mark.parametrize("arm", [False, True])
@pytest.mark.parametrize("where", ["before", "behind"])
@pytest.mark.parametrize("kind", ["lost", "gained", "many"])
@pytest.mark.parametrize("options", KINDS[:3], ids=str)
def test_a_page_of_known_content_proves_one_side(
    tmp_path: Path, kind: str, where: str, options: dict[str, Any], arm: bool
) -> None:
    guest = with_name(FILTERED, arm=arm, at=0 if arm else 4)
    side = [pfn for pfn in guest.stored if (pfn < ANCHOR) == (where == "before") and pfn != ANCHOR]
    out = [pfn for pfn in sorted(guest.excluded) if (pfn < ANCHOR) == (where == "before")]
    if kind == "gained" and not out:
        pytest.skip("nothing was left out on that side")
    bits = {"lost": dict.fromkeys(side[5:6], False), "many": dict.fromkeys(side[3:40], False)}.get(kind)
    path = tmp_path / "in"
    path.write_bytes(changed(guest, bits or {out[0]: True}, **options))
    sound = {pfn for pfn in guest.stored if (pfn >= ANCHOR if where == "before" else pfn <= ANCHOR)}
    with dumpxlate.open(path) as dump:
        assert any(f"proves that the defect is {where} it" in line for line in dump.damage)
        held = dump.pages.stored.select(0, 1 << 40).tolist()
        assert held == sorted(sound)
        assert [pfn for pfn in held if dump.read_pages([pfn])[0].tobytes() != guest.pages[pfn]] == []
        found = check(dump, first=1000)
        report = dumpxlate.convert(dump, tmp_path / "out", salvage=True)
        assert report.missing.pages == found.missing.pages > 0
        assert not {pfn for run in found.missing.first for pfn in range(run.start, run.start + run.count)} & sound


def test_a_page_that_is_not_what_it_should_be_proves_nothing(tmp_path: Path) -> None:
    guest = with_name(FILTERED)
    other = guest.but(pages=guest.pages | {ANCHOR: FILTERED.pages[ANCHOR]})
    path = tmp_path / "in"
    path.write_bytes(changed(other, {guest.stored[9]: False}))
    with dumpxlate.open(path) as dump:
        assert dump.pages.stored.count == 0


def test_bits_outside_of_ram_are_left_out(tmp_path: Path) -> None:
    outside = next(pfn for pfn in range(FILTERED.end_pfn) if pfn not in FILTERED.ram)
    path = tmp_path / "in"
    path.write_bytes(changed(FILTERED, {outside: True, outside + 1: True}))
    with dumpxlate.open(path) as dump:
        assert any("the pages in RAM, which are as many, are taken instead" in line for line in dump.damage)
        found = dump.read_pages(FILTERED.stored)
        assert [
            pfn for pfn, row in zip(FILTERED.stored, found, strict=True) if row.tobytes() != FILTERED.pages[pfn]
        ] == []


# Sets of parts, which all have the same bitmaps.


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("defect", DEFECTS)
def test_the_bitmap_of_another_part_is_taken(tmp_path: Path, defect: Callable[[bytearray], None], which: int) -> None:
    files = kdump.split_set(FILTERED, 3)
    at, both = kdump.parts(FILTERED, split=(0, 1))[3]
    whole = bytearray(files[which])
    first = at + len(both) // 2
    bits = whole[first : first + FILTERED.end_pfn // 8]
    defect(bits)
    whole[first : first + len(bits)] = bits
    files[which] = bytes(whole)
    paths = [tmp_path / str(number) for number in range(3)]
    for path, data in zip(paths, files, strict=True):
        path.write_bytes(data)
    with dumpxlate.open(*paths) as dump:
        assert any(f"in {paths[which]} differs from that in" in line for line in dump.damage)
        found = dump.read_pages(FILTERED.stored)
        assert [
            pfn for pfn, row in zip(FILTERED.stored, found, strict=True) if row.tobytes() != FILTERED.pages[pfn]
        ] == []
    if which == 1:
        return  # the part in the middle has no pages
    with dumpxlate.open(paths[which]) as dump:  # alone, nothing tells
        assert any("descriptors: " in line for line in dump.damage)
        assert dump.pages.stored.count == 0 or any("taken instead" in line for line in dump.damage)


@pytest.mark.parametrize("options", KINDS[:3], ids=str)
@pytest.mark.parametrize("count", [1, 2, 7])
def test_sound_sets_are_none_of_it(tmp_path: Path, count: int, options: dict[str, Any]) -> None:
    paths = [tmp_path / str(number) for number in range(count)]
    for path, data in zip(paths, kdump.split_set(FILTERED, count, **options), strict=True):
        path.write_bytes(data)
        with dumpxlate.open(path) as dump:
            assert not any("descriptors" in line for line in dump.damage), dump.damage
    with dumpxlate.open(*paths) as dump:
        assert not dump.damage
