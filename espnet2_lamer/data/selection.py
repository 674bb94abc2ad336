"""Selection: new languages whole, old ones as a replay sample."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path

from espnet2_lamer.constants import RECEPTIVE_FIELD, SAMPLE_RATE
from espnet2_lamer.data import overlap, sampling
from espnet2_lamer.data.audio import SkippedAudio, header_seconds
from espnet2_lamer.data.formatting import FormattedSet, check_unique, collect_set
from espnet2_lamer.data.hours import PAPER_HOURS, log_hours, lost_hours
from espnet2_lamer.data.segmented_rows import log_recordings, read_report
from espnet2_lamer.data.segments import read_wavs
from espnet2_lamer.data.sets import Utterance, read_if_there
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import write_json


@dataclass(frozen=True)
class Selection:
    """What pretraining takes."""

    new_langs: list[str]  # taken whole
    replay_langs: list[str]  # of which a sample is taken
    replay_hours: float  # per replay language; nothing is repeated where it has less
    # Limits of an utterance in seconds; both are kept, as in mHuBERT-147.
    min_s: float = 2.0
    max_s: float = 30.0
    replay_sampling: str = "uniform"  # one of sampling.METHODS
    # Exponent of "temperature", which shares the hours of all replay languages.
    replay_alpha: float = 0.7
    replay_clusters: str | Path = ""  # units per utterance, for "cluster"
    dev_hours: float = 0.0  # most validation speech per language; 0: all
    max_bad_audio: float = 1.0  # per cent of a set's files that may be unusable
    # Take out clips that are in an evaluation set (a departure from the paper, which
    # says nothing about them); they are listed in any case.
    drop_overlap: bool = True
    seed: int = 0

    @property
    def langs(self) -> list[str]:
        """All of them."""
        return [*self.new_langs, *self.replay_langs]

    def usable(self, seconds: Mapping[str, float]) -> dict[str, float]:
        """Return the utterances whose length is within the limits, and a frame."""
        low = max(self.min_s, RECEPTIVE_FIELD / SAMPLE_RATE)
        return {u: s for u, s in seconds.items() if low <= s <= self.max_s}


def prepare_ssl_data(
    data_dir: str | Path,
    dump_dir: str | Path,
    selection: Selection,
    nj: int = 1,
    compare_hours: bool = False,
    lists: Mapping[str, Iterable[Utterance]] | None = None,
) -> dict:
    """Write the data of continual pretraining.

    Reads ``<data_dir>/train_<lang>`` and ``dev_<lang>``, and the evaluation sets for
    overlap; writes into ``<dump_dir>/raw``, each by rename, ``ssl_train``, ``ssl_dev``,
    ``hours.json``, ``overlap.tsv`` and ``skipped_audio.tsv``. Converted audio is in
    ``<dump_dir>/raw/audio`` and is reused the next time.

    Clips whose headers cannot be read, and those found in an evaluation set by id or
    transcript, are out before replay is drawn. What only decoding and fingerprints show
    afterwards is taken out of the sample and not replaced.

    ``compare_hours`` warns where the hours are not the paper's; ``lists`` are further
    evaluation sets, see ``overlap.read_evaluation``. Returns what ``hours.json`` holds.

    Raises:
        RecipeError: A language without data, nothing left of it, an utterance id in two
            sets, too much unusable audio, a language both new and replayed, an unknown
            way of sampling.
    """
    data_dir, raw = Path(data_dir), Path(dump_dir) / "raw"
    overlap_tsv = raw / "overlap.tsv"
    _check(selection)
    train_dirs, dev_dirs = (
        {lang: _language_dir(data_dir, split, lang) for lang in selection.langs}
        for split in ("train", "dev")
    )
    check_unique([*train_dirs.values(), *dev_dirs.values()])
    skipped = SkippedAudio(raw / "skipped_audio.tsv", selection.max_bad_audio)

    clips = []
    for lang, folder in train_dirs.items():
        wavs, texts = read_wavs(folder), read_if_there(folder / "text")
        seconds = header_seconds(wavs, folder / "wav.scp", nj, skipped)
        clips += [
            overlap.Clip(utt, wavs[utt], lang, length, texts.get(utt, ""))
            for utt, length in seconds.items()
        ]
    evaluation = overlap.read_evaluation(data_dir, selection.langs, nj, lists)
    overlaps = overlap.match_names(clips, evaluation)
    named = {found.clip.utt_id for found in overlaps}
    unnamed = [clip for clip in clips if clip.utt_id not in named]
    left = unnamed if selection.drop_overlap else clips
    _check_left(Counter(c.lang for c in left), selection, overlaps, overlap_tsv)
    keep, languages = _choose(left, train_dirs, selection)

    train = _format(train_dirs, raw / "audio", selection, nj, keep, skipped, True)
    keep_dev = _choose_dev(dev_dirs, selection, nj, skipped)
    dev = _format(dev_dirs, raw / "audio", selection, nj, keep_dev, skipped)
    drawn = [clip for clip in unnamed if clip.utt_id in train.fingerprints]
    heard = overlap.match_audio(drawn, train.fingerprints, evaluation, nj)
    overlaps += heard
    in_evaluation: set[str] = set()
    if selection.drop_overlap:
        in_evaluation = {found.clip.utt_id for found in overlaps}
        train.remove({found.clip.utt_id for found in heard})
    counts = Counter(train.tables["utt2lang"].values())
    _check_left(counts, selection, overlaps, overlap_tsv)

    lost = lost_hours(
        clips,
        train.tables["wav.scp"],
        keep,
        in_evaluation,
        {lang: skipped.reasons(folder.name) for lang, folder in train_dirs.items()},
        (selection.min_s, selection.max_s),
    )
    sources = train.hours_by_source()
    counts = overlap.overlap_counts(overlaps)
    for lang, entry in languages.items():
        # Utterances of other lengths were left out of a replay before the draw.
        for name in ("dropped_short", "dropped_long"):
            train.report[lang][name] += entry.pop(name, 0)
        entry.update(
            train.report[lang],
            **lost[lang],
            paper_hours=PAPER_HOURS.get(lang),
            overlap=counts.get(lang, {}),
            skipped_audio=skipped.counts[train_dirs[lang].name],
            sources=sources[lang],
            dev=dev.report[lang],
        )
    hours: dict = {
        "replay_hours_wanted": selection.replay_hours,
        "replay_sampling": selection.replay_sampling,
        "dev_hours_wanted": selection.dev_hours,
    }
    for name in ("drop_overlap", "seed", "min_s", "max_s"):
        hours[name] = getattr(selection, name)
    hours["languages"] = languages
    recordings = read_report(data_dir)
    for lang, entry in recordings.get("languages", {}).items():
        if lang in languages:
            languages[lang]["recordings"] = entry
    train.write(raw / "ssl_train")
    dev.write(raw / "ssl_dev")
    overlap.write_overlaps(overlap_tsv, overlaps)
    skipped.write()
    write_json(raw / "hours.json", hours)
    train.log("ssl_train")
    dev.log("ssl_dev")
    _log_overlap(counts, overlap_tsv, selection.drop_overlap)
    if recordings:
        logging.info("recordings of all sets before they were cut:")
        log_recordings(recordings, data_dir)
    log_hours(hours, skipped.report, compare_hours)
    return hours


def _choose(
    clips: list[overlap.Clip], folders: dict[str, Path], selection: Selection
) -> tuple[set[str], dict[str, dict]]:
    """Return the utterances to format, and an entry of the report per language."""
    keep: set[str] = set()
    languages, usable = {}, {}
    for lang in selection.langs:
        left = {clip.utt_id: clip.seconds for clip in clips if clip.lang == lang}
        usable[lang] = selection.usable(left)
        languages[lang] = {
            "role": "new",
            "available_hours": round(_hours(usable[lang]), 4),
            "whole_language": True,
        }
        if lang in selection.new_langs:
            # All of them, so that those of other lengths are checked and counted.
            keep.update(left)
            continue
        short = sum(s < selection.min_s for s in left.values())
        long = sum(s > selection.max_s for s in left.values())
        languages[lang].update(role="replay", dropped_short=short, dropped_long=long)
    wanted = dict.fromkeys(selection.replay_langs, selection.replay_hours)
    if selection.replay_sampling == "temperature":
        there = {lang: _hours(usable[lang]) for lang in selection.replay_langs}
        total = selection.replay_hours * len(there)
        wanted = sampling.share_hours(there, total, selection.replay_alpha)
    for lang in selection.replay_langs:
        by_speaker = selection.replay_sampling == "speaker"
        keep |= sampling.draw_replay(
            usable[lang],
            wanted[lang],
            sampling.seed_of(selection.seed, "replay", lang),
            selection.replay_sampling,
            read_if_there(folders[lang] / "utt2spk") if by_speaker else {},
            selection.replay_clusters,
            lang,
        )
        languages[lang].update(
            wanted_hours=round(wanted[lang], 4),
            whole_language=_hours(usable[lang]) <= wanted[lang],
        )
    return keep, languages


def _hours(seconds: Mapping[str, float]) -> float:
    return sum(seconds.values()) / 3600


def _choose_dev(
    folders: dict[str, Path], selection: Selection, nj: int, skipped: SkippedAudio
) -> set[str] | None:
    """Return the utterances of the validation set; None: all."""
    if not selection.dev_hours:
        return None
    keep: set[str] = set()
    for lang, folder in folders.items():
        wav_scp = folder / "wav.scp"
        seconds = header_seconds(read_wavs(folder), wav_scp, nj, skipped)
        usable, most = selection.usable(seconds), selection.dev_hours
        if _hours(usable) <= most:
            # All of them, so that those of other lengths are counted.
            keep.update(seconds)
            continue
        seed = sampling.seed_of(selection.seed, "dev", lang)
        keep |= sampling.sample_replay(usable, most, seed)
        text = "%s: %g of %.3f h of the dev set drawn for validation (--dev_hours)"
        logging.info(text, lang, most, _hours(usable))
    return keep


def _check(selection: Selection) -> None:
    langs = selection.langs
    twice = sorted({lang for lang in langs if langs.count(lang) > 1})
    hours, method = selection.replay_hours, selection.replay_sampling
    methods = " ".join(sampling.METHODS)
    problems = {
        "--new_langs: empty; name at least one language to learn": (
            not selection.new_langs
        ),
        f"--new_langs/--replay_langs: {' '.join(twice)} named twice; a language is "
        "either new or replayed": twice,
        f"--replay_hours: found {hours:g}, expected more than 0; leave --replay_langs "
        "empty to train without replay": selection.replay_langs and not hours > 0,
        f"--replay_sampling: found {method!r}, expected one of {methods}": (
            method not in sampling.METHODS
        ),
    }
    for name, most, expected in (
        ("replay_alpha", 1, "0 to 1"),
        ("max_bad_audio", 100, "0 to 100"),
        ("dev_hours", inf, "0 (all) or more"),
    ):
        found = getattr(selection, name)
        text = f"--{name}: found {found:g}, expected {expected}"
        problems[text] = not 0 <= found <= most
    for message, wrong in problems.items():
        if wrong:
            raise RecipeError(message)


def _language_dir(data_dir: Path, split: str, lang: str) -> Path:
    wav_scp = data_dir / f"{split}_{lang}" / "wav.scp"
    found = wav_scp.is_file()
    if not read_if_there(wav_scp):
        raise RecipeError(
            f"{wav_scp}: {'' if found else 'file not found, so '}language {lang} has "
            f"no {split} utterances; prepare a corpus that has them, or take the "
            "language out of --new_langs/--replay_langs"
        )
    return wav_scp.parent


def _format(
    directories: dict[str, Path],
    audio_dir: Path,
    selection: Selection,
    nj: int,
    keep: set[str] | None,
    skipped: SkippedAudio,
    fingerprints: bool = False,
) -> FormattedSet:
    limits, folders = (selection.min_s, selection.max_s), list(directories.values())
    wanted = None if keep is None else keep.__contains__
    options = nj, wanted, skipped, fingerprints
    formatted = collect_set(folders, audio_dir, *limits, *options)
    for lang, directory in directories.items():
        counts = formatted.report.get(lang, {})
        if not counts.get("utterances"):
            raise RecipeError(
                f"{directory / 'wav.scp'}: language {lang} has no utterance between "
                f"{selection.min_s:g} and {selection.max_s:g} s "
                f"({counts.get('dropped_short', 0)} shorter, "
                f"{counts.get('dropped_long', 0)} longer), or utt2lang there names "
                "other languages; join or cut utterances (--segment vad cuts a "
                "manifest's recordings at pauses), or change the limits"
            )
    return formatted


def _check_left(
    left: Counter[str],
    selection: Selection,
    overlaps: list[overlap.Overlap],
    report: Path,
) -> None:
    for lang in selection.langs if selection.drop_overlap else ():
        if not left[lang]:
            overlap.write_overlaps(report, overlaps)
            raise RecipeError(
                f"{report}: every usable training utterance of {lang} is in an "
                "evaluation set, too; give it other training data, or keep them with "
                "--drop_overlap false"
            )


def _log_overlap(counts, report: Path, dropped: bool) -> None:
    if not counts:
        logging.info("no pretraining clip is in an evaluation set")
    outcome = "left out" if dropped else "stay (--drop_overlap false)"
    for lang, found in counts.items():
        how = ", ".join(f"{count} by {by}" for by, count in found.items() if count)
        text = "%s: %d pretraining clips are in an evaluation set (%s) and %s, see %s"
        logging.warning(text, lang, sum(found.values()), how, outcome, report)
