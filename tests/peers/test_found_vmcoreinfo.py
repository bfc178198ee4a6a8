"""A real Linux guest whose dump was made without VMCOREINFO: found in its memory, it lets other programs open it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

import dumpxlate
from dumpxlate.vmcoreinfo_search import find, with_vmcoreinfo
from tests.peers import peers

if TYPE_CHECKING:
    from pathlib import Path

    from dumpxlate.dump import Dump

pytestmark = pytest.mark.peer


def stripped(dump: Dump) -> Dump:
    """What QEMU writes of a guest that has no vmcoreinfo device."""
    notes = tuple(note for note in dump.notes if note.name != "VMCOREINFO")
    return replace(dump, vmcoreinfo=None, notes=notes, machine=replace(dump.machine, release=None))


def test_it_is_what_the_guest_told_qemu(guest: Path) -> None:
    with dumpxlate.open(guest / "elf") as dump:
        assert dump.vmcoreinfo is not None
        found = find(stripped(dump))
        assert found is not None
        assert found.form == "note"
        assert found.info.text == dump.vmcoreinfo.text
        assert dump.read(found.address, 10) == b"OSRELEASE="


@pytest.mark.parametrize("target", ["elf", "kdump"])
def test_drgn_crash_and_makedumpfile_open_it(guest: Path, tmp_path: Path, target: str) -> None:
    peers.require("drgn", "crash", "makedumpfile")
    ours = tmp_path / "ours"
    with dumpxlate.open(guest / "elf") as dump:
        bare, release = stripped(dump), dump.machine.release
        found = find(bare)
        assert found is not None
        dumpxlate.convert(with_vmcoreinfo(bare, found.info), ours, target)
    kernel = peers.drgn_kernel(ours, guest / "vmlinux")
    assert kernel.release == release
    assert "swapper/0" in peers.crash(ours, guest / "vmlinux", "ps")
    if target == "kdump":
        return  # from kdump files makedumpfile takes no VRAM; test_linux_guest.py asks it about them
    filtered = peers.refilter(ours, tmp_path / "filtered", "-l", level=31)
    assert 0 < filtered.stat().st_size < ours.stat().st_size
