"""Peers that have to be found or built first."""

from __future__ import annotations

import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

from tests.bench.case import AbsentError, Command

__all__ = ["choose", "compressor", "drgn_reader", "kdump_reader", "kdumpfile_python", "makedumpfile", "need"]

_CHOSEN: dict[str, str] = {}
"""Programs that were asked for by path; of others the one on PATH is taken."""

_OPTIONS = {"zlib": "-c", "lzo": "-l", "snappy": "-p", "zstd": "-z"}
"""How makedumpfile is asked for a codec."""


def choose(program: str, path: str) -> None:
    """Measure against a program that is not the one on PATH."""
    _CHOSEN[program] = path


def need(*programs: str) -> None:
    """Refuse a case whose peer is not here."""
    absent = [program for program in programs if shutil.which(_CHOSEN.get(program, program)) is None]
    if absent:
        raise AbsentError(f"{', '.join(absent)} is not installed")


def makedumpfile() -> str:
    """The makedumpfile to measure against."""
    need("makedumpfile")
    return _CHOSEN.get("makedumpfile", "makedumpfile")


def compressor(codec: str) -> Command | None:
    """Makedumpfile and its option for a codec; None where it was built without that."""
    program = makedumpfile()
    return (program, _OPTIONS[codec]) if codec in _codecs_of(program) else None


@cache
def _codecs_of(makedumpfile: str) -> frozenset[str]:
    """What a makedumpfile says that it was built with; zlib it always has."""
    said = subprocess.run([makedumpfile, "-v"], check=True, capture_output=True, text=True).stdout
    words = (line.split() for line in said.splitlines())
    return frozenset({"zlib", *(pair[0] for pair in words if pair[1:] == ["enabled"])})


def kdump_reader(folder: Path, codec: str) -> Command:
    """A program that reads every page of a kdump file through libkdumpfile."""
    if codec == "zstd" and not _library_has("zstd"):
        return drgn_reader()
    return (str(_compiled(folder)),)


def _compiled(folder: Path) -> Path:
    program = folder / "kdump_read"
    if not program.exists():
        need("cc")
        source = Path(__file__).with_name("kdump_read.c")
        done = subprocess.run(["cc", "-O2", source, "-o", program, "-lkdumpfile"], capture_output=True)
        if done.returncode:
            raise AbsentError("libkdumpfile-dev is not installed")
    return program


@cache
def _library_has(codec: str) -> bool:
    """Whether the system's libkdumpfile was built with a codec."""
    found = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True).stdout
    paths = [line.split("=> ")[1] for line in found.splitlines() if "libkdumpfile.so" in line and "=> " in line]
    return any(codec in subprocess.run(["ldd", path], capture_output=True, text=True).stdout for path in paths)


def drgn_reader() -> Command:
    """The libkdumpfile in drgn's wheel, through drgn."""
    if subprocess.run([sys.executable, "-c", "import drgn"], capture_output=True).returncode:
        raise AbsentError("drgn is not installed")
    return (sys.executable, "-m", "tests.bench.drgn_read")


@cache
def kdumpfile_python() -> str:
    """A Python that has libkdumpfile's binding."""
    for python in ("/usr/bin/python3", "python3", sys.executable):
        if subprocess.run([python, "-c", "import kdumpfile"], capture_output=True).returncode == 0:
            return python
    raise AbsentError("libkdumpfile's Python binding is not installed")
