"""Maps found in real dumps, by every method that applies, against what Xen's own tools say of the same guests."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING

import numpy as np
import pytest

import dumpxlate
from dumpxlate.elf.symbols import read_symbols
from dumpxlate.errors import MapError
from dumpxlate.p2m.files import read_map
from dumpxlate.p2m.map import P2M
from dumpxlate.p2m.methods import METHODS, find_map, ways
from tests.builders import large_pv, p2m_tree, xen_core, xendump
from tests.builders import p2m as builder
from tests.builders.guest import small_guest
from tests.builders.symbols import elf_symbols, system_map
from tests.conftest import SAMPLES

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    Cli = Callable[..., subprocess.CompletedProcess[str]]

PV = ["t0", "t1", "t2", "t3", "t4", "t6", "t7"]
# From the kallsyms of the guest's own kernel, Debian's 6.1.0-56-cloud-amd64.
PV1_SYMBOLS = {
    "xen_p2m_addr": 0xFFFFFFFF82C362B0,
    "xen_p2m_size": 0xFFFFFFFF82C362A8,
    "xen_p2m_last_pfn": 0xFFFFFFFF832B8DA0,
    "max_pfn": 0xFFFFFFFF8334E5B8,
}


def differing(found: P2M, truth: P2M) -> list[int]:
    """pfns whose page is in another frame; flagged entries are not compared where only one side has them at all."""
    size = max(found.size, truth.size)
    pfn = np.arange(size, dtype=np.int64)
    return np.flatnonzero(found.mfn(pfn) != truth.mfn(pfn)).tolist()


def applying(dump: dumpxlate.Dump) -> list[str]:
    return [way.method for way in ways(dump) if way.applies]


@pytest.mark.parametrize("name", PV)
def test_every_method_gives_the_cores_own_table(name: str, shared: Path, unpacked: Callable[[Path], Path]) -> None:
    with dumpxlate.open(unpacked(shared / f"fixtures/xen/{name}.core.xz")) as dump:
        assert applying(dump) == ["sections", "shared-info", "search"]
        assert dump.p2m is not None
        for method in applying(dump):
            assert differing(find_map(dump, method).p2m, dump.p2m) == [], method


@pytest.mark.parametrize("name", PV)
def test_every_method_gives_what_mfndump_printed(name: str, shared: Path, unpacked: Callable[[Path], Path]) -> None:
    """The tool that wrote t6 had no room for its last page: the guest has it, and the dump does not."""
    truth = read_map(unpacked(shared / f"fixtures/xen/{name}.p2m.txt.xz"))
    lost = {"t6": truth.pages().stop - 1}.get(name)
    with dumpxlate.open(unpacked(shared / f"fixtures/xen/{name}.core.xz")) as dump:
        for method in applying(dump):
            assert differing(find_map(dump, method).p2m, truth) == ([] if lost is None else [lost]), method


@pytest.mark.parametrize("kind", ["old8", "old4"])
@pytest.mark.parametrize("name", PV)
def test_search_opens_old_dumps(name: str, kind: str, shared: Path, unpacked: Callable[[Path], Path]) -> None:
    """Those of 4-byte entries have no cr3 either, and say that their guest has 32 bits, which it has not."""
    truth = read_map(unpacked(shared / f"fixtures/xen/{name}.{kind}.map.xz"))
    with dumpxlate.open(unpacked(shared / f"fixtures/xen/{name}.{kind}.xz")) as dump:
        assert applying(dump) == ["search"]
        found = dump.find_p2m()
        assert (found.method, differing(found.p2m, truth)) == ("search", [])
        assert found.confidence is not None
        assert found.confidence > 0.99


@pytest.mark.parametrize("name", ["xen/t7", "xen-linux/pv1"])
def test_save_images_list_their_map(name: str, shared: Path, unpacked: Callable[[Path], Path]) -> None:
    truth = read_map(unpacked(shared / f"fixtures/{name}.p2m.txt.xz"))
    with dumpxlate.open(unpacked(shared / f"fixtures/{name}.save.xz")) as dump:
        assert applying(dump) == ["sections"]
        assert differing(dump.find_p2m().p2m, truth) == []


@pytest.mark.parametrize("name", ["xen/t5.core", "xen/t5.old8", "xen/t5.save", "xen-linux/pvh1.core"])
def test_guests_without_a_map_have_the_identity(name: str, shared: Path, unpacked: Callable[[Path], Path]) -> None:
    with dumpxlate.open(unpacked(shared / f"fixtures/{name}.xz")) as dump:
        found = dump.find_p2m()
        pfn = dump.pages.ram.select(0, dump.pages.ram.count)
        assert (found.how, found.p2m.runs.total) == ("identity", len(pfn))
        assert (found.p2m.mfn(pfn) == pfn).all()


@pytest.fixture(scope="module")
def pv1(shared: Path, unpacked: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A Linux guest with holes: its core, the old layout made from it, what mfndump printed."""
    core = unpacked(shared / "fixtures/xen-linux/pv1.core.xz")
    old = tmp_path_factory.mktemp("pv1") / "pv1.old8"
    with dumpxlate.open(core) as dump:
        dumpxlate.convert(dump, old, "xendump", allow_loss=True)
    symbols = old.with_name("System.map")
    symbols.write_bytes(system_map(PV1_SYMBOLS))
    truth = unpacked(shared / "fixtures/xen-linux/pv1.p2m.txt.xz")
    return {"core": core, "old8": old, "truth": truth, "symbols": symbols}


class TestLinux:
    """The same for a real kernel, which has frame lists, a linear list and symbols."""

    @pytest.mark.parametrize("kind", ["core", "old8"])
    def test_every_method(self, pv1: dict[str, Path], kind: str) -> None:
        truth, symbols = read_map(pv1["truth"]), read_symbols(pv1["symbols"])
        with dumpxlate.open(pv1[kind]) as dump:
            methods = [way.method for way in ways(dump, symbols) if way.applies]
            assert methods == (list(METHODS) if kind == "core" else ["tree", "search"])
            for method in methods:
                found = find_map(dump, method, symbols=symbols)
                assert differing(found.p2m, truth) == [], method
                assert found.confidence in (None, 1.0)

    def test_linear_list_is_the_same(self, pv1: dict[str, Path]) -> None:
        with dumpxlate.open(pv1["core"]) as dump:
            block = bytearray(dump.blocks["xen_shared_info"])
            struct.pack_into("<Q", block, 3096, 0)  # the guest has not told of its frame lists
            found = find_map(_with_block(dump, bytes(block)), "shared-info")
            assert found.how == "linear list at 0xffffc90000000000"
            assert differing(found.p2m, read_map(pv1["truth"])) == []

    def test_check(self, cli: Cli, pv1: dict[str, Path], tmp_path: Path) -> None:
        done = cli("p2m", "check", pv1["core"], pv1["truth"], "--json")
        found = json.loads(done.stdout)
        assert (done.returncode, found["confidence"], found["remarks"]) == (0, 1.0, [])
        assert {each["name"]: each["agree"] for each in found["evidence"]} == {
            "pages": 25600,
            "frames": 25600,
            "page tables": 29779,
            "linear map": 25600,
            "entries": 25600,
            "lists": 82,
            "VMCOREINFO": 16,
        }
        shifted = np.roll(read_map(pv1["truth"]).entries(0, 0xA000), 512)
        (tmp_path / "shifted.map").write_bytes(shifted.tobytes())
        done = cli("p2m", "check", pv1["old8"], "shifted.map", "--json")
        found = json.loads(done.stdout)
        shares = {each["name"]: each["share"] for each in found["evidence"]}
        assert (done.returncode, found["makes_sense"]) == (1, False)
        assert (shares["pages"], shares["page tables"], shares["linear map"]) == (1.0, 1.0, 0.0)
        assert shares["VMCOREINFO"] < 0.5

    def test_convert_by_itself(self, cli: Cli, pv1: dict[str, Path]) -> None:
        done = cli("convert", pv1["old8"], "-o", "found")
        assert done.returncode == 0, done.stderr
        assert (
            "p2m map by search: frame lists at machine frame 0x174b51: 25,600 pages, confidence 100.0%" in done.stderr
        )
        cli("convert", pv1["old8"], "--p2m", pv1["truth"], "-o", "given")
        assert cli("compare", "--strict", "found", "given").returncode == 0


def _with_block(dump: dumpxlate.Dump, block: bytes) -> dumpxlate.Dump:
    from dataclasses import replace

    return replace(dump, blocks={"xen_shared_info": block})


class TestCommands:
    """What a user does with samples and model guests."""

    def test_convert_finds_the_map(self, cli: Cli, sample: Callable[[str], Path]) -> None:
        done = cli("convert", sample("xendump/t1.old8"), "-o", "vmcore")
        assert done.returncode == 0, done.stderr
        assert "by search: linear list at 0x3000: 909 pages, confidence 100.0%" in done.stderr
        assert cli("compare", "vmcore", sample("xen_core/t1.core")).returncode == 0

    def test_extract(self, cli: Cli, sample: Callable[[str], Path], tmp_path: Path) -> None:
        for method in ("sections", "shared-info", "search", None):
            words = ["--method", method] if method else []
            done = cli("p2m", "extract", sample("xen_core/t1.core"), *words, "-o", f"{method}.map")
            assert done.returncode == 0, done.stderr
            assert f"by {method or 'sections'}: " in done.stderr
            with dumpxlate.open(sample("xen_core/t1.core")) as dump:
                assert dump.p2m is not None
                assert differing(read_map(tmp_path / f"{method}.map"), dump.p2m) == []

    @pytest.mark.parametrize("format", ["elf", "kdump"])
    def test_what_was_written_by_a_map(self, cli: Cli, sample: Callable[[str], Path], format: str) -> None:
        """A vmcore keeps the map in a note, so the guest's pages are known by machine frame all the same."""
        core, p2m = sample("xen_core/t1.core"), SAMPLES / "xendump/t1.map"
        assert cli("convert", core, "-t", format, "-o", "vmcore", "--allow-loss").returncode == 0
        assert cli("p2m", "check", "vmcore", p2m).returncode == 0
        done = cli("p2m", "extract", "vmcore", "--method", "search", "-o", "found.map")
        assert "search: linear list at 0x3000: 909 pages, confidence 100.0%" in done.stderr
        done = cli("info", "vmcore", "--p2m", "dump:search")
        assert (done.returncode, "takes no p2m map" in done.stderr) == (2, True)

    @pytest.mark.parametrize("method", ["sections", "shared-info", "search"])
    def test_method_by_name(self, cli: Cli, sample: Callable[[str], Path], method: str) -> None:
        core = sample("xen_core/t1.core")
        assert cli("convert", core, "--p2m", f"dump:{method}", "-o", "vmcore").returncode == 0
        assert cli("compare", "vmcore", core).returncode == 0

    def test_info_says_what_there_is_to_start_from(self, cli: Cli, sample: Callable[[str], Path]) -> None:
        def applies(name: str) -> dict[str, bool]:
            listed = json.loads(cli("info", "--json", sample(name)).stdout)["p2m_methods"]
            return {each["method"]: each["applies"] for each in listed}

        assert applies("xendump/t1.old8") == dict(zip(METHODS, (False, False, False, True), strict=True))
        assert applies("xen_core/t1.core") == dict(zip(METHODS, (True, True, False, True), strict=True))
        assert applies("xen_stream/t7.save") == dict(zip(METHODS, (True, False, False, False), strict=True))
        assert applies("kdump/x64-long.kdump") == {}
        shown = cli("info", sample("xen_core/t1.core")).stdout
        assert "linear list at 0x3000 with" in " ".join(shown.split())

    @pytest.mark.parametrize("kind", p2m_tree.KINDS)
    @pytest.mark.parametrize("width", [8, 4])
    def test_tree(self, cli: Cli, tmp_path: Path, kind: str, width: int) -> None:
        """An old dump of a guest of either width, by vmlinux and by System.map."""
        guest = small_guest(ranges=[(0, 0xA0), (0x100, 0x200)], excluded=[])
        kernel = p2m_tree.with_kernel_tree(guest, builder.entries(guest), kind, at=range(0x140, 0x1C0), width=width)
        (tmp_path / "old").write_bytes(xendump.build(kernel.guest, width=width))
        (tmp_path / "vmlinux").write_bytes(elf_symbols(kernel.symbols, bits=8 * width))
        (tmp_path / "System.map").write_bytes(system_map(kernel.symbols))
        for symbols in ("vmlinux", "System.map"):
            done = cli("p2m", "extract", "old", "--symbols", symbols, "-o", "found.map", "--force")
            assert done.returncode == 0, done.stderr
            assert "p2m map by tree: " in done.stderr
            assert read_map(tmp_path / "found.map").entries(0, len(kernel.table)).tolist() == kernel.table

    def test_another_kernels_symbols(self, cli: Cli, tmp_path: Path) -> None:
        """They lead to the list, one page of it late: only the linear map can tell."""
        guest = small_guest(ranges=[(0, 0xA0), (0x100, 0x600)], excluded=[])
        kernel = p2m_tree.with_kernel_tree(guest, builder.entries(guest), "two", at=range(0x140, 0x1C0))
        wrong = kernel.symbols | {"p2m_top": kernel.symbols["p2m_top"] + 8}
        (tmp_path / "old").write_bytes(xendump.build(kernel.guest))
        (tmp_path / "System.map").write_bytes(system_map(wrong))
        done = cli("convert", "old", "--p2m", "dump:tree", "--symbols", "System.map", "-o", "vmcore")
        assert (done.returncode, "are these its symbols" in done.stderr) == (2, True), done.stderr
        assert not (tmp_path / "vmcore").exists()

    @pytest.mark.parametrize(
        ("words", "says"),
        [
            (["--p2m", "dump:guess"], "no method is called 'guess': there are sections, shared-info, tree, search"),
            (["--p2m", "dump:tree"], "tree: the kernel's symbols are needed: --symbols vmlinux or System.map"),
            (["--p2m", "dump:shared-info"], "shared-info: the file has no shared_info"),
            (["--p2m", "dump", "--symbols", "nowhere"], "nowhere: no such file"),
            (["--p2m", "dump", "--symbols", "junk"], "junk: neither an ELF file with symbols nor a System.map"),
        ],
    )
    def test_refused(
        self, cli: Cli, sample: Callable[[str], Path], tmp_path: Path, words: list[str], says: str
    ) -> None:
        (tmp_path / "junk").write_bytes(b"junk" * 2000)
        done = cli("convert", sample("xendump/t1.old8"), *words, "-o", "vmcore")
        assert (done.returncode, says in done.stderr) == (2, True), done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert not (tmp_path / "vmcore").exists()

    def test_guest_without_a_list(self, cli: Cli, tmp_path: Path) -> None:
        (tmp_path / "old").write_bytes(xendump.build(small_guest()))
        done = cli("convert", "old", "-o", "vmcore")
        assert done.returncode == 2
        for method in METHODS:
            assert f"{method}: " in done.stderr
        assert "give one with --p2m MAP" in done.stderr
        assert len(done.stderr.splitlines()) == 1

    def test_file_that_is_called_like_a_method(self, cli: Cli, sample: Callable[[str], Path], tmp_path: Path) -> None:
        (tmp_path / "dump").write_bytes(b"no map")
        done = cli("convert", sample("xendump/t1.old8"), "--p2m", "dump", "-o", "vmcore")
        assert done.stderr == "dumpxlate: dump: no line of it names a pfn and an mfn\n"

    def test_damage_is_told_before_anything_is_searched(self, cli: Cli, tmp_path: Path) -> None:
        (tmp_path / "old").write_bytes(xendump.build(small_guest(), truncate=-9000))
        done = cli("convert", "old", "-o", "vmcore")
        assert (done.returncode, "truncated" in done.stderr) == (5, True)

    def test_truncated_dump_is_searched_for_salvage(self, cli: Cli, tmp_path: Path) -> None:
        """Frames that the index names count as the guest's, though their pages are cut off."""
        guest = small_guest(ranges=[(0, 0xA0), (0x100, 0x200)], excluded=[])
        made = builder.with_frame_lists(guest, builder.entries(guest), at=range(0x108, 0x140))
        whole = xendump.build(made.guest)
        lists = [pfn for pfn in range(0x108, 0x140) if made.guest.pages[pfn] != guest.pages[pfn]]
        order = [*lists, *(pfn for pfn in made.guest.stored if pfn not in lists)]
        (tmp_path / "old").write_bytes(xendump.build(made.guest, order=order)[: len(whole) - 0x40 * 4096])
        done = cli("convert", "old", "--salvage", "--allow-loss", "-o", "vmcore")
        assert done.returncode == 4, done.stderr
        assert "by search: frame lists" in done.stderr


def test_large_guest_in_a_sparse_file(tmp_path: Path) -> None:
    """Several batches of lists and tables, of a guest whose memory is scattered over the machine's."""
    mfn = large_pv.write_large_core(tmp_path / "core", 10, scattered=0.1)
    (tmp_path / "System.map").write_bytes(
        system_map({"xen_p2m_addr": large_pv.POINTER, "xen_p2m_size": large_pv.POINTER + 8})
    )
    symbols = read_symbols(tmp_path / "System.map")
    with dumpxlate.open(tmp_path / "core") as dump:
        for method in ("sections", "shared-info", "tree"):
            found = find_map(dump, method, symbols=symbols).p2m
            assert (found.entries(0, found.size).astype(np.int64) == mfn).all(), method
            assert found.size == len(mfn)


class TestMisfit:
    """A guest's own list that does not fit its dump is refused by every method, unless loss is allowed."""

    def core(self, tmp_path: Path) -> Path:
        guest = small_guest(ranges=[(0, 0xA0), (0x100, 0x100)], excluded=[])
        more = builder.entries({**guest.mfns, **{pfn: 0x300000 + pfn for pfn in range(0x200, 0x220)}})
        made = builder.with_frame_lists(guest, more, at=range(0x108, 0x140))
        path = tmp_path / "core"
        path.write_bytes(xen_core.build(made.guest, shared_info=made.shared_info))
        return path

    def test_refused(self, tmp_path: Path) -> None:
        with (
            dumpxlate.open(self.core(tmp_path)) as dump,
            pytest.raises(MapError, match=r"does not fit this dump: 32 of 448 mapped pages are not in it"),
        ):
            dump.find_p2m("shared-info")

    def test_allowed(self, cli: Cli, tmp_path: Path) -> None:
        core = self.core(tmp_path)
        words = ["p2m", "extract", core, "--method", "shared-info", "-o", "found.map"]
        assert cli(*words).returncode == 2
        assert cli(*words, "--allow-loss").returncode == 0
        assert read_map(tmp_path / "found.map").runs.total == 448

    def test_strangers_are_left_out(self, tmp_path: Path) -> None:
        guest = small_guest(ranges=[(0, 0xA0), (0x100, 0x100)], excluded=[])
        made = builder.with_frame_lists(guest, builder.entries({**guest.mfns, 0x200: 0x10}), at=range(0x108, 0x140))
        path = tmp_path / "core"
        path.write_bytes(xen_core.build(made.guest, shared_info=made.shared_info))
        with dumpxlate.open(path) as dump:
            found = dump.find_p2m("shared-info")
            assert (found.strangers, found.p2m.runs.total, found.p2m.size) == (1, 416, 0x201)
            assert differing(found.p2m, P2M.from_pairs(*map(np.array, zip(*guest.mfns.items(), strict=True)))) == []
