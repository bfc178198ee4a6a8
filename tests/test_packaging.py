"""What is built is what is in the tree: a checkout without links would give a wheel without formats."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import EntryPoint, PathDistribution
from pathlib import Path

import pytest

import dumpxlate

ROOT = Path(__file__).resolve().parent.parent


def build(target: str, folder: Path) -> Path:
    """Has the build backend make an sdist or a wheel, without a download."""
    pytest.importorskip("hatchling", reason="hatchling builds the packages: install dumpxlate[test]")
    if not (ROOT / "dumpxlate").is_dir():
        pytest.skip("these tests run against an installed package: there is no source tree to build")
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = folder.iterdir()
    return built


def tree(top: Path) -> set[str]:
    """Names of the files below, through links, less what Python and the tools leave there."""
    found = set()
    for folder, inner, files in os.walk(top, followlinks=True):
        inner[:] = [name for name in inner if name != "__pycache__" and not name.startswith(".")]
        found |= {Path(folder, name).relative_to(top).as_posix() for name in files if not name.startswith(".")}
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed_names(wheel: Path) -> set[str]:
    """Names of the files that the wheel puts into the package."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
    assert all(name.startswith("dumpxlate/") for name in names)
    return {name.removeprefix("dumpxlate/") for name in names}


@pytest.fixture(scope="module")
def metadata(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> PathDistribution:
    unpacked = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    (folder,) = unpacked.glob("*.dist-info")
    return PathDistribution(folder)


def test_wheel_holds_the_package(installed_names: set[str]) -> None:
    assert installed_names == tree(ROOT / "dumpxlate")


def test_wheel_holds_the_formats(installed_names: set[str]) -> None:
    """An unpacked sdist has no top-level ``formats/``: there they are files of the package itself."""
    formats = ROOT / "formats" if (ROOT / "formats").is_dir() else ROOT / "dumpxlate" / "formats"
    in_wheel = {name.removeprefix("formats/") for name in installed_names if name.startswith("formats/")}
    assert in_wheel == tree(formats)
    assert any("/" in name for name in in_wheel), "no format at all"


def test_wheel_is_typed(installed_names: set[str]) -> None:
    assert "py.typed" in installed_names


def test_console_script(metadata: PathDistribution) -> None:
    (script,) = metadata.entry_points
    assert (script.group, script.name) == ("console_scripts", "dumpxlate")
    assert callable(EntryPoint(name=script.name, value=script.value, group=script.group).load())


def test_metadata(metadata: PathDistribution) -> None:
    facts = metadata.metadata
    assert (facts["Name"], facts["Version"], facts["License-Expression"]) == (
        "dumpxlate",
        dumpxlate.__version__,
        "MIT",
    )
    assert {"test", "lint"} <= set(facts.get_all("Provides-Extra", []))
    assert facts["Description"], "the readme is the long description"


def test_sdist_holds_sources_and_tests(tmp_path: Path) -> None:
    """The formats are real files in it, so that it can be built and installed where there are no links."""
    with tarfile.open(build("sdist", tmp_path)) as archive:
        files = {member.name.split("/", 1)[1] for member in archive.getmembers() if member.isfile()}
    assert {f"dumpxlate/{name}" for name in tree(ROOT / "dumpxlate")} <= files
    assert {f"tests/{name}" for name in tree(ROOT / "tests") if name.endswith(".py")} <= files
    assert {"pyproject.toml", "README.rst", "LICENSE"} <= files
