"""ML-SUPERB's own data, ``<data set>/<language>/{wav,transcript_*.txt}``, and choices.

A transcript has lines ``utterance-id <ignored> text``. Development and test sets are
the ten-minute lists, whatever the amount of training speech.
"""

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import soundfile

from espnet2_lamer.data.sets import Utterance, write_set
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation.benchmark_sets import (
    EvaluationSets,
    SetInfo,
    has_units,
    write_part,
)
from espnet2_lamer.evaluation.runs import BUDGETS
from espnet2_lamer.evaluation.text_units import (
    NORMALISATIONS,
    OFFICIAL,
    OFFICIAL_UNITS,
    default_unit,
)
from espnet2_lamer.fileio.atomic import write_json
from espnet2_lamer.fileio.foreign import read_yaml
from espnet2_lamer.fileio.text import read_text

#: ESPnet's asr.sh drops longer and shorter utterances, but never from test sets.
LONGEST_TRAIN, SHORTEST_TRAIN = 20.0, 0.1
# What an upstream needs.
_SHORTEST_TEST = 0.025
_UTTERANCE = re.compile(r"[\w.-]+")
# The benchmark's own lists, and what was published on it.
TABLES = read_yaml(Path(__file__).with_suffix(".yaml"))
#: Folders of the data.
DATASETS: tuple[str, ...] = tuple(TABLES["data_sets"])
#: The thirteen monolingual tasks: name to language and data set of its training speech.
MONOLINGUAL = {name: tuple(task) for name, task in TABLES["monolingual"].items()}
#: Suffix of training sets that share one budget.
TOTAL = "total"
#: The twenty reserved languages and their five training utterances each.
FEW_SHOT = {lang: frozenset(utts) for lang, utts in TABLES["few_shot"].items()}


def few_shot_group(lang: str) -> str:
    """Name the official scripts' group of a language: trained or few-shot."""
    return "few-shot languages" if lang in FEW_SHOT else "trained languages"


def few_shot_utterances(dataset: str, lang: str) -> frozenset[str]:
    """Return a data set's training utterances of a language, if that is reserved."""
    prefix = "cv" if dataset == "commonvoice" else dataset.replace("18n_", "18n-")
    utts = FEW_SHOT.get(lang, ())
    return frozenset(u for u in utts if u.startswith(f"{prefix}_{lang}_"))


def scan_tree(
    root: str | Path, langs: Sequence[str] = ("all",), datasets: Sequence[str] = ()
) -> dict[tuple[str, str], Path]:
    """Return the folder of each (data set, language) pair with one of ``langs``.

    The order is that of the official data sets; ``all`` means all languages. Where
    ``datasets`` are named, each must have each language that is named, and the order is
    that of the arguments.

    Raises:
        RecipeError: No tree of this layout, or a language that is not in it, or not in
            one of ``datasets``.
    """
    if not str(root) or str(root) == ".":
        raise RecipeError(
            "MLSUPERB is not set; write the path of ML-SUPERB's data into db.sh, or "
            "choose --benchmark own or paper"
        )
    root = Path(root)
    present = sorted(p.name for p in root.iterdir()) if root.is_dir() else []
    if not set(present) & set(DATASETS):
        found = ", ".join(present[:8]) or "nothing"
        raise RecipeError(
            f"{root}: found {found}, expected folders such as {', '.join(DATASETS[:5])}"
            " of ML-SUPERB; correct MLSUPERB in db.sh"
        )
    for name in sorted({*present} - {*DATASETS}):
        if any((root / name).glob("*/transcript_*.txt")):
            raise RecipeError(
                f"{root / name}: unknown data set; ML-SUPERB has {', '.join(DATASETS)}"
            )
    pairs = {
        (dataset, folder.name): folder
        for dataset in DATASETS
        for folder in sorted((root / dataset).glob("*/"))
    }
    known = {lang for _, lang in pairs}
    missing = [lang for lang in langs if lang != "all" and lang not in known]
    if missing:
        raise RecipeError(
            f"--eval_langs: {missing[0]} is in no data set of {root}; it has "
            f"{', '.join(sorted(known))}"
        )
    if not datasets:
        wanted = known if "all" in langs else langs
        return {pair: folder for pair, folder in pairs.items() if pair[1] in wanted}
    wanted = sorted(known) if "all" in langs else langs
    chosen = {(d, x): pairs.get((d, x)) for d in datasets for x in wanted}
    if "all" in langs:
        return {pair: folder for pair, folder in chosen.items() if folder}
    for (dataset, lang), folder in chosen.items():
        if folder is None:
            having = ", ".join(d for d, x in pairs if x == lang)
            raise RecipeError(
                f"--eval_corpora: {root / dataset} has no {lang}, which is in "
                f"{having}; choose others with --eval_corpora or --eval_langs"
            )
    return chosen


def other_units(units: Mapping[str, str]) -> str:
    """Say which monolingual tasks are scored in other units than the benchmark's.

    ``units`` are by language; those not named have their default. Empty: none is.
    """
    found = []
    for lang in dict.fromkeys(lang for lang, _ in MONOLINGUAL.values()):
        unit = units.get(lang) or default_unit(lang, official=True)
        expected = OFFICIAL_UNITS.get(lang, "char")
        if unit != expected:
            found.append(
                f"{lang} counts {unit}, {expected} there (--units {lang}={expected})"
            )
    return ", ".join(found)


def set_name(dataset: str, lang: str, split: str, *suffix: str) -> str:
    """Name of a formatted set below ``dump/raw``."""
    return "_".join(filter(None, ("mlsuperb", dataset, lang, split, *suffix)))


def read_transcript(path: Path, lang: str, dataset: str) -> Iterator[Utterance]:
    """Read one list; the audio lies in ``wav/`` beside it.

    Raises:
        RecipeError: The file or a wav is missing, a line has no text, or an id occurs
            twice.
    """
    if not path.is_file():
        raise RecipeError(
            f"{path}: file not found; every language of ML-SUPERB has one: complete "
            "the download, or leave the language out of --eval_langs"
        )
    seen: set[str] = set()
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        fields = line.strip().split(maxsplit=2)
        where = f"{path}:{number}"
        if len(fields) < 3:
            raise RecipeError(
                f"{where}: found {line.strip()!r}, expected an utterance id, a field "
                "that is not used, and the transcript; repair the line"
            )
        utt, _, text = fields
        if not _UTTERANCE.fullmatch(utt) or utt in seen:
            problem = "occurs twice" if utt in seen else "is no utterance id"
            raise RecipeError(f"{where}: {utt!r} {problem}; repair the list")
        seen.add(utt)
        wav = path.parent / "wav" / f"{utt}.wav"
        if not wav.is_file():
            raise RecipeError(f"{where}: {wav} not found; complete the download")
        yield Utterance(utt, str(wav.absolute()), lang, text=text, source=dataset)


def prepare_mlsuperb(
    root: str | Path,
    data_dir: str | Path,
    dump_dir: str | Path,
    langs: Sequence[str],
    units: Mapping[str, str],
    budgets: Iterable[str],
    nj: int = 1,
    datasets: Sequence[str] = (),
    text_norm: str = OFFICIAL,
    seed: int = 0,
) -> dict:
    """Write ``<dump_dir>/raw/mlsuperb_<data set>_<lang>_*`` and ``mlsuperb.json``.

    ``text`` holds the language's unit made from the text of the monolingual script,
    ``text.char`` the text of the multilingual one. Files without samples are left out,
    as are (not from test sets) those outside 0.1-20 s, and utterances whose text is
    nothing but punctuation; all are counted. A reserved language also gets sets
    ``*_few`` with its five training utterances. Of chosen ``datasets`` every other
    language also gets sets ``*_total``: the lists' shares of one common budget.

    Args:
        data_dir: Gets the sets before their audio is converted, in ``mlsuperb/``.
        langs: ISO 639-3 codes, or ``all``.
        units: Language to unit; others get their default.
        budgets: ``10min`` and ``1h``.
        datasets: Only these; all if none is named.
        text_norm: Of :data:`~espnet2_lamer.evaluation.text_units.NORMALISATIONS`.
        seed: Draws the shares.

    Returns:
        What ``mlsuperb.json`` holds: the counts of every set.

    Raises:
        RecipeError: The tree is not as it should be; nothing is written to the dump.
    """
    sets = EvaluationSets(Path(dump_dir) / "raw", nj)
    report: dict = {"root": str(root), "sets": {}}
    for (dataset, lang), folder in scan_tree(root, langs, datasets).items():
        unit = units.get(lang, default_unit(lang, official=True))
        info = SetInfo("mlsuperb", dataset, lang, "", unit, normalisation=text_norm)
        lists = {("train", budget): f"transcript_{budget}_train" for budget in budgets}
        lists |= {(s, ""): f"transcript_10min_{s}" for s in ("dev", "test")}
        for (split, budget), name in lists.items():
            utterances = list(read_transcript(folder / f"{name}.txt", lang, dataset))
            here = replace(info, split=split, budget=budget, few_shot=lang in FEW_SHOT)
            wanted = {split: utterances}
            few = few_shot_utterances(dataset, lang) if split == "train" else ()
            if few:
                wanted["train_few"] = [u for u in utterances if u.utt_id in few]
                if not wanted["train_few"]:
                    raise RecipeError(
                        f"{folder / name}.txt: found none of {', '.join(sorted(few))}, "
                        "on which ML-SUPERB trains the reserved language "
                        f"{lang}; complete the download"
                    )
            for part, chosen in wanted.items():
                key = set_name(dataset, lang, part, budget)
                source = Path(data_dir) / "mlsuperb" / key
                report["sets"][key] = _collect(sets, source, chosen, here)
    records = sets.write()
    if datasets:
        records |= _shares(sets.raw, records, budgets, seed)
    write_json(sets.raw / "mlsuperb.json", report)
    logging.info("ML-SUPERB: %d sets from %s", len(records), root)
    return report


def _shares(
    raw: Path, records: Mapping[str, Mapping], budgets: Iterable[str], seed: int
) -> dict[str, Mapping]:
    """Draw of every training list what makes one budget with the others'."""
    shares = {}
    for budget in budgets:
        parts = [
            name
            for name, record in records.items()
            if record["budget"] == budget and not record["few_shot"]
        ]
        minutes = BUDGETS[budget] / max(1, len(parts))
        for name in parts:
            here = raw / name
            share = here.with_name(f"{name}_{TOTAL}")
            shares[share.name] = write_part(here, share, minutes, seed)
    return shares


def _collect(
    sets: EvaluationSets, source: Path, utterances: list[Utterance], info: SetInfo
) -> dict:
    unit, lang = info.unit, info.lang
    normalize, plain = NORMALISATIONS[info.normalisation]
    usable, empty, silent = [], 0, 0
    for utterance in utterances:
        text = utterance.text
        if not plain(text) or not has_units(text, unit, lang, normalize):
            silent += 1
        elif not soundfile.info(utterance.path).frames:
            empty += 1
        else:
            usable.append(utterance)
    if not usable:
        raise RecipeError(
            f"{source.name}: no utterance with text and audio ({empty} without "
            f"samples, {silent} without text); complete the download of ML-SUPERB"
        )
    write_set(source, usable)
    limits = (SHORTEST_TRAIN, LONGEST_TRAIN)
    if info.split == "test":
        limits = (_SHORTEST_TEST, float("inf"))
    counts = sets.collect(source.name, source, info, limits)
    return {**counts, "no_samples": empty, "no_text": silent}
