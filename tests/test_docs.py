"""The documentation is true: its commands run, its examples run, and nothing of the program is missing in it."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING

import jsonschema
import pytest

from dumpxlate.registry import all_formats, all_wrappers
from tests.builders import xendump
from tests.builders.guest import small_guest
from tests.conftest import ROOT, SAMPLES
from tests.readers import vmcore_pages

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Cli = Callable[..., subprocess.CompletedProcess[str]]

README = (ROOT / "README.rst").read_text()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder that looks like a checkout to commands that read samples and write beside them."""
    (tmp_path / "samples").symlink_to(SAMPLES)
    return tmp_path


def commands() -> list[str]:
    """Every dumpxlate command that README shows."""
    shown = re.findall(r"^    \$ (.*)$", README, re.MULTILINE)
    joined = " && ".join(shown)
    return [part.strip() for part in joined.split("&&") if re.match(r"\s*(\.venv/bin/)?dumpxlate ", part)]


def test_readme_shows_commands_that_can_run() -> None:
    assert any("convert samples/" in command for command in commands())


@pytest.mark.parametrize("command", [command for command in commands() if "samples/" in command])
def test_commands_of_the_readme_run(cli: Cli, checkout: Path, command: str) -> None:
    words = [word for word in shlex.split(command)[1:] if not word.startswith("-q")]
    done = cli(*words, cwd=checkout)
    assert done.returncode == 0, done.stderr


def test_main_command_writes_what_it_says(cli: Cli, checkout: Path) -> None:
    block = README.split(".. begin main command")[1].split(".. end main command")[0]
    convert, info = (shlex.split(part)[1:] for part in block.split("$ ")[1].split("&&")[-2:])
    assert cli(*convert, cwd=checkout).returncode == 0
    assert len(vmcore_pages(checkout / "vmcore")) == 909
    assert "elf" in cli(*info, cwd=checkout).stdout


def test_python_examples_run(checkout: Path) -> None:
    blocks = re.findall(r"\.\. code-block:: python\n\n((?:    .*\n|\n)+)", README)
    assert blocks
    for block in blocks:
        code = "\n".join(line[4:] for line in block.splitlines())
        done = subprocess.run([sys.executable, "-c", code], cwd=checkout, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
    assert "x86_64" in done.stdout


def test_every_command_is_documented_and_has_help(cli: Cli) -> None:
    help_text = cli("--help").stdout
    names = re.findall(r"^  ([a-z][a-z0-9-]*)  +\S", help_text.split("Commands")[1], re.MULTILINE)
    assert {"info", "convert", "formats", "p2m"} <= set(names)
    for name in names:
        assert re.search(rf"``{name}\b", README), f"README does not tell of {name}"
        assert len(cli(name, "--help").stdout.splitlines()) > 3


@pytest.mark.parametrize("name", [each.name for each in (*all_formats(), *all_wrappers())])
def test_every_format_has_a_row(name: str) -> None:
    if name == "foreign":
        return  # recognised only to be named; it is no format anybody asks for
    assert re.search(rf"^``{name}``", README, re.MULTILINE), f"README's table has no row for {name}"


@pytest.mark.parametrize("name", [each.name for each in all_formats()])
def test_table_says_what_can_be_written(name: str) -> None:
    row = re.search(rf"^``{name}`` +(yes|no) +(yes|no) ", README, re.MULTILINE)
    if row:
        writes = next(each.writes for each in all_formats() if each.name == name)
        assert row.groups() == ("yes", "yes" if writes else "no")


# JSON: what is printed fits the schemas in docs/schemas.


def valid(name: str, printed: str) -> None:
    schema = json.loads((ROOT / "docs" / "schemas" / f"{name}.json").read_text())
    jsonschema.validate(json.loads(printed), schema, cls=jsonschema.Draft202012Validator)


def test_json_fits_its_schema(cli: Cli, checkout: Path) -> None:
    dump, p2m = "samples/xendump/t1.old8.xz", "samples/xendump/t1.map"
    valid("info-1", cli("info", "--json", dump, cwd=checkout).stdout)
    valid("info-1", cli("info", "--json", dump, "--p2m", p2m, cwd=checkout).stdout)
    done = cli("convert", dump, "--p2m", p2m, "-o", "out", "--report", "report", "--progress", "json", cwd=checkout)
    valid("convert-1", (checkout / "report").read_text())
    for line in done.stderr.splitlines():
        if line.startswith("{"):
            valid("progress-1", line)
    valid("info-1", cli("info", "--json", "out", cwd=checkout).stdout)
    valid("p2m-1", cli("p2m", "show", "--json", p2m, cwd=checkout).stdout)
    valid("p2m-check-1", cli("p2m", "check", "--json", dump, p2m, cwd=checkout).stdout)
    valid("formats-1", cli("formats", "--json").stdout)


def test_json_of_a_long_index_fits_its_schema(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "dump"
    path.write_bytes(xendump.build(small_guest(), truncate=-9000))
    valid("info-1", cli("info", "--json", path).stdout)
