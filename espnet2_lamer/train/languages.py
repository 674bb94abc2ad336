"""Leave languages out of training, as the ablation without replay does."""

from collections.abc import Mapping, Sequence
from pathlib import Path

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
