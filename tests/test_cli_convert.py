"""The options of convert: codecs, windows, sets, pieces, pipes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

import dumpxlate
from dumpxlate import errors
from dumpxlate.cli.convert_command import Conduct, _report_to
from dumpxlate.format import WriteOptions
from dumpxlate.registry import all_formats, find_format
from tests.builders import elf_cores, flattened, kdump, lime, raw
from tests.builders.guest import small_guest
from tests.readers import vmcore_missing, vmcore_pages

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Cli = Callable[..., subprocess.CompletedProcess[str]]

FULL = small_guest(excluded=())
NEAR = small_guest(excluded=(), high=False)
FILTERED = small_guest()


@pytest.fixture
def vmcore(tmp_path: Path) -> Path:
    path = tmp_path / "vmcore"
    path.write_bytes(elf_cores.core(FULL, "plain"))
    return path


def done(run: subprocess.CompletedProcess[str]) -> str:
    assert run.returncode == 0, run.stderr
    return run.stderr


def pages(path: Path, pfns: list[int], format: str | None = None) -> dict[int, bytes]:
    with dumpxlate.open(path, format=format) as dump:
        return {pfn: row.tobytes() for pfn, row in zip(pfns, dump.read_pages(pfns), strict=True)}


@pytest.mark.parametrize("codec", ["none", "zlib", "zlib:9", "lzo", "snappy", "zstd", "zstd:19"])
def test_compress(cli: Cli, vmcore: Path, tmp_path: Path, codec: str) -> None:
    done(cli("convert", vmcore, "-t", "kdump", "--compress", codec, "-o", "out"))
    assert pages(tmp_path / "out", FULL.stored) == FULL.pages


@pytest.mark.parametrize(("codec", "words"), [("zip", "zip"), ("zlib:77", "77"), ("lzo:3", "lzo")])
def test_codecs_that_are_none(cli: Cli, vmcore: Path, tmp_path: Path, codec: str, words: str) -> None:
    refused = cli("convert", vmcore, "-t", "kdump", "--compress", codec, "-o", "out")
    assert refused.returncode == 2
    assert words in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_compress_is_refused_where_it_means_nothing(cli: Cli, vmcore: Path) -> None:
    assert cli("convert", vmcore, "-t", "elf", "--compress", "zlib", "-o", "out").returncode == 3


def test_window(cli: Cli, vmcore: Path, tmp_path: Path) -> None:
    done(cli("convert", vmcore, "--begin", "0x100000", "--length", "64K", "-o", "out"))
    assert vmcore_pages(tmp_path / "out") == {pfn: FULL.pages[pfn] for pfn in range(0x100, 0x110)}
    assert cli("convert", vmcore, "--begin", "-5", "-o", "none").returncode == 2
    assert cli("convert", vmcore, "--begin", "nonsense", "-o", "none").returncode == 2


def test_set_of_files(cli: Cli, vmcore: Path, tmp_path: Path) -> None:
    done(cli("convert", vmcore, "-t", "kdump", "--split", "3", "-o", "set", "--report", "report"))
    assert sorted(each.name for each in tmp_path.glob("set.*")) == ["set.1", "set.2", "set.3"]
    assert [each["target"] for each in json.loads((tmp_path / "report").read_text())] == ["set.1", "set.2", "set.3"]
    done(cli("convert", "set.3", "set.1", "set.2", "-o", "joined"))
    assert vmcore_pages(tmp_path / "joined") == FULL.pages
    alone = cli("convert", "set.1", "set.3", "-o", "partly")
    assert alone.returncode == 5
    assert "--salvage" in alone.stderr


def test_one_part_of_a_set(cli: Cli, vmcore: Path, tmp_path: Path) -> None:
    done(cli("convert", vmcore, "-t", "kdump", "--split", "3", "-o", "set"))
    done(cli("convert", vmcore, "-t", "kdump", "--split", "3", "--part", "2", "-o", "own"))
    assert [each.name for each in tmp_path.glob("own.*")] == ["own.2"]
    assert (tmp_path / "own.2").read_bytes() == (tmp_path / "set.2").read_bytes()
    for wrong in (["--part", "1"], ["--split", "3", "--part", "4"]):
        assert cli("convert", vmcore, "-t", "kdump", *wrong, "-o", "wrong").returncode == 2
    assert cli("convert", vmcore, "-t", "kdump", "--split", "2", "-o", "-").returncode == 2


def test_pieces_with_addresses(cli: Cli, tmp_path: Path) -> None:
    low = {pfn: data for pfn, data in FULL.pages.items() if pfn < 0xA0}
    high = {pfn - 0x100000: data for pfn, data in FULL.pages.items() if pfn >= 0x100000}
    (tmp_path / "low").write_bytes(raw.build(low))
    (tmp_path / "high").write_bytes(raw.build(high))
    done(cli("convert", "high@0x100000000", "low@0", "-o", "out"))
    expected = {pfn: data for pfn, data in FULL.pages.items() if not 0x100 <= pfn < 0x100000}
    assert vmcore_pages(tmp_path / "out") == expected
    assert cli("convert", "high@0x100000000", "low", "-o", "none").returncode == 2


@pytest.mark.parametrize("build", [kdump.build, lambda guest: flattened.wrap(kdump.build(guest)), lime.build])
def test_from_a_pipe(cli: Cli, tmp_path: Path, build: Callable[[object], bytes]) -> None:
    run = cli("convert", "-", "-o", "out", input=build(FULL), text=False)
    assert run.returncode == 0, run.stderr
    assert vmcore_pages(tmp_path / "out") == FULL.pages


def test_nothing_from_a_pipe(cli: Cli) -> None:
    run = cli("convert", "-", "-o", "out", input="")
    assert run.returncode == 2
    assert "<stdin>: is empty" in run.stderr


@pytest.mark.parametrize("target", ["kdump", "elf", "lime", "raw"])
def test_to_a_pipe(cli: Cli, tmp_path: Path, target: str) -> None:
    source = tmp_path / "source"
    source.write_bytes(elf_cores.core(NEAR, "plain"))
    run = cli("convert", source, "-t", target, "--allow-loss", "-o", "-", text=False)
    assert run.returncode == 0, run.stderr
    out = tmp_path / "out"
    out.write_bytes(run.stdout)
    assert run.stdout.startswith(b"makedumpfile\0") == (target == "kdump")
    assert pages(out, NEAR.stored, "raw" if target == "raw" else None) == NEAR.pages


def test_through_two_pipes(vmcore: Path, tmp_path: Path) -> None:
    us = f"{sys.executable} -m dumpxlate convert"
    line = f"{us} {vmcore} -t kdump -o - | {us} - -t lime --allow-loss -o - | {us} - -o {tmp_path / 'out'}"
    subprocess.run(["bash", "-c", f"set -o pipefail; {line}"], check=True, capture_output=True, timeout=120)
    assert vmcore_pages(tmp_path / "out") == FULL.pages


def test_flattened(cli: Cli, vmcore: Path, tmp_path: Path) -> None:
    done(cli("convert", vmcore, "-t", "kdump", "--flattened", "-o", "a"))
    done(cli("convert", vmcore, "-t", "flattened", "-o", "b"))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").read_bytes().startswith(b"makedumpfile\0\0\0\0")
    done(cli("convert", vmcore, "--flattened", "-o", "c"))  # around ELF
    done(cli("convert", "c", "-o", "again"))
    assert vmcore_pages(tmp_path / "again") == FULL.pages


def test_missing_memory_as_asked(cli: Cli, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(elf_cores.core(FILTERED, "makedumpfile"))
    done(cli("convert", source, "-o", "left-out"))
    assert vmcore_missing(tmp_path / "left-out") == FILTERED.excluded
    done(cli("convert", source, "--missing", "zero", "-o", "zero"))
    assert vmcore_missing(tmp_path / "zero") == set()
    zeros = dict.fromkeys(FILTERED.excluded, bytes(4096))
    assert vmcore_pages(tmp_path / "zero") == FILTERED.pages | zeros


def test_suffix_chooses_the_format(cli: Cli, vmcore: Path, tmp_path: Path) -> None:
    done(cli("convert", vmcore, "--allow-loss", "-o", "memory.lime"))
    assert (tmp_path / "memory.lime").read_bytes()[:4] == b"EMiL"


def test_bad_pages(cli: Cli, tmp_path: Path) -> None:
    source = tmp_path / "source"
    broken = kdump.build(NEAR, codec=lambda pfn, data: (1, b"\xffbad") if pfn in (7, 0x107) else (0, data))
    source.write_bytes(broken)
    stop = cli("convert", source, "-o", "stop")
    assert stop.returncode == 5
    assert "page 0x7" in stop.stderr
    assert not (tmp_path / "stop").exists()
    for policy in ("skip", "zero"):
        run = cli("convert", source, "--bad-pages", policy, "-o", policy)
        assert run.returncode == 4
        assert "2 bad" in run.stderr
        found = vmcore_pages(tmp_path / policy)
        good = {pfn: data for pfn, data in NEAR.pages.items() if pfn not in (7, 0x107)}
        assert {pfn: found[pfn] for pfn in good} == good
    checked = cli("check", source, "--json")
    assert checked.returncode == 1
    assert json.loads(checked.stdout)["pages"]["bad"] == 2


@pytest.mark.parametrize("name", [each.name for each in all_formats() if each.writes])
def test_formats_honour_the_options_they_list_and_refuse_the_others(tmp_path: Path, name: str) -> None:
    source = tmp_path / "source"
    style = next(each for each in elf_cores.STYLES if each.startswith("qemu"))
    source.write_bytes(elf_cores.core(replace(NEAR, registers=({"cr0": 0x10, "cr3": 0, "cr4": 0},)), style))
    target = find_format(name)
    asked = {"compress": "zlib", "begin": 0x1000, "length": 0x5000, "part": (1, 2), "paging": "all"}
    assert set(target.options) <= set(asked)
    for option, value in asked.items():
        out = tmp_path / f"{name}-{option}"
        with dumpxlate.open(source) as dump:
            how = WriteOptions(**{option: value})
            if option in target.options:
                dumpxlate.convert(dump, out, name, how, allow_loss=True)
                assert out.exists()
            else:
                with pytest.raises(dumpxlate.errors.UnsupportedFeatureError, match=f"takes no {option}"):
                    dumpxlate.convert(dump, out, name, how, allow_loss=True)
                assert not out.exists()


def test_a_report_that_fails_leaves_the_dump_and_says_so(tmp_path: Path) -> None:
    """Somebody else makes a file of its name while the dump is written."""
    path = tmp_path / "report"
    with _report_to(path, "out", [], Conduct()) as write:
        path.write_text("theirs")
        with pytest.raises(errors.OutputError, match="appeared while it was being written") as caught:
            write([{}])
    assert caught.value.__notes__ == ["out is complete, and only the report of it is not there"]
    assert path.read_text() == "theirs"
