"""Intervals cover, tests are calibrated under the null and find real differences."""

from math import comb

import numpy as np
import pytest

from espnet2_lamer.metrics.bootstrap import (
    macro_interval,
    mcnemar_exact,
    paired_bootstrap,
    paired_macro_bootstrap,
    rate_interval,
    wilson_interval,
)
from espnet2_lamer.metrics.measure import Measure


def simulated_errors(rng, rates, lengths):
    """Errors per utterance: binomial, each utterance with its own difficulty."""
    return rng.binomial(lengths, np.clip(rates, 0, 1))


def test_interval_covers_the_true_rate_about_95_times_in_100():
    rng = np.random.default_rng(1)
    covered, trials, mean = 0, 300, 0.2
    for _ in range(trials):
        lengths = rng.integers(20, 60, size=80)
        errors = simulated_errors(rng, rng.beta(2, 8, size=80), lengths)
        low, high = rate_interval(errors, lengths, resamples=500)
        covered += low <= mean <= high
    # 0.95 expected; standard error sqrt(.95 * .05 / 300) = 0.013; the percentile
    # bootstrap is known to fall a little short of its nominal level.
    assert 0.90 <= covered / trials <= 0.985


def test_interval_of_equal_lengths_matches_the_standard_error_of_the_mean():
    rng = np.random.default_rng(2)
    errors = rng.integers(0, 10, size=400)
    low, high = rate_interval(errors, np.full(400, 10))
    standard_error = errors.std() / 10 / 400**0.5
    assert high - low == pytest.approx(2 * 1.96 * standard_error, rel=0.05)


def test_interval_is_the_same_for_the_same_seed():
    rng = np.random.default_rng(5)
    arguments = (rng.integers(0, 9, size=50), rng.integers(9, 30, size=50))
    assert rate_interval(*arguments) == rate_interval(*arguments)
    assert rate_interval(*arguments, seed=1) != rate_interval(*arguments, seed=3)


def test_paired_p_values_are_uniform_when_systems_are_equal():
    rng = np.random.default_rng(3)
    p_values = []
    for _ in range(400):
        lengths = rng.integers(20, 60, size=100)
        difficulty = rng.beta(2, 8, size=100)
        one, two = (simulated_errors(rng, difficulty, lengths) for _ in range(2))
        p_values.append(paired_bootstrap(one, two, lengths, resamples=400).p)
    share_below = [np.mean(np.array(p_values) < level) for level in (0.05, 0.5)]
    # Standard errors 0.011 and 0.025.
    assert 0.02 <= share_below[0] <= 0.09
    assert 0.42 <= share_below[1] <= 0.58


def test_a_real_difference_hidden_in_utterance_difficulty_is_found():
    rng = np.random.default_rng(4)
    lengths = rng.integers(40, 60, size=200)
    difficulty = rng.beta(1, 3, size=200)
    errors = simulated_errors(rng, 0.85 * difficulty, lengths)
    baseline = simulated_errors(rng, difficulty, lengths)
    # Seen one by one the intervals overlap; the pairing removes the difficulty.
    assert rate_interval(errors, lengths)[1] > rate_interval(baseline, lengths)[0]
    test = paired_bootstrap(errors, baseline, lengths)
    assert test.p < 0.01
    assert test.interval[0] < test.value < test.interval[1] < 0
    assert test.value == pytest.approx((errors.sum() - baseline.sum()) / lengths.sum())


def test_identical_systems_have_p_one():
    test = paired_bootstrap([1, 0, 2], [1, 0, 2], [5, 5, 5])
    assert (test.p, test.value) == (1.0, 0.0)


def test_swapping_the_systems_mirrors_the_paired_test():
    forth = paired_bootstrap([3, 1, 0, 2], [2, 2, 1, 2], [9, 8, 7, 9])
    back = paired_bootstrap([2, 2, 1, 2], [3, 1, 0, 2], [9, 8, 7, 9])
    assert back.value == -forth.value
    assert back.interval == pytest.approx([-b for b in forth.interval[::-1]])
    assert back.p == forth.p


def test_mcnemar_equals_the_binomial_sum():
    system = [1] * 9 + [0] * 2 + [1] * 30 + [0] * 4
    baseline = [0] * 9 + [1] * 2 + [1] * 30 + [0] * 4
    expected = 2 * sum(comb(11, i) for i in range(3)) / 2**11
    assert mcnemar_exact(system, baseline) == pytest.approx(expected)
    assert mcnemar_exact(baseline, system) == pytest.approx(expected)
    assert mcnemar_exact(system, system) == 1.0


def test_mcnemar_of_the_papers_lid_errors_is_not_significant():
    # Lamer-SSL, Table 1: 4 and 6 errors in 502 utterances. Sharing none of them is
    # the pairing that tells most, and even then p = 0.75.
    lamer = [0] * 4 + [1] * 498
    lora = [1] * 496 + [0] * 6
    assert mcnemar_exact(lamer, lora) == pytest.approx(0.754, abs=1e-3)


def test_wilson_interval_stays_inside_zero_and_one():
    assert wilson_interval(0, 10)[0] == 0
    assert wilson_interval(10, 10)[1] == 1


def test_a_rate_leaves_out_utterances_without_items():
    measure = Measure.of_rate({"b": (1, 4), "a": (2, 4), "c": (0, 0)})
    assert (measure.value, measure.count) == (37.5, 2)
    assert measure.interval == (25.0, 50.0)
    with pytest.raises(ValueError, match="no utterance"):
        Measure.of_rate({"c": (0, 0)})


def test_measures_compare_only_on_the_same_utterances():
    one = Measure.of_rate({"a": (1, 2), "b": (2, 2)})
    assert one.compare(Measure.of_rate({"a": (0, 2), "b": (1, 2)})).value == 50
    untested = one.compare(Measure(50.0))
    assert (untested.value, untested.interval, untested.p) == (25.0, None, None)
    with pytest.raises(ValueError, match="same utterances"):
        one.compare(Measure.of_rate({"a": (0, 2)}))


def test_macro_interval_matches_the_standard_error_of_a_mean_of_means():
    rng = np.random.default_rng(8)
    groups = [rng.random(size) for size in (100, 400, 50)]
    low, high = macro_interval(groups)
    # Independent means: variances add, divided by the number of groups squared.
    error = sum(g.var() / len(g) for g in groups) ** 0.5 / len(groups)
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.05)
    assert low < np.mean([g.mean() for g in groups]) < high


def test_macro_comparison_pairs_utterances_and_is_one_for_equal_systems():
    rng = np.random.default_rng(9)
    base = [rng.random(size) for size in (60, 30)]
    assert paired_macro_bootstrap(base, base).p == 1.0
    better = [g - 0.05 + 0.02 * rng.standard_normal(len(g)) for g in base]
    test = paired_macro_bootstrap(better, base)
    assert test.p < 0.001 and test.interval[1] < 0
    expected = np.mean([b.mean() - g.mean() for b, g in zip(better, base, strict=True)])
    assert test.value == pytest.approx(expected)


def test_several_seeds_give_mean_deviation_and_a_test_of_the_means():
    runs = [{f"u{i}": (e, 10) for i in range(40)} for e in (2, 3, 4)]
    measure = Measure.of_seeds([Measure.of_rate(parts) for parts in runs])
    assert measure.value == pytest.approx(30.0)
    # Rates 20, 30, 40: sample standard deviation 10.
    assert (measure.seeds, measure.deviation) == (3, pytest.approx(10.0))
    assert measure.parts["u0"] == (3.0, 10)
    base = Measure.of_rate({f"u{i}": (5, 10) for i in range(40)})
    assert measure.compare(base).value == pytest.approx(-20)
    one = Measure.of_rate(runs[0])
    assert Measure.of_seeds([one]) is one


def test_seeds_over_different_utterances_are_refused():
    measures = [Measure.of_rate({utt: (1, 10)}) for utt in ("a", "b")]
    with pytest.raises(ValueError, match="not over the same utterances"):
        Measure.of_seeds(measures)
