"""Error counts: edit distance, and sclite's published costs."""

import random

import pytest

from espnet2_lamer.metrics.alignment import Counts, error_counts, sclite_counts


def reference_counts(ref, hyp, substitution, gap, tie_break):
    """Plain dynamic programming over (cost, substitutions, deletions, insertions)."""

    def best(*cells):
        return min(cells, key=lambda cell: (cell[0], tie_break(*cell[1:])))

    previous = [(gap * j, 0, 0, j) for j in range(len(hyp) + 1)]
    for i, r in enumerate(ref, 1):
        row = [(gap * i, 0, i, 0)]
        for j, h in enumerate(hyp, 1):
            (dc, ds, dd, di), (uc, us, ud, ui) = previous[j - 1], previous[j]
            lc, ls, ld, li = row[j - 1]
            wrong = int(r != h)
            row.append(
                best(
                    (dc + substitution * wrong, ds + wrong, dd, di),
                    (uc + gap, us, ud + 1, ui),
                    (lc + gap, ls, ld, li + 1),
                )
            )
        previous = row
    _, sub, dele, ins = previous[-1]
    return Counts(sub, dele, ins, len(ref) - sub - dele)


def random_pairs(count, seed):
    rng = random.Random(seed)
    for _ in range(count):
        alphabet = rng.choice(["ab", "abcdefgh", "你好世界再"])
        ref = rng.choices(alphabet, k=rng.randint(0, 20))
        hyp = [c for c in ref if rng.random() > 0.3]
        hyp += rng.choices(alphabet, k=rng.randint(0, 6))
        yield ref, rng.choice([hyp, hyp, rng.choices(alphabet, k=12), []])


@pytest.mark.parametrize(
    ("ref", "hyp", "expected"),
    [
        # Two ways to two errors; the one that keeps b is counted, as sclite does.
        ("ab", "bc", Counts(sub=0, dele=1, ins=1, cor=1)),
        ("abc", "abc", Counts(0, 0, 0, 3)),
        ("abc", "", Counts(0, 3, 0, 0)),
        ("", "abc", Counts(0, 0, 3, 0)),
        ("abc", "axc", Counts(1, 0, 0, 2)),
        ("你好吗", "你们好", Counts(0, 1, 1, 2)),
    ],
)
def test_hand_made_pairs_have_these_counts_both_ways(ref, hyp, expected):
    assert error_counts(ref, hyp) == expected
    assert sclite_counts(ref, hyp) == expected


def test_sclite_prefers_six_insertions_and_deletions_to_five_substitutions():
    # 5 * 4 = 20 against 3 * 3 + 3 * 3 = 18 (sclite.htm: 0, 3, 3, 4).
    assert sclite_counts("abcde", "xyzab") == Counts(sub=0, dele=3, ins=3, cor=2)
    assert error_counts("abcde", "xyzab") == Counts(sub=5, dele=0, ins=0, cor=0)
    # 4 * 4 = 16 against 2 * (2 * 3) = 12, four errors either way.
    assert sclite_counts("abcd", "xyab") == Counts(sub=0, dele=2, ins=2, cor=2)


def test_an_alignment_that_costs_sclite_the_same_is_the_one_with_fewer_errors():
    # Three substitutions and two insertions with two deletions both cost 12.
    assert sclite_counts("abc", "xya") == Counts(sub=3, dele=0, ins=0, cor=0)


def test_tokens_are_compared_whole():
    for count in (error_counts, sclite_counts):
        assert count(["zh", "ong1"], ["zh", "ong4"]) == Counts(1, 0, 0, 1)


def test_counts_equal_dynamic_programming_on_random_pairs():
    more = 0
    for ref, hyp in random_pairs(600, 7):
        plain, sclite = error_counts(ref, hyp), sclite_counts(ref, hyp)
        # Most correct tokens is fewest substitutions for a given number of errors.
        assert plain == reference_counts(ref, hyp, 1, 1, lambda s, d, i: s)
        assert sclite == reference_counts(ref, hyp, 4, 3, lambda s, d, i: s + d + i)
        for counts in (plain, sclite):
            assert counts.ref_length == len(ref)
            assert counts.cor + counts.sub + counts.ins == len(hyp)
        assert sclite.errors >= plain.errors
        more += sclite.errors > plain.errors
    assert more > 0
