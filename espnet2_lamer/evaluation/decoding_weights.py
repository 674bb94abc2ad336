"""Weights of language models, chosen on dev speech: test sets choose nothing."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rapidfuzz.distance import Levenshtein

from espnet2_lamer.constants import SAMPLE_RATE
from espnet2_lamer.data.speech import read_speech
from espnet2_lamer.evaluation.lm_search import build_search, search_tokens
from espnet2_lamer.evaluation.recogniser import Recogniser, quiet
from espnet2_lamer.fileio.datadir import read_table

#: Dev speech that the choice is made on, in seconds: more takes time, not certainty.
MOST_SECONDS = 300.0
_PASSES = 2

Value = float | Sequence[float]


def choose(
    grid: Mapping[str, Value], error: Callable[[dict[str, float]], float]
) -> tuple[dict[str, float], float, int]:
    """Minimise over one key at a time, twice; a value that is no list stays.

    ``error`` is asked once for each setting. The first of equally good values wins.

    Returns:
        The setting, its error, and how many settings were tried.
    """
    lists = {k: list(v) for k, v in grid.items() if isinstance(v, Sequence)}
    setting = {k: lists[k][len(lists[k]) // 2] if k in lists else grid[k] for k in grid}
    tried: dict[tuple[float, ...], float] = {}

    def measured(candidate: dict[str, float]) -> float:
        key = tuple(candidate.values())
        if key not in tried:
            tried[key] = error(candidate)
        return tried[key]

    for _ in range(_PASSES):
        for key, values in lists.items():
            candidates = [setting | {key: value} for value in values]
            setting = min(candidates, key=measured)
    return setting, measured(setting), len(tried)


def choose_on_dev(
    experiment: Path, grid: Mapping[str, Value]
) -> tuple[dict[str, float], dict[str, Any]]:
    """Choose what ``grid`` leaves open by the token error rate on dev utterances.

    They are those of ``<experiment>/data/dev``, evenly spread, :data:`MOST_SECONDS` at
    most; the model is that of ``<experiment>/final`` with its language models.

    Returns:
        The decoding config, and a report: utterances, tokens, settings tried and the
        error rates in per cent, with the language models and without.
    """
    recogniser = Recogniser(experiment / "final", choose_weights=True)
    texts = read_table(experiment / "data/dev/text")
    audio = read_table(experiment / "data/dev/wav.scp")
    references, frames, without, seconds = [], [], 0, 0.0
    for utt in _spread(sorted(texts)):
        speech = read_speech(utt, audio[utt])
        seconds += len(speech) / SAMPLE_RATE
        encoded = recogniser.encode(speech)
        if encoded is not None:
            reference = recogniser.tokenizer.text2tokens(texts[utt])
            references.append(recogniser.converter.tokens2ids(reference))
            frames.append(encoded)
            without += Levenshtein.distance(references[-1], recogniser.greedy(encoded))
        if seconds > MOST_SECONDS:
            break
    total = sum(map(len, references))

    def error(setting: dict[str, float]) -> float:
        search = build_search(
            recogniser.model, setting, recogniser.ngram, recogniser.lm
        )
        with quiet():
            wrong = sum(
                Levenshtein.distance(
                    reference, search_tokens(search, encoded[0], recogniser.model.eos)
                )
                for reference, encoded in zip(references, frames, strict=True)
            )
        return 100 * wrong / total

    # What there is no model for needs no weight.
    for key, model in (
        ("ngram_weight", recogniser.ngram),
        ("lm_weight", recogniser.lm),
    ):
        if model is None and isinstance(grid[key], Sequence):
            grid = {**grid, key: 0.0}
    setting, best, tried = choose(grid, error)
    report = {
        "utterances": len(references),
        "tokens": total,
        "settings_tried": tried,
        "token_error_rate": round(best, 2),
        "without_language_models": round(100 * without / total, 2),
    }
    logging.info("%s: weights %s chosen on dev: %s", experiment, setting, report)
    return setting, report


def _spread(names: Sequence[str], parts: int = 8) -> list[str]:
    """Order names so that the first ones come from everywhere."""
    return [name for start in range(parts) for name in names[start::parts]]
