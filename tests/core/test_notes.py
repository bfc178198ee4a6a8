"""ELF notes against bytes written here with struct, and against those of real dumps."""

from __future__ import annotations

import lzma
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dumpxlate.elf.notes import MAX_NOTES, NT_VBOXCORE, NT_VBOXCPU, Note, pack_notes, parse_notes

if TYPE_CHECKING:
    from pathlib import Path

    from dumpxlate.structs import Endian

both_endians = pytest.mark.parametrize("endian", ["<", ">"])


def raw(name: bytes, kind: int, desc: bytes, endian: Endian = "<", *, namesz: int | None = None, to: int = 4) -> bytes:
    """A note as the gABI has it: name padded, desc padded, sizes without the padding."""
    header = struct.pack(endian + "3I", len(name) if namesz is None else namesz, len(desc), kind)
    return header + name + b"\0" * (-len(name) % to) + desc + b"\0" * (-len(desc) % to)


@both_endians
def test_notes_follow_each_other_at_multiples_of_four(endian: Endian) -> None:
    data = b"".join(
        [
            raw(b"CORE\0", 1, b"status!", endian),
            raw(b"QEMU\0", 0, b"12345678", endian),
            raw(b"VMCOREINFO\0", 0, b"A=1\n", endian),
            raw(b"Xen\0", 0x2000000, b"", endian),
            raw(b"", 7, b"anonymous", endian),
        ]
    )
    notes = (
        Note("CORE", 1, b"status!"),
        Note("QEMU", 0, b"12345678"),
        Note("VMCOREINFO", 0, b"A=1\n"),
        Note("Xen", 0x2000000, b""),
        Note("", 7, b"anonymous"),
    )
    for source in (data, memoryview(data)):
        parsed = parse_notes(source, endian)
        assert parsed.notes == notes
        assert parsed.complaint is None
    assert pack_notes(notes, endian) == data


def test_nothing_is_no_notes() -> None:
    assert parse_notes(b"", "<").notes == ()
    assert parse_notes(b"", "<").complaint is None
    assert pack_notes([], "<") == b""


@pytest.mark.parametrize("tail", [1, 3, 11, 12, 13, 4096])
def test_a_tail_of_zeros_ends_the_notes(tail: int) -> None:
    parsed = parse_notes(raw(b"CORE\0", 1, b"desc") + bytes(tail), "<")
    assert parsed.notes == (Note("CORE", 1, b"desc"),)
    assert parsed.complaint is None


def test_the_last_note_needs_no_padding() -> None:
    parsed = parse_notes(raw(b"CORE\0", 1, b"1234567")[:-1], "<")
    assert parsed.notes == (Note("CORE", 1, b"1234567"),)
    assert parsed.complaint is None


@pytest.mark.parametrize(
    ("tail", "complaint"),
    [
        (raw(b"CORE\0", 1, b"desc")[:-1], "note at 0x18: name of 5 and desc of 4 bytes, 11 bytes follow"),
        (raw(b"CORE\0", 1, b"desc")[:14], "note at 0x18: name of 5 and desc of 4 bytes, 2 bytes follow"),
        (b"\x05\0\0\0\0", "note at 0x18: 5 bytes, expected a header of 12"),
        (struct.pack("<3I", 0xFFFFFFFF, 4, 1), "note at 0x18: name of 4294967295 and desc of 4 bytes"),
        (struct.pack("<3I", 0, 0xFFFFFFFF, 1), "note at 0x18: name of 0 and desc of 4294967295 bytes"),
        (struct.pack("<3I", 0xFFFFFFFF, 0xFFFFFFFF, 1), "note at 0x18: name of 4294967295"),
    ],
)
def test_a_note_that_leaves_the_data_ends_the_notes(tail: bytes, complaint: str) -> None:
    parsed = parse_notes(raw(b"CORE\0", 1, b"desc") + tail, "<")
    assert parsed.notes == (Note("CORE", 1, b"desc"),)
    assert parsed.complaint is not None
    assert parsed.complaint.startswith(complaint)


def test_a_name_ends_at_its_first_nul_and_may_be_anything() -> None:
    data = raw(b"CORE\0\xff\xff\0", 1, b"") + raw(b"\x1b[31m\xe9\0", 2, b"") + raw(b"GNU", 3, b"")
    assert [note.name for note in parse_notes(data, "<").notes] == ["CORE", "\x1b[31m\xe9", "GNU"]
    assert pack_notes([Note("\x1b[31m\xe9", 2, b"")], "<") == raw(b"\x1b[31m\xe9\0", 2, b"")
    with pytest.raises(UnicodeEncodeError):
        pack_notes([Note("☃", 1, b"")], "<")


def test_their_number_is_limited() -> None:
    data = raw(b"", 1, b"") * 100
    assert parse_notes(data, "<", limit=100).complaint is None
    parsed = parse_notes(data, "<", limit=10)
    assert len(parsed.notes) == 10
    assert parsed.complaint == "note at 0x78: more than 10 notes"
    many = parse_notes(raw(b"", 1, b"") * (MAX_NOTES + 1), "<")
    assert len(many.notes) == MAX_NOTES
    assert many.complaint is not None


@pytest.mark.parametrize("nul", [0, 1], ids=["late", "early"])
def test_virtualbox_pads_to_eight(nul: int) -> None:
    # Its descs are multiples of eight by themselves; one that is not shows where the padding ends.
    core, cpu = bytes(range(24)), bytes(range(100, 140))
    data = b"".join(
        [
            raw(b"VBCORE", NT_VBOXCORE, core, namesz=6 + nul, to=8),
            raw(b"VBCPU", NT_VBOXCPU, cpu, namesz=5 + nul, to=8),
            raw(b"VBCPU", NT_VBOXCPU, cpu[:-4], namesz=5 + nul, to=8),
            raw(b"CORE\0", 1, b"end"),
        ]
    )
    notes = (
        Note("VBCORE", 0xB00, core),
        Note("VBCPU", 0xB01, cpu),
        Note("VBCPU", 0xB01, cpu[:-4]),
        Note("CORE", 1, b"end"),
    )
    parsed = parse_notes(data, "<")
    assert parsed.notes == notes
    assert parsed.complaint is None
    if not nul:
        assert pack_notes(notes, "<") == data


def test_only_a_name_makes_a_note_virtualboxs() -> None:
    data = raw(b"", 1, b"VBxx") + raw(b"V\0", 1, b"desc") + raw(b"CORE\0", 1, b"end")
    assert [note.desc for note in parse_notes(data, "<").notes] == [b"VBxx", b"desc", b"end"]


names = st.text(st.characters(min_codepoint=1, max_codepoint=255), max_size=20)
some_notes = st.builds(Note, names, st.integers(1, 2**32 - 1), st.binary(max_size=20))


@both_endians
@given(st.lists(some_notes))
def test_whatever_is_packed_is_parsed(endian: Endian, notes: list[Note]) -> None:
    parsed = parse_notes(pack_notes(notes, endian), endian)
    assert parsed.notes == tuple(notes)
    assert parsed.complaint is None


@given(st.binary(max_size=200))
def test_anything_can_be_parsed(data: bytes) -> None:
    parsed = parse_notes(data, "<")
    assert sum(12 + len(note.desc) for note in parsed.notes) <= len(data)


# --- real dumps ---

S390X = [(0x305, 4), (0x304, 128), (0x301, 8), (0x302, 8), (0x303, 4), (0x309, 128), (0x30A, 256), (0x30B, 32)]
TINY: dict[str, list[tuple[str, int, int]]] = {
    "x64-long": [("CORE", 1, 336)] * 2 + [("QEMU", 0, 440)] * 2,
    "x64-split": [("CORE", 1, 336), ("QEMU", 0, 440)],
    "i386-paging": [("CORE", 1, 144)] * 2 + [("QEMU", 0, 440)] * 2,
    "aarch64": [("CORE", 1, 392), ("CORE", 2, 528)] * 2,
    "arm": [("CORE", 1, 148), ("LINUX", 0x400, 260)],
    "ppc64": [("CORE", 1, 504), ("CORE", 2, 264), ("CORE", 0x100, 544), ("CORE", 0x102, 256), ("CORE", 0x101, 140)],
    "s390x": [("CORE", 1, 336), ("CORE", 2, 136), *(("LINUX", *note) for note in S390X)] * 2,
}


def note_segment(body: bytes) -> tuple[Endian, bytes]:
    """The first segment of an ELF file, which is PT_NOTE in QEMU's dumps."""
    endian: Endian = "<" if body[5] == 1 else ">"
    if body[4] == 2:
        (phoff,) = struct.unpack_from(endian + "Q", body, 32)
        kind, _, at, _, _, size = struct.unpack_from(endian + "2I4Q", body, phoff)
    else:
        (phoff,) = struct.unpack_from(endian + "I", body, 28)
        kind, at, _, _, size = struct.unpack_from(endian + "5I", body, phoff)
    assert kind == 4
    return endian, body[at : at + size]


@pytest.mark.parametrize("guest", TINY)
def test_notes_of_a_qemu_dump(shared: Path, guest: str) -> None:
    endian, data = note_segment(lzma.decompress((shared / f"fixtures/tiny/{guest}/elf.xz").read_bytes()))
    parsed = parse_notes(data, endian)
    assert parsed.complaint is None
    assert [(note.name, note.type, len(note.desc)) for note in parsed.notes] == TINY[guest]
    assert pack_notes(parsed.notes, endian) == data


def test_notes_of_a_xen_core(shared: Path) -> None:
    body = lzma.decompress((shared / "fixtures/xen/t0.core.xz").read_bytes())
    parsed = parse_notes(body[512:1896], "<")
    assert [(note.name, note.type, len(note.desc)) for note in parsed.notes] == [
        ("Xen", 0x2000000, 0),
        ("Xen", 0x2000001, 32),
        ("Xen", 0x2000002, 1280),
        ("Xen", 0x2000003, 8),
    ]
    assert struct.unpack_from("<Q", parsed.notes[1].desc) == (0xF00FEBED,)
    assert pack_notes(parsed.notes, "<") == body[512:1896]
