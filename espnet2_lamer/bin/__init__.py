"""Command lines, ``python -m espnet2_lamer.bin.NAME``; each has ``--help``."""

import os

# Threads that have nothing to do sleep instead of spinning: beside another job on the
# same cores spinning costs many times what waking up does (benchmarks/RESULTS.md,
# section sharing). OpenMP reads this once, when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
