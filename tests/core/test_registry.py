"""Finding formats: by name, by suffix, by evidence, and through containers; with stand-ins for the formats."""

from __future__ import annotations

import sys
import zipfile
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from dumpxlate import registry
from dumpxlate.arch import by_name
from dumpxlate.dump import Dump, Machine
from dumpxlate.errors import (
    AmbiguousFormatError,
    CorruptDumpError,
    DumpxlateError,
    FormatError,
    OutputError,
    UnknownFormatError,
    UnsupportedFeatureError,
)
from dumpxlate.extents import Extents
from dumpxlate.format import Confidence, Match, OpenOptions
from dumpxlate.io.source import BytesSource
from dumpxlate.stores import IndexedStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from dumpxlate.io.source import Source


@dataclass
class Stub:
    """A format that claims files which begin with its magic."""

    name: str
    magic: bytes = b""
    confidence: Confidence = Confidence.SPECIFIC
    suffixes: tuple[str, ...] = ()
    writes: bool = False
    error: Exception | None = None
    opened: list[tuple[str, ...]] = field(default_factory=list)
    title: str = "a stand-in"

    def detect(self, source: Source) -> Match | None:
        head = bytes(source.view(0, min(source.size, len(self.magic))))
        return Match(self.confidence, "magic") if head == self.magic else None

    def open(self, sources: Sequence[Source], options: OpenOptions) -> Dump:
        self.opened.append(tuple(bytes(source.view()).decode() for source in sources))
        if self.error:
            raise self.error
        nothing = np.empty(0, np.int64)
        store = IndexedStore(sources[0], 4096, Extents(nothing, nothing, nothing))
        return Dump(self.name, "plain", Machine(by_name("x86_64"), "<", 4096), store, sources=tuple(sources))


@dataclass
class Peel(Stub):
    """A container: what is inside follows its magic."""

    def unwrap(self, source: Source) -> Source:
        if self.error:
            raise self.error
        return BytesSource(source.view(len(self.magic)), source.name)


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def use(*stubs: Stub) -> None:
        monkeypatch.setattr(registry, "_packages", lambda: tuple(sorted(stubs, key=lambda each: each.name)))

    return use


def source(data: bytes, name: str = "file") -> BytesSource:
    return BytesSource(data, name)


def test_every_package_of_formats_is_found() -> None:
    formats, wrappers = registry.all_formats(), registry.all_wrappers()
    names = [each.name for each in (*formats, *wrappers)]
    assert {"elf", "xendump"} <= set(names)
    assert len(set(names)) == len(names)
    assert [each.name for each in formats] == sorted(each.name for each in formats)
    for each in (*formats, *wrappers):
        assert each.title
        assert registry.is_wrapper(each) == (each in wrappers)
        find: Callable[[str], object] = registry.find_wrapper if each in wrappers else registry.find_format
        assert find(each.name) is each


@pytest.mark.parametrize("data", [b"\0", b"\x7fEL", b"KDUMP", b"makedumpfile", bytes(5000), b"\xff" * 300])
def test_no_real_format_stumbles_over_little(data: bytes) -> None:
    for each in (*registry.all_formats(), *registry.all_wrappers()):
        match = each.detect(source(data))
        assert match is None or match.confidence in Confidence


def test_names(install: Callable[..., None]) -> None:
    a, b, c = Stub("a"), Stub("b"), Peel("c")
    install(b, c, a)
    assert registry.all_formats() == (a, b)
    assert registry.all_wrappers() == (c,)
    assert registry.find_format("b") is b
    assert registry.find_wrapper("c") is c
    with pytest.raises(UnknownFormatError, match="no format is called 'c': there are a, b") as caught:
        registry.find_format("c")
    assert caught.value.tried == ("a", "b")
    with pytest.raises(UnknownFormatError, match="no container is called 'a': there are c"):
        registry.find_wrapper("a")


@pytest.mark.parametrize(
    ("path", "format"),
    [
        ("out.lime", "lime"),
        ("OUT.LIME", "lime"),
        ("folder.lime/out", "elf"),
        ("out.kdump.lime", "lime"),
        ("out", "elf"),
        ("out.old", "elf"),
        ("out.both", "kdump"),
    ],
)
def test_a_suffix_chooses_what_to_write(install: Callable[..., None], path: str, format: str) -> None:
    install(
        Stub("lime", suffixes=(".lime", ".both"), writes=True),
        Stub("kdump", suffixes=(".kdump", ".both"), writes=True),
        Stub("old", suffixes=(".old",)),
        Stub("none", writes=True),
    )
    assert registry.format_for(path) == format


@pytest.mark.parametrize("path", ["vmcore.gz", "guest.lime.XZ", "a.kdump.zst"])
def test_a_suffix_that_would_lie(path: str) -> None:
    with pytest.raises(OutputError, match="is the name of a packed file"):
        registry.format_for(path)


def test_the_most_certain_claim_wins(install: Callable[..., None]) -> None:
    raw = Stub("raw", confidence=Confidence.FALLBACK)
    elf = Stub("elf", b"ELF", Confidence.SIGNATURE)
    core = Stub("core", b"ELFX")
    install(raw, elf, core)
    for data, winner in ((b"ELFX", core), (b"ELF", elf), (b"other", raw), (b"E", raw)):
        found, match = registry.detect(source(data))
        assert found is winner
        assert match.confidence is winner.confidence


def test_equal_claims_are_named(install: Callable[..., None]) -> None:
    install(Stub("a", b"X"), Stub("b", b"X"), Stub("c", b"X", Confidence.SIGNATURE))
    with pytest.raises(AmbiguousFormatError, match="file: may be a or b: choose with --from") as caught:
        registry.detect(source(b"X"))
    assert caught.value.matches == ("a", "b")


@pytest.mark.parametrize(("data", "head"), [(b"\1\2", "01 02"), (b"0123456789", "30 31 32 33 34 35 36 37")])
def test_no_claim_says_how_the_file_begins(install: Callable[..., None], data: bytes, head: str) -> None:
    install(Stub("a", b"X"), Peel("b", b"Y"))
    with pytest.raises(UnknownFormatError, match=rf"^file: not a dump .*begins with {head} \(known: a, b\)") as caught:
        registry.detect(source(data))
    assert (caught.value.tried, caught.value.path) == (("a", "b"), "file")


def test_containers_are_opened_on_the_way(install: Callable[..., None]) -> None:
    dump = Stub("dump", b"D")
    install(dump, Peel("gzip", b"G"), Peel("flat", b"F"))
    assert registry.open_from([source(b"D1")]).variant == "plain"
    assert registry.open_from([source(b"GFGD2")]).variant == "plain, in flat, gzip"
    assert registry.open_from([source(b"FD3")], "dump").variant == "plain, in flat"
    assert dump.opened == [("D1",), ("D2",), ("D3",)]


def test_a_set_may_be_wrapped_in_part(install: Callable[..., None]) -> None:
    dump = Stub("dump", b"D")
    install(dump, Peel("gzip", b"G"))
    assert registry.open_from([source(b"D1"), source(b"GD2"), source(b"D3")]).variant == "plain, in gzip"
    assert dump.opened == [("D1", "D2", "D3")]


def test_containers_without_end_are_refused(install: Callable[..., None]) -> None:
    dump = Stub("dump", b"D")
    install(dump, Peel("gzip", b"G"))
    assert registry.open_from([source(b"GGGGD")])
    with pytest.raises(UnsupportedFeatureError, match="file: more than 4 containers in one another") as one:
        registry.open_from([source(b"G" * 1000 + b"D")])
    assert one.value.feature == "nesting"
    assert len(dump.opened) == 1


def test_a_set_is_of_one_format(install: Callable[..., None]) -> None:
    install(Stub("a", b"A"), Stub("b", b"B"))
    with pytest.raises(AmbiguousFormatError, match="different formats: a, b") as caught:
        registry.open_from([source(b"A", "one"), source(b"B", "two")])
    assert caught.value.path == "one"


def test_a_named_format_is_not_detected(install: Callable[..., None]) -> None:
    raw = Stub("raw", b"never")
    install(raw, Stub("a", b"A"))
    assert registry.open_from([source(b"A")], "raw").format == "raw"
    with pytest.raises(UnknownFormatError, match="no format is called 'zip'"):
        registry.open_from([source(b"A")], "zip")


@pytest.mark.parametrize("path", [None, "deeper"])
def test_an_error_names_the_file(install: Callable[..., None], path: str | None) -> None:
    for stub in (Stub("a", b"A", error=CorruptDumpError("broken", path=path)),):
        install(stub)
        with pytest.raises(CorruptDumpError) as caught:
            registry.open_from([source(b"A", "one")])
        assert str(caught.value) == f"{path or 'one'}: broken"
    install(Peel("gzip", b"G", error=FormatError("broken", path=path)))
    with pytest.raises(FormatError) as broken:
        registry.open_from([source(b"G", "one")])
    assert str(broken.value) == f"{path or 'one'}: broken"


def test_other_errors_pass(install: Callable[..., None]) -> None:
    install(Stub("a", b"A", error=OSError(5, "Input/output error")))
    with pytest.raises(OSError, match="Input/output"):
        registry.open_from([source(b"A")])


def test_files_are_closed_with_the_dump_and_after_a_failure(
    install: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"A1")
    two.write_bytes(b"A2")
    closed: list[str] = []
    real = registry.open_source

    def spy(path: Path) -> Source:
        opened = real(path)
        close = opened.close
        monkeypatch.setattr(opened, "close", lambda: (closed.append(opened.name), close()))
        return opened

    monkeypatch.setattr(registry, "open_source", spy)
    stub = Stub("a", b"A")
    install(stub)
    with registry.open_dump([one, two]) as dump:
        assert [each.name for each in dump.sources] == [str(one), str(two)]
        assert closed == []
    assert closed == [str(one), str(two)]
    for error in (CorruptDumpError("broken"), KeyboardInterrupt()):
        closed.clear()
        stub.error = error  # type: ignore[assignment]
        with pytest.raises(type(error)):
            registry.open_dump([one, two])
        # Closing twice does no harm, so the order and the number do not matter here.
        assert set(closed) == {str(one), str(two)}
    closed.clear()
    with pytest.raises(FileNotFoundError):
        registry.open_dump([one, tmp_path / "missing"])
    assert closed == [str(one)]


def test_an_installation_without_formats_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(registry, "importlib", SimpleNamespace(import_module=fail))
    registry._packages.cache_clear()
    try:
        with pytest.raises(DumpxlateError, match="the link dumpxlate/formats was lost"):
            registry.all_formats()
    finally:
        monkeypatch.undo()
        registry._packages.cache_clear()


@pytest.fixture
def reload_formats() -> Iterator[None]:
    """Look for formats anew, and once more afterwards."""
    registry._packages.cache_clear()
    yield
    registry._packages.cache_clear()


ADDED = {
    "metadata": "Metadata-Version: 2.1\nName: another\nVersion: 1\n",
    "entry_points.txt": "[dumpxlate.formats]\nmine = {name}:FORMAT\n",
    "module": "class Format:\n    name = {name!r}\n\nFORMAT = Format()\n",
}


@pytest.mark.usefixtures("reload_formats")
@pytest.mark.parametrize(
    ("info", "metadata"),
    [("another-1.dist-info", "METADATA"), ("another.egg-info", "PKG-INFO"), ("EGG-INFO", "PKG-INFO")],
)
def test_other_distributions_add_formats(
    info: str, metadata: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"added_as_{info[-8:].replace('-', '_').lower()}"
    files = {
        f"{name}.py": ADDED["module"],
        f"{info}/{metadata}": ADDED["metadata"],
        f"{info}/entry_points.txt": ADDED["entry_points.txt"],
    }
    place = tmp_path / "another-1.egg"
    if info == "EGG-INFO":
        with zipfile.ZipFile(place, "w") as egg:
            for path, text in files.items():
                egg.writestr(path, text.format(name=name))
    else:
        (place / info).mkdir(parents=True)
        for path, text in files.items():
            (place / path).write_text(text.format(name=name))
    monkeypatch.setattr(sys, "path", [*sys.path, str(place)])
    assert registry.find_format(name).name == name
    assert registry.find_format("elf").name == "elf"
