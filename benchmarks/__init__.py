"""Side-by-side measurements behind RESULTS.md: ``python -m benchmarks``."""

import os

# torch's profiler reports a missing GPU driver as an error on standard error.
os.environ.setdefault("KINETO_LOG_LEVEL", "5")
