"""Leave languages out of training, or all but a few hours of one."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.datadir import read_table


def without_languages(
    lengths: Mapping[str, int], utt2lang_file: Path, excluded: Sequence[str]
) -> dict[str, int]:
    """Drop the utterances of some languages.

    Args:
        lengths: Samples by utterance.
        utt2lang_file: Language by utterance.
        excluded: Languages to drop, ISO 639-3.

    Returns:
        The other utterances, in the same order.

    Raises:
        RecipeError: An excluded language, or a language's name, is not there, or no
            utterance is left.
    """
    utt2lang = read_table(utt2lang_file, "stage 2")
    missing = [utt for utt in lengths if utt not in utt2lang]
    if missing:
        raise RecipeError(
            f"{utt2lang_file}: no language for {len(missing)} utterances, first "
            f"{missing[0]!r}; exclude_langs needs one for each"
        )
    present = {utt2lang[utt] for utt in lengths}
    unknown = sorted(set(excluded) - present)
    if unknown:
        raise RecipeError(
            f"exclude_langs: found {', '.join(unknown)}, expected some of "
            f"{', '.join(sorted(present))} ({utt2lang_file})"
        )
    kept = {utt: n for utt, n in lengths.items() if utt2lang[utt] not in excluded}
    if not kept:
        raise RecipeError(
            f"exclude_langs: {', '.join(sorted(excluded))} leaves no utterance of "
            f"{utt2lang_file}"
        )
    return kept


def read_hours(words: Sequence[str]) -> dict[str, float]:
    """Read ``eng=0.02 cmn=1``: hours by language.

    Raises:
        RecipeError: A word is not of this form, or its number not above 0.
    """
    hours: dict[str, float] = {}
    for word in words:
        lang, _, number = word.partition("=")
        try:
            hours[lang] = float(number)
        except ValueError:
            hours[lang] = 0.0
        if not (lang and 0 < hours[lang] < float("inf")):
            raise RecipeError(
                f"max_hours: found {word!r}, expected LANGUAGE=HOURS above 0, e.g. "
                "eng=0.5; exclude_langs leaves a language out"
            )
    return hours


def at_most_hours(
    lengths: Mapping[str, int],
    utt2lang_file: Path,
    hours: Mapping[str, float],
    seed: int = 0,
) -> dict[str, int]:
    """Keep random utterances of some languages, up to so many hours of each.

    A larger number of hours keeps what a smaller one kept, and more.

    Args:
        lengths: Samples by utterance, 16 kHz.
        utt2lang_file: Language by utterance.
        hours: Most hours by language; others stay whole.
        seed: Of the choice.

    Returns:
        The utterances that stay, in the same order. Of each language at least one.

    Raises:
        RecipeError: A language is not there.
    """
    utt2lang = read_table(utt2lang_file, "stage 2")
    dropped: set[str] = set()
    for lang, most in hours.items():
        own = sorted(utt for utt in lengths if utt2lang.get(utt) == lang)
        if not own:
            present = sorted({utt2lang[utt] for utt in lengths if utt in utt2lang})
            raise RecipeError(
                f"max_hours: found {lang}, expected some of {', '.join(present)} "
                f"({utt2lang_file})"
            )
        order = [own[i] for i in np.random.default_rng(seed).permutation(len(own))]
        total = np.cumsum([lengths[utt] for utt in order]) / (16000 * 3600)
        kept = max(1, int(np.searchsorted(total, most, side="right")))
        dropped.update(order[kept:])
    return {utt: n for utt, n in lengths.items() if utt not in dropped}
