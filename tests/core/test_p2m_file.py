"""Maps in files: every kind from bytes written elsewhere, what is no map, and what we write, read without dumpxlate."""

from __future__ import annotations

import io
import json
import os
import re
import struct
import time
import tracemalloc
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dumpxlate.errors import MapError
from dumpxlate.io.sink import FileSink, PipeSink
from dumpxlate.p2m import files as module
from dumpxlate.p2m.files import MAP_KINDS, detect_kind, kind_for, read_map, write_map
from dumpxlate.p2m.map import P2M
from tests.builders import p2m as builder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dumpxlate.p2m.files import MapKind

ALL_ONES = (1 << 64) - 1
# Holes, swapped neighbours, two pfns on one frame, a frame beyond 4 GiB, a flagged entry of each kind.
MFNS = {0: 0x3E000, 1: 0x3E001, 2: 0x3E003, 3: 0x3E002, 5: 0x3E001, 6: 0x12345, 0x10: 0x140000, 0x11: 0x140001}
FOREIGN, IDENTITY, SIZE = {8: 0x3E1D1}, [9, 10], 20


def table(width: int = 8) -> list[int]:
    return builder.entries(MFNS, size=SIZE, foreign=FOREIGN, identity=IDENTITY, width=width)


def put(folder: Path, data: bytes, name: str = "map") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def as_dict(p2m: P2M, part: str = "runs") -> dict[int, int]:
    runs = getattr(p2m, part)
    rows = zip(runs.pfn.tolist(), runs.frame.tolist(), runs.count.tolist(), strict=True)
    return {pfn + at: frame + at for pfn, frame, count in rows for at in range(count)}


def check(p2m: P2M, *, flags: bool = True, size: int = SIZE) -> None:
    assert as_dict(p2m) == MFNS
    assert p2m.size == size
    if flags:
        assert as_dict(p2m, "foreign") == FOREIGN
        assert as_dict(p2m, "identity") == {pfn: pfn for pfn in IDENTITY}


LISTED = [(pfn, entry) for pfn, entry in enumerate(table()) if entry != ALL_ONES]
SIGNED = [entry - (1 << 64) if entry >> 63 else entry for entry in table()]
KINDS: dict[str, tuple[MapKind, bytes]] = {
    "u64": ("u64", builder.flat(table())),
    "u32": ("u32", builder.flat(table(4), width=4)),
    "u32, odd number": ("u32", builder.flat([*table(4), ALL_ONES], width=4)[:-4]),
    "npy <u8": ("npy", builder.npy(table())),
    "npy >u8": ("npy", builder.npy(table(), dtype=">u8")),
    "npy <i8": ("npy", builder.npy(table(), dtype="<i8")),
    "npy <u4": ("npy", builder.npy(table(4), dtype="<u4")),
    "npy >u4": ("npy", builder.npy(table(4), dtype=">u4")),
    "npy <i4": ("npy", builder.npy(table(4), dtype="<i4")),
    "text": ("text", builder.text(LISTED)),
    "text, decimal": ("text", builder.text(LISTED, style="dec", separator="\t")),
    "text, commas": ("text", builder.text(LISTED, separator=", ", newline="\r\n")),
    "text, comments": ("text", builder.text(LISTED, comments=["# a map", "", "   # of t3: größer", "\t"])),
    "text, none": ("text", builder.text(LISTED) + b"4 -\n7 none\n0x13 -"),
    "text, shuffled": ("text", builder.text(LISTED[::-1])),
    "text, repeated": ("text", builder.text([*LISTED, (0, 0x999), (8, 7)])),
    "text, leading zeros": ("text", b"".join(b"%08d 0x%016x  \n" % pair for pair in LISTED)),
    "mfndump": ("mfndump", builder.mfndump(table())),
    "mfndump, cut": ("mfndump", builder.mfndump(table(), tail=False)),
    "mfndump, types": ("mfndump", builder.mfndump(table(), types={0: 1, 1: 4, 2: 9, 3: 12, 5: 7})),
    "mfndump, noise": ("mfndump", builder.mfndump(table(), noise={0: "xc: error: x", 3: "  pfn=0x3 ==> mfn=0x"})),
    "mfndump, bare": ("mfndump", b"\n".join(builder.mfndump(table()).split(b"\n")[2:-2])),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind(tmp_path: Path, name: str) -> None:
    kind, data = KINDS[name]
    size = SIZE if "text" not in name or "none" in name else max(MFNS) + 1
    path = put(tmp_path, data)
    assert detect_kind(memoryview(data)) == kind
    check(read_map(path), size=size)
    check(read_map(str(path), kind), size=size)


def test_the_32_bit_guests_flags_move() -> None:
    assert table(4)[8] == 1 << 31 | 0x3E1D1
    assert table(4)[9] == 1 << 30 | 9


@pytest.mark.parametrize("kind", [kind for kind in MAP_KINDS if kind not in ("u64", "u32")])
def test_a_file_of_another_kind_than_said(tmp_path: Path, kind: MapKind) -> None:
    others = [data for name, (its, data) in KINDS.items() if its != kind and not (kind == "text" and its == "mfndump")]
    for number, data in enumerate(others):
        with pytest.raises(MapError):
            read_map(put(tmp_path, data, f"map{number}"), kind)


@pytest.mark.parametrize("kind", [0xD, 0xE, 0xF])
def test_mfndump_types_that_are_no_memory(tmp_path: Path, kind: int) -> None:
    """An ordinary frame with type 0xf is one that the domain does not own."""
    p2m = read_map(put(tmp_path, builder.mfndump(table(), types={1: kind, 9: kind})))
    assert as_dict(p2m) == {pfn: mfn for pfn, mfn in MFNS.items() if pfn != 1}
    assert p2m.size == SIZE


def test_mfndump_that_begins_later(tmp_path: Path) -> None:
    p2m = read_map(put(tmp_path, builder.mfndump([7, 8, ALL_ONES, 20], first=100)))
    assert as_dict(p2m) == {100: 7, 101: 8, 103: 20}
    assert p2m.size == 104


@pytest.mark.parametrize("pieces", [20, 64, 4096])
@pytest.mark.parametrize("name", ["text", "text, none", "mfndump", "text, commas"])
def test_text_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pieces: int, name: str) -> None:
    kind, data = KINDS[name]
    pieces = max(pieces, max(map(len, data.split(b"\n"))) + 1)
    monkeypatch.setattr(module, "_LINES", pieces)
    check(read_map(put(tmp_path, data)), size=read_map(put(tmp_path, data)).size)
    assert detect_kind(memoryview(data)) == kind


def test_a_line_longer_than_a_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LINES", 64)
    with pytest.raises(MapError, match="a line of more than 64 bytes at 0x6"):
        read_map(put(tmp_path, b"0 0x1\n" + b"#" * 70 + b"\n1 0x2\n"))


def npy(header: str | bytes, body: bytes = bytes(64), version: bytes = b"\1\0") -> bytes:
    text = header.encode() if isinstance(header, str) else header
    return b"\x93NUMPY" + version + struct.pack("<H" if version[0] == 1 else "<I", len(text)) + text + body


def saved(array: object) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)  # type: ignore[arg-type]
    return file.getvalue()


HEADER = "{'descr': '%s', 'fortran_order': False, 'shape': %s, }"
BAD = {
    "empty": (b"", "is empty"),
    "one byte": (b"\0", "not a p2m map: 1 bytes"),
    "odd size": (b"\0" * 9, "not a p2m map"),
    "cut array": (builder.flat(table())[:-3], "not a p2m map"),
    "zeros": (bytes(4096), "u64 map without a single page"),
    "all ones": (b"\xff" * 4096, "without a single page"),
    "garbage": (np.random.default_rng(1).bytes(4096), "not a p2m map"),
    "an ELF file": (b"\x7fELF\2\1\1" + bytes(9) + np.random.default_rng(2).bytes(8000), "not a p2m map"),
    "compressed": (b"\xfd7zXZ\0\0\4" + np.random.default_rng(3).bytes(4000), "not a p2m map"),
    "a bad line": (b"0 0x10\n1 0x11\n2 x12\n", r"not a line of pfn and mfn: b'2 x12'"),
    "a long bad line": (b"0 0x10\n" + b"z" * 5000 + b"\n", r"b'z{60}'"),
    "three columns": (b"0 1 2\n", "not a line"),
    "one column": (b"0x3e000\n0x3e001\n", "not a line"),
    "negative": (b"0 -5\n", "not a line"),
    "hex without 0x": (builder.text(LISTED, style="bare"), "not a line"),
    "a float": (b"0 1.5\n", "not a line"),
    "other digits": ("0 ١٢\n".encode(), "not a line"),
    "comments only": (b"# nothing\n\n# here\n", "names a pfn"),
    "none only": (b"0 -\n1 none\n", "text map without a single page"),
    "an mfn of 65 bits": (b"0 0x10000000000000000\n", "64 bits"),
    "an mfn of 64 digits": (b"0 " + b"9" * 64 + b"\n", "64 bits"),
    "an mfn of 5000 digits": (b"0 " + b"9" * 5000 + b"\n", "not a line"),
    "a pfn of 5000 digits": (b"0x" + b"9" * 5000 + b" 1\n", "not a line"),
    "a pfn beyond any memory": (b"0x10000000000 1\n", "beyond any machine"),
    "a pfn of 64 bits": (b"0xffffffffffffffff 1\n", "beyond any machine"),
    "mfndump, no line": (b" --- Dumping P2M for domain 1 ---\n --- End of P2M for domain 1 ---\n", "names a pfn"),
    "mfndump, broken": (builder.mfndump(table()).replace(b"type", b"kind"), "names a pfn"),
    "mfndump, huge": (b"  pfn=0x1 ==> mfn=0x1ffffffffffffffff (type 0x0)\n", "64 bits"),
    "mfndump, huge pfn": (b"  pfn=0xffffffffffffffff ==> mfn=0x1 (type 0x0)\n", "beyond any machine"),
    "mfndump, invalid": (builder.mfndump([ALL_ONES] * 4), "mfndump map without a single page"),
    "m2p": (builder.m2p_text({5: 1}), "not a line"),
    "npy, magic only": (b"\x93NUMPY", r"broken .npy header"),
    "npy, cut header": (builder.npy(table())[:40], r"broken .npy header"),
    "npy, cut body": (builder.npy(table())[:-8], r"promises 20 entries, the file has 19"),
    "npy, no body": (npy(HEADER % ("<u8", "(5,)"), b""), "promises 5 entries, the file has 0"),
    "npy, 2-D": (saved(np.ones((4, 2), "<u8")), r"one row .* found uint64 of shape \(4, 2\)"),
    "npy, 0-D": (saved(np.array(5, "<u8")), r"of shape \(\)"),
    "npy, float": (saved(np.ones(4)), "found float64"),
    "npy, complex": (saved(np.ones(4, complex)), "found complex128"),
    "npy, bytes": (saved(np.ones(4, "u1")), "found uint8"),
    "npy, half words": (saved(np.ones(4, "<u2")), "found uint16"),
    "npy, time": (saved(np.ones(4, "M8[s]")), "found datetime64"),
    "npy, records": (saved(np.ones(4, [("pfn", "<u8"), ("mfn", "<u8")])), "one row"),
    "npy, subarrays": (npy(HEADER.replace("'%s'", "%s") % ("('<u8', (2,))", "(3,)")), "one row"),
    "npy, object": (saved(np.array([1, None], object)), "found object"),
    "npy, huge": (npy(HEADER % ("<u8", f"({1 << 80},)")), "promises"),
    "npy, negative": (npy(HEADER % ("<u8", "(-1,)")), "promises -1"),
    "npy, zeros": (saved(np.zeros(4, "<u8")), "npy map without a single page"),
    "npy, empty": (saved(np.zeros(0, "<u8")), "npy map without a single page"),
    "npy, version 9": (npy(HEADER % ("<u8", "(4,)"), version=b"\x09\0"), "broken|single page"),
    "npy, long header": (npy("{" + " " * 60_000 + "}"), "broken .npy header"),
    "npy, no dictionary": (npy("[1]"), "broken .npy header"),
    "npy, keys": (npy("{'descr': '<u8'}"), "broken .npy header"),
    "npy, code": (npy("__import__('os').abort()"), "broken .npy header"),
    "npy, unhashable": (npy("{[]: 1}"), "broken .npy header"),
    "npy, odd descr": (npy(HEADER.replace("'%s'", "%s") % ("()", "(1,)")), "broken .npy header"),
    "npy, bad dtype": (npy(HEADER % ("<u99", "(1,)")), "broken .npy header"),
    "npy, deep": (npy("-" * 9000 + "1"), "broken .npy header"),
    "npy, parentheses": (npy("(" * 4000), "broken .npy header"),
    "npy, not text": (npy(b"\x80\xff\0"), "broken .npy header"),
    "npz": (b"PK\3\4" + np.random.default_rng(4).bytes(400), "not a p2m map"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_map(tmp_path: Path, name: str) -> None:
    data, words = BAD[name]
    path = put(tmp_path, data)
    with pytest.raises(MapError, match=words) as caught:
        read_map(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert text.count(str(path)) == 1
    assert len(text) < len(str(path)) + 400


@pytest.mark.parametrize("make", ["folder", "fifo"])
def test_what_is_no_file(tmp_path: Path, make: str) -> None:
    path = tmp_path / "map"
    path.mkdir() if make == "folder" else os.mkfifo(path)
    with pytest.raises(MapError, match=r"is a (directory|pipe), not a file"):
        read_map(path)
    with pytest.raises(FileNotFoundError):
        read_map(tmp_path / "missing")


@settings(deadline=None, max_examples=80)
@given(
    data=st.binary(max_size=300)
    | st.binary(max_size=200).map(npy)
    | st.text("0123456789abcdefx -,#\n\t", max_size=100).map(str.encode)
    | st.text("{}[](),:'\"1 \\descrfortran_ordershape<u8", max_size=100).map(npy)
)
@example(data=b"\x93NUMPY\3\0" + bytes(20))
def test_anything_is_a_map_or_a_map_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = put(tmp_path_factory.getbasetemp(), data, "anything")
    for kind in (None, *MAP_KINDS):
        try:
            found = read_map(path, kind)
        except MapError:
            continue
        assert 0 < found.runs.total <= found.size


@pytest.mark.parametrize("kind", ["u64", "u32"])
@pytest.mark.parametrize("extra", [1, 2, 3])
def test_arrays_of_odd_size(tmp_path: Path, kind: MapKind, extra: int) -> None:
    with pytest.raises(MapError, match=f"not an array of {int(kind[1:]) // 8}-byte words"):
        read_map(put(tmp_path, KINDS[kind][1] + bytes(extra)), kind)


def test_a_numpy_file_of_python_2(tmp_path: Path) -> None:
    """Its shape has the suffix of a long integer; numpy reads it with a warning, which is nobody's business here."""
    data = npy(HEADER % ("<u8", "(3L,)"), struct.pack("<3Q", 5, 6, ALL_ONES))
    assert as_dict(read_map(put(tmp_path, data))) == {0: 5, 1: 6}


def test_numpy_format_versions(tmp_path: Path) -> None:
    for version in (b"\1\0", b"\2\0", b"\3\0"):
        data = npy(HEADER % ("<u8", "(3,)"), struct.pack("<3Q", 5, 6, ALL_ONES), version)
        assert as_dict(read_map(put(tmp_path, data))) == {0: 5, 1: 6}


def test_entries_behind_those_of_the_header_do_not_count(tmp_path: Path) -> None:
    p2m = read_map(put(tmp_path, builder.npy(table()) + struct.pack("<Q", 77)))
    check(p2m)


def test_32_bit_arrays_that_look_like_64_bit_ones() -> None:
    """Told apart by what pairs of words would mean; a map of few and tiny frames is taken for the wider one."""
    wide = builder.flat([0x3E000 + at for at in range(64)])
    narrow = builder.flat([0x3E000 + at for at in range(64)], width=4)
    holes = builder.flat([0x3E000, ALL_ONES] * 32, width=4)
    for data, kind in ((wide, "u64"), (narrow, "u32"), (holes, "u32")):
        assert detect_kind(memoryview(data)) == kind
    assert detect_kind(memoryview(builder.flat([1 << 62 | at for at in range(9)]))) == "u64"
    identity = builder.flat([0x3E000, 0x3E001, *(1 << 30 | at for at in range(2, 65))], width=4)
    assert detect_kind(memoryview(identity)) == "u32"


@pytest.mark.parametrize(
    ("kind", "none"), [("u64", 0x7FFFFFFFFFFFFFFF), ("u32", 0x7FFFFFFF), ("npy", None), ("text", None)]
)
def test_an_identity_entry_without_a_frame(tmp_path: Path, kind: MapKind, none: int | None) -> None:
    """As Linux has them, and as ``xen-mfndump`` printed one of a real guest; a real map, not one with few pages."""
    text = put(tmp_path, b"0 0x3e000\n1 0x7fffffffffffffff\n2 0x8000000000012345\n3 0x3e001\n", "map.txt")
    again = tmp_path / "again"
    with FileSink(again) as sink:
        write_map(read_map(text), sink, kind)
        sink.commit()
    if none is not None:
        width = int(kind[1:]) // 8
        assert int.from_bytes(again.read_bytes()[width : 2 * width], "little") == none
    found = read_map(again)  # its kind is found out
    assert as_dict(found) == {0: 0x3E000, 3: 0x3E001}
    assert as_dict(found, "foreign") == {2: 0x12345}
    assert list(as_dict(found, "identity")) == [1]


@pytest.mark.parametrize(
    "data",
    [
        b" --- Dumping P2M for domain 1 ---\n" + b"\n" * 400_000,
        b" --- Dumping P2M for domain 1 ---\n" + b" " * 400_000,
        b" --- Dumping P2M for domain 1 ---\n" + b"  pfn=0x1\n" * 40_000,
        b" --- Dumping P2M for domain 1 ---\npfn=0x" + b"1" * 400_000,
        b"\n" * 400_000 + b"x",
        b"0 1\n" + b"0" + b" ," * 200_000 + b"\n",
        b"0" * 400_000,
        b"# " * 200_000 + b"\nx",
    ],
    ids=["lines", "blanks", "starts", "digits", "text lines", "commas", "text digits", "comments"],
)
def test_text_that_would_take_quadratic_time(tmp_path: Path, data: bytes) -> None:
    path = put(tmp_path, data)
    begun = time.process_time()
    with pytest.raises(MapError):
        read_map(path)
    assert time.process_time() - begun < 2


def test_a_large_map_is_not_read_entry_by_entry(tmp_path: Path) -> None:
    path = put(tmp_path, (np.arange(2_000_000, dtype="<u8") + 0x1000).tobytes())
    begun = time.process_time()
    tracemalloc.start()
    try:
        p2m = read_map(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert p2m.runs.total == 2_000_000
    assert peak < 64 << 20
    assert time.process_time() - begun < 5


def model() -> P2M:
    return P2M.from_entries(np.array(table(), "<u8"), 8)


def output(folder: Path, p2m: P2M, kind: MapKind) -> bytes:
    with FileSink(folder / "out") as sink:
        write_map(p2m, sink, kind)
        sink.commit()
    data = (folder / "out").read_bytes()
    (folder / "out").unlink()
    return data


@pytest.mark.parametrize("chunk", [1 << 20, 3])
class TestWriting:
    """Read back with numpy and struct alone."""

    @pytest.fixture(autouse=True)
    def _chunks(self, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
        monkeypatch.setattr(module, "_CHUNK", chunk)

    def test_u64(self, tmp_path: Path) -> None:
        assert struct.unpack(f"<{SIZE}Q", output(tmp_path, model(), "u64")) == tuple(table())

    def test_u32(self, tmp_path: Path) -> None:
        found = struct.unpack(f"<{SIZE}I", output(tmp_path, model(), "u32"))
        assert found == tuple(entry & 0xFFFFFFFF for entry in table(4))

    def test_npy(self, tmp_path: Path) -> None:
        found = np.load(io.BytesIO(output(tmp_path, model(), "npy")), allow_pickle=False)
        assert (found.dtype, found.tolist()) == (np.dtype("<u8"), table())

    def test_text(self, tmp_path: Path) -> None:
        lines = output(tmp_path, model(), "text").decode("ascii").splitlines()
        assert lines[0] == "# pfn mfn"
        assert [tuple(int(word, 16) for word in line.split()) for line in lines[1:]] == LISTED
        assert all(re.fullmatch("0x[0-9a-f]+ 0x[0-9a-f]+", line) for line in lines[1:])

    def test_mfndump_cannot_be_written(self, tmp_path: Path) -> None:
        with pytest.raises(MapError, match="can be read, not written"):
            output(tmp_path, model(), "mfndump")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("mfn", [1 << 30, 1 << 40])
    def test_u32_refuses_frames_that_do_not_fit(self, tmp_path: Path, mfn: int) -> None:
        p2m = P2M.from_pairs(np.array([0, 9]), np.array([1, mfn]))
        with pytest.raises(MapError, match="from 0x40000000 on"):
            output(tmp_path, p2m, "u32")
        assert list(tmp_path.iterdir()) == []
        largest = P2M.from_pairs(np.array([0]), np.array([(1 << 30) - 1]))
        assert output(tmp_path, largest, "u32") == struct.pack("<I", (1 << 30) - 1)

    def test_u32_never_writes_no_page_for_a_frame(self, tmp_path: Path) -> None:
        """The highest foreign frame is the only entry that has a name of its own."""
        p2m = P2M.from_entries(np.array([1 << 63 | (1 << 30) - 1], "<u8"), 8)
        assert output(tmp_path, p2m, "u32") == struct.pack("<I", 0xBFFFFFFF)

    @pytest.mark.parametrize("kind", ["u64", "u32", "npy", "text"])
    def test_an_empty_map(self, tmp_path: Path, kind: MapKind) -> None:
        data = output(tmp_path, P2M.from_entries(np.empty(0, "<u8"), 8), kind)
        if kind == "npy":
            assert np.load(io.BytesIO(data)).shape == (0,)
        else:
            assert data == (b"# pfn mfn\n" if kind == "text" else b"")

    @pytest.mark.parametrize("kind", ["u64", "u32", "npy", "text"])
    def test_onto_a_pipe(self, tmp_path: Path, kind: MapKind) -> None:
        reader, writer = os.pipe()
        write_map(model(), PipeSink(writer), kind)
        os.close(writer)
        with os.fdopen(reader, "rb") as file:
            assert file.read() == output(tmp_path, model(), kind)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.npy", "npy"),
        ("a.NPY", "npy"),
        ("a.txt", "text"),
        ("a.text", "text"),
        ("a.u32", "u32"),
        ("a.map4", "u32"),
        ("a.bin", "u64"),
        ("a.map", "u64"),
        ("npy", "u64"),
        ("folder.npy/a", "u64"),
    ],
)
def test_the_suffix_chooses_what_to_write(name: str, kind: MapKind) -> None:
    assert kind_for(name) == kind


PV_GUESTS = ["t0", "t1", "t2", "t3", "t4", "t6", "t7"]


@pytest.fixture
def real(shared: Path, unpacked: Callable[[Path], Path]) -> Callable[[str], Path]:
    return lambda name: unpacked(shared / "fixtures/xen" / f"{name}.xz")


def truth(path: Path) -> dict[int, int]:
    """What the guest's own dump says; rows that Xen left unused name no pfn."""
    rows = [(int(pfn, 16), int(mfn, 16)) for _, pfn, mfn, _, _ in json.loads(path.read_text())["pages"]]
    return {pfn: mfn for pfn, mfn in rows if pfn != ALL_ONES}


def listed(path: Path) -> dict[int, tuple[int, int]]:
    """pfn -> entry, type: what xen-mfndump printed."""
    line = re.compile(r"\s*pfn=(\S+) ==> mfn=(\S+) \(type (\S+)\)")
    found = (line.match(text) for text in path.read_text().splitlines())
    rows = [[int(word, 16) for word in match.groups()] for match in found if match]
    return {pfn: (entry, kind) for pfn, entry, kind in rows}


@pytest.mark.parametrize("guest", PV_GUESTS)
def test_real_maps(real: Callable[[str], Path], guest: str) -> None:
    """The guest's array, the tool's listing and the truth agree, except on frames the domain does not own."""
    expected = truth(real(f"{guest}.json"))
    flat, text = real(f"{guest}.old8.map"), real(f"{guest}.p2m.txt")
    assert (detect_kind(memoryview(flat.read_bytes())), detect_kind(memoryview(text.read_bytes()))) == (
        "u64",
        "mfndump",
    )
    from_array, from_text = read_map(flat), read_map(text)
    rows = listed(text)
    assert as_dict(from_text) == {pfn: entry for pfn, (entry, kind) in rows.items() if kind not in (13, 14, 15)}
    assert from_text.size == len(rows) == max(rows) + 1
    words = np.frombuffer(flat.read_bytes(), "<u8").tolist()
    assert as_dict(from_array) == {pfn: word for pfn, word in enumerate(words) if 0 < word < 1 << 62}
    assert from_array.size == len(words)
    assert as_dict(from_array) == expected
    # The listing may name frames that the dump was not given; where both speak of a pfn they say the same.
    both = as_dict(from_text)
    assert {pfn: both[pfn] for pfn in expected} == expected


@pytest.mark.parametrize("guest", PV_GUESTS[:-1])
def test_real_maps_of_both_index_widths_are_one(real: Callable[[str], Path], guest: str) -> None:
    assert real(f"{guest}.old4.map").read_bytes() == real(f"{guest}.old8.map").read_bytes()


def test_entries_with_flags_in_a_real_map(real: Callable[[str], Path]) -> None:
    p2m = read_map(real("t3.p2m.txt"))
    assert as_dict(p2m, "foreign") == {0x1D1: 0x3E1D1}
    assert as_dict(p2m, "identity") == {0x1D2: 0x1D2, 0x1D3: (1 << 62) - 1}
    owners: dict[int, set[int]] = {}
    for pfn, mfn in as_dict(p2m).items():
        owners.setdefault(mfn, set()).add(pfn)
    assert [each for each in owners.values() if len(each) > 1] == [{0x12, 0x1C7}, {0x1B3, 0x1BD}]
    assert p2m.aliases == 2
    frames = np.array(list(owners), np.int64)
    back = p2m.pfn(frames).tolist()
    assert all(pfn in owners[mfn] for pfn, mfn in zip(back, owners, strict=True))


def test_the_tools_error_is_no_map(real: Callable[[str], Path]) -> None:
    with pytest.raises(MapError, match="not a line of pfn and mfn: b'xc: error"):
        read_map(real("t5.p2m.txt"))
    with pytest.raises(MapError, match="no line of it names"):
        read_map(real("t5.p2m.txt"), "mfndump")


def test_a_real_linux_guest_with_holes(shared: Path, unpacked: Callable[[Path], Path]) -> None:
    path = unpacked(shared / "fixtures/xen-linux/pv1.p2m.txt.xz")
    rows = listed(path)
    p2m = read_map(path)
    assert as_dict(p2m) == {pfn: entry for pfn, (entry, kind) in rows.items() if kind not in (13, 14, 15)}
    assert p2m.size == len(rows)
    assert p2m.runs.total + p2m.invalid + p2m.foreign.total + p2m.identity.total == p2m.size


def test_a_real_m2p_listing_is_no_map(shared: Path, unpacked: Callable[[Path], Path]) -> None:
    with pytest.raises(MapError, match="not a line"):
        read_map(unpacked(shared / "fixtures/xen-host/m2p.txt.xz"))
