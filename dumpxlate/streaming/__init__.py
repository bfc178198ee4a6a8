"""Conversions of a pipe in one pass: the output grows while the input still comes, and nothing is kept of it.

Two kinds of input allow that. Where each byte's place in memory is known when it comes (LiME, raw), memory is taken in
pieces of a few MiB, each a dump of its own; and where files of the output's format make one when they stand one behind
the other (LiME, AVML, raw), each piece is converted by itself, as if only its window of memory had been asked for.
Where a container only says what belongs where in the file inside (flattened), and that file is of the format asked
for, its bytes are put in their places.

Everything else needs all of the input first: a program header or a bitmap of all of memory stands before its pages.
"""
