"""Command lines, ``python -m espnet2_lamer.bin.NAME``; each has ``--help``."""

import os

# Threads that have nothing to do sleep instead of spinning, which takes the cores from
# other jobs (benchmarks/RESULTS.md, section sharing). OpenMP reads this once, when
# torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
