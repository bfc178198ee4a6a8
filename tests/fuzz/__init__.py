"""Fuzzing: mutated dumps, and what must hold for each of them. ``python -m tests.fuzz --help``.

An input is a recipe, a base by name and a list of mutations, so that the corpus of regressions is text
(``regressions.json``) and a finding can be made again anywhere. ``bases`` names what is mutated, ``mutate`` how,
``oracle`` says what must hold, ``worker`` runs inputs within limits, and ``__main__`` feeds the workers and counts.
"""
