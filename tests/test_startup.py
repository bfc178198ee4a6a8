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
    readers = {name.split(".")[2] for name in found if name.startswith("dumpxlate.formats.") and "reader" in name}
    assert readers == {"xendump"}
