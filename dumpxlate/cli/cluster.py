"""The parts of a set, written by the machines of a Dask cluster.

Parts are independent: each worker runs ``dumpxlate convert ... --part K`` in the folder that the command was given in,
on storage that all of them share. What a lost worker had not finished is done by another one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dumpxlate.errors import DumpxlateError, UnsupportedFeatureError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["convert_on", "without"]


class PartError(DumpxlateError):
    """A worker could not write its part; the message is the worker's."""


def without(words: Sequence[str], *options: str) -> list[str]:
    """Drop options that take a value from a command line."""
    kept: list[str] = []
    skip = False
    for word in words:
        if not skip and word not in options and not word.startswith(tuple(f"{option}=" for option in options)):
            kept.append(word)
        skip = not skip and word in options
    return kept


def convert_on(
    address: str, words: Sequence[str], parts: int, told: Callable[[int, int], None] | None = None
) -> list[dict[str, Any]]:
    """Have a cluster write all parts of a set.

    Args:
        address: of the scheduler, as ``tcp://host:8786``.
        words: the command line of the conversion, without ``--part``.
        parts: number of files in the set.
        told: called with the number of parts written and of all parts, whenever one is.

    Returns:
        The report of each part, in order.

    Raises:
        UnsupportedFeatureError: Dask is not installed.
        PartError: a part could not be written; the others are cancelled.
        OSError: there is no scheduler at the address.
    """
    try:
        from distributed import Client, as_completed
    except ImportError:
        raise UnsupportedFeatureError(
            "--dask needs Dask, which is not installed: pip install 'dumpxlate[dask]'", feature="dask"
        ) from None
    with Client(address) as client:
        futures = {
            client.submit(write_part, [*words, "--part", str(number)], str(Path.cwd()), pure=False): number
            for number in range(1, parts + 1)
        }
        done: dict[int, dict[str, Any]] = {}
        for future in as_completed(futures):
            done[futures[future]] = future.result()
            if told:
                told(len(done), parts)
        return [done[number] for number in sorted(done)]


def write_part(words: Sequence[str], folder: str) -> dict[str, Any]:
    """Run the command on a worker, and give its report.

    Raises:
        PartError: it failed.
    """
    with tempfile.TemporaryDirectory() as temporary:
        report = Path(temporary, "report.json")
        command = [sys.executable, "-m", "dumpxlate", *words, "--report", str(report), "--progress", "none", "--force"]
        # The command is our own, and the words are what the user gave it.
        done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, check=False)  # noqa: S603
        if not report.exists():
            lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
            raise PartError(f"worker {os.uname().nodename}: {lines[-1].removeprefix('dumpxlate: ')}")
        found: dict[str, Any] = json.loads(report.read_text())
        return found
