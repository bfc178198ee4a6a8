"""Benchmarks: ``python -m tests.bench`` runs every case against its peer and prints ratios."""
