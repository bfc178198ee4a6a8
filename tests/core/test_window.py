"""The window that slides over a file: what it gives, and that memory does not grow under it."""

from __future__ import annotations

from pathlib import Path

import pytest

from dumpxlate.errors import TruncatedDumpError
from dumpxlate.io.source import BytesSource, open_source
from dumpxlate.io.window import SlidingWindow

DATA = bytes(range(256)) * 16


def test_any_place_is_given_with_what_follows() -> None:
    window = SlidingWindow(BytesSource(DATA), size=100)
    for offset, length in ((0, 1), (50, 60), (99, 4), (10, 500), (4095, 1), (4096, 0), (0, 4096)):
        view, begin = window.at(offset, length)
        assert view[begin : begin + length] == DATA[offset : offset + length]
        assert begin + length <= len(view)


@pytest.mark.parametrize(("offset", "length"), [(4096, 1), (0, 4097), (-1, 1), (1 << 60, 1)])
def test_what_the_file_lacks_is_said(offset: int, length: int) -> None:
    with pytest.raises(TruncatedDumpError, match="head"):
        SlidingWindow(BytesSource(DATA)).at(offset, length, what="head")


def test_the_file_can_be_closed_when_the_window_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(DATA)
    source = open_source(tmp_path / "file")
    window = SlidingWindow(source)
    window.at(0, 1)
    window.close()
    source.close()


def resident() -> int:
    """KiB of mapped files that are in this process's memory."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssFile", "RssShmem")))


def test_what_is_behind_is_given_back(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(192 << 20)
    source = open_source(path)
    before, most = resident(), 0
    window = SlidingWindow(source, size=4 << 20)
    for at in range(0, source.size, 4096):
        view, begin = window.at(at, 1)
        assert not view[begin]
        if at % (1 << 20) == 0:
            most = max(most, resident())
    window.close()
    source.close()
    assert most - before < 96 << 10
