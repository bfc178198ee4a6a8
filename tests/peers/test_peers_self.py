"""The peers answer rightly about files that dumpxlate had no part in; else their word on our files means nothing."""

from __future__ import annotations

import json
import lzma
import struct
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.peers import peers

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Unpack = Callable[[Path], Path]

pytestmark = pytest.mark.peer

PAGE = 4096
BASE = 0xFFFF888000000000


def page(pfn: int) -> bytes:
    return struct.pack("<QQ", pfn, ~pfn & (2**64 - 1)) * (PAGE // 16)


@pytest.fixture
def core(tmp_path: Path) -> Path:
    """An x86-64 core by hand: pfns 0 to 3 and 0x100 to 0x101, one processor with rip 0x1234."""
    status = bytearray(336)
    struct.pack_into("<I", status, 32, 7)  # pr_pid
    struct.pack_into("<Q", status, 112 + 16 * 8, 0x1234)  # pr_reg.rip
    note = struct.pack("<III8s", 5, len(status), 1, b"CORE") + status
    runs = [(0, 4), (0x100, 2)]
    at = 64 + 56 * 3
    rows = [struct.pack("<IIQQQQQQ", 4, 0, at, 0, 0, len(note), len(note), 4)]
    at, body = PAGE, b""
    for pfn, count in runs:
        size = count * PAGE
        rows.append(struct.pack("<IIQQQQQQ", 1, 6, at, BASE + pfn * PAGE, pfn * PAGE, size, size, PAGE))
        body += b"".join(page(n) for n in range(pfn, pfn + count))
        at += size
    head = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH", 4, 62, 1, 0, 64, 0, 0, 64, 56, 3, 64, 0, 0
    )
    path = tmp_path / "core"
    path.write_bytes((head + b"".join(rows) + note).ljust(PAGE, b"\0") + body)
    return path


PFNS = [0, 1, 2, 3, 0x100, 0x101]
SUMS = {pfn: zlib.crc32(page(pfn)) for pfn in PFNS}


def oracle(folder: Path) -> dict[int, int]:
    """Digest of each page of a tiny guest, taken by QEMU outside of any dump format."""
    with np.load(folder / "oracle.npz") as arrays:
        return dict(zip(arrays["pfn"].tolist(), arrays["digest"].tolist(), strict=True))


def tiny(shared: Path, machine: str) -> Path:
    return shared / "fixtures" / "tiny" / machine


class TestRequire:
    def test_unknown_name(self) -> None:
        with pytest.raises(ValueError, match="no peer is called windbg"):
            peers.require("windbg")

    def test_absent(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "")
        monkeypatch.delenv("DUMPXLATE_REQUIRE_PEERS", raising=False)
        with pytest.raises(pytest.skip.Exception, match="not installed here: crash, gdb"):
            peers.require("crash", "gdb")
        monkeypatch.setenv("DUMPXLATE_REQUIRE_PEERS", "1")
        with pytest.raises(pytest.fail.Exception, match="is set, but not installed here: crash"):
            peers.require("crash")


class TestReadelf:
    @pytest.fixture(autouse=True)
    def _needs(self) -> None:
        peers.require("readelf")

    def test_core(self, core: Path) -> None:
        view = peers.readelf(core)
        assert (view.bits, view.machine, view.complaints) == (64, "Advanced Micro Devices X86-64", ())
        assert view.loads == (
            peers.Load(PAGE, BASE, 0, 4 * PAGE, 4 * PAGE),
            peers.Load(5 * PAGE, BASE + 0x100000, 0x100000, 2 * PAGE, 2 * PAGE),
        )
        assert view.notes == (peers.NoteLine("CORE", 336, "NT_PRSTATUS"),)

    def test_complaint(self, core: Path) -> None:
        with core.open("r+b") as file:
            file.seek(64 + 56 * 3 + 4)
            file.write(struct.pack("<I", 5000))  # n_descsz
        assert "invalid namesz and/or descsz" in peers.readelf(core).complaints[0]

    def test_truncated(self, core: Path) -> None:
        with core.open("r+b") as file:
            file.truncate(300)
        with pytest.raises(peers.PeerError, match="past end of file for notes"):
            peers.readelf(core)

    def test_no_elf(self, tmp_path: Path) -> None:
        path = tmp_path / "text"
        path.write_bytes(b"text, and nothing else that could be taken for a header of sixty-four bytes")
        with pytest.raises(peers.PeerError, match="Not an ELF file"):
            peers.readelf(path)

    def test_qemu(self, shared: Path, unpacked: Unpack) -> None:
        view = peers.readelf(unpacked(shared / "fixtures/qemu-core/q35/elf.dump.xz"))
        assert [(load.paddr, load.memsz) for load in view.loads] == [
            (0, 0x400000),
            (0xFFFC0000, 0x40000),
            (0x100000000, 0x200000),
        ]
        assert [(note.owner, note.size) for note in view.notes] == [("CORE", 0x90)] * 2 + [("QEMU", 0x1B8)] * 2

    def test_32_bits(self, shared: Path, unpacked: Unpack) -> None:
        view = peers.readelf(unpacked(tiny(shared, "arm") / "elf.xz"))
        assert (view.bits, view.machine, len(view.loads)) == (32, "ARM", 1)


class TestKdumpfile:
    @pytest.fixture(autouse=True)
    def _needs(self) -> None:
        peers.require("kdumpfile")

    def test_core(self, core: Path) -> None:
        assert peers.kdumpfile_pages(core, [*PFNS, 4, 0x102]) == {**SUMS, 4: None, 0x102: None}
        attrs = peers.kdumpfile_attrs(core)
        assert (attrs["file.format"], attrs["arch.name"], attrs["cpu.number"]) == ("elf", "x86_64", 1)
        assert (attrs["cpu.0.reg.rip"], attrs["max_pfn"]) == (0x1234, 0x102)
        assert len(bytes.fromhex(str(attrs["cpu.0.PRSTATUS"]))) == 336

    def test_refusal(self, tmp_path: Path) -> None:
        path = tmp_path / "empty"
        path.touch()
        with pytest.raises(peers.PeerError, match="Cannot open dump"):
            peers.kdumpfile_attrs(path)

    @pytest.mark.parametrize("machine", ["x64-long", "x64-split", "i386-pae"])
    def test_qemu_elf(self, shared: Path, unpacked: Unpack, machine: str) -> None:
        want = oracle(tiny(shared, machine))
        assert peers.kdumpfile_pages(unpacked(tiny(shared, machine) / "elf.xz"), want, digest="sha256") == want

    @pytest.mark.parametrize("machine", ["x64-long", "aarch64", "ppc64", "s390x"])
    def test_rearranged_kdump(self, shared: Path, unpacked: Unpack, tmp_path: Path, machine: str) -> None:
        peers.require("makedumpfile")
        plain = peers.rearrange(unpacked(tiny(shared, machine) / "kdump-zlib.xz"), tmp_path / "plain")
        want = oracle(tiny(shared, machine))
        assert peers.kdumpfile_pages(plain, want, digest="sha256") == want

    @pytest.mark.parametrize(("space", "column"), [("KPHYSADDR", 1), ("MACHPHYSADDR", 2)])
    def test_xen(self, shared: Path, unpacked: Unpack, space: peers.Space, column: int) -> None:
        folder = shared / "fixtures" / "xen"
        rows = json.loads(lzma.decompress((folder / "t1.json.xz").read_bytes()))["pages"]
        want = {int(row[column], 16): int(row[3], 16) for row in rows}
        assert len(want) > 900
        assert peers.kdumpfile_pages(unpacked(folder / "t1.core.xz"), want, space=space) == want


class TestMakedumpfile:
    @pytest.fixture(autouse=True)
    def _needs(self) -> None:
        peers.require("makedumpfile", "kdumpfile")

    @pytest.mark.parametrize("option", ["-c", "-l", "-E"])
    def test_refilter(self, core: Path, tmp_path: Path, option: str) -> None:
        target = peers.refilter(core, tmp_path / "out", option, level=1)
        assert peers.kdumpfile_attrs(target)["file.format"] == ("elf" if option == "-E" else "diskdump")
        assert peers.kdumpfile_pages(target, PFNS) == SUMS

    def test_flattened(self, core: Path, tmp_path: Path) -> None:
        flat = tmp_path / "flat"
        with flat.open("wb") as file:
            file.write(peers.flatten(core))
        assert flat.read_bytes().startswith(b"makedumpfile\0")
        assert peers.kdumpfile_pages(peers.rearrange(flat, tmp_path / "out"), PFNS) == SUMS

    def test_nothing_to_rearrange(self, tmp_path: Path) -> None:
        (tmp_path / "empty").touch()
        with pytest.raises(peers.PeerError, match="for ever"):
            peers.rearrange(tmp_path / "empty", tmp_path / "out")

    def test_headers_where_it_does_not_look(self, shared: Path, unpacked: Unpack, tmp_path: Path) -> None:
        source = unpacked(tiny(shared, "x64-long") / "elf.xz")
        with pytest.raises(peers.PeerError, match="Can't get the number of PT_LOAD"):
            peers.refilter(source, tmp_path / "out")


class TestGdb:
    @pytest.fixture(autouse=True)
    def _needs(self) -> None:
        peers.require("gdb")

    def test_core(self, core: Path) -> None:
        found = peers.gdb_core(core, [BASE, BASE + 0x101010, BASE + 4 * PAGE], 16)
        assert found.sections == ((BASE, BASE + 4 * PAGE), (BASE + 0x100000, BASE + 0x102000))
        assert list(found.threads) == [7]
        assert found.threads[7]["rip"] == 0x1234
        assert found.memory == {BASE: page(0)[:16], BASE + 0x101010: page(0x101)[:16], BASE + 4 * PAGE: None}

    def test_no_core(self, tmp_path: Path) -> None:
        path = tmp_path / "text"
        path.write_text("no core")
        with pytest.raises(peers.PeerError, match="not a core dump"):
            peers.gdb_core(path)

    def test_qemu(self, shared: Path, unpacked: Unpack) -> None:
        found = peers.gdb_core(unpacked(tiny(shared, "x64-long") / "elf-paging.xz"), [0xFFFFFFFF81000000], 8)
        assert found.memory[0xFFFFFFFF81000000] == b"DXTINY01"
        assert found.threads[1]["rax"] == 0x1111222233334444
        assert (found.threads[1]["rip"], found.threads[2]["rip"]) == (0xFE0AB, 0xFFF0)


class TestDrgn:
    @pytest.fixture(autouse=True)
    def _needs(self) -> None:
        peers.require("drgn")

    def test_core(self, core: Path) -> None:
        assert peers.drgn_pages(core, [*PFNS, 4]) == {**SUMS, 4: None}

    def test_wants_vmcoreinfo(self, shared: Path, unpacked: Unpack) -> None:
        with pytest.raises(peers.PeerError, match="unrecognized QEMU memory dump"):
            peers.drgn_pages(unpacked(tiny(shared, "x64-long") / "elf.xz"), [0])

    def test_qemu(self, shared: Path, unpacked: Unpack) -> None:
        want = oracle(tiny(shared, "aarch64"))
        assert peers.drgn_pages(unpacked(tiny(shared, "aarch64") / "elf.xz"), want, digest="sha256") == want


class TestVolatility:
    @pytest.fixture(autouse=True)
    def _needs(self) -> None:
        peers.require("volatility3")

    def test_core(self, core: Path) -> None:
        found = peers.volatility(core, [*PFNS, 4])
        assert found.layers == ("FileLayer", "Elf64Layer")
        assert found.pages == {**SUMS, 4: None}

    def test_lime(self, tmp_path: Path) -> None:
        path = tmp_path / "lime"
        head = struct.pack("<IIQQQ", 0x4C694D45, 1, 2 * PAGE, 4 * PAGE - 1, 0)
        path.write_bytes(head + page(2) + page(3))
        found = peers.volatility(path, [1, 2, 3])
        assert found.layers == ("FileLayer", "LimeLayer")
        assert found.pages == {1: None, 2: SUMS[2], 3: SUMS[3]}

    def test_unknown_file(self, tmp_path: Path) -> None:
        path = tmp_path / "raw"
        path.write_bytes(page(0) + page(1))
        assert peers.volatility(path, [0, 1]) == peers.Stacked(("FileLayer",), {0: SUMS[0], 1: SUMS[1]})

    def test_xen(self, shared: Path, unpacked: Unpack) -> None:
        assert "XenCoreDumpLayer" in peers.volatility(unpacked(shared / "fixtures/xen/t5.core.xz")).layers


class TestLinuxGuest:
    """A stopped Debian guest: QEMU's dumps of it, its memory, its kernel's debug image."""

    @pytest.fixture
    def facts(self, guest: Path) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads((guest / "facts.json").read_text())
        return facts

    @pytest.fixture
    def memory(self, guest: Path) -> dict[int, int]:
        """Of what lies above the ROMs of the first MiB."""
        with (guest / "ram.raw").open("rb") as file:
            pages = enumerate(iter(lambda: file.read(PAGE), b""))
            return {pfn: zlib.crc32(body) for pfn, body in pages if pfn >= 0x100}

    def test_crash(self, guest: Path, facts: dict[str, Any]) -> None:
        peers.require("crash")
        tasks = "list task_struct.tasks -s task_struct.comm -h init_task"
        said = peers.crash(guest / "elf", guest / "vmlinux", "sys", tasks)
        table = peers.crash_table(said)
        assert (table["RELEASE"], table["CPUS"], table["MACHINE"].split()[0]) == (facts["release"], "2", "x86_64")
        assert f'comm = "{facts["task"]}' in said

    def test_drgn(self, guest: Path, facts: dict[str, Any], memory: dict[int, int]) -> None:
        peers.require("drgn")
        kernel = peers.drgn_kernel(guest / "elf", guest / "vmlinux")
        assert (kernel.release, kernel.cpus) == (facts["release"], 2)
        assert facts["task"] in kernel.tasks.values()
        assert peers.drgn_pages(guest / "elf", memory) == memory

    def test_kdumpfile(self, guest: Path, facts: dict[str, Any], memory: dict[int, int], tmp_path: Path) -> None:
        peers.require("kdumpfile", "makedumpfile")
        for path in (guest / "elf", peers.rearrange(guest / "kdump-zlib", tmp_path / "plain")):
            assert peers.kdumpfile_pages(path, memory) == memory
        assert peers.kdumpfile_attrs(guest / "elf")["cpu.1.reg.rip"] == facts["registers"][1]["rip"]

    def test_gdb(self, guest: Path, facts: dict[str, Any]) -> None:
        peers.require("gdb")
        stack = facts["registers"][0]["rsp"]
        found = peers.gdb_core(guest / "elf-paging", [stack], 8)
        assert [found.threads[lwp]["rip"] for lwp in (1, 2)] == [cpu["rip"] for cpu in facts["registers"]]
        assert found.memory[stack] is not None


class TestCrash:
    def test_wants_a_kernel(self, core: Path) -> None:
        peers.require("crash")
        with pytest.raises(peers.PeerError, match="crash"):
            peers.crash(core, core, "sys")
