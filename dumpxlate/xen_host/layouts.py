"""Where members of Xen's structures lie: as debug information tells, or from a table of releases.

The table was made by compiling ``offsetof`` for each member with the sources of Xen's stable branches (x86-64, default
configuration). Distributions build with few changes: Debian's 4.17 has the very same. A row may be wrong for another
configuration all the same, so whoever uses one checks what it leads to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dumpxlate.errors import UnsupportedFeatureError

if TYPE_CHECKING:
    from dumpxlate.elf.dwarf import DebugInfo

__all__ = ["RELEASES", "Layout", "layout_of"]


@dataclass(frozen=True, slots=True)
class Layout:
    """Offsets in bytes, of members of ``struct domain``, ``struct p2m_domain`` and ``struct vcpu``.

    The number of a domain, and of a processor, has always been the first member.
    """

    name: str
    domain_max_vcpus: int
    domain_vcpu: int
    domain_shared_info: int
    domain_tot_pages: int
    domain_next: int
    domain_is_32bit: int
    domain_p2m: int
    domain_handle: int
    domain_emulation_flags: int
    p2m_phys_table: int
    vcpu_processor: int
    vcpu_domain: int
    vcpu_is_running: int
    vcpu_user_regs: int
    user_regs_size: int
    vcpu_dr: int
    vcpu_dr6: int
    vcpu_dr7: int
    vcpu_flags: int
    vcpu_kernel_sp: int
    vcpu_ctrlreg: int
    vcpu_fs_base: int
    vcpu_gs_base_kernel: int
    vcpu_gs_base_user: int
    vcpu_guest_table: int
    vcpu_guest_table_user: int
    vcpu_hvm_guest_cr: int


_MEMBERS: dict[str, tuple[str, ...]] = {
    "domain_max_vcpus": ("domain.max_vcpus",),
    "domain_vcpu": ("domain.vcpu",),
    "domain_shared_info": ("domain.shared_info",),
    "domain_tot_pages": ("domain.tot_pages",),
    "domain_next": ("domain.next_in_list",),
    "domain_is_32bit": ("domain.arch.pv.is_32bit", "domain.arch.is_32bit_pv"),
    "domain_p2m": ("domain.arch.p2m",),
    "domain_handle": ("domain.handle",),
    "domain_emulation_flags": ("domain.arch.emulation_flags",),
    "p2m_phys_table": ("p2m_domain.phys_table",),
    "vcpu_processor": ("vcpu.processor",),
    "vcpu_domain": ("vcpu.domain",),
    "vcpu_is_running": ("vcpu.is_running",),
    "vcpu_user_regs": ("vcpu.arch.user_regs",),
    "vcpu_dr": ("vcpu.arch.dr",),
    "vcpu_dr6": ("vcpu.arch.dr6",),
    "vcpu_dr7": ("vcpu.arch.dr7",),
    "vcpu_flags": ("vcpu.arch.flags",),
    "vcpu_kernel_sp": ("vcpu.arch.pv.kernel_sp", "vcpu.arch.pv_vcpu.kernel_sp"),
    "vcpu_ctrlreg": ("vcpu.arch.pv.ctrlreg", "vcpu.arch.pv_vcpu.ctrlreg"),
    "vcpu_fs_base": ("vcpu.arch.pv.fs_base", "vcpu.arch.pv_vcpu.fs_base"),
    "vcpu_gs_base_kernel": ("vcpu.arch.pv.gs_base_kernel", "vcpu.arch.pv_vcpu.gs_base_kernel"),
    "vcpu_gs_base_user": ("vcpu.arch.pv.gs_base_user", "vcpu.arch.pv_vcpu.gs_base_user"),
    "vcpu_guest_table": ("vcpu.arch.guest_table",),
    "vcpu_guest_table_user": ("vcpu.arch.guest_table_user",),
    "vcpu_hvm_guest_cr": ("vcpu.arch.hvm.guest_cr", "vcpu.arch.hvm_vcpu.guest_cr"),
}
"""What each member is called, in newer releases and in older ones."""


def layout_of(info: DebugInfo) -> Layout:
    """Read a layout from the debug information of xen-syms.

    Raises:
        UnsupportedFeatureError: it does not have Xen's structures, or has them otherwise.
        CorruptDumpError: it contradicts itself.
    """
    found: dict[str, int] = {}
    for field, names in _MEMBERS.items():
        places = [place for name in names if (place := info.field(name))]
        if not places:
            raise UnsupportedFeatureError(f"debug information without {names[0]}, expected that of xen-syms")
        found[field] = places[0].offset
    size = info.size("cpu_user_regs")
    if not size:
        raise UnsupportedFeatureError("debug information without cpu_user_regs, expected that of xen-syms")
    return Layout("debug information", user_regs_size=size, **found)


_TABLE = """
release                 4.14  4.15  4.16  4.17  4.18  4.19  4.20  4.21  4.22
domain_max_vcpus           4     4     4     4     4     4     4     4     4
domain_vcpu                8     8     8     8     8     8    16    16    16
domain_shared_info        16    16    16    16    16    16    24    24    24
domain_tot_pages          88    88    88    88    88    88    96    96    96
domain_next              144   144   144   136   136   136   144   144   144
domain_is_32bit          684   684   684   684   684   684   684   684   676
domain_p2m              1944  1872  1320  1208  1200  1168  1168  1168  1168
domain_handle           2696  2696  2056  1928  1928  1928  1928  1928  1928
domain_emulation_flags  2636  2564  2012  1900  1916  1884  1884  1812  1812
p2m_phys_table            40    40    40    80    80    72    72    72    72
vcpu_processor             4     4     4     4     4     4     4     4     4
vcpu_domain               16    16    16    16    24    24    24    24    24
vcpu_is_running          271   271   271   275   299   299   299   299   297
vcpu_user_regs           648   648   648   648   648   648   640   640   640
user_regs_size           200   200   200   200   200   200   200   168   168
vcpu_dr                  848   848   848   848   848   848   840   808   808
vcpu_dr6                 888   888   888   888   888   888   880   840   840
vcpu_dr7                 880   880   880   880   880   880   872   844   844
vcpu_flags               896   896   896   896   896   896   888   848   848
vcpu_kernel_sp          1312  1312  1312  1312  1312  1312  1312  1248  1248
vcpu_ctrlreg            1320  1320  1320  1320  1320  1320  1320  1256  1256
vcpu_fs_base            1432  1432  1432  1432  1432  1432  1432  1376  1376
vcpu_gs_base_kernel     1440  1440  1440  1440  1440  1440  1440  1384  1384
vcpu_gs_base_user       1448  1448  1448  1448  1448  1448  1448  1392  1392
vcpu_guest_table        2888  2824  2824  2824  2632  2568  2568  2504  2504
vcpu_guest_table_user   2880  2816  2816  2816  2624  2560  2560  2496  2496
vcpu_hvm_guest_cr       1024  1024  1024  1024  1024  1024  1024   960   960
"""


def _releases() -> tuple[Layout, ...]:
    """Make a layout of each column, the newest first."""
    (_, *names), *rows = (line.split() for line in _TABLE.strip().splitlines())
    columns = [{row[0]: int(row[1 + at]) for row in rows} for at in range(len(names))]
    return tuple(Layout(f"Xen {name}", **column) for name, column in zip(names, columns, strict=True))[::-1]


RELEASES = _releases()
"""Layouts of known releases, newest first."""
