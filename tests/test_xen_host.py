"""A real Xen host with eight guests: its domains, and each guest's memory against its own ``xl dump-core``."""

from __future__ import annotations

import json
import lzma
import re
import struct
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jsonschema
import numpy as np
import pytest

import dumpxlate
from dumpxlate.arch.xen_vcpu import CONTEXT_64
from dumpxlate.elf.notes import Note
from dumpxlate.vmcoreinfo_search import find
from dumpxlate.xen_host import host as host_module
from dumpxlate.xen_host.frames import Frames
from dumpxlate.xen_host.guest import guest_dump
from dumpxlate.xen_host.host import Host, open_host
from tests.conftest import ROOT

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from dumpxlate.dump import Dump

    Cli = Callable[..., subprocess.CompletedProcess[str]]

CHANGED = 0
"""Pages that may differ between a guest's core and the host's dump, made minutes later: all guests were paused."""

LOST = {"t6": [0x3F6]}
"""Pages that xl drops when more pfns have one than the guest owns; its file has no row left for them."""


@pytest.fixture(scope="module")
def host_file(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dump, with holes where it is zero."""
    path = tmp_path_factory.mktemp("host") / "host.elf"
    with lzma.open(shared / "fixtures/xen-host/host.elf.xz") as packed, path.open("wb") as file:
        while piece := packed.read(1 << 20):
            if piece.count(0) == len(piece):
                file.seek(len(piece), 1)
            else:
                file.write(piece)
        file.truncate()
    return path


@pytest.fixture(scope="module")
def dump(host_file: Path) -> Iterator[Dump]:
    with dumpxlate.open(host_file) as opened:
        yield opened


@pytest.fixture(scope="module", params=["layout", "frame table"])
def host(request: pytest.FixtureRequest, dump: Dump) -> Host:
    """Both ways that need no symbols."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "frame table":
            patch.setattr(host_module, "RELEASES", ())
        return open_host(dump)


@pytest.fixture(scope="module")
def numbers(shared: Path) -> dict[str, int]:
    """Domain numbers by the guests' names."""
    lines = (shared / "fixtures/xen-host/domids.txt").read_text().split()
    return dict(zip(lines[::2], map(int, lines[1::2]), strict=True))


def test_domains_are_those_that_xl_lists(host: Host, shared: Path) -> None:
    listed = json.loads((shared / "fixtures/xen-host/list.json").read_text())
    told = (shared / "fixtures/xen-host/xl-dmesg.txt").read_text(errors="replace")
    pages = {
        int(number): int(count)
        for number, count in re.findall(r"information for domain (\d+):\n.*\n\(XEN\)\s+nr_pages=(\d+)", told)
    }
    assert [domain.number for domain in host.domains] == [each["domid"] for each in listed]
    assert {domain.number: domain.pages for domain in host.domains} == pages
    kinds = [each["config"]["c_info"]["type"] for each in listed]
    if host.layout is None:
        assert [domain.type for domain in host.domains] == ["hvm" if kind == "pvh" else kind for kind in kinds]
        return
    assert host.layout.name == "Xen 4.17"
    assert [domain.type for domain in host.domains] == kinds
    uuids = [each["config"]["c_info"].get("uuid") for each in listed]
    assert [domain.uuid for domain in host.domains[1:]] == uuids[1:]


@pytest.mark.parametrize("name", ["t0", "t1", "t2", "t3", "t4", "t5", "t6", "t7"])
def test_guests_have_the_pages_of_their_cores(
    host: Host, numbers: dict[str, int], shared: Path, unpacked: Callable[[Path], Path], name: str
) -> None:
    found = guest_dump(host, host.domain(numbers[name]))
    with dumpxlate.open(unpacked(shared / f"fixtures/xen/{name}.core.xz")) as core:
        own, cores = (set(each.pages.stored.select(0, 1 << 32).tolist()) for each in (found, core))
        both = sorted(own & cores)
        changed = (found.read_pages(both) != core.read_pages(both)).any(axis=1)
        assert changed.sum() <= CHANGED
        assert not cores - own
        more = sorted(own - cores)
        if name == "t5":  # xl leaves out the VGA hole and what is just below 4 GiB, also of PVH guests
            assert all(0xA0 <= pfn < 0xC0 or 0xF0000 <= pfn < 0x100000 for pfn in more)
            assert not found.machine.paravirtual
        else:
            assert more == LOST.get(name, [])
            assert found.p2m is not None
            assert core.p2m is not None
            assert np.array_equal(found.p2m.mfn(np.array(both)), core.p2m.mfn(np.array(both)))
        if host.layout:
            assert found.blocks.get("xen_shared_info") == core.blocks.get("xen_shared_info") or name in ("t5", "t7")
            check_registers(found, core, woken=name == "t7")


def check_registers(found: Dump, core: Dump, *, woken: bool) -> None:
    """All of the context; t7 was let go on after its core was made, and its hypercall returned another value."""
    own, wanted = (CONTEXT_64.unpack(each.cpus[0].raw["xen"], "<") for each in (found, core))
    assert {name for name in own if own[name] != wanted[name]} <= ({"rax"} if woken else set())


def test_machine_to_phys_table(host: Host, shared: Path) -> None:
    with lzma.open(shared / "fixtures/xen-host/m2p.txt.xz", "rt") as file:
        rows = re.findall(r"mfn=0x([0-9a-f]+) ==> pfn=0x([0-9a-f]+)", file.read())
    wanted = np.array([int(pfn, 16) for _, pfn in rows], np.uint64).astype(np.int64)
    assert np.array_equal(Frames(host.hypervisor).pfn(np.arange(len(wanted))), wanted)


def test_domain_0(host: Host) -> None:
    found = guest_dump(host, host.domain(0))
    assert found.p2m is not None
    pfn = found.p2m.pages().select(0, 1 << 32)
    assert len(pfn) == 114688
    assert np.array_equal(host.frames.pfn(found.p2m.mfn(pfn)), pfn)
    note = find(found)
    assert note
    assert note.info.release == "6.1.0-56-amd64"
    if host.layout:  # the kernel says the same of itself, by its own page tables
        uts = int(note.info.lines["SYMBOL(init_uts_ns)"], 16)
        assert b"6.1.0-56-amd64\0" in found.virtual().read(uts, 400)


def test_domain_0_by_the_list_that_a_crash_note_names(dump: Dump) -> None:
    """The note of a crashed hypervisor, made of what this one has."""
    plain = dump.domain(0)
    (top,) = struct.unpack_from("<Q", plain.blocks["xen_shared_info"], 3096)
    note = Note("Xen", 0x1000001, struct.pack("<10Q", 4, 17, 0, 0, 0, 0, 0, 0, 0x3FA00000, top))
    found = replace(dump, notes=(*dump.notes, note)).domain(0)
    assert found.attributes["memory_found_by"] == "frame lists of the crash note"
    assert found.p2m is not None
    assert plain.p2m is not None
    assert np.array_equal(found.p2m.entries(0, found.p2m.size), plain.p2m.entries(0, plain.p2m.size))


def test_the_search_for_page_tables(dump: Dump, numbers: dict[str, int]) -> None:
    """A raw image of the host has no processor."""
    assert [each.number for each in replace(dump, cpus=()).domains()] == [0, *sorted(numbers.values())]


def test_info_tells_and_lists(cli: Cli, host_file: Path) -> None:
    described = json.loads(cli("info", host_file, "--json").stdout)
    assert "interrupt table" in described["xen_host"]["evidence"]
    assert any("--domains" in step for step in described["next"])
    listed = cli("info", host_file, "--domains", "--json")
    assert listed.returncode == 0, listed.stderr
    shown: dict[str, Any] = json.loads(listed.stdout)
    jsonschema.validate(shown, json.loads((ROOT / "docs/schemas/domains-1.json").read_text()))
    assert [each["id"] for each in shown["domains"]] == list(range(9))
    table = cli("info", host_file, "--domains").stdout
    assert "325e733e-c3f5-463c-bf5b-7d06c79aa876" in table


def test_convert_one_domain(
    cli: Cli, host_file: Path, shared: Path, unpacked: Callable[[Path], Path], tmp_path: Path
) -> None:
    done = cli("convert", host_file, "--domain", "2", "-o", "t1.vmcore")
    assert done.returncode == 0, done.stderr
    with dumpxlate.open(tmp_path / "t1.vmcore") as written:
        assert written.pages.stored.count == 909
        assert written.machine.paravirtual
    same = cli("compare", "--domain", "2", host_file, unpacked(shared / "fixtures/xen/t1.core.xz"))
    assert same.returncode == 0, same.stdout + same.stderr
    assert cli("compare", "--domain", "2", host_file, host_file, "--domain-b", "3").returncode == 1
    refused = cli("convert", host_file, "--domain", "77", "-o", "none.vmcore")
    assert refused.returncode == 2
    assert "no domain 77: there are 0, 1, 2, 3, 4, 5, 6, 7, 8" in refused.stderr
    assert not (tmp_path / "none.vmcore").exists()
