"""Figures over languages equal ML-SUPERB 2.0's definition."""

import random
import re
import statistics
import unicodedata

import pytest

from espnet2_lamer.evaluation.mlsuperb import few_shot_group
from espnet2_lamer.evaluation.scoring import (
    identification_rates,
    language_figures,
    lid_accuracy,
    mean_of_groups,
    utterance_rates,
)
from espnet2_lamer.fileio.datadir import write_table

LANGS = [*(f"l{chr(97 + i // 5)}{chr(97 + i % 5)}" for i in range(18)), "cmn", "yue"]


def challenge_cer(ref, hyp, lang):
    """CER of one utterance as the challenge defines it, by jiwer."""
    import jiwer

    def clean(text):
        if lang in ("cmn", "yue", "jpn", "tha"):
            text = re.sub(r"\s", "", text)
        kept = [c for c in text if not unicodedata.category(c).startswith("P")]
        return "".join(kept).upper()

    return jiwer.cer(clean(ref), clean(hyp))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    rng = random.Random(11)
    root = tmp_path_factory.mktemp("languages")
    refs, hyps, utt2lang = {}, {}, {}
    for lang in LANGS:
        for number in range(rng.randint(3, 9)):
            utt = f"{lang}_{number:02d}"
            words = ["".join(rng.choices("ab'你好。", k=4)) for _ in range(3)]
            refs[utt] = f"[{lang}] A" + " ".join(words)
            noisy = "".join(c for c in " ".join(words) if rng.random() > 0.3)
            hyps[utt] = f"[{rng.choice([lang, 'eng'])}] {noisy.strip()}"
            utt2lang[utt] = lang
    write_table(root / "ref", refs)
    write_table(root / "hyp", hyps)
    return root / "ref", root / "hyp", refs, hyps, utt2lang


def test_mean_worst_and_deviation_equal_the_challenges_definition(files):
    ref, hyp, refs, hyps, utt2lang = files
    figures = language_figures(utterance_rates(ref, hyp, "char", utt2lang))
    means = {}
    for lang in LANGS:
        utts = [u for u in refs if utt2lang[u] == lang]
        cers = [
            challenge_cer(refs[u][5:].strip(), hyps[u][5:].strip(), lang) for u in utts
        ]
        means[lang] = 100 * sum(cers) / len(cers)
    ordered = sorted(means.values(), reverse=True)
    found = {name: measure.value for name, measure in figures.items()}
    assert found == {
        "mean over languages": pytest.approx(sum(ordered) / 20, abs=1e-9),
        "worst language": pytest.approx(ordered[0], abs=1e-9),
        "mean of the 15 worst languages": pytest.approx(
            sum(ordered[:15]) / 15, abs=1e-9
        ),
        "deviation over languages": pytest.approx(statistics.stdev(ordered), abs=1e-9),
    }
    assert means[figures["worst language"].note] == pytest.approx(ordered[0])
    low, high = figures["mean over languages"].interval
    assert low < found["mean over languages"] < high
    assert figures["mean over languages"].count == len(refs)


def test_the_worst_language_of_an_accuracy_is_the_lowest(files):
    ref, hyp, refs, hyps, utt2lang = files
    groups = identification_rates(lid_accuracy(ref, hyp))
    figures = language_figures(groups, higher_is_better=True)
    accuracies = [
        statistics.fmean(
            hyps[u][:5] == f"[{lang}]" for u in refs if utt2lang[u] == lang
        )
        for lang in LANGS
    ]
    assert figures["worst language"].value == pytest.approx(100 * min(accuracies))
    expected = 100 * statistics.fmean(accuracies)
    assert figures["mean over languages"].value == pytest.approx(expected)


def test_other_units_are_compared_token_by_token(tmp_path):
    write_table(tmp_path / "ref", {"u": "l ao3 sh i1"})
    write_table(tmp_path / "hyp", {"u": "l ao3 s i1"})
    rates = utterance_rates(tmp_path / "ref", tmp_path / "hyp", "pinyin", {"u": "cmn"})
    assert rates == {"cmn": {"u": 0.25}}


def test_systems_are_compared_by_a_paired_test_within_languages(files):
    ref, hyp, _, _, utt2lang = files
    rates = utterance_rates(ref, hyp, "char", utt2lang)
    worse = {lang: {u: r + 0.1 for u, r in row.items()} for lang, row in rates.items()}
    ours, theirs = (language_figures(g)["mean over languages"] for g in (rates, worse))
    test = ours.compare(theirs)
    assert test.value == pytest.approx(-10) and test.p < 0.001
    del worse["cmn"]
    with pytest.raises(ValueError, match="not over the same utterances"):
        ours.compare(language_figures(worse)["mean over languages"])


def test_seeds_are_averaged_utterance_by_utterance():
    trainings = [{"eng": {"a": 0.2, "b": 0.4}}, {"eng": {"a": 0.4, "b": 0.4}}]
    assert mean_of_groups(trainings) == {"eng": {"a": pytest.approx(0.3), "b": 0.4}}


def test_the_twenty_reserved_languages_are_few_shot():
    # egs2/ml_superb/asr1/local/split_results.py, RESERVE_LANG.
    reserved = "dan lit tur srp vie kaz zul tsn epo frr tok umb bos ful ceb luo kea sun"
    for lang in [*reserved.split(), "tso", "tos"]:
        assert few_shot_group(lang) == "few-shot languages"
    assert few_shot_group("eng") == "trained languages"
