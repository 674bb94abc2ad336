"""What labels are worth: classes used, entropy, run length, phones and languages."""

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import write_json, write_text
from espnet2_lamer.fileio.datadir import read_table
from espnet2_lamer.metrics.probe import frame_phones
from espnet2_lamer.metrics.similarity import entropy, phone_scores
from espnet2_lamer.units.labels import iterate_labels

# Frames that no phone covers.
SILENCE = "sil"


def label_quality(
    text_km: str | Path,
    n_clusters: int,
    phones_ctm: str | Path | None = None,
    utt2lang: str | Path | None = None,
) -> dict[str, Any]:
    """Measure the labels of a ``text.km``.

    ``phones_ctm`` is read by :func:`~espnet2_lamer.metrics.probe.frame_phones`; an
    utterance without phones is not counted.

    Returns:
        ``utterances``, ``frames``, ``used`` and ``dead`` classes, ``entropy`` of units
        in nats and its ``perplexity``, ``bigram_perplexity`` (of a frame's unit given
        the last one's, counted on the same labels), ``run_length`` in frames; with
        phones also :func:`phone_scores`, with languages ``language_purity`` (frames
        whose language is the likeliest of their unit) beside ``language_majority``.

    Raises:
        RecipeError: A file is missing or malformed, or no utterance has phones.
    """
    unigrams = np.zeros(n_clusters, dtype=np.int64)
    bigrams = np.zeros((n_clusters, n_clusters), dtype=np.int64)
    by_phone: dict[str, np.ndarray] = defaultdict(lambda: np.zeros_like(unigrams))
    by_lang: dict[str, np.ndarray] = defaultdict(lambda: np.zeros_like(unigrams))
    phones = frame_phones(phones_ctm) if phones_ctm else {}
    langs = read_table(utt2lang) if utt2lang else {}
    utterances = runs = with_phones = 0
    for utt, units in iterate_labels(text_km, n_clusters):
        counts = np.bincount(units, minlength=n_clusters)
        unigrams += counts
        np.add.at(bigrams, (units[:-1], units[1:]), 1)
        utterances += 1
        runs += 1 + int((units[1:] != units[:-1]).sum())
        if utt in phones:
            with_phones += 1
            spoken = [phone or SILENCE for phone in phones[utt][: len(units)]]
            spoken += [SILENCE] * (len(units) - len(spoken))
            names, which = np.unique(spoken, return_inverse=True)
            for number, phone in enumerate(names.tolist()):
                np.add.at(by_phone[phone], units[which == number], 1)
        if langs:
            if utt not in langs:
                raise RecipeError(f"{utt2lang}: no language for {utt!r}; add it")
            by_lang[langs[utt]] += counts
    if not utterances:
        raise RecipeError(f"{text_km}: no labels; run assign_units")

    frames = int(unigrams.sum())
    report: dict[str, Any] = {
        "utterances": utterances,
        "frames": frames,
        "K": n_clusters,
        "used": int((unigrams > 0).sum()),
        "dead": int((unigrams == 0).sum()),
        "entropy": entropy(unigrams),
        "perplexity": math.exp(entropy(unigrams)),
        "run_length": frames / runs,
    }
    if bigrams.any():
        conditional = entropy(bigrams) - entropy(bigrams.sum(1))
        report["bigram_perplexity"] = math.exp(conditional)
    if phones_ctm:
        if not with_phones:
            raise RecipeError(
                f"{phones_ctm}: no utterance of {text_km} is in it; give the phones "
                "of the same data"
            )
        report["utterances_with_phones"] = with_phones
        report |= phone_scores(np.stack([by_phone[p] for p in sorted(by_phone)]))
    if langs:
        table = np.stack([by_lang[lang] for lang in sorted(by_lang)])  # [langs, K]
        report["language_purity"] = float(table.max(0).sum() / frames)
        report["language_majority"] = float(table.sum(1).max() / frames)
    return report


def write_quality(report: dict[str, Any], output: str | Path) -> None:
    """Write the report as JSON to ``output`` and as a table beside it (``.md``)."""
    write_json(output, report)
    lines = ["| measure | value |", "|---|---|"]
    for key, value in report.items():
        shown = f"{value:.4f}" if isinstance(value, float) else value
        lines.append(f"| {key} | {shown} |")
    write_text(Path(output).with_suffix(".md"), "\n".join(lines) + "\n")


def figures(report: dict[str, Any]) -> str:
    """Say a report's numbers in one line."""
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in report.items()
    )
