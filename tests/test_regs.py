"""regs: every register that a reader found, in groups, for each producer's way to keep them."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest

import dumpxlate
from tests.builders import elf, kdump, lime, xen_core, xendump
from tests.builders.elf_notes import cpu_notes, note, prstatus, qemu_cpu
from tests.builders.guest import register, small_guest, stored_runs
from tests.conftest import ROOT

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    Cli = Callable[..., subprocess.CompletedProcess[str]]

GUEST = small_guest(plain=True)
SCHEMA = json.loads((ROOT / "docs" / "schemas" / "regs-1.json").read_text())


def elf_of(*notes: bytes, **options: Any) -> bytes:
    loads = [elf.Segment(paddr=first << 12, data=GUEST.run(first, count)) for first, count in stored_runs(GUEST)]
    return elf.build(loads, notes, **options)


def described(cli: Cli, path: Path, *options: str) -> dict[str, Any]:
    done = cli("regs", "--json", path, *options)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    jsonschema.validate(found, SCHEMA, cls=jsonschema.Draft202012Validator)
    return found


def values(cpu: dict[str, Any]) -> dict[str, int]:
    return {name: int(value, 16) for group in cpu["registers"].values() for name, value in group.items()}


FILES: dict[str, bytes] = {
    "prstatus": elf_of(*cpu_notes(GUEST)),
    "qemu": elf_of(*cpu_notes(GUEST), *[qemu_cpu(GUEST, vcpu) for vcpu in range(2)]),
    "i386": elf_of(*cpu_notes(GUEST, "i386"), bits=32, machine=3),
    "aarch64": elf_of(*cpu_notes(GUEST, "aarch64"), machine=183),
    "kdump": kdump.build(GUEST),
    "xen_core": xen_core.build(GUEST),
    "xendump": xendump.build(GUEST),
}


@pytest.mark.parametrize("name", FILES)
def test_every_register_of_the_reader_is_shown(cli: Cli, tmp_path: Path, name: str) -> None:
    path = tmp_path / "dump"
    path.write_bytes(FILES[name])
    with dumpxlate.open(path) as dump:
        expected = {cpu.index: dict(cpu.registers) for cpu in dump.cpus}
    assert len(expected) == 2
    assert all(expected.values())
    assert {cpu["index"]: values(cpu) for cpu in described(cli, path)["cpus"]} == expected
    said = cli("regs", path).stdout
    assert re.findall(r"^vcpu (\d)$", said, re.MULTILINE) == ["0", "1"]
    second = dict(re.findall(r"(\w+) ([0-9a-f]{8,16})(?=\s|$)", said.split("vcpu 1")[1]))
    assert {key: int(value, 16) for key, value in second.items()} == expected[1]


def test_groups_of_a_qemu_guest(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "dump").write_bytes(FILES["qemu"])
    groups = described(cli, tmp_path / "dump")["cpus"][0]["registers"]
    assert list(groups) == ["general", "instruction and flags", "segments", "control"]
    names = "rax rbx rcx rdx rsi rdi rsp rbp r8 r9 r10 r11 r12 r13 r14 r15"
    assert set(groups["general"]) == set(names.split())
    assert set(groups["instruction and flags"]) == {"rip", "rflags", "orig_rax"}
    assert set(groups["control"]) == {"cr0", "cr1", "cr2", "cr3", "cr4"}
    assert {"cs", "cs_base", "gdt_base", "tr", "idt_limit", "fs_base", "kernel_gs_base"} <= set(groups["segments"])
    assert groups["control"]["cr3"] == f"{register('cr3', 0):#018x}"


def test_debug_registers_of_a_xen_guest(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "dump").write_bytes(FILES["xen_core"])
    groups = described(cli, tmp_path / "dump")["cpus"][1]["registers"]
    assert set(groups["debug"]) == {"dr0", "dr1", "dr2", "dr3", "dr6", "dr7"}


def test_one_cpu(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "dump"
    path.write_bytes(FILES["prstatus"])
    (cpu,) = described(cli, path, "--cpu", "1")["cpus"]
    assert (cpu["index"], values(cpu)["rip"]) == (1, register("rip", 1))
    assert "vcpu 0" not in cli("regs", path, "--cpu", "1").stdout
    none = cli("regs", path, "--cpu", "2")
    assert (none.returncode, none.stdout) == (2, "")
    assert "has no vcpu 2: found 2 vcpus, 0 to 1" in none.stderr


def test_bytes_where_there_is_no_layout(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "dump"
    desc = bytes(range(65, 65 + 26)) + b"\x1b[2J"
    path.write_bytes(elf_of(note("CORE", 1, desc), machine=999))
    (cpu,) = described(cli, path)["cpus"]
    assert cpu["registers"] == {}
    assert [(raw["name"], bytes.fromhex(raw["hex"])) for raw in cpu["raw"]] == [("prstatus", desc)]
    said = cli("regs", path).stdout
    assert "30 bytes that are not understood" in said
    assert "0000  41424344 45464748 494a4b4c 4d4e4f50  ABCDEFGHIJKLMNOP" in said
    assert "QRSTUVWXYZ.[2J" in said
    assert "\x1b" not in said


def test_bytes_where_the_layout_does_not_fit(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "dump"
    path.write_bytes(elf_of(prstatus(GUEST, 0), prstatus(GUEST, 1, size=100)))
    first, second = described(cli, path)["cpus"]
    assert values(first)["rip"] == register("rip", 0)
    assert first["raw"][0]["hex"] is None
    assert len(bytes.fromhex(second["raw"][0]["hex"])) == second["raw"][0]["bytes"] == 100


def test_none_is_an_answer(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "memory.lime").write_bytes(lime.build(GUEST))
    for options in ([], ["--json"], ["--cpu", "0"]):
        done = cli("regs", "memory.lime", *options)
        assert (done.returncode, done.stdout) == (1, "")
        assert "memory.lime: has no registers" in done.stderr


def test_an_old_dump_with_its_map(cli: Cli) -> None:
    samples = ROOT / "samples" / "xendump"
    done = cli("regs", samples / "t1.old8.xz", "--p2m", samples / "t1.map")
    assert done.returncode == 0, done.stderr
    assert "cr3" in done.stdout


@pytest.mark.parametrize("name", ["pvh1", "pv1"])
def test_what_xenctx_printed(cli: Cli, shared: Path, unpacked: Callable[[Path], Path], name: str) -> None:
    folder = shared / "fixtures" / "xen-linux"
    printed = (folder / f"{name}.xenctx.txt").read_text()
    cpus = described(cli, unpacked(folder / f"{name}.core.xz"))["cpus"]
    rips = [int(value, 16) for value in re.findall(r"^rip: ([0-9a-f]+)", printed, re.MULTILINE)]
    assert [values(cpu)["rip"] for cpu in cpus] == rips
    for register_name in ("rax", "r15", "cr0", "cr4"):
        expected = [int(value, 16) for value in re.findall(rf"\b{register_name}: ([0-9a-f]+)", printed)]
        assert [values(cpu)[register_name] for cpu in cpus] == expected
