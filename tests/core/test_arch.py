"""Register layouts against self-naming bytes, and against what QEMU and Xen printed beside real dumps."""

from __future__ import annotations

import lzma
import re
import struct
from typing import TYPE_CHECKING

import pytest

from dumpxlate.arch import (
    RegisterLayout,
    all_arches,
    by_machine,
    by_machine_or_unknown,
    by_name,
    i386,
    prstatus_desc,
    qemu_note,
    read_prstatus,
    xen_vcpu,
)
from dumpxlate.errors import CorruptDumpError, UnsupportedFeatureError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dumpxlate.structs import Endian

# Structures in the order of their C headers: (struct code, names) of members that follow each other, with no name for
# what is no register. Offsets are nowhere written down; they follow from the order.
Members = list[tuple[str, str]]


def numbers(prefix: str, count: int) -> str:
    return " ".join(f"{prefix}{i}" for i in range(count))


def slot(name: str, width: int) -> int:
    """What a register's slot holds in these tests: its own name, shortened in the middle."""
    text = name.encode()
    if len(text) > width:
        text = text[: width // 2] + text[len(text) - (width + 1) // 2 :]
    return int.from_bytes(text.rjust(width, b"."), "big")


def self_naming(members: Members, endian: Endian) -> tuple[bytes, dict[str, int]]:
    parts: list[bytes] = []
    values: dict[str, int] = {}
    for code, names in members:
        if not names:
            parts.append(b"\xee" * struct.calcsize("<" + code))
        for name in names.split():
            values[name] = slot(name, struct.calcsize("<" + code))
            parts.append(struct.pack(endian + code, values[name]))
    assert len(set(values.values())) == len(values), "slots of one content would hide that they are exchanged"
    return b"".join(parts), values


# struct elf_prstatus: siginfo, cursig, sigpend and sighold, pid, three more pids, four times; pr_reg; fpvalid.
HEAD_64: Members = [("3I H 2x 2Q", ""), ("I", "pid"), ("3I 8Q", "")]
HEAD_32: Members = [("3I H 2x 2I", ""), ("I", "pid"), ("3I 8I", "")]
TAIL_64: Members = [("I 4x", "")]
TAIL_32: Members = [("I", "")]

X86_64 = (
    "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs rflags rsp ss "
    "fs_base gs_base ds es fs gs"
)
POWERPC = numbers("gpr", 32) + " nip msr orig_gpr3 ctr link xer ccr softe trap dar dsisr result"
RISCV = "pc ra sp gp tp t0 t1 t2 s0 s1 a0 a1 a2 a3 a4 a5 a6 a7 s2 s3 s4 s5 s6 s7 s8 s9 s10 s11 t3 t4 t5 t6"

PRSTATUS: dict[str, Members] = {
    "x86_64": [*HEAD_64, ("Q", X86_64), *TAIL_64],
    "i386": [*HEAD_32, ("I", "ebx ecx edx esi edi ebp eax ds es fs gs orig_eax eip cs eflags esp ss"), *TAIL_32],
    "aarch64": [*HEAD_64, ("Q", numbers("x", 31) + " sp pc pstate"), *TAIL_64],
    "arm": [*HEAD_32, ("I", numbers("r", 16) + " cpsr orig_r0"), *TAIL_32],
    "ppc64": [*HEAD_64, ("Q", POWERPC), ("4Q", ""), *TAIL_64],
    "ppc": [*HEAD_32, ("I", POWERPC), ("4I", ""), *TAIL_32],
    "s390x": [
        *HEAD_64,
        ("Q", "psw_mask psw_addr " + numbers("gpr", 16)),
        ("I", numbers("acr", 16)),
        ("Q", "orig_gpr2"),
        *TAIL_64,
    ],
    "riscv64": [*HEAD_64, ("Q", RISCV), *TAIL_64],
    "riscv32": [*HEAD_32, ("I", RISCV), *TAIL_32],
    "loongarch64": [*HEAD_64, ("Q", numbers("r", 32) + " orig_a0 csr_era csr_badv"), ("10Q", ""), *TAIL_64],
}

QEMU_CPU_STATE: Members = [
    ("2I", ""),
    ("Q", "rax rbx rcx rdx rsi rdi rsp rbp " + " ".join(f"r{i}" for i in range(8, 16)) + " rip rflags"),
    *(
        member
        for name in ("cs", "ds", "es", "fs", "gs", "ss", "ldt", "tr", "gdt", "idt")
        for member in [("I", f"{name} {name}_limit {name}_flags"), ("4x", ""), ("Q", f"{name}_base")]
    ),
    ("Q", numbers("cr", 5)),
]


def selectors(*, padding: str) -> Members:
    return [member for name in ("ss", "es", "ds", "fs", "gs") for member in [("H", name), (padding, "")]]


XEN_64: Members = [
    ("512x", ""),
    ("Q", "flags r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi"),
    ("I", "error_code entry_vector"),
    ("Q", "rip"),
    ("H", "cs"),
    ("2x", ""),
    ("B", "saved_upcall_mask"),
    ("3x", ""),
    ("Q", "rflags rsp"),
    *selectors(padding="6x"),
    ("4096x", ""),
    ("Q", "ldt_base ldt_ents " + numbers("gdt_frame", 16) + " gdt_ents kernel_ss kernel_sp"),
    ("Q", "cr0 user_cr3 cr2 cr3 cr4 ctrlreg5 ctrlreg6 ctrlreg7 " + numbers("dr", 8)),
    ("Q", "event_callback_eip failsafe_callback_eip syscall_callback_eip vm_assist"),
    ("Q", "fs_base gs_base_kernel gs_base_user"),
]
XEN_32: Members = [
    ("512x", ""),
    ("I", "flags ebx ecx edx esi edi ebp eax"),
    ("H", "error_code entry_vector"),
    ("I", "eip"),
    ("H", "cs"),
    ("B", "saved_upcall_mask"),
    ("x", ""),
    ("I", "eflags esp"),
    *selectors(padding="2x"),
    ("2048x", ""),
    ("I", "ldt_base ldt_ents " + numbers("gdt_frame", 16) + " gdt_ents kernel_ss kernel_sp"),
    ("I", "cr0 ctrlreg1 cr2 cr3 cr4 ctrlreg5 ctrlreg6 ctrlreg7 " + numbers("dr", 8)),
    ("I", "event_callback_cs event_callback_eip failsafe_callback_cs failsafe_callback_eip vm_assist"),
]

LAYOUTS: dict[str, tuple[RegisterLayout, Members, int]] = {
    **{name: (by_name(name).prstatus, members, 0) for name, members in PRSTATUS.items()},
    # QEMU gives 32-bit PowerPC the 64-bit head, no tail of its own, and 40 bytes behind the registers.
    "ppc by QEMU": (by_name("ppc").other_prstatus[0], [("112x", ""), ("I", POWERPC), ("40x", "")], 328),
    "QEMU before 3.0": (qemu_note.CPU_STATE_OLD, QEMU_CPU_STATE, 432),
    "QEMU": (qemu_note.CPU_STATE, [*QEMU_CPU_STATE, ("Q", "kernel_gs_base")], 440),
    "Xen x86_64": (xen_vcpu.CONTEXT_64, XEN_64, 5168),
    "Xen x86_32": (xen_vcpu.CONTEXT_32, XEN_32, 2800),
}
SIZES = {"x86_64": 336, "i386": 144, "aarch64": 392, "arm": 148, "ppc64": 504, "ppc": 268, "s390x": 336}
SIZES |= {"riscv64": 376, "riscv32": 204, "loongarch64": 480}

every_layout = pytest.mark.parametrize("name", LAYOUTS)
every_arch = pytest.mark.parametrize("name", PRSTATUS)
both_endians = pytest.mark.parametrize("endian", ["<", ">"])


@every_layout
@both_endians
def test_a_layout_reads_every_register_from_its_own_slot(name: str, endian: Endian) -> None:
    layout, members, size = LAYOUTS[name]
    desc, values = self_naming(members, endian)
    assert len(desc) == layout.size == (size or SIZES[name])
    values.pop("pid", None)
    assert layout.unpack(desc, endian) == values
    assert layout.unpack(memoryview(desc + b"more"), endian) == values


@every_layout
@both_endians
def test_a_layout_writes_every_register_to_its_own_slot(name: str, endian: Endian) -> None:
    layout, members, _ = LAYOUTS[name]
    desc, values = self_naming(members, endian)
    blank = self_naming([(code, "") for code, names in members for _ in names.split() or [""]], endian)[0]
    packed = layout.pack(values, endian, into=blank)
    if "pid" in values:
        at = 32 if by_name(name).word_bits == 64 else 24
        packed = packed[:at] + desc[at : at + 4] + packed[at + 4 :]
    assert packed == desc


@every_layout
def test_the_fields_of_a_layout_lie_in_it_side_by_side(name: str) -> None:
    layout = LAYOUTS[name][0]
    taken: set[int] = set()
    for at, width in layout.fields.values():
        place = set(range(at, at + width))
        assert width in {1, 2, 4, 8}
        assert at + width <= layout.size
        assert not place & taken
        taken |= place


@every_layout
def test_a_block_that_is_too_short_is_refused(name: str) -> None:
    layout = LAYOUTS[name][0]
    with pytest.raises(CorruptDumpError, match=f"{layout.size - 1} bytes, expected {layout.size}"):
        layout.unpack(bytes(layout.size - 1), "<")
    with pytest.raises(CorruptDumpError, match=re.escape(layout.name)):
        layout.pack({}, "<", into=bytes(layout.size - 1))


def test_pack_masks_ignores_and_leaves_zero() -> None:
    layout = RegisterLayout("test", 8, {"a": (0, 2), "b": (4, 4)})
    assert layout.pack({"a": -2, "c": 5}, "<") == b"\xfe\xff\0\0\0\0\0\0"
    assert layout.pack({"b": 0x123456789}, ">") == b"\0\0\0\0\x23\x45\x67\x89"
    assert layout.pack({"b": 1}, "<", into=bytes(range(10))) == b"\x00\x01\x02\x03\x01\0\0\0\x08\x09"


@every_arch
def test_the_named_pointers_are_registers(name: str) -> None:
    arch = by_name(name)
    assert arch.name == name
    assert arch.pc in arch.prstatus.fields
    assert arch.sp in arch.prstatus.fields
    assert {width for _, width in arch.prstatus.fields.values()} <= {4, arch.word_bits // 8}


def test_every_architecture_is_tested() -> None:
    assert {arch.name for arch in all_arches()} == set(PRSTATUS)
    assert len({hash(arch) for arch in all_arches()}) == len(PRSTATUS)


@every_arch
@both_endians
def test_prstatus_desc_is_the_whole_note(name: str, endian: Endian) -> None:
    desc, values = self_naming(PRSTATUS[name], endian)
    pid = values.pop("pid")
    assert prstatus_desc(by_name(name), values, endian, pid=pid) == desc.replace(b"\xee", b"\0")
    assert read_prstatus(by_name(name), desc, endian) == (pid, values)
    assert read_prstatus(by_name(name), desc + b"\0", endian) is None


def test_qemu_has_a_prstatus_of_its_own_for_32_bit_powerpc() -> None:
    desc, values = self_naming([("112x", ""), ("I", POWERPC), ("40x", "")], ">")
    assert read_prstatus(by_name("ppc"), desc.replace(b"\xee", b"\0"), ">") == (0, values)


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("amd64", "x86_64"),
        ("x86-64", "x86_64"),
        ("X86_64", "x86_64"),
        ("x86_32p", "i386"),
        ("i686", "i386"),
        ("i586", "i386"),
        ("x86", "i386"),
        ("arm64", "aarch64"),
        ("aarch64_be", "aarch64"),
        ("armv7l", "arm"),
        ("armv8l", "arm"),
        ("armhf", "arm"),
        ("ppc64le", "ppc64"),
        ("ppc64el", "ppc64"),
        ("powerpc64", "ppc64"),
        ("powerpc", "ppc"),
        ("loongarch", "loongarch64"),
        (" riscv64\n", "riscv64"),
    ],
)
def test_an_architecture_has_many_names(alias: str, name: str) -> None:
    assert by_name(alias).name == name


@pytest.mark.parametrize("name", ["", "pdp11", "ppc64xx", "x86_6", "i786", "arm6"])
def test_an_unknown_name_is_refused_with_those_that_are_known(name: str) -> None:
    with pytest.raises(UnsupportedFeatureError, match=r"expected one of x86_64, i386"):
        by_name(name)


@pytest.mark.parametrize(
    ("machine", "bits", "endian", "name"),
    [
        (62, 64, "<", "x86_64"),
        (62, 32, "<", "x86_64"),  # kexec --elf32-core-headers
        (3, 32, "<", "i386"),
        (3, 64, "<", "i386"),  # QEMU, any PC not in long mode
        (40, 64, "<", "arm"),  # kexec with LPAE
        (183, 64, ">", "aarch64"),
        (21, 64, "<", "ppc64"),
        (20, 32, ">", "ppc"),
        (22, 64, ">", "s390x"),
        (243, 64, "<", "riscv64"),
        (243, 32, "<", "riscv32"),
        (258, 64, "<", "loongarch64"),
    ],
)
def test_an_elf_header_names_the_architecture(machine: int, bits: int, endian: Endian, name: str) -> None:
    found = by_machine(machine, bits, endian)
    assert found is not None
    assert found.name == name
    assert by_machine_or_unknown(machine, bits, endian) is found


@pytest.mark.parametrize(("machine", "bits", "endian"), [(8, 64, ">"), (62, 64, ">"), (22, 32, ">"), (22, 64, "<")])
def test_an_unknown_machine_has_memory_but_no_registers(machine: int, bits: int, endian: Endian) -> None:
    assert by_machine(machine, bits, endian) is None
    arch = by_machine_or_unknown(machine, bits, endian)
    assert (arch.name, arch.elf_machine, arch.word_bits) == (f"unknown-{machine}", machine, bits)
    assert arch.endians == (endian,)
    assert read_prstatus(arch, b"", endian) is None
    assert read_prstatus(arch, bytes(336), endian) is None
    with pytest.raises(UnsupportedFeatureError, match=f"unknown-{machine}: no register layout"):
        prstatus_desc(arch, {}, endian, pid=1)


# --- i386 and x86-64 names ---


def test_registers_change_names_between_32_and_64_bits() -> None:
    narrow = {"eax": 1, "eip": 2, "eflags": 3, "orig_eax": 4, "esp": 5, "cs": 6, "cr3": 7}
    wide = {"rax": 1, "rip": 2, "rflags": 3, "orig_rax": 4, "rsp": 5, "cs": 6, "cr3": 7}
    assert i386.widen(narrow) == wide
    assert i386.narrow(wide) == narrow
    assert i386.narrow({"rax": 0xFFFFFFFF_80000001, "r8": 1, "r15": 2, "cr3": 1 << 33}) == {
        "eax": 0x80000001,
        "cr3": 1 << 33,
    }


def test_a_qemu_note_feeds_an_i386_prstatus_and_the_reverse() -> None:
    desc = prstatus_desc(by_name("i386"), {"rip": 0x1234, "ss": 0x10}, "<", pid=1)
    assert struct.unpack_from("<I", desc, 120) == (0x1234,)
    assert struct.unpack_from("<I", desc, 136) == (0x10,)
    note = qemu_note.pack({"eip": 0x1234, "cr3": 0x5000})
    assert struct.unpack_from("<Q", note, 136) == (0x1234,)
    assert struct.unpack_from("<Q", note, 416) == (0x5000,)


# --- QEMU's note ---


@pytest.mark.parametrize("old", [False, True])
def test_a_qemu_note_tells_its_size(old: bool) -> None:
    members = QEMU_CPU_STATE if old else [*QEMU_CPU_STATE, ("Q", "kernel_gs_base")]
    desc, values = self_naming(members, "<")
    desc = struct.pack("<2I", 1, len(desc)) + desc[8:].replace(b"\xee", b"\0")
    assert qemu_note.unpack(desc) == values
    assert qemu_note.pack(values, old=old) == desc


@pytest.mark.parametrize("length", [432, 436, 440])
def test_the_size_field_counts_not_the_desc(length: int) -> None:
    desc = struct.pack("<2I", 1, 432).ljust(length, b"\x11")
    assert "kernel_gs_base" not in qemu_note.unpack(desc)


@pytest.mark.parametrize(
    ("version", "size", "length", "words"),
    [
        (1, 440, 431, "431 bytes, expected 432"),
        (2, 440, 440, "version 2, expected 1"),
        (0, 0, 440, "version 0, expected 1"),
        (1, 440, 432, "size 440, expected 432 to 432"),
        (1, 8, 440, "size 8, expected 432 to 440"),
    ],
)
def test_a_qemu_note_that_contradicts_itself_is_refused(version: int, size: int, length: int, words: str) -> None:
    with pytest.raises(CorruptDumpError, match=words):
        qemu_note.unpack(struct.pack("<2I", version, size).ljust(length, b"\0"))


# --- real QEMU dumps ---

TINY = [
    *("aarch64", "arm", "i386-isapc", "i386-pae", "i386-paging", "i386-real", "ppc64", "s390x"),
    *("x64-core", "x64-flat32", "x64-la57", "x64-long", "x64-split"),
]
PRINTED_NAMES = {"rfl": "rflags", "efl": "eflags", "psr": "cpsr", "lr": "link", "cr": "ccr"}


def printed_by_qemu(text: str, arch: str) -> list[dict[str, int]]:
    """Registers of each CPU as "info registers" prints them, by canonical names; a segment's whole line."""
    cpus = []
    for block in re.split(r"^CPU#\d+\s*$", text, flags=re.M)[1:]:
        pairs = re.findall(r"(?:^|\s)(\w+)\s*=\s*([0-9a-f]{4,16})\b", block)
        pairs += re.findall(r"\b(NIP|MSR|LR|CTR|XER|CR) ([0-9a-f]+)", block)
        pairs += [("psw_" + key, value) for key, value in re.findall(r"\b(mask|addr) ([0-9a-f]{16})", block)]
        for first, values in re.findall(r"GPR(\d+)((?: [0-9a-f]{16}){4})", block):
            pairs += [(f"gpr{int(first) + i}", value) for i, value in enumerate(values.split())]
        for name, base, limit, flags in re.findall(r"(\w\w\w?) ?=[0-9a-f]{4} (\w+) (\w{8}) (\w{8})", block):
            pairs += [(name + "_base", base), (name + "_limit", limit), (name + "_flags", flags)]
        for name, base, limit in re.findall(r"([GI]DT)= +(\w+) (\w{8})", block):
            pairs += [(name + "_base", base), (name + "_limit", limit)]
        cpus.append({canonical(name, arch): int(value, 16) for name, value in pairs if name not in ("GDT", "IDT")})
    return cpus


def canonical(name: str, arch: str) -> str:
    name = re.sub(r"(?<=[a-z])0(?=\d$)", "", PRINTED_NAMES.get(name.lower(), name.lower()))
    return re.sub(r"^r(?=\d)", "gpr", name) if arch == "s390x" else name


def notes_of(body: bytes) -> tuple[int, int, Endian, list[tuple[bytes, int, bytes]]]:
    """Machine, class, byte order and notes of an ELF file, read by struct alone."""
    endian: Endian = "<" if body[5] == 1 else ">"
    bits = 32 * body[4]
    (machine,) = struct.unpack_from(endian + "H", body, 18)
    if bits == 64:
        (phoff,) = struct.unpack_from(endian + "Q", body, 32)
        _, _, at, _, _, size = struct.unpack_from(endian + "2I4Q", body, phoff)
    else:
        (phoff,) = struct.unpack_from(endian + "I", body, 28)
        _, at, _, _, size = struct.unpack_from(endian + "5I", body, phoff)
    notes, end = [], at + size
    while at < end:
        namesz, descsz, kind = struct.unpack_from(endian + "3I", body, at)
        desc = at + 12 + -(-namesz // 4) * 4
        notes.append((body[at + 12 : at + 11 + namesz], kind, body[desc : desc + descsz]))
        at = desc + -(-descsz // 4) * 4
    return machine, bits, endian, notes


@pytest.mark.parametrize("guest", TINY)
def test_registers_of_a_qemu_dump_are_those_that_its_monitor_printed(shared: Path, guest: str) -> None:
    folder = shared / "fixtures/tiny" / guest
    machine, bits, endian, notes = notes_of(lzma.decompress((folder / "elf.xz").read_bytes()))
    arch = by_machine(machine, bits, endian)
    assert arch is not None
    printed = printed_by_qemu((folder / "registers.txt").read_text(), arch.name)
    status = [desc for name, kind, desc in notes if (name, kind) == (b"CORE", 1)]
    assert len(status) == len(printed)
    for index, (desc, truth) in enumerate(zip(status, printed, strict=True)):
        found = read_prstatus(arch, desc, endian)
        assert found is not None
        pid, registers = found
        if arch is not by_name("i386"):
            truth = i386.widen(truth)  # a CPU that is not in long mode yet is printed so
        common = registers.keys() & truth.keys()
        # Linux's original argument of a system call, and what QEMU 7.2 prints no line for.
        left = {"orig_r0", "orig_gpr2", "orig_gpr3", "orig_rax", "orig_eax", *numbers("acr", 16).split()}
        left |= {"softe", "trap", "dar", "dsisr", "result"}
        if "r8" in registers and "r8" not in truth:
            left |= set(numbers("r", 16).split())
        assert registers.keys() - common <= left
        assert {name: registers[name] for name in common} == {name: truth[name] for name in common}
        assert registers[arch.pc] == truth[arch.pc]
        # QEMU writes the number in its host's byte order on s390x and leaves it out on ppc.
        expected = {"s390x": (index + 1) << 24, "ppc64": 0}.get(arch.name, index + 1)
        assert pid == expected
        # pr_fpvalid is the last word: QEMU for Arm sets it, since it writes the floating-point registers as well.
        tail = arch.word_bits // 8
        assert prstatus_desc(arch, registers, endian, pid=pid)[:-tail] == desc[:-tail]


@pytest.mark.parametrize("guest", [guest for guest in TINY if guest[0] in "xi"])
def test_the_qemu_note_of_a_dump_is_what_its_monitor_printed(shared: Path, guest: str) -> None:
    folder = shared / "fixtures/tiny" / guest
    notes = notes_of(lzma.decompress((folder / "elf.xz").read_bytes()))[3]
    states = [desc for name, kind, desc in notes if (name, kind) == (b"QEMU", 0)]
    printed = printed_by_qemu((folder / "registers.txt").read_text(), "x86_64")
    assert len(states) == len(printed)
    for desc, truth in zip(states, printed, strict=True):
        registers = qemu_note.unpack(desc)
        truth = i386.widen(truth)
        common = registers.keys() & truth.keys()
        left = {"cr1", "kernel_gs_base", "gdt", "idt", "gdt_flags", "idt_flags", *numbers("r", 16).split()}
        assert registers.keys() - common <= left
        assert {name: registers[name] for name in common} == {name: truth[name] for name in common}
        assert {"rip", "cs_base", "tr_limit", "ss_flags", "gdt_base", "cr0", "cr3", "cr4"} <= common
        assert qemu_note.pack(registers) == desc


# --- Xen's contexts ---


@pytest.mark.parametrize(
    ("mfn", "bits", "cr3"),
    [
        (0x3E808, 64, 0x3E808000),
        (0x12345678, 64, 0x12345678000),
        (0x3E808, 32, 0x3E808000),
        (0x123456, 32, 0x23456001),
        (0xFFFFFFFF, 32, 0xFFFFFFFF),
    ],
)
def test_cr3_folds_both_ways(mfn: int, bits: xen_vcpu.WordBits, cr3: int) -> None:
    assert xen_vcpu.fold_cr3(mfn, bits) == cr3
    assert xen_vcpu.unfold_cr3(cr3, bits) == mfn


@pytest.mark.parametrize(
    ("flags", "cs", "active"),
    [
        (xen_vcpu.VGCF_IN_KERNEL, 0xE033, "gs_base_kernel"),  # PV, in its kernel, ring 3
        (0, 0x33, "gs_base_user"),
        (xen_vcpu.VGCF_ONLINE, 0x10, "gs_base_kernel"),  # HVM, ring 0
        (xen_vcpu.VGCF_ONLINE, 0x2B, "gs_base_user"),
    ],
)
def test_gs_base_is_the_one_in_use(flags: int, cs: int, active: str) -> None:
    desc, values = self_naming(XEN_64, "<")
    context = bytearray(desc)
    struct.pack_into("<Q", context, 512, flags)
    struct.pack_into("<H", context, 656, cs)
    core = xen_vcpu.to_core_registers(xen_vcpu.CONTEXT_64.unpack(bytes(context), "<"))
    idle = "gs_base_user" if active == "gs_base_kernel" else "gs_base_kernel"
    assert core["gs_base"] == values[active]
    assert core["kernel_gs_base"] == values[idle]
    assert core["orig_rax"] == 2**64 - 1
    assert core["cs"] == cs
    assert (core["rip"], core["cr3"], core["fs_base"]) == (values["rip"], values["cr3"], values["fs_base"])
    assert not core.keys() & {"flags", "error_code", "kernel_sp", "user_cr3", "gs_base_user"}
    assert xen_vcpu.context_bytes(core, 64, into=bytes(context)) == bytes(context)


def test_core_registers_fill_an_empty_context() -> None:
    core = {"rip": 1, "cs": 0x10, "gs_base": 2, "kernel_gs_base": 3, "cr3": 0x5000, "orig_rax": 7, "r15": 8}
    registers = xen_vcpu.CONTEXT_64.unpack(xen_vcpu.context_bytes(core, 64), "<")
    wanted = {"rip": 1, "cs": 0x10, "gs_base_kernel": 2, "gs_base_user": 3, "cr3": 0x5000, "r15": 8}
    assert {name: value for name, value in registers.items() if value} == wanted | {"flags": xen_vcpu.VGCF_ONLINE}


def test_a_32_bit_context_gives_i386_registers_and_an_unfolded_cr3() -> None:
    desc, values = self_naming(XEN_32, "<")
    context = bytearray(desc)
    struct.pack_into("<I", context, 512, xen_vcpu.VGCF_IN_KERNEL)
    struct.pack_into("<I", context, 2728, 0x23456001)
    slot_of_64_bit_tools = bytes(context).ljust(5168, b"\xaa")
    core = xen_vcpu.to_core_registers(xen_vcpu.CONTEXT_32.unpack(slot_of_64_bit_tools, "<"))
    assert core["cr3"] == 0x123456000
    assert core["orig_eax"] == 2**32 - 1
    assert (core["eip"], core["esp"], core["ss"]) == (values["eip"], values["esp"], values["ss"])
    assert "gs_base" not in core
    assert xen_vcpu.context_bytes(core, 32, into=bytes(context)) == bytes(context)
    assert xen_vcpu.context_layout(32).size == len(xen_vcpu.context_bytes(core, 32))


def test_a_32_bit_hvm_context_has_a_plain_cr3() -> None:
    context = xen_vcpu.CONTEXT_32.pack({"flags": xen_vcpu.VGCF_HVM_GUEST, "cr3": 0x5018}, "<")
    assert xen_vcpu.to_core_registers(xen_vcpu.CONTEXT_32.unpack(context, "<"))["cr3"] == 0x5018


# --- real Xen dumps ---


def xen_contexts(path: Path) -> list[bytes]:
    """The entries of .xen_prstatus, found by struct alone: the only section whose entries have 5168 bytes."""
    with path.open("rb") as file:
        header = file.read(64)
        file.seek(struct.unpack_from("<Q", header, 40)[0])
        sections = file.read(64 * struct.unpack_from("<H", header, 60)[0])
        for _, _, _, _, offset, size, _, _, _, entry in struct.iter_unpack("<2I4Q2I2Q", sections):
            if entry == 5168:
                file.seek(offset)
                return [file.read(entry) for _ in range(size // entry)]
    raise AssertionError("no .xen_prstatus")


def printed_by_xen(text: str) -> list[dict[str, int]]:
    """Registers of each vcpu as xenctx prints them, up to where it goes on to the stack."""
    cpus = []
    for block in re.split(r"^== vcpu \d+$", text, flags=re.M):
        block = block.partition("Code (")[0]
        pairs = re.findall(r"\b(\w+): ([0-9a-f]{4,16})\b", block)
        pairs = [pair for pair in pairs if pair[0] not in ("eip", "esp")]
        for segment, base, value in re.findall(r"\b([cs]s):(e[is]p): (\w{4}:\w{8})", block):
            pairs += [(segment, value[:4]), (base, value[5:])]
        pairs += [("fs_base", base) for base in re.findall(r"fs: \w{4} @ (\w+)", block)]
        for bases in re.findall(r"gs: \w{4} @ (\w+)/(\w+)", block):
            pairs += zip(("gs_base_kernel", "gs_base_user"), bases, strict=True)
        names = {"flags": "rflags" if "rip" in dict(pairs) else "eflags"}
        if pairs:
            cpus.append({names.get(name, name): int(value, 16) for name, value in pairs})
    return cpus


@pytest.mark.parametrize("guest", [*(f"xen/t{i}" for i in range(8)), "xen-linux/pv1", "xen-linux/pvh1"])
def test_contexts_of_a_xen_core_are_what_xenctx_printed(
    shared: Path, unpacked: Callable[[Path], Path], guest: str
) -> None:
    contexts = xen_contexts(unpacked(shared / f"fixtures/{guest}.core.xz"))
    printed = printed_by_xen((shared / f"fixtures/{guest}.xenctx.txt").read_text())
    assert len(contexts) == len(printed)
    for context, truth in zip(contexts, printed, strict=True):
        registers = xen_vcpu.CONTEXT_64.unpack(context, "<")
        wide = i386.widen(truth)  # t5, a PVH guest in 32-bit mode, is printed as such but stored as all HVM guests are
        assert wide.keys() <= registers.keys()
        assert {name: registers[name] for name in wide} == wide
        assert registers["flags"] & xen_vcpu.VGCF_ONLINE
        core = xen_vcpu.to_core_registers(registers)
        assert core["gs_base"] == registers["gs_base_kernel"]  # all stopped in their kernels
        assert xen_vcpu.context_bytes(core, 64, into=context) == context
        assert xen_vcpu.CONTEXT_64.pack(registers, "<", into=context) == context


def test_a_linux_pv_guest_has_two_page_tables(shared: Path, unpacked: Callable[[Path], Path]) -> None:
    contexts = xen_contexts(unpacked(shared / "fixtures/xen-linux/pv1.core.xz"))
    registers = [xen_vcpu.CONTEXT_64.unpack(context, "<") for context in contexts]
    assert [xen_vcpu.unfold_cr3(cpu["cr3"], 64) for cpu in registers] == [0x17D7B8, 0x17D796]
    assert [xen_vcpu.unfold_cr3(cpu["user_cr3"], 64) for cpu in registers] == [0x17CD35, 0x17D7BB]
    assert all(cpu["flags"] & xen_vcpu.VGCF_IN_KERNEL for cpu in registers)


def test_an_old_dump_holds_the_same_context_as_a_new_one(shared: Path) -> None:
    body = lzma.decompress((shared / "fixtures/xen/t0.old8.xz").read_bytes())
    truth = printed_by_xen((shared / "fixtures/xen/t0.xenctx.txt").read_text())[0]
    _, vcpus, _, context_at, index_at, _ = struct.unpack_from("<6I", body)
    assert index_at - context_at == vcpus * xen_vcpu.CONTEXT_64.size
    registers = xen_vcpu.CONTEXT_64.unpack(body[context_at:index_at], "<")
    assert {name: registers[name] for name in truth} == truth
