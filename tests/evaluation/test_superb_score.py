"""The overall score reproduces published ones."""

import pytest

from espnet2_lamer.evaluation.scored_runs import METRICS, PUBLISHED, superb_score

# mHuBERT-147 (arXiv 2406.06371) and XEUS (2407.00837), 10 min / 1 h, one pool.
SCORES = {
    "XLS-R-300M": (705.6, 842.1),
    "MMS-300M": (794.6, 837.0),
    "MMS-1B": (951.5, 939.7),
    "w2v-BERT 2.0 v2": (821.7, 907.0),
    "mHuBERT-147 it2": (863.0, 917.0),
    "mHuBERT-147": (916.8, 941.1),
    "XEUS": (954.8, 947.1),
}


@pytest.mark.parametrize("system", SCORES)
def test_published_scores_are_reproduced(system):
    for expected, pool in zip(SCORES[system], PUBLISHED.values(), strict=True):
        assert superb_score(pool[system], pool) == pytest.approx(expected, abs=0.05)


def test_the_floor_scores_0_and_a_system_best_everywhere_1000():
    floor = dict.fromkeys(METRICS, 50.0)
    best = {m: 100.0 if m.endswith("accuracy") else 0.0 for m in METRICS}
    pool = {"FBANK": floor, "best": best}
    assert superb_score(floor, pool) == 0.0
    assert superb_score(best, pool) == 1000.0
