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
    """A whole dump is read by its other bitmap; of a filtered one nobody can tell."""
    if guest is FILTERED and options.get("layout"):
        pytest.skip("32-bit headers for a guest above 4 GiB")
    path = tmp_path / "in"
    path.write_bytes(broken(guest, defect, **options))
    with dumpxlate.open(path) as dump:
        assert any(f"there are {len(guest.stored):,} descriptors" in line for line in dump.damage), dump.damage
        if guest is FILTERED:
            assert any("wrong addresses" in line for line in dump.damage)
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
    assert "are given wrong addresses" in saved.stderr
