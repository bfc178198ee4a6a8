"""A paravirtual guest made ordinary: page tables, and what leads to them, in the guest's own frame numbers.

The page tables of a Xen PV guest hold machine frames, which mean nothing outside its host. Here they are rewritten to
what an HVM guest's would hold, by the rules that ``xl save`` follows (tools/libs/guest/xg_sr_save_x86_pv.c):

* the frame in each present entry becomes the guest's own, all other bits stay, and so do entries that are not present;
* the slots in which Xen maps itself are cleared;
* cr3, the page tables of user mode, the frames of the GDT, and the frame of the start_info page that a suspended guest
  hands over follow.

Where Xen would refuse to save, at a frame that is no memory of the guest, the entry is cleared and counted: nothing
that a reader of the result could take for memory is left in it.
"""
