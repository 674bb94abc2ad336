"""Stage 2's selection: new languages whole, old ones as a random replay sample."""

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from espnet2_lamer.data.audio import header_seconds
from espnet2_lamer.data.formatting import check_unique, collect_set, log_report
from espnet2_lamer.data.seeds import seed_of
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import write_json
from espnet2_lamer.fileio.datadir import read_table

#: Hours of the paper's continual pretraining (Lamer-SSL, section 4.1).
PAPER_HOURS = {"yue": 105.072, "cmn": 341.867, "eng": 100.555}


def sample_replay(durations: Mapping[str, float], hours: float, seed: int) -> set[str]:
    """Draw utterances uniformly at random until they last ``hours``.

    No utterance is drawn twice; when all together are shorter, all are returned.

    Args:
        durations: Utterance id to seconds.
        hours: Wanted amount.
        seed: The same seed, ids and durations give the same sample.
    """
    utts = sorted(durations, key=str.encode)
    chosen: set[str] = set()
    total = 0.0
    for index in np.random.default_rng(seed).permutation(len(utts)):
        if total >= hours * 3600:
            break
        chosen.add(utts[index])
        total += durations[utts[index]]
    return chosen


def prepare_ssl_data(
    data_dir: str | Path,
    dump_dir: str | Path,
    new_langs: list[str],
    replay_langs: list[str],
    replay_hours: float,
    min_s: float = 2.0,
    max_s: float = 30.0,
    seed: int = 0,
    nj: int = 1,
) -> dict:
    """Write the data of continual pretraining (stage 2).

    Reads ``<data_dir>/train_<lang>`` and ``dev_<lang>``; writes, each by rename,
    ``<dump_dir>/raw/ssl_train``, ``ssl_dev`` and ``hours.json``. Converted audio is in
    ``<dump_dir>/raw/audio`` and is reused when the stage runs again.

    Args:
        data_dir: Output of stage 1.
        dump_dir: Root of the dump.
        new_langs: Languages taken whole.
        replay_langs: Languages of which ``replay_hours`` are sampled at random.
        replay_hours: Hours per replay language; the whole language where it has less.
        min_s: Shortest utterance in seconds. max_s: longest.
        seed: Draws the replay.
        nj: Processes.

    Returns:
        What ``hours.json`` holds.

    Raises:
        RecipeError: A language without data, nothing left after the duration filter, an
            utterance id in two sets, unusable audio, a language both new and replayed.
    """
    data_dir, raw = Path(data_dir), Path(dump_dir) / "raw"
    langs = [*new_langs, *replay_langs]
    _check_languages(new_langs, replay_langs, replay_hours)
    sets = {
        split: {lang: _language_dir(data_dir, split, lang) for lang in langs}
        for split in ("train", "dev")
    }
    check_unique([d for split in sets.values() for d in split.values()])

    keep: set[str] = set()
    languages = {lang: {"role": "new"} for lang in new_langs}
    for lang in replay_langs:
        wav_scp = sets["train"][lang] / "wav.scp"
        durations = header_seconds(read_table(wav_scp), wav_scp, nj)
        chosen, languages[lang] = _choose_replay(
            durations, min_s, max_s, replay_hours, seed_of(seed, "replay", lang)
        )
        keep |= chosen
    for lang in new_langs:
        keep.update(read_table(sets["train"][lang] / "wav.scp"))
    options = {"min_s": min_s, "max_s": max_s, "nj": nj}
    train = _format(sets["train"], raw / "audio", options, keep)
    dev = _format(sets["dev"], raw / "audio", options, None)

    for lang, entry in languages.items():
        counts = train.report[lang]
        if entry["role"] == "new":
            entry.update(available_hours=counts["hours"], whole_language=True)
        # A replay's utterances of other lengths were left out before the draw.
        for name in ("dropped_short", "dropped_long"):
            counts[name] += entry.pop(name, 0)
        entry.update(counts, paper_hours=PAPER_HOURS.get(lang), dev=dev.report[lang])
    hours = {
        "replay_hours_wanted": replay_hours,
        "seed": seed,
        "min_s": min_s,
        "max_s": max_s,
        "languages": languages,
    }
    train.write(raw / "ssl_train")
    dev.write(raw / "ssl_dev")
    write_json(raw / "hours.json", hours)
    log_report("ssl_train", train.report)
    log_report("ssl_dev", dev.report)
    _log_hours(hours)
    return hours


def _choose_replay(
    durations: dict[str, float], min_s: float, max_s: float, hours: float, seed: int
) -> tuple[set[str], dict]:
    usable = {utt: s for utt, s in durations.items() if min_s <= s <= max_s}
    available = sum(usable.values()) / 3600
    entry = {
        "role": "replay",
        "available_hours": round(available, 4),
        "whole_language": available <= hours,
        "dropped_short": sum(s < min_s for s in durations.values()),
        "dropped_long": sum(s > max_s for s in durations.values()),
    }
    return sample_replay(usable, hours, seed), entry


def _check_languages(
    new_langs: list[str], replay_langs: list[str], replay_hours: float
) -> None:
    langs = [*new_langs, *replay_langs]
    if not new_langs:
        raise RecipeError("--new_langs: empty; name at least one language to learn")
    twice = sorted({lang for lang in langs if langs.count(lang) > 1})
    if twice:
        raise RecipeError(
            f"--new_langs/--replay_langs: {' '.join(twice)} named twice; a language is "
            "either new or replayed"
        )
    if replay_langs and not replay_hours > 0:
        raise RecipeError(
            f"--replay_hours: found {replay_hours:g}, expected more than 0; leave "
            "--replay_langs empty to train without replay"
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


def _format(directories: dict[str, Path], audio_dir: Path, options: dict, keep):
    formatted = collect_set(
        list(directories.values()),
        audio_dir,
        options["min_s"],
        options["max_s"],
        options["nj"],
        None if keep is None else keep.__contains__,
    )
    for lang, directory in directories.items():
        counts = formatted.report.get(lang)
        if counts is None:
            raise RecipeError(
                f"{directory}: no {lang} utterance is left between "
                f"{options['min_s']:g} and {options['max_s']:g} s, or utt2lang there "
                "names other languages"
            )
        if not counts["utterances"]:
            raise RecipeError(
                f"{directory / 'wav.scp'}: language {lang} has no utterance between "
                f"{options['min_s']:g} and {options['max_s']:g} s "
                f"({counts['dropped_short']} shorter, {counts['dropped_long']} "
                "longer); join or cut utterances, or change the limits"
            )
    return formatted


def _log_hours(hours: dict) -> None:
    logging.info("pretraining hours by language (the paper's beside them):")
    for lang, entry in hours["languages"].items():
        paper = entry["paper_hours"]
        logging.info(
            "  %s %-6s %9.3f of %9.3f h available   paper %s",
            lang,
            entry["role"],
            entry["hours"],
            entry["available_hours"],
            f"{paper:.3f}" if paper else "-",
        )
        if entry["role"] == "replay" and entry["whole_language"]:
            logging.info(
                "  %s: %g h wanted, %.3f there: the whole language is used, nothing "
                "is repeated",
                lang,
                hours["replay_hours_wanted"],
                entry["available_hours"],
            )
