"""Decode with an ESPnet ASR model that uses this package's frontends."""

import argparse
import os
from collections.abc import Sequence

from espnet2_lamer.bin.common import run_main
from espnet2_lamer.compat import quiet_nltk
from espnet2_lamer.fileio.checksum import check_file


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of ``espnet2.bin.asr_inference``."""
    quiet_nltk()
    from espnet2.bin import asr_inference

    return asr_inference.get_parser()


def main(cmd: Sequence[str] | None = None) -> None:
    """Run ``espnet2.bin.asr_inference`` with our classes registered."""
    # Checkpoints are data: nothing in them may run.
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    quiet_nltk()
    from espnet2.bin import asr_inference

    from espnet2_lamer.tasks.asr import register_asr

    register_asr()
    weights = asr_inference.get_parser().parse_args(cmd).asr_model_file
    if weights is not None:
        check_file(weights)
    asr_inference.main(cmd)


if __name__ == "__main__":
    run_main(main)
