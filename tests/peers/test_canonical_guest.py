"""A real paravirtual Linux guest, made ordinary: drgn, Volatility and makedumpfile walk its page tables.

No symbols are at hand. VMCOREINFO is found in the guest's memory and written along; it says where the kernel's image
lies, randomised or not, and the banner is looked for there.

crash is no judge here: it takes the kernel for a paravirtual one by the kernel's own variable ``xen_start_info``
(is_pvops_xen in its kernel.c, up to 9.0), and looks up every frame in the guest's p2m, whatever the dump says.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING

import pytest

import dumpxlate
from dumpxlate.vmcoreinfo_search import find, with_vmcoreinfo
from tests.builders import xen_core
from tests.builders.pv_tables import PvGuest
from tests.peers import peers
from tests.readers import vmcore_pages

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.peer

IMAGE = 0xFFFF_FFFF_8000_0000
BANNER = re.compile(rb"Linux version 6\.1\.0-\S+ \(debian-kernel@lists\.debian\.org\) \(gcc[^\n]*#1 SMP [^\n]*\n\0")
LENGTH = 48


@pytest.fixture(scope="module")
def outputs(
    shared: Path, unpacked: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A vmcore as the guest has it, and ordinary ones made of its core and of its save image."""
    folder = tmp_path_factory.mktemp("canonical")
    made = {}
    for name, source, canonical in (("machine", "core", False), ("core", "core", True), ("save", "save", True)):
        with dumpxlate.open(unpacked(shared / f"fixtures/xen-linux/pv1.{source}.xz")) as dump:
            found = find(dump)
            assert found is not None
            made[name] = folder / name
            dumpxlate.convert(with_vmcoreinfo(dump, found.info), made[name], canonical=canonical)
    return made


def control_registers(path: Path) -> list[int]:
    """cr3 of each processor, from QEMU's notes, by hand."""
    data = path.read_bytes()[: 1 << 20]
    notes = re.finditer(rb"\x05\0\0\0\xb8\x01\0\0\0\0\0\0QEMU\0\0\0\0", data)
    return [struct.unpack_from("<Q", data, note.end() + 392 + 24)[0] for note in notes]


def banner(path: Path) -> tuple[int, bytes]:
    """Virtual address and text of linux_banner: found in the image of the kernel, where VMCOREINFO says that it is."""
    pages = vmcore_pages(path)
    text = next(m[0] for page in pages.values() if (m := re.search(rb"OSRELEASE=[^\0]{1000,}", page)))
    number = int(re.search(rb"NUMBER\(phys_base\)=(-?\d+)", text)[1])  # type: ignore[index]
    start = int(re.search(rb"SYMBOL\(_stext\)=([0-9a-f]+)", text)[1], 16)  # type: ignore[index]
    first = (start - IMAGE + number) >> 12
    image = b"".join(pages.get(pfn, bytes(4096)) for pfn in range(first, first + 0x2000))
    found = BANNER.search(image)
    assert found
    return (first << 12) + found.start() - number + IMAGE, found[0]


@pytest.mark.parametrize("name", ["core", "save"])
def test_volatility_walks_the_tables_of_every_processor(outputs: dict[str, Path], name: str) -> None:
    peers.require("volatility3")
    address, text = banner(outputs[name])
    registers = control_registers(outputs[name])
    assert len(registers) == 2
    for cr3 in registers:
        assert peers.volatility_virtual(outputs[name], cr3, [address], LENGTH) == {address: text[:LENGTH]}


@pytest.mark.parametrize("name", ["core", "save"])
def test_drgn_walks_the_tables_of_the_kernel(outputs: dict[str, Path], name: str) -> None:
    peers.require("drgn")
    address, text = banner(outputs[name])
    assert peers.drgn_virtual(outputs[name], [address], LENGTH) == {address: text[:LENGTH]}


@pytest.mark.parametrize("name", ["core", "save"])
def test_libkdumpfile_walks_the_tables_of_the_kernel(outputs: dict[str, Path], name: str) -> None:
    peers.require("kdumpfile")
    address, text = banner(outputs[name])
    assert peers.kdumpfile_memory(outputs[name], [address], LENGTH) == {address: text[:LENGTH]}


def test_neither_could_before(outputs: dict[str, Path]) -> None:
    """Without --canonical tables hold machine frames, and no register in the notes says where they begin."""
    peers.require("drgn", "volatility3")
    address, text = banner(outputs["machine"])
    assert banner(outputs["core"]) == (address, text)
    assert control_registers(outputs["machine"]) == []
    assert peers.drgn_virtual(outputs["machine"], [address], LENGTH) == {address: None}
    (root, _) = control_registers(outputs["core"])
    assert peers.volatility_virtual(outputs["machine"], root, [address], LENGTH) == {address: None}


def test_they_read_what_we_read(outputs: dict[str, Path]) -> None:
    """Pages all over the kernel's address space, through the map before and by its tables after."""
    peers.require("drgn", "volatility3")
    direct = 0xFFFF_8880_0000_0000
    with dumpxlate.open(outputs["machine"]) as machine, dumpxlate.open(outputs["core"]) as dump:
        wanted = [direct + (pfn << 12) for pfn in dump.pages.stored.select(0, 1 << 20)[::97].tolist()]
        before, after = machine.virtual(), dump.virtual()
        assert before.physical(wanted).tolist() == after.physical(wanted).tolist()
        held = [address for address, at in zip(wanted, after.physical(wanted).tolist(), strict=True) if at >= 0]
        assert len(held) > 200
        expected = {address: after.read(address, LENGTH) for address in held}
        cr3 = dump.cpus[0].registers["cr3"]
    assert peers.drgn_virtual(outputs["core"], held, LENGTH) == expected
    assert peers.volatility_virtual(outputs["core"], cr3, held, LENGTH) == expected


def test_makedumpfile_filters_it(outputs: dict[str, Path], tmp_path: Path) -> None:
    """It finds the kernel's pages by the kernel's own structures, which it reads through page tables."""
    peers.require("makedumpfile", "drgn")
    with pytest.raises(peers.PeerError, match="Can't get the address"):
        peers.refilter(outputs["machine"], tmp_path / "machine", "-l", level=31)
    filtered = peers.refilter(outputs["core"], tmp_path / "core", "-l", level=31)
    assert 0 < filtered.stat().st_size < outputs["core"].stat().st_size // 2
    address, text = banner(outputs["core"])
    assert peers.drgn_virtual(filtered, [address], LENGTH) == {address: text[:LENGTH]}


@pytest.mark.parametrize(
    ("width", "layer", "start"), [(8, "Intel32e", 0xFFFF_8880_0000_0000), (4, "IntelPAE", 0xC0000000)]
)
def test_hand_made_guests_of_both_widths(tmp_path: Path, width: int, layer: str, start: int) -> None:
    peers.require("volatility3")
    pv = PvGuest(width=width)
    top = pv.root()
    pv.direct_map(top, start)
    (tmp_path / "core").write_bytes(xen_core.build(pv.guest(top), width=width))
    with dumpxlate.open(tmp_path / "core") as dump:
        dumpxlate.convert(dump, tmp_path / "raw", "raw", canonical=True, allow_loss=True)
    expected = {start + pfn * 4096: pv.page(pfn, machine=False) for pfn in range(pv.size)}
    assert peers.volatility_virtual(tmp_path / "raw", top << 12, expected, 4096, layer) == expected
