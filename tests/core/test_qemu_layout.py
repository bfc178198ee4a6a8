"""Where RAM blocks lie, against what ``info mtree -f`` of QEMU 7.2 printed for the same machines."""

from __future__ import annotations

import pytest

from dumpxlate.errors import UnsupportedFeatureError
from dumpxlate.qemu.backends import main_memory
from dumpxlate.qemu.layout import Block, Chipset, board_of, lay_out

MIB, GIB = 1 << 20, 1 << 30
ROMS = (Block("pc.rom", 0x20000), Block("pc.bios", 0x10000), Block("/rom@etc/acpi/tables", 0x20000))


def pieces(machine: str, *blocks: Block, below_4g: int | None = None, chipset: Chipset | None = None) -> list[str]:
    layout = lay_out(
        board_of(machine, [block.name for block in blocks]), blocks, below_4g=below_4g, chipset=chipset or Chipset()
    )
    return [f"{p.start:x}+{p.length:x} {blocks[p.block].name}@{p.offset:x}" for p in layout.placements]


def test_a_pc_before_its_firmware_ran_shows_the_roms_below_one_mib() -> None:
    found = pieces("pc-i440fx-7.2", Block("pc.ram", 4 * MIB), *ROMS, chipset=Chipset(2 * MIB, (False,) * 13))

    assert found == [
        "0+c0000 pc.ram@0",
        "c0000+20000 pc.rom@0",
        "e0000+10000 pc.ram@e0000",
        "f0000+10000 pc.bios@0",
        "100000+100000 pc.ram@100000",
        "ffff0000+10000 pc.bios@0",
        "100000000+200000 pc.ram@200000",
    ]


def test_where_nothing_is_known_of_the_chipset_ram_stands_before_the_roms() -> None:
    found = pieces("pc-q35-7.2", Block("pc.ram", 6 * MIB), Block("pc.bios", 0x40000), below_4g=4 * MIB)

    assert found == ["0+400000 pc.ram@0", "fffc0000+40000 pc.bios@0", "100000000+200000 pc.ram@400000"]


def test_areas_are_shadowed_one_by_one() -> None:
    shadowed = tuple(area in (0, 12) for area in range(13))
    found = pieces("pc", Block("pc.ram", 2 * MIB), *ROMS, chipset=Chipset(0, shadowed))

    assert found[:4] == [
        "0+c4000 pc.ram@0",
        "c4000+1c000 pc.rom@4000",
        "e0000+120000 pc.ram@e0000",
        "ffff0000+10000 pc.bios@0",
    ]


@pytest.mark.parametrize(
    ("machine", "size", "below"),
    [
        ("pc-i440fx-7.2", 0xE0000000 - MIB, 0xE0000000 - MIB),
        ("pc-i440fx-7.2", 0xE0000000, 0xC0000000),
        ("pc-i440fx-rhel7.6.0", 8 * GIB, 0xC0000000),
        ("pc-i440fx-1.7", 8 * GIB, 0xE0000000),
        ("pc-1.2", 8 * GIB, 0xE0000000),
        ("pc-q35-7.2", 0xB0000000 - MIB, 0xB0000000 - MIB),
        ("pc-q35-rhel9.2.0", 0xB0000000, 0x80000000),
        ("isapc", 0xE1000000, 0xE0000000),
        ("isapc", 0xCE400000, 0xCE400000),
        ("microvm", 4 * GIB, 0xC0000000),
        ("xenfv-4.2", 4 * GIB, 0xF0000000),
        ("pseries-7.2", 64 * GIB, 64 * GIB),
    ],
)
def test_the_split_follows_the_type_of_the_machine(machine: str, size: int, below: int) -> None:
    assert lay_out(board_of(machine), [Block("pc.ram", size)]).below_4g == below


def test_the_user_and_then_the_cmos_know_better_than_the_rule() -> None:
    blocks = [Block("pc.ram", 8 * GIB)]
    board = board_of("pc")

    assert lay_out(board, blocks, chipset=Chipset(above_4g=6 * GIB)).below_4g == 2 * GIB
    assert lay_out(board, blocks, chipset=Chipset(above_4g=6 * GIB), below_4g=GIB).below_4g == GIB
    odd = lay_out(board, blocks, chipset=Chipset(above_4g=9 * GIB))
    assert odd.below_4g == 3 * GIB
    assert "cannot be" in odd.remarks[0]


@pytest.mark.parametrize(
    ("machine", "size", "most", "below"),
    [
        ("q35", 4 * GIB, 3 * GIB, 2 * GIB),  # 7.2's pc.ram ends at 0x7fffffff
        ("q35", 4 * GIB, GIB, GIB),
        ("q35", 0xA0000000, 3 * GIB, 0xA0000000),
        ("pc", 6 * GIB, 2 * GIB, 2 * GIB),
        ("pc", 6 * GIB, 0xD0000000, 0xC0000000),
        ("pc", 6 * GIB, 4 * GIB, 0xC0000000),
        ("pc", 3968 * MIB, 4 * GIB, 3968 * MIB),
        ("pc", 3 * GIB, 0xA0000000, 0xA0000000),
        ("pc-i440fx-1.7", 6 * GIB, 4 * GIB, 4 * GIB),
        ("isapc", 6 * GIB, 0xD0000000, 0xD0000000),
        ("xenfv", 6 * GIB, 4 * GIB, 0xF0000000),
        ("virt", 6 * GIB, 4 * GIB, 4 * GIB),
    ],
)
def test_what_the_user_says_of_the_split_counts_as_far_as_the_board_takes_it(
    machine: str, size: int, most: int, below: int
) -> None:
    layout = lay_out(board_of(machine), [Block("pc.ram", size)], below_4g=most)
    assert layout.below_4g == below
    assert any("has no more there" in remark for remark in layout.remarks) == (below < min(size, most))


def test_a_pc_whose_ram_may_begin_again_at_one_tib_says_so() -> None:
    size = 0xFD00000000 - GIB
    for more, said in ((0, 0), (0x1000, 1)):
        assert len(lay_out(board_of("pc"), [Block("pc.ram", size + more)]).remarks) == said


def test_virt_is_told_by_the_name_of_its_memory() -> None:
    assert pieces("virt-7.2", Block("virt.flash0", 64 * MIB), Block("mach-virt.ram", GIB)) == [
        "40000000+40000000 mach-virt.ram@0"
    ]
    assert pieces("virt", Block("riscv_virt_board.ram", GIB)) == ["80000000+40000000 riscv_virt_board.ram@0"]


def test_the_nvram_hides_a_part_of_a_macs_firmware() -> None:
    assert pieces("mac99", Block("ppc_core99.ram", 8 * MIB), Block("ppc_core99.bios", MIB)) == [
        "0+800000 ppc_core99.ram@0",
        "fff00000+4000 ppc_core99.bios@0",
        "fff08000+f8000 ppc_core99.bios@8000",
    ]


def test_numa_nodes_follow_each_other_over_the_hole() -> None:
    nodes = [Block(f"ram-node{number}", GIB) for number in (10, 9, 2)]

    assert main_memory([block.name for block in nodes]) == (2, 1, 0)
    assert pieces("q35", *nodes) == [
        "0+40000000 ram-node2@0",
        "40000000+40000000 ram-node9@0",
        "100000000+40000000 ram-node10@0",
    ]
    assert pieces("q35", *nodes, below_4g=GIB + MIB)[1:3] == [
        "40000000+100000 ram-node9@0",
        "100000000+3ff00000 ram-node9@100000",
    ]


def test_numa_nodes_that_are_neighbours_in_table_and_memory_stay_apart() -> None:
    nodes = [Block(f"ram-node{number}", GIB) for number in (0, 1)]

    assert pieces("pc", *nodes) == ["0+40000000 ram-node0@0", "40000000+40000000 ram-node1@0"]
    assert not lay_out(board_of("pc"), nodes).unplaced


def memory(*blocks: tuple[str, int], told: int | None = None) -> str:
    """The names of what is laid out as memory, in their order, and in brackets what is missing or in doubt."""
    laid = [Block(*each) for each in blocks]
    layout = lay_out(board_of("pc"), laid, chipset=Chipset(size=told))
    return " ".join([*(laid[each.block].name for each in layout.placements), *(f"[{each}]" for each in layout.damage)])


BESIDE = "is left out, since its address is not known"


@pytest.mark.parametrize("told", [None, 64 * MIB])
@pytest.mark.parametrize("node", ["ram-node0", "/objects/ram-node0", "pc.ram", "main"])
@pytest.mark.parametrize("dimm", ["memdimm0", "dimm1", "/objects/nvdimm2", "memvirtiopmem0"])
def test_a_dimm_is_told_from_the_machines_memory_by_its_customary_name(node: str, dimm: str, told: int | None) -> None:
    for blocks in (((node, 64 * MIB), (dimm, 32 * MIB)), ((dimm, 128 * MIB), (node, 64 * MIB))):
        assert memory(*blocks, told=told) == f"{node} [memory beside {node} {BESIDE}: {dimm}]"


def test_the_size_that_the_cmos_tells_decides_where_names_do_not() -> None:
    blocks = (("m0", 64 * MIB), ("m1", 32 * MIB), ("m2", 16 * MIB))
    assert memory(*blocks, told=112 * MIB) == "m0 m1 m2"
    assert memory(*blocks, told=80 * MIB) == f"m0 m2 [memory beside m0 {BESIDE}: m1]"
    assert memory(*blocks, told=16 * MIB) == f"m2 [memory beside m2 {BESIDE}: m0, m1]"
    assert memory(("dimm0", 64 * MIB), ("m1", 32 * MIB), told=64 * MIB) == f"dimm0 [memory beside dimm0 {BESIDE}: m1]"
    assert memory(("m0", 64 * MIB + 4096), ("m1", 32 * MIB), told=64 * MIB) == f"m0 [memory beside m0 {BESIDE}: m1]"
    assert memory(("m0", 1024 * GIB + MIB), ("m1", 2 * MIB), told=MIB) == f"m0 m0 [memory beside m0 {BESIDE}: m1]"


def test_what_neither_names_nor_the_cmos_tell_is_said() -> None:
    equal = (("m0", 64 * MIB), ("m1", 64 * MIB))
    told_twice = memory(*equal, told=64 * MIB)
    assert "m0 [m0, m1: which of them the machine began with is not told; m0 is taken]" in told_twice
    assert (
        memory(("m0", 64 * MIB), ("m1", 128 * MIB), ("none", 0), told=64 * MIB) == f"m0 [memory beside m0 {BESIDE}: m1]"
    )
    for told in (None, MIB):
        assert "m0 m1 [m0, m1: whether these are NUMA nodes or DIMMs" in memory(*equal, told=told)
    assert "in which order these NUMA nodes follow" in memory(("red", MIB), ("blue", MIB), told=2 * MIB)
    assert memory(("ram-node0", MIB), ("ram-node1", MIB)) == "ram-node0 ram-node1"


@pytest.mark.parametrize("name", ["tpm-crb-cmd", "mach-virt.tag", "mach-virt.secure-tag", "synic-0-msg-page"])
def test_memory_of_a_device_without_a_bus_is_no_dimm(name: str) -> None:
    blocks = (Block("pc.ram", MIB), Block(name, 4096))
    layout = lay_out(board_of("pc"), blocks)
    assert layout.damage == ()
    assert any(name in remark for remark in layout.remarks)


def test_many_backends_take_no_time() -> None:
    names = [(f"m{number}", MIB) for number in range(4096)]
    assert "m15 and 4,080 more: whether" in memory(*names, told=2 * MIB)


def test_a_screen_hides_its_window_and_is_seen_where_its_bar_says() -> None:
    screen = "0000:00:02.0/vga.vram"
    blocks = (Block("pc.ram", 2 * MIB), Block(screen, 16 * MIB))

    assert pieces("pc", *blocks, chipset=Chipset(bars={screen: 0xFD000000})) == [
        "0+a0000 pc.ram@0",
        "c0000+140000 pc.ram@c0000",
        f"fd000000+1000000 {screen}@0",
    ]
    assert lay_out(board_of("pc"), blocks).unplaced == (1,)


def test_memory_hides_a_bar_that_the_guest_put_into_it() -> None:
    blocks = (Block("pc.ram", 2 * MIB), Block("0000:00:02.0/hostmem", 2 * MIB))
    assert pieces("pc", *blocks, chipset=Chipset(bars={"0000:00:02.0/hostmem": MIB})) == [
        "0+200000 pc.ram@0",
        "200000+100000 0000:00:02.0/hostmem@100000",
    ]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("0000:00:02.0/hostmem", True),
        ("0000:00:02.0/vga.vram", True),
        ("synic-0-msg-page", True),
        ("tpm-ppi", False),
        ("0000:00:03.0/virtio-net-pci.rom", False),
        ("pc.rom", False),
        ("/rom@etc/acpi/tables", False),
    ],
)
@pytest.mark.parametrize("main", ["pc.ram", "main"])
def test_memory_of_devices_is_no_dimm_and_said_to_be_left_out(main: str, name: str, said: bool) -> None:
    blocks = [Block(main, 2 * MIB), Block(name, 4096)]
    layout = lay_out(board_of("pc"), blocks)
    assert not layout.damage
    assert layout.unplaced == ((1,) if name != "pc.rom" else layout.unplaced)
    assert (
        any(f"memory of devices is left out, since its address is not known: {name}" in r for r in layout.remarks)
        == said
    )
    known = lay_out(board_of("pc"), blocks, chipset=Chipset(bars={name: -1}))
    assert not any("memory of devices" in remark for remark in known.remarks) or name.startswith("synic")


def test_what_is_not_known_is_refused() -> None:
    with pytest.raises(UnsupportedFeatureError, match=r"of type sun4m: .*--machine-type"):
        board_of("sun4m")
    with pytest.raises(UnsupportedFeatureError, match="no RAM block looks like"):
        lay_out(board_of("pc"), [Block("pc.bios", MIB)])
    with pytest.raises(UnsupportedFeatureError, match="below 4 GiB"):
        lay_out(board_of("pc"), [Block("pc.ram", MIB)], below_4g=0)
