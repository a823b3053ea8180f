"""Benchmarks: never timed tests. `make bench` runs them all and writes RESULTS.md.

They and the processes that they start allocate as the command line does.
"""

from headwater.cli import choose_memory

choose_memory()
