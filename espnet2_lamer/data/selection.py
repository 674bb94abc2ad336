"""Stage 2's selection: new languages whole, old ones as a replay sample."""

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from espnet2_lamer.data.audio import header_seconds
from espnet2_lamer.data.formatting import (
    FormattedSet,
    check_unique,
    collect_set,
    log_report,
)
from espnet2_lamer.data.hours import PAPER_HOURS, hours_by_source, log_hours
from espnet2_lamer.data.overlap import (
    Clip,
    Overlap,
    match_audio,
    match_names,
    overlap_counts,
    read_evaluation,
    write_overlaps,
)
from espnet2_lamer.data.sampling import (
    METHODS,
    draw_replay,
    sample_replay,
    seed_of,
    share_hours,
)
from espnet2_lamer.data.sets import Utterance
from espnet2_lamer.data.skipped import SkippedAudio
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import write_json
from espnet2_lamer.fileio.datadir import read_table


@dataclass(frozen=True)
class Selection:
    """What pretraining takes.

    Attributes:
        new_langs: Languages taken whole.
        replay_langs: Languages of which a sample is taken.
        replay_hours: Hours per replay language; nothing is repeated where it has less.
        min_s: Shortest utterance in seconds.
        max_s: Longest; both limits are kept, as in mHuBERT-147.
        replay_sampling: One of ``data.sampling.METHODS``.
        replay_alpha: Exponent of ``temperature``, which shares ``replay_hours`` times
            the number of replay languages.
        replay_clusters: Units per utterance, for ``cluster``.
        dev_hours: Most validation speech per language; 0: all of the dev set.
        max_bad_audio: Per cent of a set's files that may be unusable.
        drop_overlap: Take out clips that are in an evaluation set (a departure from the
            paper, which says nothing about them); they are listed in any case.
        seed: Draws the replay and the validation set.
    """

    new_langs: list[str]
    replay_langs: list[str]
    replay_hours: float
    min_s: float = 2.0
    max_s: float = 30.0
    replay_sampling: str = "uniform"
    replay_alpha: float = 0.7
    replay_clusters: str | Path = ""
    dev_hours: float = 0.0
    max_bad_audio: float = 1.0
    drop_overlap: bool = True
    seed: int = 0

    @property
    def langs(self) -> list[str]:
        """All of them."""
        return [*self.new_langs, *self.replay_langs]


def prepare_ssl_data(
    data_dir: str | Path,
    dump_dir: str | Path,
    selection: Selection,
    nj: int = 1,
    compare_hours: bool = False,
    lists: Mapping[str, Iterable[Utterance]] | None = None,
) -> dict:
    """Write the data of continual pretraining (stage 2).

    Reads ``<data_dir>/train_<lang>`` and ``dev_<lang>``, and the evaluation sets for
    overlap; writes into ``<dump_dir>/raw``, each by rename, ``ssl_train``, ``ssl_dev``,
    ``hours.json``, ``overlap.tsv`` and ``skipped_audio.tsv``. Converted audio is in
    ``<dump_dir>/raw/audio`` and is reused when the stage runs again.

    Clips whose headers cannot be read, and those found in an evaluation set by id or
    transcript, are out before replay is drawn. What only decoding and fingerprints show
    afterwards is taken out of the sample and not replaced.

    Args:
        data_dir: Output of stage 1.
        dump_dir: Root of the dump.
        selection: What to take.
        nj: Processes.
        compare_hours: Warn where the hours are not the paper's.
        lists: Further evaluation sets, see ``data.overlap.read_evaluation``.

    Returns:
        What ``hours.json`` holds.

    Raises:
        RecipeError: A language without data, nothing left of it, an utterance id in two
            sets, too much unusable audio, a language both new and replayed, an unknown
            way of sampling.
    """
    data_dir, raw = Path(data_dir), Path(dump_dir) / "raw"
    _check(selection)
    sets = {
        split: {lang: _language_dir(data_dir, split, lang) for lang in selection.langs}
        for split in ("train", "dev")
    }
    check_unique([d for split in sets.values() for d in split.values()])
    skipped = SkippedAudio(raw / "skipped_audio.tsv", selection.max_bad_audio)

    clips = {
        lang: _read_clips(folder, lang, nj, skipped)
        for lang, folder in sets["train"].items()
    }
    evaluation = read_evaluation(data_dir, selection.langs, nj, lists)
    overlaps = match_names([c for cs in clips.values() for c in cs], evaluation)
    named = {overlap.clip.utt_id for overlap in overlaps}
    if selection.drop_overlap:
        left = {
            lang: sum(clip.utt_id not in named for clip in own)
            for lang, own in clips.items()
        }
        _check_left(left, overlaps, raw / "overlap.tsv")
    keep, languages = _choose(clips, sets["train"], selection, named)

    train = _format(sets["train"], raw / "audio", selection, nj, keep, skipped, True)
    keep_dev = _choose_dev(sets["dev"], selection, nj, skipped)
    dev = _format(sets["dev"], raw / "audio", selection, nj, keep_dev, skipped)
    unnamed = [
        clip
        for own in clips.values()
        for clip in own
        if clip.utt_id in train.fingerprints and clip.utt_id not in named
    ]
    heard = match_audio(unnamed, train.fingerprints, evaluation, nj)
    overlaps += heard
    if selection.drop_overlap:
        train.remove({overlap.clip.utt_id for overlap in heard})
        left = {lang: counts["utterances"] for lang, counts in train.report.items()}
        _check_left(left, overlaps, raw / "overlap.tsv")

    sources = hours_by_source(train)
    counts = overlap_counts(overlaps)
    for lang, entry in languages.items():
        # Utterances of other lengths were left out of a replay before the draw.
        for name in ("dropped_short", "dropped_long"):
            train.report[lang][name] += entry.pop(name, 0)
        entry.update(
            train.report[lang],
            paper_hours=PAPER_HOURS.get(lang),
            overlap=counts.get(lang, {}),
            skipped_audio=skipped.counts[sets["train"][lang].name],
            sources=sources[lang],
            dev=dev.report[lang],
        )
    hours = {
        "replay_hours_wanted": selection.replay_hours,
        "replay_sampling": selection.replay_sampling,
        "dev_hours_wanted": selection.dev_hours,
        "drop_overlap": selection.drop_overlap,
        "seed": selection.seed,
        "min_s": selection.min_s,
        "max_s": selection.max_s,
        "languages": languages,
    }
    train.write(raw / "ssl_train")
    dev.write(raw / "ssl_dev")
    write_overlaps(raw / "overlap.tsv", overlaps)
    skipped.write()
    write_json(raw / "hours.json", hours)
    log_report("ssl_train", train.report)
    log_report("ssl_dev", dev.report)
    _log_overlap(counts, raw / "overlap.tsv", selection.drop_overlap)
    log_hours(hours, compare_hours)
    return hours


def _read_clips(folder: Path, lang: str, nj: int, skipped: SkippedAudio) -> list[Clip]:
    wav_scp, text = folder / "wav.scp", folder / "text"
    wavs = read_table(wav_scp)
    texts = read_table(text) if text.is_file() else {}
    return [
        Clip(utt, wavs[utt], lang, seconds, texts.get(utt, ""))
        for utt, seconds in header_seconds(wavs, wav_scp, nj, skipped).items()
    ]


def _choose(
    clips: dict[str, list[Clip]],
    folders: dict[str, Path],
    selection: Selection,
    named: Collection[str],
) -> tuple[set[str], dict[str, dict]]:
    """Return the utterances to format, and an entry of the report per language."""
    if not selection.drop_overlap:
        named = ()
    keep: set[str] = set()
    languages, usable = {}, {}
    for lang in selection.langs:
        left = {c.utt_id: c.seconds for c in clips[lang] if c.utt_id not in named}
        usable[lang] = {
            utt: s for utt, s in left.items() if selection.min_s <= s <= selection.max_s
        }
        languages[lang] = {
            "role": "new",
            "available_hours": round(sum(usable[lang].values()) / 3600, 4),
            "whole_language": True,
        }
        if lang in selection.new_langs:
            # All of them, so that those of other lengths are checked and counted.
            keep.update(left)
            continue
        short = sum(s < selection.min_s for s in left.values())
        long = sum(s > selection.max_s for s in left.values())
        languages[lang].update(role="replay", dropped_short=short, dropped_long=long)
    wanted = _wanted_hours(usable, selection)
    for lang in selection.replay_langs:
        speakers = {}
        if selection.replay_sampling == "speaker":
            utt2spk = folders[lang] / "utt2spk"
            speakers = read_table(utt2spk) if utt2spk.is_file() else {}
        keep |= draw_replay(
            usable[lang],
            wanted[lang],
            seed_of(selection.seed, "replay", lang),
            selection.replay_sampling,
            speakers,
            selection.replay_clusters,
            lang,
        )
        available = sum(usable[lang].values()) / 3600
        languages[lang].update(
            wanted_hours=round(wanted[lang], 4),
            whole_language=available <= wanted[lang],
        )
    return keep, languages


def _choose_dev(
    folders: dict[str, Path], selection: Selection, nj: int, skipped: SkippedAudio
) -> set[str] | None:
    """Return the utterances of the validation set; None: all."""
    if not selection.dev_hours:
        return None
    keep: set[str] = set()
    for lang, folder in folders.items():
        wav_scp = folder / "wav.scp"
        seconds = header_seconds(read_table(wav_scp), wav_scp, nj, skipped)
        usable = {
            utt: s
            for utt, s in seconds.items()
            if selection.min_s <= s <= selection.max_s
        }
        hours = sum(usable.values()) / 3600
        if hours <= selection.dev_hours:
            # All of them, so that those of other lengths are counted.
            keep.update(seconds)
            continue
        seed = seed_of(selection.seed, "dev", lang)
        keep |= sample_replay(usable, selection.dev_hours, seed)
        logging.info(
            "%s: %g of %.3f h of the dev set drawn for validation (--dev_hours)",
            *(lang, selection.dev_hours, hours),
        )
    return keep


def _wanted_hours(
    usable: dict[str, dict[str, float]], selection: Selection
) -> dict[str, float]:
    if selection.replay_sampling != "temperature":
        return dict.fromkeys(selection.replay_langs, selection.replay_hours)
    return share_hours(
        {lang: sum(usable[lang].values()) / 3600 for lang in selection.replay_langs},
        selection.replay_hours * len(selection.replay_langs),
        selection.replay_alpha,
    )


def _check(selection: Selection) -> None:
    langs = selection.langs
    if not selection.new_langs:
        raise RecipeError("--new_langs: empty; name at least one language to learn")
    twice = sorted({lang for lang in langs if langs.count(lang) > 1})
    if twice:
        raise RecipeError(
            f"--new_langs/--replay_langs: {' '.join(twice)} named twice; a language is "
            "either new or replayed"
        )
    if selection.replay_langs and not selection.replay_hours > 0:
        raise RecipeError(
            f"--replay_hours: found {selection.replay_hours:g}, expected more than 0; "
            "leave --replay_langs empty to train without replay"
        )
    if selection.replay_sampling not in METHODS:
        raise RecipeError(
            f"--replay_sampling: found {selection.replay_sampling!r}, expected one of "
            f"{' '.join(METHODS)}"
        )
    for name, most in (("replay_alpha", 1), ("max_bad_audio", 100)):
        value = getattr(selection, name)
        if not 0 <= value <= most:
            raise RecipeError(f"--{name}: found {value:g}, expected 0 to {most}")
    if not selection.dev_hours >= 0:
        raise RecipeError(
            f"--dev_hours: found {selection.dev_hours:g}, expected 0 (all) or more"
        )


def _language_dir(data_dir: Path, split: str, lang: str) -> Path:
    directory = data_dir / f"{split}_{lang}"
    wav_scp = directory / "wav.scp"
    if not wav_scp.is_file():
        raise RecipeError(
            f"{wav_scp}: file not found, so language {lang} has no {split} utterances; "
            "run stage 1, or take the language out of --new_langs/--replay_langs"
        )
    if not read_table(wav_scp):
        raise RecipeError(
            f"{wav_scp}: language {lang} has no {split} utterances; add data, or take "
            "the language out of --new_langs/--replay_langs"
        )
    return directory


def _format(
    directories: dict[str, Path],
    audio_dir: Path,
    selection: Selection,
    nj: int,
    keep: set[str] | None,
    skipped: SkippedAudio,
    fingerprints: bool = False,
) -> FormattedSet:
    formatted = collect_set(
        list(directories.values()),
        audio_dir,
        selection.min_s,
        selection.max_s,
        nj,
        None if keep is None else keep.__contains__,
        skipped,
        fingerprints,
    )
    limits = f"{selection.min_s:g} and {selection.max_s:g} s"
    for lang, directory in directories.items():
        counts = formatted.report.get(lang)
        if counts is None:
            raise RecipeError(
                f"{directory}: no {lang} utterance is left between {limits}, or "
                "utt2lang there names other languages"
            )
        if not counts["utterances"]:
            raise RecipeError(
                f"{directory / 'wav.scp'}: language {lang} has no utterance between "
                f"{limits} ({counts['dropped_short']} shorter, "
                f"{counts['dropped_long']} longer); join or cut utterances, or change "
                "the limits"
            )
    return formatted


def _check_left(left: dict[str, int], overlaps: list[Overlap], report: Path) -> None:
    for lang, utterances in left.items():
        if not utterances:
            write_overlaps(report, overlaps)
            raise RecipeError(
                f"{report}: every usable training utterance of {lang} is in an "
                "evaluation set, too; give it other training data, or keep them with "
                "--drop_overlap false"
            )


def _log_overlap(counts, report: Path, dropped: bool) -> None:
    if not counts:
        logging.info("no pretraining clip is in an evaluation set")
    for lang, found in counts.items():
        logging.warning(
            "%s: %d pretraining clips are in an evaluation set (%s) and %s, see %s",
            lang,
            sum(found.values()),
            ", ".join(f"{count} by {by}" for by, count in found.items() if count),
            "left out" if dropped else "stay (--drop_overlap false)",
            report,
        )
