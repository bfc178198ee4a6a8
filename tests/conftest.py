"""Fixtures that every test module may use."""

from __future__ import annotations

import lzma
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

import dumpxlate

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
SAMPLES = ROOT / "samples"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of the large real dumps; they are kept beside the repository, not in it."""
    if not (SHARED / "fixtures").is_dir():
        pytest.skip("the shared fixtures are not beside this checkout")
    return SHARED


@pytest.fixture(scope="session")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Unpack an .xz file once for the whole session."""
    folder = tmp_path_factory.mktemp("unpacked")

    def unpack(packed: Path) -> Path:
        path = folder / f"{packed.parent.name}-{packed.name.removesuffix('.xz')}"
        if not path.exists():
            path.write_bytes(lzma.decompress(packed.read_bytes()))
        return path

    return unpack


@pytest.fixture
def sample(unpacked: Callable[[Path], Path]) -> Callable[[str], Path]:
    """Unpack a sample of the repository by its name, as in ``sample("xendump/t1.old8")``."""
    return lambda name: unpacked(SAMPLES / f"{name}.xz")


@pytest.fixture(scope="session", autouse=True)
def _same_package_in_children() -> None:
    """Let child processes import the dumpxlate that is tested, installed or not."""
    os.environ["PYTHONPATH"] = str(Path(dumpxlate.__file__).resolve().parent.parent)


@pytest.fixture(scope="session", autouse=True)
def _signals_end_children() -> None:
    """Let signals end child processes as in a terminal; what runs in the background ignores them, and so would they."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def _one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep work in pytest's own process, whatever its threads: what tests count and break is there."""
    monkeypatch.setattr("dumpxlate.codecs.forks.can_fork", lambda: False)
    monkeypatch.setattr("dumpxlate.writing.ring.can_fork", lambda: False)


@pytest.fixture
def cli(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command line as a user does, in a folder of its own."""

    def run(*args: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "dumpxlate", *map(str, args)]
        settings: dict[str, object] = {"capture_output": True, "text": True, "timeout": 120, "cwd": tmp_path}
        return subprocess.run(command, **(settings | options))  # type: ignore[call-overload, no-any-return]

    return run
