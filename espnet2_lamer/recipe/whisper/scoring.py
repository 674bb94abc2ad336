"""Error rates of what was decoded, per system, language and unit, and RESULTS.md."""

import logging
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from espnet2_lamer.evaluation.results import (
    MeasureTable,
    Results,
    Task,
    describe_environment,
    write_results,
)
from espnet2_lamer.evaluation.scoring import (
    UNSPACED,
    LidScore,
    Score,
    language_figures,
    score_files,
    utterance_rates,
)
from espnet2_lamer.evaluation.set_table import set_table
from espnet2_lamer.evaluation.text_units import NoUnitsError, normalize_text, to_units
from espnet2_lamer.fileio.atomic import write_json
from espnet2_lamer.fileio.datadir import read_table, write_table
from espnet2_lamer.metrics.measure import Measure
from espnet2_lamer.recipe.reporting import caveats, read_json
from espnet2_lamer.recipe.whisper.options import WhisperOptions
from espnet2_lamer.recipe.whisper.systems import (
    AWARE,
    System,
    expert_dir,
    planned_systems,
)

# Beside characters: what does not depend on the script that a reading is written in.
_ROMANISED = {"cmn": "pinyin", "yue": "jyutping"}
_WHAT = {
    "frozen": "Whisper as it is, speech padded to 30 s as in its training",
    "multilingual": "one LoRA for all languages",
    "full": "all of Whisper fine-tuned on all languages",
    "experts": "the language's own LoRA expert",
    "mole": "mixture of language experts",
    "kd_none": "one student LoRA, no distillation",
    "kd_output": "one student LoRA, distilled from the experts' outputs",
    "kd_layerwise": "one student LoRA, distilled from the experts' layers and outputs",
}
#: Systems the others are tested against, where they are there.
_BASELINES = ("frozen_aware", "multilingual_aware", "multilingual_agnostic")


def decode_dir(options: WhisperOptions, run: str, lang: str) -> Path:
    """Return where a run's hypotheses of one language's test set are."""
    return options.expdir / "decode" / run / lang


def units_of(lang: str) -> tuple[str, ...]:
    """Return the units a language is scored in; the first is its headline.

    Words where they are written apart, characters otherwise, as papers on several
    languages do; then the other rates.
    """
    if lang not in UNSPACED:
        return ("word", "char")
    return ("char", _ROMANISED[lang]) if lang in _ROMANISED else ("char",)


def score(options: WhisperOptions) -> None:
    """Write what was compared beside the hypotheses, and ``scores.json``.

    References and hypotheses are normalised alike: punctuation deleted, upper case,
    no spaces in languages that are written without.
    """
    summary: dict[str, dict[str, dict[str, Any]]] = {}
    for run, lang, unit, found in _scores(options):
        summary.setdefault(run, {}).setdefault(lang, {})[unit] = found.summary()
        low, high = found.interval
        what = f"{run}, {lang}, {unit}: {found.error_rate:.1f} % ({low:.1f}-{high:.1f})"
        logging.info("%s, %d utterances", what, found.utterances)
    write_json(options.expdir / "scores.json", summary)


def _scores(options: WhisperOptions) -> Iterator[tuple[str, str, str, Score]]:
    """Score every run on every language in each of its units."""
    for system in planned_systems(options):
        for run in system.runs():
            for lang in options.langs:
                for unit in units_of(lang):
                    yield run, lang, unit, score_unit(options, run, lang, unit)


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
    return LidScore({utt: true[utt] for utt in utts}, found)


def tabulate(options: WhisperOptions) -> None:
    """Write ``RESULTS.md``, ``results.json`` and ``results.csv``."""
    systems = planned_systems(options)
    runs = {
        run: _describe(system, route)
        for system in systems
        for run, route in system.runs().items()
    }
    recognition: dict[Task, dict[str, dict[int, Score]]] = {}
    for run, lang, unit, of_unit in _scores(options):
        row = recognition.setdefault(Task("multi_asr", lang, unit), {})
        row[run] = {options.seed: of_unit}
    found = {run: identified(options, run) for run in runs}
    chosen = {run: {options.seed: lid} for run, lid in found.items() if lid is not None}
    lid = Task("lid", " ".join(options.langs), "language")
    baselines = [name for name in _BASELINES if name in runs]
    folders = {
        lang: [[options.set_dir(lang, split)] for split in ("train", "test")]
        for lang in options.langs
    }
    known = set_table({lang: (*pair, "char") for lang, pair in folders.items()})
    results = Results(
        systems=runs,
        baselines=baselines,
        recognition=recognition,
        identification={lid: chosen} if chosen else {},
        tables=_over_languages(options, runs, baselines) + ([known] if known else []),
        parameters=_costs(options, systems),
        environment=describe_environment(),
        caveats=caveats(options),
        notes=_notes(options),
        column="system",
    )
    write_results(options.expdir, results)
    logging.info("results: %s", options.expdir / "RESULTS.md")


def _describe(system: System, route: str) -> str:
    what = _WHAT[system.kind]
    if system.shared_layers is not None:
        what += f" over the first {system.shared_layers} encoder layers"
    if system.rank is not None:
        what += f", rank {system.rank}"
    if route == AWARE:
        return f"{what}; the language is given"
    if system.kind == "mole":
        return f"{what}; its identifier chooses the language"
    return f"{what}; nobody gives the language"


def _over_languages(
    options: WhisperOptions, runs: Iterable[str], baselines: list[str]
) -> list[MeasureTable]:
    """Summarise each run over its languages, in each language's headline unit."""
    if len(options.langs) < 2:
        return []
    units = {lang: units_of(lang)[0] for lang in options.langs}
    rows: dict[str, dict[str, Measure]] = {}
    for run in runs:
        groups: dict[str, dict[str, float]] = {}
        for lang, unit in units.items():
            folder = decode_dir(options, run, lang) / f"score_{unit}"
            utt2lang = dict.fromkeys(read_table(folder / "ref"), lang)
            groups |= utterance_rates(folder / "ref", folder / "hyp", unit, utt2lang)
        for what, measure in language_figures(groups, options.seed).items():
            rows.setdefault(what, {})[run] = measure
    named = ", ".join(f"{lang} {unit}" for lang, unit in units.items())
    note = f"In {named}: the mean over a language's utterances, then over languages."
    return [MeasureTable("Over languages", "error rate (%)", rows, baselines, note)]


def _costs(
    options: WhisperOptions, systems: list[System]
) -> dict[str, dict[str, float]]:
    """Return parameters and seconds of every system, and of every expert."""
    costs: dict[str, dict[str, float]] = {}
    for system in systems:
        if system.kind == "experts":
            for lang in options.langs:
                costs[f"expert {lang}"] = _training(expert_dir(options, lang))
        elif system.config is not None:
            costs[system.name] = _training(system.directory(options))
        run = list(system.runs())[-1]
        folders = [decode_dir(options, run, lang) for lang in options.langs]
        times = [read_json(folder / "time.json") for folder in folders]
        cost = sum(t["seconds"] for t in times) / sum(t["speech"] for t in times)
        row = costs.setdefault(system.name, {"trainable": 0})
        row["decoding (s per s of speech)"] = cost
    return costs


def _training(experiment: Path) -> dict[str, float]:
    report = read_json(experiment / "training.json")
    parameters = report["parameters"]
    return {
        "trainable": parameters["trainable"],
        "trainable, per cent of Whisper": parameters["trainable_percent"],
        "needed to decode": parameters["inference"],
        "updates": report["updates"],
        "training (s)": report["seconds"],
    }


def _notes(options: WhisperOptions) -> list[str]:
    prompts = ", ".join(f"{lang} <|{t}|>" for lang, t in options.prompts.items())
    notes = [f"Language token in Whisper's prompt: {prompts}."]
    if len(set(options.prompts.values())) < len(options.prompts):
        notes[0] += (
            " Languages that share a token are told apart by the experts alone; the "
            "frozen Whisper cannot tell them apart."
        )
    if {"cmn", "yue"} & set(options.langs):
        notes.append(
            "In characters, a hypothesis in the other script (traditional for "
            "simplified, or the reverse) counts as wrong; pinyin and jyutping of the "
            "same hypotheses do not depend on the script."
        )
    notes.append(
        "One run with one seed: the noise between trainings is in no interval. "
        "Seconds are those of this machine."
    )
    return notes
