"""Decode with an ESPnet ASR model that uses this package's frontends."""

import argparse
from pathlib import Path

from espnet2_lamer.bin.common import run_main, take_trust
from espnet2_lamer.compat import before_espnet, escape_help
from espnet2_lamer.fileio.trust import trusting_s3prl_files


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of ``espnet2.bin.asr_inference``."""
    before_espnet()
    from espnet2.bin import asr_inference

    return escape_help(asr_inference.get_parser())


def main(cmd: list[str] | None = None) -> None:
    """Run ``espnet2.bin.asr_inference`` with our classes registered."""
    trust, cmd = take_trust(cmd)
    args = get_parser().parse_args(cmd)
    from espnet2.bin import asr_inference

    from espnet2_lamer.fileio.foreign import check_weights, parse_yaml
    from espnet2_lamer.tasks.asr import check_s3prl_frontend, register_asr

    register_asr()
    for weights in (args.asr_model_file, args.lm_file):
        if weights is not None:
            check_weights(weights)
    with trusting_s3prl_files(trust):
        if args.asr_train_config is not None:
            path = Path(args.asr_train_config)
            check_s3prl_frontend(parse_yaml(path.read_bytes(), path))
        asr_inference.main(cmd)


if __name__ == "__main__":
    run_main(main)
