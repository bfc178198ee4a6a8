"""convert --verify: what was written is read again, and nothing that differs gets the target's name."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import dumpxlate
from dumpxlate.errors import OutputError, VerificationError
from dumpxlate.format import WriteOptions
from dumpxlate.io.sink import FileSink, PipeSink
from dumpxlate.pipeline import convert_set
from dumpxlate.registry import all_formats
from tests.builders import elf_cores, kdump
from tests.builders.guest import small_guest
from tests.test_matrix import INPUTS, NEAR, Input, opened

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from dumpxlate.arrays import Int64s, UInt8s

    Cli = Callable[..., subprocess.CompletedProcess[str]]

TARGETS = [each.name for each in all_formats() if each.writes]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("given", INPUTS, ids=lambda given: given.name)
def test_every_pair_verifies(tmp_path: Path, given: Input, target: str) -> None:
    source = tmp_path / "in"
    source.write_bytes(given.build(given.guest))
    with opened(source, given) as dump:
        if target in ("xendump", "xen_core") and dump.machine.arch.name not in ("x86_64", "i386"):
            pytest.skip("Xen's formats hold x86 guests only")
        report = dumpxlate.convert(dump, tmp_path / "out", target, allow_loss=True, verify=True)
    assert report.verified
    assert {"in", "out"} <= {path.name for path in tmp_path.iterdir()} <= {"in", "out", "out.dxmap"}


WINDOWS = [
    {"begin": 0x1000, "length": 0x5000},
    {"begin": 0x1234, "length": 0x20001},  # to the byte, where the format can
    {"begin": 0x5010, "length": 0x20},  # within one page
    {"begin": 0x9F123, "length": 0x61010},  # from RAM over a hole into RAM
]


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("target", [each.name for each in all_formats() if {"begin"} <= set(each.options)])
def test_windows_verify(tmp_path: Path, target: str, window: dict[str, int]) -> None:
    source = tmp_path / "in"
    source.write_bytes(elf_cores.core(small_guest(), "makedumpfile"))
    with dumpxlate.open(source) as dump:
        options = WriteOptions(**window)  # type: ignore[arg-type]
        assert dumpxlate.convert(dump, tmp_path / "out", target, options, allow_loss=True, verify=True).verified


@pytest.mark.parametrize("how", ["split", "part", "flattened", "flattened elf"])
def test_sets_and_containers_verify(tmp_path: Path, how: str) -> None:
    source = tmp_path / "in"
    source.write_bytes(elf_cores.core(small_guest(), "makedumpfile"))
    arguments: dict[str, Any] = {"split": {"split": 3}, "part": {"split": 3, "part": 2}}.get(how, {"flattened": True})
    format = "elf" if how == "flattened elf" else "kdump"
    with dumpxlate.open(source) as dump:
        reports = convert_set(dump, tmp_path / "out", format, WriteOptions(), verify=True, **arguments)
    assert [report.verified for report in reports] == [True] * {"split": 3}.get(how, 1)


@pytest.mark.parametrize("target", TARGETS)
def test_bad_pages_are_not_looked_for(tmp_path: Path, target: str) -> None:
    source = tmp_path / "in"
    source.write_bytes(kdump.build(NEAR, codec=lambda pfn, data: (1, b"\xffbad") if pfn in (7, 0x107) else (0, data)))
    with dumpxlate.open(source) as dump:
        report = dumpxlate.convert(
            dump, tmp_path / "out", target, allow_loss=True, bad_pages="skip", verify=True, threads=0
        )
    assert report.verified
    assert report.pages_out.get("bad", 2) == 2  # kdump to kdump passes pages undecoded


class Careless(FileSink):
    """A disk that changes one byte of memory."""

    wrong = 0

    def append(self, parts: Iterable[memoryview | bytes]) -> int:
        return super().append([self._changed(bytearray(part)) for part in parts])

    def append_sparse(self, body: UInt8s, at: Int64s, length: Int64s, place: Int64s, total: int) -> None:
        copy = bytearray(body)
        for first, size in zip(at.tolist(), length.tolist(), strict=True):
            copy[first : first + size] = self._changed(copy[first : first + size])
        super().append_sparse(np.frombuffer(copy, np.uint8), at, length, place, total)

    def _changed(self, part: bytearray) -> bytes:
        at = part.find((0x142).to_bytes(8, "little") * 8)
        if at >= 0:
            part[at + 4095] ^= 1
            type(self).wrong += 1
        return bytes(part)


@pytest.mark.parametrize("target", ["elf", "kdump", "lime", "raw", "xendump", "xen_core"])
def test_a_byte_that_went_wrong_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    from dumpxlate.writing import destination

    monkeypatch.setattr(destination, "FileSink", Careless)
    monkeypatch.setattr(Careless, "wrong", 0)
    (tmp_path / "in").write_bytes(elf_cores.core(NEAR, "plain"))
    (tmp_path / "out").write_bytes(b"old")
    options = WriteOptions(compress="none") if target == "kdump" else None
    with (
        dumpxlate.open(tmp_path / "in") as dump,
        pytest.raises(VerificationError, match="1 pages differ, the first at 0x142000") as caught,
    ):
        dumpxlate.convert(dump, tmp_path / "out", target, options, allow_loss=True, overwrite=True, verify=True)
    assert Careless.wrong == 1
    assert caught.value.path
    assert (tmp_path / "out").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_a_page_too_many_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that writes content where the dump has none."""
    from dumpxlate.formats.lime import writer

    count = writer.LimeWriter.finish

    def more(self: writer.LimeWriter) -> None:
        from dumpxlate.lime import LIME_MAGIC, LIME_VERSION, record

        self._sink.append([record(LIME_MAGIC, LIME_VERSION, 0x300000, 4096), b"x" * 4096])
        count(self)

    monkeypatch.setattr(writer.LimeWriter, "finish", more)
    (tmp_path / "in").write_bytes(elf_cores.core(NEAR, "plain"))
    with dumpxlate.open(tmp_path / "in") as dump, pytest.raises(VerificationError, match="the first at 0x300000"):
        dumpxlate.convert(dump, tmp_path / "out", "lime", allow_loss=True, verify=True)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_registers_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from dumpxlate.formats import elf
    from dumpxlate.formats.elf import writer

    made = writer.notes_for

    def notes(dump: dumpxlate.Dump, producer: str) -> Any:
        first = replace(dump.cpus[0], registers=dict(dump.cpus[0].registers) | {"rip": 1}, raw={})
        return made(replace(dump, cpus=(first, *dump.cpus[1:]), notes=()), producer)

    assert elf
    monkeypatch.setattr(writer, "notes_for", notes)
    (tmp_path / "in").write_bytes(elf_cores.core(NEAR, "plain"))
    with dumpxlate.open(tmp_path / "in") as dump, pytest.raises(VerificationError, match="rip of vcpu 0"):
        dumpxlate.convert(dump, tmp_path / "out", "elf", verify=True)


def test_a_pipe_cannot_be_read_again(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(elf_cores.core(NEAR, "plain"))
    with dumpxlate.open(tmp_path / "in") as dump, pytest.raises(OutputError, match="--verify needs a file"):
        dumpxlate.convert(dump, PipeSink(1), "elf", verify=True)


def test_command(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(elf_cores.core(small_guest(), "makedumpfile"))
    done = cli("convert", "in", "-t", "kdump", "-o", "out", "--verify", "--report", "report")
    assert done.returncode == 0, done.stderr
    assert "read back: the same" in done.stderr
    assert json.loads((tmp_path / "report").read_text())["verified"] is True


def test_memory_that_looks_like_a_container_is_memory(tmp_path: Path) -> None:
    """A raw image whose first page is the head of a gzip file is read back as memory all the same."""
    pages = np.zeros((4, 4096), np.uint8)
    pages[0, :4] = 0x1F, 0x8B, 8, 0
    (tmp_path / "in").write_bytes(
        kdump.build(
            small_guest(ranges=[(0, 4)], excluded=[]).but(
                pages={pfn: row.tobytes() for pfn, row in enumerate(pages)}, twins={}
            )
        )
    )
    with dumpxlate.open(tmp_path / "in") as dump:
        assert dumpxlate.convert(dump, tmp_path / "out", "raw", allow_loss=True, verify=True).verified
