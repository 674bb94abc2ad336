"""Parts of a training, as ESPnet would build them, on a corpus of seconds."""

from types import SimpleNamespace

import pytest
import torch


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """Noise with random units; nobody may change it."""
    from tests.train.small_training import make_corpus

    directory = tmp_path_factory.mktemp("small") / "corpus"
    make_corpus(directory)
    return directory


@pytest.fixture
def make_parts(corpus, tmp_path):
    """Build model, optimizer, iterators and options of a training."""
    from espnet2.train.distributed_utils import DistributedOption

    from espnet2_lamer.tasks.hubert import LamerHubertTask
    from tests.train.small_training import command

    def make(seed=0, corpus=corpus, **changes):
        cmd = command(corpus, tmp_path / "exp", **changes)
        args = LamerHubertTask.get_parser().parse_args(cmd)
        args.distributed = False
        torch.manual_seed(seed)
        model = LamerHubertTask.build_model(args)
        (optimizer,) = LamerHubertTask.build_optimizers(args, model)
        train, valid = (
            LamerHubertTask.build_iter_factory(args, DistributedOption(), mode=mode)
            for mode in ("train", "valid")
        )
        return SimpleNamespace(
            args=args,
            model=model,
            optimizer=optimizer,
            train=train,
            valid=valid,
            options=LamerHubertTask.trainer.build_options(args),
            output=tmp_path / "exp",
        )

    return make
