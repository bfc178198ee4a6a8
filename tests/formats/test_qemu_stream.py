"""Migration streams: real ones against QEMU's own dump of the same stopped guest, every record, whole and broken."""

from __future__ import annotations

import random
import re
import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dumpxlate
from dumpxlate import errors
from dumpxlate.format import OpenOptions, WriteOptions
from dumpxlate.formats.qemu_stream import FORMAT
from dumpxlate.io.source import BytesSource
from dumpxlate.pages import CodecId, PageState
from dumpxlate.qemu.dump import open_stream
from dumpxlate.registry import detect, open_from
from dumpxlate.verify.check import check
from tests.builders import qemu_stream as build
from tests.builders.guest import page
from tests.builders.qemu_stream import block_table, delta, ram, stream, zero

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    from dumpxlate.dump import Dump

    Unpack = Callable[[Path], Path]

TINY = (
    "x64-long", "x64-split", "x64-core", "x64-flat32", "x64-la57", "i386-isapc", "i386-pae", "i386-paging",
    "i386-real", "aarch64", "arm", "ppc64", "s390x",
)  # fmt: skip
RAM = {"pc.ram": 64 * 4096}


def open_bytes(data: bytes, **options: object) -> Dump:
    return open_from([BytesSource(data)], options=OpenOptions(**options))  # type: ignore[arg-type]


def small(*parts: bytes, **more: object) -> bytes:
    return stream(ram(block_table(RAM), *parts), **more)  # type: ignore[arg-type]


def read(dump: Dump, pfn: int) -> bytes:
    return dump.read_pages([pfn])[0].tobytes()


def batch_states(dump: Dump, count: int) -> list[int]:
    from dumpxlate.codecs.batch import read_pages

    states: list[int] = read_pages(dump.pages, np.arange(count), np.zeros((count, 4096), np.uint8)).tolist()
    return states


def noise(seed: int) -> bytes:
    return random.Random(seed).randbytes(4096)


# Real streams.


def same_as_own_dump(path: Path, own: Path) -> Dump:
    """Every page and every run of RAM of QEMU's own dump, no other, and the same registers."""
    dump = dumpxlate.open(path)
    with dumpxlate.open(own) as truth:
        assert [each.tolist() for each in dump.pages.ram.runs()] == [each.tolist() for each in truth.pages.ram.runs()]
        assert dump.pages.stored.count == dump.pages.ram.count
        pfns = truth.pages.stored.select(0, 1 << 40)
        wrong = (dump.read_pages(pfns) != truth.read_pages(pfns)).any(axis=1)
        assert not [hex(pfn) for pfn in pfns[wrong][:8].tolist()]
        assert (dump.machine.arch, dump.machine.endian) == (truth.machine.arch, truth.machine.endian)
        assert len(dump.cpus) == len(truth.cpus)
        for found, expected in zip(dump.cpus, truth.cpus, strict=True):
            # What a stream has no place for (orig_rax, cr1) is zero in QEMU's notes.
            known = {name: found.registers.get(name, 0) for name in expected.registers}
            assert known == dict(expected.registers)
    assert not dump.damage
    return dump


@pytest.mark.parametrize("name", TINY)
def test_tiny_machines_equal_qemus_own_dump(shared: Path, unpacked: Unpack, name: str) -> None:
    folder = shared / "fixtures" / "tiny" / name
    with same_as_own_dump(unpacked(folder / "migrate.stream.xz"), unpacked(folder / "elf.xz")) as dump:
        assert (dump.format, dump.variant) == ("qemu_stream", "migration stream")


@pytest.mark.parametrize(("name", "high"), [("pc", 0), ("q35", 512)])
def test_machines_with_firmware_equal_qemus_own_dump(shared: Path, unpacked: Unpack, name: str, high: int) -> None:
    folder = shared / "fixtures" / "qemu-core" / name
    with same_as_own_dump(unpacked(folder / "migrate.stream.xz"), unpacked(folder / "elf.dump.xz")) as dump:
        pfns = dump.pages.ram.select(0, 1 << 40)
        assert int((pfns >= 1 << 20).sum()) == high
        assert int(((pfns >= 0xFFFC0) & (pfns < 1 << 20)).sum()) == 64  # the firmware


def test_info_tells_what_the_stream_says(sample: Callable[[str], Path]) -> None:
    with dumpxlate.open(sample("qemu_stream/x64-long.stream")) as dump:
        assert dump.attributes["machine"] == "pc-i440fx-7.2"
        assert dump.attributes["ram_below_4g"] == "0x200000"
        assert "/rom@etc/acpi/tables 0x20000 (not in memory)" in str(dump.attributes["ram_blocks"])
        assert [cpu.registers["cr3"] for cpu in dump.cpus] == [0x10000, 0]
        assert dump.cpus[0].registers["efer"] & 0x400


# Records.


def test_records_of_every_kind() -> None:
    changed = bytearray(noise(3))
    changed[0x10:0x13], changed[0x200:0x202] = b"abc", b"de"
    first = delta(3, bytes([0x10, 3]) + b"abc" + bytes([0xED, 0x03, 2]) + b"de")
    records = [
        build.page(0, page(0), "pc.ram"), build.page(1, page(1)), zero(2), build.page(3, noise(3)), first,
        zero(4, fill=0xA5), build.compressed(5, zlib.compress(page(5))), struct.pack(">Q", 0x80), zero(6, "pc.ram"),
    ]  # fmt: skip
    with open_bytes(small(b"".join(records))) as dump:
        expected = [page(0), page(1), bytes(4096), bytes(changed), b"\xa5" * 4096, page(5), bytes(4096)]
        assert [read(dump, pfn) for pfn in range(7)] == expected
        table = dump.pages.locate(np.arange(8))
        assert table.codec.tolist()[5] == CodecId.ZLIB
        assert dump.states([2, 6, 7]) == [PageState.ZERO, PageState.ZERO, PageState.EXCLUDED]
        assert dump.pages.place(table)[:2].tolist() != [-1, -1]
        assert dump.pages.place(table)[3] == -1
        assert any("57 pages" in remark for remark in dump.remarks)  # pages that no record speaks of


def test_the_last_copy_of_a_page_counts() -> None:
    def copies(*numbers: int) -> bytes:
        return b"".join(
            build.page(number, noise(number), None if index else "pc.ram") for index, number in enumerate(numbers)
        )

    rounds = [
        copies(*range(8)),
        build.page(1, page(1), "pc.ram") + zero(2) + build.page(4, page(4)),
        zero(4, "pc.ram") + build.page(2, page(2)) + zero(7),
    ]
    with open_bytes(small(*rounds)) as dump:
        expected = {0: noise(0), 1: page(1), 2: page(2), 3: noise(3), 4: bytes(4096), 7: bytes(4096)}
        assert {pfn: read(dump, pfn) for pfn in expected} == expected
        assert dump.pages.repeated == 6  # type: ignore[attr-defined]


def test_changes_add_up_until_the_page_is_sent_again() -> None:
    def change(number: int, at: int, text: bytes) -> bytes:
        return delta(number, bytes([at, len(text)]) + text, "pc.ram")

    records = [
        build.page(0, bytes(4096), "pc.ram"), change(0, 1, b"one"), change(0, 2, b"two"),
        zero(1, "pc.ram"), change(1, 0, b"lost"), zero(1), change(1, 4, b"kept"),
        build.compressed(2, zlib.compress(page(2))), change(2, 0, b"\1"), change(3, 0, b"nothing before"),
        zero(4), zero(5), zero(6), change(5, 9, b"inside a run"),
    ]  # fmt: skip
    with open_bytes(small(b"".join(records))) as dump:
        assert read(dump, 0)[:6] == b"\0otwo\0"
        assert read(dump, 1) == bytes(4) + b"kept" + bytes(4088)
        assert read(dump, 2) == b"\1" + page(2)[1:]
        assert read(dump, 5)[:22] == bytes(9) + b"inside a run" + b"\0"
        out = np.zeros((1, 4096), np.uint8)
        from dumpxlate.codecs.batch import read_pages

        assert read_pages(dump.pages, np.array([3]), out).tolist() == [PageState.BAD]


@pytest.mark.parametrize("changes", [b"\x10", b"\x80", b"\x00\x05ab", b"\xff\x7f\x01a", b"\x00\x81"])
def test_changes_that_cannot_be_make_a_bad_page(changes: bytes) -> None:
    from dumpxlate.codecs.batch import read_pages

    with open_bytes(small(build.page(0, page(0), "pc.ram") + delta(0, changes) + build.page(1, page(1)))) as dump:
        out = np.zeros((2, 4096), np.uint8)
        assert read_pages(dump.pages, np.arange(2), out).tolist() == [PageState.BAD, PageState.STORED]


def test_changes_to_pages_that_were_never_sent_are_bad() -> None:
    for more, state in (
        (b"", PageState.EXCLUDED),
        (zero(2), PageState.ZERO),
        (build.page(2, page(2)), PageState.STORED),
    ):
        with open_bytes(small(delta(1, b"\x02\x03abc", "pc.ram") + more)) as dump:
            assert batch_states(dump, 3) == [PageState.EXCLUDED, PageState.BAD, state]
            assert check(dump).missing.pages == 1


@pytest.mark.parametrize("seed", range(4))
def test_long_runs_and_short_ones_of_both_kinds(seed: int) -> None:
    """Against a plain loop over the same records: runs of every length, addresses in order and not."""
    rng = random.Random(seed)
    expected: dict[int, bytes] = {}
    out = []
    block: str | None = "pc.ram"
    for _ in range(60):
        start, length, step = rng.randrange(2000), rng.choice((1, 2, 15, 16, 17, 70, 300)), rng.choice((1, 1, 3, -1))
        kind = rng.choice(("page", "zero"))
        for number in (start + index * step for index in range(length)):
            if 0 <= number < 2048:
                content = struct.pack("<Q", rng.getrandbits(64)) * 512 if kind == "page" else bytes(4096)
                out.append(build.page(number, content, block) if kind == "page" else zero(number, block))
                expected[number] = content
                block = "pc.ram" if rng.random() < 0.01 else None
    data = stream(ram(block_table({"pc.ram": 2048 * 4096}), b"".join(out)), machine="pc")
    with open_bytes(data) as dump:
        below = sorted(number for number in expected)
        assert dump.pages.stored.select(0, 1 << 40).tolist() == below
        found = dump.read_pages(below)
        assert not [n for n, row in zip(below, found, strict=True) if row.tobytes() != expected[n]]


def test_several_blocks_lie_where_the_machine_has_them() -> None:
    table = block_table({"pc.ram": 0x100000, "0000:00:02.0/vga.vram": 0x2000, "pc.bios": 0x2000})
    records = zero(0xFF, "pc.ram") + build.page(1, page(7), "pc.bios") + build.page(0, page(8), "0000:00:02.0/vga.vram")
    with open_bytes(stream(ram(table, records))) as dump:
        assert read(dump, 0xFFFFF) == page(7)
        assert dump.states([0xFFFFE, 0xA0, 0xFF]) == [PageState.EXCLUDED, PageState.ABSENT, PageState.ZERO]
        assert any("VGA window" in remark for remark in dump.remarks)


def test_a_block_goes_on_over_the_end_of_a_section() -> None:
    with open_bytes(small(build.page(0, page(0), "pc.ram"), build.page(1, page(1)))) as dump:
        assert read(dump, 1) == page(1)


# The table, sections, devices.


def cpu(*, long: bool, instance: int = 0) -> build.Device:
    registers = b"".join(struct.pack(">Q", 0x100 + number) for number in range(16))
    fields = [
        ("env.regs", registers, 8), ("env.eip", struct.pack(">Q", 0xFFFFFFFF81000000), 8),
        ("env.cr[3]", struct.pack(">Q", 0x1000), 8), ("env.efer", struct.pack(">Q", 0x500 if long else 0), 8),
    ]  # fmt: skip
    return ("cpu", instance, fields)


def cmos(above: int, below: int = 0) -> build.Device:
    data = bytearray(128)
    data[0x30:0x32] = min(max(below - (1 << 20), 0) >> 10, 0xFFFF).to_bytes(2, "little")
    data[0x34:0x36] = (max(below - (16 << 20), 0) >> 16).to_bytes(2, "little")
    data[0x5B:0x5E] = (above >> 16).to_bytes(3, "little")
    return ("mc146818rtc", 0, [("cmos_data", bytes(data), 128)])


def bridge(*pam: int) -> build.Device:
    config = bytearray(256)
    config[0x59:0x60] = bytes(pam)
    return ("0000:00:00.0/I440FX", 0, [("version_id", b"\0\0\0\2", 4), ("config[0]", bytes(config), 256)])


def test_registers_are_read_by_their_description() -> None:
    with open_bytes(small(zero(0, "pc.ram"), devices=[cpu(long=True), cpu(long=True, instance=1)])) as dump:
        assert dump.machine.arch.name == "x86_64"
        assert [cpu.index for cpu in dump.cpus] == [0, 1]
        found = dump.cpus[0].registers
        assert (found["rax"], found["rcx"], found["rdx"], found["rbx"], found["rsp"]) == (
            0x100,
            0x101,
            0x102,
            0x103,
            0x104,
        )
        assert (found["rip"], found["cr3"], found["r15"]) == (0xFFFFFFFF81000000, 0x1000, 0x10F)
    with open_bytes(small(zero(0, "pc.ram"), devices=[cpu(long=False)])) as dump:
        assert dump.machine.arch.name == "i386"
        assert dump.cpus[0].registers["ebx"] == 0x103
    with open_bytes(small(zero(0, "pc.ram"))) as dump:
        assert not dump.cpus
        assert any("registers are not read" in remark for remark in dump.remarks)


def test_the_chipset_says_where_memory_is_split_and_what_hides_what() -> None:
    table = block_table({"pc.ram": 0x200000, "pc.rom": 0x20000})
    records = build.page(0xC0, page(0xC0), "pc.ram") + build.page(0x100, page(0x100)) + build.page(0, page(1), "pc.rom")
    devices = [cmos(0x100000), bridge(0, 0, 0, 0, 0, 0, 0)]
    with open_bytes(stream(ram(table, records), devices=devices)) as dump:
        assert read(dump, 0xC0) == page(1)
        assert read(dump, 0x100000) == page(0x100)
    with open_bytes(stream(ram(table, records), devices=[cmos(0x100000), bridge(0, 3, 0, 0, 0, 0, 0)])) as dump:
        assert read(dump, 0xC0) == page(0xC0)
    with open_bytes(stream(ram(table, records), devices=devices), ram_below_4g=0x200000) as dump:
        assert dump.pages.stored.stop == 0x101


def test_the_chipset_is_read_without_a_description_too() -> None:
    table = block_table({"pc.ram": 0x200000})
    whole = stream(ram(table, build.page(0x100, page(7), "pc.ram")), devices=[cpu(long=True), cmos(0x100000)])
    with open_bytes(whole[: -len(build.vmdescription([cpu(long=True), cmos(0x100000)]))]) as dump:
        assert read(dump, 0x100000) == page(7)
        assert not dump.cpus
        assert any("registers are not read" in remark for remark in dump.remarks)


def screen(*, command: int, bar: int, misc: int, vbe: int) -> list[build.Device]:
    """A screen of two states, as virtio-vga has: the configuration in one, the registers in the other."""
    config = bytearray(256)
    struct.pack_into("<I", config, 4, command)
    struct.pack_into("<II", config, 0x10, bar & 0xFFFFFFFF | 0xC, bar >> 32)
    graphics = bytes([0, 0, 0, 0, 0, 0, misc]).ljust(16, b"\0")
    registers = [("vga/sr", bytes(8), 8), ("vga/gr", graphics, 16), ("vga/bank_offset", bytes([0, 0, 0x10, 0]), 4)]
    modes = b"".join(struct.pack(">H", value) for value in (0xB0C5, 0, 0, 0, vbe))
    return [
        ("0000:00:01.0/virtio-gpu", 0, [("virtio", b"\0\0\0\2" + bytes(config), 260)]),
        ("0000:00:01.0/virtio-vga", 0, [*registers, ("vga/vbe_regs", modes, 2)]),
    ]


def card(name: str, command: int, bars: tuple[int, ...], place: str = "0000:00:02.0") -> build.Device:
    """A PCI device with memory bars, which are set or not."""
    config = bytearray(256)
    struct.pack_into(f"<{len(bars)}I", config, 0x10, *bars)
    config[4] = command
    return (f"{place}/{name}", 0, [("version_id", b"\0\0\0\2", 4), ("config[0]", bytes(config), 256)])


@pytest.mark.parametrize("kind", ["ivshmem", "ivshmem-plain", "ivshmem-doorbell"])
def test_memory_that_guests_share_is_seen_behind_its_bar(kind: str) -> None:
    name = "0000:00:02.0/any"
    table = block_table({**RAM, name: 0x2000})
    data = ram(table, build.page(0, page(0), "pc.ram") + build.page(1, page(7), name))
    with open_bytes(stream(data, devices=[card(kind, 7, (0, 0, 0xFEA0000C, 0))])) as dump:
        assert read(dump, 0xFEA01) == page(7)
        assert not any("memory of devices" in remark for remark in dump.remarks)
    with open_bytes(stream(data, devices=[card(kind, 5, (0, 0, 0xFEA0000C, 0))])) as dump:
        assert dump.pages.ram.stop == 64
        assert not any("memory of devices" in remark for remark in dump.remarks)
    for devices in ([card("new", 7, (0, 0, 0xFEA0000C, 0))], [card(kind, 7, (0, 0, 0xC001, 0))], []):
        with open_bytes(stream(data, devices=devices)) as dump:
            assert dump.pages.ram.stop == 64
            assert any(
                f"memory of devices is left out, since its address is not known: {name}" in each
                for each in dump.remarks
            )


BAR = 0xFD000008  # that of memory of which parts may be fetched ahead


@pytest.mark.parametrize("place", ["0000:00:02.0", "0000:00:02.0:00.0", "0000:00:01.0:00.0:01.7"])
@pytest.mark.parametrize(("kind", "block"), [("bochs-display", "bochs-display-vram"), ("vga", "vga.vram")])
def test_screens_are_seen_behind_bridges_too(kind: str, block: str, place: str) -> None:
    name = f"{place}/{block}"
    table = block_table({**RAM, name: 0x2000})
    records, devices = build.page(0, page(0), "pc.ram") + build.page(1, page(7), name), [card(kind, 7, (BAR,), place)]
    for each in (stream(ram(table, records), devices=devices), old(table, records, *devices)):
        with open_bytes(each) as dump:
            assert read(dump, BAR >> 12 | 1) == page(7)


def test_empty_blocks_lie_nowhere() -> None:
    names = ("pc.bios", "pc.rom", "0000:00:02.0/any", "0000:00:02.0/any.rom", "isa-bios", "dimm0")
    table = block_table({**dict.fromkeys(names, 0), **RAM})
    devices = [card("ivshmem", 7, (0, 0, 0xFEA0000C, 0)), bridge(*[0] * 7)]
    with open_bytes(stream(ram(table, build.page(0, page(0), "pc.ram")), devices=devices)) as dump:
        assert dump.pages.ram.count == 64


@pytest.mark.parametrize(("misc", "seen", "count"), [(0, 0xA0, 32), (4, 0xA0, 16), (8, 0xB0, 8), (12, 0xB8, 8)])
def test_a_screen_is_seen_behind_its_bar_and_in_the_vga_window(misc: int, seen: int, count: int) -> None:
    name, first = "0000:00:01.0/vga.vram", 1 if misc == 4 else 0
    records = zero(0, "pc.ram") + b"".join(build.page(number, page(number), name) for number in range(40))
    table = block_table({"pc.ram": 0x100000, name: 0x40000})
    bar = 0x8_0000_0000
    with open_bytes(stream(ram(table, records), devices=screen(command=7, bar=bar, misc=misc, vbe=1))) as dump:
        assert read(dump, (bar >> 12) + 39) == page(39)
        assert read(dump, seen) == page(first)
        window = np.flatnonzero(dump.pages.ram.contains(np.arange(0xA0, 0xC0))) + 0xA0
        assert window.tolist() == list(range(seen, seen + count))
    with open_bytes(stream(ram(table, records), devices=screen(command=0, bar=bar, misc=misc, vbe=0))) as dump:
        assert dump.pages.ram.stop == 0x100
        assert dump.states([seen]) == [PageState.ABSENT]


@pytest.mark.parametrize("footers", [True, False])
def test_streams_of_old_qemus_have_neither_configuration_nor_footers(footers: bool) -> None:
    data = stream(ram(block_table(RAM), build.page(0, page(0), "pc.ram"), footers=footers), machine=None)
    with open_bytes(data) as dump:
        assert read(dump, 0) == page(0)
        assert dump.attributes["machine"] == "unknown"
        assert any("names no type" in remark for remark in dump.remarks)


def test_a_stream_without_footers_says_calmly_that_registers_are_not_read() -> None:
    records = build.page(0, page(0), "pc.ram")
    data = stream(ram(TABLE, records, footers=False), machine=None, devices=[cpu(long=True)])
    with open_bytes(data.replace(build.footer(100), b"")) as dump:
        assert not dump.damage
        assert "machine types before 2.4" in dump.remarks[0]
        assert "registers are not read" in dump.remarks[1]
        assert not any("defect" in remark for remark in dump.remarks)


def old(table: bytes, records: bytes, *devices: build.Device) -> bytes:
    """A stream of a machine type before 2.4: neither a type nor footers nor a description."""
    data = stream(ram(table, records, footers=False), machine=None, devices=devices)
    for number in range(len(devices)):
        data = data.replace(build.footer(100 + number), b"")
    return data[: -len(build.vmdescription(devices))]


def screen_card(place: str = "0000:00:02.0") -> build.Device:
    config = bytearray(256)
    config[4], config[0x0B] = 7, 3
    struct.pack_into("<I", config, 0x10, 0xFD000008)
    return (f"{place}/vga", 0, [("pci", b"\0\0\0\2" + bytes(config), 260), ("registers", bytes(99), 99)])


@pytest.mark.parametrize("before", [10, (1 << 20) - 200, (1 << 20) - 30, (1 << 20) - 10, 3 << 20])
def test_without_footers_what_tells_where_memory_lies_is_found(before: int) -> None:
    table = block_table({"pc.ram": 0x200000, "pc.rom": 0x20000, "vga.vram": 0x4000})
    records = build.page(0x100, page(0x100), "pc.ram") + build.page(0, page(1), "pc.rom")
    records += build.page(3, page(9), "vga.vram")
    timer: build.Device = ("timer", 0, [("ticks", b"\x04mc146818rtc" + bytes(before), 1)])
    with open_bytes(old(table, records, timer, cmos(0x100000), bridge(*[0] * 7), screen_card())) as dump:
        assert read(dump, 0x100000) == page(0x100)
        assert read(dump, 0xC0) == page(1)
        assert read(dump, 0xFD003) == page(9)
        assert "but for what tells where memory lies" in dump.remarks[0]
        assert not dump.damage
    twice = old(table, records, screen_card(), screen_card("0000:00:03.0"), ("cut", 0, [("x", bytes(9), 1)]))
    for data in (old(table, records, timer), twice, twice[: twice.index(b"0000:00:02.0") + 100]):
        with open_bytes(data) as dump:
            assert any("memory of devices is left out" in remark for remark in dump.remarks)


def test_a_large_machine_of_no_known_type_is_refused() -> None:
    def large(size: int, *devices: build.Device) -> bytes:
        return old(block_table({"pc.ram": size}), build.page(0x90000, page(7), "pc.ram"), *devices)

    with pytest.raises(errors.UnsupportedFeatureError, match="say --machine-type pc"):
        open_bytes(large(0xB0000000))
    with open_bytes(large(0xAFF00000)) as dump:
        assert read(dump, 0x90000) == page(7)
    with open_bytes(large(0xB0000000), machine="q35") as dump:
        assert read(dump, 0x110000) == page(7)
    with open_bytes(large(0xB0000000), ram_below_4g=0x80000000) as dump:
        assert read(dump, 0x110000) == page(7)
    with open_bytes(large(0xB0000000, cmos(0x30000000))) as dump:
        assert read(dump, 0x110000) == page(7)


def test_what_capabilities_put_into_the_table_is_passed_over() -> None:
    extras = {
        "pc.ram": struct.pack(">QQ", 0x200000, 0), "pc.rom": struct.pack(">Q", 0xC0000),
        "pc.bios": struct.pack(">QQ", 0x1000, 0xFFFE0000),
    }  # fmt: skip
    table = block_table({"pc.ram": 0x100000, "pc.rom": 0x1000, "pc.bios": 0x1000}, extras)
    with open_bytes(stream(ram(table, build.page(9, page(9), "pc.ram")))) as dump:
        assert read(dump, 9) == page(9)


def test_sections_that_are_not_understood_are_passed_over_by_their_footers() -> None:
    odd = b"\x7e" + struct.pack(">I", 5) + b"no section follows" + b"\x02" + struct.pack(">I", 9)
    before = build.begin(5, "dirty-bitmap", 1, odd) + build.footer(5)
    between = b"\x02" + struct.pack(">I", 5) + odd * 3 + build.footer(5)
    whole = ram(block_table(RAM), build.page(0, page(0), "pc.ram"))
    cut = whole.index(b"\x03" + struct.pack(">I", 2))
    command = b"\x08" + struct.pack(">HH", 3, 2) + b"\x01\x02"
    with open_bytes(stream(before + whole[:cut] + between + command + whole[cut:], devices=[cpu(long=True)])) as dump:
        assert read(dump, 0) == page(0)
        assert dump.cpus
        assert not dump.damage


def test_pages_that_went_over_other_connections_are_damage() -> None:
    with open_bytes(small(struct.pack(">Q", 0x200))) as dump:
        assert "64 pages went over other connections (multifd)" in dump.damage[0]


@pytest.mark.parametrize("records", [b"", zero(0, "pc.ram") + zero(1)])
def test_pages_that_went_over_other_connections_without_a_mark_are_damage(records: bytes) -> None:
    with open_bytes(small(records, b"")) as dump:
        assert re.search(r"6[24] pages went over other connections \(multifd\)", dump.damage[0])
        assert check(dump).missing.pages == 64 - records.count(b"pc.ram") * 2
        assert not any("leaves out" in remark for remark in dump.remarks)


@pytest.mark.parametrize(
    ("records", "more", "why"),
    [
        (zero(0, "pc.ram"), {"subsections": [build.capabilities("x-ignore-shared")]}, "shared memory"),
        (build.page(0, page(0), "pc.ram"), {}, "called free"),
        (zero(0, "pc.ram") + zero(1, fill=7), {}, "called free"),
    ],
)
def test_pages_that_qemu_leaves_out_are_a_remark(records: bytes, more: dict[str, object], why: str) -> None:
    with open_bytes(small(records, **more)) as dump:
        assert not dump.damage
        assert any(why in remark for remark in dump.remarks)


def test_memory_that_was_plugged_in_is_damage() -> None:
    with open_bytes(stream(ram(block_table({**RAM, "/objects/dimm1": 0x1000}), GOOD))) as dump:
        assert dump.damage == ("memory beside pc.ram is left out, since its address is not known: /objects/dimm1",)


@pytest.mark.parametrize(("mib", "above"), [(2, 0), (20, 0), (2, 16), (20, 16)])
def test_the_cmos_tells_a_plugged_dimm_from_the_machines_memory(mib: int, above: int) -> None:
    table = block_table({"a": 3 << 20, "b": mib + above << 20})
    records = build.page(1, page(1), "b") + build.page(1, page(2), "a")
    with open_bytes(stream(ram(table, records), devices=[cmos(above << 20, mib << 20)])) as dump:
        assert read(dump, 1) == page(1)
        assert dump.damage == ("memory beside b is left out, since its address is not known: a",)
        assert dump.pages.ram.stop == ((0x100000 + above * 256) if above else mib * 256)


# mapped-ram.


@pytest.mark.parametrize("before", [0, 65536])
def test_mapped_ram(before: int) -> None:
    held = {"pc.ram": {number: page(number) for number in (0, 1, 2, 9, 63, 64, 99)}, "pc.bios": {1: page(500)}}
    data = build.mapped_ram(held, {"pc.ram": 100 * 4096, "pc.bios": 0x2000}, before=before)
    with open_bytes(data) as dump:
        assert read(dump, 0) == page(0)
        assert {pfn: read(dump, pfn) for pfn in held["pc.ram"]} == held["pc.ram"]
        assert read(dump, 0xFFFFF) == page(500)
        assert dump.states([3, 0xFFFFE]) == [PageState.ZERO, PageState.ZERO]
        assert dump.pages.stored.count == 102
        assert not dump.damage


def test_a_mapped_ram_file_that_is_cut_keeps_the_pages_before() -> None:
    from dumpxlate.codecs.batch import read_pages

    data = build.mapped_ram({"pc.ram": {number: page(number) for number in range(64)}}, {"pc.ram": 64 * 4096})
    with open_bytes(data[: (1 << 20) + 9 * 4096 + 7]) as dump:
        assert "pages behind it are missing" in dump.damage[0]
        out = np.zeros((12, 4096), np.uint8)
        states = read_pages(dump.pages, np.arange(12), out)
        assert states.tolist() == [PageState.STORED] * 9 + [PageState.BAD] * 3
        assert out[:9].tobytes() == b"".join(page(number) for number in range(9))


@pytest.mark.parametrize("before", [0, 65536])
@pytest.mark.parametrize(
    "lies", [{"page_size": 8192}, {"pages": 1 << 50}, {"pages": 0}, {"bitmap": 0}, {"bitmap": 1 << 60}, {"bitmap": 257}]
)
def test_mapped_ram_that_contradicts_itself_is_read_by_what_stands_behind(lies: dict[str, int], before: int) -> None:
    held = {"pc.ram": {number: page(number) for number in (0, 5, 63)}, "pc.bios": {1: page(500)}}
    data = build.mapped_ram(held, {"pc.ram": 64 * 4096, "pc.bios": 0x2000}, lies=lies, before=before, liar="pc.ram")
    with open_bytes(data) as dump:
        assert "mapped-ram header at 0x" in dump.damage[0]
        assert {pfn: read(dump, pfn) for pfn in held["pc.ram"]} == held["pc.ram"]
        assert read(dump, 0xFFFFF) == page(500)
    cut = data[: (1 << 20) - before + 30 * 4096]
    if lies == {"bitmap": 257}:
        return  # it makes sense as long as nothing stands behind the pages
    with pytest.raises(errors.CorruptDumpError, match="mapped-ram header"):
        open_bytes(cut)


def test_mapped_ram_of_another_version_is_refused() -> None:
    with pytest.raises(errors.CorruptDumpError, match="mapped-ram header at"):
        open_bytes(build.mapped_ram({"pc.ram": {0: page(0)}}, {"pc.ram": 64 * 4096}, lies={"version": 2}))


@pytest.mark.parametrize("rest", [0, 3, 20, 4000])
def test_a_mapped_ram_file_that_is_cut_in_its_second_block_keeps_the_first(rest: int) -> None:
    data = build.mapped_ram(
        {"pc.ram": {0: page(0), 63: page(63)}, "pc.bios": {1: page(9)}}, {"pc.ram": 64 * 4096, "pc.bios": 0x2000}
    )
    with open_bytes(data[: (1 << 20) + 64 * 4096 + rest]) as dump:
        assert "pages behind it are missing" in dump.damage[0]
        assert (read(dump, 0), read(dump, 63)) == (page(0), page(63))
        assert check(dump).missing.pages == (0 if rest < 20 else 2)


# Snapshots in qcow2 images.


def test_a_snapshot_in_an_image() -> None:
    body = small(b"".join([build.page(0, page(0), "pc.ram"), *(build.page(n, page(n)) for n in range(1, 60))]))
    with open_bytes(build.qcow2({"before": body}, bits=12)) as dump:
        assert dump.variant == "snapshot 'before' in a qcow2 image"
        assert dump.attributes["snapshot_taken"] == "2023-11-14T22:13:20+00:00"
        assert [read(dump, pfn) for pfn in range(60)] == [page(pfn) for pfn in range(60)]


def test_one_of_several_snapshots_is_chosen_by_name_or_number() -> None:
    image = build.qcow2({name: small(build.page(0, page(number), "pc.ram")) for number, name in enumerate("ab")})
    with open_bytes(image, snapshot="a") as dump:
        assert read(dump, 0) == page(0)
    with open_bytes(image, snapshot="2") as dump:
        assert read(dump, 0) == page(1)
    with pytest.raises(errors.UnsupportedFeatureError, match=re.escape("--snapshot NAME, by name or id: a (id 1), b")):
        open_bytes(image)
    with pytest.raises(errors.UnsupportedFeatureError, match="0 snapshots are called 'c'"):
        open_bytes(image, snapshot="c")
    with pytest.raises(errors.UnsupportedFeatureError, match="without memory"):
        open_bytes(build.qcow2({}))
    with pytest.raises(errors.UnsupportedFeatureError, match="no qcow2 image"):
        open_bytes(small(zero(0, "pc.ram")), snapshot="a")


def test_what_a_file_does_not_say_is_said_on_the_command_line(
    cli: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    def body(machine: str) -> bytes:
        return stream(ram(block_table({"pc.ram": 0x200000}), build.page(0x180, page(3), "pc.ram")), machine=machine)

    (tmp_path / "disk.qcow2").write_bytes(build.qcow2({name: body("own-board") for name in "ab"}))
    assert "--snapshot NAME" in cli("info", "disk.qcow2").stderr
    assert "--machine-type" in cli("info", "disk.qcow2", "--snapshot", "a").stderr
    how = ("--snapshot", "b", "--machine-type", "q35", "--ram-below-4g", "1M")
    done = cli("read", "disk.qcow2", "0x100080000", "8", *how, "--hex")
    assert done.stdout.split()[1:3] == ["03", "00"]
    shown = cli("info", "disk.qcow2", *how).stdout
    assert "snapshot 'b' in a qcow2 image" in shown
    assert "0x100000000" in shown


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"lies": {"version": 4}}, "version 4"),
        ({"lies": {"crypt": 1}}, "encrypted"),
        ({"lies": {"incompatible": 4}}, "file of their own"),
        ({"lies": {"incompatible": 16}}, "subclusters"),
        ({"lies": {"bits": 40}}, r"clusters of 2\^40"),
        ({"lies": {"snapshots": 1 << 30}}, "1073741824 snapshots"),
        ({"lies": {"snapshots": 60000}}, "truncated|without"),
        ({"lies": {"snapshot_table": 1 << 60}}, "truncated"),
        ({"flags": 1 << 62}, "compressed clusters"),
        ({"flags": 1 << 50}, "cluster at"),
    ],
)
def test_images_that_are_not_read(more: dict[str, object], error: str) -> None:
    image = build.qcow2({"one": small(zero(0, "pc.ram"))}, **more)  # type: ignore[arg-type]
    with pytest.raises((errors.UnsupportedFeatureError, errors.CorruptDumpError), match=error):
        open_bytes(image)


def test_an_image_that_is_cut_gives_what_is_in_its_clusters() -> None:
    numbers = range(200)
    body = small(build.page(0, page(0), "pc.ram") + b"".join(build.page(n, page(n)) for n in numbers[1:64]))
    image = bytearray(build.qcow2({"one": body}))
    cluster, order = 1 << 16, [image.index(body[at : at + 256]) for at in range(0, len(body) - 256, 1 << 16)]
    gone = 2
    entry = image.index(struct.pack(">Q", 1 << 63 | order[gone]))
    image[entry : entry + 8] = struct.pack(">Q", 1 << 63 | len(image) + cluster)
    with open_bytes(bytes(image)) as dump:
        whole = {n for n in range(64) if not (gone - 1) * cluster - 9000 < body.index(page(n)) < (gone + 1) * cluster}
        states = {n: PageState(s) for n, s in enumerate(batch_states(dump, 64))}
        assert "65,536 bytes of the stream are missing" in dump.damage[0]
        assert all(states[n] == PageState.STORED and read(dump, n) == page(n) for n in whole)
        inside = [n for n in range(64) if gone * cluster - 4096 < body.index(page(n)) < (gone + 1) * cluster]
        assert len(inside) in (16, 17)
        assert all(states[n] in (PageState.BAD, PageState.EXCLUDED) for n in inside)
        assert check(dump).missing.pages == len(inside)


# Broken streams.

TABLE = block_table(RAM)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (stream(ram(TABLE), version=2), "version 2: version 3 is known"),
        (stream(ram(TABLE, version=3)), "RAM section of version 3"),
        (stream(b""), "without a RAM section"),
        (stream(ram(block_table(RAM, total=0x1000))), "leaves the 0x1000 bytes"),
        (stream(ram(block_table({"a": 0x1000}) + b"")).replace(b"\x01a", b"\x01\xff"), "expected a block's name"),
        (stream(ram(build.word(4))), "expected the size of all blocks"),
        (stream(ram(block_table({"a": 1 << 60}, total=0x1000))), "in one block|leaves"),
        (stream(ram(TABLE), machine="x" * 300), "machine type of 300 bytes"),
        (stream(ram(TABLE), subsections=[build.subsection("configuration/new", b"")]), "configuration/new"),
        (stream(ram(TABLE), subsections=[build.subsection("configuration/target-page-bits", b"\0\0\0\x40")]), "2.64"),
        (stream(ram(TABLE), machine="sun4m"), "of type sun4m"),
        (b"QEVM", "truncated"),
    ],
)
def test_headers_that_cannot_be(data: bytes, error: str) -> None:
    with pytest.raises(errors.FormatError, match=error):
        open_bytes(data)


GOOD = build.page(0, page(0), "pc.ram")


@pytest.mark.parametrize(
    ("records", "error"),
    [
        (build.page(0, page(0)), "none was named yet"),
        (GOOD + build.page(64, page(1)), r"address 0x40000 in a block of 0x40000 bytes"),
        (GOOD + zero(1 << 40), "in a block of"),
        (GOOD + b"".join(zero(number) for number in range(1, 100)), "address 0x40000"),
        (GOOD + build.page(0, page(0), "pc.rom"), r"block b'pc.rom'"),
        (GOOD + build.word(0x400 | 0x20), "flags 0x420"),
        (GOOD + build.word(0x48), "flags 0x48"),
        (GOOD + delta(0, b"\0\1a", encoding=2), "encoding 2"),
        (GOOD + build.record(build.COMPRESS, 0, None, struct.pack(">I", 1 << 30)), "for one page"),
    ],
)
def test_records_that_cannot_be_are_damage(records: bytes, error: str) -> None:
    with open_bytes(small(records)) as dump:
        assert re.search(error, dump.damage[0])
        assert re.search("pages behind it are missing|bytes up to 0x.* are passed over", dump.damage[0])
        if records is not GOOD and records.startswith(GOOD):
            assert read(dump, 0) == page(0)


def test_a_stream_that_is_cut_is_damaged_wherever_it_is_cut() -> None:
    whole = small(GOOD + build.page(1, page(1)) + zero(2), zero(3), devices=[cpu(long=True)])
    ends = whole.index(b"\x03" + struct.pack(">I", 2)) + 5 + 9 + 8
    first = whole.index(page(0)[:64])
    for at in range(first, ends, 97):
        with open_bytes(whole[:at]) as dump:
            assert dump.damage
    with open_bytes(whole[: ends + 40]) as dump:
        assert not dump.damage
        assert not dump.cpus


EVERY = build.page(0, page(0), "pc.ram") + b"".join(zero(number) for number in range(1, 64))


def test_a_background_snapshot_has_no_end_of_ram_but_each_page() -> None:
    devices = [cpu(long=True), cmos(0), cpu(long=True, instance=1)]
    whole = stream(ram(TABLE, EVERY[: -5 * 9], EVERY[-5 * 9 :], last=2), devices=devices)
    with open_bytes(whole) as dump:
        assert not dump.damage
        assert dump.cpus[0].registers["rax"] == 0x100
        assert any("background snapshot" in remark for remark in dump.remarks)
    broken = whole.replace(b"\x04" + struct.pack(">I", 102), b"\x0c" + struct.pack(">I", 102))
    with open_bytes(broken) as dump:
        assert not dump.damage
        assert any("read up to a defect" in remark for remark in dump.remarks)


@pytest.mark.parametrize(
    ("parts", "devices", "damage"),
    [
        ((EVERY[:-9],), True, "and 1 pages are not in it"),
        ((EVERY, zero(0)), True, "newer pages may be missing"),
        ((EVERY,), False, "ends before its RAM does"),
    ],
)
def test_what_is_no_background_snapshot_is_damaged_without_an_end(
    parts: tuple[bytes, ...], devices: bool, damage: str
) -> None:
    with open_bytes(stream(ram(TABLE, *parts, last=2), devices=[cpu(long=True)] if devices else [])) as dump:
        assert damage in dump.damage[0]
        assert len(dump.cpus) == devices


@pytest.mark.parametrize(
    ("footer", "damage"), [(build.footer(9), "of section 9, expected 2"), (b"", "missing for section 2")]
)
def test_a_wrong_footer_behind_the_last_pages_is_damage_and_what_follows_is_read(footer: bytes, damage: str) -> None:
    whole = small(GOOD, zero(1), devices=[cpu(long=True), cpu(long=True, instance=1)])
    at = whole.rindex(build.footer(2))
    with open_bytes(whole[:at] + footer + whole[at + 5 :]) as dump:
        assert len(dump.damage) == 1
        assert f"section footer at {at:#x}: {damage}" in dump.damage[0]
        assert len(dump.cpus) == 2
        assert read(dump, 0) == page(0)


def test_damage_stops_a_conversion_unless_it_is_told_to_salvage(tmp_path: Path) -> None:
    (tmp_path / "cut").write_bytes(small(GOOD + build.page(1, page(1)))[:6000])
    with dumpxlate.open(tmp_path / "cut") as dump:
        with pytest.raises(errors.CorruptDumpError, match="--salvage"):
            dumpxlate.convert(dump, tmp_path / "out")
        dumpxlate.convert(dump, tmp_path / "out", salvage=True)
    with dumpxlate.open(tmp_path / "out") as dump:
        assert read(dump, 0) == page(0)


def test_a_description_that_is_none_costs_only_the_registers() -> None:
    whole = small(GOOD, devices=[cpu(long=True)])
    for broken in (
        whole.replace(b'"devices"', b'"device_"'),
        whole[:-1] + b"x",
        whole.replace(b"instance_id", b"x" * 11),
    ):
        with open_bytes(broken) as dump:
            assert read(dump, 0) == page(0)
            assert any("description" in remark for remark in dump.remarks)
    deep = small(GOOD)[: -len(build.vmdescription([]))] + b"\x06" + struct.pack(">I", 100000) + b"[" * 100000
    with open_bytes(deep) as dump:
        assert not dump.damage


# Hostile streams end in typed errors, quickly, and whatever is left can be read.


def survive(data: bytes) -> None:
    try:
        dump = open_bytes(data, snapshot="one" if data[:3] == b"QFI" else None)
    except errors.DumpxlateError:
        return
    with dump:
        pfns = dump.pages.stored.select(0, 64)
        assert dump.read_pages(pfns).shape == (len(pfns), 4096)


SEEDS = (
    small(
        GOOD + build.page(1, noise(1)) + zero(2) + delta(1, b"\x02\x03abc"), zero(3) + zero(4),
        devices=[cpu(long=True), cmos(0)],
    ),
    build.mapped_ram({"pc.ram": {1: page(1), 5: page(5)}}, {"pc.ram": 64 * 4096}),
    build.qcow2({"one": small(GOOD + zero(1))}, bits=9),
)  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_changed_streams_end_in_typed_errors(data: st.DataObject) -> None:
    whole = bytearray(data.draw(st.sampled_from(SEEDS)))
    holes = [at for at, byte in enumerate(whole) if byte] or [0]
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.sampled_from(holes))
        whole[at : at + 1] = data.draw(st.binary(min_size=0, max_size=9))
    survive(bytes(whole[: data.draw(st.integers(0, len(whole)))] if data.draw(st.booleans()) else whole))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4095), st.integers(0, 70), st.binary(max_size=12)), max_size=12))
def test_records_of_all_flags_end_in_typed_errors(records: list[tuple[int, int, bytes]]) -> None:
    body = b"".join(build.word(number * 4096 | flags) + payload for flags, number, payload in records)
    survive(small(GOOD + body))


# What the format says of itself.


def test_detection_and_writing() -> None:
    for data in SEEDS:
        assert detect(BytesSource(data))[0] is FORMAT
    assert FORMAT.detect(BytesSource(b"QEV")) is None
    with pytest.raises(errors.UnsupportedFeatureError, match="read, not written"):
        FORMAT.writer(None, WriteOptions())  # type: ignore[arg-type]


def test_the_source_is_the_callers_until_the_dump_is_made() -> None:
    with pytest.raises(errors.CorruptDumpError, match="begins with 00"):
        open_stream(BytesSource(bytes(64)), format="qemu_stream", variant="")
