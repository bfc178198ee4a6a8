"""Fixtures of the tests that ask other programs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def guest() -> Path:
    """Folder of a stopped Linux guest, as ``guest.py`` makes it, with its vmlinux."""
    folder = os.environ.get("DUMPXLATE_GUEST")
    if not folder:
        pytest.skip("DUMPXLATE_GUEST names no folder with a Linux guest (tests/peers/guest.py makes one)")
    return Path(folder)
