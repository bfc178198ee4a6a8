"""Runs inside a peer's own interpreter and answers one question about one file.

``peers.py`` starts it with the Python that has the peer's module (or hands it to gdb), after it wrote
``request.json`` to the folder that ``PEER_FOLDER`` names; the answer is written beside it as ``answer.json``.
A process of its own, because some of these libraries end by a signal on files they cannot take. It has to do
with the standard library: the system's Python has no numpy.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    ReadPage = Callable[[int, int], bytes | None]

KINDS_OF_MEMORY = {"KPHYSADDR": "KDUMP_KPHYSADDR", "MACHPHYSADDR": "KDUMP_MACHPHYSADDR", "KVADDR": "KDUMP_KVADDR"}


def _sums(read: ReadPage, pfns: Iterable[int], page_size: int, digest: str) -> list[tuple[int, int | None]]:
    """A number for each page: its crc32, or the first 8 bytes of its sha256 as a little-endian word."""
    rows = []
    for pfn in pfns:
        page = read(pfn * page_size, page_size)
        if page is None:
            rows.append((pfn, None))
        elif digest == "crc32":
            rows.append((pfn, zlib.crc32(page)))
        else:
            rows.append((pfn, int.from_bytes(hashlib.sha256(page).digest()[:8], "little")))
    return rows


def kdumpfile_pages(path: str, pfns: list[int], page_size: int, digest: str, space: str) -> Any:
    """Pages as libkdumpfile reads them."""
    import kdumpfile

    dump = kdumpfile.kdumpfile(path)
    kind = getattr(kdumpfile, KINDS_OF_MEMORY[space])

    def read(address: int, size: int) -> bytes | None:
        try:
            return bytes(dump.read(kind, address, size))
        except kdumpfile.exceptions.NoDataException:
            return None

    return _sums(read, pfns, page_size, digest)


def kdumpfile_attrs(path: str) -> dict[str, int | str]:
    """Every attribute that libkdumpfile has for the file, under its full name; blobs as hexadecimal text."""
    import kdumpfile

    found: dict[str, int | str] = {}

    def walk(folder: Any, prefix: str) -> None:
        for key in folder:
            value = folder[key]
            if isinstance(value, kdumpfile.attr_dir):
                walk(value, f"{prefix}{key}.")
            elif isinstance(value, kdumpfile.blob):
                found[prefix + key] = bytes(value).hex()
            elif isinstance(value, int | str):
                found[prefix + key] = value

    walk(kdumpfile.kdumpfile(path).attr, "")
    return found


def kdumpfile_memory(path: str, addresses: list[int], length: int) -> list[tuple[int, str | None]]:
    """Bytes at the kernel's virtual addresses, by the page tables that libkdumpfile finds itself."""
    import kdumpfile

    dump = kdumpfile.kdumpfile(path)
    dump.attr["addrxlat.ostype"] = "linux"
    found: list[tuple[int, str | None]] = []
    for address in addresses:
        try:
            found.append((address, bytes(dump.read(kdumpfile.KDUMP_KVADDR, address, length)).hex()))
        except (kdumpfile.exceptions.NoDataException, kdumpfile.exceptions.AddressTranslationException):
            found.append((address, None))
    return found


def _drgn_program(path: str, vmcoreinfo: str | None) -> Any:
    import drgn

    prog = drgn.Program(vmcoreinfo=Path(vmcoreinfo).read_bytes()) if vmcoreinfo else drgn.Program()
    prog.set_core_dump(path)
    return prog


def drgn_pages(path: str, pfns: list[int], page_size: int, digest: str, vmcoreinfo: str | None) -> Any:
    """Physical pages as drgn reads them."""
    import drgn

    prog = _drgn_program(path, vmcoreinfo)

    def read(address: int, size: int) -> bytes | None:
        try:
            return prog.read(address, size, physical=True)
        except drgn.FaultError:
            return None

    return _sums(read, pfns, page_size, digest)


def drgn_kernel(path: str, vmlinux: str, vmcoreinfo: str | None) -> dict[str, Any]:
    """What drgn finds out by following the kernel's own structures."""
    from drgn.helpers.linux import for_each_online_cpu, for_each_task

    prog = _drgn_program(path, vmcoreinfo)
    prog.load_debug_info([vmlinux])
    return {
        "release": prog["init_uts_ns"].name.release.string_().decode(),
        "cpus": len(list(for_each_online_cpu(prog))),
        "tasks": {task.pid.value_(): task.comm.string_().decode() for task in for_each_task(prog)},
    }


def drgn_virtual(path: str, addresses: list[int], length: int) -> Any:
    """Bytes at virtual addresses, through the kernel's page tables as VMCOREINFO names them; no symbols are needed."""
    import drgn

    prog = _drgn_program(path, None)

    def read(address: int) -> str | None:
        try:
            return str(prog.read(address, length).hex())
        except drgn.FaultError:
            return None

    return [(address, read(address)) for address in addresses]


def volatility_virtual(path: str, cr3: int, layer: str, addresses: list[int], length: int) -> Any:
    """Bytes at virtual addresses, through an Intel layer on an ELF file, or else on bare memory."""
    from volatility3.framework import contexts
    from volatility3.framework.layers import elf, intel, physical

    context = contexts.Context()
    context.config["file.location"] = Path(path).resolve().as_uri()
    context.add_layer(physical.FileLayer(context, "file", "file"))
    memory = "file"
    if context.layers["file"].read(0, 4) == b"\x7fELF":
        memory, context.config["memory.base_layer"] = "memory", "file"
        context.add_layer(elf.Elf64Layer(context, "memory", "memory"))
    context.config["virtual.memory_layer"] = memory
    context.config["virtual.page_map_offset"] = cr3
    virtual = getattr(intel, layer)(context, "virtual", "virtual")

    def read(address: int) -> str | None:
        return str(virtual.read(address, length).hex()) if virtual.is_valid(address, length) else None

    return [(address, read(address)) for address in addresses]


def volatility(path: str, pfns: list[int], page_size: int, digest: str) -> dict[str, Any]:
    """The layers that Volatility 3 stacks on the file, and pages as the topmost of them reads them."""
    from volatility3 import framework
    from volatility3.framework import contexts, interfaces, layers

    framework.require_interface_version(2, 0, 0)
    framework.import_files(layers, True)
    context = contexts.Context()
    context.config["peer.file.location"] = Path(path).resolve().as_uri()
    context.add_layer(layers.physical.FileLayer(context, "peer.file", "file"))
    stackers = [
        stacker
        for stacker in framework.class_subclasses(interfaces.automagic.StackerLayerInterface)
        if stacker.__module__.startswith("volatility3.framework.layers.")
    ]
    stackers.sort(key=lambda stacker: stacker.stack_order)
    stack = [context.layers["file"]]
    while stacker := next((s for s in stackers if _stacked(s, context, stack)), None):
        stackers.remove(stacker)

    def read(address: int, size: int) -> bytes | None:
        top = stack[-1]
        return top.read(address, size) if top.is_valid(address, size) else None

    return {"layers": [type(layer).__name__ for layer in stack], "pages": _sums(read, pfns, page_size, digest)}


def _stacked(stacker: Any, context: Any, stack: list[Any]) -> bool:
    layer = stacker.stack(context, stack[-1].name)
    if layer is None:
        return False
    context.add_layer(layer)
    stack.append(layer)
    return True


def volatility_physical(path: str, cr3: int, addresses: list[int]) -> list[tuple[int, int | None]]:
    """Where Volatility 3's layers for an ELF file and for 4-level page tables say that addresses lead to."""
    from volatility3 import framework
    from volatility3.framework import contexts, exceptions
    from volatility3.framework.layers import elf, intel, physical

    framework.require_interface_version(2, 0, 0)
    context = contexts.Context()
    context.config["file.location"] = Path(path).resolve().as_uri()
    context.add_layer(physical.FileLayer(context, "file", "file"))
    context.config["elf.base_layer"] = "file"
    context.add_layer(elf.Elf64Layer(context, "elf", "memory"))
    context.config["tables.memory_layer"] = "memory"
    context.config["tables.page_map_offset"] = cr3
    layer = intel.Intel32e(context, "tables", "virtual")
    found: list[tuple[int, int | None]] = []
    for address in addresses:
        try:
            found.append((address, layer.translate(address)[0]))
        except exceptions.InvalidAddressException:
            found.append((address, None))
    return found


def gdb_kernel(path: str, vmlinux: str, offset: int) -> dict[str, Any]:
    """The kernel's banner, its address, and the functions that each processor is in, innermost first."""
    import gdb

    gdb.execute(f"core-file {path}", to_string=True)
    gdb.execute(f"symbol-file {vmlinux} -o {offset:#x}", to_string=True)
    address = int(gdb.parse_and_eval("linux_banner").address) % (1 << 64)
    inferior, stacks = gdb.selected_inferior(), []
    for thread in sorted(inferior.threads(), key=lambda thread: thread.num):
        thread.switch()
        frame, names = gdb.newest_frame(), []
        while frame is not None:
            names.append(frame.name())
            frame = frame.older()
        stacks.append(names)
    banner = bytes(inferior.read_memory(address, 256)).split(b"\0")[0].decode()
    return {"address": address, "banner": banner, "stacks": stacks}


def gdb_core(path: str, addresses: list[int], length: int) -> dict[str, Any]:
    """Sections, threads and memory of a core file as gdb sees them."""
    import gdb

    gdb.execute(f"core-file {path}", to_string=True)
    inferior = gdb.selected_inferior()
    memory = []
    for address in addresses:
        try:
            memory.append((address, bytes(inferior.read_memory(address, length)).hex()))
        except gdb.MemoryError:
            memory.append((address, None))
    sections = [line.split() for line in gdb.execute("info files", to_string=True).splitlines() if " is load" in line]
    return {
        "sections": [(int(first, 16), int(last, 16)) for first, _, last, *_ in sections],
        "threads": [(thread.ptid[1], _registers(thread)) for thread in inferior.threads()],
        "memory": memory,
    }


def _registers(thread: Any) -> dict[str, int]:
    import gdb

    thread.switch()
    frame = gdb.selected_frame()
    found = {}
    for register in frame.architecture().registers("general"):
        value = frame.read_register(register)
        if not value.is_optimized_out:
            try:
                found[register.name] = int(value) & ((1 << 8 * value.type.sizeof) - 1)
            except gdb.error:  # "<unavailable>": the note has no place for it
                continue
    return found


QUESTIONS = {
    answer.__name__: answer
    for answer in (
        *(kdumpfile_pages, kdumpfile_attrs, kdumpfile_memory, drgn_pages, drgn_kernel, drgn_virtual),
        *(volatility, volatility_physical, volatility_virtual, gdb_core, gdb_kernel),
    )
}


def main() -> None:
    folder = Path(os.environ["PEER_FOLDER"])
    request = json.loads((folder / "request.json").read_text())
    answer = QUESTIONS[request["question"]](**request["arguments"])
    (folder / "answer.json").write_text(json.dumps(answer))


if __name__ == "__main__":
    main()
