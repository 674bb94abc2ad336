"""The paper's evaluation sets: CommonVoice and FLEURS in ML-SUPERB's sizes.

Per language and corpus one hour of training speech (or ten minutes of it) and ten
minutes each of development and test speech, drawn once with a fixed seed (Lamer-SSL,
sections 3.1 and 3.3; the paper does not publish its lists). Development and test speech
comes from the corpora's own lists, which pretraining leaves out.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from espnet2_lamer.data.audio import SkippedAudio
from espnet2_lamer.data.corpora import EVAL_DIR
from espnet2_lamer.data.sampling import sample_replay, seed_of
from espnet2_lamer.data.segments import read_wavs
from espnet2_lamer.data.sets import SPLITS
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation.benchmark_sets import (
    EvaluationSets,
    SetInfo,
    draw_speech,
    durations,
    has_units,
    write_subset,
)
from espnet2_lamer.evaluation.runs import BUDGETS
from espnet2_lamer.evaluation.text_units import NORMALISATIONS, UNICODE
from espnet2_lamer.fileio.atomic import write_json, write_text
from espnet2_lamer.fileio.datadir import read_table
from espnet2_lamer.fileio.text import read_text

#: In-domain and out-of-domain test of the paper.
PAPER_CORPORA = ("commonvoice", "fleurs")
#: Suffix of training sets that share one budget.
TOTAL = "total"
LISTS = "lists"
_HELD_OUT_MINUTES = 10.0
_LONGEST, _SHORTEST = 20.0, 0.1


def set_name(corpus: str, lang: str, split: str, *suffix: str) -> str:
    """Name of a formatted set below ``dump/raw``."""
    return "_".join(filter(None, ("paper", corpus, lang, split, *suffix)))


def prepare_paper_sets(
    data_dir: str | Path,
    dump_dir: str | Path,
    langs: Sequence[str],
    units: Mapping[str, str],
    budgets: Iterable[str] = ("1h",),
    seed: int = 0,
    nj: int = 1,
    lists_dir: str | Path | None = None,
    max_bad_audio: float = 1.0,
    corpora: Sequence[str] = PAPER_CORPORA,
    text_norm: str = UNICODE,
) -> dict:
    """Write ``<dump_dir>/raw/paper_<corpus>_<lang>_*`` and their utterance lists.

    Training sets are ``train_1h``, ``train_10min``, and with ``_total`` the first part
    of each that together with the other sets lasts as long. The shorter ones are parts
    of the longer ones. Every list goes to ``<dump_dir>/raw/lists/<set>.txt``.

    Args:
        data_dir: Prepared data with ``eval/<corpus>/<split>_<lang>``.
        dump_dir: Root of the dump; converted audio is shared with pretraining.
        lists_dir: Folder of lists to use instead of drawing; sets without a list there
            are drawn.
        max_bad_audio: Per cent of a set's drawn files that may be unusable, or one if
            that is more; 0: none. They are left out and listed in
            ``<dump_dir>/raw/skipped_audio_<set>.tsv``.
        corpora: Of :data:`PAPER_CORPORA`.
        text_norm: Of :data:`~espnet2_lamer.evaluation.text_units.NORMALISATIONS`.

    Returns:
        What ``paper.json`` holds: the record of every set.

    Raises:
        RecipeError: A prepared set is missing or has no text, a list names an
            utterance that is not there, a held-out utterance is in the pretraining
            data, or too much audio is unusable. Nothing is written then.
    """
    data_dir, sets = Path(data_dir), EvaluationSets(Path(dump_dir) / "raw", nj)
    raw = sets.raw
    budgets = sorted(set(budgets), key=lambda b: -BUDGETS[b])
    trained: list[SetInfo] = []
    bad: list[SkippedAudio] = []
    for corpus in corpora:
        for lang in langs:
            for split in SPLITS:
                source = _source(data_dir, corpus, lang, split)
                budget = budgets[0] if split == "train" else ""
                name = set_name(corpus, lang, split, budget)
                info = SetInfo(
                    "paper",
                    corpus,
                    lang,
                    split,
                    units[lang],
                    budget,
                    seed,
                    normalisation=text_norm,
                )
                utts = _choose(source, info, name, lists_dir)
                if split != "train":
                    _refuse_overlap(source, utts, data_dir / f"train_{lang}")
                # Sets of the two corpora have the same names: a report for each.
                report_file = raw / f"skipped_audio_{name}.tsv"
                # One of a drawn set may be bad, however small the set.
                one = 100.001 / len(utts) if max_bad_audio else 0.0
                skipped = SkippedAudio(report_file, max(max_bad_audio, one))
                limits, wanted = (_SHORTEST, _LONGEST), utts.__contains__
                sets.collect(name, source, info, limits, wanted, skipped)
                bad += [skipped] if skipped.counts else []
                trained += [info] if split == "train" else []
    for skipped in bad:
        skipped.write()
    records = sets.write()
    for info in trained:
        records |= _parts(raw, info, budgets, len(trained))
    for name, record in records.items():
        utts = sorted(read_table(raw / name / "wav.scp"), key=str.encode)
        write_text(raw / LISTS / f"{name}.txt", "".join(f"{utt}\n" for utt in utts))
        size = f"{record['utterances']} utterances, {record['seconds'] / 60:.1f} min"
        logging.info("%s (%s): %s", name, record["unit"], size)
    report = {"seed": seed, "corpora": list(corpora), "sets": records}
    write_json(raw / "paper.json", report)
    return report


def _source(data_dir: Path, corpus: str, lang: str, split: str) -> Path:
    directory = data_dir / EVAL_DIR / corpus / f"{split}_{lang}"
    for name in ("wav.scp", "text"):
        if not (directory / name).is_file():
            raise RecipeError(
                f"{directory / name}: file not found; data preparation makes it with "
                f"{corpus} in --corpus, if {corpus} has the language {lang}"
            )
    return directory


def _refuse_overlap(source: Path, utts: set[str], train: Path) -> None:
    pretraining = read_wavs(train) if (train / "wav.scp").is_file() else {}
    wavs = read_wavs(source)
    heard = set(pretraining.values())
    both = sorted(u for u in utts if u in pretraining or wavs[u] in heard)
    if both:
        raise RecipeError(
            f"{source / 'wav.scp'}: {len(both)} utterances are in {train.name}, which "
            f"pretraining uses, e.g. {both[0]}; prepare the data anew, which leaves "
            "the corpora's dev and test lists out"
        )


def _choose(
    source: Path, info: SetInfo, name: str, lists_dir: str | Path | None
) -> set[str]:
    """Return the ids of a list, or draw as many as last long enough."""
    texts = read_table(source / "text")
    wavs = read_wavs(source)
    listed = Path(lists_dir) / f"{name}.txt" if lists_dir else None
    if listed is not None and listed.is_file():
        utts = set(read_text(listed).split())
        unusable = sorted(u for u in utts if u not in wavs or not texts.get(u))
        if unusable:
            raise RecipeError(
                f"{listed}: {unusable[0]} is not in {source}, or without text "
                f"({len(unusable)} of {len(utts)}); the list belongs to other data"
            )
        return utts
    minutes = BUDGETS[info.budget] if info.budget else _HELD_OUT_MINUTES
    drawn = seed_of(info.seed, "paper", info.corpus, info.lang, info.split)
    spoken = {utt: path for utt, path in wavs.items() if texts.get(utt)}

    def fits(utt: str, seconds: float) -> bool:
        known = _SHORTEST <= seconds <= _LONGEST
        normalize = NORMALISATIONS[info.normalisation][0]
        return known and has_units(texts[utt], info.unit, info.lang, normalize)

    chosen, total = draw_speech(spoken, minutes, drawn, fits, source / "wav.scp")
    if not chosen:
        raise RecipeError(f"{source}: no utterance with text of {_LONGEST:g} s or less")
    if total < minutes * 60:
        logging.warning(
            "%s: %.1f min are all there is, %g wanted", name, total / 60, minutes
        )
    return chosen


def _parts(
    raw: Path, info: SetInfo, budgets: Sequence[str], number: int
) -> dict[str, dict]:
    """Write the shorter training sets of the longest one, shares of ``number`` too."""
    longest = raw / set_name(info.corpus, info.lang, "train", info.budget)
    seconds = durations(longest)
    drawn = seed_of(info.seed, "paper", info.corpus, info.lang, "part")
    wanted = {(budget, ""): BUDGETS[budget] for budget in budgets[1:]}
    wanted |= {(budget, TOTAL): BUDGETS[budget] / number for budget in budgets}
    records = {}
    for (budget, total), minutes in wanted.items():
        name = set_name(info.corpus, info.lang, "train", budget, total)
        utts = sample_replay(seconds, minutes / 60, drawn)
        shorter = replace(info, budget=budget)
        records[name] = write_subset(longest, raw / name, utts, shorter)
    return records
