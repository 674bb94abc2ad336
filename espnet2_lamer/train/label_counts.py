"""Labels of a training: do they fit the audio, and what do they alone predict?"""

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from espnet2_lamer.constants import num_frames
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.datadir import read_table
from espnet2_lamer.metrics.similarity import entropy

# Bytes of labels read at a time.
_BLOCK = 1 << 23
# Utterances whose language is not known are counted under this name.
UNKNOWN = ""


def count_labels(
    text: str | Path,
    num_classes: int,
    lengths: Mapping[str, int],
    languages: Mapping[str, str] | None = None,
) -> dict[str, np.ndarray]:
    """Count the frames of each unit, and check that every frame has one.

    Args:
        text: ``utt u1 u2 ...`` lines; utterances without a length are passed over.
        num_classes: K.
        lengths: Samples by utterance.
        languages: Language by utterance; ``None`` counts all under :data:`UNKNOWN`.

    Returns:
        Counts ``[K]`` by language.

    Raises:
        RecipeError: An utterance has no line, or not one unit in 0 .. K-1 per frame.
    """
    counts: dict[str, np.ndarray] = {}
    missing = dict.fromkeys(lengths)
    with open(text, "rb") as handle:
        while lines := handle.readlines(_BLOCK):
            rows: dict[str, dict[str, bytes]] = {}
            for line in lines:
                name, *rest = line.split(None, 1) or [b""]
                utt = name.decode()
                if utt in missing:
                    del missing[utt]
                    language = UNKNOWN if languages is None else languages[utt]
                    rows.setdefault(language, {})[utt] = b"".join(rest).strip()
            for language, units in rows.items():
                block = _histogram(units, num_classes, lengths)
                if block is None:
                    raise _what_is_wrong(text, units, num_classes, lengths)
                counts[language] = counts.get(language, 0) + block
    if missing:
        first = next(iter(missing))
        raise RecipeError(
            f"{text}: utterance {first}: no units; {len(missing)} of {len(lengths)} "
            "utterances have none. Make labels anew with stage 5"
        )
    return counts


def _histogram(
    rows: Mapping[str, bytes], num_classes: int, lengths: Mapping[str, int]
) -> np.ndarray | None:
    """Counts ``[K]``; ``None`` where something is no unit, or not one per frame."""
    frames = [num_frames(lengths[utt]) for utt in rows]
    # One space between units is how they are written; other spacing may be read, but
    # not counted like this.
    if any(
        row.count(b" ") + (len(row) > 0) != count and len(row.split()) != count
        for row, count in zip(rows.values(), frames, strict=True)
    ):
        return None
    with warnings.catch_warnings():
        # NumPy's word for text that is no number.
        warnings.simplefilter("error", DeprecationWarning)
        try:
            units = np.fromstring(b" ".join(rows.values()), dtype=np.int64, sep=" ")
        except (DeprecationWarning, ValueError):
            return None
    if len(units) != sum(frames):
        return None
    if units.min(initial=0) < 0 or units.max(initial=0) >= num_classes:
        return None
    return np.bincount(units, minlength=num_classes)


def _what_is_wrong(
    text: Any, rows: Mapping[str, bytes], num_classes: int, lengths: Mapping[str, int]
) -> RecipeError:
    valid = {str(unit).encode() for unit in range(num_classes)}
    for utt, row in rows.items():
        units, expected = row.split(), num_frames(lengths[utt])
        if len(units) != expected:
            return RecipeError(
                f"{text}: utterance {utt}: found {len(units)} units for {lengths[utt]} "
                f"samples, expected {expected} ((n - 400) // 320 + 1); make labels "
                "anew with stage 5"
            )
        wrong = [unit.decode() for unit in units if unit not in valid]
        if wrong:
            return RecipeError(
                f"{text}: utterance {utt}: found unit {wrong[0]!r}, expected 0 to "
                f"{num_classes - 1}; make labels anew with stage 5, or set num_classes "
                "to the codebook's K"
            )
    return RecipeError(
        f"{text}: found units that are not numbers from 0 to {num_classes - 1}; make "
        "labels anew with stage 5"
    )


def read_languages(
    path: str | Path, names: Sequence[str], utterances: Mapping[str, Any]
) -> dict[str, str]:
    """Read ``utt number`` lines, the position of each language in ``--langs``.

    Returns:
        Language by utterance, for these utterances.

    Raises:
        RecipeError: An utterance has no number, or one that no language has.
    """
    table = read_table(path)
    by_text = {str(number): name for number, name in enumerate(names)}
    languages = {}
    for utt in utterances:
        value = table.get(utt)
        if value not in by_text:
            raise RecipeError(
                f"{path}: utterance {utt}: found language {value}, expected 0 to "
                f"{len(names) - 1}, the position in langs ({', '.join(names)})"
            )
        languages[utt] = by_text[value]
    return languages


def describe(counts: np.ndarray) -> dict[str, float | int]:
    """Say what a histogram comes to.

    ``entropy`` is the loss, in nats and bits per frame, of the best prediction that
    looks at nothing (each unit by its share); ``majority_accuracy`` that of always
    naming the most frequent unit.

    Args:
        counts: Frames per unit ``[K]``, not all 0.
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

    Args:
        by_language: Counts ``[K]`` by language; :data:`UNKNOWN` has no figures of its
            own.
    """
    total = describe(sum(by_language.values()))
    found = {
        "loss_m": {
            "uniform_nats": total["uniform_nats"],
            "unigram_nats": total["entropy_nats"],
        },
        "loss_m_bits": {
            "uniform_bits": total["uniform_bits"],
            "unigram_bits": total["entropy_bits"],
        },
        "acc_m": {
            "uniform_acc": 1 / total["classes"],
            "majority_acc": total["majority_accuracy"],
        },
    }
    for language in sorted(set(by_language) - {UNKNOWN}):
        own = describe(by_language[language])
        found[f"acc_m_{language}"] = {
            f"majority_acc_{language}": own["majority_accuracy"]
        }
        found[f"bits_m_{language}"] = {f"unigram_bits_{language}": own["entropy_bits"]}
    return found


def beside(
    figures: Mapping[str, Any], standards: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    """Put each baseline behind the figure it belongs to.

    Args:
        figures: An epoch's, by name; the order is that of the log.
        standards: Of :func:`baselines`; those of figures that are absent stay out.
    """
    ordered: dict[str, Any] = {}
    for key, value in figures.items():
        ordered[key] = value
        ordered |= standards.get(key, {})
    return ordered
