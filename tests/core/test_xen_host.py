"""Domains of a Xen host, against the host that the builder wrote; and hosts that are torn, circular or none."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING

import numpy as np
import pytest

from dumpxlate.dump import Cpu
from dumpxlate.errors import CorruptDumpError, DumpxlateError, UnknownFormatError, UnsupportedFeatureError
from dumpxlate.format import OpenOptions
from dumpxlate.io.source import BytesSource
from dumpxlate.paging.addrxlat import PageWalk
from dumpxlate.registry import open_from
from dumpxlate.xen_host import host as host_module
from dumpxlate.xen_host.crash_note import host_signs
from dumpxlate.xen_host.frames import Frames
from dumpxlate.xen_host.guest import domain_dump, guest_dump
from dumpxlate.xen_host.host import open_host
from dumpxlate.xen_host.hypervisor import find_hypervisor
from tests.builders import dwarf
from tests.builders.symbols import elf_symbols
from tests.builders.xen_host import BUILD_ID, PAGE, XEN_4_17, XEN_4_21, Guest, Host, context_registers

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from dumpxlate.arrays import Int64s
    from dumpxlate.dump import Dump

UUID = bytes(range(16))


def guests() -> list[Guest]:
    """Domain 0 scattered, a 32-bit guest, and a hardware guest with a page of 2 MiB and another domain's page."""
    dom0 = {pfn: 1024 + (pfn * 37 % 101) for pfn in range(100)}
    narrow = {pfn: 1200 + pfn for pfn in range(40) if pfn != 7}
    hvm = {pfn: 1300 + pfn for pfn in range(16)} | {512 + at: 1536 + at for at in range(512)}
    return [
        Guest(0, dom0, extra={100: 1 << 63 | 1305, 101: 1 << 62 | 101, 102: 1310}, vcpus=2),
        Guest(3, narrow, UUID, word=4),
        Guest(9, hvm, UUID[::-1], "pvh", extra={600000: (1024, 14)}, large=[(512, 1536)]),
    ]


def opened(data: bytes) -> Dump:
    return open_from([BytesSource(data)], "elf", OpenOptions())


def dump_of(host: Host, notes: Sequence[bytes] | None = None, *, lacking: Iterable[int] = ()) -> Dump:
    return opened(host.build(host.crash_notes() if notes is None else notes, lacking=lacking))


def check_memory(found: Dump, guest: Guest, pages: Mapping[int, int] | None = None) -> None:
    wanted = guest.pages if pages is None else pages
    assert found.pages.ram.select(0, 1 << 20).tolist() == sorted(wanted)
    lists = sorted(guest.pages)[-3:] if guest.kind == "pv" else []
    for pfn in sorted(wanted):
        if pfn not in lists:
            assert found.read(pfn * PAGE, 30).startswith(b"domain %d pfn %#x " % (guest.number, pfn))


def test_without_symbols_a_known_layout_is_found() -> None:
    model = guests()
    host = open_host(dump_of(Host(model)))
    assert host.layout
    assert host.layout.name == "Xen 4.17"
    assert [(each.number, each.type, each.word_bits, each.pages, len(each.vcpus)) for each in host.domains] == [
        (0, "pv", 64, 100, 2),
        (3, "pv", 32, 39, 1),
        (9, "pvh", 64, 528, 1),
    ]
    assert [each.uuid for each in host.domains] == [
        "00000000-0000-0000-0000-000000000000",
        "00010203-0405-0607-0809-0a0b0c0d0e0f",
        "0f0e0d0c-0b0a-0908-0706-050403020100",
    ]


@pytest.mark.parametrize(("layout", "name"), [(XEN_4_17, "Xen 4.17"), (XEN_4_21, "Xen 4.21")])
def test_layouts_of_two_releases_are_told_apart(layout: Mapping[str, int], name: str) -> None:
    built = Host(guests(), layout)
    host = open_host(dump_of(built, built.crash_notes(version=int(name[-2:]))))
    assert host.layout
    assert host.layout.name == name


@pytest.mark.parametrize("known", [True, False])
def test_memory_of_each_domain(monkeypatch: pytest.MonkeyPatch, known: bool) -> None:
    """By the hypervisor's structures, or by nothing but its tables of frames."""
    if not known:
        monkeypatch.setattr(host_module, "RELEASES", ())
    model = guests()
    with dump_of(Host(model)) as dump:
        assert (open_host(dump).layout is not None) == known
        for guest in model:
            found = dump.domain(guest.number)
            check_memory(found, guest)
            assert found.machine.paravirtual == (guest.kind == "pv")
            assert found.machine.word_bits == guest.word * 8


def test_pages_of_others_are_not_the_guests() -> None:
    found = dump_of(Host(guests())).domain(0)
    assert found.p2m is not None
    assert dict(zip(found.p2m.foreign.pfn.tolist(), found.p2m.foreign.frame.tolist(), strict=True)) == {
        100: 1305,  # marked by the guest
        102: 1310,  # not marked, and not its own
    }
    assert found.p2m.identity.pfn.tolist() == [101]


def test_registers() -> None:
    dump = dump_of(Host(guests()))
    wanted = context_registers(0)
    cpus = dump.domain(0).cpus
    assert [cpu.index for cpu in cpus] == [0, 1]
    assert {name: cpus[0].registers[name] for name in wanted} == wanted
    assert cpus[0].registers["cr3"] == 1024 * PAGE
    assert cpus[0].registers["gs_base"] == 0xFFFF888000000000
    (narrow,) = dump.domain(3).cpus
    assert (narrow.registers["eip"], narrow.registers["cr3"]) == (0x1003, 1200 * PAGE)
    hardware = dump.domain(9)
    assert hardware.cpus[0].registers["cr3"] == 0x3000
    assert hardware.cpus[0].registers["dr6"] == 0xFFFF0FF0
    assert any("segments" in remark for remark in hardware.remarks)


def test_registers_since_data_segments_left_the_structure() -> None:
    built = Host(guests(), XEN_4_21)
    (cpu, _) = dump_of(built, built.crash_notes(version=21)).domain(0).cpus
    assert cpu.registers["ss"] == 0xE02B
    assert cpu.registers["ds"] == 0


def test_a_running_processor_is_the_hosts_or_not_known() -> None:
    model = guests()
    model[0].running = True
    dump = dump_of(Host(model))
    assert not dump.domain(0).cpus
    assert any("running" in remark for remark in dump.domain(0).remarks)
    root = find_hypervisor(dump).walk.root
    inside = replace(dump, cpus=(Cpu(0, {"cs": 0xE033, "rip": 0x4711, "cr3": root}),))
    assert [cpu.registers["rip"] for cpu in inside.domain(0).cpus] == [0x4711, 0x4711]
    assert inside.domain(0).cpus[0].registers["cr3"] == 1024 * PAGE


def test_page_tables_are_searched_for_where_no_processor_is_known() -> None:
    built = Host(guests())
    assert find_hypervisor(dump_of(built, [])).walk.root == built.root * PAGE


def test_m2p_and_owners() -> None:
    model = guests()
    built = Host(model)
    frames = Frames(find_hypervisor(dump_of(built)))
    mfn = np.array([5000, -1, *model[0].pages.values(), 0], np.int64)
    assert frames.pfn(mfn).tolist() == [-1, -1, *model[0].pages, -1]
    assert frames.owner(mfn)[0].tolist() == [-1, -1, *[built.structs[0]] * 100, -1]


def write_symbols(folder: Path, host: Host, *, build_id: bytes = BUILD_ID, debug: bool = False) -> Path:
    sections = dwarf.build([debug_types(host.at)]) if debug else {}
    path = folder / "xen-syms"
    path.write_bytes(dwarf.elf_file(sections, build_id=build_id, symbols=host.symbols))
    return path


def debug_types(at: Mapping[str, int]) -> list[dwarf.Die]:
    """The structures as their compiler describes them, pv and hvm in a union without a name."""
    word = dwarf.base("unsigned long", 8)
    regs = dwarf.structure("cpu_user_regs", at["user_regs_size"])
    start = at["user_regs"] - 8
    arch_pv = start + 400
    pv = dwarf.structure("pv_vcpu", 2000, *(dwarf.member(name, at[name] - arch_pv, word) for name in (
        "kernel_sp", "ctrlreg", "fs_base", "gs_base_kernel", "gs_base_user")))  # fmt: skip
    hvm = dwarf.structure("hvm_vcpu", 2000, dwarf.member("guest_cr", at["guest_cr"] - start - 300, word))
    union = dwarf.structure(None, 2000, dwarf.member("pv", 100, pv), dwarf.member("hvm", 0, hvm), tag="union")
    plain = ("dr", "dr6", "dr7", "flags", "guest_table", "guest_table_user")
    arch = dwarf.structure(
        "arch_vcpu", 3000, dwarf.member("user_regs", 8, regs), dwarf.member(None, 300, union),
        *(dwarf.member(name, at[name] - start, word) for name in plain),
    )  # fmt: skip
    vcpu = dwarf.structure(
        "vcpu", 4096, dwarf.member("processor", at["v_processor"], word), dwarf.member("domain", at["v_domain"], word),
        dwarf.member("is_running", at["is_running"], word), dwarf.member("arch", start, arch),
    )  # fmt: skip
    pv_domain = dwarf.structure("pv_domain", 200, dwarf.member("is_32bit", 4, word))
    arch_domain = dwarf.structure(
        "arch_domain", 2000, dwarf.member("pv", at["is_32bit"] - 404, pv_domain),
        dwarf.member("p2m", at["p2m"] - 400, word), dwarf.member("emulation_flags", at["emulation_flags"] - 400, word),
    )  # fmt: skip
    names = {"next": "next_in_list"}
    domain = dwarf.structure("domain", 4096, dwarf.member("arch", 400, arch_domain), *(
        dwarf.member(names.get(name, name), at[name], word)
        for name in ("max_vcpus", "vcpu", "shared_info", "tot_pages", "next", "handle")
    ))  # fmt: skip
    p2m = dwarf.structure("p2m_domain", 200, dwarf.member("phys_table", at["phys_table"], word))
    return [word, regs, pv, hvm, union, arch, vcpu, pv_domain, arch_domain, domain, p2m]


def test_symbols_and_their_layouts(tmp_path: Path) -> None:
    built = Host(guests())
    host = open_host(dump_of(built), write_symbols(tmp_path, built))
    assert host.how == "domain_list of xen-syms, and the layout of Xen 4.17"
    assert [each.number for each in host.domains] == [0, 3, 9]


def test_a_map_of_symbols(tmp_path: Path) -> None:
    """As Xen's build writes it beside xen-syms."""
    built = Host(guests())
    path = tmp_path / "xen-syms.map"
    path.write_text("".join(f"{at:#018x} B {name}\n" for name, at in built.symbols.items()))
    assert [each.number for each in open_host(dump_of(built), path).domains] == [0, 3, 9]


def test_debug_information_tells_a_layout_that_no_table_has(tmp_path: Path) -> None:
    moved = {name: at + 16 if name in ("handle", "next", "p2m", "ctrlreg", "guest_table") else at
             for name, at in XEN_4_17.items()}  # fmt: skip
    model = guests()
    built = Host(model, moved)
    dump = dump_of(built)
    assert open_host(dump).layout is None
    syms = write_symbols(tmp_path, built, debug=True)
    host = open_host(dump, syms)
    assert host.how == "domain_list of xen-syms, and its debug information"
    assert host.domains[1].uuid == "00010203-0405-0607-0809-0a0b0c0d0e0f"
    for guest in model:
        found = domain_dump(dump, guest.number, syms)
        check_memory(found, guest)
        assert found.cpus[0].registers["rip" if guest.word == 8 else "eip"] == 0x1000 + guest.number
    assert domain_dump(dump, 0, syms).cpus[0].registers["cr3"] == 1024 * PAGE


def test_symbols_of_another_build(tmp_path: Path) -> None:
    built = Host(guests())
    with pytest.raises(UnsupportedFeatureError, match="another hypervisor"):
        open_host(dump_of(built), write_symbols(tmp_path, built, build_id=bytes(20)))


def test_symbols_of_something_else(tmp_path: Path) -> None:
    dump = dump_of(Host(guests()))
    path = tmp_path / "vmlinux"
    path.write_bytes(elf_symbols({"init_top_pgt": 0xFFFFFFFF82000000}))
    with pytest.raises(UnsupportedFeatureError, match="domain_list"):
        open_host(dump, path)
    path.write_bytes(elf_symbols({"domain_list": 0xFFFF82D0402FF000}))
    with pytest.raises(CorruptDumpError, match="unmapped"):
        open_host(dump, path)
    path.write_text("nothing of the kind\n")
    with pytest.raises(UnknownFormatError):
        open_host(dump, path)


def test_a_list_that_leads_back(tmp_path: Path) -> None:
    built = Host(guests())
    built.put(built.structs[9] * PAGE + XEN_4_17["next"], built.address(built.structs[3]))
    dump = dump_of(built)
    with pytest.raises(CorruptDumpError, match="domain 3 follows domain 9: circular"):
        open_host(dump, write_symbols(tmp_path, built))
    # Without the list, the tables of frames still tell.
    assert [each.number for each in open_host(dump).domains] == [0, 3, 9]


@pytest.mark.parametrize("field", ["next", "shared_info", "p2m", "vcpu"])
@pytest.mark.parametrize("value", [0x1234, 0xFFFF83FFFFFFF000, (1 << 64) - 1])
def test_torn_structures_end_in_errors(tmp_path: Path, field: str, value: int) -> None:
    built = Host(guests())
    built.put(built.structs[3] * PAGE + XEN_4_17[field], value)
    dump = dump_of(built)
    with pytest.raises(CorruptDumpError):
        open_host(dump, write_symbols(tmp_path, built))
    assert open_host(dump).layout is None


def test_a_layout_that_misses_domains_is_not_believed() -> None:
    built = Host(guests())
    built.put(built.structs[0] * PAGE + XEN_4_17["next"], 0)
    host = open_host(dump_of(built))
    assert host.layout is None
    assert [each.number for each in host.domains] == [0, 3, 9]


def test_nested_tables_that_lead_back() -> None:
    built = Host(guests())
    root = built.tables[9]
    built.put(built.second_level(root) * PAGE + 8 * 5, root * PAGE | 7)
    with pytest.raises(CorruptDumpError, match="circular"):
        dump_of(built).domain(9)


def test_every_entry_of_a_nested_table_is_itself() -> None:
    built = Host(guests())
    root = built.tables[9]
    for at in range(512):
        built.put(root * PAGE + 8 * at, root * PAGE | 7)
    with pytest.raises(CorruptDumpError, match="circular"):
        dump_of(built).domain(9)


def test_torn_nested_tables() -> None:
    built = Host(guests())
    second = built.second_level(built.tables[9])
    built.put(second * PAGE + 8 * 5, (1 << 51) | 7)
    with pytest.raises(CorruptDumpError, match="the host's memory ends"):
        dump_of(built).domain(9)
    built = Host(guests())
    with pytest.raises(CorruptDumpError, match="absent"):
        dump_of(built, lacking=[second]).domain(9)


def test_a_large_page_over_the_end_of_memory_is_cut() -> None:
    built = Host(guests())
    second = built.second_level(built.tables[9])
    built.put(second * PAGE + 8 * 5, (4096 - 512) * PAGE | 0x87)
    built.put(second * PAGE + 8 * 6, 4096 * PAGE | 0x87)
    built.put(built.tables[9] * PAGE + 8 * 1, 0x87)  # no processor has a page of 512 GiB
    found = dump_of(built, lacking=[]).domain(9)
    pages = found.pages.ram.select(0, 1 << 20)
    assert pages[-1] == 5 * 512 + 511
    assert len(pages) == 528 + 512


def test_a_torn_p2m_is_replaced_by_what_xen_knows() -> None:
    model = guests()
    built = Host(model)
    top = built.shared[0] * PAGE + 3096
    built.put(top, 0xFFFFFF)
    found = dump_of(built).domain(0)
    check_memory(found, model[0])
    assert any("of no use" in remark for remark in found.remarks)


def test_a_shared_info_that_is_not_in_the_dump() -> None:
    model = guests()
    built = Host(model)
    found = dump_of(built, lacking=[built.shared[0]]).domain(0)
    check_memory(found, model[0])
    assert "xen_shared_info" not in found.blocks
    assert any("of no use" in remark for remark in found.remarks)


@pytest.mark.parametrize("seed", range(12))
def test_hosts_with_words_overwritten_end_in_a_dump_or_a_typed_error(seed: int) -> None:
    random = Random(seed)
    built = Host(guests())
    notes = built.crash_notes(built.guests[0].pages[97])
    for _ in range(random.choice([1, 20, 300])):
        place = random.randrange(PAGE, 200 * PAGE, 8)  # the hypervisor's own frames
        values = [0, (1 << 64) - 1, random.getrandbits(64), random.randrange(4096) * PAGE | 7]
        built.put(place, random.choice([*values, built.address(random.randrange(4096))]))
    with contextlib.suppress(DumpxlateError):
        host = open_host(dump_of(built, random.choice([notes, []])))
        for domain in host.domains:
            with contextlib.suppress(DumpxlateError):
                pages = guest_dump(host, domain).pages
                assert pages.stored.count <= pages.ram.count


def test_crash_note() -> None:
    model = guests()
    built = Host(model)
    lists = model[0].pages[97]
    dump = dump_of(built, built.crash_notes(lists))
    signs = host_signs(dump)
    assert signs
    assert (signs.version, signs.release) == ("4.17.7", "4.17")
    assert (signs.dom0_frame_lists, signs.phys_start) == (lists, 0x200000)
    found = dump.domain(0)
    assert found.attributes["memory_found_by"] == "frame lists of the crash note"
    check_memory(found, model[0])


def test_domain_0_by_nothing_but_the_note() -> None:
    """A tool that keeps no more than domain 0 leaves out the hypervisor."""
    model = guests()
    model[0].extra = {}
    built = Host(model)
    dump = dump_of(built, built.crash_notes(model[0].pages[97]), lacking=range(1, 200))
    found = dump.domain(0)
    check_memory(found, model[0])
    assert not found.cpus
    with pytest.raises(UnsupportedFeatureError, match="not a dump of a Xen host"):
        dump.domain(3)


def test_a_host_that_claims_memory_without_end() -> None:
    """Its table of frames would be terabytes long; what of it is mapped is 128 KiB."""
    built = Host(guests())
    dump = opened(built.build(built.crash_notes(), claim=(1 << 40) - 1))
    assert dump.pages.ram.stop == 1 << 40
    with lookups(limit=100):
        assert [each.number for each in dump.domains()] == [0, 3, 9]


def test_a_table_of_frames_that_leads_to_the_same_pages_for_ever() -> None:
    built = Host(guests())
    pdpt = built.word(built.root * PAGE + 261 * 8) >> 12 & 0xFFFFF
    frames = pdpt * PAGE + 384 * 8
    directory = built.word(frames) >> 12 & 0xFFFFF
    last = built.word(directory * PAGE) >> 12 & 0xFFFFF
    for slot in range(128):
        built.put(frames + slot * 8, directory * PAGE | 0x63)
    for slot in range(512):
        built.put(directory * PAGE + slot * 8, last * PAGE | 0x63)
        built.put(last * PAGE + slot * 8, built.frame_table * PAGE | 0x63)
    dump = opened(built.build(built.crash_notes(), claim=(1 << 40) - 1))
    with pytest.raises(CorruptDumpError, match="more pages are mapped there than the dump has"):
        dump.domains()


@contextlib.contextmanager
def lookups(limit: int) -> Iterator[None]:
    """Count the times that page tables are walked."""
    with pytest.MonkeyPatch.context() as patch:
        walk, calls = PageWalk.physical, []

        def counted(self: PageWalk, address: Int64s) -> Int64s:
            calls.append(len(address))
            return walk(self, address)

        patch.setattr(PageWalk, "physical", counted)
        yield
        assert len(calls) < limit


def test_dumps_of_no_host() -> None:
    host = Host(guests())
    host.put(host.root * PAGE + 256 * 8, 0)
    with pytest.raises(UnsupportedFeatureError, match="no page table"):
        dump_of(host, []).domains()
    with pytest.raises(ValueError, match="no domain 4: there are 0, 3, 9"):
        dump_of(Host(guests())).domain(4)
