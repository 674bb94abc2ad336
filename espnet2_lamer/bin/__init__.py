"""Command lines: ``python -m espnet2_lamer.bin.NAME --help``."""
