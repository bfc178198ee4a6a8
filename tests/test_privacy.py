"""What SECURITY.rst promises of outputs, names, and what messages tell."""

from __future__ import annotations

import os
import random
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dumpxlate.registry import all_formats
from tests.builders import elf_cores, kdump, lime, p2m, xen_core, xendump
from tests.builders.guest import small_guest
from tests.conftest import ROOT
from tests.faults import inject
from tests.faults.calls import Calls

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    Cli = Callable[..., subprocess.CompletedProcess[str]]

TARGETS = [each.name for each in all_formats() if each.writes]
SECRET = b"correct horse battery staple"
BASE = small_guest(excluded=(), high=False)
GUEST = BASE.but(pages={pfn: data if pfn == 0 else (SECRET * 147)[:4096] for pfn, data in BASE.pages.items()}, twins={})


@pytest.mark.parametrize("umask", ["000", "022", "077", "777"])
@pytest.mark.parametrize("target", ["elf", "raw", "kdump"])
def test_outputs_are_the_owners_alone(cli: Cli, tmp_path: Path, target: str, umask: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "in").write_bytes(elf_cores.core(BASE, "plain"))
    arguments = ["convert", "in", "-t", target, "--allow-loss", "-o", "folder/out", "--report", "folder/report"]
    done = cli(*arguments, preexec_fn=lambda: os.umask(int(umask, 8)))
    assert done.returncode == 0, done.stderr
    found = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    names = ["out", "report", "out.dxmap"] if target == "raw" else ["out", "report"]
    assert found == dict.fromkeys(names, 0o600)


def test_other_outputs_are_the_owners_alone(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(elf_cores.core(BASE, "makedumpfile"))
    (tmp_path / "map").write_bytes(p2m.flat(BASE.mfns))
    before = os.umask(0)
    try:
        assert cli("vmcoreinfo", "in", "-o", "text").returncode == 0
        assert cli("p2m", "convert", "map", "map.txt").returncode == 0
    finally:
        os.umask(before)
    for name in ("text", "map.txt"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


@pytest.mark.parametrize("target", TARGETS)
def test_a_link_is_replaced_and_not_followed(cli: Cli, tmp_path: Path, target: str) -> None:
    (tmp_path / "in").write_bytes(elf_cores.core(BASE, "plain"))
    (tmp_path / "victim").write_bytes(b"precious")
    for name in ("out", "out.dxmap", "report"):
        (tmp_path / name).symlink_to("victim")
    arguments = ["convert", "in", "-t", target, "--allow-loss", "-o", "out", "--report", "report"]
    assert cli(*arguments).returncode == 2
    assert all((tmp_path / name).is_symlink() for name in ("out", "report"))
    done = cli(*arguments, "--force")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "out").is_symlink()
    assert not (tmp_path / "report").is_symlink()
    assert (tmp_path / "victim").read_bytes() == b"precious"


@pytest.mark.parametrize("existing", ["out", "out.dxmap", "report"])
def test_nothing_is_replaced_unasked(cli: Cli, tmp_path: Path, existing: str) -> None:
    (tmp_path / "in").write_bytes(elf_cores.core(BASE, "plain"))
    (tmp_path / existing).write_bytes(b"precious")
    done = cli("convert", "in", "-t", "raw", "--allow-loss", "-o", "out", "--report", "report")
    assert done.returncode == 2
    assert f"{existing}: exists (use --force to replace it)" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"in", existing}
    assert (tmp_path / existing).read_bytes() == b"precious"


@pytest.mark.parametrize("way", [{}, {"verify": True}, {"resume": True}], ids=str)
@pytest.mark.parametrize("target", TARGETS)
def test_what_is_written_is_written_beside_the_target(tmp_path: Path, target: str, way: dict[str, bool]) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    calls = Calls()
    assert inject.Conversion(folder, inject.source(tmp_path), target, dict(way)).run(calls) is None
    places = {os.fspath(tmp_path / "folder")}
    for name, args, options, _ in calls.log:
        if name == "open" and options.get("dir_fd") is None:
            path = os.fspath(args[0])
            assert path in places or os.fspath(Path(path).parent) in places, path
        elif name in ("open", "link", "rename", "unlink"):
            words = [word for word in args if isinstance(word, str) and not word.startswith("/proc/self/fd/")]
            assert all("/" not in word for word in words[-1:]) or os.fspath(Path(words[-1]).parent) in places, args


# Nothing of memory in what is told.


def damaged(data: bytes, seed: int) -> bytes:
    rng = random.Random(seed)
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 60)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed[: rng.choice([len(changed), rng.randrange(100, len(changed))])])


BUILT = {
    "elf": elf_cores.core(GUEST, "makedumpfile"),
    "kdump": kdump.build(GUEST, codec="raw"),
    "zlib": kdump.build(GUEST, codec="zlib"),
    "lime": lime.build(GUEST),
    "xendump": xendump.build(GUEST, hvm=True),
    "xen_core": xen_core.build(GUEST, hvm=True),
}


@pytest.mark.parametrize(("name", "seed"), [(name, at % 3) for at, name in enumerate(BUILT)])
def test_messages_tell_nothing_of_memory(cli: Cli, tmp_path: Path, name: str, seed: int) -> None:
    (tmp_path / "in").write_bytes(damaged(BUILT[name], seed) if seed else BUILT[name])
    (tmp_path / "other").write_bytes(lime.build(BASE))
    told = []
    for command in (
        ["info", "in"],
        ["info", "in", "--json"],
        ["check", "in"],
        ["compare", "in", "other"],
        ["compare", "in", "other", "--json"],
        ["map", "in"],
        ["checksum", "in", "--runs", "9"],
        ["--debug", "convert", "in", "-t", "lime", "-o", "a"],
        [
            "convert",
            "in",
            "-t",
            "kdump",
            "-o",
            "b",
            "--salvage",
            "--allow-loss",
            "--bad-pages",
            "skip",
            "--report",
            "r",
        ],
        ["convert", "in", "-t", "elf", "-o", "c", "--salvage", "--allow-loss", "--progress", "json", "--resume"],
    ):
        done = cli(*command)
        told += [done.stdout, done.stderr]
    told += [(tmp_path / name).read_text() for name in ("r",) if (tmp_path / name).exists()]
    for text in told:
        for words in (SECRET[:12], SECRET[8:20], SECRET[16:]):
            assert words.decode() not in text
            assert words.hex() not in text.replace(" ", "")


def test_every_promise_of_the_page_names_its_tests() -> None:
    page = (ROOT / "SECURITY.rst").read_text()
    named = re.findall(r"``(tests/[\w/.]+)``", page)
    assert len(named) >= 5
    for name in named:
        assert (ROOT / name).exists(), name
