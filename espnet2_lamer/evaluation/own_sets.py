"""Evaluation sets of one's own data: per language speech recognition and LID."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from espnet2_lamer.data.audio import header_seconds
from espnet2_lamer.data.formatting import FormattedSet, collect_set
from espnet2_lamer.data.sampling import sample_replay
from espnet2_lamer.data.seeds import seed_of
from espnet2_lamer.data.sets import SPLITS
from espnet2_lamer.data.skipped import SkippedAudio
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation.benchmark_sets import SetInfo, convert_text, write_sets
from espnet2_lamer.evaluation.text_units import normalize_text
from espnet2_lamer.fileio.atomic import write_json
from espnet2_lamer.fileio.datadir import read_table


def prepare_asr_data(
    data_dir: str | Path,
    dump_dir: str | Path,
    langs: Sequence[str],
    units: Mapping[str, str],
    seed: int = 0,
    max_minutes: float | None = None,
    min_s: float = 0.1,
    max_s: float = 30.0,
    nj: int = 1,
    max_bad_audio: float = 1.0,
) -> dict:
    """Write ``<dump_dir>/raw/asr_<lang>_{train,dev,test}`` and ``asr.json``.

    Reads ``<data_dir>/asr_<split>_<lang>``, or ``<split>_<lang>`` where the former does
    not exist. Utterances without text are left out and counted. ``text`` holds units,
    ``text.raw`` the transcript.

    Unusable audio is left out, warned about, counted (``bad_audio``) and listed in
    ``<dump_dir>/raw/skipped_audio_asr.tsv``; scores of a test set that lacks some are
    not exactly comparable with others'.

    Args:
        data_dir: Prepared data.
        dump_dir: Root of the dump; converted audio is shared with pretraining.
        langs: ISO 639-3 codes.
        units: Language to unit of its text.
        seed: Draws the training set where ``max_minutes`` limits it.
        max_minutes: Most training speech per language (ML-SUPERB: 10 or 60).
        min_s: Shortest utterance in seconds. max_s: longest.
        nj: Processes.
        max_bad_audio: Per cent of a set's files that may be unusable.

    Returns:
        What ``asr.json`` holds: per language the unit and per split the counts.

    Raises:
        RecipeError: A set is missing or without text, no unit for a language, a
            transcript that has no units, too much unusable audio.
    """
    data_dir, raw = Path(data_dir), Path(dump_dir) / "raw"
    ready: dict[str, tuple[FormattedSet, SetInfo]] = {}
    report: dict = {"seed": seed, "max_minutes": max_minutes, "languages": {}}
    skipped = SkippedAudio(raw / "skipped_audio_asr.tsv", max_bad_audio)
    for lang in langs:
        if lang not in units:
            raise RecipeError(
                f"units: none for language {lang}; found {', '.join(sorted(units))}"
            )
        report["languages"][lang] = {"unit": units[lang]}
        for split in SPLITS:
            directory = _source_dir(data_dir, split, lang)
            keep, no_text = _with_text(directory, lang)
            if split == "train" and max_minutes is not None:
                chosen_by = seed_of(seed, "asr", lang)
                keep = _limit(directory, keep, max_minutes, chosen_by, skipped)
            formatted = collect_set(
                [directory], raw / "audio", min_s, max_s, nj, keep.__contains__, skipped
            )
            convert_text(formatted, units[lang], lang, directory)
            budget = "all" if split == "train" else ""
            info = SetInfo("own", "", lang, split, units[lang], budget, seed)
            ready[f"asr_{lang}_{split}"] = formatted, info
            bad = skipped.counts[directory.name]
            counts = {**formatted.report[lang], "no_text": no_text, "bad_audio": bad}
            report["languages"][lang][split] = counts
            logging.info(
                "%s %s (%s): %d utterances, %.3f h; dropped: %d without text, %d too "
                "short, %d too long",
                *(lang, split, units[lang], counts["utterances"], counts["hours"]),
                *(no_text, counts["dropped_short"], counts["dropped_long"]),
            )
    # All languages are checked before anything is written.
    write_sets(raw, ready)
    skipped.write()
    write_json(raw / "asr.json", report)
    return report


def _source_dir(data_dir: Path, split: str, lang: str) -> Path:
    for name in (f"asr_{split}_{lang}", f"{split}_{lang}"):
        if (data_dir / name / "wav.scp").is_file():
            return data_dir / name
    raise RecipeError(
        f"{data_dir / f'{split}_{lang}' / 'wav.scp'}: file not found, and no "
        f"asr_{split}_{lang} either; language {lang} needs {split} utterances with "
        "text, which data preparation makes"
    )


def _with_text(directory: Path, lang: str) -> tuple[set[str], int]:
    wavs = read_table(directory / "wav.scp")
    path = directory / "text"
    texts = read_table(path) if path.is_file() else {}
    keep = {utt for utt in wavs if normalize_text(texts.get(utt, ""))}
    if not keep:
        raise RecipeError(
            f"{path}: none of {len(wavs)} {lang} utterances has text, so speech "
            f"recognition cannot be trained and scored; add transcripts, or leave "
            f"{lang} out of the languages"
        )
    return keep, len(wavs) - len(keep)


def _limit(
    directory: Path,
    utts: set[str],
    minutes: float,
    seed: int,
    skipped: SkippedAudio,
) -> set[str]:
    wav_scp = directory / "wav.scp"
    wavs = {u: path for u, path in read_table(wav_scp).items() if u in utts}
    seconds = header_seconds(wavs, wav_scp, skipped=skipped)
    return sample_replay(seconds, minutes / 60, seed)
