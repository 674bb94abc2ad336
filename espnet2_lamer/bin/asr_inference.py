"""Decode with an ESPnet ASR model that uses this package's frontends."""

import argparse
from collections.abc import Sequence

from espnet2_lamer.bin.common import run_main
from espnet2_lamer.compat import quiet_nltk


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of ``espnet2.bin.asr_inference``."""
    quiet_nltk()
    from espnet2.bin import asr_inference

    return asr_inference.get_parser()


def main(cmd: Sequence[str] | None = None) -> None:
    """Run ``espnet2.bin.asr_inference`` with our classes registered."""
    quiet_nltk()
    from espnet2.bin import asr_inference

    from espnet2_lamer.tasks.asr import register_asr

    register_asr()
    asr_inference.main(cmd)


if __name__ == "__main__":
    run_main(main)
