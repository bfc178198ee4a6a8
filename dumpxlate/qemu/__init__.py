"""What QEMU's own files have in common: where a machine's RAM blocks lie, and its migration stream."""
