"""How replay is drawn."""

from collections import Counter

import numpy as np
import pytest

from espnet2_lamer.data.sampling import (
    dominant_units,
    draw_replay,
    sample_balanced,
    sample_replay,
    share_hours,
)
from espnet2_lamer.errors import RecipeError


def _durations(count, seed=0):
    seconds = np.random.default_rng(seed).uniform(2, 30, count)
    return {f"u{n:05d}": float(s) for n, s in enumerate(seconds)}


def test_replay_lasts_the_hours_asked_for_within_one_utterance():
    durations = _durations(2000)
    chosen = sample_replay(durations, 3.0, seed=0)
    seconds = sum(durations[u] for u in chosen)
    assert 3 * 3600 <= seconds < 3 * 3600 + 30


def test_replay_is_reproducible_and_follows_the_seed():
    durations = _durations(500)
    backwards = dict(reversed(durations.items()))
    first = sample_replay(durations, 0.5, seed=1)
    assert sample_replay(backwards, 0.5, seed=1) == first
    assert sample_replay(durations, 0.5, seed=2) != first


def test_replay_draws_every_utterance_equally_often():
    durations = _durations(60)
    hours = sum(durations.values()) / 3600 / 3
    counts = dict.fromkeys(durations, 0)
    for seed in range(600):
        for utt in sample_replay(durations, hours, seed):
            counts[utt] += 1
    share = np.array([counts[u] for u in sorted(counts)]) / 600
    # Independent of length: each has the mean probability within 5 standard errors.
    assert np.abs(share - share.mean()).max() < 5 * np.sqrt(share.mean() / 600)
    assert abs(np.corrcoef(share, list(durations.values()))[0, 1]) < 0.4


def test_a_language_with_less_is_taken_whole_and_nothing_twice():
    durations = _durations(10)
    assert sample_replay(durations, 100.0, seed=0) == set(durations)


def _groups(durations, sizes):
    names = [f"g{g}" for g, size in enumerate(sizes) for _ in range(size)]
    return dict(zip(durations, names, strict=True))


def test_balanced_draws_differ_by_at_most_one_while_no_group_is_used_up():
    durations = dict.fromkeys(_durations(120), 6.0)
    groups = _groups(durations, [80, 25, 15])
    for wanted in (1, 4, 17, 30, 44):
        chosen = sample_balanced(durations, groups, wanted * 6 / 3600, seed=0)
        counts = Counter(groups[utt] for utt in chosen)
        assert sum(counts.values()) == wanted
        drawn = [counts[g] for g in ("g0", "g1", "g2")]
        assert max(drawn) - min(drawn) <= 1


def test_a_used_up_group_is_passed_over_and_nothing_is_drawn_twice():
    durations = dict.fromkeys(_durations(100), 6.0)
    groups = _groups(durations, [90, 8, 2])
    chosen = sample_balanced(durations, groups, 30 * 6 / 3600, seed=0)
    counts = Counter(groups[utt] for utt in chosen)
    assert counts == {"g0": 20, "g1": 8, "g2": 2}
    assert sample_balanced(durations, groups, 100.0, seed=0) == set(durations)


def test_balanced_draws_are_random_inside_a_group_and_follow_the_seed():
    durations = dict.fromkeys(_durations(40), 6.0)
    groups = _groups(durations, [20, 20])
    hours = 10 * 6 / 3600
    first = sample_balanced(durations, groups, hours, seed=1)
    backwards = dict(reversed(durations.items()))
    assert sample_balanced(backwards, groups, hours, seed=1) == first
    counts = Counter()
    for seed in range(400):
        counts.update(sample_balanced(durations, groups, hours, seed))
    share = np.array([counts[utt] for utt in durations]) / 400
    # 5 of 20 each time; within 5 standard errors of a binomial share.
    assert np.abs(share - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / 400)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.7, 1.0])
def test_temperature_shares_hours_in_proportion_to_a_power(alpha):
    available = {"eng": 1000.0, "deu": 300.0, "fra": 200.0}
    shares = share_hours(available, 100.0, alpha)
    # mHuBERT-147's language distribution: (h / sum h) ** alpha, normalised.
    weights = {k: (h / 1500) ** alpha for k, h in available.items()}
    for lang, hours in shares.items():
        assert hours == pytest.approx(100 * weights[lang] / sum(weights.values()))


def test_a_language_gives_what_it_has_and_the_others_share_the_rest():
    available = {"eng": 1000.0, "deu": 300.0, "yue": 5.0, "none": 0.0}
    shares = share_hours(available, 300.0, 0.5)
    assert shares["yue"] == 5.0 and shares["none"] == 0.0
    ratio = shares["eng"] / shares["deu"]
    assert ratio == pytest.approx(np.sqrt(1000 / 300))
    assert sum(shares.values()) == pytest.approx(300.0)
    assert share_hours(available, 9999.0, 0.7) == available


def test_the_dominant_unit_is_the_most_frequent_one(tmp_path):
    path = tmp_path / "text.km"
    path.write_text("a 5 7 7 5 5\nb 10 9 9 10\nc 3\nd\nother 1\n")
    units = dominant_units(path, {"a", "b", "c", "d", "e"})
    assert units == {"a": "5", "b": "9", "c": "3"}


def test_methods_do_what_their_names_say(tmp_path, caplog):
    durations = dict.fromkeys(_durations(40), 6.0)
    groups = _groups(durations, [30, 10])
    hours = 20 * 6 / 3600
    for method in ("uniform", "temperature"):
        assert draw_replay(durations, hours, 3, method) == sample_replay(
            durations, hours, 3
        )
    balanced = sample_balanced(durations, groups, hours, 3)
    assert draw_replay(durations, hours, 3, "speaker", groups) == balanced
    path = tmp_path / "text.km"
    path.write_text("".join(f"{u} {g} {g} x\n" for u, g in groups.items()))
    found = draw_replay(durations, hours, 3, "cluster", clusters=path)
    assert found == balanced
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:35]))
    part = draw_replay(durations, 1.0, 3, "cluster", clusters=path, name="eng")
    assert part == set(list(durations)[:35])
    assert "eng: 5 of 40 utterances have no units" in caplog.text


def test_cluster_sampling_says_what_it_needs(tmp_path):
    durations = _durations(3)
    with pytest.raises(RecipeError, match="needs --replay_clusters FILE"):
        draw_replay(durations, 1.0, 0, "cluster")
    with pytest.raises(RecipeError, match=r"no\.km not found"):
        draw_replay(durations, 1.0, 0, "cluster", clusters=tmp_path / "no.km")
    (tmp_path / "other.km").write_text("someone 1 2\n")
    with pytest.raises(RecipeError, match="no line for any of 3 eng"):
        draw_replay(
            durations, 1.0, 0, "cluster", clusters=tmp_path / "other.km", name="eng"
        )
