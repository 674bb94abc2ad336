"""A pretraining experiment's model, rebuilt from its config and weights."""

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from espnet2_lamer.asr.upstream import Upstream
from espnet2_lamer.convert.espnet_experiment import model_file, read_config
from espnet2_lamer.convert.load import local_source
from espnet2_lamer.convert.state import read_state
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.foreign import clear_errors
from espnet2_lamer.hubert.config_check import check_sizes, checked_config


def load_pretraining_model(
    experiment: Path, base: str | Path | None = None, epoch_file: str | None = None
):
    """Rebuild the whole ESPnet model (head included) of a pretraining experiment.

    ``base`` overrides ``encoder_conf.base``; the weights are those of ``epoch_file``,
    by default of its best model. It is a ``LamerHubertPretrainModel`` in eval mode.

    Raises:
        RecipeError: The config is not of this kind, or weights do not fit.
    """
    source = experiment / "config.yaml"
    config = checked_config(read_config(experiment), source)
    given = epoch_file and experiment / epoch_file
    state = read_state(given or model_file(experiment, config))
    return restore_pretraining_model(config, state, base, source)


def _base_here(named: Any, source: Path) -> str:
    """Find the base that a config names; it does not decide that one is fetched."""
    try:
        return local_source(named, fetch=False)
    except RecipeError as error:
        raise RecipeError(
            f"{source}: encoder_conf.base: {error}. Name the base's new place, or its "
            "id to fetch it: the argument base of espnet2_lamer.load_model, --base of "
            "commands; a file does not decide what is fetched"
        ) from error


def restore_pretraining_model(
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    base: str | Path | None,
    source: Path,
):
    """Build the ESPnet model that a ``config.yaml`` describes, and fill it.

    Nothing is allocated before the config's sizes are known to be those of the
    weights. ``base`` overrides ``encoder_conf.base``, messages name ``source``; the
    model is in eval mode.

    Raises:
        RecipeError: As :func:`load_pretraining_model`.
    """
    from espnet2_lamer.tasks.hubert import LamerHubertTask

    config = checked_config(config, source)
    conf = config["encoder_conf"]
    with clear_errors(source):
        if base is not None:
            conf["base"] = str(base)
        elif conf.get("base") is not None:
            conf["base"] = _base_here(conf["base"], source)
        check_sizes(config, state, source)
        model = LamerHubertTask.build_model(argparse.Namespace(**config))
        model.load_state_dict(dict(state))
    return model.eval()


def load_experiment(
    experiment: Path, base: str | Path | None = None, epoch_file: str | None = None
) -> Upstream:
    """Load the encoder of a pretraining experiment as an :class:`Upstream`."""
    return as_upstream(load_pretraining_model(experiment, base, epoch_file))


def as_upstream(model: nn.Module) -> Upstream:
    """Keep a pretraining model's encoder alone, as a frozen extractor."""
    encoder = model.encoder
    lamer = None
    if encoder.lamer is not None:
        lamer = asdict(encoder.lamer)
        lamer["targets"] = list(lamer["targets"])
    # transformers keeps it with the backbone.
    mask = encoder.hubert_pretrain_model.mask_generator.mask_embedding
    encoder.wav2vec2.mask_embedding = mask.detach()
    return Upstream(encoder.wav2vec2, lamer, encoder.final_norm)
