"""Tables for people: plain columns in a pipe, folded ones on a terminal, with the same cells."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from dumpxlate.cli.screen import console, facts, listing

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LONG = "a value that is longer than any terminal is wide, " * 3 + "and goes on"


def printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.split("\n")


def test_plain_columns(capsys: pytest.CaptureFixture[str]) -> None:
    console().print(listing("Runs", ("from", "pages", "why"), [("0x0", "1", LONG), ("0x100000", "12,345", "")]))
    assert printed(capsys) == [
        "Runs",
        "  from        pages     why",
        f"  0x0         1         {LONG}",
        "  0x100000    12,345",
        "",
    ]


def test_plain_facts(capsys: pytest.CaptureFixture[str]) -> None:
    console().print(facts("\nHeader", [("name", "[bold] :smile:"), ("domain_xml", "<domain>\n  <name/>\n</domain>")]))
    assert printed(capsys) == [
        "",
        "Header",
        "  name          [bold] :smile:",
        "  domain_xml    <domain>",
        "                  <name/>",
        "                </domain>",
        "",
    ]


def test_wide_letters_keep_columns(capsys: pytest.CaptureFixture[str]) -> None:
    console().print(listing("", ("a", "b"), [("主机", "1"), ("e\u0301", "2"), ("host", "3")]))
    assert printed(capsys)[1:5] == ["  a       b", "  主机    1", "  e\u0301       2", "  host    3"]


@pytest.mark.parametrize("columns", [(), ("only", "names")])
def test_an_empty_table_is_its_title(columns: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    console().print(listing("Nothing", columns, []))
    assert printed(capsys) == ["Nothing", *(["  only    names"] if columns else []), ""]


def test_lines_and_pieces(capsys: pytest.CaptureFixture[str]) -> None:
    out = console()
    out.print([("[", ""), ("##", "green"), ("]", "")])
    out.print("[dim] is no style", style="dim")
    out.print()
    assert printed(capsys) == ["[##]", "[dim] is no style", "", ""]
    assert not out.is_terminal


def on_terminal(*words: str | Path) -> str:
    """What a command prints on a terminal of 60 columns, without its styles."""
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "dumpxlate", *map(str, words)]
    environment = os.environ | {"COLUMNS": "60", "TERM": "xterm"}
    with subprocess.Popen(command, stdout=follower, env=environment) as process:
        os.close(follower)
        shown = b""
        try:
            while part := os.read(leader, 1 << 16):
                shown += part
        except OSError:  # Linux's way to say that nobody has the other end any more
            pass
        assert process.wait(60) == 0
    os.close(leader)
    assert b"\x1b[" in shown
    return re.sub(r"\x1b\[[0-9;]*m", "", shown.decode()).replace("\r\n", "\n")


@pytest.mark.parametrize("words", [("info",), ("regs",), ("map",), ("checksum",), ("formats",)])
def test_a_terminal_shows_the_same_cells(words: tuple[str], sample: Callable[[str], Path]) -> None:
    """In other places of the screen, so characters are counted; a map has a bar of memory besides."""
    command = words if words == ("formats",) else (*words, sample("elf/x64-long.elf"))
    done = subprocess.run([sys.executable, "-m", "dumpxlate", *map(str, command)], capture_output=True, text=True)
    shown = on_terminal(*command)
    if words == ("map",):
        assert re.match(r"\[#\.+#\]\n0 to 0x100006000, .*\n", shown)
        shown = shown.split("\n", 2)[2]
    if words == ("formats",):
        assert max(map(len, shown.split("\n"))) <= 60 < max(map(len, done.stdout.split("\n")))
    assert Counter("".join(shown.split())) == Counter("".join(done.stdout.split()))


def test_colours_may_be_forced(sample: Callable[[str], Path]) -> None:
    command = [sys.executable, "-m", "dumpxlate", "info", str(sample("elf/x64-long.elf"))]
    plain = os.environ.copy()
    plain.pop("FORCE_COLOR", None)
    forced = plain | {"FORCE_COLOR": "1", "TERM": "xterm"}
    assert b"\x1b" not in subprocess.run(command, capture_output=True, env=plain).stdout
    assert b"\x1b[" in subprocess.run(command, capture_output=True, env=forced).stdout
