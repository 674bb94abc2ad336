"""Evaluation sets: what all benchmarks share, and the sets of one's own data."""

import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from espnet2_lamer.constants import SAMPLE_RATE
from espnet2_lamer.data.audio import SkippedAudio, header_seconds
from espnet2_lamer.data.formatting import FormattedSet, collect_set
from espnet2_lamer.data.sampling import sample_replay, seed_of
from espnet2_lamer.data.segments import read_wavs
from espnet2_lamer.data.sets import SPLITS, read_if_there
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation.runs import BUDGETS, LID_UNIT
from espnet2_lamer.evaluation.text_units import (
    NORMALISATIONS,
    READ_UNITS,
    UNICODE,
    NoUnitsError,
    count_unread,
    normalize_text,
    to_units,
)
from espnet2_lamer.fileio.atomic import write_json
from espnet2_lamer.fileio.datadir import read_table
from espnet2_lamer.fileio.text import text_lines

RECORD = "set.json"
#: Most speech of a language without text, for language identification, in minutes.
SPEECH_MINUTES = {"train": 60.0, "dev": 10.0, "test": 10.0}
# Per cent of tokens without a reading that is worth a warning.
_MANY_UNREAD = 1.0
_BATCH = 64
#: The normalised transcript, for units that are made of characters.
PLAIN_TEXT = "text.char"
#: The transcript as it was written.
RAW_TEXT = "text.raw"
MADE_BY = "the formatting of evaluation sets"
_TABLES = "wav.scp utt2lang utt2num_samples text text.char text.raw utt2spk".split()


@dataclass(frozen=True)
class SetInfo:
    """What a set is, for ``set.json``.

    Attributes:
        benchmark: One of ``runs.BENCHMARKS``.
        unit: Of ``text``; ``text.char`` and ``text.raw`` are there in any case, unless
            the unit is ``lang``: speech for language identification alone.
        budget: ``10min``, ``1h`` or ``all``; dev and test sets: empty.
        seed: Drew the utterances, or None where a list did.
        few_shot: Whether ML-SUPERB reserves the language: five training utterances.
        normalisation: Of the text, one of
            :data:`~espnet2_lamer.evaluation.text_units.NORMALISATIONS`.
    """

    benchmark: str
    corpus: str
    lang: str
    split: str
    unit: str
    budget: str = ""
    seed: int | None = None
    few_shot: bool = False
    normalisation: str = UNICODE


def _write_record(directory: Path, info: SetInfo) -> dict[str, Any]:
    """Write ``set.json`` into a formatted set: its description and its size."""
    samples = read_table(directory / "utt2num_samples")
    record = {
        "name": directory.name,
        **asdict(info),
        "utterances": len(samples),
        "seconds": round(sum(map(int, samples.values())) / SAMPLE_RATE, 2),
    }
    write_json(directory / RECORD, record)
    return record


class EvaluationSets:
    """Sets below ``raw`` (``dump/raw``) that are written when all were collected."""

    def __init__(self, raw: Path, nj: int) -> None:
        self.raw = raw
        self.nj = nj
        self._ready: dict[str, tuple[FormattedSet, SetInfo]] = {}

    def collect(
        self,
        name: str,
        source: Path,
        info: SetInfo,
        limits: tuple[float, float],
        keep: Callable[[str], bool] | None = None,
        skipped: SkippedAudio | None = None,
    ) -> dict[str, float]:
        """Convert a prepared set's audio, turn its transcripts into units, count it.

        ``keep`` says whether an utterance is taken, ``skipped`` takes unusable audio,
        and ``limits`` are seconds. A transcript is normalised before it becomes units;
        it is kept as ``text.char``, normalised as the multilingual scripts do where
        these differ, and as ``text.raw``.

        Raises:
            RecipeError: A transcript has no text in this unit.
        """
        audio = self.raw / "audio"
        formatted = collect_set([source], audio, *limits, self.nj, keep, skipped)
        raw_text = {} if info.unit == LID_UNIT else formatted.tables["text"]
        pronunciations = formatted.tables["romanisation"]
        if info.unit == "phone":
            phones: dict[str, str] = {}
            for line in formatted.ctm:
                utt, _, _, _, phone = line.split()
                phones[utt] = f"{phones[utt]} {phone}" if utt in phones else phone
            pronunciations = phones or pronunciations
        normalize, plain = NORMALISATIONS[info.normalisation]
        converted = {}
        for utt, text in raw_text.items():
            try:
                read = pronunciations.get(utt)
                converted[utt] = to_units(text, info.unit, info.lang, read, normalize)
            except RecipeError as error:
                raise RecipeError(f"{source / 'text'}: {utt}: {error}") from None
        if info.unit in READ_UNITS:
            _warn_of_unread(name, info, converted)
        formatted.tables["text"] = converted
        formatted.tables[PLAIN_TEXT] = {utt: plain(t) for utt, t in raw_text.items()}
        formatted.tables[RAW_TEXT] = raw_text
        self._ready[name] = formatted, info
        return formatted.report[info.lang]

    def write(self) -> dict[str, dict[str, Any]]:
        """Write all sets and return their records by name."""
        records = {}
        for name, (formatted, info) in self._ready.items():
            formatted.write(self.raw / name)
            records[name] = _write_record(self.raw / name, info)
        return records


def _warn_of_unread(name: str, info: SetInfo, texts: Mapping[str, str]) -> None:
    total, unread = count_unread(texts.values())
    share = 100 * unread.total() / max(1, total)
    if share > _MANY_UNREAD:
        text = "%s: %d of %d tokens (%.1f %%) have no reading in %s and stay as they "
        text += "are written, e.g. %s: give readings (column romanisation), correct "
        text += "the transcripts, or choose --units %s=char"
        most = " ".join(token for token, _ in unread.most_common(5))
        figures = (unread.total(), total, share, info.unit, most, info.lang)
        logging.warning(text, name, *figures)


def has_units(
    text: str, unit: str, lang: str, normalize: Callable[[str], str] = normalize_text
) -> bool:
    """Whether anything is left of a transcript in its unit ("1984": not in pinyin)."""
    try:
        return bool(normalize(text) and to_units(text, unit, lang, None, normalize))
    except NoUnitsError:
        return False


def durations(directory: Path) -> dict[str, float]:
    """Return the seconds of every utterance of a formatted set."""
    samples = read_table(directory / "utt2num_samples", MADE_BY)
    return {utt: int(count) / SAMPLE_RATE for utt, count in samples.items()}


def write_subset(
    source: Path, target: Path, utts: Collection[str], info: SetInfo
) -> dict[str, Any]:
    """Write some of a formatted set's utterances as a set that shares its audio."""
    tables = {}
    for path in (source / name for name in _TABLES):
        if path.is_file():
            table = read_table(path)
            tables[path.name] = {u: v for u, v in table.items() if u in utts}
    FormattedSet(tables).write(target)
    return _write_record(target, info)


def write_part(
    train: Path, target: Path, minutes: float, seed: int, budget: str = ""
) -> dict[str, Any]:
    """Write utterances of a training set that last so long together, another budget."""
    record = json.loads((train / RECORD).read_text(encoding="utf-8"))
    values = {f.name: record[f.name] for f in fields(SetInfo)} | {"seed": seed}
    info = SetInfo(**values | ({"budget": budget} if budget else {}))
    drawn = seed_of(seed, "budget", info.lang)
    utts = sample_replay(durations(train), minutes / 60, drawn)
    return write_subset(train, target, utts, info)


def write_budget(train: Path, budget: str, seed: int) -> None:
    """Write ``<train>_<budget>``: utterances of a training set that last so long."""
    target = train.with_name(f"{train.name}_{budget}")
    write_part(train, target, BUDGETS[budget], seed, budget)


def prepare_asr_data(
    data_dir: str | Path,
    dump_dir: str | Path,
    langs: Sequence[str],
    units: Mapping[str, str],
    seed: int = 0,
    min_s: float = 0.1,
    max_s: float = 30.0,
    nj: int = 1,
    max_bad_audio: float = 1.0,
    speech_only: Collection[str] = (),
    text_norm: str = UNICODE,
) -> dict:
    """Write ``<dump_dir>/raw/asr_<lang>_{train,dev,test}`` and ``asr.json``.

    Reads ``<data_dir>/asr_<split>_<lang>``, or ``<split>_<lang>`` where the former does
    not exist. Utterances without text are left out and counted. ``text`` holds units,
    ``text.raw`` the transcript. Unusable audio is left out, warned about, counted
    (``bad_audio``) and listed in ``<dump_dir>/raw/skipped_audio_asr.tsv``; scores of a
    test set that lacks some are not exactly comparable with others'.

    Args:
        dump_dir: Root of the dump; converted audio is shared with pretraining.
        units: Language to unit of its text.
        seed: Of what is drawn from these sets; recorded.
        min_s: Shortest utterance in seconds. max_s: longest.
        max_bad_audio: Per cent of a set's files that may be unusable.
        speech_only: Languages whose sets have no text, for language identification: up
            to :data:`SPEECH_MINUTES` of their speech.
        text_norm: Of :data:`~espnet2_lamer.evaluation.text_units.NORMALISATIONS`.

    Returns:
        What ``asr.json`` holds: per language the unit and per split the counts.

    Raises:
        RecipeError: A set is missing or without text, a transcript that has no units,
            too much unusable audio. Nothing is written then.
    """
    sets = EvaluationSets(Path(dump_dir) / "raw", nj)
    report: dict = {"seed": seed, "max_minutes": None, "languages": {}}
    skipped = SkippedAudio(sets.raw / "skipped_audio_asr.tsv", max_bad_audio)
    for lang in langs:
        unit = LID_UNIT if lang in speech_only else units[lang]
        report["languages"][lang] = {"unit": unit}
        for split in SPLITS:
            source = source_dir(Path(data_dir), split, lang)
            if unit == LID_UNIT:
                wavs = read_wavs(source)
                keep, _ = draw_speech(
                    wavs,
                    SPEECH_MINUTES[split],
                    seed_of(seed, "speech", split, lang),
                    lambda _, seconds: min_s <= seconds <= max_s,
                    source / "wav.scp",
                    # Those that stage 2 left out, too.
                    SkippedAudio(sets.raw / "unused.tsv", 100.0),
                )
                no_text = len(wavs) - len(read_if_there(source / "text"))
            else:
                keep, no_text = _with_text(source, lang, unit, text_norm)
            budget = "all" if split == "train" else ""
            info = SetInfo(
                "own", "", lang, split, unit, budget, seed, normalisation=text_norm
            )
            counts = sets.collect(
                f"asr_{lang}_{split}",
                source,
                info,
                (min_s, max_s),
                keep.__contains__,
                skipped,
            )
            bad = skipped.counts[source.name]
            counts = {**counts, "no_text": no_text, "bad_audio": bad}
            report["languages"][lang][split] = counts
            size = f"{counts['utterances']} utterances, {counts['hours']:.3f} h"
            dropped = f"{no_text} without text, {counts['dropped_short']} too short"
            dropped += f", {counts['dropped_long']} too long"
            logging.info("%s %s: %s; dropped: %s", lang, split, size, dropped)
    sets.write()
    skipped.write()
    write_json(sets.raw / "asr.json", report)
    return report


def missing_text(places: Sequence[Path], lang: str) -> str:
    """Return the first of a language's splits whose speech has no text, or nothing.

    ``places`` hold prepared or formatted sets; what is in none of them is no reason.
    """
    for split in SPLITS:
        names = (f"asr_{split}_{lang}", f"{split}_{lang}", f"asr_{lang}_{split}")
        found = (place / name for place in places for name in names)
        folder = next((path for path in found if (path / "wav.scp").is_file()), None)
        if folder is None:
            continue
        text = folder / "text"
        lines = text_lines(text) if text.is_file() else ()
        # Without the id; one utterance is enough.
        if not any(normalize_text(" ".join(ln.split()[1:])) for _, ln in lines):
            return split
    return ""


def draw_speech(
    wavs: Mapping[str, str],
    minutes: float,
    seed: int,
    fits: Callable[[str, float], bool],
    wav_scp: Path,
    skipped: SkippedAudio | None = None,
) -> tuple[set[str], float]:
    """Draw utterances that last so long together, of all for which ``fits`` holds.

    ``fits`` takes id and seconds; for ``skipped`` see
    :func:`~espnet2_lamer.data.audio.header_seconds`. Returns them and their seconds.
    """
    ranked = sorted(wavs, key=str.encode)
    order = np.random.default_rng(seed).permutation(len(ranked))
    chosen: set[str] = set()
    total = 0.0
    # Reading a few headers at a time: CommonVoice's English list has a million files.
    for start in range(0, len(ranked), _BATCH):
        batch = {ranked[i]: wavs[ranked[i]] for i in order[start : start + _BATCH]}
        for utt, seconds in header_seconds(batch, wav_scp, 1, skipped).items():
            if total >= minutes * 60:
                return chosen, total
            if fits(utt, seconds):
                chosen.add(utt)
                total += seconds
    return chosen, total


def source_dir(data_dir: Path, split: str, lang: str) -> Path:
    """Return where a language's speech for heads is; raise RecipeError if nowhere."""
    for name in (f"asr_{split}_{lang}", f"{split}_{lang}"):
        if (data_dir / name / "wav.scp").is_file():
            return data_dir / name
    raise RecipeError(
        f"{data_dir / f'{split}_{lang}' / 'wav.scp'}: file not found, and no "
        f"asr_{split}_{lang} either: data preparation found no {split} utterances of "
        f"{lang}; mark some in the corpus, which divides itself where it says nothing"
    )


def _with_text(
    directory: Path, lang: str, unit: str, text_norm: str
) -> tuple[set[str], int]:
    wavs = read_wavs(directory)
    path = directory / "text"
    texts = read_if_there(path)
    spoken = read_if_there(directory / "romanisation")

    def usable(utt: str) -> bool:
        words = NORMALISATIONS[text_norm][0](texts.get(utt, "")).split()
        # Bare numbers are nothing in pinyin.
        silent = unit == "pinyin" and utt not in spoken
        return any(not (silent and word.isdigit()) for word in words)

    keep = {utt for utt in wavs if usable(utt)}
    if not keep:
        raise RecipeError(
            f"{path}: none of {len(wavs)} {lang} utterances has text, so speech "
            f"recognition cannot be trained and scored; add transcripts, or leave "
            f"{lang} out of the languages"
        )
    return keep, len(wavs) - len(keep)
