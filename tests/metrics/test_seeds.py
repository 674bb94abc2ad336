"""Means, intervals and tests over seeds and utterances equal plain formulas."""

import numpy as np
import pytest
from scipy import stats

from espnet2_lamer.metrics.bootstrap import two_sided
from espnet2_lamer.metrics.measure import (
    Measure,
    compare,
    means,
    resampled_means,
    summarise,
)


def rate(parts):
    errors, lengths = zip(*parts.values(), strict=True)
    return Measure(100 * sum(errors) / sum(lengths), parts=parts)


def random_figures(seed, seeds=4, utts=12, groups=("eng",), offset=0.0):
    """Per seed one measure a language; errors vary by seed and by utterance."""
    rng = np.random.default_rng(seed)
    hard = {lang: rng.uniform(5, 25, utts) for lang in groups}
    length = {lang: rng.integers(30, 60, utts) for lang in groups}
    figures = {}
    for s in range(seeds):
        level = rng.normal(0, 2)
        figures[s] = [
            rate(
                {
                    f"{lang}{u}": (max(0.0, hard[lang][u] + level + offset), int(n))
                    for u, n in enumerate(length[lang])
                }
            )
            for lang in groups
        ]
    return figures


def stretch(seeds):
    """c_S: Student's interval of S values over what drawing S of them gives."""
    student = stats.t(seeds - 1).ppf(0.975) / np.sqrt(seeds - 1)
    return student * np.sqrt(seeds) / stats.norm.ppf(0.975)


def plain_bootstrap(figures, resamples, seed):
    """The formula of resampled_means, loop by loop."""
    rng = np.random.default_rng(seed)
    seeds, means = sorted(figures), []
    c = stretch(len(seeds))
    for _ in range(resamples):
        drawn = rng.choice(len(seeds), len(seeds))
        utts = [rng.choice(sorted(m.parts), len(m.parts)) for m in figures[seeds[0]]]
        rates = []
        for s in seeds:
            of_groups = [
                100 * sum(m.parts[u][0] for u in us) / sum(m.parts[u][1] for u in us)
                for m, us in zip(figures[s], utts, strict=True)
            ]
            rates.append(np.mean(of_groups))
        of_all = np.mean(rates)
        means.append(of_all + c * (np.mean([rates[s] for s in drawn]) - of_all))
    return np.array(means)


@pytest.mark.parametrize("groups", [("eng",), ("cmn", "eng", "yue")])
def test_the_bootstrap_has_the_distribution_of_the_plain_loop(groups):
    figures = random_figures(1, groups=groups)
    ours = resampled_means(list(figures.values()), 4000)
    plain = plain_bootstrap(figures, 2000, 5)
    assert ours.mean() == pytest.approx(plain.mean(), abs=0.15)
    assert ours.std() == pytest.approx(plain.std(), rel=0.08)
    for q in (0.025, 0.5, 0.975):
        spread = plain.std()
        assert np.quantile(ours, q) == pytest.approx(
            np.quantile(plain, q), abs=0.25 * spread
        )


def test_one_seed_is_the_bootstrap_over_utterances():
    from espnet2_lamer.metrics.bootstrap import rate_interval

    figures = random_figures(2, seeds=1, utts=40)
    parts = figures[0][0].parts.values()
    low, high = rate_interval(*zip(*parts, strict=True))
    found = summarise(figures)
    assert found.deviation is None
    assert found.interval == pytest.approx((100 * low, 100 * high), abs=0.4)


def test_mean_and_deviation_are_those_of_the_seeds():
    figures = random_figures(3, groups=("cmn", "eng"))
    values = [np.mean([m.value for m in figures[s]]) for s in range(4)]
    found = summarise(figures)
    assert list(means(figures).values()) == pytest.approx(values)
    assert found.value == pytest.approx(np.mean(values))
    assert found.deviation == pytest.approx(np.std(values, ddof=1))
    assert found.interval[0] < found.value < found.interval[1]


def test_more_variation_between_seeds_widens_the_interval():
    def with_levels(*levels):
        parts = {f"u{i}": (10.0, 50) for i in range(30)}
        return {
            s: [rate({u: (n + v, d) for u, (n, d) in parts.items()})]
            for s, v in enumerate(levels)
        }

    assert summarise(with_levels(0, 0, 0)).interval == pytest.approx((20, 20))
    # All three draws the same seed: 1 in 27, more than 2.5 %.
    low, high = summarise(with_levels(-1, 0, 1)).interval
    assert (low, high) == pytest.approx((20 - 2 * stretch(3), 20 + 2 * stretch(3)))


def test_figures_without_utterances_vary_over_seeds_alone():
    def cka(*values):
        return {s: [Measure(v)] for s, v in enumerate(values)}

    assert summarise(cka(0.9)).interval is None
    draws = resampled_means(list(cka(0.8, 0.9).values()), 4000)
    assert sorted(set(np.round(draws, 6))) == pytest.approx(
        [0.85 - 0.05 * stretch(2), 0.85, 0.85 + 0.05 * stretch(2)], abs=1e-6
    )
    assert np.mean(np.isclose(draws, 0.85)) == pytest.approx(0.5, abs=0.03)


def test_a_difference_is_paired_by_seed_and_utterance():
    theirs = random_figures(4, seeds=5)
    shifted = {
        s: [
            # One error more in every utterance: exactly what pairing removes.
            rate({u: (n + 1, d) for u, (n, d) in m.parts.items()})
            for m in measures
        ]
        for s, measures in theirs.items()
    }
    found = compare(shifted, theirs)
    expected = np.mean(
        [
            100 * len(m[0].parts) / sum(d for _, d in m[0].parts.values())
            for m in theirs.values()
        ]
    )
    assert found.value == pytest.approx(expected)
    low, high = found.interval
    alone = summarise(theirs).interval
    assert low < expected < high
    assert high - low < 0.1 * (alone[1] - alone[0])
    assert found.p == pytest.approx(2 / 10_001)


def test_effect_and_t_test_are_those_of_the_seeds_differences():
    mine, theirs = random_figures(5, offset=0.5), random_figures(6)
    # Same utterances and lengths, otherwise they do not pair.
    mine = {
        s: [
            rate(
                {
                    u: (mine[s][0].parts[u][0], theirs[s][0].parts[u][1])
                    for u in theirs[s][0].parts
                }
            )
        ]
        for s in mine
    }
    found = compare(mine, theirs)
    a = [mine[s][0].value for s in range(4)]
    b = [theirs[s][0].value for s in range(4)]
    assert found.p_seeds == pytest.approx(stats.ttest_rel(a, b).pvalue)
    d = np.subtract(a, b)
    assert found.effect == pytest.approx(d.mean() / d.std(ddof=1))
    assert found.value == pytest.approx(d.mean())


def test_only_common_seeds_are_compared_and_none_gives_nothing():
    figures = random_figures(7)
    some = {s: figures[s] for s in (1, 3)}
    assert compare(some, figures).seeds == (1, 3)
    assert compare({9: figures[0]}, figures) is None


def test_other_utterances_do_not_compare():
    figures = random_figures(8)
    other = {0: [rate({"x": (1, 9)})]}
    with pytest.raises(ValueError, match="same utterances"):
        compare(other, figures)


def test_p_is_1_for_equal_systems_and_never_0():
    assert two_sided(np.zeros(99)) == 1
    assert two_sided(np.ones(99)) == pytest.approx(2 / 100)


def false_alarms(seeds, trials, make):
    """Share of pairs of equal systems of which a difference is told."""
    told = 0
    for _ in range(trials):
        mine, theirs = ({s: [make(k)] for s in range(seeds)} for k in (0, 1))
        told += compare(mine, theirs, resamples=500).told
    return told / trials


@pytest.mark.parametrize("seeds", [2, 3, 5, 8])
def test_seed_noise_alone_is_told_as_a_difference_in_5_percent(seeds):
    rng = np.random.default_rng(0)
    found = false_alarms(
        seeds,
        500,
        lambda _: Measure(rng.normal()),
    )
    # Three standard deviations of 500 draws around 5 %.
    assert 0.02 < found < 0.08


@pytest.mark.parametrize("seeds", [3, 5])
def test_with_noise_of_utterances_as_well_no_more_are_told(seeds):
    rng = np.random.default_rng(1)

    def noisy(_):
        level = rng.normal(0, 1)
        errors = 20 + level + rng.normal(0, 4, 25)
        parts = {f"u{i}": (float(e), 50) for i, e in enumerate(errors)}
        return rate(parts)

    assert false_alarms(seeds, 200, noisy) < 0.08


def test_a_difference_of_three_deviations_is_told_with_five_seeds():
    rng = np.random.default_rng(2)
    found = false_alarms(
        5,
        100,
        lambda k: Measure(3 * k + rng.normal()),
    )
    assert found > 0.8
