"""Train an ESPnet ASR model with this package's frontends: ESPnet's own options."""

import argparse

from espnet2_lamer.bin.common import run_main, take_trust
from espnet2_lamer.fileio.trust import trusting_s3prl_files


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of ``espnet2.bin.asr_train`` with our choices."""
    from espnet2_lamer.tasks.asr import LamerASRTask

    return LamerASRTask.get_parser()


def main(cmd: list[str] | None = None) -> None:
    """Train, e.g. ``--frontend lamer_upstream --frontend_conf upstream=DIR``."""
    trust, cmd = take_trust(cmd)
    from espnet2_lamer.tasks.asr import LamerASRTask

    with trusting_s3prl_files(trust):
        LamerASRTask.main(cmd=cmd)


if __name__ == "__main__":
    run_main(main)
