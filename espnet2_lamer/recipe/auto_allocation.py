"""``--allocation auto``: experts where the base tells languages apart."""

import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from espnet2_lamer.analysis.language_probe import fisher_ratio
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import write_json
from espnet2_lamer.fileio.datadir import read_table
from espnet2_lamer.layers import parse_allocation
from espnet2_lamer.layers.config import apportion
from espnet2_lamer.recipe.options import Options
from espnet2_lamer.recipe.settle import own_allocation, read_ssl_config
from espnet2_lamer.recipe.upstreams import base_path, read_checkpoints
from espnet2_lamer.upstream import load_model

#: Utterances per language whose states are compared, and how much of each is heard.
UTTERANCES = 50
_SECONDS = 10
_CRITERION = (
    "language separability: Fisher's ratio of the traces of between-language and "
    "within-language scatter of utterance means of the base's states"
)


def automatic_allocation(options: Options) -> str:
    """Place the experts of ``--ssl_config`` by how well layers tell languages apart.

    The number of experts is that of the config's own allocation. Layer l gets the
    fewest that routing needs (top_k, 1 for soft routing) and a share of the rest in
    proportion to the Fisher ratio of languages in its states
    (:func:`~espnet2_lamer.analysis.language_probe.fisher_ratio`), computed of the
    frozen base on a seeded sample of the pretraining speech. Written to
    ``allocation.json`` of the experiment.

    Returns:
        One count per layer, separated by commas.

    Raises:
        RecipeError: Speech of two languages is missing, or the experts are too few.
    """
    config = read_ssl_config(options.ssl_config)
    scheme = own_allocation(config)
    directory = options.raw / "ssl_train"
    chosen = _sample(directory, config.get("exclude_langs") or [], options.seed)
    model = load_model(base_path(options))
    try:
        budget = sum(parse_allocation(scheme or "", model.num_layers))
        means = _utterance_means(model, directory, chosen)
        criterion = [
            fisher_ratio({lang: x[:, layer] for lang, x in means.items()})
            for layer in range(1, model.num_layers + 1)
        ]
        minimum = config["encoder_conf"]["lamer"].get("top_k", 2) or 1
        counts = apportion(budget, criterion, minimum)
    except ValueError as error:
        raise RecipeError(
            f"--allocation auto: {options.ssl_config}: {error}"
        ) from error
    found: dict[str, Any] = {
        "allocation": counts,
        "criterion": _CRITERION,
        "criterion_per_layer": criterion,
        "budget": budget,
        "budget_of": scheme,
        "minimum": minimum,
        "utterances": {lang: len(utts) for lang, utts in chosen.items()},
        "seed": options.seed,
        "base_sha256": read_checkpoints(options)["base"]["sha256"],
    }
    path = options.ssl_experiment / "allocation.json"
    write_json(path, found)
    logging.info(
        "--allocation auto: %s, as many experts as %s; separability per layer %s; %s",
        ",".join(map(str, counts)),
        scheme,
        " ".join(f"{value:.3f}" for value in criterion),
        path,
    )
    return ",".join(map(str, counts))


def _sample(directory: Path, excluded: list[str], seed: int) -> dict[str, list[str]]:
    utt2lang = read_table(directory / "utt2lang")
    langs = sorted(set(utt2lang.values()) - set(excluded))
    if len(langs) < 2:
        raise RecipeError(
            f"--allocation auto: {directory / 'utt2lang'}: found "
            f"{', '.join(langs) or 'no language'}, expected speech of two or more "
            "languages to tell apart; name counts, e.g. --allocation 2,4,6,8"
        )
    by_lang = {
        lang: sorted(u for u, other in utt2lang.items() if other == lang)
        for lang in langs
    }
    # As many of each, or the criterion would follow the sizes of the languages.
    size = min(UTTERANCES, *map(len, by_lang.values()))
    if size < 2:
        few = min(by_lang, key=lambda lang: len(by_lang[lang]))
        raise RecipeError(
            f"--allocation auto: {directory / 'utt2lang'}: found {len(by_lang[few])} "
            f"utterance of {few}, expected 2 or more of every language"
        )
    rng = np.random.default_rng(seed)
    return {
        lang: [utts[i] for i in sorted(rng.choice(len(utts), size, replace=False))]
        for lang, utts in by_lang.items()
    }


def _utterance_means(
    model: torch.nn.Module, directory: Path, chosen: dict[str, list[str]]
) -> dict[str, NDArray[np.float64]]:
    """Mean over frames of every state: per language ``[utterances, L + 1, D]``."""
    audio = read_table(directory / "wav.scp")
    means: dict[str, list[NDArray[np.float64]]] = {}
    every = [(lang, utt) for lang, utts in chosen.items() for utt in utts]
    for lang, utt in tqdm(every, desc="separability", disable=not sys.stderr.isatty()):
        speech, rate = soundfile.read(audio[utt], dtype="float32")
        wav = torch.from_numpy(speech[: _SECONDS * rate])[None]
        states, _ = model.extract_features(wav, torch.tensor([wav.shape[1]]))
        mean = torch.stack([state[0].double().mean(0) for state in states])
        means.setdefault(lang, []).append(mean.numpy())
    return {lang: np.stack(rows) for lang, rows in means.items()}
