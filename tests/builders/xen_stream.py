"""Xen's save images: the ``xl`` file header, libxl's records, and the libxc stream (version 2 or 3) inside them."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from .guest import Guest, page
from .packing import align, cut
from .xen_vcpu import contexts, shared_info

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["TYPES", "canonical", "libxc", "libxl", "page_data", "record", "save", "wrong_page", "xl_header"]

XL_MAGIC = b"Xen saved domain, xl format\n \0 \r"
TYPES = {
    "END": 0, "PAGE_DATA": 1, "X86_PV_INFO": 2, "X86_PV_P2M_FRAMES": 3, "X86_PV_VCPU_BASIC": 4,
    "X86_PV_VCPU_EXTENDED": 5, "X86_PV_VCPU_XSAVE": 6, "SHARED_INFO": 7, "X86_TSC_INFO": 8, "HVM_CONTEXT": 9,
    "HVM_PARAMS": 10, "TOOLSTACK": 11, "X86_PV_VCPU_MSRS": 12, "VERIFY": 13, "CHECKPOINT": 14,
    "CHECKPOINT_DIRTY_PFN_LIST": 15, "STATIC_DATA_END": 16, "X86_CPUID_POLICY": 17, "X86_MSR_POLICY": 18,
}  # fmt: skip
NOTAB, BROKEN, XALLOC, XTAB = 0, 13, 14, 15
Entry = tuple[int, int, bytes]  # pfn, type, content


def record(type: int | str, body: bytes = b"", *, length: int | None = None) -> bytes:
    """One record, padded to eight bytes; ``length`` may lie."""
    number = TYPES[type] if isinstance(type, str) else type
    head = struct.pack("<II", number, len(body) if length is None else length)
    return head + body.ljust(align(len(body), 8), b"\0")


def page_data(
    entries: Sequence[Entry], *, count: int | None = None, reserved: int = 0, length: int | None = None
) -> bytes:
    """A PAGE_DATA record; an entry with empty content has no page (XTAB and the like).

    ``reserved``: value for bits 59:52 of every entry; ``count`` and ``length`` may lie.
    """
    words = [type << 60 | reserved << 52 | pfn for pfn, type, _ in entries]
    head = struct.pack("<II", len(entries) if count is None else count, 0)
    body = head + struct.pack(f"<{len(words)}Q", *words) + b"".join(data for _, _, data in entries)
    return record("PAGE_DATA", body, length=length)


def canonical(table: bytes, pfn_of: Mapping[int, int], *, zero_slots: Iterable[int] = ()) -> bytes:
    """A page table as the stream holds it: frames of present entries are pfns; Xen's own slots are zero."""
    words = list(struct.unpack(f"<{len(table) // 8}Q", table))
    for slot, word in enumerate(words):
        if word & 1:
            words[slot] = word & ~0xFFFFFFFFFF000 | pfn_of[word >> 12 & 0xFFFFFFFFFF] << 12
    for slot in zero_slots:
        words[slot] = 0
    return struct.pack(f"<{len(words)}Q", *words)


def libxc(
    guest: Guest,
    *,
    hvm: bool = False,
    width: int = 8,
    version: int = 3,
    types: Mapping[int, int] | None = None,
    listed: Iterable[int] | None = None,
    batch: int = 1024,
    early: Iterable[Entry] = (),
    late: Iterable[Entry] = (),
    verify: Iterable[Entry] | None = None,
    checkpoint: bool = False,
    before: Sequence[bytes] = (),
    after: Sequence[bytes] = (),
    vcpus: Sequence[bytes] | None = None,
    info: bytes | None = None,
    drop: Iterable[str] = (),
    end: bool = True,
    image: tuple[int, int, int, int] | None = None,
    domain: tuple[int, int, int, int] | None = None,
    truncate: int | None = None,
) -> bytes:
    """A bare libxc stream.

    Args:
        guest: its pages.
        hvm: HVM or PVH instead of PV.
        width: guest's word (PV): 8 or 4.
        version: 3 (Xen 4.14 on; with CPUID and MSR policies, STATIC_DATA_END) or 2.
        types: pfn -> page type for stored pages (page tables of PV guests: 1-4, pinned 9-12).
        listed: pfns that are listed, those without a page as XTAB; default: all from 0 to the last, or, where that
            would be more than a million, only RAM.
        batch: entries in one PAGE_DATA record.
        early: (pfn, type, content) entries in records before the guest's own: they lose.
        late: entries in records behind them: they win.
        verify: entries behind a VERIFY record: they must not be applied.
        checkpoint: a CHECKPOINT record behind the pages.
        before: finished records put before the first page; ``after``: behind the last.
        vcpus: contexts for the X86_PV_VCPU_BASIC records.
        info: the SHARED_INFO page.
        drop: names of records that are left out.
        end: whether the END record is there.
        image: (marker, id, version, options) of the image header, where they shall lie.
        domain: (type, page shift, Xen major, Xen minor) of the domain header, likewise.
        truncate: keep that many bytes.
    """
    kinds, left_out = types or {}, set(drop)
    everything = range(guest.end_pfn) if guest.end_pfn <= 1 << 20 else guest.ram
    pfns = everything if listed is None else listed
    own = [(pfn, kinds.get(pfn, NOTAB), guest.pages[pfn]) if pfn in guest.pages else (pfn, XTAB, b"") for pfn in pfns]
    out = [struct.pack(">QIIHHI", *(image or ((1 << 64) - 1, 0x58454E46, version, 0)), 0, 0)]
    kind, shift, major, minor = domain or (2 if hvm else 1, guest.page_size.bit_length() - 1, 4, 17)
    out.append(struct.pack("<IHHII", kind, shift, 0, major, minor))
    out += [record(name, body) for name, body in _head(guest, hvm, width, version) if name not in left_out]
    out += [*before, *_batches(early, batch), *_batches(own, batch), *_batches(late, batch)]
    out += [record("CHECKPOINT")] * checkpoint
    out += [record("VERIFY"), *_batches(verify, batch)] if verify is not None else []
    tail = _hvm_tail() if hvm else _pv_tail(guest, width, vcpus, info)
    out += [*after, *(record(name, body) for name, body in tail if name not in left_out), record("END") * end]
    return cut(b"".join(out), truncate)


def _batches(entries: Iterable[Entry], size: int) -> list[bytes]:
    rows = list(entries)
    return [page_data(rows[at : at + size]) for at in range(0, len(rows), size)]


def _head(guest: Guest, hvm: bool, width: int, version: int) -> list[tuple[str, bytes]]:
    """Records before the pages."""
    records = [] if hvm else [("X86_PV_INFO", bytes([width, 4 if width == 8 else 3, 0, 0, 0, 0, 0, 0]))]
    if version >= 3:
        records += [("X86_CPUID_POLICY", bytes(48)), ("X86_MSR_POLICY", bytes(16)), ("STATIC_DATA_END", b"")]
    if not hvm:
        per = 4096 // width
        frames = guest.stored[: align(guest.end_pfn, per) // per]
        body = struct.pack("<II", 0, guest.end_pfn - 1) + struct.pack(f"<{len(frames)}Q", *frames)
        records.append(("X86_PV_P2M_FRAMES", body))
    return records


def _pv_tail(guest: Guest, width: int, vcpus: Sequence[bytes] | None, info: bytes | None) -> list[tuple[str, bytes]]:
    """TSC, shared_info, and the three records of each vcpu."""
    records = [("X86_TSC_INFO", bytes(24))]
    records.append(("SHARED_INFO", shared_info(width=width, max_pfn=guest.end_pfn) if info is None else info))
    for vcpu, context in enumerate(contexts(guest, width=width) if vcpus is None else vcpus):
        head = struct.pack("<II", vcpu, 0)
        records += [("X86_PV_VCPU_BASIC", head + context), ("X86_PV_VCPU_EXTENDED", head + bytes(128))]
        records.append(("X86_PV_VCPU_XSAVE", head + bytes(840)))
    return records


def _hvm_tail() -> list[tuple[str, bytes]]:
    """TSC, an empty HVM context, and where xenstore and console are."""
    params = struct.pack("<II4Q", 2, 0, 1, 0xFEFFC, 17, 0xFEFFF)
    return [("X86_TSC_INFO", bytes(24)), ("HVM_CONTEXT", bytes(16)), ("HVM_PARAMS", params)]


def libxl(
    stream: bytes,
    *,
    emulator: bytes | None = None,
    records: Sequence[bytes] = (),
    end: bool = True,
    ident: bytes = b"LibxlFmt",
    version: int = 2,
    options: int = 0,
) -> bytes:
    """libxl's stream around a libxc stream.

    Args:
        stream: the libxc stream, inline behind its LIBXC_CONTEXT record.
        emulator: device model's state (HVM), in an EMULATOR_CONTEXT record; its xenstore data goes before.
        records: finished records put before LIBXC_CONTEXT.
        end: whether the END record is there.
        ident: first eight bytes; ``version`` and ``options`` follow, big-endian.
    """
    out = [ident, struct.pack(">II", version, options), *records, record(1), stream]
    if emulator is not None:
        out += [
            record(2, struct.pack("<II", 2, 0) + b"physmap\0model\0"),
            record(3, struct.pack("<II", 2, 0) + emulator),
        ]
    return b"".join([*out, record(0) * end])


def xl_header(
    config: bytes = b'{"c_info": {"name": "model"}}\0',
    *,
    magic: bytes = XL_MAGIC,
    byteorder: int = 0x01020304,
    mandatory: int = 3,
    optional: int = 0,
    optional_length: int | None = None,
    config_size: int | None = None,
) -> bytes:
    """The ``xl`` file header: JSON configuration, stream version 2 (``mandatory`` bits 0 and 1)."""
    data = struct.pack("<I", len(config) if config_size is None else config_size) + config
    length = len(data) if optional_length is None else optional_length
    return magic + struct.pack("<4I", byteorder, mandatory, optional, length) + data


def save(guest: Guest, *, truncate: int | None = None, **options: Any) -> bytes:
    """A whole ``xl save`` file; ``options`` are those of ``libxc``."""
    return cut(xl_header() + libxl(libxc(guest, **options)), truncate)


def wrong_page(pfn: int, page_size: int = 4096) -> Entry:
    """An entry for ``early`` or ``verify``: a page that must not be seen in the result."""
    return pfn, NOTAB, page(pfn, page_size, "noise")
