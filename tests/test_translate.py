"""translate: each step from a virtual address to the byte in the file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest

from tests.builders import elf_cores, kdump
from tests.builders.guest import Guest
from tests.builders.page_tables import image, long_tables
from tests.conftest import ROOT, SAMPLES

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    Cli = Callable[..., subprocess.CompletedProcess[str]]

VIRTUAL = 0xFFFF_8880_0000_5000
MARK = b"a byte of the page"
SCHEMA = json.loads((ROOT / "docs" / "schemas" / "translate-1.json").read_text())


def paged_guest() -> Guest:
    """A guest with one page mapped, one mapped and excluded, one mapped beyond RAM; vcpu 1 has no paging."""
    pages = {VIRTUAL: 0x9000, VIRTUAL + 0x1000: 0xE000, VIRTUAL + 0x2000: 0xFEE0_0000}
    memory = image(long_tables(pages, 0x1000, 0x2000), 0x10000)
    memory[0x9123 : 0x9123 + len(MARK)] = MARK
    content = {pfn: bytes(memory[4096 * pfn : 4096 * pfn + 4096]) for pfn in range(16) if pfn != 14}
    on, off = {"cr0": 1 << 31, "cr3": 0x1000, "cr4": 0x20}, {"cr0": 0x10, "cr3": 0, "cr4": 0}
    return Guest(pages=content, excluded=frozenset({14}), registers=(on, off), vmcoreinfo="")


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    style = next(name for name in elf_cores.STYLES if name.startswith("qemu"))
    (tmp_path / "dump").write_bytes(elf_cores.core(paged_guest(), style))
    return tmp_path / "dump"


def shown(done: subprocess.CompletedProcess[str], code: int = 0) -> dict[str, Any]:
    assert done.returncode == code, done.stderr
    printed: dict[str, Any] = json.loads(done.stdout)
    jsonschema.validate(printed, SCHEMA, cls=jsonschema.Draft202012Validator)
    return printed


def test_each_step(cli: Cli, dump: Path) -> None:
    found = shown(cli("translate", dump, hex(VIRTUAL + 0x123), "--json"))
    assert (found["by"], found["root"], found["target"], found["fault"]) == ("x86 4-level", "0x1000", "0x9123", None)
    assert [(step["name"], step["kind"], step["frame"]) for step in found["steps"]] == [
        ("PML4", "table", "0x2000"),
        ("PDPT", "table", "0x3000"),
        ("PD", "table", "0x4000"),
        ("PT", "page", "0x9000"),
    ]
    assert found["steps"][0]["entry"] == hex(0x1000 + 273 * 8)
    assert found["steps"][3]["value"] == "0x9067"
    page = found["page"]
    assert (page["pfn"], page["mfn"], page["state"], page["offset_in_page"]) == ("0x9", None, "stored", 0x123)
    at = int(page["byte_offset"], 16)
    assert dump.read_bytes()[at : at + len(MARK)] == MARK


def test_table_for_people(cli: Cli, dump: Path) -> None:
    done = cli("translate", dump, hex(VIRTUAL))
    assert done.returncode == 0
    for words in ("x86 4-level", "PML4", "0x9067", "guest physical", "stored"):
        assert words in done.stdout


def test_unmapped(cli: Cli, dump: Path) -> None:
    found = shown(cli("translate", dump, "0x5000", "--json"), 1)
    assert (found["target"], found["page"], len(found["steps"])) == (None, None, 1)
    assert found["fault"] == "unmapped: PML4 entry at 0x1000 is not present"
    done = cli("translate", dump, "0x800000000000")
    assert (done.returncode, "not canonical" in done.stdout) == (1, True)


def test_pages_without_content_are_translated(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "dump").write_bytes(kdump.build(paged_guest(), codec="zlib"))
    for cr3 in ("0x1000", "4K"):
        page = shown(cli("translate", "dump", hex(VIRTUAL), "--cr3", cr3, "--json"))["page"]
        assert (page["state"], page["codec"], page["byte_offset"]) == ("stored", "zlib", None)
        assert page["file_offset"]
    page = shown(cli("translate", "dump", hex(VIRTUAL + 0x1000), "--cr3", "0x1000", "--json"))["page"]
    assert (page["state"], page["file_offset"]) == ("excluded", None)
    page = shown(cli("translate", "dump", hex(VIRTUAL + 0x2000), "--cr3", "0x1000", "--json"))["page"]
    assert (page["state"], page["pfn"]) == ("absent", "0xfee00")


def test_cpu_without_paging(cli: Cli, dump: Path) -> None:
    found = shown(cli("translate", dump, "0x9123", "--cpu", "1", "--json"))
    assert (found["by"], found["root"], found["steps"], found["target"]) == ("paging is off", None, [], "0x9123")


@pytest.mark.parametrize("words", [["--cpu", "2"], ["--cr3", "cr3"], ["--cr3", "-1"]])
def test_what_does_not_exist(cli: Cli, dump: Path, words: list[str]) -> None:
    done = cli("translate", dump, "0", *words)
    assert (done.returncode, done.stdout) == (2, "")


def test_address_of_more_than_64_bits(cli: Cli, dump: Path) -> None:
    done = cli("translate", dump, hex(1 << 64))
    assert (done.returncode, "more than 64 bits" in done.stderr) == (2, True)


def test_paravirtual_guest_shows_both_frames(cli: Cli) -> None:
    sample, p2m = SAMPLES / "xendump/t1.old8.xz", SAMPLES / "xendump/t1.map"
    own = shown(cli("translate", sample, "0x6a1", "--p2m", p2m, "--json"))
    machine = shown(cli("translate", sample, "0x6a1", "--json"))
    assert (own["page"]["pfn"], machine["page"]["pfn"]) == ("0x0", None)
    assert own["page"]["mfn"] == machine["page"]["mfn"] == hex(int(machine["target"], 16) >> 12)
    assert own["page"]["byte_offset"] == machine["page"]["byte_offset"]
    assert [step["value"] for step in own["steps"]] == [step["value"] for step in machine["steps"]]


def test_all_that_is_mapped(cli: Cli, dump: Path) -> None:
    schema = json.loads((ROOT / "docs" / "schemas" / "mappings-1.json").read_text())
    done = cli("map", dump, "--virtual", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    jsonschema.validate(found, schema, cls=jsonschema.Draft202012Validator)
    assert found["file"] == {"name": str(dump), "format": "elf", "space": "guest physical"}
    assert (found["tables"], found["total"], found["bytes"], found["faults"]) == (4, 3, 3 * 4096, [])
    runs = [(each["start"], each["end"], each["target"], each["bytes"]) for each in found["mappings"]]
    assert runs == [
        (hex(VIRTUAL + skip), hex(VIRTUAL + skip + 4096), hex(target), 4096)
        for skip, target in ((0, 0x9000), (0x1000, 0xE000), (0x2000, 0xFEE0_0000))
    ]
    done = cli("map", dump, "--virtual", "--limit", "1")
    assert hex(VIRTUAL) in done.stdout
    assert "and 2 more" in done.stdout
    found = json.loads(cli("map", dump, "--virtual", "--cpu", "1", "--json").stdout)
    assert [(each["start"], each["end"]) for each in found["mappings"]] == [("0x0", hex(1 << 32))]
    # The last page of the tables is read as one more table of them: what leads nowhere is counted.
    done = cli("map", dump, "--virtual", "--cr3", "0x4000")
    assert "tables not held" in done.stdout
    done = cli("map", dump, "--cpu", "0")
    assert (done.returncode, "go with --virtual" in done.stderr) == (2, True)
