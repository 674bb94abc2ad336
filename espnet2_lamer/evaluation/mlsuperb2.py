"""ML-SUPERB 2.0: the sets that its heads are trained and tested on."""

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from espnet2_lamer.data.audio import SkippedAudio
from espnet2_lamer.data.sets import Utterance, write_set
from espnet2_lamer.data.sources.stored_audio import AudioStore
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation.benchmark_sets import (
    EvaluationSets,
    SetInfo,
    durations,
    write_subset,
)
from espnet2_lamer.evaluation.mlsuperb import (
    FEW_SHOT,
    LONGEST_TRAIN,
    SHORTEST_TRAIN,
)
from espnet2_lamer.evaluation.mlsuperb2_tree import (
    DROPPED,
    NAME,
    Label,
    Tree,
    audio_paths,
    open_tree,
    planned_languages,
    read_labels,
)
from espnet2_lamer.evaluation.text_units import WRITTEN, as_written
from espnet2_lamer.fileio.atomic import write_json

#: What chooses the checkpoints: utterances of ``dev`` as long as those of training.
VALID = "valid"
# Shorter ones have no frame.
_SHORTEST_TEST = 0.025


def set_name(lang: str, split: str) -> str:
    """Name of a formatted set below ``dump/raw``."""
    return f"{NAME}_{lang}_{split}"


def prepare_mlsuperb2(
    root: str | Path,
    data_dir: str | Path,
    dump_dir: str | Path,
    langs: Sequence[str],
    nj: int = 1,
    max_bad_audio: float = 1.0,
) -> dict:
    """Write ``<dump_dir>/raw/mlsuperb2_<lang>_<split>`` and ``mlsuperb2.json``.

    Texts are as they were written (``as written`` in ``set.json``): the challenge's
    recipe trains on them so, and its scores ignore punctuation and case. Training
    utterances, and those of ``dev`` that choose the checkpoints (sets ``*_valid``),
    last 0.1-20 s, as in ESPnet's asr.sh; test sets are whole, ``dev`` included. Left
    out and counted: utterances without text, of dropped languages, with unusable audio.

    Args:
        root: What :func:`open_tree` reads.
        data_dir: Gets the sets before their audio is converted, in ``mlsuperb2/``, and
            audio of Parquet files in ``audio/``.
        langs: ISO 639-3 codes, or ``all``.
        max_bad_audio: Per cent of a set's files that may be unusable.

    Returns:
        What ``mlsuperb2.json`` holds: the counts of every set.

    Raises:
        RecipeError: The data are not as they should be; nothing is written to the dump.
    """
    tree, data_dir = open_tree(root), Path(data_dir)
    sets = EvaluationSets(Path(dump_dir) / "raw", nj)
    store = AudioStore(data_dir / "audio")
    skipped = SkippedAudio(sets.raw / f"skipped_audio_{NAME}.tsv", max_bad_audio)
    planned = planned_languages(root, langs)
    report: dict = {"root": str(root), "dropped_languages": {}, "sets": {}}
    for split, wanted in planned.items():
        usable, empty, dropped = _usable(tree, split, wanted)
        if dropped:
            report["dropped_languages"][split] = dropped
            text = "ML-SUPERB 2.0, %s: %d utterances of %s left out, as its recipe does"
            logging.info(text, split, dropped, ", ".join(DROPPED))
        utts = {label[0] for rows in usable.values() for label in rows}
        paths = audio_paths(tree, split, utts, store)
        for lang in wanted:
            key = set_name(lang, split)
            source = data_dir / NAME / key
            if not usable[lang]:
                raise RecipeError(
                    f"{root}: {split}: none of {empty[lang]} utterances of {lang} has "
                    "text; leave the language out of --eval_langs"
                )
            write_set(
                source,
                [
                    Utterance(utt, paths[utt], lang, text=as_written(text), source=NAME)
                    for utt, _, text, _ in usable[lang]
                ],
            )
            train = split == "train"
            limits = (SHORTEST_TRAIN, LONGEST_TRAIN) if train else (_SHORTEST_TEST, 1e9)
            counts = sets.collect(
                *(key, source, _info(lang, split), limits),
                skipped=skipped,
            )
            bad = skipped.counts[source.name]
            report["sets"][key] = {**counts, "no_text": empty[lang], "bad_audio": bad}
    sets.write()
    for lang in planned["dev"]:
        report["sets"][set_name(lang, VALID)] = _write_valid(sets.raw, lang)
    skipped.write()
    write_json(sets.raw / f"{NAME}.json", report)
    logging.info("ML-SUPERB 2.0: %d sets from %s", len(report["sets"]), root)
    return report


def _info(lang: str, split: str) -> SetInfo:
    budget = "all" if split == "train" else ""
    few = lang in FEW_SHOT
    return SetInfo(NAME, "", lang, split, "char", budget, None, few, WRITTEN)


def _usable(
    tree: Tree, split: str, langs: Sequence[str]
) -> tuple[dict[str, list[Label]], Counter[str], int]:
    """Return utterances with text by language, how many have none, and the dropped."""
    usable: dict[str, list[Label]] = {lang: [] for lang in langs}
    empty: Counter[str] = Counter()
    dropped = 0
    for label in read_labels(tree, split):
        lang = label[1]
        dropped += not lang
        if lang in usable and label[2].strip():
            usable[lang].append(label)
        elif lang in usable:
            empty[lang] += 1
    return usable, empty, dropped


def _write_valid(raw: Path, lang: str) -> dict:
    dev = raw / set_name(lang, "dev")
    seconds = durations(dev)
    utts = [u for u, s in seconds.items() if SHORTEST_TRAIN <= s <= LONGEST_TRAIN]
    if not utts:
        raise RecipeError(
            f"{dev}: none of {len(seconds)} utterances lasts {SHORTEST_TRAIN:g} to "
            f"{LONGEST_TRAIN:g} s, so none can choose checkpoints; leave {lang} out of "
            "--eval_langs"
        )
    record = write_subset(dev, raw / set_name(lang, VALID), utts, _info(lang, VALID))
    return {"utterances": record["utterances"], "of": len(seconds)}
