"""Stage 8: error rates of what stage 7 wrote, per system, language and unit."""

import logging
import unicodedata
from pathlib import Path

from espnet2_lamer.evaluation.languages import UNSPACED
from espnet2_lamer.evaluation.scoring import LidScore, Score, score_files
from espnet2_lamer.evaluation.text_units import NoUnitsError, normalize_text, to_units
from espnet2_lamer.fileio.atomic import write_json
from espnet2_lamer.fileio.datadir import read_table, write_table
from espnet2_lamer.recipe.whisper.options import WhisperOptions
from espnet2_lamer.recipe.whisper.systems import planned_systems

# Beside characters: what does not depend on the script that a reading is written in.
_ROMANISED = {"cmn": "pinyin", "yue": "jyutping"}


def decode_dir(options: WhisperOptions, run: str, lang: str) -> Path:
    """Return where a run's hypotheses of one language's test set are."""
    return options.expdir / "decode" / run / lang


def scores_file(options: WhisperOptions) -> Path:
    """Return the summary of all scores."""
    return options.expdir / "scores.json"


def units_of(lang: str) -> tuple[str, ...]:
    """Return the units a language is scored in; the first is its headline.

    Words where they are written apart, characters otherwise, as papers on several
    languages do; then the other rates.
    """
    if lang not in UNSPACED:
        return ("word", "char")
    return ("char", _ROMANISED[lang]) if lang in _ROMANISED else ("char",)


def score(options: WhisperOptions) -> None:
    """Stage 8: write what was compared beside the hypotheses, and ``scores.json``.

    References and hypotheses are normalised alike: punctuation deleted, upper case,
    no spaces in languages that are written without.
    """
    summary = {}
    for system in planned_systems(options):
        for run in system.runs():
            for lang in options.langs:
                for unit in units_of(lang):
                    found = score_unit(options, run, lang, unit)
                    summary.setdefault(run, {}).setdefault(lang, {})[unit] = (
                        found.summary()
                    )
                    logging.info(
                        "%s, %s, %s: %.1f %% (%.1f-%.1f), %d utterances",
                        *(run, lang, unit, found.error_rate, *found.interval),
                        found.utterances,
                    )
    write_json(scores_file(options), summary)


def score_unit(options: WhisperOptions, run: str, lang: str, unit: str) -> Score:
    """Score one run on one language in one unit; writes ``score_<unit>/{ref,hyp}``."""
    here = decode_dir(options, run, lang)
    test = options.set_dir(lang, "test")
    pronunciations = {}
    if (test / "romanisation").is_file():
        pronunciations = read_table(test / "romanisation")
    references = {
        utt: convert(text, unit, lang, pronunciations.get(utt))
        for utt, text in read_table(test / "text.raw").items()
    }
    hypotheses = {
        utt: convert(text, unit, lang)
        for utt, text in read_table(here / "text").items()
    }
    folder = here / f"score_{unit}"
    folder.mkdir(exist_ok=True)
    write_table(folder / "ref", references)
    write_table(folder / "hyp", hypotheses)
    return score_files(folder / "ref", folder / "hyp", unit, options.seed)


def convert(text: str, unit: str, lang: str, romanisation: str | None = None) -> str:
    """Return a text in a unit; empty where nothing of it is left.

    Corpora of syllables have no characters, and models learn to write their
    romanisation: such a text is its own reading.
    """
    if unit in _ROMANISED.values() and not romanisation and not _has_hanzi(text):
        romanisation = normalize_text(text).lower()
    try:
        line = to_units(text, unit, lang, romanisation)
    except NoUnitsError:
        return ""
    return "".join(line.split()) if unit == "char" and lang in UNSPACED else line


def _has_hanzi(text: str) -> bool:
    return any(unicodedata.category(character) == "Lo" for character in text)


def identified(options: WhisperOptions, run: str) -> LidScore | None:
    """Score the languages that a run found; None where it looked for none."""
    true: dict[str, str] = {}
    found: dict[str, str] = {}
    for lang in options.langs:
        path = decode_dir(options, run, lang) / "lang"
        if not path.is_file():
            return None
        languages = read_table(path)
        true |= dict.fromkeys(languages, lang)
        found |= languages
    utts = sorted(true, key=str.encode)
    return LidScore.of_languages(
        {utt: true[utt] for utt in utts}, {utt: found[utt] for utt in utts}
    )
