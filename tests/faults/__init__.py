"""Faults while writing: system calls that fail, disks that fill up, programs that are killed.

``python -m tests.faults`` runs what docs/reliability.rst reports; tests run a slice of each.
"""
