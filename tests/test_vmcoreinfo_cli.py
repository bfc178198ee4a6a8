"""vmcoreinfo, and convert --vmcoreinfo: shown, written, found in memory, and put into what is written."""

from __future__ import annotations

import json
import stat
import zlib
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest

import dumpxlate
from tests.builders import elf, kdump, lime
from tests.builders.elf_notes import cpu_notes, note, vmcoreinfo
from tests.builders.guest import VMCOREINFO, Guest, small_guest, stored_runs
from tests.conftest import ROOT
from tests.peers import peers

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    Cli = Callable[..., subprocess.CompletedProcess[str]]
    Unpack = Callable[[Path], Path]

SCHEMA = json.loads((ROOT / "docs" / "schemas" / "vmcoreinfo-1.json").read_text())
PLAIN = small_guest(plain=True).but(vmcoreinfo="")
AT = 0x120000 + 100
OTHER = VMCOREINFO.replace("6.1.0-model", "7.0.0-other").replace("-90177536", "0x1000000")


def guest_with(text: str) -> Guest:
    """A guest that keeps the text in its memory, as a note."""
    content = PLAIN.pages[AT >> 12]
    planted = content[:76] + vmcoreinfo(text)  # 24 bytes of header
    return PLAIN.but(pages={**PLAIN.pages, AT >> 12: planted + content[len(planted) :]})


def elf_of(guest: Guest, *notes: bytes) -> bytes:
    loads = [elf.Segment(paddr=first << 12, data=guest.run(first, count)) for first, count in stored_runs(guest)]
    return elf.build(loads, [*cpu_notes(guest), *notes])


@pytest.fixture
def told(tmp_path: Path) -> Path:
    """A dump whose file has one text and whose memory has another."""
    path = tmp_path / "told"
    path.write_bytes(elf_of(guest_with(OTHER), vmcoreinfo(VMCOREINFO)))
    return path


@pytest.fixture
def untold(tmp_path: Path) -> Path:
    """A dump that has it in memory only."""
    path = tmp_path / "untold"
    path.write_bytes(elf_of(guest_with(VMCOREINFO)))
    return path


@pytest.fixture
def without(tmp_path: Path) -> Path:
    """A dump that has none anywhere."""
    path = tmp_path / "without"
    path.write_bytes(elf_of(PLAIN))
    return path


def described(cli: Cli, *words: str | Path) -> dict[str, Any]:
    done = cli("vmcoreinfo", "--json", *words)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    jsonschema.validate(found, SCHEMA, cls=jsonschema.Draft202012Validator)
    return found


def text_of(path: Path) -> str | None:
    with dumpxlate.open(path) as dump:
        return dump.vmcoreinfo.text if dump.vmcoreinfo else None


def test_what_the_file_has(cli: Cli, told: Path) -> None:
    found = described(cli, told)
    assert (found["origin"], found["address"], found["form"]) == ("file", None, None)
    assert (found["release"], found["page_size"], found["crash_time"]) == ("6.1.0-model", 4096, 1700000000)
    assert (found["phys_base"], found["kernel_offset"]) == ("-0x5600000", "0x1ee00000")
    assert found["counts"] == {"symbols": 2, "offsets": 1, "sizes": 1, "lengths": 1, "numbers": 1}
    assert found["lines"] == dict(line.split("=", 1) for line in VMCOREINFO.splitlines())
    said = cli("vmcoreinfo", told).stdout
    for word in ("the file", "6.1.0-model", "-0x5600000", "SYMBOL(_stext)"):
        assert word in said


def test_memory_is_searched_when_asked(cli: Cli, told: Path) -> None:
    found = described(cli, told, "--search")
    assert (found["origin"], found["address"], found["form"]) == ("memory", hex(AT), "note")
    assert found["release"] == "7.0.0-other"


def test_memory_is_searched_when_the_file_has_none(cli: Cli, untold: Path) -> None:
    found = described(cli, untold)
    assert (found["origin"], found["address"], found["form"]) == ("memory", hex(AT), "note")
    assert f"memory at guest physical address {AT:#x}" in " ".join(cli("vmcoreinfo", untold).stdout.split())


@pytest.mark.parametrize("options", [[], ["--search"], ["--json"], ["-o", "out"]])
def test_none_is_an_answer(cli: Cli, without: Path, tmp_path: Path, options: list[str]) -> None:
    done = cli("vmcoreinfo", without, *options)
    assert (done.returncode, done.stdout) == (1, "")
    assert "no VMCOREINFO in" in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_text_is_written_as_it_is(cli: Cli, untold: Path, tmp_path: Path) -> None:
    out = tmp_path / "text"
    done = cli("vmcoreinfo", untold, "-o", out)
    assert (done.returncode, done.stdout) == (0, "")
    assert f"found in memory at {AT:#x}" in done.stderr
    assert out.read_text() == VMCOREINFO
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert cli("vmcoreinfo", untold, "-o", out).returncode == 2
    assert cli("vmcoreinfo", untold, "-o", out, "--force").returncode == 0
    assert cli("vmcoreinfo", untold, "-o", "-").stdout == VMCOREINFO
    assert cli("vmcoreinfo", untold, "-o", untold, "--force").returncode == 2


def test_what_a_guest_writes_does_not_reach_the_terminal(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "dump").write_bytes(elf_of(PLAIN, vmcoreinfo("OSRELEASE=6\x1b[2J\nSIZE(\x1b[1m)=1\n")))
    assert "\x1b" not in cli("vmcoreinfo", "dump").stdout
    assert described(cli, "dump")["release"] == "6\\x1b[2J"


class TestConvert:
    def test_search(self, cli: Cli, untold: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        done = cli("convert", untold, "--vmcoreinfo", "search", "-o", out)
        assert done.returncode == 0, done.stderr
        assert f"found in memory at {AT:#x}" in done.stderr
        assert text_of(untold) is None
        assert text_of(out) == VMCOREINFO

    def test_search_in_compressed_pages(self, cli: Cli, tmp_path: Path) -> None:
        source, out = tmp_path / "source", tmp_path / "out"
        source.write_bytes(kdump.build(guest_with(VMCOREINFO), codec="zstd", vmcoreinfo=None))
        assert cli("convert", source, "--vmcoreinfo", "search", "-t", "kdump", "-o", out).returncode == 0
        assert text_of(out) == VMCOREINFO

    def test_search_finds_none(self, cli: Cli, without: Path, tmp_path: Path) -> None:
        done = cli("convert", without, "--vmcoreinfo", "search", "-o", "out")
        assert done.returncode == 1
        assert "no VMCOREINFO in memory; nothing was written" in done.stderr
        assert not (tmp_path / "out").exists()

    def test_search_is_not_needed(self, cli: Cli, told: Path, tmp_path: Path) -> None:
        done = cli("convert", told, "--vmcoreinfo", "search", "-o", "out")
        assert done.returncode == 0
        assert "has VMCOREINFO already" in done.stderr
        assert text_of(tmp_path / "out") == VMCOREINFO

    @pytest.mark.parametrize("target", ["elf", "kdump"])
    @pytest.mark.parametrize("name", ["told", "without"])
    def test_file(self, cli: Cli, request: pytest.FixtureRequest, tmp_path: Path, name: str, target: str) -> None:
        source, out = request.getfixturevalue(name), tmp_path / "out"
        (tmp_path / "text").write_text(OTHER)
        done = cli("convert", source, "--vmcoreinfo", "text", "-t", target, "-o", out)
        assert done.returncode == 0, done.stderr
        with dumpxlate.open(out) as dump:
            assert dump.vmcoreinfo is not None
            assert dump.vmcoreinfo.text == OTHER
            assert [each.name for each in dump.notes].count("VMCOREINFO") == 1
            assert dump.machine.release == "7.0.0-other"
            if target == "kdump":
                assert dump.attributes["phys_base"] == "0x1000000"

    def test_header_of_kdump(self, cli: Cli, untold: Path, tmp_path: Path) -> None:
        """phys_base, offset and size of the text, where the format has them."""
        out = tmp_path / "out"
        assert cli("convert", untold, "--vmcoreinfo", "search", "-t", "kdump", "-o", out).returncode == 0
        data = out.read_bytes()
        slots, _ = kdump.sub_slots("64")
        field = {
            name: int.from_bytes(data[4096 + at : 4096 + at + width], "little", signed=name == "phys_base")
            for name, (at, width) in slots.items()
        }
        assert field["phys_base"] == -90177536
        start = field["offset_vmcoreinfo"]
        assert data[start : start + field["size_vmcoreinfo"]].decode() == VMCOREINFO

    @pytest.mark.parametrize("content", [b"", b"nothing\n", b"\x7fELF" + bytes(100)])
    def test_file_that_is_none(self, cli: Cli, untold: Path, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "text").write_bytes(content)
        done = cli("convert", untold, "--vmcoreinfo", "text", "-o", "out")
        assert (done.returncode, (tmp_path / "out").exists()) == (2, False)
        assert "text: is no VMCOREINFO" in done.stderr
        assert cli("convert", untold, "--vmcoreinfo", "absent", "-o", "out").returncode == 2

    def test_target_that_has_no_place_for_it(self, cli: Cli, tmp_path: Path) -> None:
        (tmp_path / "memory").write_bytes(lime.build(guest_with(VMCOREINFO)))
        done = cli("convert", "memory", "--vmcoreinfo", "search", "-t", "lime", "-o", "out")
        assert done.returncode == 1
        assert "VMCOREINFO" in done.stderr

    def test_other_notes_stay(self, cli: Cli, tmp_path: Path) -> None:
        (tmp_path / "dump").write_bytes(elf_of(PLAIN, vmcoreinfo(VMCOREINFO), note("ODD", 1, b"kept")))
        (tmp_path / "text").write_text(OTHER)
        assert cli("convert", "dump", "--vmcoreinfo", "text", "-o", "out").returncode == 0
        with dumpxlate.open(tmp_path / "out") as dump:
            assert b"kept" in [each.desc for each in dump.notes if each.name == "ODD"]


@pytest.mark.peer
@pytest.mark.parametrize("target", ["elf", "kdump"])
@pytest.mark.parametrize("name", ["pvh1"])
def test_drgn_opens_a_guest_of_xen(
    cli: Cli, shared: Path, unpacked: Unpack, tmp_path: Path, name: str, target: str
) -> None:
    """xl dump-core has no VMCOREINFO, and without it drgn takes nothing."""
    peers.require("drgn")
    source = unpacked(shared / "fixtures" / "xen-linux" / f"{name}.core.xz")
    with dumpxlate.open(source) as dump:
        pfns = dump.pages.stored.select(0, 1 << 30)[::97]
        expected = dict(zip(pfns.tolist(), map(bytes, dump.read_pages(pfns)), strict=True))
    plain, ours = tmp_path / "plain", tmp_path / "ours"
    assert cli("convert", source, "-t", target, "-o", plain).returncode == 0
    done = cli("convert", source, "--vmcoreinfo", "search", "-t", target, "-o", ours)
    assert done.returncode == 0, done.stderr
    with pytest.raises(peers.PeerError, match=r"(?i)vmcoreinfo"):
        peers.drgn_pages(plain, list(expected))
    assert peers.drgn_pages(ours, list(expected)) == {pfn: zlib.crc32(body) for pfn, body in expected.items()}
