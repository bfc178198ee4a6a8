"""Cores of QEMU processes: what QEMU's structures say, what the looks of RAM blocks say, and what is missing."""

from __future__ import annotations

import dataclasses
import json
import lzma
import re
import struct
from typing import TYPE_CHECKING, Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dumpxlate
from dumpxlate import errors
from dumpxlate.elf.debug_files import open_debug_info
from dumpxlate.format import Confidence, OpenOptions
from dumpxlate.formats.qemu_core import FORMAT
from dumpxlate.io.source import BytesSource, open_source
from dumpxlate.pages import PageState
from dumpxlate.qemu.hints import QemuHints, RamHint
from dumpxlate.qemu.profile import Profile
from dumpxlate.registry import detect, open_dump, open_from
from tests.builders import dwarf, elf, elf_cores, qemu_core
from tests.builders.elf_notes import note, vmcoreinfo
from tests.builders.guest import VMCOREINFO, page, small_guest
from tests.builders.qemu_core import Block, Core, Range, Region
from tests.conftest import ROOT

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    from dumpxlate.dump import Dump

    Cli = Callable[..., subprocess.CompletedProcess[str]]

GUEST = small_guest(excluded=())
SPLIT = ("-m", "1", "-machine", "q35,accel=tcg,max-ram-below-4g=2M")
PAGE = 4096
HOSTS = [(64, "<", True), (64, ">", True), (64, "<", False), (32, "<", False), (32, ">", False)]


@pytest.fixture
def known(tmp_path: Path) -> Callable[[Core], OpenOptions]:
    """Options that name a core's profile."""

    def write(core: Core) -> OpenOptions:
        path = tmp_path / "profile.json"
        path.write_text(json.dumps(core.profile))
        return OpenOptions(qemu=QemuHints(profile=str(path)))

    return write


def test_a_profile_does_not_become_the_output(known: Callable[[Core], OpenOptions], tmp_path: Path) -> None:
    core = qemu_core.build(GUEST)
    (tmp_path / "core").write_bytes(core.data)
    options = known(core)
    with dumpxlate.open(tmp_path / "core", options=options) as dump:
        assert dump.files == (str(tmp_path / "core"), str(tmp_path / "profile.json"))
        with pytest.raises(errors.OutputError, match="is the input itself"):
            dumpxlate.convert(dump, tmp_path / "profile.json", overwrite=True)


def opened(core: Core | bytes, options: OpenOptions | None = None) -> Dump:
    return open_from([BytesSource(core if isinstance(core, bytes) else core.data, "core")], options=options)


def holds(dump: Dump, guest: Any = GUEST) -> bool:
    rows = dump.read_pages(guest.ram)
    return all(row.tobytes() == guest.pages[pfn] for pfn, row in zip(guest.ram, rows, strict=True))


def ram_of(dump: Dump) -> list[tuple[int, int]]:
    start, count = dump.pages.ram.runs()
    return list(zip(start.tolist(), count.tolist(), strict=True))


class TestDetection:
    def test_beats_elf(self) -> None:
        source = BytesSource(qemu_core.build(GUEST).data)
        found, match = detect(source)
        assert (found.name, match.confidence) == ("qemu_core", Confidence.SPECIFIC)
        assert match.detail == "core of qemu-system-x86"

    @pytest.mark.parametrize(
        ("program", "wanted"),
        [
            ("qemu-kvm", True),
            ("kvm", True),
            ("qemu-system-s390x", True),
            ("bash", False),
            ("qemu-img", False),
            ("qemu-ga", False),
        ],
    )
    def test_by_name(self, program: str, wanted: bool) -> None:
        assert (FORMAT.detect(BytesSource(qemu_core.build(GUEST, program=program).data)) is not None) == wanted

    def test_renamed_process(self) -> None:
        """-name process= renames the process; its program is still mapped."""
        data = qemu_core.build(GUEST).data.replace(b"qemu-system-x86\0", b"my-guest-number\0")
        assert FORMAT.detect(BytesSource(data)) is not None

    def test_without_its_name(self) -> None:
        """NT_PRPSINFO is lost; NT_FILE still names the program."""
        data = bytearray(qemu_core.build(GUEST, words=SPLIT).data)
        at = data.index(struct.pack("<3I", 5, 136, 3) + b"CORE\0")
        data[at + 8 : at + 12] = struct.pack("<I", 0x1234)
        found, match = detect(BytesSource(bytes(data)))
        assert (found.name, match.detail) == ("qemu_core", "core of qemu-system-x86_64")
        dump = opened(bytes(data))
        assert holds(dump)
        assert dump.attributes["program"] == "qemu-system-x86_64"
        assert dump.variant.startswith("core of qemu-system-x86_64, ")

    def test_notes_last(self) -> None:
        """Cores made by gdb have the header of their notes last."""
        core = qemu_core.build(GUEST, words=SPLIT, notes_last=True)
        assert holds(opened(core))

    @pytest.mark.parametrize("style", sorted(elf_cores.STYLES))
    def test_dumps_of_guests_are_left_alone(self, style: str) -> None:
        assert FORMAT.detect(BytesSource(elf_cores.core(GUEST, style))) is None

    def test_any_cut_is_no_crash(self) -> None:
        data = qemu_core.build(GUEST).data
        for size in (0, 3, 4, 17, 18, 40, 63, 64, 100, 200, 500, 700):
            FORMAT.detect(BytesSource(data[:size]))

    def test_inside_a_container(self, tmp_path: Path) -> None:
        path = tmp_path / "core.qemu-system-x86.xz"
        path.write_bytes(lzma.compress(qemu_core.build(GUEST, words=SPLIT).data, preset=0))
        with open_dump([path]) as dump:
            assert dump.format == "qemu_core"
            assert holds(dump)


class TestStructures:
    @pytest.mark.parametrize("release", qemu_core.RELEASES)
    @pytest.mark.parametrize(("bits", "order", "native"), HOSTS)
    def test_pages_of_every_release(
        self, known: Callable[[Core], OpenOptions], release: str, bits: int, order: str, native: bool
    ) -> None:
        core = qemu_core.build(GUEST, release=release, bits=bits, order=order, native=native)
        dump = opened(core, known(core))
        assert holds(dump)
        assert dump.pages.ram.count == len(GUEST.ram)
        assert dump.damage == ()
        assert dump.attributes["ram_blocks"] == "pc.ram 0x240000, /rom@etc/acpi/tables 0x2000"

    def test_pages_are_read_where_they_lie(self, known: Callable[[Core], OpenOptions]) -> None:
        core = qemu_core.build(GUEST)
        dump = opened(core, known(core))
        table = dump.pages.locate(np.array([7], np.int64))
        at = int(dump.pages.place(table)[0])
        assert core.data[at : at + PAGE] == GUEST.pages[7]

    def test_aliases(self, known: Callable[[Core], OpenOptions]) -> None:
        block = Block("pc.ram", b"".join(page(pfn) for pfn in range(32)))
        region = Region(block)
        for _ in range(3):
            region = Region(alias=region, alias_offset=2 * PAGE)
        core = qemu_core.build(GUEST, blocks=[block], ranges=[Range(0x100000, 4 * PAGE, region, offset=PAGE)])
        dump = opened(core, known(core))
        assert ram_of(dump) == [(0x100, 4)]
        assert dump.read(0x100000, PAGE) == page(7)

    @pytest.mark.parametrize("release", ["2.0", "2.4"])
    def test_aliases_by_ram_address(self, known: Callable[[Core], OpenOptions], release: str) -> None:
        blocks = [Block("pc.ram", bytes(8 * PAGE)), Block("vga.vram", b"".join(page(pfn) for pfn in range(8)))]
        region = Region(alias=Region(blocks[1]), alias_offset=3 * PAGE)
        core = qemu_core.build(GUEST, release=release, blocks=blocks, ranges=[Range(0, PAGE, region)])
        assert opened(core, known(core)).read(0, PAGE) == page(3)

    @pytest.mark.parametrize(
        ("release", "flag"), [("2.4", "skip_dump"), ("2.6", "skip_dump"), ("7.2", "ram_device"), ("7.2", "nonvolatile")]
    )
    def test_what_qemu_leaves_out(self, known: Callable[[Core], OpenOptions], release: str, flag: str) -> None:
        block = Block("pc.ram", bytes(64 * PAGE))
        ranges = [
            Range(0, 8 * PAGE, Region(block)),
            Range(0x10000, 8 * PAGE, Region(block, flags={flag: 1})),
            Range(0x20000, 8 * PAGE, Region(block, ram=0)),
        ]
        core = qemu_core.build(GUEST, release=release, blocks=[block], ranges=ranges)
        assert ram_of(opened(core, known(core))) == [(0, 8)]

    def test_ranges_smaller_than_a_page(self, known: Callable[[Core], OpenOptions]) -> None:
        block = Block("pc.ram", b"".join(page(pfn) for pfn in range(8)))
        region = Region(block)
        ranges = [Range(0, PAGE + 0x200, region), Range(PAGE + 0x400, 0x100, region, 0x2400)]
        core = qemu_core.build(GUEST, blocks=[block], ranges=ranges)
        dump = opened(core, known(core))
        assert dump.read(PAGE, 0x200) == page(1)[:0x200]
        assert dump.read(PAGE + 0x400, 0x100) == page(2)[0x400:0x500]
        assert dump.read(PAGE + 0x200, 0x200) == bytes(0x200)

    def test_same_from_debug_information(self, known: Callable[[Core], OpenOptions], tmp_path: Path) -> None:
        """The numbers of a profile put into debug information give the same profile again."""
        core = qemu_core.build(GUEST)
        path = tmp_path / "qemu.debug"
        path.write_bytes(debug_file(core.profile))
        options = OpenOptions(qemu=QemuHints(debug_file=str(path)))
        assert holds(opened(core, options))
        options = OpenOptions(qemu=QemuHints(binary=str(path)))
        assert holds(opened(core, options))
        assert ram_of(opened(core, options)) == ram_of(opened(core, known(core)))


def debug_file(profile: dict[str, Any], *, build_id: bytes = qemu_core.BUILD_ID) -> bytes:
    """Debug information that says what a profile says; 128-bit numbers as structures, as old compilers have them."""
    number = dwarf.base("uint64_t", 8)
    wide = dwarf.structure("Int128", 16, dwarf.member("lo", 0, number), dwarf.member("hi", 8, number))
    kinds: dict[int, Any] = {8: number, 16: wide}
    groups: dict[str, dict[str, Any]] = {}
    for path, (offset, size) in profile["places"].items():
        struct_name, _, name = path.partition(".")
        groups.setdefault(struct_name, {})[name] = (offset, size)
    env = groups.pop("env")
    dies = [number, wide]
    at = min(offset for offset, _ in env.values())
    cpu = {name: (offset - at, size) for name, (offset, size) in env.items()}
    for name, fields in (*groups.items(), ("CPUX86State", cpu)):
        members = []
        inner: dict[str, list[Any]] = {}
        for field, (offset, size) in fields.items():
            if size not in kinds:
                kinds[size] = dwarf.base(f"bytes{size}", min(size, 255)) if size < 256 else text(size, dies)
                dies.append(kinds[size])
            first, dot, rest = field.partition(".")
            kind = wide if name == "FlatRange" and dot else kinds[size]
            if dot:
                inner.setdefault(first, []).append(dwarf.member(rest, offset, kind))
            else:
                members.append(dwarf.member(field, offset, kind))
        for first, parts in inner.items():
            nested = dwarf.structure(None, 64, *parts)
            dies.append(nested)
            members.append(dwarf.member(first, 0, nested))
        dies.append(dwarf.structure(name, profile["sizes"].get(name, 1024), *members))
    state = dies[-1]
    dies.append(dwarf.structure("X86CPU", 4096, dwarf.member("env", at, state)))
    symbols = {name: int(value, 16) for name, value in profile["addresses"].items()}
    return dwarf.elf_file(dwarf.build([dies]), entry=int(profile["entry"], 16), build_id=build_id, symbols=symbols)


def text(size: int, dies: list[Any]) -> Any:
    char = dwarf.base("char", 1)
    dies.append(char)
    return dwarf.Die("array", [("type", "ref4", char)], [dwarf.Die("subrange", [("upper_bound", "data2", size - 1)])])


class TestLooks:
    @pytest.mark.parametrize("release", qemu_core.RELEASES)
    @pytest.mark.parametrize("order", ["<", ">"])
    def test_split_memory_of_every_release(self, release: str, order: str) -> None:
        dump = opened(qemu_core.build(GUEST, release=release, order=order, words=SPLIT))
        assert holds(dump)
        assert ram_of(dump) == [(0, 0x200), (1 << 20, 0x40)]
        assert dump.attributes["board"] == "q35"
        assert "inferred" in dump.variant
        assert any("type q35 (its command line)" in remark for remark in dump.remarks)

    def test_user_knows_better(self) -> None:
        core = qemu_core.build(GUEST, words=SPLIT)
        dump = opened(core, OpenOptions(machine="pc", ram_below_4g=0x100000))
        assert dump.attributes["board"] == "pc"
        assert ram_of(dump) == [(0, 0x100), (1 << 20, 0x140)]
        assert any("(--machine-type)" in remark for remark in dump.remarks)

    def test_without_a_stack(self) -> None:
        assert ram_of(opened(qemu_core.build(GUEST, words=SPLIT, stack=False))) == [(0, 0x200), (1 << 20, 0x40)]
        dump = opened(qemu_core.build(GUEST, words=("-S", "x" * 40, *SPLIT), stack=False))  # cut in -machine's value
        assert ram_of(dump) == [(0, 0x240)]
        assert any("type pc (pc and q35 are alike" in remark for remark in dump.remarks)

    def test_large_memory_needs_the_type_of_the_machine(self) -> None:
        hints = OpenOptions(machine="q35")
        data = large_core()
        with pytest.raises(errors.UnsupportedFeatureError, match=r"say --machine-type pc-i440fx-1\.7, pc or q35"):
            opened(data)
        assert ram_of(opened(data, hints)) == [(0, 0x80000), (1 << 20, 0x40000)]

    def test_default_of_the_command_line(self) -> None:
        for name in ("qemu-system-x86_64", "qemu-system-i386"):
            dump = opened(qemu_core.build(GUEST, program=name))
            assert any("type pc (assumed as QEMU's default, since" in remark for remark in dump.remarks)

    @pytest.mark.parametrize(
        ("program", "words"),
        [
            ("qemu-kvm", ()),
            ("qemu-system-x86_64-microvm", ()),
            ("qemu-system-x86_64", ("-readconfig", "vm.cfg")),
            ("qemu-system-i386", ("--readconfig", "vm.cfg")),
        ],
    )
    def test_other_defaults(self, program: str, words: tuple[str, ...]) -> None:
        """Another machine than pc is possible where none is named."""
        dump = opened(qemu_core.build(GUEST, program=program, words=words))
        assert any("type pc (pc and q35 are alike" in remark for remark in dump.remarks)
        with pytest.raises(errors.UnsupportedFeatureError, match=r"say --machine-type pc-i440fx-1\.7, pc or q35"):
            opened(large_core(program=program, words=words, stack=True))

    def test_microvm(self) -> None:
        blocks = [Block("microvm.ram", page(1) * 512), Block("pc.bios", page(2) * 16)]
        core = qemu_core.build(GUEST, blocks=blocks, ranges=[], program="qemu-system-x86_64-microvm")
        dump = opened(core)
        assert dump.attributes["board"] == "microvm"
        assert any("type microvm (the names of the blocks)" in remark for remark in dump.remarks)

    def test_nothing_but_memory(self) -> None:
        """What coredump_filter leaves where it keeps shared mappings only; the guard page behind it is no memory."""
        memory = b"".join(page(pfn) for pfn in range(512))
        loads = [writable(0x7F0000000000, memory), elf.Segment(data=b"", vaddr=0x7F0000200000, memsz=PAGE, flags=0)]
        dump = opened(nothing_but([*loads, writable(0x7F1000000000, bytes(PAGE))]))
        assert ram_of(dump) == [(0, 512)]
        assert dump.read(7 * PAGE, PAGE) == page(7)
        assert any("found by size alone" in remark for remark in dump.remarks)
        assert any("only shared memory is in the core: what the guest had beside it" in each for each in dump.remarks)

    @pytest.mark.parametrize(
        "loads",
        [
            pytest.param([(0x7F0000000000, 64 << 20, 64 << 20, 6)], id="area of malloc"),
            pytest.param([(0x7F0000200000, 8 << 20, 8 << 20, 6), (0x7F1000000000, 9 << 20, 9 << 20, 6)], id="stacks"),
            pytest.param([(0x7F0000200000, 8 << 20, 8 << 20, 7)], id="code"),
            pytest.param([(0x7F0000200000, 8 << 20, 8 << 20, 4)], id="read-only"),
            pytest.param([(0x7F0000200000, 2 << 20, 8 << 20, 6)], id="not all there"),
            pytest.param([((1 << 64) - (9 << 20), 8 << 20, 8 << 20, 6)], id="no address"),
            pytest.param([(0x7F0000200000, (8 << 20) + PAGE, (8 << 20) + PAGE, 6)], id="no whole MiB"),
            pytest.param([(0x7F0000200000, 2 << 20, 2 << 20, 6), (0x7F0000400000, 6 << 20, 6 << 20, 0)], id="reserved"),
        ],
    )
    def test_rather_nothing_than_a_guess(self, loads: list[tuple[int, int, int, int]]) -> None:
        if loads[-1][3] == 0:  # a heap is there, too
            loads = [*loads, (0x555600000000, 2 << 20, 2 << 20, 6)]
        segments = [elf.Segment(data=bytes(held), vaddr=at, memsz=size, flags=flags) for at, held, size, flags in loads]
        with pytest.raises(errors.UnsupportedFeatureError, match="no RAM block is found by its looks"):
            opened(nothing_but(segments))

    @pytest.mark.parametrize("release", qemu_core.RELEASES)
    def test_memory_that_gdb_left_out(self, release: str) -> None:
        """dump-guest-core=off: gdb lists no such mapping, and what is largest then is malloc's."""
        blocks = [Block(name, bytes(4 * PAGE), listed=False) for name in ("pc.ram", "pc.bios")]
        area = writable(0x7F1E5C000000, bytes(4 << 20))
        core = qemu_core.build(GUEST, release=release, blocks=blocks, ranges=[], more=[area])
        with pytest.raises(errors.UnsupportedFeatureError, match=r"no guest memory: 32,768 .*dump-guest-core=on"):
            opened(core)

    @pytest.mark.parametrize(("file", "advice"), [("/memfd:r (deleted)", "bit 1"), ("/dev/shm/ram", "bits 2 and 3")])
    def test_files_that_gdb_left_out(self, file: str, advice: str) -> None:
        blocks = [Block("ram", bytes(4 * PAGE), listed=False, file=file), Block("pc.bios", page(7) * 4)]
        dump = opened(qemu_core.build(GUEST, blocks=blocks, ranges=[]))
        (said,) = dump.damage
        assert said.startswith("16,384 bytes of guest memory are not in the core")
        assert advice in said
        assert dump.read((1 << 32) - PAGE, PAGE) == page(7)

    def test_memory_that_was_plugged_in(self, tmp_path: Path) -> None:
        """Where a DIMM lies is not in the blocks; what has no name is memory of a device."""
        blocks = [Block("pc.ram", page(1) * 16), Block("dimm0", page(2) * 8), Block("", page(3) * 8)]
        blocks += [Block("pc.bios", page(4) * 16), Block("/rom@etc/acpi/tables", bytes(PAGE))]
        dump = opened(qemu_core.build(GUEST, blocks=blocks, ranges=[]))
        (said,) = dump.damage
        assert said.startswith("memory beside pc.ram is left out, since its address is not known: dimm0; debug")
        assert ram_of(dump) == [(0, 16), (0xFFFF0, 16)]
        with pytest.raises(errors.DumpxlateError, match="dimm0"):
            dumpxlate.convert(dump, tmp_path / "out", "elf")

    def test_memory_of_devices_is_none(self) -> None:
        blocks = [Block("ram0", page(1) * 16), Block("", page(3) * 8)]
        dump = opened(qemu_core.build(GUEST, blocks=[*blocks, Block("pc.bios", page(4) * 16)], ranges=[]))
        assert ram_of(dump) == [(0, 16), (0xFFFF0, 16)]
        assert dump.damage == ()

    @pytest.mark.parametrize("size", ["1", "size=1M,slots=2,maxmem=4G", "1024k"])
    def test_the_command_line_says_how_much_memory_there_was(self, size: str) -> None:
        """Two backends of any names are NUMA nodes if they have that size together; else one may be a DIMM."""
        blocks = [Block("mem0", bytes(0x80000)), Block("mem1", page(9) * 128), Block("pc.bios", page(4) * 16)]
        core = qemu_core.build(GUEST, blocks=blocks, ranges=[], words=("-M", "q35", "-m", size))
        dump = opened(core)
        assert dump.damage == ()
        assert dump.read(0x80000, PAGE) == page(9)
        (said,) = opened(qemu_core.build(GUEST, blocks=blocks, ranges=[], words=("-M", "q35"))).damage
        assert "whether these are NUMA nodes or DIMMs that were plugged in is not told" in said

    def test_block_that_nothing_leads_to(self) -> None:
        """A block that was freed: no mapping, and no neighbour knows it."""
        blocks = [Block("pc.ram", bytes(4 * PAGE), listed=False)]
        core = qemu_core.build(GUEST, blocks=blocks, ranges=[])
        data = core.data.replace(struct.pack("<Q", blocks[0].at), bytes(8))
        with pytest.raises(errors.UnsupportedFeatureError, match="no RAM block is found by its looks"):
            opened(data)

    @pytest.mark.parametrize("length", [1 << 48, 1 << 61, (1 << 63) - PAGE, (1 << 64) - PAGE])
    def test_blocks_of_absurd_lengths(self, length: int) -> None:
        """Sums of them would leave 64 bits; the list leads to them although nothing is mapped there."""
        blocks = [
            Block("pc.ram", bytes(4 * PAGE)),
            *(Block(f"ram{n}", bytes(5 * PAGE), listed=False) for n in range(9)),
        ]
        core = qemu_core.build(GUEST, blocks=blocks, ranges=[])
        data = core.data.replace(struct.pack("<2Q", 5 * PAGE, 5 * PAGE), struct.pack("<2Q", length, length))
        (said,) = opened(data).damage
        assert "where none is, behind 'pc.ram': others may be missing" in said

    def test_list_in_a_circle(self) -> None:
        blocks = [Block(name, bytes(4 * PAGE)) for name in ("pc.ram", "pc.rom", "pc.bios")]
        core = qemu_core.build(GUEST, blocks=blocks, ranges=[])
        first, second = (struct.pack("<Q", each.at) for each in blocks[:2])
        (said,) = opened(core.data.replace(second, first)).damage
        assert said == "the list of RAM blocks leads back into itself, behind 'pc.ram': others may be missing"

    def test_list_that_is_broken(self) -> None:
        blocks = [Block(name, bytes(4 * PAGE)) for name in ("pc.ram", "pc.rom", "pc.bios")]
        core = qemu_core.build(GUEST, blocks=blocks, ranges=[])
        data = core.data.replace(struct.pack("<Q", blocks[1].at), struct.pack("<Q", 0x1000))
        assert any("the list of RAM blocks ends at host address 0x1000" in each for each in opened(data).damage)
        data = core.data.replace(struct.pack("<Q", blocks[0].at), struct.pack("<Q", 0x1000))
        assert any("the list of RAM blocks does not lead to the block" in each for each in opened(data).damage)

    def test_long_command_lines(self) -> None:
        words = (*("-device", "x" * 500) * 200, "-M", "virt,gic-version=3", "-append", "-machine q35")
        block = Block("mach-virt.ram", b"".join(page(pfn) for pfn in range(16)))
        core = qemu_core.build(GUEST, blocks=[block], ranges=[], words=words, program="qemu-system-aarch64")
        dump = opened(core)
        assert ram_of(dump) == [(0x40000, 16)]
        assert dump.machine.arch.name == "aarch64"
        assert dump.read(0x40000000, PAGE) == page(0)

    def test_behind_the_vga_window_is_no_memory(self) -> None:
        blocks = [Block("vga.vram", bytes(PAGE)), Block("pc.ram", bytes(0x200000))]
        dump = opened(qemu_core.build(GUEST, blocks=blocks, ranges=[]))
        assert ram_of(dump) == [(0, 0xA0), (0xC0, 0x140)]

    def test_first_block_need_not_be_found_first(self) -> None:
        blocks = [Block(f"ram-node{node}", page(node) * 16) for node in (1, 0)] + [Block("pc.bios", page(7) * 16)]
        dump = opened(qemu_core.build(GUEST, blocks=blocks, ranges=[]))
        assert dump.read(0, PAGE) == page(0)
        assert dump.read(16 * PAGE, PAGE) == page(1)
        assert dump.read((1 << 32) - PAGE, PAGE) == page(7)

    def test_names_alone_are_no_blocks(self) -> None:
        block = Block("backend", b"pc.ram\0".ljust(64, b"\0") * 1000)
        with pytest.raises(errors.UnsupportedFeatureError, match=r"--debug-file.*--profile.*--ram-block"):
            opened(qemu_core.build(GUEST, blocks=[block], ranges=[]))

    def test_memory_by_hand(self) -> None:
        core = qemu_core.build(GUEST)
        hints = QemuHints(ram=tuple(RamHint(*each) for each in core.ranges))
        dump = opened(core, OpenOptions(qemu=hints))
        assert holds(dump)
        assert dump.variant.endswith("as given by hand")

    @pytest.mark.parametrize(
        ("start", "length", "says"),
        [
            (0x1000, PAGE, r"host address 0x1000 \(--ram-block\) is in no mapping that the core lists"),
            (None, 1 << 30, r"the mapping at host address 0x7f\w+ \(--ram-block\) ends at 0x7f"),
        ],
    )
    def test_hand_that_errs(self, start: int | None, length: int, says: str) -> None:
        core = qemu_core.build(GUEST)
        (_, _, host), *_ = core.ranges
        hints = (RamHint(0, PAGE, host), RamHint(1 << 32, length, host if start is None else start))
        (said,) = opened(core, OpenOptions(qemu=QemuHints(ram=hints))).damage
        assert re.search(says, said)
        assert "dump-guest-core" not in said

    def test_hand_that_says_it_twice(self) -> None:
        core = qemu_core.build(GUEST)
        (_, _, host), *_ = core.ranges
        hints = (RamHint(0, 4 * PAGE, host), RamHint(3 * PAGE, 2 * PAGE, host))
        assert opened(core, OpenOptions(qemu=QemuHints(ram=hints))).damage == (
            "ranges of memory overlap in 4,096 bytes, first at 0x3000: only one of them is kept",
        )

    @pytest.mark.parametrize("bad", [(0, 0, 0), (-1, 1, 0), (0, 1 << 63, 0), (1 << 62, 1, 0)])
    def test_hand_of_nonsense(self, bad: tuple[int, int, int]) -> None:
        with pytest.raises(ValueError, match="cannot be"):
            RamHint(*bad)


class TestMissing:
    def test_all_of_it(self, known: Callable[[Core], OpenOptions]) -> None:
        core = qemu_core.build(GUEST, blocks=[block := Block("pc.ram", bytes(0x10000), mapped=False)], ranges=[
            Range(0, 0x10000, Region(block))
        ])  # fmt: skip
        for options in (known(core), OpenOptions()):
            with pytest.raises(errors.UnsupportedFeatureError, match=r"no guest memory.*dump-guest-core=on"):
                opened(core, options)

    @pytest.mark.parametrize(
        ("file", "advice"),
        [
            ("", "dump-guest-core=on"),
            ("/dev/hugepages/ram (deleted)", "bits 5 and 6"),
            ("/memfd:pc.ram (deleted)", "bit 1"),
            ("/dev/shm/ram0", "bits 2 and 3"),
        ],
    )
    def test_some_of_it(self, known: Callable[[Core], OpenOptions], tmp_path: Path, file: str, advice: str) -> None:
        blocks = [Block("ram0", page(1) * 8), Block("ram1", bytes(8 * PAGE), mapped=False, file=file)]
        ranges = [Range(0, 8 * PAGE, Region(blocks[0])), Range(8 * PAGE, 8 * PAGE, Region(blocks[1]))]
        core = qemu_core.build(GUEST, blocks=blocks, ranges=ranges)
        dump = opened(core, known(core))
        assert len(dump.damage) == 1
        assert "32,768 bytes of guest memory are not in the core" in dump.damage[0]
        assert advice in dump.damage[0]
        assert dump.states([7, 8]) == [PageState.STORED, PageState.EXCLUDED]
        with pytest.raises(errors.DumpxlateError, match="not in the core"):
            dumpxlate.convert(dump, tmp_path / "out", "elf")
        assert not (tmp_path / "out").exists()
        options = known(core)
        zero = opened(core, OpenOptions(qemu=options.qemu, missing="zero"))
        assert zero.states([8]) == [PageState.ZERO]
        assert any("taken for zero (--missing zero): 32,768 bytes" in each for each in zero.remarks)
        dumpxlate.convert(zero, tmp_path / "out", "elf")
        with open_dump([tmp_path / "out"]) as written:
            assert [written.read(0, PAGE), written.read(8 * PAGE, PAGE)] == [page(1), bytes(PAGE)]

    def test_not_mapped_at_all(self, known: Callable[[Core], OpenOptions]) -> None:
        """gdb leaves mappings out that it does not write."""
        blocks = [Block("ram0", page(1) * 8), Block("ram1", bytes(8 * PAGE))]
        ranges = [Range(0, 8 * PAGE, Region(blocks[0])), Range(8 * PAGE, 8 * PAGE, Region(blocks[1]))]
        core = qemu_core.build(GUEST, blocks=blocks, ranges=ranges)
        at = core.data.index(struct.pack("<Q", blocks[1].host)) - 16  # its program header
        data = bytearray(core.data)
        data[at : at + 4] = struct.pack("<I", 0)  # PT_NULL
        (said,) = opened(bytes(data), known(core)).damage
        assert "not listed" in said

    def test_truncated(self, known: Callable[[Core], OpenOptions]) -> None:
        core = qemu_core.build(GUEST, stack=False)
        data = core.data[: -0x40 * PAGE]
        (said,) = opened(data, known(core)).damage
        assert said.startswith("truncated: ")
        assert "ulimit -c" in said
        zero = opened(data, dataclasses.replace(known(core), missing="zero"))
        assert zero.damage == (said,)  # not left out, but lost
        assert zero.pages.lost.count

    def test_truncated_before_notes_at_the_end(self, cli: Cli, tmp_path: Path) -> None:
        """Cores made by gdb have their notes last: nothing tells then that the process was QEMU."""
        data, at = notes_behind_memory(qemu_core.build(GUEST, words=SPLIT).data)
        assert holds(opened(data))
        (tmp_path / "core").write_bytes(data[:at])
        done = cli("info", "core")
        assert done.returncode == 5
        assert "truncated: the notes end at" in done.stderr
        assert "--from qemu_core" in done.stderr
        with open_dump([tmp_path / "core"], format="qemu_core") as dump:
            assert dump.read(7 * PAGE, PAGE) == GUEST.pages[7]
            assert "a program whose name is lost" in dump.variant
            assert any("notes lie outside the file" in remark for remark in dump.remarks)

    def test_truncated_in_its_notes(self) -> None:
        data = qemu_core.build(GUEST).data
        first = data.index(b"CORE\0")
        with pytest.raises(errors.CorruptDumpError, match=r"truncated: the notes end at.*--from qemu_core"):
            opened(data[: first + 100])
        named = data.index(b"qemu-system-x86\0")
        with pytest.raises(errors.UnsupportedFeatureError, match=r"truncated: .* beyond its end.*ulimit -c"):
            opened(data[: named + 200])

    def test_holes_of_a_sparse_core_are_zero(self, known: Callable[[Core], OpenOptions], tmp_path: Path) -> None:
        size = 64 << 20
        block = Block("pc.ram", bytes(size))
        core = qemu_core.build(GUEST, blocks=[block], ranges=[Range(0, size, Region(block))], stack=False)
        path = tmp_path / "core"
        with path.open("wb") as file:
            file.write(core.data[:-size])
            file.seek(9 << 20, 1)
            file.write(page(9 << 8))
            file.truncate(len(core.data))
        with open_dump([path], options=known(core)) as dump:
            states = dump.states([0, 9 << 8, 1 << 13])
            assert dump.read(9 << 20, PAGE) == page(9 << 8)
            assert dump.pages.stored.count == size // PAGE
        assert states == [PageState.ZERO, PageState.STORED, PageState.ZERO]


class TestProcessors:
    def registers(self, **more: int) -> dict[str, int]:
        values = {f"regs[{number}]": 0x1000 + number for number in range(16)}
        values |= {"eip": 0xFFFFFFFF81000000, "eflags": 0x246, "efer": 0xD01, "cr[0]": 0x80050033, "cr[3]": 0x2A000}
        return values | more

    def test_registers(self, known: Callable[[Core], OpenOptions]) -> None:
        core = qemu_core.build(GUEST, registers=[self.registers(), self.registers(eip=0x77)])
        dump = opened(core, known(core))
        assert [cpu.index for cpu in dump.cpus] == [0, 1]
        found = dump.cpus[0].registers
        assert (found["rip"], found["rflags"], found["cr3"]) == (0xFFFFFFFF81000000, 0x246, 0x2A000)
        names = [
            "rax",
            "rcx",
            "rdx",
            "rbx",
            "rsp",
            "rbp",
            "rsi",
            "rdi",
            "r8",
            "r9",
            "r10",
            "r11",
            "r12",
            "r13",
            "r14",
            "r15",
        ]
        assert [found[name] for name in names] == [0x1000 + number for number in range(16)]
        assert dump.cpus[1].registers["rip"] == 0x77
        assert dump.machine.arch.name == "x86_64"
        assert not any("stale" in remark for remark in dump.remarks)

    def test_segments(self, known: Callable[[Core], OpenOptions]) -> None:
        core = qemu_core.build(
            GUEST, registers=[{"segs[3]": 0x10, "segs[4]": 0xF0000, "segs[5]": 0x9B00 << 32 | 0xFFFF}]
        )
        found = opened(core, known(core)).cpus[0].registers
        assert [found[name] for name in ("cs", "cs_base", "cs_limit", "cs_flags")] == [0x10, 0xF0000, 0xFFFF, 0x9B00]

    def test_first_processor_tells_the_mode(self, known: Callable[[Core], OpenOptions]) -> None:
        core = qemu_core.build(GUEST, registers=[self.registers(efer=0, eip=0xFFF0)])
        dump = opened(core, known(core))
        assert dump.machine.arch.name == "i386"
        assert dump.cpus[0].registers["eip"] == 0xFFF0

    def other(self, known: Callable[[Core], OpenOptions], name: str, **values: int) -> Dump:
        """A core of a machine of another architecture, opened."""
        rows = {key.replace("_of_", "[") + "]" if "_of_" in key else key: value for key, value in values.items()}
        core = qemu_core.build(GUEST, program=f"qemu-system-{name}", processor=name, registers=[rows] * 2)
        dump = opened(core, known(core))
        assert len(dump.cpus) == 2
        return dump

    def test_aarch64(self, known: Callable[[Core], OpenOptions]) -> None:
        rows = {f"xregs_of_{number}": 0xFFFF000000000000 + number for number in range(32)}
        flags = {"NF": 1 << 31, "ZF": 5, "CF": 1, "VF": 1 << 31, "daif": 0x3C0, "btype": 2, "pstate": 0x5}
        dump = self.other(known, "aarch64", aarch64=1, pc=0xFFFF800010000000, **rows, **flags)
        found = dump.cpus[0].registers
        assert dump.machine.arch.name == "aarch64"
        assert [found[f"x{number}"] for number in range(31)] == [0xFFFF000000000000 + number for number in range(31)]
        assert (found["sp"], found["pc"], found["pstate"]) == (0xFFFF00000000001F, 0xFFFF800010000000, 0xB0000BC5)
        assert not any("registers are not read" in remark for remark in dump.remarks)
        assert set(found) == set(dump.machine.arch.prstatus.fields)

    def test_aarch64_in_32_bit_code(self, known: Callable[[Core], OpenOptions]) -> None:
        rows = {f"regs_of_{number}": 0x100 + number for number in range(16)}
        flags = {"NF": 0x7FFFFFFF, "ZF": 0, "CF": 1, "QF": 1, "GE": 0xA, "thumb": 1, "condexec_bits": 0xFD}
        dump = self.other(known, "aarch64", **rows, **flags, daif=0x3C0, uncached_cpsr=0x13)
        found = dump.cpus[0].registers
        assert dump.machine.arch.name == "arm"
        assert [found[f"r{number}"] for number in range(16)] == [0x100 + number for number in range(16)]
        # Z, C, Q, IT[1:0] 1, GE, IT[7:2], A I F, T, mode svc
        assert found["cpsr"] == 0x6000_0000 | 1 << 27 | 1 << 25 | 0xA << 16 | 0xFC00 | 0x1C0 | 0x20 | 0x13

    def test_ppc64(self, known: Callable[[Core], OpenOptions]) -> None:
        rows = {f"gpr_of_{number}": 0xC000000000000000 + number for number in range(32)} | {
            "crf_of_0": 8,
            "crf_of_7": 2,
        }
        more = {"so": 1, "ca": 1, "xer": 0x40, "spr_of_18": 0x42000000, "spr_of_19": 0xDA7A}
        dump = self.other(known, "ppc64", nip=0xC000000000001000, msr=0x8000000000000001, lr=7, ctr=8, **rows, **more)
        found = dump.cpus[0].registers
        assert (dump.machine.arch.name, dump.machine.endian) == ("ppc64", "<")
        assert [found[f"gpr{number}"] for number in range(32)] == [0xC000000000000000 + number for number in range(32)]
        names = ("nip", "msr", "link", "ctr", "xer", "ccr", "dsisr", "dar")
        wanted = [0xC000000000001000, 0x8000000000000001, 7, 8, 0xA0000040, 0x80000002, 0x42000000, 0xDA7A]
        assert [found[name] for name in names] == wanted
        assert self.other(known, "ppc64", msr=0x8000000000000000).machine.endian == ">"

    def test_s390x(self, known: Callable[[Core], OpenOptions]) -> None:
        rows = {f"regs_of_{number}": 1 << 40 | number for number in range(16)}
        rows |= {f"aregs_of_{number}": number for number in range(16)}
        mask = {"psw.mask": 0x0404C00180000000, "psw.addr": 0x12345678}
        dump = self.other(known, "s390x", **rows, **mask)
        found = dump.cpus[1].registers
        assert (dump.machine.arch.name, dump.machine.endian) == ("s390x", ">")
        assert [found[f"gpr{number}"] for number in range(16)] == [1 << 40 | number for number in range(16)]
        assert [found[f"acr{number}"] for number in range(16)] == list(range(16))
        assert (found["psw_mask"], found["psw_addr"]) == (0x0404C00180000000, 0x12345678)

    def test_riscv64(self, known: Callable[[Core], OpenOptions]) -> None:
        rows = {f"gpr_of_{number}": number << 32 for number in range(32)}
        found = self.other(known, "riscv64", pc=0xFFFFFFFF80000000, **rows).cpus[0].registers
        assert (found["pc"], found["ra"], found["sp"], found["a0"]) == (0xFFFFFFFF80000000, 1 << 32, 2 << 32, 10 << 32)
        assert found["t6"] == 31 << 32
        assert len(found) == 32

    @pytest.mark.parametrize("name", list(qemu_core.PROCESSORS))
    def test_registers_from_debug_information(self, name: str, tmp_path: Path) -> None:
        """What is looked up is what is needed: a profile of debug information has the same registers."""
        core = qemu_core.build(GUEST, program=f"qemu-system-{name}", processor=name)
        path = tmp_path / "qemu.debug"
        path.write_bytes(debug_file(core.profile))
        with open_debug_info(path) as info:
            found = Profile.from_debug_info(info, "x").places
        rows = {path: [place.offset, place.size] for path, place in found.items() if path.startswith("env.")}
        wanted = {path: row for path, row in core.profile["places"].items() if path.startswith("env.")}
        unused = {"env.pad", "env.gprh", "env.load_res"}
        assert rows == ({} if name == "loongarch64" else {path: wanted[path] for path in wanted.keys() - unused})

    def test_registers_of_an_unknown_architecture_are_a_loss(
        self, known: Callable[[Core], OpenOptions], tmp_path: Path
    ) -> None:
        core = qemu_core.build(GUEST, program="qemu-system-loongarch64", processor="loongarch64", registers=[{"pc": 1}])
        del core.profile["places"]["env.gpr"]  # what makes a profile leaves it out
        dump = opened(core, known(core))
        assert dump.cpus == ()
        assert any("those of this architecture are not known" in remark for remark in dump.remarks)

    @pytest.mark.parametrize(("kvm", "dirty", "stale"), [(0, 0, False), (1, 1, False), (1, 0, True)])
    def test_stale_registers(self, known: Callable[[Core], OpenOptions], kvm: int, dirty: int, stale: bool) -> None:
        core = qemu_core.build(GUEST, registers=[self.registers()] * 2, kvm=kvm, dirty=dirty)
        remarks = opened(core, known(core)).remarks
        assert any("registers of 2 of 2 processors are stale" in remark for remark in remarks) == stale

    def test_stale_registers_are_marked(self, known: Callable[[Core], OpenOptions], cli: Cli, tmp_path: Path) -> None:
        core = qemu_core.build(GUEST, registers=[self.registers()], kvm=1, dirty=0)
        (tmp_path / "core").write_bytes(core.data)
        known(core)
        for command in ("regs", "info"):
            done = cli(command, "core", "--profile", "profile.json")
            assert done.returncode == 0
            assert "registers of 1 of 1 processors are stale" in done.stdout + done.stderr
        assert json.loads(cli("regs", "--json", "core", "--profile", "profile.json").stdout)["cpus"]

    def test_list_in_a_circle(self, known: Callable[[Core], OpenOptions], cli: Cli, tmp_path: Path) -> None:
        core = qemu_core.build(GUEST, registers=[self.registers()] * 2, circle="cpus")
        dump = opened(core, known(core))
        assert dump.cpus == ()
        assert any("more than 4096 processors" in remark for remark in dump.remarks)
        (tmp_path / "core").write_bytes(core.data)
        done = cli("regs", "core", "--profile", "profile.json")
        assert done.returncode == 1
        assert "has no registers; registers are not read: " in done.stderr
        assert "more than 4096 processors" in done.stderr

    def test_vmcoreinfo_of_the_device(self, known: Callable[[Core], OpenOptions]) -> None:
        told = vmcoreinfo(VMCOREINFO)
        guest = GUEST.but(pages={**GUEST.pages, 8: told.ljust(PAGE, b"\0")})
        core = qemu_core.build(guest, vmcoreinfo=(8 * PAGE, len(told)))
        dump = opened(core, known(core))
        assert dump.vmcoreinfo
        assert dump.vmcoreinfo.text == VMCOREINFO
        assert dump.machine.release == "6.1.0-model"

    def test_vmcoreinfo_of_large_pages(self, known: Callable[[Core], OpenOptions]) -> None:
        told = vmcoreinfo(VMCOREINFO.replace("PAGESIZE=4096", "PAGESIZE=65536"))
        block = Block("mach-virt.ram", told.ljust(32 * PAGE, b"\0"))
        ranges = [Range(0x40000000, 32 * PAGE, Region(block))]
        core = qemu_core.build(
            GUEST, blocks=[block], ranges=ranges, vmcoreinfo=(0x40000000, len(told)), program="qemu-system-aarch64"
        )
        dump = opened(core, known(core))
        assert dump.machine.page_size == 65536
        assert ram_of(dump) == [(0x4000, 2)]

    @pytest.mark.parametrize("where", [0x3000, 1 << 50, (1 << 64) - 1])
    def test_vmcoreinfo_that_is_none(self, known: Callable[[Core], OpenOptions], where: int) -> None:
        core = qemu_core.build(GUEST, vmcoreinfo=(where, 3000))
        dump = opened(core, known(core))
        assert dump.vmcoreinfo is None
        assert any("vmcoreinfo is not read" in remark for remark in dump.remarks)


class TestBuilds:
    def test_another_build(self, known: Callable[[Core], OpenOptions]) -> None:
        core = qemu_core.build(GUEST)
        core.profile["build_id"] = "ab" * 20
        with pytest.raises(errors.UnsupportedFeatureError, match=r"another build of QEMU: build id abab.*404142"):
            opened(core, known(core))

    def test_another_build_without_an_id(self, known: Callable[[Core], OpenOptions]) -> None:
        core = qemu_core.build(GUEST, first_page=False)
        dump = opened(core, known(core))
        assert any("does not tell its build id" in remark for remark in dump.remarks)
        core.profile["entry"] = "0x1234"
        with pytest.raises(errors.CorruptDumpError, match="another build"):
            opened(core, known(core))
        core.profile["entry"] = "0x3230"
        with pytest.raises(errors.CorruptDumpError, match="is of another build"):
            opened(core, known(core))

    @pytest.mark.parametrize("bits", [64, 32])
    @pytest.mark.parametrize("linked", [False, True])
    @pytest.mark.parametrize(
        ("auxv", "says"),
        [
            ({9: None}, "NT_AUXV does not tell"),
            ({9: None, 3: None}, "NT_AUXV does not tell"),
            ({3: 0x7F123040, 9: 0x7F123100}, "NT_AUXV tells of another program, at 0x7f123100"),
        ],
    )
    def test_load_address_by_the_mapped_file(
        self, known: Callable[[Core], OpenOptions], auxv: dict[int, int | None], says: str, bits: int, linked: bool
    ) -> None:
        """The vector is damaged, or that of the dynamic linker where that was told to start QEMU."""
        core = qemu_core.build(GUEST, bits=bits, auxv=auxv)
        base = qemu_core.BASES[bits]["program"]
        if linked:  # no position-independent program
            core.profile["entry"] = hex(int(core.profile["entry"], 16) + base)
            places = core.profile["addresses"]
            places |= {name: hex(int(at, 16) + base) for name, at in places.items()}
        dump = opened(core, known(core))
        assert holds(dump)
        assert any(f"load address, {base:#x}, is that of the program's file" in each for each in dump.remarks)
        assert any(says in each for each in dump.remarks)
        assert dump.attributes["build_id"] == qemu_core.BUILD_ID.hex()

    def test_load_address_that_nothing_tells(self, known: Callable[[Core], OpenOptions]) -> None:
        core = qemu_core.build(GUEST, auxv={9: None}, program="qemu-system-x86_64")
        data = core.data.replace(b"/usr/bin/qemu-system-x86_64", b"/usr/bin/something_of_mine_")
        with pytest.raises(errors.CorruptDumpError, match="the load address is not known"):
            opened(data, known(core))

    @pytest.mark.parametrize("version", [4, 5])
    def test_debug_information_that_is_split_off(self, tmp_path: Path, version: int) -> None:
        (tmp_path / "skeleton").write_bytes(dwarf.elf_file(dwarf.build([[]], version=version, split="memory.dwo")))
        split = pytest.raises(
            errors.UnsupportedFeatureError, match=r"split off to files such as memory\.dwo.*-gsplit-dwarf"
        )
        with open_debug_info(tmp_path / "skeleton") as info, split:
            Profile.from_debug_info(info, "skeleton")

    def test_another_kind_of_host(self, known: Callable[[Core], OpenOptions]) -> None:
        core = qemu_core.build(GUEST)
        core.profile["bits"] = 32
        with pytest.raises(errors.UnsupportedFeatureError, match="another kind"):
            opened(core, known(core))

    def test_profile_keeps_everything(self) -> None:
        document = qemu_core.build(GUEST).profile
        schema = json.loads((ROOT / "docs" / "schemas" / "qemu-profile-1.json").read_text())
        profile = Profile.from_json(json.dumps(document), "x")
        written = json.loads(profile.to_json())
        jsonschema.validate(written, schema, cls=jsonschema.Draft202012Validator)
        assert written == document

    @pytest.mark.parametrize(
        "change",
        [
            {"schema": "dumpxlate.qemu-profile/2"},
            {"entry": 5},
            {"entry": "0x" + "f" * 17},
            {"addresses": {}},
            {"addresses": {"address_space_memory": -1}},
            {"sizes": {"FlatRange": 0}},
            {"sizes": {"FlatRange": 1 << 40}},
            {"sizes": {"FlatRange": 24}},
            {"sizes": {"FlatRange": 1 << 12}},
            {"places": {}},
            {"places": {"FlatRange.mr": [0]}},
            {"places": {"FlatRange.mr": [0, 1 << 30]}},
            {"places": []},
            {"build_id": 5},
            {"build_id": "no digits"},
            {"build_id": "ab" * 65},
        ],
    )
    def test_profiles_that_are_none(self, change: dict[str, Any]) -> None:
        document = qemu_core.build(GUEST).profile | change
        with pytest.raises(errors.FormatError):
            Profile.from_json(json.dumps(document), "x")

    @pytest.mark.parametrize("text", ["", "[]", "{}", "null", "[" * 100000, '{"schema": 1}', "\xff"])
    def test_text_that_is_no_profile(self, text: str) -> None:
        with pytest.raises(errors.CorruptDumpError, match="not a profile"):
            Profile.from_json(text.encode("latin-1"), "x")

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            (b"\x7fELF\xff" + b"secret " * 10000, "no UTF-8 text"),
            (b"secret " * 10000, "Expecting value: line 1 column 1 (char 0)"),
            (b"{}", "'schema' is missing"),
            (b"[]", "no JSON object"),
            (b'{"schema": "' + b"a" * 50000 + b'"}', "schema 'aaaa"),
            (json.dumps({"schema": ["a" * 50000]}).encode(), "schema a list, expected"),
            (json.dumps({"schema": 1 << 400}).encode(), "schema 258"),
        ],
    )
    def test_no_profile_in_few_words(self, text: bytes, says: str) -> None:
        """What was named may be anything: a core with secrets, for instance."""
        with pytest.raises(errors.CorruptDumpError) as caught:
            Profile.from_json(text, "x")
        said = str(caught.value)
        assert says in said
        assert len(said) < 220
        assert "secret" not in said
        assert "\n" not in said
        assert caught.value.__cause__ is None

    @pytest.mark.parametrize("member", ["build_id", "entry"])
    def test_absurd_values_in_few_words(self, member: str) -> None:
        document = qemu_core.build(GUEST).profile | {member: "x" * 50000}
        with pytest.raises(errors.CorruptDumpError, match=f"'{'x' * 40}' is no") as caught:
            Profile.from_json(json.dumps(document), "x")
        assert len(str(caught.value)) < 200

    def test_file_too_large_for_a_profile(self, cli: Cli, tmp_path: Path) -> None:
        core = qemu_core.build(GUEST)
        (tmp_path / "core").write_bytes(core.data)
        with (tmp_path / "large").open("wb") as file:
            file.truncate(1 << 40)
        for name, says in (("large", "1,099,511,627,776 bytes"), ("core", "not a profile")):
            done = cli("info", "core", "--profile", name)
            assert done.returncode == 5, done.stderr
            assert says in done.stderr
            assert len(done.stderr) < 300


class TestHostileCores:
    def test_aliases_in_a_circle(self, known: Callable[[Core], OpenOptions]) -> None:
        core = qemu_core.build(GUEST, blocks=[Block("pc.ram", bytes(PAGE))], ranges=[Range(0, PAGE, circle())])
        with pytest.raises(errors.CorruptDumpError, match="aliases of one another"):
            opened(core, known(core))

    def test_blocks_in_a_circle(self, known: Callable[[Core], OpenOptions]) -> None:
        old = qemu_core.build(GUEST, release="2.0", circle="blocks")
        with pytest.raises(errors.CorruptDumpError, match="RAM blocks"):
            opened(old, known(old))
        new = qemu_core.build(GUEST, circle="blocks", words=SPLIT)
        assert holds(opened(new, known(new)))
        assert holds(opened(new))

    @pytest.mark.parametrize("count", [100_001, 5_000_000, 0xFFFFFFFF])
    def test_millions_of_ranges(self, known: Callable[[Core], OpenOptions], count: int) -> None:
        core = qemu_core.build(GUEST, lies={"nr": count})
        with pytest.raises(errors.CorruptDumpError, match="ranges of memory: expected 100,000 at most"):
            opened(core, known(core))

    @pytest.mark.parametrize("lies", [{"nr": 99_999}, {"ranges": 0}, {"ranges": (1 << 64) - 64}, {"ranges": 1 << 63}])
    def test_table_that_is_not_there(self, known: Callable[[Core], OpenOptions], lies: dict[str, int]) -> None:
        core = qemu_core.build(GUEST, lies=lies)
        with pytest.raises(errors.CorruptDumpError, match="not in the core"):
            opened(core, known(core))

    @pytest.mark.parametrize(
        ("start", "size", "offset"),
        [(0, 0, 0), (0, 65 * PAGE, 0), (0, PAGE, 64 * PAGE), (1 << 63, PAGE, 0), (0, 1 << 63, 0), (0, PAGE, 1 << 63)],
    )
    def test_ranges_that_cannot_be(
        self, known: Callable[[Core], OpenOptions], start: int, size: int, offset: int
    ) -> None:
        block = Block("pc.ram", bytes(64 * PAGE))
        region = Region(block)
        ranges = [Range(0x100000, 4 * PAGE, region), *[Range(start, size, region, offset)] * 20]
        core = qemu_core.build(GUEST, blocks=[block], ranges=ranges)
        dump = opened(core, known(core))
        assert ram_of(dump) == [(0x100, 4)]
        assert len(dump.damage) == 9
        assert "leave their RAM block" in dump.damage[0]

    def test_ranges_that_overlap(self, known: Callable[[Core], OpenOptions]) -> None:
        block = Block("pc.ram", b"".join(page(pfn) for pfn in range(64)))
        region = Region(block)
        rows = [(0, 8, 0), (1, 2, 8), (7, 2, 10), (0x100, 4, 12)]
        ranges = [Range(start * PAGE, count * PAGE, region, offset * PAGE) for start, count, offset in rows]
        core = qemu_core.build(GUEST, blocks=[block], ranges=ranges)
        dump = opened(core, known(core))
        said = "ranges of memory overlap in 12,288 bytes, first at 0x1000: only one of them is kept"
        assert dump.damage == (said,)
        assert [dump.read(pfn * PAGE, PAGE) for pfn in (1, 7, 8)] == [page(1), page(7), page(11)]

    def test_block_outside_any_segment(self, known: Callable[[Core], OpenOptions]) -> None:
        for host in (0x1000, 0x7FFFFFFFF000, (1 << 63) - PAGE, (1 << 64) - PAGE):
            block = Block("pc.ram", bytes(PAGE))
            core = qemu_core.build(GUEST, blocks=[block], ranges=[Range(0, PAGE, Region(block))])
            at = core.data.rindex(struct.pack("<Q", block.host))  # behind the program headers
            data = core.data[:at] + struct.pack("<Q", host) + core.data[at + 8 :]
            with pytest.raises(errors.UnsupportedFeatureError, match="no guest memory"):
                opened(data, known(core))

    def test_many_ranges_over_many_segments(self) -> None:
        """Pieces are counted before they are written out."""
        core = qemu_core.build(GUEST).data
        at, size = (struct.unpack_from("<Q", core, 64 + place)[0] for place in (8, 32))
        loads = [elf.Segment(data=b"x", vaddr=0x7F0000000000 + 2 * number) for number in range(8000)]
        data = elf.build(loads, [core[at : at + size]])
        hints = QemuHints(ram=tuple(RamHint(number << 40, 1 << 39, 0x7F0000000000) for number in range(4000)))
        with pytest.raises(errors.CorruptDumpError, match="lies in 32,000,000 pieces"):
            opened(data, OpenOptions(qemu=hints))

    @given(st.data())
    @settings(max_examples=150, deadline=None)
    def test_any_damage_ends_in_a_typed_error(
        self, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
    ) -> None:
        core = qemu_core.build(GUEST, words=SPLIT, registers=[{"eip": 1}], vmcoreinfo=(0x3000, 100))
        body = bytearray(core.data)
        edges = [0, 0x1000, 0x2000, 0x3000, 0x4000, 0x5000]
        for _ in range(data.draw(st.integers(1, 12))):
            at = data.draw(st.sampled_from(edges)) + data.draw(st.integers(0, 1200))
            body[at] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]) | st.integers(0, 255))
        path = tmp_path_factory.mktemp("fuzz") / "profile.json"
        path.write_text(json.dumps(core.profile))
        for options in (OpenOptions(qemu=QemuHints(profile=str(path))), OpenOptions()):
            try:
                dump = FORMAT.open([BytesSource(bytes(body))], options)
                dump.read_pages([0, 7, 1 << 20])
            except errors.DumpxlateError:
                pass


def writable(at: int, data: bytes) -> elf.Segment:
    return elf.Segment(data=data, vaddr=at, flags=6)


def nothing_but(loads: list[elf.Segment]) -> bytes:
    """A core without memory of QEMU's own."""
    status = bytes(40) + b"qemu-system-x86\0" + b"qemu-system-x86_64 -display none".ljust(80, b"\0")
    return elf.build(loads, [note("CORE", 3, status)])


def notes_behind_memory(core: bytes) -> tuple[bytes, int]:
    """The same core with its notes as gdb writes them, and where they begin."""
    data = bytearray(core)
    kind, _, at = struct.unpack_from("<IIQ", data, 64)
    (size,) = struct.unpack_from("<Q", data, 96)
    assert kind == 4
    struct.pack_into("<Q", data, 72, len(data))
    notes = data[at : at + size]
    data[at : at + size] = bytes(size)
    return bytes(data + notes), len(data)


def large_core(*, stack: bool = False, **options: Any) -> bytes:
    """3 GiB of memory that the core does not hold all of."""
    block = Block("pc.ram", bytes(PAGE))
    core = qemu_core.build(GUEST, blocks=[block], ranges=[], stack=stack, **options)
    body = bytearray(core.data)
    size = 3 << 30
    at = body.index(struct.pack("<Q", block.host)) + 24  # p_memsz
    body[at : at + 8] = struct.pack("<Q", size)
    at = body.rindex(struct.pack("<Q", block.host)) + 24  # used_length, max_length
    body[at : at + 16] = struct.pack("<2Q", size, size)
    return bytes(body)


def circle() -> Region:
    """A region that is an alias of an alias of itself."""
    first = Region()
    first.alias = Region(alias=first)
    return first


@pytest.fixture
def real(shared: Path, unpacked: Callable[[Path], Path]) -> Callable[[str], Path]:
    """Unpack one of the real files."""
    folder = shared / "fixtures" / "qemu-core"
    if not folder.is_dir():
        pytest.skip("no cores of QEMU among the fixtures")
    return lambda name: unpacked(folder / f"{name}.xz")


@pytest.mark.parametrize("name", ["pc/core", "q35/core", "q35/gdb.core"])
@pytest.mark.parametrize("way", ["debug information", "profile", "looks"])
def test_real_cores_equal_qemus_own_dump(real: Callable[[str], Path], tmp_path: Path, name: str, way: str) -> None:
    """Page for page and block for block, ROM and memory above the hole included; registers, too."""
    debug_file, hints = real("qemu-system-x86_64.debug"), None
    if way == "debug information":
        hints = QemuHints(debug_file=str(debug_file))
    if way == "profile":
        path = tmp_path / "profile.json"
        with open_debug_info(debug_file) as info:
            path.write_text(Profile.from_debug_info(info, "x").to_json())
        hints = QemuHints(profile=str(path))
    truth = real(f"{name.split('/')[0]}/elf.dump")
    with open_dump([real(name)], options=OpenOptions(qemu=hints)) as dump, open_dump([truth]) as model:
        assert ram_of(dump) == ram_of(model)
        assert np.array_equal(dump.pages.stored.runs(), model.pages.stored.runs())
        pfns = model.pages.ram.select(0, model.pages.ram.count)
        assert (dump.read_pages(pfns) == model.read_pages(pfns)).all()
        assert dump.damage == ()
        if hints:
            assert dump.machine.arch == model.machine.arch
            for cpu, wanted in zip(dump.cpus, model.cpus, strict=True):
                told = {register: value for register, value in wanted.registers.items() if register in cpu.registers}
                assert len(told) > 50
                assert told == {register: cpu.registers[register] for register in told}


def test_real_ranges_are_those_of_the_monitor(real: Callable[[str], Path], shared: Path) -> None:
    """``info mtree -f`` names the same ranges as RAM and ROM."""
    listing = (shared / "fixtures" / "qemu-core" / "q35" / "mtree.txt").read_text().split("FlatView #1")[0]
    rows = re.findall(r"^  ([0-9a-f]{16})-([0-9a-f]{16}) \(prio \d+, (?:ram|rom)\)", listing, re.MULTILINE)
    hints = QemuHints(debug_file=str(real("qemu-system-x86_64.debug")))
    with open_dump([real("q35/core")], options=OpenOptions(qemu=hints)) as dump:
        assert dump.attributes["ranges"] == len(rows)
        known = {pfn for first, count in ram_of(dump) for pfn in range(first, first + count)}
    assert known == {pfn for low, high in rows for pfn in range(int(low, 16) // PAGE, (int(high, 16) + 1) // PAGE)}


def test_real_core_of_shared_memory_only(shared: Path, unpacked: Callable[[Path], Path]) -> None:
    """Debian's QEMU; coredump_filter kept the memory of the guest and nothing of QEMU's own."""
    folder = shared / "fixtures" / "tiny" / "x64-core"
    if not folder.is_dir():
        pytest.skip("no core of a tiny guest among the fixtures")
    with open_dump([unpacked(folder / "qemu.core.xz")]) as dump, open_dump([unpacked(folder / "elf.xz")]) as model:
        assert ram_of(dump) == [(0, 512)]
        # The ROMs below 1 MiB were not shadowed yet, and are not in the core.
        pfns = [*range(0xC0), *range(0xE0, 0xF0), *range(0x100, 0x200)]
        assert (dump.read_pages(pfns) == model.read_pages(pfns)).all()


class TestCommandLine:
    def test_profile_and_core(self, cli: Cli, tmp_path: Path) -> None:
        core = qemu_core.build(GUEST, registers=[{"eip": 0x1234, "efer": 0x500}])
        (tmp_path / "core").write_bytes(core.data)
        (tmp_path / "qemu.debug").write_bytes(debug_file(core.profile))
        done = cli("qemu-profile", "qemu.debug", "-o", "qemu.json")
        assert done.returncode == 0, done.stderr
        printed = cli("qemu-profile", "qemu.debug").stdout
        assert printed == (tmp_path / "qemu.json").read_text()
        schema = json.loads((ROOT / "docs" / "schemas" / "qemu-profile-1.json").read_text())
        jsonschema.validate(json.loads(printed), schema, cls=jsonschema.Draft202012Validator)
        assert cli("qemu-profile", "qemu.debug", "-o", "qemu.json").returncode == 2
        info = json.loads(cli("info", "--json", "core", "--profile", "qemu.json").stdout)
        assert "dumpxlate convert core --profile qemu.json -o vmcore" in info["next"]
        assert info["format"]["name"] == "qemu_core"
        for option in (("--profile", "qemu.json"), ("--debug-file", "qemu.debug"), ("--qemu-binary", "qemu.debug")):
            done = cli("convert", "core", *option, "-o", "out", "--to", "elf", "--force")
            assert done.returncode == 0, done.stderr
            with open_dump([tmp_path / "out"]) as dump:
                assert holds(dump)
                assert dump.cpus[0].registers["rip"] == 0x1234

    def test_memory_by_hand(self, cli: Cli, tmp_path: Path) -> None:
        core = qemu_core.build(GUEST)
        (tmp_path / "core").write_bytes(core.data)
        words = [word for start, length, host in core.ranges for word in ("--ram-block", f"{start}:{length}:{host:#x}")]
        done = cli("convert", "core", *words, "-o", "out", "--to", "elf")
        assert done.returncode == 0, done.stderr
        with open_dump([tmp_path / "out"]) as dump:
            assert holds(dump)
        assert cli("info", "core", "--ram-block", "1:2").returncode == 2

    def test_program_that_is_not_qemu(self, cli: Cli, tmp_path: Path) -> None:
        (tmp_path / "other").write_bytes(dwarf.elf_file(dwarf.build([[dwarf.base("int", 4)]])))
        done = cli("qemu-profile", "other", "-o", "x")
        assert done.returncode == 3
        assert "not of a QEMU system emulator" in done.stderr
        assert not (tmp_path / "x").exists()


def test_source_is_closed_with_the_dump(tmp_path: Path) -> None:
    path = tmp_path / "core"
    path.write_bytes(qemu_core.build(GUEST, words=SPLIT).data)
    source = open_source(path)
    with open_from([source]):
        pass
    with pytest.raises((ValueError, OSError)):
        source.view(0, 1)
