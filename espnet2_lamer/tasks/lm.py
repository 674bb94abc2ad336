"""ESPnet's language model task, whose files appear whole."""

import argparse

from espnet2.tasks.lm import LMTask

from espnet2_lamer.compat import prepare_espnet
from espnet2_lamer.train.checkpoint import CheckedTrainer


class LamerLMTask(LMTask):
    """:class:`espnet2.tasks.lm.LMTask`; see :class:`CheckedTrainer` for its files."""

    trainer = CheckedTrainer

    @classmethod
    def add_task_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add ESPnet's options."""
        prepare_espnet()
        super().add_task_arguments(parser)
