"""Train a HuBERT with LoRA experts: ESPnet's ``hubert_train`` with our classes."""

from espnet2_lamer.bin.common import run_main


def get_parser():
    """Return ESPnet's parser with our choices."""
    from espnet2_lamer.tasks.hubert import LamerHubertTask

    return LamerHubertTask.get_parser()


def main(cmd: list[str] | None = None) -> None:
    """Run training, e.g. ``--config conf/train_ssl_lamer.yaml --output_dir exp/x``."""
    from espnet2_lamer.tasks.hubert import LamerHubertTask

    LamerHubertTask.main(cmd=cmd)


if __name__ == "__main__":
    run_main(main)
