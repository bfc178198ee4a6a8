"""--canonical: real paravirtual guests become ordinary, in every format, and equal to what Xen itself saved of them."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

import jsonschema
import numpy as np
import pytest

import dumpxlate
from dumpxlate.canonical.guest import canonical
from dumpxlate.format import WriteOptions
from dumpxlate.pipeline import convert_set
from dumpxlate.verify.compare import compare
from tests.conftest import ROOT, SAMPLES
from tests.readers import vmcore_pages

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    from dumpxlate.dump import Dump

    Cli = Callable[..., subprocess.CompletedProcess[str]]
    Unpack = Callable[[Path], Path]

CORE, SAVE = SAMPLES / "xen_core/t7.core.xz", SAMPLES / "xen_stream/t7.save.xz"
NEVER_IN_A_CORE = {*range(0xA0, 0xC0), *range(0xFC000, 0xFC009), *range(0xFEFF8, 0xFF000)}
"""Frames of a HVM or PVH guest that Xen saves, and never dumps."""
TARGETS = [
    ("elf", None),
    ("kdump", "zlib"),
    ("kdump", "zstd"),
    ("kdump", "none"),
    ("raw", None),
    ("lime", None),
    ("avml", None),
    ("xen_core", None),
    ("xendump", None),
]


def valid(name: str, found: object) -> None:
    schema = json.loads((ROOT / "docs" / "schemas" / f"{name}.json").read_text())
    jsonschema.validate(found, schema, cls=jsonschema.Draft202012Validator)


def every_page(dump: Dump) -> dict[int, bytes]:
    pfns = dump.pages.stored.select(0, 1 << 40)
    return {pfn: row.tobytes() for pfn, row in zip(pfns.tolist(), dump.read_pages(pfns), strict=True)}


# The same guest, as Xen dumped and as Xen saved it.


def test_core_is_the_save_image_of_the_same_moment(cli: Cli) -> None:
    plain = cli("compare", CORE, SAVE, "--json")
    assert plain.returncode == 1
    assert "try --canonical" in plain.stderr
    found = json.loads(plain.stdout)
    valid("compare-1", found)
    assert (found["canonical"], found["pages"]["different"], found["pages"]["equal"]) == (False, 5, 904)
    assert [each["register"] for each in found["cpus"]["different"]] == ["rdx", "cr3"]

    done = cli("compare", CORE, SAVE, "--json", "--canonical", "--strict")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    valid("compare-1", found)
    assert (found["canonical"], found["same"], found["pages"]["equal"]) == (True, True, 909)
    assert (found["cpus"]["registers"], found["cpus"]["different"]) == (38, [])
    assert "own frames" in cli("compare", SAVE, CORE, "--canonical").stdout


def test_contexts_are_those_that_xen_saved() -> None:
    with dumpxlate.open(CORE) as core, dumpxlate.open(SAVE) as save:
        made = core.canonical()
        assert made.cpus[0].raw["xen"] != core.cpus[0].raw["xen"]
        assert made.cpus[0].raw["xen"] == save.cpus[0].raw["xen"]


def test_one_changed_byte_in_a_table_shows(tmp_path: Path, sample: Callable[[str], Path]) -> None:
    image = bytearray(sample("xen_core/t7.core").read_bytes())
    with dumpxlate.open(CORE) as core:
        at = int(core.pages.place(core.pages.locate(np.array([0xB])))[0])
    image[at + 2] ^= 1  # a frame: still one of the guest's
    (tmp_path / "core").write_bytes(image)
    with dumpxlate.open(tmp_path / "core") as core, dumpxlate.open(SAVE) as save:
        found = compare(core, save, canonical=True)
    assert not found.same
    assert [(each.pfn, each.byte // 8) for each in found.first] == [(0xB, 0)]


def test_linux_core_and_its_save_image(shared: Path, unpacked: Unpack) -> None:
    """The guest ran on for some milliseconds between the two: its data changed, its page tables did not."""
    folder = shared / "fixtures/xen-linux"
    with (
        dumpxlate.open(unpacked(folder / "pv1.core.xz")) as core,
        dumpxlate.open(unpacked(folder / "pv1.save.xz")) as save,
    ):
        made, done = canonical(core)
        found = compare(made, save, first=1000)
        tables = types(shared)
    assert done is not None
    assert (done.roots, done.tables, done.missing) == (9, 209, 0)
    assert done.counts.unknown == 2  # shared_info and the like, which the guest unmaps before it suspends
    assert found.pages["equal"] == 25392
    assert found.pages["different"] == 208
    changed = {each.pfn for each in found.first}
    assert changed & tables == {0x7FA8}  # pinned, and in no tree: nothing but Xen knows that it is a table


def types(shared: Path) -> set[int]:
    """The page tables of pv1, as Xen's own tool lists them."""
    import lzma
    import re

    text = lzma.decompress((shared / "fixtures/xen-linux/pv1.p2m.txt.xz").read_bytes()).decode()
    rows = re.findall(r"pfn=0x(\w+) ==> mfn=0x\w+ \(type 0x(\w+)\)", text)
    return {int(pfn, 16) for pfn, kind in rows if int(kind, 16) in (1, 2, 3, 4, 9, 10, 11, 12)}


def test_the_tables_are_those_that_xen_lists(shared: Path, unpacked: Unpack) -> None:
    with dumpxlate.open(unpacked(shared / "fixtures/xen-linux/pv1.core.xz")) as core:
        made = core.canonical()
        pfns = made.pages.stored.select(0, 1 << 40)
        rewritten = set(pfns[made.pages.place(made.pages.locate(pfns)) < 0].tolist())
    assert types(shared) - rewritten == {0x7FA8}
    assert not rewritten - types(shared)


@pytest.mark.parametrize(("name", "changed"), [("xen/t5", 0), ("xen-linux/pvh1", 300)])
def test_pvh_core_lacks_what_xen_never_dumps(shared: Path, unpacked: Unpack, name: str, changed: int) -> None:
    """No page table needs translation; t5 was saved in the moment of its dump, pvh1 some milliseconds later."""
    folder = shared / "fixtures"
    with (
        dumpxlate.open(unpacked(folder / f"{name}.core.xz")) as core,
        dumpxlate.open(unpacked(folder / f"{name}.save.xz")) as save,
    ):
        found = compare(core, save, canonical=True, first=10_000)
        assert not core.machine.canonical
    assert found.pages["different"] <= changed
    only = {each.pfn for each in found.first if each.outcome.name == "ONLY_B"}
    assert only
    assert only <= NEVER_IN_A_CORE
    # In exchange a core has frames that Xen shows the guest: shared_info and grants.
    assert {each.pfn for each in found.first if each.outcome.name == "ONLY_A"} <= {0x10, 0x17FFF}
    if not changed:
        assert not found.facts.differing


# Every target.


@pytest.mark.parametrize(("target", "codec"), TARGETS, ids=lambda each: each or "default")
def test_every_format_holds_the_same_pages(tmp_path: Path, target: str, codec: str | None) -> None:
    with dumpxlate.open(CORE) as core, dumpxlate.open(SAVE) as save:
        report = dumpxlate.convert(
            core, tmp_path / "out", target, WriteOptions(compress=codec), canonical=True, allow_loss=True
        )
        expected = every_page(save)
    assert report.rewritten is not None
    assert (report.rewritten.roots, report.rewritten.tables) == (1, 5)
    with dumpxlate.open(tmp_path / "out", format=target) as dump:
        assert not dump.machine.paravirtual
        assert dump.machine.canonical == (target in ("elf", "kdump"))
        found = every_page(dump)
        if dump.cpus:
            assert dump.cpus[0].registers["cr3"] == 0x8000
            assert dump.virtual().read(0x72B, 16) == expected[0][0x72B : 0x72B + 16]
    assert {pfn: page for pfn, page in found.items() if any(page)} == {
        pfn: page for pfn, page in expected.items() if any(page)
    }


def test_compressed_kdump_of_machine_frames(tmp_path: Path) -> None:
    """Tables that lie compressed in the input are rewritten, all else passes as it is."""
    with dumpxlate.open(CORE) as core, dumpxlate.open(SAVE) as save:
        dumpxlate.convert(core, tmp_path / "mfn", "kdump", WriteOptions(compress="zlib"))
        with dumpxlate.open(tmp_path / "mfn") as kdump:
            assert kdump.machine.paravirtual
            dumpxlate.convert(kdump, tmp_path / "pfn", "kdump", canonical=True)
        with dumpxlate.open(tmp_path / "pfn") as dump:
            assert compare(dump, save, strict=True).same


def test_elf_of_machine_frames(tmp_path: Path) -> None:
    with dumpxlate.open(CORE) as core, dumpxlate.open(SAVE) as save:
        dumpxlate.convert(core, tmp_path / "mfn")
        with dumpxlate.open(tmp_path / "mfn") as elf:
            dumpxlate.convert(elf, tmp_path / "pfn", canonical=True)
        with dumpxlate.open(tmp_path / "pfn") as dump:
            assert compare(dump, save, strict=True).same
        assert vmcore_pages(tmp_path / "pfn") == every_page(save)


def test_split_set(tmp_path: Path) -> None:
    with dumpxlate.open(CORE) as core, dumpxlate.open(SAVE) as save:
        reports = convert_set(core, tmp_path / "out", "kdump", WriteOptions(), split=2, canonical=True)
        assert [report.rewritten and report.rewritten.tables for report in reports] == [5, 5]
        with dumpxlate.open(tmp_path / "out.1", tmp_path / "out.2") as dump:
            assert compare(dump, save, strict=True).same


@pytest.mark.parametrize("name", ["xendump/t1.old8", "xendump/t3.old8"])
def test_old_dump_with_its_map(name: str) -> None:
    p2m = SAMPLES / f"{name.split('.')[0]}.map"
    with dumpxlate.open(SAMPLES / f"{name}.xz", p2m=p2m) as dump:
        made = dump.canonical()
        before, after = every_page(dump), every_page(made)
        rip = dump.cpus[0].registers["rip"] & ~0xFFF
        assert made.virtual().read(rip, 4096) == dump.virtual().read(rip, 4096)
        assert made.virtual().trace(rip).physical == dump.virtual().trace(rip).physical
    changed = {pfn for pfn, page in before.items() if after[pfn] != page}
    assert 5 <= len(changed) < 10
    assert all(b"XLATTINY" not in before[pfn][:16] for pfn in changed)


# The command line.


def test_convert_tells_what_it_did(cli: Cli, tmp_path: Path) -> None:
    done = cli("convert", CORE, "--canonical", "-o", "out", "--report", "report.json")
    assert done.returncode == 0, done.stderr
    assert "5 page tables of 1 address spaces rewritten" in done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    valid("convert-1", report)
    assert (report["rewritten"]["tables"], report["rewritten"]["entries"], report["losses"]) == (5, 913, [])

    info = json.loads(cli("info", "out", "--json").stdout)
    valid("info-1", info)
    assert (info["machine"]["paravirtual"], info["machine"]["canonical"]) == (False, True)
    assert "with its own frames (pfn)" in cli("info", "out").stdout
    assert info["p2m"]["pages"] == 909  # the map stays: read --machine works
    assert cli("read", "out", "0x39405000", "8", "--machine", text=False).stdout == b"xen-3.0-"
    assert cli("translate", "out", "0x72b").returncode == 0


def test_info_tells_that_tables_hold_machine_frames(cli: Cli, tmp_path: Path) -> None:
    assert cli("convert", CORE, "-o", "out").returncode == 0
    for file in (CORE, tmp_path / "out"):
        found = json.loads(cli("info", file, "--json").stdout)
        assert (found["machine"]["paravirtual"], found["machine"]["canonical"]) == (True, False)
        assert any("convert --canonical" in step for step in found["next"])
        assert "of machine frames (mfn)" in cli("info", file).stdout


def test_nothing_to_rewrite(cli: Cli) -> None:
    for sample in ("xen_core/t5.core", "xen_stream/t7.save", "elf/x64-long.elf"):
        done = cli(
            "convert", SAMPLES / f"{sample}.xz", "--canonical", "-o", "out", "--force", "--report", "report.json"
        )
        assert done.returncode == 0, done.stderr
        assert "none were rewritten" in done.stderr


def test_old_dump_whose_map_is_found_in_it(cli: Cli) -> None:
    done = cli("convert", SAMPLES / "xendump/t1.old8.xz", "--canonical", "-o", "found")
    assert done.returncode == 0, done.stderr
    assert "5 page tables of 1 address spaces rewritten" in done.stderr
    given = cli(
        "convert", SAMPLES / "xendump/t1.old8.xz", "--p2m", SAMPLES / "xendump/t1.map", "--canonical", "-o", "given"
    )
    assert given.returncode == 0, given.stderr
    assert cli("compare", "found", "given", "--strict").returncode == 0


# The note by which a reader knows.


def notes(path: Path) -> list[tuple[str, int, bytes]]:
    """Notes of an ELF file, by hand."""
    data = path.read_bytes()
    phoff, phnum = struct.unpack_from("<Q", data, 32)[0], struct.unpack_from("<H", data, 56)[0]
    heads = [struct.unpack_from("<IIQQQQQQ", data, phoff + 56 * number) for number in range(phnum)]
    found: list[tuple[str, int, bytes]] = []
    for _, _, at, _, _, size, _, _ in [head for head in heads if head[0] == 4]:
        end = at + size
        while at < end:
            namesz, descsz, kind = struct.unpack_from("<3I", data, at)
            body = at + 12 + -(-namesz // 4) * 4
            found.append((data[at + 12 : at + 11 + namesz].decode(), kind, data[body : body + descsz]))
            at = body + -(-descsz // 4) * 4
    return found


@pytest.mark.parametrize("source", [CORE, SAVE], ids=["core", "save"])
def test_notes(tmp_path: Path, source: Path) -> None:
    with dumpxlate.open(source) as dump:
        dumpxlate.convert(dump, tmp_path / "out", canonical=True)
    found: dict[tuple[str, int], Any] = {(name, kind): desc for name, kind, desc in notes(tmp_path / "out")}
    assert found["DUMPXLATE", 5] == b""
    qemu = found["QEMU", 0]
    cr0, cr3, cr4 = (struct.unpack_from("<Q", qemu, 392 + 8 * number)[0] for number in (0, 3, 4))
    assert (cr0 >> 31, cr3, cr4 >> 5 & 1) == (1, 0x8000, 1)
