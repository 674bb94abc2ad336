"""Labels of a training: do they fit the audio, and what do they alone predict?"""

import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from espnet2_lamer.constants import num_frames
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.datadir import read_table
from espnet2_lamer.metrics.similarity import entropy
from espnet2_lamer.train.utterances import Languages, Lengths, blocks

# Utterances whose language is not known are counted under this name.
UNKNOWN = ""
_PARTS = {"train": "training", "valid": "validation"}
# ESPnet's data types whose files are `utt u1 u2 ...` lines.
_TEXTS = ("text", "text_int")


def text_files(path_name_type: Sequence[Sequence[str]]) -> dict[str, str]:
    """Pick what is read as text (``text``, ``lang``) from ESPnet's description."""
    return {name: path for path, name, kind in path_name_type if kind in _TEXTS}


def check_labels(
    part: str, lengths: Mapping[str, int], options: Any, brief: bool = False
) -> tuple[dict[str, Any], dict[str, dict[str, float]], Languages | None]:
    """Check that every frame of a part (``train``, ``valid``) has a unit; count them.

    Returns the report for ``health.json``, :func:`baselines`, language by utterance.
    ``lengths`` are samples by utterance; ``brief`` leaves languages and warnings out of
    the log. Labels that do not fit the audio or K raise ``RecipeError``.
    """
    files = text_files(getattr(options, f"{part}_data_path_and_name_and_type"))
    languages = None
    if "lang" in files and options.langs:
        languages = read_languages(files["lang"], options.langs, lengths)
    if "text" not in files:
        logging.info("%s labels are in no text file: not counted", _PARTS[part])
        return {}, {}, languages
    counts = count_labels(files["text"], options.num_classes, lengths, languages)
    total = sum(counts.values())
    report: dict[str, Any] = {"utterances": len(lengths), **describe(total)}
    if languages is not None:
        report["languages"] = {k: describe(counts[k]) for k in sorted(counts)}
    _log(_PARTS[part], report, brief)
    report["histogram"] = total.tolist()
    return report, baselines(counts), languages


def _log(name: str, found: dict[str, Any], brief: bool) -> None:
    majority = "always unit %(majority_class)d is right in %(percent).2f %%"
    percent = 100 * found["majority_accuracy"]
    logging.info(
        "%(name)s labels: one unit per frame in %(utterances)d utterances, %(frames)d "
        "frames; %(used)d of %(classes)d units occur; loss of the unigram "
        "%(entropy_bits).3f bits (%(entropy_nats).3f nats), of the uniform "
        f"distribution %(uniform_bits).3f bits (%(uniform_nats).3f nats); {majority}",
        {**found, "name": name, "percent": percent},
    )
    if brief:
        return
    for language, own in found.get("languages", {}).items():
        logging.info(
            "  %(language)s: %(frames)d frames, %(used)d units occur, unigram "
            f"%(entropy_bits).3f bits, {majority}",
            {**own, "language": language, "percent": 100 * own["majority_accuracy"]},
        )
    if percent > 50 or 2 * found["used"] < found["classes"]:
        logging.warning(
            "%(name)s labels tell little: %(used)d of %(classes)d units occur, and one "
            "is on %(percent).1f %% of the frames; look at exp/label_quality.md, or "
            "make units anew with fewer clusters",
            {**found, "name": name, "percent": percent},
        )


def count_labels(
    text: str | Path,
    num_classes: int,
    lengths: Mapping[str, int],
    languages: Mapping[str, str] | Languages | None = None,
) -> dict[str, np.ndarray]:
    """Count the frames of each unit, and check that every frame has one.

    The file has ``utt u1 u2 ...`` lines; those of utterances without a length (in
    samples) are passed over. Counts are ``[K]`` by language, all under :data:`UNKNOWN`
    where no utterance has one.

    Raises:
        RecipeError: An utterance has no line, or not one unit in 0 .. K-1 per frame.
    """
    lengths = Lengths.of(lengths)
    known = None if languages is None else Languages.of(languages, lengths)
    names = [UNKNOWN] if known is None else known.names
    counts = np.zeros((len(names), num_classes), np.int64)
    seen = np.zeros(len(lengths), bool)
    for numbers, rows in blocks(text, lengths):
        for number, row in zip(numbers.tolist(), rows, strict=True):
            if number < 0 or seen[number]:
                continue
            seen[number] = True
            samples = int(lengths.samples[number])
            units = parse_units(row, num_classes)
            if units is None or len(units) != num_frames(samples):
                problem = _what_is_wrong(row.split(), num_classes, samples)
                raise RecipeError(
                    f"{text}: utterance {lengths.name(number)}: {problem}; make "
                    "the labels anew, or set num_classes to the codebook's K"
                )
            language = 0 if known is None else known.codes[number]
            counts[language] += np.bincount(units, minlength=num_classes)
    if not seen.all():
        missing = np.flatnonzero(~seen)
        raise RecipeError(
            f"{text}: utterance {lengths.name(missing[0])}: no units; {len(missing)} "
            f"of {len(lengths)} utterances have none. Make the labels anew"
        )
    return {n: row for n, row in zip(names, counts, strict=True) if row.any()}


def parse_units(row: bytes, num_classes: int) -> np.ndarray | None:
    """Read ``u1 u2 ...``; ``None`` where these are no units in 0 .. K-1."""
    with warnings.catch_warnings():
        # What older NumPy says of text that is no number.
        warnings.simplefilter("error", DeprecationWarning)
        try:
            units = np.fromstring(row.strip(), dtype=np.int64, sep=" ")
        except (DeprecationWarning, ValueError):
            return None
    within = 0 <= units.min(initial=0) and units.max(initial=0) < num_classes
    return units if within else None


def _what_is_wrong(units: Sequence[bytes], num_classes: int, samples: int) -> str:
    frames = num_frames(samples)
    if len(units) != frames:
        return (
            f"found {len(units)} units for {samples} samples, expected {frames} "
            "((n - 400) // 320 + 1)"
        )
    valid = {str(unit).encode() for unit in range(num_classes)}
    wrong = next((unit for unit in units if unit not in valid), b"").decode()
    return f"found unit {wrong!r}, expected 0 to {num_classes - 1}"


def read_languages(
    path: str | Path, names: Sequence[str], utterances: Mapping[str, int]
) -> Languages:
    """Read ``utt number`` lines, the number being the position in ``names``.

    An utterance without one that a language has raises ``RecipeError``.
    """
    lengths = Lengths.of(utterances)
    positions = [str(number) for number in range(len(names))]
    found = Languages.read(path, lengths, positions)
    wrong = np.flatnonzero(found.codes < 0)
    if len(wrong):
        utt = lengths.name(wrong[0])
        raise RecipeError(
            f"{path}: utterance {utt}: found language {read_table(path).get(utt)}, "
            f"expected 0 to {len(names) - 1}, the position in langs "
            f"({', '.join(names)})"
        )
    return replace(found, names=[*names])


def describe(counts: np.ndarray) -> dict[str, float | int]:
    """Say what a histogram ``[K]`` comes to, which is not all 0.

    ``entropy`` is the loss, in nats and bits per frame, of the best prediction that
    looks at nothing (each unit by its share); ``majority_accuracy`` that of always
    naming the most frequent unit.
    """
    nats = entropy(counts)
    majority = int(counts.argmax())
    return {
        "frames": int(counts.sum()),
        "classes": len(counts),
        "used": int((counts > 0).sum()),
        "dead": int((counts == 0).sum()),
        "majority_class": majority,
        "majority_accuracy": float(counts[majority] / counts.sum()),
        "entropy_nats": nats,
        "entropy_bits": nats / math.log(2.0),
        "uniform_nats": math.log(len(counts)),
        "uniform_bits": math.log2(len(counts)),
    }


def baselines(by_language: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Return baselines by the logged figure that they stand beside.

    Counts ``[K]`` are given by language; :data:`UNKNOWN` has no figures of its own.
    """
    total = describe(sum(by_language.values()))
    nats = {
        "uniform_nats": total["uniform_nats"],
        "unigram_nats": total["entropy_nats"],
    }
    bits = {
        "uniform_bits": total["uniform_bits"],
        "unigram_bits": total["entropy_bits"],
    }
    majority = total["majority_accuracy"]
    accuracy = {"uniform_acc": 1 / total["classes"], "majority_acc": majority}
    found = {"loss_m": nats, "loss_m_bits": bits, "acc_m": accuracy}
    for lang in sorted(set(by_language) - {UNKNOWN}):
        own = describe(by_language[lang])
        found[f"acc_m_{lang}"] = {f"majority_acc_{lang}": own["majority_accuracy"]}
        found[f"bits_m_{lang}"] = {f"unigram_bits_{lang}": own["entropy_bits"]}
    return found


def beside(
    figures: Mapping[str, Any], standards: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    """Put each baseline behind the figure it belongs to, if it is there."""
    ordered: dict[str, Any] = {}
    for key, value in figures.items():
        ordered[key] = value
        ordered |= standards.get(key, {})
    return ordered
