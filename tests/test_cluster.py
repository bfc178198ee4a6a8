"""--dask: the parts of a set on a cluster of two workers, one of which dies midway."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

import dumpxlate
from dumpxlate.cli.cluster import PartError, without, write_part
from tests.builders.elf_cores import core
from tests.builders.guest import small_guest
from tests.peers import peers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Cli = Callable[..., subprocess.CompletedProcess[str]]

PARTS = 6


def test_options_with_values_are_dropped() -> None:
    words = ["convert", "in", "--dask", "tcp://a:1", "--report=r.json", "--split", "2", "-o", "--dask"]
    assert without(words, "--dask", "--report") == ["convert", "in", "--split", "2", "-o"]


def test_without_dask_it_says_how_to_get_it(tmp_path: Path) -> None:
    (tmp_path / "distributed.py").write_text("raise ImportError")
    (tmp_path / "in").write_bytes(core(small_guest(excluded=())))
    words = ["convert", "in", "-t", "kdump", "-o", "out", "--split", "2", "--dask", "tcp://127.0.0.1:1"]
    command = [sys.executable, "-m", "dumpxlate", *words]
    path = os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]])
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 3
    assert done.stderr == "dumpxlate: --dask needs Dask, which is not installed: pip install 'dumpxlate[dask]'\n"


@contextmanager
def process(*words: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / "log").open("ab") as log:
        running = subprocess.Popen([sys.executable, "-m", *words], cwd=folder, stdout=log, stderr=log)
        try:
            yield running
        finally:
            running.kill()
            running.wait()


def wait_for(what: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


@pytest.mark.peer
def test_a_cluster_that_loses_a_worker_writes_the_whole_set(tmp_path: Path) -> None:
    peers.require("distributed")
    guest = small_guest(excluded=())
    (tmp_path / "in").write_bytes(core(guest))
    contact = tmp_path / "scheduler.json"
    words = ["convert", "in", "-t", "kdump", "--compress", "zlib", "-o", "out", "--split", str(PARTS), "--verify"]
    with ExitStack() as running:
        start = ("distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard")
        running.enter_context(process(*start, "--scheduler-file", str(contact), folder=tmp_path))
        wait_for(contact.exists)
        address = json.loads(contact.read_text())["address"]
        worker = ("distributed.cli.dask_worker", address, "--no-nanny", "--nthreads", "1", "--no-dashboard")
        workers = [running.enter_context(process(*worker, folder=tmp_path)) for _ in range(2)]
        client = running.enter_context(
            process("dumpxlate", *words, "--dask", address, "--report", "report.json", folder=tmp_path)
        )
        wait_for(lambda: list(tmp_path.glob("out.[0-9]")))
        workers[0].send_signal(signal.SIGKILL)
        assert client.wait(120) == 0, (tmp_path / "log").read_text()[-2000:]
    parts = sorted(tmp_path.glob("out.[0-9]"))
    reports = json.loads((tmp_path / "report.json").read_text())
    assert len(parts) == PARTS == len(reports)
    assert all(report["verified"] for report in reports)
    with dumpxlate.open(*parts) as dump:
        pages = dump.read_pages(guest.stored)
    assert [pfn for pfn, page in zip(guest.stored, pages, strict=True) if page.tobytes() != guest.pages[pfn]] == []


def test_going_on_is_refused(cli: Cli, tmp_path: Path) -> None:
    """Before anything else: a worker that only seems lost may still write what another one would go on in."""
    (tmp_path / "in").write_bytes(core(small_guest(excluded=())))
    done = cli("convert", "in", "-t", "kdump", "-o", "out", "--split", "2", "--dask", "tcp://127.0.0.1:1", "--resume")
    assert done.returncode == 2
    assert "leave --resume out" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_part_is_verified_where_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(core(small_guest(excluded=())))
    words = ["convert", "in", "-t", "kdump", "-o", "out", "--split", "2", "--verify", "--part", "2"]
    report = write_part(words, str(tmp_path))
    assert report["verified"]
    assert (tmp_path / "out.2").exists()


def test_a_part_that_fails_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(PartError, match=r"worker .*: absent: no such file or directory"):
        write_part(["convert", "absent", "-o", "out", "--split", "2", "--part", "1"], str(tmp_path))
