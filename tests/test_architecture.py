"""The layers of the program, and the sizes that keep a function on one screen.

A module imports from its own level downwards; imports under ``if TYPE_CHECKING:`` are free of that rule. The tests
read the import statements and run none of them.
"""

from __future__ import annotations

import ast
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import dumpxlate

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

LEVELS = (
    ("errors", "arrays", "version"),
    ("structs", "pageset", "bitmap", "places", "extents", "io", "progress"),
    ("pages", "stores", "codecs", "elf", "vmcoreinfo", "arch", "segments", "pieces", "emit", "lime"),
    ("memory", "single", "p2m", "paging", "dump", "canonical", "guest_notes", "xen", "qemu", "xen_host"),
    ("format", "window", "registry", "bare"),
    ("formats",),
    ("pipeline", "streaming", "writing", "describe", "verify", "vmcoreinfo_search"),
    ("",),  # dumpxlate/__init__.py, the public names
    ("cli", "__main__"),
)
LEVEL = {part: number for number, parts in enumerate(LEVELS) for part in parts}
ONLY_IN = {
    "elftools": "dumpxlate.elf",
    "rich": "dumpxlate.cli",
    "typer": "dumpxlate.cli",
    "click": "dumpxlate.cli",
    "distributed": "dumpxlate.cli.cluster",
}
LONGEST_FUNCTION = 60
LONGEST_MODULE = 400


@dataclass(frozen=True)
class Import:
    """One imported module; ``typing`` where only a type checker follows it, ``late`` inside a function."""

    module: str
    line: int
    typing: bool = False
    late: bool = False


@dataclass(frozen=True)
class Module:
    """One file of the tree under the name it is imported by."""

    name: str
    text: str
    is_package: bool = False

    @property
    def part(self) -> str:
        """The entry of the table that it belongs to."""
        return part_of(self.name)


def part_of(name: str) -> str:
    return [*name.split("."), ""][1]


def format_of(name: str) -> str | None:
    """``kdump`` for ``dumpxlate.formats.kdump.reader``."""
    return name.split(".")[2] if name.startswith("dumpxlate.formats.") else None


def is_within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


@cache
def tree() -> tuple[Module, ...]:
    """Every module of the program, read through the link that leads to the formats."""
    top = Path(dumpxlate.__file__).parent
    found = []
    for folder, _, files in os.walk(top, followlinks=True):
        for path in (Path(folder, file) for file in files if file.endswith(".py")):
            words = ["dumpxlate", *path.relative_to(top).with_suffix("").parts]
            is_package = words[-1] == "__init__"
            name = ".".join(words[:-1] if is_package else words)
            found.append(Module(name, path.read_text(encoding="utf-8"), is_package))
    return tuple(sorted(found, key=lambda module: module.name))


def imports(module: Module, names: frozenset[str]) -> Iterator[Import]:
    """Its imports as full names; ``from package import module`` names the module."""
    todo: list[tuple[ast.AST, bool, bool]] = [(node, False, False) for node in ast.parse(module.text).body]
    while todo:
        node, typing, late = todo.pop()
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, typing, late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _base(module, node)
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield Import(full if full in names else base, node.lineno, typing, late)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo += [(child, True, late) for child in node.body] + [(child, typing, late) for child in node.orelse]
        else:
            inner = late or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            todo += [(child, typing, inner) for child in ast.iter_child_nodes(node)]


def _base(module: Module, node: ast.ImportFrom) -> str:
    """The module that a ``from`` names, also where it does so with dots."""
    words = module.name.split(".")
    up = node.level - module.is_package
    start = words[: len(words) - up] if node.level else []
    return ".".join([*start, *filter(None, [node.module])])


def unknown_modules(modules: Iterable[Module]) -> list[str]:
    return [
        f"{module.name}: not in LEVELS of tests/test_architecture.py: enter {module.part} on the lowest level whose "
        f"modules need it and that lies above (or beside) what it imports"
        for module in modules
        if module.part not in LEVEL
    ]


def upward_imports(modules: Iterable[Module], names: frozenset[str]) -> list[str]:
    return [
        f"{module.name}:{one.line}: level {LEVEL[module.part]} imports {one.module} of level {LEVEL[target]}"
        for module in modules
        for one in imports(module, names)
        if not one.typing and is_within(one.module, "dumpxlate")
        for target in [part_of(one.module)]
        if module.part in LEVEL and target in LEVEL and LEVEL[target] > LEVEL[module.part]
    ]


def named_formats(modules: Iterable[Module], names: frozenset[str]) -> list[str]:
    """Imports of a format by anything but itself: the registry finds formats by walking their folder."""
    return [
        f"{module.name}:{one.line}: imports {one.module}: only the registry knows formats, by walking their folder"
        for module in modules
        for one in imports(module, names)
        if is_within(one.module, "dumpxlate.formats")
        and module.name != "dumpxlate.registry"
        and (format_of(one.module) is None or format_of(one.module) != format_of(module.name))
    ] + [
        f"{module.name}:{one.line}: names {one.module}: the registry finds formats by walking their folder"
        for module in modules
        for one in imports(module, names)
        if module.name == "dumpxlate.registry" and format_of(one.module) is not None
    ]


def misplaced_libraries(modules: Iterable[Module], names: frozenset[str]) -> list[str]:
    return [
        f"{module.name}:{one.line}: imports {one.module}, which is for {home} alone"
        for module in modules
        for one in imports(module, names)
        for home in [ONLY_IN.get(one.module.split(".")[0], module.name)]
        if not is_within(module.name, home)
    ]


def cycle(modules: Iterable[Module], names: frozenset[str]) -> list[str]:
    """The first circle of modules that import each other while they are loaded; empty if there is none."""
    graph = {
        module.name: {one.module for one in imports(module, names) if not one.typing and not one.late} - {module.name}
        for module in modules
    }
    settled: set[str] = set()

    def circle_from(trail: list[str]) -> list[str]:
        for target in sorted(graph.get(trail[-1], ())):
            if target in trail:
                return [*trail[trail.index(target) :], target]
            if target not in settled and (found := circle_from([*trail, target])):
                return found
        settled.add(trail[-1])
        return []

    return next((found for name in graph if (found := circle_from([name]))), [])


def too_long(modules: Iterable[Module]) -> list[str]:
    found = []
    for module in modules:
        lines = module.text.count("\n")
        if lines > LONGEST_MODULE:
            found.append(f"{module.name}: {lines} lines, at most {LONGEST_MODULE}")
        for node in ast.walk(ast.parse(module.text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > LONGEST_FUNCTION:
                    found.append(f"{module.name}.{node.name}: {lines} lines, at most {LONGEST_FUNCTION}")
    return found


def names_of(modules: Iterable[Module]) -> frozenset[str]:
    return frozenset(module.name for module in modules)


def report(faults: list[str]) -> str:
    return "\n" + "\n".join(faults)


def test_the_tree_was_found() -> None:
    assert {"dumpxlate", "dumpxlate.errors", "dumpxlate.formats"} <= names_of(tree())
    assert {format_of(module.name) for module in tree()} > {None}, "no format was reached through the link"


def test_every_module_has_a_level() -> None:
    faults = unknown_modules(tree())
    assert not faults, report(faults)


def test_imports_lead_downwards() -> None:
    faults = upward_imports(tree(), names_of(tree()))
    assert not faults, report(faults)


def test_no_module_imports_itself_in_a_circle() -> None:
    found = cycle(tree(), names_of(tree()))
    assert not found, " -> ".join(found)


def test_formats_are_known_to_none_but_themselves() -> None:
    faults = named_formats(tree(), names_of(tree()))
    assert not faults, report(faults)


def test_libraries_stay_in_their_place() -> None:
    faults = misplaced_libraries(tree(), names_of(tree()))
    assert not faults, report(faults)


def test_functions_and_modules_are_short() -> None:
    faults = too_long(tree())
    assert not faults, report(faults)


class TestTheRulesThemselves:
    """Each rule finds the fault it is there for."""

    NAMES = frozenset(
        {"dumpxlate", "dumpxlate.errors", "dumpxlate.pages", "dumpxlate.registry", "dumpxlate.pipeline"}
        | {"dumpxlate.formats", "dumpxlate.formats.elf", "dumpxlate.formats.kdump", "dumpxlate.formats.kdump.layout"}
    )

    @staticmethod
    def module(name: str, text: str, *, is_package: bool = False) -> list[Module]:
        return [Module(name, text, is_package)]

    def test_unknown_module(self) -> None:
        assert "enter helpers on the lowest level" in unknown_modules(self.module("dumpxlate.helpers.text", ""))[0]

    def test_upward(self) -> None:
        for text in (
            "from dumpxlate.pages import PageTable",
            "from dumpxlate import pages",
            "import dumpxlate.pages as p",
            "def late():\n    from . import pages",
            "try:\n    from .pages import PageTable\nexcept ImportError:\n    pass",
            "import dumpxlate",
        ):
            assert upward_imports(self.module("dumpxlate.errors", text), self.NAMES), text

    def test_typing_is_free(self) -> None:
        text = "if TYPE_CHECKING:\n    from dumpxlate.pages import PageTable\nelse:\n    import os"
        assert upward_imports(self.module("dumpxlate.errors", text), self.NAMES) == []

    def test_downward_and_sideways(self) -> None:
        text = "from dumpxlate.errors import FormatError\nfrom dumpxlate.arch import by_name\nimport numpy"
        assert upward_imports(self.module("dumpxlate.pages", text), self.NAMES) == []

    def test_format_of_another_format(self) -> None:
        name = "dumpxlate.formats.kdump"
        for text in (
            "from dumpxlate.formats.elf import ElfFormat",
            "from dumpxlate.formats import elf",
            "from ..formats import elf",
            "from ..elf import reader",
            "from .. import elf",
            "if TYPE_CHECKING:\n    from dumpxlate.formats.elf import ElfFormat",
        ):
            module = Module(f"{name}.reader", text)
            assert named_formats([module], self.NAMES), text
        own = Module(f"{name}.reader", "from dumpxlate.formats.kdump.layout import Header\nfrom . import layout")
        assert named_formats([own], self.NAMES) == []
        assert named_formats([Module(name, "from .layout import Header", is_package=True)], self.NAMES) == []

    def test_format_outside_formats(self) -> None:
        for name in ("dumpxlate.pipeline", "dumpxlate.registry"):
            text = "def f():\n    from dumpxlate.formats.kdump import FORMAT"
            assert named_formats(self.module(name, text), self.NAMES), name
        walk = "import dumpxlate.formats"
        assert named_formats(self.module("dumpxlate.registry", walk), self.NAMES) == []
        assert named_formats(self.module("dumpxlate.pipeline", walk), self.NAMES)

    def test_library(self) -> None:
        text = "from elftools.elf import enums\nimport rich.table"
        assert len(misplaced_libraries(self.module("dumpxlate.formats.elf", text), self.NAMES)) == 2
        assert misplaced_libraries(self.module("dumpxlate.elf.container", "import elftools"), self.NAMES) == []
        assert misplaced_libraries(self.module("dumpxlate.cli.render", "import rich.table"), self.NAMES) == []

    def test_circle(self) -> None:
        one = Module("dumpxlate.errors", "from dumpxlate.pages import x")
        other = Module("dumpxlate.pages", "from dumpxlate.errors import y")
        late = Module("dumpxlate.pages", "def f():\n    from dumpxlate.errors import y")
        assert cycle([one, other], self.NAMES) == ["dumpxlate.errors", "dumpxlate.pages", "dumpxlate.errors"]
        assert cycle([one, late], self.NAMES) == []

    def test_length(self) -> None:
        text = "def short():\n" + "    pass\n" * 59 + "class C:\n    async def long(self):\n" + "        pass\n" * 60
        assert too_long(self.module("dumpxlate.pages", text)) == ["dumpxlate.pages.long: 61 lines, at most 60"]
        assert too_long(self.module("dumpxlate.pages", "\n" * 401)) == ["dumpxlate.pages: 401 lines, at most 400"]
