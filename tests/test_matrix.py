"""Every readable format to every writable one: pages, states and registers arrive, or are declared lost.

The pairs come from the registry: a new format is in here by existing, and fails until it has a builder. What is written
is opened again by our own readers; that the writers are right by themselves is proved in their own tests and by peers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import dumpxlate
from dumpxlate.dump import Dump, Space
from dumpxlate.p2m.map import P2M
from dumpxlate.pages import PageState
from dumpxlate.registry import all_formats, open_dump
from tests.builders import avml, elf_cores, kdump, lime, qemu_core, qemu_stream, raw, xen_core, xen_stream, xendump
from tests.builders.guest import Guest, small_guest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FULL = small_guest(excluded=())
FILTERED = small_guest()
NEAR = small_guest(excluded=(), high=False)  # no block above 4 GiB: for formats of a flat image, and 32-bit headers


@dataclass(frozen=True, eq=False)  # each is one of a kind, and so can be a key
class Input:
    """A dump to convert: how it is built, and what it must be found to hold.

    Attributes:
        format: name of its format.
        build: makes the bytes.
        guest: the model behind it.
        registers: whether it has any.
        mapped: whether it is keyed by mfn and needs the guest's map.
    """

    name: str
    format: str
    build: Callable[[Guest], bytes]
    guest: Guest = FULL
    registers: bool = True
    mapped: bool = False


def elf_input(arch: str, bits: int, order: str, guest: Guest, style: str = "plain") -> Input:
    return Input(
        f"elf-{style}-{arch}{order}",
        "elf",
        lambda model: elf_cores.core(model, style, arch=arch, bits=bits, byte_order=order),
        guest,
    )


def kdump_input(name: str, guest: Guest, **options: Any) -> Input:
    return Input(f"kdump-{name}", "kdump", lambda model: kdump.build(model, **options), guest, registers=False)


INPUTS = (
    elf_input("x86_64", 64, "<", FULL),
    elf_input("x86_64", 64, "<", FILTERED, "makedumpfile"),
    elf_input("i386", 32, "<", NEAR),
    elf_input("aarch64", 64, ">", FULL),
    elf_input("s390x", 64, ">", FULL),
    elf_input("arm", 32, ">", NEAR),
    kdump_input("zlib", FILTERED, codec="zlib"),
    kdump_input("lzo", FILTERED, codec="lzo"),
    kdump_input("snappy", FILTERED, codec="snappy"),
    kdump_input("zstd", FILTERED, codec="zstd"),
    kdump_input("mixed", FILTERED, codec=("raw", "zlib", "lzo", "snappy", "zstd")),
    kdump_input("big-endian", FULL, codec="zlib", byte_order=">", utsname={"machine": b"s390x"}),
    kdump_input("packed", NEAR, codec="zlib", layout="packed", utsname={"machine": b"i686"}),
    Input("xendump-pv", "xendump", xendump.build, mapped=True),
    Input("xendump-pv32", "xendump", lambda model: xendump.build(model, entry_size=4), NEAR, mapped=True),
    Input("xendump-hvm", "xendump", lambda model: xendump.build(model, hvm=True, dense=True), NEAR),
    Input("xen_core-pv", "xen_core", xen_core.build),
    Input("xen_core-hvm", "xen_core", lambda model: xen_core.build(model, hvm=True)),
    Input("xen_stream-hvm", "xen_stream", lambda model: xen_stream.save(model, hvm=True), registers=False),
    Input("xen_stream-pv", "xen_stream", xen_stream.save, NEAR),
    Input("qemu_core", "qemu_core", lambda model: qemu_core.build(model).data, NEAR, registers=False),
    Input("qemu_stream", "qemu_stream", qemu_stream.save),
    Input("lime", "lime", lime.build, registers=False),
    Input("avml", "avml", lambda model: avml.build(model, keep_zero=True), registers=False),
    Input("raw", "raw", raw.build, NEAR, registers=False),
)

FLAT = ("raw", "lime", "avml")
"""Targets without a place for registers, notes, or pages left out."""


def opened(path: Path, given: Input) -> Dump:
    dump = open_dump([path], format=given.format if given.format == "raw" else None)
    if not given.mapped:
        return dump
    mfns = given.guest.mfns
    return dump.with_p2m(P2M.from_pairs(np.array(list(mfns), np.int64), np.array(list(mfns.values()), np.int64)))


def content(dump: Dump, guest: Guest) -> dict[int, bytes]:
    """Pages with content among those that the guest has."""
    states = dump.states(guest.ram)
    pfns = [pfn for pfn, state in zip(guest.ram, states, strict=True) if state in (PageState.STORED, PageState.ZERO)]
    return {pfn: row.tobytes() for pfn, row in zip(pfns, dump.read_pages(pfns), strict=True)}


def states_of(dump: Dump, guest: Guest, wanted: PageState) -> set[int]:
    """Pages of the guest that are in a state."""
    return {pfn for pfn, state in zip(guest.ram, dump.states(guest.ram), strict=True) if state is wanted}


def test_every_readable_format_is_in_the_matrix() -> None:
    known = {given.format for given in INPUTS}
    missing = {each.name for each in all_formats()} - known - {"foreign"}
    assert not missing, f"add a builder for {', '.join(missing)} to INPUTS"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Input], Path]:
    folder = tmp_path_factory.mktemp("matrix")

    def build(given: Input) -> Path:
        path = folder / given.name
        if not path.exists():
            path.write_bytes(given.build(given.guest))
        return path

    return build


@pytest.mark.parametrize("given", INPUTS, ids=lambda given: given.name)
def test_inputs_hold_the_guest(built: Callable[[Input], Path], given: Input) -> None:
    with opened(built(given), given) as dump:
        assert dump.format == given.format
        assert dump.space is Space.PHYSICAL
        found = content(dump, given.guest)
        assert [pfn for pfn in given.guest.stored if found.get(pfn) != given.guest.pages[pfn]] == []
        size = dump.pages.page_size
        one_by_one = {pfn: dump.read(pfn * size, size) for pfn in given.guest.stored}
        assert [pfn for pfn, page in one_by_one.items() if page != given.guest.pages[pfn]] == []


@pytest.mark.parametrize("target", [each.name for each in all_formats() if each.writes])
@pytest.mark.parametrize("given", INPUTS, ids=lambda given: given.name)
def test_pair(built: Callable[[Input], Path], tmp_path: Path, given: Input, target: str) -> None:
    guest = given.guest
    out = tmp_path / "out"
    with opened(built(given), given) as dump:
        try:
            report = dumpxlate.convert(dump, out, target, allow_loss=True)
        except dumpxlate.errors.UnsupportedFeatureError as error:
            # Xen's formats hold x86 guests only; anything else must be carried.
            assert target in ("xendump", "xen_core"), error
            assert dump.machine.arch.name not in ("x86_64", "i386"), error
            assert not out.exists()
            return
        before = [dict(cpu.registers) for cpu in dump.cpus]
        arch = dump.machine.arch
        excluded = states_of(dump, guest, PageState.EXCLUDED)
    assert report.pages_out["stored"] + report.pages_out["zero"] >= len(guest.pages)
    with open_dump([out], format="raw" if target == "raw" else None) as again:
        after = again
        if again.space is Space.MACHINE:
            after = opened(out, Input("", target, given.build, guest, mapped=True))
        found = content(after, guest)
        assert [pfn for pfn in guest.stored if found.get(pfn) != guest.pages[pfn]] == []
        if target in ("elf", "kdump"):
            assert states_of(after, guest, PageState.EXCLUDED) == excluded
        if target not in FLAT and given.registers:
            assert len(after.cpus) == len(before)
            seen = after.machine.arch  # xen_core has the 64-bit context for every guest that is not PV
            for cpu, registers in zip(after.cpus, before, strict=True):
                assert cpu.registers[seen.pc] == registers[arch.pc]
                assert cpu.registers[seen.sp] == registers[arch.sp]
        if target in FLAT:
            losses = " ".join(map(str, report.losses))
            assert ("register" in losses) == bool(before), losses


@pytest.mark.parametrize("target", [each.name for each in all_formats() if each.writes])
def test_losses_are_refused_before_a_byte_is_written(
    built: Callable[[Input], Path], tmp_path: Path, target: str
) -> None:
    out = tmp_path / "out"
    given = next(each for each in INPUTS if each.name.startswith("elf-makedumpfile"))
    with opened(built(given), given) as dump:
        try:
            report = dumpxlate.convert(dump, out, target)
        except dumpxlate.errors.LossyConversionError as error:
            assert error.losses
            assert list(tmp_path.iterdir()) == []
        else:
            assert report.losses == ()
            assert target in ("elf", "kdump")
