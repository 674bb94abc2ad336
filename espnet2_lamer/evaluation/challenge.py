"""The six figures of ML-SUPERB 2.0's challenge, as its script computes them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev

from espnet2_lamer.evaluation.results import MeasureTable
from espnet2_lamer.evaluation.scored_runs import ScoredTest
from espnet2_lamer.evaluation.scoring import (
    WORST,
    Groups,
    challenge_tokens,
    mean_of_groups,
    read_pair,
)
from espnet2_lamer.metrics.alignment import error_counts
from espnet2_lamer.metrics.measure import Measure

#: Figures of a frozen MMS 1B with two transformer blocks, in the README of
#: egs2/ml_superb2/asr1: CER, LID, worst 15, deviation, dialects' CER and LID.
BASELINE = (24.0, 74.0, 71.0, 25.5, 32.7, 54.0)
# What stands before the text: a tag, always of three letters.
_TAG = len("[eng]")


def challenge_rates(
    ref: str | Path, hyp: str | Path, utt2lang: Mapping[str, str]
) -> tuple[Groups, Groups]:
    """Return CER and 1 or 0 for the language, per language and utterance.

    As ``egs2/ml_superb2/asr1/local/score.py``: the first five characters of a line are
    the language, the rest is the text, without Unicode punctuation, in upper case, in
    some languages without spaces. An utterance whose reference is empty then counts in
    neither. A hypothesis without a tag loses five characters of its text, too. Where
    the script stops, at an empty hypothesis, both count as wrong here.

    Raises:
        RecipeError: As :func:`~espnet2_lamer.evaluation.scoring.read_pair`.
    """
    references, hypotheses = read_pair(ref, hyp)
    cers: dict[str, dict[str, float]] = {}
    hits: dict[str, dict[str, float]] = {}
    for utt, reference in references.items():
        lang, found = utt2lang[utt], hypotheses[utt]
        wanted = challenge_tokens(reference[_TAG:], lang)
        if not wanted:
            continue
        errors = error_counts(wanted, challenge_tokens(found[_TAG:], lang)).errors
        cers.setdefault(lang, {})[utt] = errors / len(wanted)
        hits.setdefault(lang, {})[utt] = float(found[:_TAG] == f"[{lang}]")
    return cers, hits


def challenge_figures(
    cers: Groups, hits: Groups, dialects: bool = False, seed: int = 0
) -> dict[str, Measure]:
    """Return the challenge's figures of a test set in per cent, by its names.

    ``dialects``: of a set of dialects, the means alone. Where there are fewer than 15
    languages (the script would divide by 15), the worst are all of them, and the note
    says so. One language has no deviation.
    """
    means = {
        "CER": Measure.of_groups(cers, seed),
        "LID": Measure.of_groups(hits, seed),
    }
    if dialects:
        return {f"Dialect {name}": measure for name, measure in means.items()}
    figures = {f"Standard {name}": measure for name, measure in means.items()}
    rates = sorted((100 * fmean(v.values()) for v in cers.values()), reverse=True)
    count = sum(map(len, cers.values()))
    note = "" if len(rates) >= WORST else f"all {len(rates)}"
    worst = Measure(fmean(rates[:WORST]), count=count, note=note)
    figures[f"Worst {WORST} CER"] = worst
    if len(rates) > 1:
        figures["CER StD"] = Measure(stdev(rates), count=count)
    return figures


def challenge_table(
    tests: Sequence[ScoredTest],
    expdir: str | Path,
    baselines: Sequence[str] = (),
    seed: int = 0,
) -> MeasureTable | None:
    """Summarise decoded runs of ML-SUPERB 2.0; None where there are none."""
    found: dict[tuple[str, str], list[tuple[Groups, Groups]]] = {}
    heads: set[str] = set()
    for test in tests:
        run, label = test.run, test.task.test
        if run.benchmark != "mlsuperb2":
            continue
        here = run.directory(expdir) / f"decode_{label}"
        files = here / "ref" / "text", here / "free" / "1best_recog" / "text"
        rates = challenge_rates(*files, test.utt2lang)
        found.setdefault((label, run.system), []).append(rates)
        heads.add(run.head_kind)
    rows: dict[str, dict[str, Measure]] = {}
    for (label, system), trainings in found.items():
        cers, hits = (mean_of_groups(part) for part in zip(*trainings, strict=True))
        dialects = label.endswith("dialect")
        for name, measure in challenge_figures(cers, hits, dialects, seed).items():
            rows.setdefault(f"{label}: {name}", {})[system] = measure
    if not rows:
        return None
    published = ", ".join(f"{value:g}" for value in BASELINE)
    return MeasureTable(
        "ML-SUPERB 2.0 challenge",
        "figure (%)",
        rows,
        baselines,
        f"Head: {', '.join(sorted(heads))}. "
        "As egs2/ml_superb2/asr1/local/score.py: the mean over a language's "
        "utterances, then over languages; a line's first five characters are its "
        "language. dev chose the checkpoints, too, as there. Published for a frozen "
        f"MMS 1B with two transformer blocks, of all languages: {published} (CER, LID, "
        "worst 15, deviation, dialects' CER and LID).",
    )
