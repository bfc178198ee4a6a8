"""Byte-level writers of every dump format, for tests: plain ``struct``, nothing of dumpxlate."""
