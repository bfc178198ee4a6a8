"""Numbers of the attributes, forms and tags of debug information, by their names without DW_AT_, DW_FORM_ and DW_TAG_.

All forms are here, since whoever reads an entry has to know the size of each of its values; of attributes and tags
those that somebody asks for. pyelftools, which knows them all, takes longer to import than a structure to find.

Sources: the DWARF 5 standard, sections 7.5.3 to 7.5.6; extensions of gcc and dwz as in binutils' dwarf2.def.
"""

from __future__ import annotations

__all__ = ["AT", "FORM", "TAG"]

_FORMS = """
    addr ref block2 block4 data2 data4 data8 string block block1 data1 flag sdata strp udata ref_addr ref1 ref2 ref4
    ref8 ref_udata indirect sec_offset exprloc flag_present strx addrx ref_sup4 strp_sup data16 line_strp ref_sig8
    implicit_const loclistx rnglistx ref_sup8 strx1 strx2 strx3 strx4 addrx1 addrx2 addrx3 addrx4
"""

FORM = {name: number for number, name in enumerate(_FORMS.split(), 1)} | {
    "GNU_addr_index": 0x1F01,
    "GNU_str_index": 0x1F02,
    "GNU_ref_alt": 0x1F20,
    "GNU_strp_alt": 0x1F21,
}

AT = {
    "sibling": 0x01,
    "location": 0x02,
    "name": 0x03,
    "byte_size": 0x0B,
    "upper_bound": 0x2F,
    "count": 0x37,
    "data_member_location": 0x38,
    "declaration": 0x3C,
    "type": 0x49,
    "signature": 0x69,
    "data_bit_offset": 0x6B,
    "str_offsets_base": 0x72,
    "addr_base": 0x73,
    "dwo_name": 0x76,
    "GNU_dwo_name": 0x2130,
}

TAG = {
    "array_type": 0x01,
    "class_type": 0x02,
    "enumeration_type": 0x04,
    "member": 0x0D,
    "pointer_type": 0x0F,
    "structure_type": 0x13,
    "typedef": 0x16,
    "union_type": 0x17,
    "subrange_type": 0x21,
    "base_type": 0x24,
    "const_type": 0x26,
    "subprogram": 0x2E,
    "variable": 0x34,
    "volatile_type": 0x35,
    "restrict_type": 0x37,
    "atomic_type": 0x47,
}
