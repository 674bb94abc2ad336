"""Check the labels of one part of the data before training, and say what they are."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from espnet2_lamer.train.label_counts import (
    baselines,
    count_labels,
    describe,
    read_languages,
)

_PARTS = {"train": "training", "valid": "validation"}
# ESPnet's data types whose files are `utt u1 u2 ...` lines.
_TEXT_TYPES = ("text", "text_int")


@dataclasses.dataclass(frozen=True)
class DataFiles:
    """The files of one part of the data that are read as text.

    Attributes:
        text: Labels.
        lang: Number of each utterance's language.
    """

    text: str | None = None
    lang: str | None = None

    @classmethod
    def of(cls, path_name_type: Sequence[Sequence[str]]) -> "DataFiles":
        """Pick them from ESPnet's ``--train_data_path_and_name_and_type``."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(
            **{
                name: path
                for path, name, kind in path_name_type
                if name in names and kind in _TEXT_TYPES
            }
        )


@dataclasses.dataclass(frozen=True)
class LabelCheck:
    """What was found.

    Attributes:
        report: For ``health.json``; empty where labels are in no text file.
        standards: See :func:`~espnet2_lamer.train.label_counts.baselines`.
        languages: Language by utterance; ``None`` where the data do not say.
    """

    report: dict[str, Any]
    standards: dict[str, dict[str, float]]
    languages: dict[str, str] | None


def check_labels(
    part: str,
    files: DataFiles,
    lengths: Mapping[str, int],
    num_classes: int,
    langs: Sequence[str],
    brief: bool = False,
) -> LabelCheck:
    """Check that every frame has a unit, count units, and log both.

    Args:
        part: ``"train"`` or ``"valid"``.
        files: Of this part.
        lengths: Samples by utterance.
        num_classes: K.
        langs: Names of the languages that ``files.lang`` counts.
        brief: Leave languages and warnings out of the log.

    Raises:
        RecipeError: Labels do not fit the audio or K, or a language is not known.
    """
    languages = None
    if files.lang is not None and langs:
        languages = read_languages(files.lang, langs, lengths)
    if files.text is None:
        logging.info("%s labels are in no text file: not counted", _PARTS[part])
        return LabelCheck({}, {}, languages)
    counts = count_labels(files.text, num_classes, lengths, languages)
    total = sum(counts.values())
    report: dict[str, Any] = {"utterances": len(lengths), **describe(total)}
    if languages is not None:
        report["languages"] = {k: describe(counts[k]) for k in sorted(counts)}
    _log(_PARTS[part], report, brief)
    report["histogram"] = total.tolist()
    return LabelCheck(report, baselines(counts), languages)


def _log(name: str, found: dict[str, Any], brief: bool) -> None:
    logging.info(
        "%s labels: one unit per frame in %d utterances, %d frames; %d of %d units "
        "occur; loss of the unigram %.3f bits (%.3f nats), of the uniform distribution "
        "%.3f bits (%.3f nats); always unit %d is right in %.2f %%",
        name,
        *(found[k] for k in ("utterances", "frames", "used", "classes")),
        *(found[k] for k in ("entropy_bits", "entropy_nats")),
        *(found[k] for k in ("uniform_bits", "uniform_nats", "majority_class")),
        100 * found["majority_accuracy"],
    )
    if brief:
        return
    for language, own in found.get("languages", {}).items():
        logging.info(
            "  %s: %d frames, %d units occur, unigram %.3f bits, always unit %d is "
            "right in %.2f %%",
            language,
            *(own[k] for k in ("frames", "used", "entropy_bits", "majority_class")),
            100 * own["majority_accuracy"],
        )
    share = found["majority_accuracy"]
    if share > 0.5 or 2 * found["used"] < found["classes"]:
        logging.warning(
            "%s labels tell little: %d of %d units occur, and one is on %.1f %% of the "
            "frames; look at exp/label_quality.md, or run stages 4 and 5 with fewer "
            "clusters",
            name,
            *(found["used"], found["classes"], 100 * share),
        )
