"""What all evaluation sets share: their texts, their record, subsets of them."""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from espnet2_lamer.constants import SAMPLE_RATE
from espnet2_lamer.data.formatting import FormattedSet
from espnet2_lamer.data.sampling import sample_replay
from espnet2_lamer.data.seeds import seed_of
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation.runs import BUDGETS
from espnet2_lamer.evaluation.text_units import NoUnitsError, normalize_text, to_units
from espnet2_lamer.fileio.atomic import atomic_dir, write_json
from espnet2_lamer.fileio.datadir import read_table, write_spk2utt, write_table

RECORD = "set.json"
#: The normalised transcript, for units that are made of characters.
PLAIN_TEXT = "text.char"
_TEXTS = ("text", PLAIN_TEXT, "text.raw")
_TABLES = ("wav.scp", "utt2lang", "utt2num_samples", *_TEXTS)
#: Units whose text is the normalised transcript.
PLAIN_UNITS = ("char", "word", "bpe")
_MADE_BY = "the formatting of evaluation sets"


@dataclass(frozen=True)
class SetInfo:
    """What a set is, for ``set.json``.

    Attributes:
        benchmark: ``own``, ``paper`` or ``mlsuperb``.
        corpus: Data set it comes from, or empty.
        lang: ISO 639-3 code.
        split: ``train``, ``dev`` or ``test``.
        unit: Of ``text``; ``text.char`` and ``text.raw`` are there in any case.
        budget: ``10min``, ``1h`` or ``all``; dev and test sets: empty.
        seed: Drew the utterances, or None where a list did.
        few_shot: Whether ML-SUPERB reserves the language: five training utterances.
        normalisation: Of the text: ``official`` (ASCII punctuation deleted, upper
            case) or ``all punctuation`` (Unicode's too).
    """

    benchmark: str
    corpus: str
    lang: str
    split: str
    unit: str
    budget: str = ""
    seed: int | None = None
    few_shot: bool = False
    normalisation: str = "all punctuation"


def write_record(directory: str | Path, info: SetInfo) -> dict[str, Any]:
    """Write ``set.json`` into a formatted set: its description and its size."""
    directory = Path(directory)
    samples = read_table(directory / "utt2num_samples")
    record = {
        "name": directory.name,
        **asdict(info),
        "utterances": len(samples),
        "seconds": round(sum(map(int, samples.values())) / SAMPLE_RATE, 2),
    }
    write_json(directory / RECORD, record)
    return record


def write_sets(
    raw: Path, ready: Mapping[str, tuple[FormattedSet, SetInfo]]
) -> dict[str, dict[str, Any]]:
    """Write formatted sets by name, with their records, which are returned."""
    records = {}
    for name, (formatted, info) in ready.items():
        formatted.write(raw / name)
        records[name] = write_record(raw / name, info)
    return records


def convert_text(
    formatted: FormattedSet,
    unit: str,
    lang: str,
    directory: Path,
    normalize: Callable[[str], str] = normalize_text,
    plain: Callable[[str], str] = normalize_text,
) -> None:
    """Turn transcripts into units; keep them as ``text.char`` and ``text.raw`` too.

    Args:
        formatted: Changed in place.
        unit: See :func:`~espnet2_lamer.evaluation.text_units.to_units`.
        lang: ISO 639-3 code.
        directory: Named in errors.
        normalize: What is done to a transcript before it becomes units.
        plain: What is done to it for ``text.char``.

    Raises:
        RecipeError: A transcript has no text in this unit.
    """
    raw = formatted.tables["text"]
    pronunciations = formatted.tables["romanisation"]
    if unit == "phone":
        phones: dict[str, str] = {}
        for line in formatted.ctm:
            utt, _, _, _, phone = line.split()
            phones[utt] = f"{phones[utt]} {phone}" if utt in phones else phone
        pronunciations = phones or pronunciations
    converted = {}
    for utt, text in raw.items():
        try:
            converted[utt] = to_units(
                text,
                "char" if unit in PLAIN_UNITS else unit,
                lang,
                romanisation=pronunciations.get(utt),
                normalize=normalize,
            )
        except RecipeError as error:
            raise RecipeError(f"{directory / 'text'}: {utt}: {error}") from None
    formatted.tables["text"] = converted
    formatted.tables[PLAIN_TEXT] = {utt: plain(text) for utt, text in raw.items()}
    formatted.tables["text.raw"] = raw


def has_units(
    text: str, unit: str, lang: str, normalize: Callable[[str], str] = normalize_text
) -> bool:
    """Whether anything is left of a transcript in its unit (of "1984" in pinyin not).

    Raises:
        RecipeError: The unit does not exist or does not fit the language.
    """
    if not normalize(text):
        return False
    try:
        to_units(text, unit, lang, normalize=normalize)
    except NoUnitsError:
        return False
    return True


def read_texts(directory: str | Path, unit: str) -> dict[str, str]:
    """Return a formatted set's text in a unit.

    Raises:
        RecipeError: See :func:`read_whole`.
    """
    name = PLAIN_TEXT if unit in PLAIN_UNITS else "text"
    # Sets made by hand may have nothing but `text`.
    name = name if (Path(directory) / name).is_file() else "text"
    return read_whole(directory, name, "text")


def read_whole(directory: str | Path, name: str, what: str) -> dict[str, str]:
    """Return a formatted set's table in the order of its ``wav.scp``.

    Raises:
        RecipeError: A file is missing, or an utterance of ``wav.scp`` has no line in
            it or an empty one.
    """
    path = Path(directory) / name
    table = read_table(path, _MADE_BY)
    utts = read_table(path.with_name("wav.scp"), _MADE_BY)
    for utt in utts:
        if not table.get(utt):
            raise RecipeError(
                f"{path}: {utt}: no {what}; every utterance of wav.scp needs one: drop "
                "it or make the evaluation sets anew"
            )
    return {utt: table[utt] for utt in utts}


def write_subset(
    source: str | Path, target: str | Path, utts: Collection[str], info: SetInfo
) -> dict[str, Any]:
    """Write some of a formatted set's utterances as a set that shares its audio.

    Raises:
        RecipeError: An utterance is not in the set.
    """
    source, target = Path(source), Path(target)
    missing = sorted(set(utts) - read_table(source / "wav.scp").keys())
    if missing:
        raise RecipeError(
            f"{source / 'wav.scp'}: {missing[0]} not found ({len(missing)} of "
            f"{len(utts)} listed utterances); the list belongs to other data"
        )
    with atomic_dir(target) as temporary:
        for name in (*_TABLES, "utt2spk"):
            path = source / name
            if not path.is_file():
                continue
            table = {u: v for u, v in read_table(path).items() if u in utts}
            if name == "utt2spk":
                write_spk2utt(temporary, table)
            else:
                write_table(temporary / name, table)
    return write_record(target, info)


def durations(directory: str | Path) -> dict[str, float]:
    """Return the seconds of every utterance of a formatted set."""
    samples = read_table(Path(directory) / "utt2num_samples", _MADE_BY)
    return {utt: int(count) / SAMPLE_RATE for utt, count in samples.items()}


def write_budget(train: str | Path, budget: str, seed: int) -> dict[str, Any]:
    """Write ``<train>_<budget>``: as many utterances of a training set as last so long.

    Raises:
        RecipeError: The set is missing.
    """
    train = Path(train)
    record = json.loads((train / RECORD).read_text(encoding="utf-8"))
    values = {f.name: record[f.name] for f in fields(SetInfo)}
    info = SetInfo(**values | {"budget": budget, "seed": seed})
    drawn = seed_of(seed, "budget", info.lang)
    utts = sample_replay(durations(train), BUDGETS[budget] / 60, drawn)
    return write_subset(train, train.with_name(f"{train.name}_{budget}"), utts, info)
