"""Fixtures of the tests that ask other programs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def guest() -> Path:
    """Folder of a stopped Linux guest, as ``guest.py`` makes it, with its vmlinux."""
    folder = os.environ.get("DUMPXLATE_GUEST")
    if not folder:
        pytest.skip("DUMPXLATE_GUEST names no folder with a Linux guest (tests/peers/guest.py makes one)")
    return Path(folder)


@pytest.fixture(scope="session")
def facts(guest: Path) -> dict[str, Any]:
    """What QEMU's monitor and ``guest.py`` know of that guest."""
    found: dict[str, Any] = json.loads((guest / "facts.json").read_text())
    return found
