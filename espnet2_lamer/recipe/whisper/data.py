"""The sets that experts are trained, chosen and tested on."""

import logging
from collections.abc import Container
from pathlib import Path

from espnet2_lamer.constants import SAMPLE_RATE
from espnet2_lamer.data.sampling import sample_balanced, sample_replay, seed_of
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation.benchmark_sets import (
    SetInfo,
    prepare_asr_data,
    write_subset,
)
from espnet2_lamer.fileio.atomic import write_json
from espnet2_lamer.fileio.datadir import read_table, write_table
from espnet2_lamer.recipe.declaration import refused
from espnet2_lamer.recipe.whisper.options import SPLITS, WhisperOptions
from espnet2_lamer.whisper.text import encode_text

#: What Whisper learns to write, beside the normalised ``text`` of a formatted set.
TARGET = "text.target"
#: Whisper's window; it was trained on nothing longer.
WINDOW_SECONDS = 30.0
#: What its decoder takes, 448 tokens, without the prompt's four.
TEXT_TOKENS = 444


def select(options: WhisperOptions) -> None:
    """Select 16 kHz mono speech with text, as much of it as the options say.

    Writes ``whisper_<lang>_{train,dev,test}`` below ``<dumpdir>/raw`` and
    ``whisper_sets.json``, which counts them. An utterance of train and dev whose text
    is longer than Whisper's decoder takes is left out, named and counted.

    Raises:
        RecipeError: An utterance may be longer than Whisper's window, or see
            :func:`~espnet2_lamer.evaluation.benchmark_sets.prepare_asr_data`.
    """
    if options.max_duration > WINDOW_SECONDS:
        most = f"at most {WINDOW_SECONDS:g} s, Whisper's window"
        raise refused("max_duration", f"{options.max_duration:g}", most)
    prepare_asr_data(
        options.datadir,
        options.dumpdir,
        options.langs,
        dict.fromkeys(options.langs, "char"),
        options.seed,
        min_s=options.min_duration,
        max_s=options.max_duration,
        nj=options.nj,
        max_bad_audio=options.max_bad_audio,
    )
    report: dict = {"seed": options.seed, "sets": {}}
    for lang in options.langs:
        for split in SPLITS:
            source = options.raw / f"asr_{lang}_{split}"
            too_long = {} if split == "test" else _long_texts(source)
            chosen = _choose(source, lang, split, options, too_long)
            target = options.set_dir(lang, split)
            info = SetInfo("own", "", lang, split, "char", seed=options.seed)
            record = write_subset(source, target, chosen, info)
            raw = read_table(target / "text.raw")
            write_table(target / TARGET, {u: target_text(t) for u, t in raw.items()})
            if (source / "romanisation").is_file():
                spoken = read_table(source / "romanisation")
                spoken = {u: s for u, s in spoken.items() if u in chosen}
                write_table(target / "romanisation", spoken)
            number, seconds = record["utterances"], record["seconds"]
            counts = {"utterances": number, "seconds": seconds}
            report["sets"][target.name] = counts | {"long_texts": len(too_long)}
            if too_long:
                named = [f"{utt} ({n} tokens)" for utt, n in [*too_long.items()][:5]]
                logging.warning(
                    "%s: %d utterances left out, whose texts are longer than the %d "
                    "tokens that Whisper takes: %s",
                    target.name,
                    len(too_long),
                    TEXT_TOKENS,
                    ", ".join(named) + (", ..." if len(too_long) > 5 else ""),
                )
            logging.info(
                "%s: %d utterances, %.1f min", target.name, number, seconds / 60
            )
    write_json(options.raw / "whisper_sets.json", report)


def target_text(text: str) -> str:
    """Return the transcript that is trained on: as it is written.

    All-capital transcripts are lower-cased: Whisper's vocabulary has no pieces for
    them and would spell them out.
    """
    return text.lower() if text.isupper() else text


def _long_texts(source: Path) -> dict[str, int]:
    """Tokens of the transcripts that Whisper's decoder cannot take, by utterance."""
    counts = {
        utt: len(encode_text(target_text(text)))
        for utt, text in read_table(source / "text.raw").items()
        # A token has a byte or more; nearly all texts need no counting.
        if len(text.encode()) >= TEXT_TOKENS
    }
    return {utt: count for utt, count in counts.items() if count > TEXT_TOKENS}


def _choose(
    source: Path,
    lang: str,
    split: str,
    options: WhisperOptions,
    left_out: Container[str],
) -> set[str]:
    samples = read_table(source / "utt2num_samples")
    seconds = {
        utt: int(count) / SAMPLE_RATE
        for utt, count in samples.items()
        if utt not in left_out
    }
    if not seconds:
        raise RecipeError(
            f"{source / 'text.raw'}: every transcript is longer than the {TEXT_TOKENS} "
            "tokens that Whisper takes; cut the utterances into segments"
        )
    drawn = seed_of(options.seed, "whisper", split, lang)
    if split == "train":
        if not options.train_minutes:
            return set(seconds)
        return sample_replay(seconds, options.train_minutes / 60, drawn)
    count = options.dev_utts if split == "dev" else options.test_utts
    if not count or count >= len(seconds):
        return set(seconds)
    # Speakers in turn; an "hour" per utterance makes the amount a number of them.
    speakers = read_table(source / "utt2spk")
    return sample_balanced(dict.fromkeys(seconds, 3600.0), speakers, count, drawn)
