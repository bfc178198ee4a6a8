"""Every real dump beside this checkout opens, decodes to its last page, and says what it is; or is refused by name."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

import dumpxlate
from dumpxlate.verify.check import check
from tests.conftest import SHARED

if TYPE_CHECKING:
    from pathlib import Path

FIXTURES = SHARED / "fixtures"
PROCESS_CORES = ("core.xz", "gdb.core.xz", "qemu.core.xz")
BIG = ("host.elf.xz",)  # unpacks to 1 GiB: only its headers are looked at here


def dumps() -> list[Path]:
    names = (
        "elf*.xz",
        "kdump*.xz",
        "*.dump.xz",
        "*.core.xz",
        "*.save.xz",
        "*.old[48].xz",
        "host.elf.xz",
        "*.stream.xz",
    )
    found = {path for name in names for path in FIXTURES.glob(f"**/{name}")}
    return sorted(path for path in found if path.name not in PROCESS_CORES)


def cores_of_qemu() -> list[Path]:
    return sorted(path for name in PROCESS_CORES for path in FIXTURES.glob(f"**/{name}"))


def named(path: Path) -> str:
    return "/".join(path.parts[-2:])


KIND = {
    "elf": "elf",
    "kdump": "kdump",
    "dump": "kdump",
    "core": "xen_core",
    "save": "xen_stream",
    "stream": "qemu_stream",
}
KIND |= {"old8": "xendump", "old4": "xendump"}


def kind_of(path: Path) -> str:
    name = path.name.removesuffix(".xz")
    if name.startswith(("elf", "paging", "host")):
        return "elf"
    if name.startswith("kdump"):
        return "kdump"
    return KIND[name.rsplit(".", 1)[-1]]


@pytest.mark.parametrize("path", [each for each in dumps() if each.name not in BIG], ids=named)
def test_opens_and_decodes(path: Path) -> None:
    with dumpxlate.open(path) as dump:
        assert dump.format == kind_of(path)
        assert dump.damage == ()
        found = check(dump)
        assert found.ok, found
        assert found.pages["stored"] + found.pages["zero"] == dump.pages.stored.count > 0


@pytest.mark.parametrize("path", cores_of_qemu(), ids=named)
def test_cores_of_qemu_open_without_anything_else(path: Path) -> None:
    """By the looks of their mappings; what debug information tells is in tests/formats/test_qemu_core.py."""
    with dumpxlate.open(path) as dump:
        assert dump.format == "qemu_core"
        assert dump.pages.stored.count > 0


def test_whole_xen_host(shared: Path) -> None:
    """Machine memory taken from outside by QEMU: an ELF vmcore like any other."""
    path = shared / "fixtures" / "xen-host" / "host.elf.xz"
    with dumpxlate.open(path) as dump:
        assert dump.format == "elf"
        assert dump.pages.stored.count * 4096 >= 1 << 30
        listed = json.loads((path.parent / "list.json").read_text())
        assert listed  # the host ran these domains; its memory holds the name of the first
        assert dump.read(0x100000, 16) != b""


def test_something_is_there_to_test(shared: Path) -> None:
    assert len(dumps()) > 75
    assert len(cores_of_qemu()) >= 4
