"""Commands import what they use and nothing else: half of a short command's time is imports."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CODECS = {"cramjam", "deflate", "lz4", "lzallright", "lzo", "zstandard"}

UNUSED = {"rich", "importlib.metadata", "numpy.ma", "dumpxlate.p2m.files", "dumpxlate.qemu.hints"}
"""Without a terminal, formats of other distributions, a map, or what is known of a QEMU."""

UNREAD = {"dumpxlate.formats.compressed.decompress", "dumpxlate.formats.qemu_core.notes"}
"""What opens files of kinds that every file is asked about."""

_LOADED = """
import json, os, sys
from dumpxlate.cli import main
told = os.dup(1)
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
try:
    main()
except SystemExit:
    pass
os.write(told, json.dumps(sorted(sys.modules)).encode())
"""


def loaded(*words: str | Path) -> set[str]:
    """Modules that a command has loaded when it is done."""
    command = [sys.executable, "-c", _LOADED, *map(str, words)]
    done = subprocess.run(command, check=True, capture_output=True)
    assert not done.stderr, done.stderr.decode()
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("words", [["--help"], ["convert", "--help"], ["--version"]])
def test_help_starts_neither_numpy_nor_rich(words: list[str]) -> None:
    found = loaded(*words)
    assert found & {"numpy", "rich", "elftools", "dumpxlate.dump", *CODECS} == set()


def test_a_command_makes_no_other(sample: Callable[[str], Path]) -> None:
    found = {name for name in loaded("info", sample("xendump/t1.old8")) if name.endswith("_commands")}
    assert found == {"dumpxlate.cli.info_commands"}


def test_info_loads_one_reader_and_no_codec(sample: Callable[[str], Path]) -> None:
    found = loaded("info", sample("xendump/t1.old8"))
    assert found & {"elftools", "pydantic", "dumpxlate.pipeline", *CODECS} == set()
    assert found & UNUSED == set()
    readers = {name.split(".")[2] for name in found if name.startswith("dumpxlate.formats.") and "reader" in name}
    assert readers == {"xendump"}


@pytest.mark.parametrize("name", ["elf/x64-long.elf", "elf/s390x.elf", "kdump/x64-long.kdump", "kdump/aarch64.kdump"])
def test_info_of_other_formats(name: str, sample: Callable[[str], Path]) -> None:
    found = loaded("info", sample(name))
    assert found & {"elftools", "dumpxlate.pipeline", *CODECS} == set()
    assert found & (UNUSED | UNREAD) == set()
    readers = {name.split(".")[2] for name in found if name.startswith("dumpxlate.formats.") and "reader" in name}
    assert readers - {"flattened"} == {name.partition("/")[0]}


def test_a_conversion_loads_one_reader_and_one_writer(sample: Callable[[str], Path], tmp_path: Path) -> None:
    command = ["convert", str(sample("elf/x64-long.elf")), "-o", str(tmp_path / "out.lime"), "--progress", "none"]
    found = set(json.loads(subprocess.run([sys.executable, "-c", _LOADED, *command], capture_output=True).stdout))
    assert found & {"elftools", "rich", "importlib.metadata", "numpy.ma", "tempfile", *CODECS} == set()
    assert found & {"dumpxlate.verify.output", "dumpxlate.paging.guest", "dumpxlate.vmcoreinfo_search"} == set()
    assert found & {"shlex", "dumpxlate.cli.screen", *UNREAD} == set()
    assert {name for name in found if name.startswith("dumpxlate.codecs.")} <= {
        "dumpxlate.codecs.batch",
        "dumpxlate.codecs.forks",
        "dumpxlate.codecs.raw",
        "dumpxlate.codecs.workers",
    }
    parts = {tuple(name.split(".")[2:]) for name in found if name.startswith("dumpxlate.formats.")}
    assert {part for part in parts if part[-1] in ("reader", "writer")} == {("elf", "reader"), ("lime", "writer")}
