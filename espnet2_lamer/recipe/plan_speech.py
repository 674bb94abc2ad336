"""What speech a plan counts on: of sets that are there, else as the corpora say."""

from collections.abc import Mapping
from pathlib import Path

from espnet2_lamer.constants import RECEPTIVE_FIELD, SAMPLE_RATE
from espnet2_lamer.data.corpora import CORPORA, OWN
from espnet2_lamer.data.hours import PAPER_HOURS
from espnet2_lamer.data.mini import MINI_SETS
from espnet2_lamer.data.segments import read_wavs
from espnet2_lamer.data.sets import SPLITS, read_if_there
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.recipe.options import Options
from espnet2_lamer.recipe.plan_manifest import of_manifest
from espnet2_lamer.recipe.plan_parts import Part, Speech, lengths_of

# Where only hours are known, seconds of an utterance.
_TYPICAL = 5.0


def find_speech(options: Options) -> Speech:
    """Count speech: of stage 1's sets if all are there, else as the corpora say.

    A manifest is read and divided as stage 1 would, in memory. The embedded corpus is
    known by its minutes, and public corpora before stage 1 by the paper's hours; of a
    language that several have, those of the manifest count alone.

    Raises:
        RecipeError: A manifest that stage 1 would refuse to read, or no such corpus.
    """
    sets = {
        lang: {split: options.datadir / f"{split}_{lang}" for split in SPLITS}
        for lang in options.langs
    }
    if all((splits["train"] / "wav.scp").is_file() for splits in sets.values()):
        return _prepared(options, sets)
    corpora = options.corpus.split()
    unknown = [name for name in corpora if name not in (*CORPORA, *OWN)]
    if unknown or not corpora:
        known = ", ".join((*OWN, *CORPORA))
        raise RecipeError(f"--corpus {options.corpus!r}: expected some of {known}")
    speech = Speech({}, "", measured=corpora == ["manifest"])
    sources = []
    if "manifest" in corpora:
        speech = of_manifest(options, alone=corpora == ["manifest"])
        sources.append(speech.source)
    missing = [lang for lang in options.langs if lang not in speech.parts]
    if set(corpora) - {*OWN}:
        speech.parts |= {
            lang: _stated({"train": PAPER_HOURS[lang]})
            for lang in missing
            if lang in PAPER_HOURS
        }
        text = "the paper's hours, not counted here: run stage 1, then plan again"
        sources.append(text)
        missing = [lang for lang in missing if lang not in speech.parts]
    if "mini" in corpora:
        speech.parts |= {lang: _stated(_mini_hours(lang)) for lang in missing}
        sources.append("the embedded corpus's declared minutes")
    for lang in options.langs:
        speech.parts.setdefault(lang, {split: Part() for split in SPLITS})
    speech.parts = {lang: speech.parts[lang] for lang in options.langs}
    speech.source = "; ".join(sources)
    return speech


def _mini_hours(lang: str) -> dict[str, float]:
    names = {split: split if split != "test" else "asr_test" for split in SPLITS}
    return {
        split: MINI_SETS[name]["minutes"].get(lang, 0.0) / 60
        for split, name in names.items()
    }


def _stated(hours: Mapping[str, float]) -> dict[str, Part]:
    counts = {split: amount * 3600 / _TYPICAL for split, amount in hours.items()}
    return {
        split: Part([_TYPICAL] * bool(n), weight=n, text=round(n), files=round(n))
        for split, n in counts.items()
    }


def _prepared(options: Options, sets: Mapping[str, Mapping[str, Path]]) -> Speech:
    parts: dict[str, dict[str, Part]] = {}
    for lang, splits in sets.items():
        parts[lang] = {}
        for split, folder in splits.items():
            wavs = read_wavs(folder) if (folder / "wav.scp").is_file() else {}
            texts = read_if_there(folder / "text")
            parts[lang][split] = lengths_of(wavs, options.nj)
            parts[lang][split].text = len(texts)
    return Speech(parts, f"headers of the sets in {options.datadir}", measured=True)


def shortest(options: Options) -> float:
    """Seconds that an utterance must have: ``--min_duration``, and a frame."""
    return max(options.min_duration, RECEPTIVE_FIELD / SAMPLE_RATE)
