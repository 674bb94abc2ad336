"""Error rates and language identification of hypothesis files, also over languages."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, ClassVar

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation.text_units import UNITS
from espnet2_lamer.fileio.datadir import read_table
from espnet2_lamer.metrics.alignment import Counts, error_counts, sclite_counts
from espnet2_lamer.metrics.bootstrap import wilson_interval
from espnet2_lamer.metrics.measure import Measure

#: What tables call the unit ``bpe``.
BPE = "bpe (scored in characters)"
# Hypotheses of these units are plain text, counted in characters.
_CHARACTERS = ("char", "bpe")
#: Values per language and utterance id, as fractions.
Groups = Mapping[str, Mapping[str, float]]

#: Languages whose spaces ML-SUPERB 2.0 does not score.
UNSPACED = ("cmn", "jpn", "tha", "yue")
#: The challenge of ML-SUPERB 2.0 reports the mean of so many worst languages.
WORST = 15
LANGUAGE_TAG = re.compile(r"\[[a-z]{3}(?:_[a-z]{3})?\]")


@dataclass(frozen=True)
class Score:
    """Corpus-level error rate of one hypothesis file.

    Attributes:
        counts: Alignment counts per utterance id, in byte order of the ids.
        sclite: Counts along sclite's alignment, per utterance id.
    """

    kind: ClassVar[str] = "error rate"
    counts: Mapping[str, Counts]
    sclite: Mapping[str, Counts]
    seed: int = 0

    def subset(self, utts: Collection[str]) -> "Score":
        """Score of some of the utterances, such as those of one language."""
        kept = {utt: counts for utt, counts in self.counts.items() if utt in utts}
        return Score(kept, {utt: self.sclite[utt] for utt in kept})

    @cached_property
    def measure(self) -> Measure:
        """The error rate as a figure, with its bootstrap interval."""
        parts = {u: (c.errors, c.ref_length) for u, c in self.counts.items()}
        return Measure.of_rate(parts, self.seed)

    @property
    def total(self) -> Counts:
        """Counts summed over utterances."""
        return Counts(*map(sum, zip(*self.counts.values(), strict=True)))

    @property
    def sclite_total(self) -> Counts:
        """Counts along sclite's alignment, summed over utterances."""
        return Counts(*map(sum, zip(*self.sclite.values(), strict=True)))

    @property
    def error_rate(self) -> float:
        """100 * errors / ref_length."""
        return self.measure.value

    @property
    def sclite_rate(self) -> float:
        """The error rate along sclite's alignment, per cent: never the lower one."""
        total = self.sclite_total
        return 100 * total.errors / total.ref_length

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the error rate, per cent."""
        return self.measure.interval

    @property
    def utterances(self) -> int:
        """Number of utterances."""
        return len(self.counts)

    @property
    def sentence_error_rate(self) -> float:
        """Per cent of utterances with at least one error."""
        wrong = sum(c.errors > 0 for c in self.counts.values())
        return 100 * wrong / self.utterances

    def summary(self) -> dict[str, Any]:
        """The figures that ``bin.score`` writes."""
        total = self.total
        return {
            "errors": total.errors,
            "ref_length": total.ref_length,
            "error_rate": self.error_rate,
            "sclite_error_rate": self.sclite_rate,
            "interval": self.interval,
            "utterances": self.utterances,
        }


@dataclass(frozen=True)
class LidScore:
    """Language-identification accuracy of one hypothesis file.

    Attributes:
        languages: True language per utterance id, in byte order of the ids.
        found: Language found per utterance id; ``UNK`` where there is no tag.
    """

    kind: ClassVar[str] = "accuracy"
    languages: Mapping[str, str]
    found: Mapping[str, str]

    def subset(self, utts: Collection[str]) -> "LidScore":
        """Score of some of the utterances, such as those of one language."""
        kept = {utt: lang for utt, lang in self.languages.items() if utt in utts}
        return LidScore(kept, {utt: self.found[utt] for utt in kept})

    @cached_property
    def measure(self) -> Measure:
        """Per cent of utterances whose language was found, with Wilson's interval."""
        parts = {u: (int(self.found[u] == t), 1) for u, t in self.languages.items()}
        correct = sum(right for right, _ in parts.values())
        low, high = wilson_interval(correct, len(parts))
        interval = (100 * low, 100 * high)
        return Measure(100 * correct / len(parts), interval, len(parts), parts)

    @property
    def accuracy(self) -> float:
        """Per cent of utterances whose language was found."""
        return self.measure.value

    @property
    def confusion(self) -> dict[str, dict[str, int]]:
        """``confusion[true][found]`` utterance counts, both sorted."""
        langs = sorted(set(self.languages.values()))
        rows: dict[str, Counter[str]] = {lang: Counter() for lang in langs}
        for utt, lang in self.languages.items():
            rows[lang][self.found[utt]] += 1
        return {lang: dict(sorted(row.items())) for lang, row in rows.items()}

    @property
    def majority(self) -> float:
        """Accuracy, per cent, of always answering the most frequent language."""
        (_, most), *_ = Counter(self.languages.values()).most_common(1)
        return 100 * most / len(self.languages)


def tokenize(line: str, unit: str, remove_tags: bool = False) -> list[str]:
    """Split a line into the tokens that are counted.

    ``char`` gives every character and a ``<space>`` token for each run of white space,
    as ESPnet's scoring does (``tokenize_text -f 2- --token_type char``); so does
    ``bpe``, whose pieces are joined to plain text. The other units split on white
    space. With ``remove_tags`` language tags are left out, as in ESPnet's
    ``--remove_non_linguistic_symbols``: the space after a tag stays, and in ``char`` it
    counts. Normalised transcripts hold no other brackets.
    """
    line = " ".join(line.split())
    if remove_tags:
        line = LANGUAGE_TAG.sub("", line)
    if unit in _CHARACTERS:
        return ["<space>" if c == " " else c for c in line]
    return line.split()


def score_files(
    ref: str | Path,
    hyp: str | Path,
    unit: str,
    seed: int = 0,
    remove_tags: bool = False,
    normalize: Callable[[str], str] = str,
) -> Score:
    """Score a Kaldi-style hypothesis ``text`` against a reference ``text``.

    Both are ``utt_id text`` lines in units, of exactly the same utterances; hypotheses
    may be empty. For ``unit`` and ``remove_tags`` see :func:`tokenize`; ``seed`` is of
    the bootstrap interval, and ``normalize`` comes before everything.

    Raises:
        RecipeError: Unknown unit, a missing or empty file, an utterance on one side
            only, or an empty reference.
    """
    if unit not in (*UNITS, *_CHARACTERS):
        raise RecipeError(f"unit {unit!r}: expected one of {', '.join(UNITS)}")
    references, hypotheses = read_pair(ref, hyp)
    counts, sclite = {}, {}
    for utt, reference in references.items():
        tokens = tokenize(normalize(reference), unit, remove_tags)
        if not tokens:
            raise RecipeError(
                f"{ref}: utterance {utt!r} has an empty reference, so its error rate "
                "is undefined; drop it from both files"
            )
        found = tokenize(normalize(hypotheses[utt]), unit, remove_tags)
        counts[utt] = error_counts(tokens, found)
        sclite[utt] = sclite_counts(tokens, found)
    return Score(counts, sclite, seed)


def language_tag(text: str) -> str:
    """Return the language tag that counts in a text, with brackets.

    As ML-SUPERB's scoring script: the first ``[abc]``; if there is none, the first
    ``[abc_def]`` (such as ``[org_jpn]``); if there is none either, ``[UNK]``.
    """
    for pattern in (r"\[[a-z]{3}\]", r"\[[a-z]{3}_[a-z]{3}\]"):
        if match := re.search(pattern, text):
            return match[0]
    return "[UNK]"


def lid_accuracy(ref: str | Path, hyp: str | Path) -> LidScore:
    """Language-identification accuracy, as ML-SUPERB's scoring script counts it.

    References are ``utt_id [lang] ...`` lines with exactly one tag each; for hypotheses
    see :func:`language_tag`.

    Raises:
        RecipeError: A missing or empty file, an utterance on one side only, or a
            reference without exactly one tag.
    """
    references, hypotheses = read_pair(ref, hyp)
    languages = {}
    for utt, text in references.items():
        tags = LANGUAGE_TAG.findall(text)
        if len(tags) != 1:
            raise RecipeError(
                f"{ref}: utterance {utt!r} has {len(tags)} language tags in {text!r}; "
                "expected exactly one, such as [eng]"
            )
        languages[utt] = tags[0].strip("[]")
    found = {utt: language_tag(hypotheses[utt]).strip("[]") for utt in references}
    return LidScore(languages, found)


def by_language(
    score: Score | LidScore,
    utt2lang: Mapping[str, str],
    group: Callable[[str], str] = str,
) -> dict[str, Any]:
    """Split a score by language, or by what ``group`` says of a language.

    The official scripts score such groups corpus-level too (``split_results.py``).
    """
    utts: dict[str, set[str]] = {}
    for utt, lang in utt2lang.items():
        utts.setdefault(group(lang), set()).add(utt)
    return {name: score.subset(utts[name]) for name in sorted(utts)}


def read_pair(
    ref: str | Path, hyp: str | Path
) -> tuple[dict[str, str], dict[str, str]]:
    """Read two ``text`` files that hold the same utterances, in byte order of the ids.

    Raises:
        RecipeError: A file is missing or empty, has more columns than the two, or an
            utterance is on one side only.
    """
    references, hypotheses = read_table(ref), read_table(hyp, made_by="decoding")
    if not references:
        raise RecipeError(f"{ref}: no utterances to score")
    for path, table in ((ref, references), (hyp, hypotheses)):
        more = next((utt for utt, text in table.items() if "\t" in text), None)
        if more is not None or "utt_id" in table:
            found = f"more than two columns ({more})" if more else "a header line"
            raise RecipeError(f"{path}: found {found}, expected lines 'utt_id text'")
    for path, other, lost in (
        (hyp, ref, references.keys() - hypotheses.keys()),
        (ref, hyp, hypotheses.keys() - references.keys()),
    ):
        if lost:
            shown = ", ".join(map(repr, sorted(lost)[:5])) + ", ..." * (len(lost) > 5)
            raise RecipeError(
                f"{path}: {len(lost)} utterance(s) of {other} missing: {shown}; both "
                "files must hold the same utterances"
            )
    # Byte order, so that the bootstrap does not depend on the order of the lines.
    order = sorted(references, key=str.encode)
    return {utt: references[utt] for utt in order}, hypotheses


def utterance_rates(
    ref: str | Path, hyp: str | Path, unit: str, utt2lang: Mapping[str, str]
) -> dict[str, dict[str, float]]:
    """Return the error rate of every utterance, by language, as a fraction.

    In characters (``char``, ``bpe``) after ML-SUPERB 2.0's normalisation: no Unicode
    punctuation, upper case, no spaces in the languages of :data:`UNSPACED`; language
    tags are left out. As in its script, an utterance whose reference is then empty is
    skipped. Other units are compared token by token.
    """
    references, hypotheses = read_pair(ref, hyp)
    groups: dict[str, dict[str, float]] = {}
    for utt, reference in references.items():
        lang = utt2lang[utt]
        wanted = _tokens(reference, unit, lang)
        if wanted:
            errors = error_counts(wanted, _tokens(hypotheses[utt], unit, lang)).errors
            groups.setdefault(lang, {})[utt] = errors / len(wanted)
    return groups


def identification_rates(score: LidScore) -> dict[str, dict[str, float]]:
    """Return 1 or 0 for every utterance, by true language."""
    groups: dict[str, dict[str, float]] = {}
    for utt, (right, _) in score.measure.parts.items():
        groups.setdefault(score.languages[utt], {})[utt] = float(right)
    return groups


def mean_of_groups(trainings: Sequence[Groups]) -> Groups:
    """Average the utterances' values of several trainings on one test set."""
    return {
        lang: {utt: fmean(t[lang][utt] for t in trainings) for utt in utts}
        for lang, utts in trainings[0].items()
    }


def language_figures(
    groups: Groups, seed: int = 0, higher_is_better: bool = False
) -> dict[str, Measure]:
    """Summarise languages: their mean, the worst one, and how far they lie apart.

    As ``egs2/ml_superb2/asr1/local/score.py``: a language's rate is the mean over its
    utterances (not corpus-level as in ML-SUPERB 1.0), and the deviation is the sample
    standard deviation over languages.

    Returns:
        Figures in per cent by name: ``mean over languages`` with its interval,
        ``worst language`` (its note names it), ``mean of the 15 worst languages``
        where there are more, ``deviation over languages`` where there are several.
    """
    rates = {lang: 100 * fmean(values.values()) for lang, values in groups.items()}
    ordered = sorted(rates, key=lambda lang: (rates[lang], lang))
    ordered = ordered if higher_is_better else ordered[::-1]
    count = sum(map(len, groups.values()))
    worst = ordered[0]
    figures = {
        "mean over languages": Measure.of_groups(groups, seed),
        "worst language": Measure(rates[worst], count=len(groups[worst]), note=worst),
    }
    if len(ordered) > WORST:
        figures[f"mean of the {WORST} worst languages"] = Measure(
            fmean(rates[lang] for lang in ordered[:WORST]), count=count
        )
    if len(ordered) > 1:
        spread = stdev(rates.values())
        figures["deviation over languages"] = Measure(spread, count=count)
    return figures


def _tokens(text: str, unit: str, lang: str) -> list[str]:
    if unit not in _CHARACTERS:
        return tokenize(text, unit, remove_tags=True)
    return challenge_tokens(LANGUAGE_TAG.sub("", text), lang)


def challenge_tokens(line: str, lang: str) -> list[str]:
    """Return the characters of a text that ML-SUPERB 2.0 compares."""
    line = "".join(line.split()) if lang in UNSPACED else line
    kept = (c for c in line if not unicodedata.category(c).startswith("P"))
    return list("".join(kept).upper().strip())
